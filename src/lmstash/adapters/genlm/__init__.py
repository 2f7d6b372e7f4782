"""genlm-backend's caches by their own names, and its `AsyncTransformer` over an lmstash store.

    from lmstash.adapters.genlm import DynamicTokenTrie, OutputCache, TokenTrie    # drop-ins, need nothing else
    from lmstash.adapters.genlm import AsyncTransformer                            # needs genlm-backend 0.3

    llm = AsyncTransformer.from_name("model", stash="runs/smc")                    # then as genlm's own

Each class says where it differs from the released one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmstash.adapters.genlm.dynamic_trie import DynamicTokenTrie
from lmstash.adapters.genlm.output_cache import OutputCache
from lmstash.adapters.genlm.token_trie import TokenTrie

if TYPE_CHECKING:
    from lmstash.adapters.genlm.async_transformer import AsyncTransformer

__all__ = ["AsyncTransformer", "DynamicTokenTrie", "OutputCache", "TokenTrie"]


def __getattr__(name: str) -> Any:
    """Import `AsyncTransformer`, and with it genlm-backend, when it is asked for."""
    if name == "AsyncTransformer":
        from lmstash.adapters.genlm.async_transformer import AsyncTransformer

        return AsyncTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
