"""What a file holds: SHA-256 of its bytes, read once for each version of the file that a process sees."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from lmstash.errors import UnsupportedModelError
from lmstash.forks import renew_after_fork

_READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written to or replaced."""

    device: int
    inode: int
    n_bytes: int
    mtime_ns: int
    ctime_ns: int
    """Of its inode: a program that puts the time of writing back cannot put this one back."""

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Take the stamp from what `stat` returned."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamp_of(path: str) -> Stamp | None:
    """Return the stamp of a file as it is now; None where there is none. Costs about 2 us."""
    try:
        return Stamp.of(os.stat(path))
    except OSError:
        return None


class _Digests:
    """Digests by stamp. Threads may share it."""

    def __init__(self) -> None:
        self._known: dict[Stamp, bytes] = {}
        self._lock = threading.Lock()
        renew_after_fork(self, _lock=threading.Lock)

    def of(self, path: str, stamp: Stamp) -> bytes:
        known = self._known.get(stamp)
        if known is None:
            with self._lock:
                known = self._known.get(stamp)
                if known is None:
                    known = self._known[stamp] = _read(path, stamp)
        return known


def file_digest(path: str, stamp: Stamp) -> bytes:
    """Return the SHA-256 of a file, which must still be as `stamp` says, before and after it is read.

    Costs about a second for 1 to 2 GB the first time; then nothing while the file is the same.

    Raises:
        UnsupportedModelError: The file is gone, was changed, or cannot be read.
    """
    return _digests.of(path, stamp)


def read_ahead(paths: Iterable[str]) -> None:
    """Begin to digest files in another thread, so that who asks later waits less. Does not raise."""
    stamps = [(path, stamp) for path in paths if (stamp := stamp_of(path)) is not None]

    def read() -> None:
        for path, stamp in stamps:
            with contextlib.suppress(UnsupportedModelError):  # whoever asks is told
                file_digest(path, stamp)

    with contextlib.suppress(RuntimeError):  # no more threads
        threading.Thread(target=read, name="lmstash-digest", daemon=True).start()


def _read(path: str, stamp: Stamp) -> bytes:
    state = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            before = Stamp.of(os.fstat(file.fileno()))
            buffer = bytearray(_READ_BYTES)
            view = memoryview(buffer)
            while n := file.readinto(buffer):
                state.update(view[:n])
            after = Stamp.of(os.fstat(file.fileno()))
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}. Nothing is cached for this model.") from error
    if before != stamp or after != stamp:
        raise UnsupportedModelError(f"{path} was changed since it was loaded. Load the model again.")
    return state.digest()


_digests = _Digests()
