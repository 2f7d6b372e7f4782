"""Looking over a whole folder: what is held, entry by entry or in sum, and whether it is sound."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from lmstash.errors import FormatError
from lmstash.store.base import EntryInfo, NamespaceInfo, Removed, StoreInfo, VerifyReport, decode_meta, matches
from lmstash.store.disk.accounting.recency import hits, last_used
from lmstash.store.disk.files.rows import IndexDamagedError, Row, sane
from lmstash.store.disk.opened import Opened
from lmstash.store.disk.reading.record import read_one


def entries(opened: Opened, namespace: str | None) -> Iterator[EntryInfo]:
    """Describe every entry of `namespace` (see `lmstash.store.base.matches`), reading each record's header."""
    for row in opened.index.rows():
        if not sane(row):
            raise IndexDamagedError(f"a row makes no sense: {row}")
        described = _describe(opened, row, namespace)
        if described is not None:
            yield described


def total(opened: Opened, namespace: str | None) -> Removed:
    """Return how much there is of `namespace`, by what the index says of whole segments."""
    found = [each for each in opened.index.segments() if matches(each.namespace, namespace)]
    return Removed(sum(each.live for each in found), sum(each.live_bytes for each in found))


def peek_many(opened: Opened, keys: Sequence[bytes]) -> list[memoryview | None]:
    """Return the values of these keys, checked, without noting a use; None where there is none that is sound."""
    rows, now = opened.index.find_many(keys), time.time() * 1e6
    out: list[memoryview | None] = []
    for key in keys:
        row, payload = rows.get(key), None
        if row is not None and not sane(row):
            raise IndexDamagedError(f"a row makes no sense: {row}")
        file = None if row is None or 0 < row.exp <= now else opened.lookup.file(row.seg)
        if file is not None and row is not None:
            with contextlib.suppress(FormatError):
                payload = read_one(file, row)[1].toreadonly()
        out.append(payload)
    return out


def describe_many(opened: Opened, keys: Sequence[bytes]) -> list[EntryInfo | None]:
    """Describe the entries of these keys, reading each record's header; None where there is none now."""
    rows, now = opened.index.find_many(keys), time.time() * 1e6
    for row in rows.values():
        if not sane(row):
            raise IndexDamagedError(f"a row makes no sense: {row}")
    found = [rows.get(key) for key in keys]
    return [None if row is None or 0 < row.exp <= now else _describe(opened, row, None) for row in found]


def _describe(opened: Opened, row: Row, namespace: str | None) -> EntryInfo | None:
    file = opened.lookup.file(row.seg)
    if file is None or not matches(file.namespace, namespace):
        return None
    header = opened.lookup.header(row)
    if header is None:
        return None
    cell = opened.recency.read(row.slot)
    return EntryInfo(
        key=row.key,
        namespace=file.namespace,
        nbytes=row.size,
        n_tokens=header.n_tokens,
        compute_seconds=header.compute_seconds,
        created=header.created_us / 1e6,
        last_used=last_used(cell) if cell else header.created_us / 1e6,
        hits=hits(cell),
        expires=row.exp / 1e6 if row.exp else None,
        pinned=bool(row.pinned),
        parent=header.parent,
        meta=decode_meta(header.meta),
    )


def info(opened: Opened, policy: str) -> StoreInfo:
    """Sum up the segments; reads no entry."""
    folder = opened.folder
    segments = opened.index.segments()
    totals: dict[str, list[int]] = {}
    for each in segments:
        total = totals.setdefault(each.namespace, [0, 0])
        total[0] += each.live
        total[1] += each.live_bytes
    return StoreInfo(
        location=str(folder.path),
        entries=sum(each.live for each in segments),
        physical_bytes=folder.overhead_bytes() + sum(folder.blocks(each.name) for each in segments),
        capacity_bytes=opened.room.refresh().capacity_bytes,
        namespaces=[NamespaceInfo(name, n, size) for name, (n, size) in sorted(totals.items()) if n],
        oldest=min((each.created for each in segments if each.live), default=None),
        newest=max((each.created for each in segments if each.live), default=None),
        details={"segments": len(segments), "policy": policy, "read_only": opened.read_only},
    )


def verify(opened: Opened, *, repair: bool) -> VerifyReport:
    """Read every entry and check every checksum, and the index; with `repair` drop what is damaged."""
    opened.index.check()
    n = nbytes = 0
    damaged: list[str] = []
    for row in opened.index.rows():
        if not sane(row):
            raise IndexDamagedError(f"a row makes no sense: {row}")
        file = opened.lookup.file(row.seg)
        try:
            if file is None:
                raise FormatError("its segment is gone")
            read_one(file, row)
        except (FormatError, OSError) as error:
            if opened.index.find(row.key) != row:
                continue  # moved or removed meanwhile
            where = file.path.name if file is not None else f"segment {row.seg}"
            damaged.append(f"{row.key.hex()} in {where} at {row.off}: {error}")
            if repair:
                opened.intake.drop(row)
        n += 1
        nbytes += row.size
    return VerifyReport(n, nbytes, damaged, repair and bool(damaged))
