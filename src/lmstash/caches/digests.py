"""Digests of model files, kept between processes: reading 7 GB costs seconds beside each load.

A kept digest is of one path and one stamp (size, times of writing and of its inode, inode, device), and is believed
only while 256 pages of the file are as they were, too. It is believed of whoever can write the store, who can write
entries under any identity anyway: so it is used for this store alone, never for another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import LmstashError
from lmstash.events import MissReason
from lmstash.identity.content.files import Stamp, file_system, probe, settled_digest
from lmstash.identity.keys import Key
from lmstash.store.base import Buffer, Store, Write

FILES = "files/all"
"""Where they are kept."""
_DIGEST_BYTES = 32


def recall_digests(
    store: Store, files: Iterable[tuple[str, Stamp]], salt: bytes | str | None = None
) -> dict[Stamp, bytes]:
    """Return the kept SHA-256 of those files that are as they were. Costs some milliseconds a file.

    Args:
        store: Where digests are kept. What cannot be read or believed is a counted miss.
        files: Paths, with their stamps as they are now.
        salt: A tenant's secret; digests kept under another one are invisible.
    """
    wanted = {_key(path, salt): (path, stamp) for path, stamp in files}
    there = [key for key, kept in zip(wanted, store.contains_many(list(wanted)), strict=True) if kept]
    out: dict[Stamp, bytes] = {}
    for key, entry in zip(there, store.fetch_many(there) if there else [], strict=True):
        if entry is None:
            continue
        path, stamp = wanted[key]
        digest = _believed(entry.value, key, path, stamp)
        if digest is None:
            store.events.miss(FILES, key, MissReason.MISMATCH)
        else:
            out[stamp] = digest
    return out


def keep_digests(store: Store, files: Iterable[tuple[str, Stamp]], salt: bytes | str | None = None) -> None:
    """Keep the digests of files that this process has read, and that had not changed for a minute before.

    Arguments are those of `recall_digests`.
    """
    writes: list[Write] = []
    for path, stamp in files:
        digest, key = settled_digest(path, stamp), _key(path, salt)
        said = None if digest is None else _said(key, path, stamp)
        if said is not None:
            said["sha256"] = digest
            writes.append(Write(key, encode_record(said), namespace=FILES))
    if writes:
        store.put_many(writes)


def _believed(value: Buffer, key: bytes, path: str, stamp: Stamp) -> bytes | None:
    """Return the digest that an entry says, if all that it says of the file is so."""
    try:
        record: Any = decode_record(value)
    except LmstashError:
        return None
    digest = record.pop("sha256", None) if type(record) is dict else None
    said = _said(key, path, stamp)
    if type(digest) is not bytes or len(digest) != _DIGEST_BYTES or said is None or record != said:
        return None
    return digest


def _said(key: bytes, path: str, stamp: Stamp) -> dict[str, Any] | None:
    """Return what is said of a file beside its digest; None where that is not enough to know it again."""
    system, pages = file_system(path), probe(path, stamp)
    if system is None or pages is None:
        return None
    return {"key": key, "stamp": list(astuple(stamp)), "system": system, "probe": pages}


def _key(path: str, salt: bytes | str | None) -> bytes:
    return Key({"kind": "file digest", "path": os.fsencode(os.path.abspath(path)), "salt": salt}).digest
