"""The folder itself: paths, permissions, the file system it lies on, and its small description file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from lmstash.errors import InvalidArgumentError, StoreUnavailableError, UnsupportedFormatError
from lmstash.settings import parse_bytes
from lmstash.store.disk.files.format import FORMAT_VERSION

SEGMENT_NAME = re.compile(r"[0-9a-f]{32}\.seg")
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"}
    | {"sshfs", "s3fs", "rclone", "gcsfuse", "goofys", "juicefs", "davfs", "davfs2"}  # behind "fuse."
)
_CACHEDIR_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# A cache made by lmstash. Back-up programs may leave this folder out: https://bford.info/cachedir/\n"
)


class Folder:
    """Paths of one stash folder. Files that lmstash makes are readable by their owner alone (0600)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is touched yet.

        Raises:
            StoreUnavailableError: Its name is not UTF-8.
        """
        self.path = Path(path).expanduser().absolute()
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:
            told = (
                f"{os.fspath(self.path)!a} is no UTF-8, which the index needs. Choose another folder with LMSTASH_DIR."
            )
            raise StoreUnavailableError(told) from None
        self.segments = self.path / "segments"
        self.index = self.path / "index.db"
        self.recency = self.path / "recency"
        self.description = self.path / "stash.json"
        self.repair_lock = self.path / "repair.lock"

    def prepare(self) -> None:
        """Make the folder, or check that it can be used.

        Raises:
            StoreUnavailableError: No permission, not a folder, or a network file system.
            UnsupportedFormatError: A newer lmstash wrote it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.segments.mkdir(exist_ok=True, mode=0o700)
            tag = self.path / "CACHEDIR.TAG"
            if not tag.exists():
                write_private(tag, _CACHEDIR_TAG.encode())
        except OSError as error:
            raise StoreUnavailableError(self.explain(error)) from error
        self.refuse_network()
        self.describe()

    def refuse_network(self) -> None:
        """Raise when the folder lies on a network file system, where the index cannot be locked safely."""
        if os.environ.get("LMSTASH_ALLOW_NETWORK") == "1":
            return
        kind = file_system(self.path).removeprefix("fuse.")
        if kind in NETWORK_FILE_SYSTEMS:
            raise StoreUnavailableError(
                f"{self.path} lies on a network file system ({kind}), where locks between machines cannot be trusted. "
                "Choose a local folder (LMSTASH_DIR), or set LMSTASH_ALLOW_NETWORK=1 if only one machine uses it."
            )

    def describe(self) -> dict[str, Any]:
        """Return the content of `stash.json`, or an empty dict.

        Raises:
            UnsupportedFormatError: A newer lmstash wrote the folder.
        """
        try:
            description = json.loads(self.description.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(description, dict):
            return {}
        version = description.get("format", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{self.path} was written in format {version}; this lmstash reads up to {FORMAT_VERSION}. "
                "Upgrade lmstash, or choose another folder."
            )
        try:
            capacity = parse_bytes(description.get("capacity_bytes"))
        except (InvalidArgumentError, TypeError, ValueError):
            description.pop("capacity_bytes", None)
        else:
            if "capacity_bytes" in description:
                description["capacity_bytes"] = capacity
        return description

    def write_description(self, capacity_bytes: int | None) -> None:
        """Record format and limit, atomically. The index's write lock keeps others from doing so at the same time."""
        content = {"format": FORMAT_VERSION, "capacity_bytes": capacity_bytes, "made_by": "lmstash"}
        fresh = self.description.with_name("stash.json.new")
        write_private(fresh, (json.dumps(content, indent=2) + "\n").encode())
        os.replace(fresh, self.description)

    def has_index(self) -> bool:
        """Whether there is an index with anything in it. Raises OSError when one may not look."""
        try:
            return os.stat(self.index).st_size > 0
        except FileNotFoundError:
            return False

    def index_inode(self) -> tuple[int, int]:
        """Return what tells one index file from the next, or zeros where there is none."""
        try:
            status = os.stat(self.index)
        except OSError:
            return (0, 0)
        return status.st_dev, status.st_ino

    def segment(self, name: str) -> Path:
        """Return the path of the segment called `name`."""
        return self.segments / f"{name}.seg"

    def segment_names(self) -> list[str]:
        """Return the names of the segment files; strangers' files are not listed."""
        try:
            with os.scandir(self.segments) as found:
                ours = [each for each in found if SEGMENT_NAME.fullmatch(each.name)]
                return sorted(each.name[:-4] for each in ours if each.is_file(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def overhead_bytes(self) -> int:
        """Return what everything but the segments takes: index, logs, recency, folders."""
        total = 3 * 4096  # stash.json, CACHEDIR.TAG, repair.lock
        for path in (self.path, self.segments, self.index, f"{self.index}-wal", f"{self.index}-shm", self.recency):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                total += max(status.st_blocks * 512, -(-status.st_size // 4096) * 4096)
        return total

    def blocks(self, name: str) -> int:
        """Return what the segment called `name` takes, 0 when it is gone."""
        try:
            return os.stat(self.segment(name)).st_blocks * 512
        except (OSError, ValueError):
            return 0

    def disk_free_bytes(self) -> int:
        """Return what is free on the disk that the folder lies on, or would lie on if it were made."""
        there = next(each for each in (self.path, *self.path.parents) if os.path.exists(each))
        return shutil.disk_usage(there).free

    def index_bytes(self) -> int:
        """Return the length of the index, log aside."""
        return _length(self.index)

    def wal_bytes(self) -> int:
        """Return the length of the index's write-ahead log."""
        return _length(f"{self.index}-wal")

    def slot_bytes(self) -> int:
        """Return the length of the file of uses."""
        return _length(self.recency)

    def explain(self, error: OSError) -> str:
        """Say what is wrong with the folder and what to do."""
        if error.errno in (errno.EACCES, errno.EPERM):
            owner = _owner(self.path)
            return f"no permission to use {self.path}{owner}. Choose your own folder with LMSTASH_DIR."
        if error.errno == errno.EROFS:
            return f"{self.path} is on a read-only file system. Open it with read_only=True, or choose another folder."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of {self.path} is full. Free space, or choose another folder with LMSTASH_DIR."
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            return f"{self.path} is not a folder. Choose another path."
        return f"{self.path} cannot be used: {error.strerror or error}. Choose another folder with LMSTASH_DIR."


def write_private(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that only its owner may read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def file_system(path: Path) -> str:
    """Return the type of the file system `path` lies on (`ext4`, `nfs4`, ...), or an empty string where unknown."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    real = os.path.realpath(path)
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, kind = len(point), after.split()[0]
    return kind


def _length(path: Path | str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _owner(path: Path) -> str:
    for each in (path, *path.parents):
        try:
            uid = each.stat().st_uid
        except OSError:
            continue
        return f" (it belongs to user {uid}, you are {os.getuid()})" if uid != os.getuid() else ""
    return ""
