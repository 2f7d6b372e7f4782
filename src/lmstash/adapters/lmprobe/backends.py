"""`CacheBackend`: a place for blobs that a user brings, and how an entry is framed into one blob."""

from __future__ import annotations

import json
import struct
import time
from abc import ABC, abstractmethod
from typing import Any

import xxhash

from lmstash.store.base import Entry, EntryInfo, Write, join

PREFIX = "lmstash/"
"""Only keys under it are ever listed, counted or deleted."""
_MAGIC = b"LMSTBE01"
_LENGTH = struct.Struct("<I")
_HEAD_BYTES = 4096
"""Read first when only the header is wanted; most are far shorter."""


class CacheBackend(ABC):
    """Where blobs lie: subclass it to keep the cache in a place of your own. lmprobe's own backends fit as they are.

    Keys are strings with slashes. Methods may raise whatever they like: a failing read is a counted miss, a failing
    write a counted drop. Calls come from any thread.
    """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a blob under `key`."""

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """Return the whole blob."""

    @abstractmethod
    def write_bytes(self, key: str, data: bytes) -> None:
        """Keep a blob, replacing what was there; readers should never see half of it."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a blob; nothing happens when there is none."""

    @abstractmethod
    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the keys under `prefix` (whole path parts)."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the blob's bytes."""

    @abstractmethod
    def mtime(self, key: str) -> float:
        """Return when it was last written or touched, in Unix seconds."""

    @abstractmethod
    def touch(self, key: str) -> None:
        """Mark it as just used."""

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (exclusive); override it where a part can be read alone."""
        return self.read_bytes(key)[start:end]

    def read_text(self, key: str) -> str:
        """Return a blob as UTF-8 text."""
        return self.read_bytes(key).decode()

    def write_text(self, key: str, text: str) -> None:
        """Keep UTF-8 text."""
        self.write_bytes(key, text.encode())

    def collect_entries(self) -> list[tuple[str, int, float]]:
        """Return (key, bytes, mtime) of every blob."""
        return [(key, self.size(key), self.mtime(key)) for key in self.list_keys()]

    def delete_tree(self, prefix: str) -> int:
        """Remove every blob under `prefix`; returns how many there were."""
        keys = self.list_keys(prefix)
        for key in keys:
            self.delete(key)
        return len(keys)


def blob_path(key: bytes) -> str:
    """Return the backend key of the entry under `key`."""
    text = key.hex()
    return f"{PREFIX}{text[:2]}/{text}.bin"


def blob_key(path: str) -> bytes:
    """Return the entry key that `path` names."""
    return bytes.fromhex(path.rpartition("/")[2].partition(".")[0])


def is_ours(path: str) -> bool:
    """Whether `path` is one that `blob_path` makes."""
    try:
        return blob_path(blob_key(path)) == path and len(blob_key(path)) == 32
    except ValueError:
        return False


def frame(write: Write) -> bytes:
    """Return one entry as a blob: magic, header length, JSON header, its checksum, value."""
    value = join(write.value)
    now = time.time()
    meta = json.loads(write.meta) if isinstance(write.meta, bytes) else dict(write.meta or {})
    head: dict[str, Any] = {
        "key": write.key.hex(),
        "namespace": write.namespace,
        "meta": meta,
        "parent": write.parent.hex(),
        "compute_seconds": write.compute_seconds,
        "n_tokens": write.n_tokens,
        "created": now,
        "expires": None if write.ttl_seconds is None else now + write.ttl_seconds,
        "nbytes": len(value),
        "xxh3": xxhash.xxh3_128_hexdigest(value),
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_MAGIC, _LENGTH.pack(len(text)), text, xxhash.xxh3_64_digest(text), value))


def unframe(blob: bytes, key: bytes) -> Entry:
    """Return the entry in `blob`, its value in memory of its own.

    Raises:
        ValueError: It is damaged, or was kept under another key.
    """
    head, start = _parse(blob)
    value = bytearray(memoryview(blob)[start:])
    if len(value) != head["nbytes"] or xxhash.xxh3_128_hexdigest(value) != head["xxh3"]:
        raise ValueError("the value fails its checksum")
    if head["key"] != key.hex():
        raise ValueError("it was kept under another key")
    return Entry(
        key=key,
        value=memoryview(value),
        namespace=head["namespace"],
        parent=bytes.fromhex(head["parent"]),
        compute_seconds=head["compute_seconds"],
        n_tokens=head["n_tokens"],
        created=head["created"],
        expires=head["expires"],
        meta_bytes=json.dumps(head["meta"], separators=(",", ":")).encode() if head["meta"] else b"",
    )


def read_head(backend: Any, path: str) -> dict[str, Any]:
    """Return the header of the blob at `path`, its value left unread where the backend can read ranges.

    Raises:
        ValueError: It is damaged. The backend's own errors pass through.
    """
    start = backend.read_range(path, 0, _HEAD_BYTES)
    if len(start) >= len(_MAGIC) + _LENGTH.size:
        length = len(_MAGIC) + _LENGTH.size + _LENGTH.unpack_from(start, len(_MAGIC))[0] + 8
        if length > len(start):
            start = backend.read_range(path, 0, length)
    return _parse(start)[0]


def describe(head: dict[str, Any], last_used: float, pinned: bool) -> EntryInfo:
    """Return what a blob's header says, without its value."""
    return EntryInfo(
        key=bytes.fromhex(head["key"]),
        namespace=head["namespace"],
        nbytes=head["nbytes"],
        n_tokens=head["n_tokens"],
        compute_seconds=head["compute_seconds"],
        created=head["created"],
        last_used=last_used,
        hits=0,
        expires=head["expires"],
        pinned=pinned,
        parent=bytes.fromhex(head["parent"]),
        meta=head["meta"],
    )


def _parse(blob: bytes) -> tuple[dict[str, Any], int]:
    """Return the header, checked, and where the value starts."""
    start = len(_MAGIC) + _LENGTH.size
    if blob[: len(_MAGIC)] != _MAGIC or len(blob) < start:
        raise ValueError("not a blob of lmstash")
    end = start + _LENGTH.unpack_from(blob, len(_MAGIC))[0]
    if xxhash.xxh3_64_digest(blob[start:end]) != blob[end : end + 8]:
        raise ValueError("the header fails its checksum")
    return json.loads(blob[start:end]), end + 8
