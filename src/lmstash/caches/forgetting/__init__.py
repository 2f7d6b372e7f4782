"""Forgetting one prompt: every entry that was computed over its text, or over its token ids.

`asked` reads what is to be forgotten; `trail` follows token ids along the chain of one model; `activations`, `kv`,
`logprobs` and `states` say which entries of their kind are meant; `removal` removes them. Facts and tokens are all that
is needed for it, never torch.
"""

from __future__ import annotations

from lmstash.caches.forgetting.removal import forget

__all__ = ["forget"]
