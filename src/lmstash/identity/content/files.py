"""What a file holds: SHA-256 of its bytes, read once for each version of the file that a process sees."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass

from lmstash.errors import UnsupportedModelError
from lmstash.forks import renew_after_fork

_READ_BYTES = 4 << 20
_SETTLED_NS = 60 * 10**9
"""How long a file must have been as it is before it is read, for its digest to be kept for later processes.

A change within one tick of a file system's clock leaves the stamp as it was (git calls such an entry racy), and that
clock may be another machine's."""
FRESH_NS = 2 * 10**9
"""A file that changed so lately may change again within the same tick, which no stamp would tell (FAT's is 2 s)."""
_PROBES, _PROBE_BYTES = 256, 4096


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
        self.settled: set[Stamp] = set()
        """Of files that were read here, and had long been as they were."""
        self.unwanted: set[Stamp] = set()
        """Of files that need not be read ahead any more."""
        self._lock = threading.RLock()
        renew_after_fork(self, _lock=threading.RLock)

    def of(self, path: str, stamp: Stamp) -> bytes:
        known = self._known.get(stamp)
        if known is None:
            with self._lock:
                known = self._known.get(stamp)
                if known is None:
                    now = time.time_ns()
                    is_settled = now - max(stamp.mtime_ns, stamp.ctime_ns) > _SETTLED_NS
                    is_fresh = now - stamp.ctime_ns < FRESH_NS
                    known = _read(path, stamp, self.unwanted)
                    if not is_fresh:
                        self._known[stamp] = known
                    if is_settled:
                        self.settled.add(stamp)
        return known


def file_digest(path: str, stamp: Stamp) -> bytes:
    """Return the SHA-256 of a file, which must still be as `stamp` says, before and after it is read.

    Costs about a second for 1 to 2 GB the first time; then nothing while the file is the same. What changed less than
    two seconds ago is read each time.

    Raises:
        UnsupportedModelError: The file is gone, was changed, or cannot be read.
    """
    _digests.unwanted.discard(stamp)
    return _digests.of(path, stamp)


def settled_digest(path: str, stamp: Stamp) -> bytes | None:
    """Return a digest that another process may rely on: read here, of a file that had not changed for a minute.

    None also where stamps say little: a file system that is mounted read-only may be another one tomorrow.
    """
    if stamp not in _digests.settled or file_system(path) is None:
        return None
    return _digests.of(path, stamp)


def file_system(path: str) -> int | None:
    """Return what the file system of a file is called; None where its stamps say little, or it cannot be told."""
    try:
        status = os.statvfs(path)
    except (OSError, AttributeError):
        return None
    return None if status.f_flag & os.ST_RDONLY else status.f_fsid


def probe(path: str, stamp: Stamp) -> bytes | None:
    """Return a digest of 256 pages spread over a file; None where it is not as `stamp` says. Costs some ms.

    Says little of a single weight, but almost surely tells two models apart.
    """
    state = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            number = file.fileno()
            before = Stamp.of(os.fstat(number))
            last = max(stamp.n_bytes - _PROBE_BYTES, 0)
            for at in sorted({last * each // (_PROBES - 1) for each in range(_PROBES)}):
                state.update(os.pread(number, _PROBE_BYTES, at))
            after = Stamp.of(os.fstat(number))
    except OSError:
        return None
    return state.digest() if before == after == stamp else None


def stop_reading(stamp: Stamp) -> None:
    """Let `read_ahead` give up a file, whose digest is known otherwise."""
    _digests.unwanted.add(stamp)


def read_ahead(paths: Iterable[str]) -> None:
    """Begin to digest files in another thread, so that who asks later waits less. Does not raise."""
    stamps = [(path, stamp) for path in paths if (stamp := stamp_of(path)) is not None]

    def read() -> None:
        for path, stamp in stamps:
            with contextlib.suppress(UnsupportedModelError):  # whoever asks is told
                if stamp not in _digests.unwanted:
                    _digests.of(path, stamp)

    with contextlib.suppress(RuntimeError):  # no more threads
        threading.Thread(target=read, name="lmstash-digest", daemon=True).start()


def _read(path: str, stamp: Stamp, unwanted: Container[Stamp] = ()) -> bytes:
    state = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            before = Stamp.of(os.fstat(file.fileno()))
            buffer = bytearray(_READ_BYTES)
            view = memoryview(buffer)
            while n := file.readinto(buffer):
                state.update(view[:n])
                if stamp in unwanted:
                    raise UnsupportedModelError(f"{path} is not read any further")
            after = Stamp.of(os.fstat(file.fileno()))
    except OSError as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}. Nothing is cached for this model.") from error
    if before != stamp or after != stamp:
        raise UnsupportedModelError(f"{path} was changed since it was loaded. Load the model again.")
    return state.digest()


_digests = _Digests()
