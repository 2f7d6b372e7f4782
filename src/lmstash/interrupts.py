"""Signal handlers and finalizers, which Python runs between any two lines of a thread: in the midst of what it does.

What such code asks for must not wait for a lock of its own thread, and must not see what is half changed. Locks that it
may meet are `threading.RLock`s, and whoever takes one asks `held_here` first (docs/decisions/0017).
"""

from __future__ import annotations

import threading


def held_here(lock: threading.RLock) -> bool:
    """Whether this thread has the lock: then who asks has come between the lines of what does."""
    # Private, but what `threading.Condition` asks a lock by, so it stays.
    return lock._is_owned()  # pyright: ignore[reportAttributeAccessIssue]
