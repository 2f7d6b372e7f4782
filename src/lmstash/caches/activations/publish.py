"""Computed values on their way to the store: held back until the model is known not to have changed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lmstash.caches.drawing import NOT_KEPT
from lmstash.errors import MismatchError
from lmstash.events import DropReason
from lmstash.store.base import Store, Write
from lmstash.store.sheets import Sheet, put_sheets

HELD_BYTES = 64 * 2**20
"""Most bytes held back."""
HELD_SECONDS = 10.0
"""Longest time values are held back."""
TOGETHER_SECONDS = 0.1
"""Batches that come faster than this are saved together."""
TOGETHER_BYTES = 8 * 2**20
"""So much is enough for that: its memory can then be used again, and the store writes no more at once."""
_CHANGES_NAMED = 3
_CHECK_SHARE = 0.01
"""Share of the time that checks may take, as far as `HELD_SECONDS` allows."""


class Publisher:
    """Saves computed values in groups, each after a check that the model did not change.

    A batch is saved as soon as it is done, unless the last one was saved less than `TOGETHER_SECONDS` ago (then they
    wait until they are `TOGETHER_BYTES`), or the check costs more than a hundredth of the time since (then they wait at
    most `HELD_SECONDS` or `HELD_BYTES`). Used by one thread.
    """

    def __init__(
        self,
        store: Store,
        unchanged: Callable[[], bool],
        *,
        replace: bool,
        on_saved: Callable[[], None] | None = None,
        changes: Callable[[], list[str]] | None = None,
    ) -> None:
        """Save into `store`.

        Args:
            store: Where to.
            unchanged: Whether the model is the one whose values these are.
            replace: Overwrite what is kept already.
            on_saved: Called after each group.
            changes: Names what changed, once `unchanged` said no.
        """
        self._store = store
        self._unchanged = unchanged
        self._replace = replace
        self._on_saved = on_saved
        self._changes = changes
        self._held: list[Write | Sheet] = []
        self._held_again: list[Write] = []
        self._held_bytes = 0
        self._last_check = -HELD_SECONDS  # the first batch waits for nothing
        self._check_seconds = 0.0
        self.changed = False
        """Whether the model changed since the call began; nothing is saved from then on."""

    def offer(self, writes: Sequence[Write | Sheet], unfit: Sequence[Write] = ()) -> None:
        """Take what one batch computed; saves it when it is time.

        Args:
            writes: What was not kept.
            unfit: What was kept under its key but cannot be used: it is replaced.
        """
        self._held.extend(writes)
        self._held_again.extend(unfit)
        self._held_bytes += sum(_size(write) for each in (writes, unfit) for write in each)
        waited = time.monotonic() - self._last_check
        patience = min(HELD_SECONDS, self._check_seconds / _CHECK_SHARE)
        enough = waited >= TOGETHER_SECONDS or self._held_bytes >= TOGETHER_BYTES
        if self._held_bytes >= HELD_BYTES or (enough and waited >= patience):
            self.flush()

    def flush(self) -> None:
        """Save what is held, or drop it when the model changed.

        Raises:
            MismatchError: It changed, and the store is strict.
        """
        if not self._held and not self._held_again:
            return
        fresh, again = self._held, self._held_again
        self._held, self._held_again, self._held_bytes = [], [], 0
        if self.changed or not self._check():
            self._drop([*fresh, *again], DropReason.MODEL_CHANGED)
            return
        sheets = [each for each in fresh if isinstance(each, Sheet)]
        writes = [each for each in fresh if not isinstance(each, Sheet)]
        if sheets:
            put_sheets(self._store, sheets, replace=self._replace)
        if writes:
            self._store.put_many(writes, replace=self._replace)
        if again:
            self._store.put_many(again, replace=True)
        if self._on_saved is not None:
            self._on_saved()

    def refuse_drawn(self, writes: Sequence[Write | Sheet], name: str) -> None:
        """Drop what a model computed that drew at random meanwhile, and say once why.

        Args:
            writes: What would have been saved.
            name: The model's, for people.
        """
        self._drop(writes, DropReason.RANDOM)
        self._store.events.warn_once(f"{name} draws", "lmstash: values of %s are not kept: %s", name, NOT_KEPT)

    def _drop(self, writes: Sequence[Write | Sheet], reason: DropReason) -> None:
        for each in writes:
            for key in each.keys if isinstance(each, Sheet) else (each.key,):
                self._store.events.drop(each.namespace, key, reason)

    def _check(self) -> bool:
        started = time.monotonic()
        same = self._unchanged()
        self._last_check = time.monotonic()
        self._check_seconds = self._last_check - started
        if same:
            return True
        self.changed = True
        which = "" if self._changes is None else _named(self._changes())
        self._store.events.warn_once(
            "model changed",
            "lmstash: the model changed while values were computed%s; they are not kept. If its passes leave this "
            "behind and compute the same whatever it is, vouch for the model with assume_frozen=True: then no edit is "
            "seen, and after one of your own you have to ask for the cache anew",
            which,
        )
        if self._store.strict:
            raise MismatchError(
                f"the model changed while values were computed{which}, so they were not kept. Do not edit weights "
                "during a call, or pass assume_frozen=True if you vouch for them."
            )
        return False


def _named(changes: list[str]) -> str:
    if not changes:  # it is again what it was
        return ""
    more = len(changes) - _CHANGES_NAMED
    return f" ({', '.join(changes[:_CHANGES_NAMED])}{f' and {more} more' if more > 0 else ''})"


def _size(write: Write | Sheet) -> int:
    if isinstance(write, Sheet):
        return (write.values if write.block is None else write.block).nbytes
    value = write.value
    return (
        len(value)
        if isinstance(value, bytes | bytearray | memoryview)
        else sum(memoryview(each).nbytes for each in value)
    )
