"""From writes to groups that go to the folder together, and why what could not be kept was not."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lmstash.errors import CapacityError, LmstashError, ReadOnlyError, StoreUnavailableError
from lmstash.events import DropReason, EventLog
from lmstash.store.base import Write
from lmstash.store.disk.accounting.room import GROUP_ROWS, MIN_CAPACITY_BYTES
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.rows import DAMAGE
from lmstash.store.disk.intake import NoRoomError, expiry_us, item_of
from lmstash.store.disk.opened import Opened
from lmstash.store.disk.writing.appender import Item

if TYPE_CHECKING:
    from lmstash.store.sheets import Sheet


class Putting:
    """Keeps values in one folder. Threads may share it."""

    def __init__(
        self,
        folder: Folder,
        events: EventLog,
        opened: Callable[[], Opened],
        writable: Callable[[], Opened],
        contains_many: Callable[[Sequence[bytes]], list[bool]],
        on_fault: Callable[[BaseException], None],
        *,
        strict: bool,
    ) -> None:
        """Take the parts of a store.

        Args:
            folder: The folder.
            events: Counts puts and drops.
            opened: Returns the open parts as they are.
            writable: Returns them for changes; raises when there may be none.
            contains_many: The store's own.
            on_fault: Notes a fault, and mends the index if that is what is broken.
            strict: Raise where a value is dropped.
        """
        self._folder = folder
        self._events = events
        self._opened = opened
        self._writable = writable
        self._contains_many = contains_many
        self._fault = on_fault
        self._strict = strict

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values; with `replace=False` what is kept already stays. Returns how many are kept now.

        Values of one namespace that follow each other share one write and one commit, up to 512 of them.
        """
        kept = 0
        batch: dict[bytes, Item] = {}
        size, namespace = 0, ""
        for write in writes:
            item = item_of(write)
            full = len(batch) >= GROUP_ROWS or size + item.most_bytes > self._opened().room.sizes.segment_bytes
            if batch and (full or write.namespace != namespace or write.key in batch):
                kept += self._keep(namespace, batch, replace)
                batch, size = {}, 0
            namespace = write.namespace
            batch[write.key] = item
            size += item.most_bytes
        return kept + self._keep(namespace, batch, replace) if batch else kept

    def put_sheets(self, sheets: Sequence[Sheet], *, replace: bool = True) -> int:
        """Keep the entries of sheets, many in one write and one commit: see `lmstash.store.sheets.put_sheets`."""
        from lmstash.store.sheets import groups_of

        kept = 0
        sizes = self._opened().room.sizes
        for group in groups_of(sheets, sizes.group_rows, sizes.segment_bytes // 2):
            namespace, lifetime = group[0].namespace, group[0].ttl_seconds
            try:
                opened = self._writable()
                done = opened.intake.keep_sheets(namespace, group, expiry_us(lifetime)) and not opened.index.moved()
            except (LmstashError, OSError, *DAMAGE):
                done = False  # met again below, where it is told apart
            if done:
                kept += self._count_sheets(group)
            else:
                kept += self.put_many((write for sheet in group for write in sheet.writes()), replace=replace)
        return kept

    def _keep(self, namespace: str, batch: dict[bytes, Item], replace: bool, *, again: bool = True) -> int:
        """Keep a batch; what cannot be kept is counted as dropped. Returns how many are kept."""
        kept = 0
        if not replace:
            present = {key for key, known in zip(batch, self._contains_many(list(batch)), strict=True) if known}
            kept = len(present)
            batch = {key: item for key, item in batch.items() if key not in present}
            if not batch:
                return kept
        items = list(batch.values())
        try:
            opened = self._writable()
            if opened.room.disabled and opened.room.refresh().disabled:
                raise NoRoomError
            opened.intake.keep(namespace, items, replace=replace)
            if again and opened.index.moved():  # made anew meanwhile: it may have been told by nobody
                return kept + self._keep(namespace, batch, replace, again=False)
        except NoRoomError:
            if self._opened().room.disabled:
                return kept + self._drop(
                    namespace, items, DropReason.DISABLED, f"its limit is under {MIN_CAPACITY_BYTES:,} bytes"
                )
            if len(items) > 1:  # one by one, what fits
                return kept + sum(self._keep(namespace, {item.key: item}, True) for item in items)
            size = items[0].most_bytes
            if self._opened().room.could_ever_fit(size):
                return kept + self._drop(namespace, items, DropReason.NO_ROOM, "nothing could be evicted")
            return kept + self._drop(namespace, items, DropReason.TOO_LARGE, f"{size:,} bytes exceed the limit")
        except ReadOnlyError as error:
            return kept + self._drop(namespace, items, DropReason.READ_ONLY, str(error))
        except CapacityError as error:
            return kept + self._drop(namespace, items, DropReason.DISK_FULL, str(error))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = DropReason.DISK_FULL if full else DropReason.UNAVAILABLE
            return kept + self._drop(namespace, items, reason, self._folder.explain(error))
        except DAMAGE as error:
            self._fault(error)  # rebuilds the index
            if again:
                return kept + self._keep(namespace, batch, replace, again=False)
            return kept + self._drop(namespace, items, DropReason.UNAVAILABLE, str(error))
        except LmstashError as error:  # closed, or the index cannot be used
            return kept + self._drop(namespace, items, DropReason.UNAVAILABLE, str(error))
        self._count_puts(namespace, items)
        return kept + len(items)

    def _drop(self, namespace: str, items: Sequence[Item], reason: DropReason, detail: str) -> int:
        """Count values that are not kept; returns 0, or raises in strict mode."""
        for item in items:
            self._events.drop(namespace, item.key, reason)
        self._events.warn_once(f"drop {reason}", "lmstash: values are not kept in %s: %s", self._folder.path, detail)
        if self._strict:
            errors = {DropReason.READ_ONLY: ReadOnlyError, DropReason.UNAVAILABLE: StoreUnavailableError}
            raise errors.get(reason, CapacityError)(f"{self._folder.path}: values are not kept: {detail}")
        return 0

    def _count_sheets(self, sheets: Sequence[Sheet]) -> int:
        for sheet in sheets:
            n, n_bytes = sheet.values.shape
            if self._events.listening:
                for key, seconds in zip(sheet.keys, sheet.compute_seconds or [0.0] * n, strict=True):
                    self._events.put(sheet.namespace, key, n_bytes, seconds)
            else:
                self._events.puts(n, n * n_bytes, sum(sheet.compute_seconds))
        return sum(map(len, sheets))

    def _count_puts(self, namespace: str, items: Sequence[Item]) -> None:
        if self._events.listening:
            for item in items:
                self._events.put(namespace, item.key, item.nbytes, item.compute_seconds)
        else:
            seconds = sum(item.compute_seconds for item in items)
            self._events.puts(len(items), sum(item.nbytes for item in items), seconds)
