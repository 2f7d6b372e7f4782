"""Contexts as particle programs hold them, which are extended and forked."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from torch import Tensor

from lmstash.identity.tokens import TokenIds

if TYPE_CHECKING:
    from lmstash.caches.logprobs.cache import Logprobs
    from lmstash.prefix.tree import Handle


class Context:
    """Some tokens, kept where many contexts share what they begin with: going on costs by the new tokens only.

    Never changes: `extend` returns another one. For one thread at a time; `Logprobs.start` makes it. A signal handler
    or finalizer that comes in the midst of a change of these tokens gets an `InterruptedChangeError` of `extend`,
    `fork` and `ids`.
    """

    __slots__ = ("_cache", "_handle")

    def __init__(self, cache: Logprobs, handle: Handle) -> None:
        """Made by `Logprobs.start`."""
        self._cache = cache
        self._handle = handle

    def extend(self, more: int | TokenIds) -> Context:
        """Return the context with one token more, or several."""
        return Context(self._cache, self._handle.extend(more))

    def fork(self) -> Context:
        """Return another context with the same tokens."""
        return Context(self._cache, self._handle.fork())

    def logprobs(self) -> Tensor:
        """Return the log-probabilities of the next token, `[vocabulary]` float32."""
        return self._cache.next_token_logprobs(self)

    async def logprobs_async(self) -> Tensor:
        """As `logprobs`, together with what other tasks ask for."""
        return await self._cache.next_token_logprobs_async(self)

    @property
    def ids(self) -> array[int]:
        """All tokens. Costs a copy of them."""
        return self._handle.tokens()

    def __len__(self) -> int:
        """How many tokens there are."""
        return self._handle.depth

    def __repr__(self) -> str:
        """One line."""
        return f"<Context of {len(self)} tokens>"
