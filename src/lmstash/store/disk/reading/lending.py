"""Lending large values: the page cache's own pages, mapped for reading, instead of a copy of them.

Reading 100 MB into fresh memory costs more for the memory than for the reading. Whoever only copies from a value, as
the KV cache does, may as well copy from the pages. Segments are only ever appended to and unlinked, and cut behind
their last record, so what an index row names stays mapped. What the page cache does not have is read into it first,
through a small buffer and checked on the way: others will want it, too.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from functools import partial

from lmstash.errors import CorruptEntryError, FormatError
from lmstash.events import EventLog
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.format import (
    CHUNK_BYTES,
    Header,
    check_chunk,
    check_chunk_table,
    check_payload,
    parse_head,
)
from lmstash.store.disk.files.rows import IndexDamagedError, Row, sane
from lmstash.store.disk.files.segment import SegmentFile
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.reading.checked import check_identity, memory
from lmstash.store.disk.reading.lookup import Lookup, entry_of
from lmstash.store.disk.reading.page_cache import cached_share
from lmstash.store.loans import Loan

LENT_BYTES = 256 << 10
"""Values of this size or more are lent."""
_GAP_BYTES = 64 << 10
_MAP_BYTES = 256 << 20
_MAPS = 64
"""Most maps of one call: each takes a descriptor for as long as it is used."""
_WARM_BYTES = 4 * CHUNK_BYTES


class Lender:
    """Lends from one folder. Threads may share it."""

    def __init__(self, index: Index, recency: Recency, lookup: Lookup, events: EventLog) -> None:
        """Take the parts of a store; `lookup` reads what is not lent."""
        self._index = index
        self._recency = recency
        self._lookup = lookup
        self._events = events

    def borrow_many(self, keys: Sequence[bytes]) -> list[Loan | None]:
        """See `lmstash.store.loans.borrow_many`. Faults of disk and index are raised."""
        now = time.time() * 1e6
        by_segment: dict[int, list[Row]] = {}
        for row in self._index.find_many(keys).values():
            if not sane(row):
                raise IndexDamagedError(f"a row makes no sense: {row}")
            if row.size >= LENT_BYTES and not 0 < row.exp <= now:
                by_segment.setdefault(row.seg, []).append(row)
        lent: dict[bytes, Loan] = {}
        groups = [(seg, group) for seg, rows in by_segment.items() for group in _neighbours(rows)]
        for seg, group in groups[:_MAPS]:
            file = self._lookup.file(seg)
            if file is not None:
                self._lend(file, group, lent)
        left = [key for key in keys if key not in lent]
        read = dict(zip(left, self._lookup.load_many(left), strict=True))
        return [
            lent[key] if key in lent else None if (found := read[key]) is None else Loan(entry_of(key, found))
            for key in keys
        ]

    def _lend(self, file: SegmentFile, rows: list[Row], lent: dict[bytes, Loan]) -> None:
        """Map neighbours; what cannot be lent is left out."""
        start = rows[0].off // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        end = rows[-1].off + rows[-1].head + rows[-1].size
        checked: set[bytes] = set()
        try:
            if os.fstat(file.fd).st_size < end:
                return
            for row in rows:
                if cached_share(file.fd, row.off + row.head, row.size) < 1:
                    _warm(file, row)
                    checked.add(row.key)
            view = memoryview(mmap.mmap(file.fd, end - start, mmap.MAP_SHARED, mmap.PROT_READ, offset=start))
        except (OSError, ValueError, FormatError):
            return
        for row in rows:
            at = row.off - start
            try:
                header = parse_head(view[at : at + row.head])
                check_identity(file, header, row)
            except FormatError:
                continue
            payload = view[at + row.head : at + row.head + row.size]
            self._recency.touch(row.slot)
            self._events.hit(file.namespace, row.key, row.size, header.compute_seconds)
            check = None if row.key in checked else partial(self._check, row.key, header, payload)
            lent[row.key] = Loan(entry_of(row.key, (header, payload, file.namespace)), check)

    def _check(self, key: bytes, header: Header, payload: memoryview) -> bool:
        try:
            check_payload(header, payload)
        except FormatError:
            self._lookup.load(key)  # counts it, and sees to it that it is not served again
            return False
        return True


def _warm(file: SegmentFile, row: Row) -> None:
    """Read a record into the page cache, and check it on the way: a disk that fails must fail here, not under a map.

    Raises:
        CorruptEntryError, UnsupportedFormatError: As `reading.read_one`.
        OSError: The disk failed.
    """
    header = parse_head(os.pread(file.fd, row.head, row.off))
    check_identity(file, header, row)
    if not header.chunk_sums:
        check_payload(header, memoryview(os.pread(file.fd, row.size, row.off + row.head)))
        return
    check_chunk_table(header)
    scratch = memory(min(row.size, _WARM_BYTES))
    for start in range(0, row.size, _WARM_BYTES):
        part = scratch[: min(_WARM_BYTES, row.size - start)]
        if os.preadv(file.fd, [part], row.off + row.head + start) != len(part):
            raise CorruptEntryError(f"{file.path.name} is cut short")
        for at in range(0, len(part), CHUNK_BYTES):
            check_chunk(header, (start + at) // CHUNK_BYTES, part[at : at + CHUNK_BYTES])


def _neighbours(rows: list[Row]) -> list[list[Row]]:
    """Return rows of one segment in groups that lie together: a map takes a descriptor."""
    out: list[list[Row]] = []
    for row in sorted(rows, key=lambda each: each.off):
        if out:
            last = out[-1][-1]
            near = row.off - (last.off + last.head + last.size) <= _GAP_BYTES
            if near and row.off + row.head + row.size - out[-1][0].off <= _MAP_BYTES:
                out[-1].append(row)
                continue
        out.append([row])
    return out
