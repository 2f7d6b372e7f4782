"""Copying records forward, out of a segment that is about to go.

Neighbours are copied as they lie, bytes and all: a record says nothing of where it is, so it is whole again wherever
its payload has the same alignment. Others go one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from lmstash.errors import FormatError
from lmstash.store.disk.accounting.recency import Recency
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.format import FOOTER_ENTRY, RecordType, parse_head, payload_align
from lmstash.store.disk.files.rows import Row, SegmentRow
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.writing.appender import Appender, Item

_COPY_BYTES = 4 << 20
_COPY_ROWS = 512
_FEW = 8
"""So many neighbours are worth finding out that they can be copied as they lie."""


class Mover:
    """Moves records of one folder. Inside a transaction."""

    def __init__(self, folder: Folder, index: Index, recency: Recency, appender: Appender) -> None:
        """Take the parts of a store."""
        self._folder = folder
        self._index = index
        self._recency = recency
        self._appender = appender

    def move(self, segment: SegmentRow, rows: list[Row]) -> set[int]:
        """Append the records of `rows`, by rising offset, elsewhere, and point the index there.

        Returns:
            The row ids that moved: those of which there was room, and whose records are what the index says.
        """
        moved: set[int] = set()
        if not rows:
            return moved
        try:
            fd = os.open(self._folder.segment(segment.name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return moved
        try:
            for run, together in _runs(rows):
                done = self._move_run(segment.namespace, fd, run) if together else None
                moved |= self._move_each(segment.namespace, fd, run) if done is None else done
        finally:
            os.close(fd)
        return moved

    def _move_run(self, namespace: str, fd: int, run: list[Row]) -> set[int] | None:
        """Copy neighbours as they lie; None, with nothing done, if one of them is not what the index says."""
        from lmstash.store.disk.indexing.tables import headers_at

        first = run[0].off
        size = run[-1].off + run[-1].record_bytes - first
        data = os.pread(fd, size, first).ljust(size, b"\0")  # the last one's padding may be lacking
        fixed = headers_at(data, [row.off - first for row in run])
        if fixed is None or any(
            (key, kind, flags & 2, head, size) != (row.key, RecordType.ENTRY, 0, row.head, row.size) or row.pinned
            for row, key, kind, flags, head, size in zip(run, *fixed, strict=True)
        ):
            return None
        align = max(payload_align(row.size) for row in run)
        writer = self._appender.reserve(namespace, len(data) + align, len(run), forced=True)
        if writer is None:
            return set()
        gap = (first - writer.tail) % align
        start, slot = writer.tail + gap, writer.first_slot + writer.count
        seg, shift = writer.row, start - first
        fresh = [
            Row(k, key, seg, off + shift, head, size, number, gen, exp, pinned)
            for number, (k, key, _seg, off, head, size, _slot, gen, exp, pinned) in enumerate(run, slot)
        ]
        flags = fixed[2]
        pack = FOOTER_ENTRY.pack
        listing = b"".join(
            pack(RecordType.ENTRY, flag, row.head, row.key, row.gen, row.exp, row.off, row.size, number)
            for number, (row, flag) in enumerate(zip(fresh, flags, strict=True), writer.count)
        )
        writer.append([bytes(gap), data], gap + len(data), len(run), listing)
        return self._point(run, fresh)

    def _move_each(self, namespace: str, fd: int, rows: list[Row]) -> set[int]:
        moved: set[int] = set()
        batch: list[tuple[Row, Item]] = []
        size = 0
        for row in rows:
            item = _read_item(fd, row)
            if item is None:
                continue
            batch.append((row, item))
            size += item.most_bytes
        if batch:
            writer = self._appender.reserve(namespace, size, len(batch), forced=True)
            if writer is not None:
                fresh = self._appender.append(writer, [item for _row, item in batch])
                moved = self._point([row for row, _item in batch], fresh)
        return moved

    def _point(self, rows: list[Row], fresh: list[Row]) -> set[int]:
        """Let the index know where records are now; returns the row ids that moved."""
        self._index.move_rows(rows, fresh)
        writer = next(each for each in self._appender.writers.values() if each.row == fresh[0].seg)
        live_bytes = sum(row.record_bytes for row in fresh)
        if not self._index.advance_segment(writer.row, writer.tail, writer.count, len(fresh), live_bytes):
            self._appender.forget(writer)
            return set()
        self._recency.copy_many([row.slot for row in rows], fresh[0].slot)
        return {row.k for row in fresh}


def _runs(rows: list[Row]) -> Iterator[tuple[list[Row], bool]]:
    """Yield rows in groups that are copied together, and whether they are neighbours with nothing between them."""
    run: list[Row] = []
    odd: list[Row] = []
    size = odd_size = end = 0
    for row in rows:
        if run and (row.off != end or size >= _COPY_BYTES or len(run) >= _COPY_ROWS):
            if len(run) >= _FEW:
                yield run, True
            else:
                odd, odd_size = odd + run, odd_size + size
            run, size = [], 0
        if odd_size >= _COPY_BYTES or len(odd) >= _COPY_ROWS:
            yield odd, False
            odd, odd_size = [], 0
        run.append(row)
        n_bytes = row.record_bytes
        end, size = row.off + n_bytes, size + n_bytes
    if len(run) >= _FEW:
        yield run, True
    else:
        odd += run
    if odd:
        yield odd, False


def _read_item(fd: int, row: Row) -> Item | None:
    record = os.pread(fd, row.head + row.size, row.off)
    try:
        header = parse_head(record)
    except FormatError:
        return None
    if header.key != row.key or len(record) < row.head + row.size:
        return None
    return Item(
        header.key,
        [memoryview(record)[row.head :]],
        row.size,
        header.meta,
        header.parent,
        header.compute_seconds,
        header.n_tokens,
        header.expires_us,
        header.generation,
        header.created_us,
        bool(row.pinned),
        header.checksum,
        header.chunk_sums,
        row.slot,
    )
