"""What SQLite's errors mean for a folder: the index is damaged, the disk is full, or it cannot be used as it is."""

from __future__ import annotations

import errno
import os
from types import TracebackType

import apsw

from lmstash.errors import CapacityError, StoreUnavailableError
from lmstash.store.disk.files.folder import Folder
from lmstash.store.disk.files.rows import IndexDamagedError

APPLICATION_ID = 0x4C4D5354  # "LMST"
_NEWEST_FORMAT = b"\2\2"
"""Bytes 18 and 19 of a database: with more in them SQLite only reads it, or not even that."""
_open: dict[tuple[int, int], int] = {}
"""Descriptors by device and inode. They stay: closing one would drop every lock that SQLite holds on the file here."""


class Translated:
    """A `with` block that turns SQLite's errors into ours. Threads may share it."""

    __slots__ = ("_folder",)

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, apsw.Error):
            raise in_our_words(error, self._folder) from error


def in_our_words(error: apsw.Error, folder: Folder) -> Exception:
    """Return what to raise for an error of SQLite about the index of `folder`."""
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.FormatError)):
        return IndexDamagedError(str(error))
    if isinstance(error, apsw.FullError):
        return CapacityError(f"the disk of {folder.path} is full. Free space on it.")
    path = folder.index
    if isinstance(error, apsw.IOError | apsw.ReadOnlyError):
        head = _head(folder)
        if isinstance(error, apsw.IOError) and head and not _is_ours(head):
            return IndexDamagedError(f"index.db is not ours: {error}")
        if isinstance(error, apsw.ReadOnlyError) and head[18:20] > _NEWEST_FORMAT:
            return IndexDamagedError(f"index.db has another format than we gave it: {error}")
    if isinstance(error, apsw.CantOpenError | apsw.ReadOnlyError) and not os.access(path, os.R_OK | os.W_OK):
        return StoreUnavailableError(folder.explain(PermissionError(errno.EACCES, "")))
    return StoreUnavailableError(f"the index {path} cannot be used: {error}.")


def _is_ours(head: bytes) -> bool:
    return head[:15] == b"SQLite format 3" and int.from_bytes(head[68:72], "big") == APPLICATION_ID


def _head(folder: Folder) -> bytes:
    """Return the first bytes of the index; none if it cannot be read."""
    try:
        inode = folder.index_inode()
        fd = _open.get(inode)
        if fd is None:
            fd = _open[inode] = os.open(folder.index, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(fd, 100, 0)
    except OSError:
        return b""
