"""What one `KV` did: counters, for people and for tests."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from lmstash.forks import renew_after_fork

MAX_REASONS = 64
"""Counted apart: the text of an exception may be another one each time."""
OTHER_REASONS = "other reasons"


@dataclass(slots=True, weakref_slot=True, eq=False)
class KVStats:
    """Counters of one `KV` since it was made. Threads may count at once."""

    calls: int = 0
    """Of `generate`, `past` and `prefill`."""
    tokens_asked: int = 0
    """Prompt tokens of all rows, of the calls that a kept prefix could take part in."""
    tokens_reused: int = 0
    """Those that were restored instead of computed."""
    tokens_kept: int = 0
    """Put into the store."""
    passed_on: Counter[str] = field(default_factory=Counter[str])
    """Calls that were left to the model alone, by reason."""
    not_kept: Counter[str] = field(default_factory=Counter[str])
    """Caches of which nothing was kept, by reason."""
    declined: int = 0
    """Hits that were estimated to be slower than computing."""
    worst_error: float = 0.0
    """With `storage_dtype`: the largest rounding seen, relative to the largest value of its tensor."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """See to forked children."""
        renew_after_fork(self, _lock=threading.RLock)

    def called(self) -> None:
        """Count a call."""
        with self._lock:
            self.calls += 1

    def served(self, asked: int, reused: int) -> None:
        """Count prompt tokens."""
        with self._lock:
            self.tokens_asked += asked
            self.tokens_reused += reused

    def kept(self, n_tokens: int, worst_error: float) -> None:
        """Count tokens that were put into the store, and how far they were rounded."""
        with self._lock:
            self.tokens_kept += n_tokens
            self.worst_error = max(self.worst_error, worst_error)

    def note(self, counts: Counter[str], reason: str) -> None:
        """Count a reason in `passed_on` or `not_kept`; of more reasons than can be read, the later ones together."""
        with self._lock:
            counts[reason if reason in counts or len(counts) < MAX_REASONS else OTHER_REASONS] += 1

    def decline(self, count: int) -> None:
        """Count hits that were not used."""
        with self._lock:
            self.declined += count
