"""Calls of the harness that are under way: one within another, where a signal handler asks in the midst of it."""

from __future__ import annotations

import threading

from lmstash.caches.responses.functions.memos import Memos
from lmstash.identity.fingerprint import Fingerprint


class Call:
    """One call to a model, and what is known of it."""

    def __init__(self, model: Fingerprint) -> None:
        """Note who answers; it is under way once `Calls.begin` is told of it."""
        self.model = model
        self.is_over = False
        """Set by an assignment alone where it ends, so that no interrupt leaves it under way."""
        self.good = True
        """Whether only this model was seen so far."""
        self.unsure: list[bytes] = []
        """What was kept since it was seen last."""
        self.lock = threading.Lock()
        """Of these two. No signal handler comes while it is held, as nothing is called then."""
        self.due = 0.0
        """When it is to be looked at again."""
        self.memos: Memos | None = None
        """What functions of its code remember."""
        self.may_make: dict[str, bool] = {}
        """What it may still make, and whether it is None till then."""


class Calls:
    """Those under way."""

    def __init__(self) -> None:
        self._begun: tuple[Call, ...] = ()

    def begin(self, call: Call) -> None:
        """Add one, within those that are not over."""
        self._begun = (*(each for each in self._begun if not each.is_over), call)

    @property
    def now(self) -> Call | None:
        """The innermost."""
        return next((each for each in reversed(self._begun) if not each.is_over), None)
