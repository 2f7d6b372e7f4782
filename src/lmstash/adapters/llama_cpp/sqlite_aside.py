"""Copies an SQLite database that may be in use aside, without locking, changing or disturbing it.

Opening another program's database with SQLite, even for reading, makes files beside it and takes locks. So its bytes
are copied, with the log (`-wal`) that belongs to it, and SQLite opens the copy. What was copied is what the files held
at one moment: both are read twice, and the first reading counts if the second, begun after the first had ended, finds
the same (the double collect of Afek et al., "Atomic snapshots of shared memory", 1993). What the files hold at any
moment is what a program killed then would leave, and SQLite recovers from that.

A database with a hot rollback journal is refused: rolling back follows a file name that the journal holds, and may
delete the file of that name.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from pathlib import Path
from typing import Final

from lmstash.errors import CorruptEntryError, StoreUnavailableError

MAX_DATABASE_BYTES: Final = 2**34
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.01
_CHUNK_BYTES = 1 << 20
_HOT_JOURNAL = bytes.fromhex("d9d505f920a163d7")

_held: dict[tuple[int, int], int] = {}
_held_lock = threading.Lock()


def copy_aside(database: Path, folder: Path) -> Path:
    """Copy `database` and its write-ahead log into `folder`, as they are at one moment; return the copy's path.

    Cost: reads both twice. One file descriptor for each database stays open until the process ends: POSIX drops a
    process's locks on a file when any descriptor of it is closed, also those of an SQLite in this process that uses it.
    Threads may call it at the same time.

    Raises:
        CorruptEntryError: A file is not a regular one, or too large.
        StoreUnavailableError: The database cannot be read, was written to at every attempt, or was left in the midst of
            a transaction by a program that keeps a rollback journal.
    """
    names = [database.name, f"{database.name}-wal"]
    hot = False
    try:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_PAUSE_SECONDS * 3 ** (attempt - 1))
            first = [_read(database.with_name(name), folder / name, held=name == database.name) for name in names]
            hot = _is_hot(database.with_name(f"{database.name}-journal"))
            second = [_read(database.with_name(name), None, held=name == database.name) for name in names]
            if first == second and not hot:
                return folder / database.name
    except OSError as error:
        raise StoreUnavailableError(f"{database} cannot be read: {error}") from error
    if hot:
        raise StoreUnavailableError(
            f"{database} is in the midst of a transaction. Close the program that uses it; if none does, open and "
            f"close it once with the program that wrote it."
        )
    raise StoreUnavailableError(f"{database} is being written to all the time. Close the program that uses it.")


def _read(path: Path, target: Path | None, *, held: bool) -> bytes:
    """Return the digest of what `path` holds, and write it to `target`; b"" (and no target) if there is no file."""
    if target is not None:
        target.unlink(missing_ok=True)
    try:
        source = _open_held(path) if held else open_regular(path)
    except FileNotFoundError:
        if held:
            raise
        return b""
    digest = hashlib.blake2b(digest_size=32)
    at = 0
    try:
        with open(os.devnull if target is None else target, "wb") as copy:
            while data := os.pread(source, _CHUNK_BYTES, at):
                at += len(data)
                if at > MAX_DATABASE_BYTES:
                    raise CorruptEntryError(f"{path} has more than {MAX_DATABASE_BYTES:,} bytes")
                digest.update(data)
                copy.write(data)
    finally:
        if not held:
            os.close(source)
    return digest.digest()


def _is_hot(journal: Path) -> bool:
    try:
        source = open_regular(journal)
    except FileNotFoundError:
        return False
    try:
        return os.pread(source, len(_HOT_JOURNAL), 0) == _HOT_JOURNAL
    finally:
        os.close(source)


def _open_held(path: Path) -> int:
    """Return a descriptor that is never closed; the same one each time for the same file."""
    with _held_lock:
        status = path.stat(follow_symlinks=False)
        known = _held.get((status.st_dev, status.st_ino))
        if known is None:
            known = open_regular(path)
            status = os.fstat(known)
            _held[status.st_dev, status.st_ino] = known
        return known


def open_regular(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading, and nothing else: no link is followed, no named pipe waited for.

    Raises:
        CorruptEntryError: It is not a regular file.
        OSError: It cannot be opened, or is a link.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptEntryError(f"{path} is not a regular file")
    return descriptor
