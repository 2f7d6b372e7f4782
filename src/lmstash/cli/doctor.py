"""Look for what is wrong with a folder or this installation, and say what to do. Exit code 1 when something is.

Reads the index and lists files; `lmstash verify` reads every byte.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lmstash.cli.output import print_json, say, size, style
from lmstash.cli.place import capacity_in_force, location, repair_line
from lmstash.errors import LmstashError
from lmstash.settings import Setting, resolve_all

if TYPE_CHECKING:
    from lmstash.store.disk.files.folder import Folder

OK, NOTE, BAD = "ok", "note", "bad"
FIXED_SQLITE = (3, 51, 3)
"""The first SQLite without the WAL-reset bug."""
OPTIONAL = ("torch", "transformers", "safetensors", "zstandard")
FLIGHTS = re.compile(r"flights-\d\d\.lock")
OURS = {"stash.json", "CACHEDIR.TAG", "recency", "repair.lock", "segments", "index.db", "index.db-wal", "index.db-shm"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    level: str
    """`ok`, `note` (worth knowing) or `bad` (to be mended)."""
    detail: str
    advice: str = ""
    """What to do, where something is to be done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`lmstash doctor` takes nothing of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Make every check and print what it found."""
    findings = list(check_installation())
    findings += check_settings()
    where = location(arguments)
    if "://" not in where:
        from lmstash.store.disk.files.folder import Folder

        findings += check_folder(Folder(where))
    bad = sum(each.level == BAD for each in findings)
    if arguments.json:
        print_json("doctor", ok=not bad, location=where, findings=[asdict(each) for each in findings])
        return 1 if bad else 0
    colour = {OK: "green", NOTE: "yellow", BAD: "red"}
    width = max(len(each.check) for each in findings)
    for each in findings:
        print(f"{style(each.level.ljust(4), colour[each.level])}  {each.check.ljust(width)}  {each.detail}")
        if each.advice:
            print(f"{'':4}  {'':{width}}  {style(each.advice, 'bold')}")
    say(f"{bad} to mend" if bad else "nothing to mend")
    return 1 if bad else 0


def check_installation() -> Iterator[Finding]:
    """Check versions of Python, lmstash, the SQLite library and optional packages."""
    import lmstash

    yield Finding("lmstash", OK, f"{lmstash.__version__} on Python {platform.python_version()}, {platform.platform()}")
    import apsw

    text = apsw.sqlite_lib_version()
    fixed = tuple(map(int, text.split("."))) >= FIXED_SQLITE
    advice = "" if fixed else "Run: pip install --upgrade apsw"
    yield Finding(
        "SQLite", OK if fixed else BAD, f"{text} (in apsw)" + ("" if fixed else ": has the WAL-reset bug"), advice
    )
    found = []
    for name in OPTIONAL:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    yield Finding("packages", OK, ", ".join(found))


def check_settings() -> Iterator[Finding]:
    """Check that every setting can be read, and name those that switch caching off."""
    try:
        settings = resolve_all()
    except LmstashError as error:
        yield Finding("settings", BAD, str(error), "Mend the variable or the config file it names.")
        return
    yield Finding("settings", OK, "readable; `lmstash env` prints them")
    for name, effect in (("disable", "nothing is kept or served"), ("read_only", "nothing is written")):
        if settings[name].value:
            yield Finding(name, NOTE, f"{effect} ({settings[name].origin})")


def check_folder(folder: Folder) -> Iterator[Finding]:
    """Check the folder: whether it is there, whose it is, what it lies on, whether it is whole."""
    if not folder.path.exists():
        yield Finding("folder", NOTE, f"{folder.path} does not exist", "It is made on first use.")
        yield from check_disk(folder)
        return
    if not folder.path.is_dir():
        yield Finding("folder", BAD, f"{folder.path} is not a folder", "Choose another with --dir or LMSTASH_DIR.")
        return
    if not os.access(folder.path, os.R_OK | os.X_OK):
        yield Finding(
            "folder", BAD, f"{folder.path} cannot be read", "Choose another with LMSTASH_DIR, or mend its mode."
        )
        return
    yield from check_access(folder)
    from lmstash.store.disk.files.folder import NETWORK_FILE_SYSTEMS, file_system

    kind = file_system(folder.path)
    if kind in NETWORK_FILE_SYSTEMS:
        yield Finding(
            "file system",
            BAD,
            f"{kind}: locks between machines cannot be trusted",
            "Set LMSTASH_DIR to a local folder.",
        )
    else:
        yield Finding("file system", OK, kind or "unknown")
    yield from check_disk(folder)
    if not folder.description.exists():
        yield Finding("stash", NOTE, "no stash in this folder yet", "It is made on first use.")
        return
    yield from check_index(folder)
    strangers = sorted(name for name in set(os.listdir(folder.path)) - OURS if not FLIGHTS.fullmatch(name))
    if strangers:
        yield Finding("other files", NOTE, f"{', '.join(strangers[:5])}: not lmstash's, and left alone")


def check_access(folder: Folder) -> Iterator[Finding]:
    """Check owner and permission bits."""
    path = folder.path
    if not os.access(path, os.W_OK):
        yield Finding("folder", NOTE, f"{path} cannot be written: hits are served, nothing is kept")
    else:
        yield Finding("folder", OK, str(path))
    owner = path.stat().st_uid
    if owner != os.getuid():
        yield Finding(
            "owner", NOTE, f"user {owner} owns it, not you ({os.getuid()})", "Two users should not share one folder."
        )
    open_files = [each.name for each, status in _our_files(folder) if stat.S_IMODE(status.st_mode) & 0o077]
    if open_files:
        yield Finding(
            "permissions",
            BAD,
            f"other users may read {len(open_files)} files, for instance {open_files[0]}",
            f"Run: chmod -R go-rwx {path}",
        )
    else:
        yield Finding("permissions", OK, "files are their owner's alone")


def check_disk(folder: Folder) -> Iterator[Finding]:
    """Check that the disk has the room that the limit promises."""
    from lmstash.store.disk.accounting.room import MIN_CAPACITY_BYTES

    free = folder.disk_free_bytes()
    try:
        limit = capacity_in_force(str(folder.path))
    except LmstashError:  # said by check_settings or check_index
        limit = Setting(None, "unknown")
    capacity = limit.value
    taken = sum(status.st_blocks * 512 for _, status in _our_files(folder))
    detail = f"{size(free)} free; the stash takes {size(taken)} of {size(capacity)} ({limit.origin})"
    if capacity is not None and capacity < MIN_CAPACITY_BYTES:
        yield Finding("room", NOTE, f"{detail}: nothing is added", f"Give at least {size(MIN_CAPACITY_BYTES)}.")
    elif capacity is not None and taken > capacity:
        yield Finding("room", BAD, detail, "Run: lmstash evict --to SIZE, or raise capacity_bytes.")
    elif free < 2**30:
        yield Finding("room", BAD, detail, "Free space on the disk, or move the stash with LMSTASH_DIR.")
    elif capacity is not None and free < capacity - taken:
        yield Finding("room", NOTE, f"{detail}: the disk fills before the limit is reached", "Lower capacity_bytes.")
    else:
        yield Finding("room", OK, detail)


def check_index(folder: Folder) -> Iterator[Finding]:
    """Check that the index can be read and that it and the segments speak of the same files."""
    from lmstash.store.disk.files.rows import IndexDamagedError

    repair = f"Run: {repair_line(str(folder.path))}"
    try:
        folder.describe()
    except LmstashError as error:
        yield Finding("format", BAD, str(error))
        return
    if not folder.index.exists():
        yield Finding("index", BAD, "index.db is missing", repair)
        return
    try:
        looks = [_Look.at(folder) for _ in range(2)]  # others may write: what is wrong is so at the second look, too
    except IndexDamagedError as error:
        yield Finding("index", BAD, f"index.db is damaged: {error}", repair)
        return
    except LmstashError as error:
        yield Finding("index", BAD, str(error))
        return
    yield Finding("index", OK, f"{looks[-1].live:,} entries in {looks[-1].n_segments:,} segments")
    lost, short, loose = (len(one & two) for one, two in zip(*(each.wrong for each in looks), strict=True))
    if lost:
        yield Finding("segments", BAD, f"{lost} in the index are gone from the disk", repair)
    if short:
        yield Finding("segments", BAD, f"{short} are shorter than written", repair)
    if loose:
        yield Finding("segments", NOTE, f"{loose} on the disk are not in the index", repair)


class _Look(NamedTuple):
    """What the index and the folder said of the segments at one time."""

    live: int
    n_segments: int
    wrong: tuple[set[str], set[str], set[str]]
    """Those that are gone, those shorter than written, and those that the index does not know."""

    @classmethod
    def at(cls, folder: Folder) -> _Look:
        from lmstash.store.disk.indexing.index import Index

        index = Index(folder, read_only=True)
        try:
            segments = index.segments()
        finally:
            index.close()
        on_disk, known = set(folder.segment_names()), {each.name: each.tail for each in segments}
        short: set[str] = set()
        for name in on_disk & known.keys():
            with contextlib.suppress(FileNotFoundError):
                if folder.segment(name).stat().st_size < known[name]:
                    short.add(name)
        live = sum(each.live for each in segments)
        return cls(live, len(known), (known.keys() - on_disk, short, on_disk - known.keys()))


def _our_files(folder: Folder) -> list[tuple[Path, os.stat_result]]:
    there = os.listdir(folder.path) if folder.path.is_dir() else []
    files = [folder.path / name for name in there if name in OURS or FLIGHTS.fullmatch(name)]
    files += [folder.segment(name) for name in folder.segment_names()]
    found: list[tuple[Path, os.stat_result]] = []
    for each in files:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append((each, each.stat()))
    return [each for each in found if stat.S_ISREG(each[1].st_mode)]
