"""The recompute gate: a hit that would cost more than computing is declined."""

from __future__ import annotations

import threading

_LEAST_BYTES = 256 << 10
_LEAST_TOKENS = 64
"""Less says more of what a call costs anyway than of rates."""
_WEIGHT = 0.25
"""Of the newest measurement."""
_TRY_EVERY = 16
"""So often a hit that would be declined is used all the same, since the store may have become faster."""


class Gate:
    """Running estimates of what restoring and computing take, for one model on one store. Threads may share it."""

    def __init__(self) -> None:
        """Know nothing, and decline nothing."""
        self._lock = threading.RLock()  # a signal handler may call in the middle of it
        self._seconds_per_byte: float | None = None
        self._seconds_per_token: float | None = None
        self._token_bytes: float | None = None
        self._declined = 0

    @property
    def seconds_per_token(self) -> float | None:
        """What computing a prompt takes; None while no prompt of some length was computed."""
        return self._seconds_per_token

    def restored(self, n_tokens: int, n_bytes: int, seconds: float) -> None:
        """Note what reading and joining kept tokens took."""
        if n_bytes >= _LEAST_BYTES and n_tokens:
            with self._lock:
                self._seconds_per_byte = _mixed(self._seconds_per_byte, seconds / n_bytes)
                self._token_bytes = n_bytes / n_tokens

    def computed(self, n_tokens: int, seconds: float) -> None:
        """Note what computing tokens took."""
        if n_tokens >= _LEAST_TOKENS:
            with self._lock:
                self._seconds_per_token = _mixed(self._seconds_per_token, seconds / n_tokens)

    def worth(self, n_tokens: int) -> bool:
        """Return whether restoring so many tokens is estimated to be faster than computing them."""
        with self._lock:
            load, compute, size = self._seconds_per_byte, self._seconds_per_token, self._token_bytes
            if load is None or compute is None or size is None or load * size <= compute:
                return True
            self._declined += 1
            return self._declined % _TRY_EVERY == 0


def _mixed(known: float | None, new: float) -> float:
    return new if known is None else (1 - _WEIGHT) * known + _WEIGHT * new
