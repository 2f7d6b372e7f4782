"""One connection to a folder: the parts of a store, opened together, and replaced together after a fork or damage."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from lmstash.errors import CapacityError, FormatError, StoreUnavailableError
from lmstash.events import EventLog, MissReason
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.accounting.renumbering import renumber
from lmstash.store.disk.accounting.room import MIN_CAPACITY_BYTES, Room, Sizes, check_capacity, default_capacity_bytes
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import OtherKeyError
from lmstash.store.disk.files.rows import DAMAGE, IndexDamagedError, Row
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.forks import opening
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.intake import Intake
from lmstash.store.disk.reading.lookup import Lookup
from lmstash.store.disk.reclaiming.reclaim import Reclaimer
from lmstash.store.disk.reclaiming.shrinking import Shrinker
from lmstash.store.disk.recovery import Recovery, rebuild
from lmstash.store.disk.writing.appender import Appender
from lmstash.store.policies.base import Policy
from lmstash.unset import UNSET

if TYPE_CHECKING:
    from lmstash.store.disk.reading.lending import Lender
    from lmstash.store.disk.reading.sheets import SheetReader
    from lmstash.store.disk.reading.values import ValueReader


class Opened:
    """The parts of a store on one folder, as one process has them open."""

    def __init__(
        self,
        folder: Folder,
        capacity_bytes: int | None,
        policy: Policy,
        events: EventLog,
        *,
        read_only: bool,
        condemned: tuple[int, int] = (0, 0),
    ) -> None:
        """Open the folder; recover what a crash left.

        Args:
            folder: The folder.
            capacity_bytes: The limit asked for, or `UNSET`.
            policy: What goes first.
            events: Counts.
            read_only: Never write.
            condemned: The inode of an index that proved damaged: it is made anew even if it can be opened.

        Raises:
            CapacityError: No folder can keep to the limit.
            StoreUnavailableError: It cannot be used.
        """
        self.folder = folder
        self.events = events
        self.read_only = read_only
        if not read_only:
            capacity_bytes = check_capacity(capacity_bytes)
            folder.prepare()
        elif not self._index_there():
            raise StoreUnavailableError(f"{folder.path} holds no stash to read. Open it once without read_only.")
        else:
            folder.describe()
        try:
            self.recency = Recency(folder, read_only=read_only)
            self.index = self._open_index(capacity_bytes, condemned)
            if self.recency.replaced():  # before the index was open, which forbids it
                self.recency = Recency(folder)
        except OSError as error:
            raise StoreUnavailableError(folder.explain(error)) from error
        self.index.log.pauses = self.recency
        self.room = Room(folder, self.index)
        self.appender = Appender(folder, self.index, self.recency, self.room)
        self.recovery = Recovery(folder, self.index, self.recency, events)
        self.lookup = Lookup(folder, self.index, self.recency, events, self._damaged, self._lost)
        self._sheet_reader: SheetReader | None = None
        self._value_reader: ValueReader | None = None
        self._lender: Lender | None = None
        self.reclaimer = Reclaimer(
            folder,
            self.index,
            self.recency,
            self.appender,
            policy,
            events,
            self.recovery.tend,
            self.lookup.forget,
        )
        self.shrinker = Shrinker(self.index, self.appender, self.reclaimer, events)
        self.intake = Intake(self.index, self.recency, self.appender, self.reclaimer, self.shrinker, events)
        if not read_only:
            with self.index.writing():
                self.settle_capacity(capacity_bytes)
                self.recovery.reconcile()

    def settle_capacity(self, asked: int | None) -> None:
        """Make `asked` (if set) or a default the folder's limit, and enforce it: somebody may have died over that."""
        with self.index.writing():
            try:
                lowered = self._note_capacity(asked)
            except (OSError, CapacityError):  # a full disk may have no room to note by how much it is to be emptied
                if not isinstance(asked, int) or self.room.held_bytes() <= asked or not self.shrinker.unlink_first():
                    raise
                lowered = self._note_capacity(asked)
            if self.room.over_bytes() > 0 or (lowered and self.room.over_bytes(signed=True) > -self.room.ahead_bytes()):
                self.shrinker.settle()

    def _note_capacity(self, asked: int | None) -> bool:
        """Make `asked` (if set) or a default the folder's limit; returns whether it was a larger one."""
        with self.index.transaction():
            known = self.index.fact("capacity")
            if asked is not UNSET:
                capacity = asked
            elif known is not None:
                return False
            else:
                described = self.folder.describe().get("capacity_bytes", UNSET)
                capacity = described
                if described is UNSET:  # of a folder that has lost both, what it holds was allowed
                    held = self.room.held_bytes()
                    capacity = max(default_capacity_bytes(self.folder), held + held // 4 + MIN_CAPACITY_BYTES)
            fact = "unlimited" if capacity is None else capacity
            if known == fact:
                return False
            self.index.set_fact("capacity", fact)
            self.recency.note_limit()  # before others can be granted anything: from now on they ask
            self.room.take_back_grants()
            with contextlib.suppress(OSError):
                self.folder.write_description(capacity)
        self.room.refresh()
        return capacity is not None and (known == "unlimited" or (isinstance(known, int) and known > capacity))

    def refuse_within(self) -> None:
        """Raise where a signal handler or finalizer has interrupted a change of its own thread, and would make another.

        What it would change is half done: records may be laid where others are about to be. And SQLite may be waiting
        for a lock; what follows when it is called then is not defined.
        """
        if self.index.is_interrupted():
            raise StoreUnavailableError("what has interrupted a change cannot change anything. Let it return first.")

    def sync(self) -> None:
        """Return once what was put is on the medium."""
        with self.index.writing():
            self.appender.sync()
            self.index.sync()

    def tidy(self) -> None:
        """Give back the room of what was removed."""
        with self.index.writing():
            self.appender.seal_all()
            self.reclaimer.tidy()

    def close(self) -> None:
        """Seal, tidy, sync, and close the index."""
        try:
            if not self.read_only:
                with self.index.writing():
                    self.appender.seal_all()
                    if not self.index.moved():  # new files would lie where the folder was
                        self.reclaimer.tidy()
                        self.appender.seal_all()
                    self.sync()
                    self.index.checkpoint()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close files as they are; the next opener seals."""
        self.appender.abandon()
        self.lookup.close()
        self.recency.close()
        self.index.close()

    def sheet_reader(self) -> SheetReader:
        """Return what reads many small records at once; loads numpy when it is first asked for."""
        if self._sheet_reader is None:
            from lmstash.store.disk.reading.sheets import SheetReader

            self._sheet_reader = SheetReader(self.index, self.recency, self.lookup, self.events)
        return self._sheet_reader

    def value_reader(self) -> ValueReader:
        """Return what reads the values of many small records at once; loads numpy when it is first asked for."""
        if self._value_reader is None:
            from lmstash.store.disk.reading.values import ValueReader

            self._value_reader = ValueReader(self.index, self.recency, self.lookup, self.events)
        return self._value_reader

    def lender(self) -> Lender:
        """Return what lends large values."""
        if self._lender is None:
            from lmstash.store.disk.reading.lending import Lender

            self._lender = Lender(self.index, self.recency, self.lookup, self.events)
        return self._lender

    def _index_there(self) -> bool:
        try:
            return self.folder.has_index()
        except OSError as error:
            raise StoreUnavailableError(self.folder.explain(error)) from error

    def _open_index(self, capacity_bytes: int | None, condemned: tuple[int, int]) -> Index:
        folder = self.folder
        limit = folder.describe().get("capacity_bytes") if capacity_bytes is UNSET else capacity_bytes
        log_bytes = Sizes.of(limit).log_bytes

        def make(where: Folder) -> Index:
            return Index(where, read_only=self.read_only, log_bytes=log_bytes)

        lost = not folder.has_index() and bool(folder.segment_names())
        if not lost and condemned != folder.index_inode():
            try:
                return make(folder)
            except IndexDamagedError as error:
                if self.read_only:
                    raise StoreUnavailableError(
                        f"the index of {folder.path} is damaged. Open it for writing once to rebuild it."
                    ) from error
                self.events.damage("", None, f"{folder.index}: {error}")
        return rebuild(folder, make, self.recency, self.events, condemned=condemned)

    def _damaged(self, row: Row, file: SegmentFile, error: FormatError) -> MissReason:
        """Note a record that cannot be served, and stop serving it."""
        self.events.damage(file.namespace, row.key, f"{file.path} at {row.off}: {error}")
        if not (self.read_only or self.index.is_interrupted()):
            self.intake.drop(row)
        return MissReason.MISMATCH if isinstance(error, OtherKeyError) else MissReason.DAMAGED

    def _lost(self, seg: int) -> None:
        segment = self.index.segment(seg)
        if segment is not None and not (self.read_only or self.index.is_interrupted()):
            self.recovery.forget_lost([segment])


def connect(
    folder: Folder,
    capacity_bytes: int | None,
    policy: Policy,
    events: EventLog,
    *,
    read_only: bool,
    condemned: tuple[int, int] = (0, 0),
) -> Opened:
    """Open the folder (see `Opened`); an index that proves damaged deeper than opening it looks is made anew.

    Raises:
        StoreUnavailableError: The folder cannot be used.
    """
    damage: Exception | None = None
    for last in (condemned != (0, 0) or read_only, True):
        try:
            with opening:
                opened = Opened(folder, capacity_bytes, policy, events, read_only=read_only, condemned=condemned)
                if read_only or not opened.room.slot_bytes()[1]:
                    return opened
                opened.let_go()
                renumber(folder)
                return Opened(folder, capacity_bytes, policy, events, read_only=read_only)
        except DAMAGE as error:
            damage, condemned = error, folder.index_inode()
            events.damage("", None, f"{folder.index}: {error}")
            if last:
                break
    raise StoreUnavailableError(f"the index of {folder.path} is damaged: {damage}. Remove index.db.") from damage
