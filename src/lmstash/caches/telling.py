"""What the logger hears of a call: a summary at INFO; at DEBUG each hit and each miss with its reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lmstash.events import Drop, Event, EventLog, Hit, Miss, logger


@contextmanager
def told(events: EventLog) -> Iterator[None]:
    """Log each hit, miss and drop of a store, other threads' too, for as long as this lasts.

    Costs a microsecond unless the logger wants to hear of them.
    """
    if not logger.isEnabledFor(logging.DEBUG):
        yield
        return
    stop = events.listen(_tell)
    try:
        yield
    finally:
        stop()


def tell_summary(name: str, *, n_absent: int, n_prompts: int, layers: Sequence[int]) -> None:
    """Log what a call for distinct prompts of the model `name` finds kept, and what it has to compute."""
    if logger.isEnabledFor(logging.INFO):
        logger.info(
            "%s: %d of %d prompts kept, %d to compute (layers %s)",
            name,
            n_prompts - n_absent,
            n_prompts,
            n_absent,
            ", ".join(map(str, layers)),
        )


def _tell(event: Event) -> None:
    if isinstance(event, Hit):
        logger.debug("hit %s %s (%d bytes)", event.namespace, event.key.hex()[:16], event.nbytes)
    elif isinstance(event, Miss):
        logger.debug("miss %s %s: %s", event.namespace, event.key.hex()[:16], event.reason.value)
    elif isinstance(event, Drop):
        logger.debug("not kept %s %s: %s", event.namespace, event.key.hex()[:16], event.reason.value)
