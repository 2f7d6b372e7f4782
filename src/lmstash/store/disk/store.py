"""`DiskStore`: the public class of the disk store. What each part does is said in `lmstash.store.disk`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmstash.errors import InvalidArgumentError, LmstashError, ReadOnlyError, StoreUnavailableError
from lmstash.events import EventLog, MissReason
from lmstash.store.base import Buffer, Entry, EntryInfo, Removed, Selector, StoreInfo, VerifyReport, Write
from lmstash.store.disk import forks, survey
from lmstash.store.disk.accounting.room import GROUP_ROWS, check_capacity
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.rows import DAMAGE, SURE_DAMAGE
from lmstash.store.disk.indexing import schema
from lmstash.store.disk.opened import Opened, connect
from lmstash.store.disk.putting import Putting
from lmstash.store.disk.reading.lookup import Loaded, entry_of
from lmstash.store.policies import policy_named
from lmstash.unset import UNSET

if TYPE_CHECKING:
    from lmstash.store.loans import Loan
    from lmstash.store.sheets import Apart, Found, Sheet

_FAULTS = (LmstashError, OSError, *DAMAGE)
_MANY = 16  # keys: from there on array operations pay
_REBUILD_SECONDS = 60.0  # an index that seems damaged again so soon is not rebuilt again: the fault lies elsewhere


class DiskStore:
    """Values in a folder, within a byte limit.

    Any number of threads and processes may use one folder at the same time. `put` returns after the value is in the
    operating system's hands: a killed process loses nothing that `put` returned from; a power loss may lose what was
    put since the last `flush()`, never serve it torn. A signal handler that interrupts a change can only look up.

    Costs: a small `get` about 15 microseconds, a small `put` about 80; large values move at memory-copy speed.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        capacity_bytes: int | None = UNSET,
        read_only: bool = False,
        strict: bool = False,
        policy: str = "lru",
        events: EventLog | None = None,
    ) -> None:
        """Open the folder, making it if it is missing.

        Args:
            location: The folder.
            capacity_bytes: Limit on all that the folder takes; None is unlimited, 0 keeps nothing. Not given: what the
                folder was last given, else 50 GiB or half of the free disk, whichever is less.
            read_only: Serve, and never write.
            strict: Raise on faults.
            policy: What goes first: `"lru"`.
            events: Where to count.

        Raises:
            CapacityError: The limit is less than an empty folder takes (1 MiB), and not 0.
            StoreUnavailableError: The folder cannot be used.
            UnsupportedFormatError: A newer lmstash wrote it.
        """
        self.events = events if events is not None else EventLog()
        self.strict, self.read_only = strict, read_only
        self._capacity = capacity_bytes
        self._policy = policy_named(policy)
        self._folder = Folder(location)
        self.folder_path = self._folder.path
        self._closed = False
        self._inherited = False
        """Whether the state is a parent process's."""
        self._reopen_lock = threading.RLock()
        self._next_rebuild = 0.0
        self._opened = self._open()
        self._removals = self._opened.recency.removals()
        """When it was last looked whether the index is still the one that is open."""
        told = self._writable, self.contains_many, self._fault
        self._putting = Putting(self._folder, self.events, lambda: self._opened, *told, strict=strict)
        forks.watch(self)

    # --- opening, forking, closing --------------------------------------------------------------------------------

    def _open(self, condemned: tuple[int, int] = (0, 0)) -> Opened:
        parts = self._folder, self._capacity, self._policy, self.events
        return connect(*parts, read_only=self.read_only, condemned=condemned)

    def _ready(self) -> Opened:
        """Return the open parts; in a forked child open the folder anew. Raises if the store is closed."""
        if self._closed:
            raise StoreUnavailableError("the stash is closed. Open it again with lmstash.open().")
        if self._inherited:
            with self._reopen_lock:
                if self._inherited:
                    self._opened = self._open()
                    self._inherited = False
        opened = self._opened
        # A reader, too, must notice that others made the index anew: the old one knows older values.
        removals = opened.recency.removals()
        if removals != self._removals:
            if not self.read_only and opened.index.moved():
                opened = self._reopen(opened)
            self._removals = removals
        return opened

    def _writable(self) -> Opened:
        """As `_ready`, for changes; follows an index that another process made anew."""
        if self.read_only:
            raise ReadOnlyError(f"{self._folder.path} was opened with read_only=True")
        opened = self._ready()
        opened.refuse_within()
        return self._reopen(opened) if opened.index.moved() else opened

    def _reopen(self, stale: Opened, *, damaged: bool = False) -> Opened:
        """Connect anew after the index was lost, replaced or found damaged."""
        stale.refuse_within()
        with self._reopen_lock:
            if self._opened is stale:
                condemned, now = (0, 0), time.monotonic()
                if damaged and now >= self._next_rebuild:
                    self._next_rebuild, condemned = now + _REBUILD_SECONDS, stale.index.inode
                with stale.index.writing():  # nobody may be writing to a file that is closed
                    stale.appender.abandon()
                forks.abandoned.append(stale)
                if not self._folder.path.is_dir():
                    self.events.warn_once("moved", "lmstash: %s was moved or removed: begun anew", self._folder.path)
                self._opened = self._open(condemned)
            return self._opened

    def is_interrupted(self) -> bool:
        """Whether this thread is changing the store: a signal handler or finalizer that asks would be refused."""
        return self._opened.index.is_interrupted()

    def locks(self) -> list[Any]:
        """Return the locks without which no thread is inside SQLite."""
        return [self._opened.index.write_lock, self._opened.index.read_lock]

    def after_fork(self) -> None:
        """In a forked child: use nothing of the parent's, and open the folder anew at the next call."""
        forks.abandoned.append(self._opened)  # SQLite must neither use nor close a connection that crossed a fork
        self._opened.appender.abandon()
        self._reopen_lock = threading.RLock()
        self.events.after_fork()
        self._inherited = True

    def close(self) -> None:
        """Seal and flush what this process wrote, and let go of files. Costs what `flush` does."""
        if self._closed:
            return
        with self._faults():
            self._opened.refuse_within()
            try:
                if not self._inherited:
                    self._opened.close()
            finally:
                self._closed = True
                forks.forget(self)

    def __repr__(self) -> str:
        """One line."""
        state = ", closed" if self._closed else ", read-only" if self.read_only else ""
        return f"<DiskStore: {self._folder.path}{state}>"

    # --- reading --------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> memoryview | None:
        """Return the value as a read-only view of memory of its own, or None."""
        try:
            return self._ready().lookup.value(key)
        except _FAULTS:  # met again below, where they are told apart
            return self.get_many((key,))[0]

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views, None where there is none. Small ones share memory (1 MiB)."""
        if len(keys) >= _MANY and len(set(keys)) == len(keys):
            with contextlib.suppress(*_FAULTS):  # met again below
                return self._ready().value_reader().values(keys)
        return [None if found is None else found[1].toreadonly() for found in self._load_many(keys)]

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return whole entries whose values the caller may write into.

        Small values that lie together share one allocation of up to 1 MiB, which lives as long as any of them.
        """
        return [found and entry_of(key, found) for key, found in zip(keys, self._load_many(keys), strict=True)]

    def fetch_sheets(self, keys: Sequence[bytes], *, apart: bool = False) -> Iterator[Found | Apart]:
        """Yield what is kept of distinct keys in sheets: see `lmstash.store.sheets.fetch_sheets`."""
        served: list[int] = []
        try:
            for found in self._ready().sheet_reader().sheets(keys, apart=apart):
                served.extend(found.places.tolist())
                yield found
            return
        except _FAULTS as error:
            fault = error
        left = sorted(set(range(len(keys))).difference(served))
        if isinstance(fault, SURE_DAMAGE):
            from lmstash.store.sheets import found_of

            # What is left goes the slow way, which rebuilds the index.
            yield from found_of(self.fetch_many([keys[place] for place in left]), left, apart=apart)
        else:
            self.events.misses([keys[place] for place in left], MissReason.UNAVAILABLE)
            self._fault(fault)

    def peek_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views without using them; about 15 microseconds each."""
        with self._faults():
            return survey.peek_many(self._ready(), keys)
        return [None] * len(keys)

    def borrow_many(self, keys: Sequence[bytes]) -> list[Loan | None]:
        """Return values to copy from at once, large ones without reading them first: see `lmstash.store.loans`."""
        from lmstash.store.loans import Loan

        with contextlib.suppress(*_FAULTS):  # met again below, where they are told apart
            return self._ready().lender().borrow_many(keys)
        return [None if entry is None else Loan(entry) for entry in self.fetch_many(keys)]

    def _load_many(self, keys: Sequence[bytes]) -> list[Loaded | None]:
        try:
            try:
                return self._ready().lookup.load_many(keys)
            except SURE_DAMAGE as error:
                self._fault(error)  # rebuilds the index
                return self._ready().lookup.load_many(keys)
        except _FAULTS as error:
            for key in keys:
                self.events.miss("", key, MissReason.UNAVAILABLE)
            self._fault(error)
            return [None] * len(keys)

    def contains(self, key: bytes) -> bool:
        """Whether the index knows the key and it has not expired."""
        return self.contains_many([key])[0]

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As `contains`, for many keys; about a microsecond a key."""
        try:
            expiries, now = self._ready().index.expiries(keys), time.time() * 1e6
            return [(at := expiries.get(key)) is not None and not 0 < at <= now for key in keys]
        except InvalidArgumentError:
            raise
        except _FAULTS as error:
            self._fault(error)
            return [False] * len(keys)

    def describe_many(self, keys: Sequence[bytes]) -> list[EntryInfo | None]:
        """Describe entries; reads each record's header (about 10 microseconds)."""
        with self._faults():
            return survey.describe_many(self._ready(), keys)
        return [None] * len(keys)

    # --- writing --------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """Keep one value (`fields`: as in `Write`); returns whether it is kept."""
        return self.put_many([Write(key, value, **fields)]) == 1

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values; with `replace=False` what is kept already stays. Returns how many are kept now.

        Values of one namespace that follow each other share one write and one commit, up to 512 of them.
        """
        return self._putting.put_many(writes, replace=replace)

    def put_sheets(self, sheets: Sequence[Sheet], *, replace: bool = True) -> int:
        """Keep the entries of sheets, many in one write and one commit: see `lmstash.store.sheets.put_sheets`."""
        return self._putting.put_sheets(sheets, replace=replace)

    def delete(self, key: bytes) -> bool:
        """Remove one entry; returns whether there was one."""
        return self.delete_many([key]) == 1

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many there were. Their room is given back as their segments are reclaimed."""
        return self._in_groups(keys, lambda opened, part: opened.intake.delete(part))

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """Protect entries from eviction, or stop doing so; returns how many are kept. Pins outlive the process."""
        return self._in_groups(keys, lambda opened, part: opened.intake.pin(part, pinned))

    def _in_groups(
        self, keys: Sequence[bytes], change: Callable[[Opened, list[bytes]], int], *, must: bool = False
    ) -> int:
        done, distinct = 0, list(dict.fromkeys(keys))
        with self._faults(must=must):
            for start in range(0, len(distinct), GROUP_ROWS):
                opened, part = self._writable(), distinct[start : start + GROUP_ROWS]
                done += change(opened, part)
                if opened.index.moved():  # made anew meanwhile: it may have been told by nobody
                    change(self._writable(), part)
        return done

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """Describe every entry; reads each record's header (about 10 microseconds)."""
        with self._faults():
            yield from survey.entries(self._ready(), namespace)

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """Remove the entries that `select` is true for, or raise; without `select`, whole segments are unlinked."""
        with self._faults(must=True):
            try:
                return self._prune(select, namespace, dry_run)
            except SURE_DAMAGE as error:
                self._fault(error)  # makes the index anew
                return self._prune(select, namespace, dry_run)

    def _prune(self, select: Selector | None, namespace: str | None, dry_run: bool) -> Removed:
        opened = self._ready() if dry_run else self._writable()
        if select is None:
            return survey.total(opened, namespace) if dry_run else opened.shrinker.clear(namespace)
        found = [(info.key, info.nbytes) for info in survey.entries(opened, namespace) if select(info)]
        if not dry_run:
            self._in_groups([key for key, _n in found], lambda opened, part: opened.intake.delete(part), must=True)
            opened.tidy()
        return Removed(len(found), sum(nbytes for _key, nbytes in found))

    def clear(self) -> Removed:
        """Remove every entry; files that are not segments of this store stay."""
        return self.prune()

    def evict(self, to_bytes: int) -> Removed:
        """Evict the least valuable entries until the folder takes at most `to_bytes`."""
        with self._faults():
            return self._writable().shrinker.evict(to_bytes)
        return Removed(0, 0)

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Change the folder's limit, for every process, and enforce it at once."""
        with self._faults():
            capacity_bytes = check_capacity(capacity_bytes)
            self._capacity = capacity_bytes
            self._writable().settle_capacity(capacity_bytes)

    def info(self) -> StoreInfo:
        """Say what is held. Reads no entry: about a millisecond."""
        with self._faults():
            return survey.info(self._ready(), self._policy.name)
        return StoreInfo(str(self._folder.path), 0, 0, None, [])

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read every entry and check every checksum; `repair=True` drops what is damaged."""
        mends = repair and not self.read_only
        with self._faults():
            try:
                return survey.verify(self._writable() if mends else self._ready(), repair=mends)
            except SURE_DAMAGE as error:
                self._fault(error)  # makes the index anew
                report = survey.verify(self._ready(), repair=mends)
                return replace(report, damaged=[f"the index: {error}", *report.damaged], repaired=True)
        return VerifyReport(0, 0, ["the store could not be read"], False)

    def touch_many(self, keys: Sequence[bytes]) -> None:
        """Note that entries were used, by a tier above that served them."""
        with self._faults():
            opened = self._ready()
            opened.recency.touch_many([row.slot for row in opened.index.find_many(keys).values()])

    def flush(self) -> None:
        """Return once everything put so far would survive a power loss: syncs segments, folder and index."""
        with self._faults():
            self._writable().sync()

    def removals(self) -> int:
        """Return a number that changes whenever any process removes or replaces an entry (for tiers above)."""
        return self._opened.recency.removals()

    @contextmanager
    def _faults(self, *, must: bool = False) -> Iterator[None]:
        try:
            yield
        except InvalidArgumentError:
            raise
        except _FAULTS as error:
            self._fault(error, must=must)

    def _fault(self, error: BaseException, *, must: bool = False) -> None:
        """Note a fault; mend the index if that is what is broken. Raises in strict mode, and what must be done."""
        mends = schema.is_outdated(self._opened.index.reader) if self.read_only else isinstance(error, DAMAGE)
        if mends and not self._closed:
            try:
                self._reopen(self._opened, damaged=isinstance(error, SURE_DAMAGE) and not self.read_only)
            except _FAULTS as second:
                self.events.warn_once("reopen", "lmstash: the index could not be rebuilt: %s", second)
        words = self._folder.explain(error) if isinstance(error, OSError) else str(error)
        if not must:
            self.events.warn_once(f"fault {type(error).__name__}", "lmstash: %s (treated as a miss)", words)
        if self.strict or must:
            raise error if isinstance(error, LmstashError) else StoreUnavailableError(words)
