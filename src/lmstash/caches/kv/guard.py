"""Checking while computing: nothing that was restored leaves before its bytes, and the model's, were verified."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from lmstash.events import logger


class UnverifiedError(Exception):
    """What was restored cannot be trusted; raised within a forward pass to end it. Never leaves this package."""


class Guard:
    """Asks questions in a thread of its own, while the model computes with what they are about.

    The last layer to be filled waits for the answer, so that no token is chosen before it.
    """

    def __init__(self, checks: Sequence[Callable[[], bool]], n_layers: int) -> None:
        """Start asking; `n_layers` layers will report to `filled`."""
        self._checks = checks
        self._left = n_layers
        self._good = False
        self.seconds = 0.0
        """What filling the layers took."""
        self._thread: threading.Thread | None = threading.Thread(target=self._ask, name="lmstash-check", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads
            self._thread = None
            self._ask()

    def passed(self) -> bool:
        """Wait for the answers; return whether all were yes."""
        if self._thread is not None:
            self._thread.join()
        return self._good

    def filled(self, seconds: float) -> None:
        """Note that a layer was filled, and what that took; the last one waits.

        Raises:
            UnverifiedError: An answer was no.
        """
        self._left -= 1
        self.seconds += seconds
        if self._left == 0 and not self.passed():
            raise UnverifiedError

    def _ask(self) -> None:
        try:
            self._good = all(check() for check in self._checks)
        except Exception as error:  # no answer is no yes: the caller computes instead
            logger.warning("lmstash: restored values could not be checked: %s", error)
