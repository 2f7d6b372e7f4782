"""Next-token log-probabilities: what a language model says comes next, computed once for each context. Needs torch."""

from __future__ import annotations

try:
    import torch  # noqa: F401 - everything here needs it
except ImportError:
    from lmstash.errors import MissingDependencyError

    raise MissingDependencyError("torch", "torch") from None

from lmstash.caches.logprobs.cache import Logprobs
from lmstash.caches.logprobs.contexts import Context

__all__ = ["Context", "Logprobs"]
