"""The seam between a store that needs room and the rule that says what is worth least."""

from __future__ import annotations

from typing import Protocol


class Policy(Protocol):
    """Ranks entries by what is known of their use."""

    name: str

    def value(self, last_used_ms: int, hits: int) -> float:
        """Return how much an entry is worth keeping; what is worth least goes first.

        Args:
            last_used_ms: When it was last put or served, in milliseconds since 1970.
            hits: How often it was served, up to 65,535.
        """
        ...
