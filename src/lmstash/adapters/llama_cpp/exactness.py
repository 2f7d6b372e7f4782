"""Where a sequence may be continued so that every token is computed in a batch as a fresh run computes it.

llama.cpp takes other kernels for small batches, so the last bits of a token's values depend on the batch that it was
evaluated in: on CPUs with flash attention below 64 tokens, without it only alone. A fresh run evaluates a prompt in
batches of `n_batch` from its start. Rows of batches that are large enough are the same whatever the batch; a prompt
continued at a point that leaves a large enough batch, or at the start of one, goes on bit for bit (measured:
`tests/adapters/llama_cpp/test_attach.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LEAST_FLASH = 64
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Exactness:
    """The batches of one context."""

    step: int
    """Tokens of a whole batch of a fresh run; 0 where nothing can be promised."""
    least: int
    """Tokens from which on the kernel is the same."""

    @classmethod
    def of(cls, settings: dict[str, Any], n_batch: int, *, whole: bool = False) -> Exactness:
        """Take the batches of a context made with these settings.

        Args:
            settings: Of the context.
            n_batch: Of the object that evaluates.
            whole: Go on only after whole batches: for recurrent layers, of which nothing is known but that the same
                batches give the same state.
        """
        if whole:
            return cls(n_batch, n_batch)
        least = _LEAST_FLASH if settings.get("flash_attn_type") else _LEAST
        n_ubatch = int(settings.get("n_ubatch") or n_batch)
        even = n_ubatch >= least and n_batch % n_ubatch == 0
        return cls(n_ubatch if even else 0, least)

    def point(self, most: int, n_tokens: int) -> int:
        """Return the last place, at most `most`, at which a prompt of `n_tokens` may be continued."""
        if not self.step:
            return 0
        most = min(most, n_tokens - 1)
        start = most // self.step * self.step
        latest = min(start + self.step, n_tokens) - self.least
        return max(start, min(most, latest))

    def whole(self, n_tokens: int) -> int:
        """Return how many of the first tokens are in whole batches."""
        return n_tokens // self.step * self.step if self.step else 0

    def parts(self, before: int, n_tokens: int) -> list[int]:
        """Return where to cut `n_tokens` after `before` ones, so that batches begin where those of a fresh run do."""
        if not self.step or not before % self.step or n_tokens < 2:
            return []
        cut = self.step - before % self.step
        return [cut] if cut < n_tokens else []

    def reached(self, before: int, n_tokens: int) -> int:
        """Return how far rows are as in any run, after `n_tokens` were evaluated behind `before` such ones."""
        if not self.step:
            return 0
        whole = n_tokens // self.step * self.step
        left = n_tokens - whole
        return before + whole + (left if left >= self.least else 0)
