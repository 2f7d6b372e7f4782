"""Checking while computing: nothing that was restored leaves before its bytes, and the model's, were verified."""

from __future__ import annotations

import _thread
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
        self._done = threading.Event()
        try:
            # Thread.start() would wait until the thread runs, which on busy cores takes milliseconds.
            _thread.start_new_thread(self._ask, ())
        except RuntimeError:  # no more threads
            self._ask()

    def passed(self) -> bool:
        """Wait for the answers; return whether all were yes."""
        self._done.wait()
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
        finally:
            self._done.set()
