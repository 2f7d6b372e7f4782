"""Least recently used."""

from __future__ import annotations


class LeastRecentlyUsed:
    """What was used longest ago goes first."""

    name = "lru"

    def value(self, last_used_ms: int, hits: int) -> float:
        """Return the time of last use."""
        return last_used_ms
