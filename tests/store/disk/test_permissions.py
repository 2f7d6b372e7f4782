"""Folders that cannot be written, or not be seen, or lie on a network: clear words, and the program goes on."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.errors import LmstashError, ReadOnlyError, StoreUnavailableError, UnsupportedFormatError
from lmstash.store.disk.files import folder as folder_module
from lmstash.store.disk.store import DiskStore

NOBODY = 65534

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="becoming another user needs root")


def kept_store(folder: Path, tools: Any) -> None:
    store = DiskStore(folder, capacity_bytes=16 << 20)
    for number in range(20):
        assert store.put(tools.key(number), tools.value(number, 3000))
    store.close()


def reads_all(store: Any, tools: Any) -> bool:
    values = store.get_many([tools.key(number) for number in range(20)])
    return values == [tools.value(number, 3000) for number in range(20)]


# --- what we make is private -----------------------------------------------------------------------------------------


def test_what_is_made_is_the_owners_alone(tmp_path: Path, tools: Any) -> None:
    old = os.umask(0)
    try:
        store = DiskStore(tmp_path / "a" / "stash")
        store.put(tools.key(1), b"secret")
        store.flush()
        modes = {
            str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
            for path in [tmp_path / "a" / "stash", *(tmp_path / "a" / "stash").rglob("*")]
        }
        store.close()
    finally:
        os.umask(old)
    assert {"a/stash/index.db", "a/stash/index.db-wal", "a/stash/recency", "a/stash/segments"} <= modes.keys()
    for name, mode in modes.items():
        assert mode == (0o700 if name in ("a/stash", "a/stash/segments") else 0o600), f"{name} has mode {mode:o}"


def test_the_mode_of_a_folder_that_was_there_is_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o750)
    DiskStore(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


# --- a read-only file system -----------------------------------------------------------------------------------------


def test_a_store_on_a_read_only_file_system_is_read_with_read_only(
    mount: Callable[..., Path], remount: Callable[..., None], tools: Any
) -> None:
    disk = mount()
    kept_store(disk / "stash", tools)
    remount(disk, "ro")
    store = DiskStore(disk / "stash", read_only=True)
    assert reads_all(store, tools)
    assert not store.put(tools.key(1), b"x")
    assert store.events.stats.drops == {"read_only": 1}
    assert not store.delete(tools.key(1))
    assert store.pin_many([tools.key(1)]) == 0
    with pytest.raises(ReadOnlyError):
        store.clear()
    assert store.evict(0).entries == 0
    assert store.info().entries == 20
    assert store.verify().ok
    assert len(list(store.entries())) == 20
    store.flush()
    store.close()


def test_a_read_only_file_system_is_explained_and_the_program_goes_on(
    mount: Callable[..., Path], remount: Callable[..., None], tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    disk = mount()
    kept_store(disk / "stash", tools)
    remount(disk, "ro")
    for place in (disk / "stash", disk / "elsewhere"):
        caplog.clear()
        stash = lmstash.open(place)
        assert not stash.store.put(tools.key(1), b"x")
        stash.store.get(tools.key(1))
        stash.close()
        said = " ".join(record.getMessage() for record in caplog.records)
        assert "read-only file system" in said
        assert "read_only=True" in said
        with pytest.raises(StoreUnavailableError, match="read-only file system"):
            lmstash.open(place, strict=True)


def test_a_file_system_that_becomes_read_only_under_an_open_store_breaks_nothing(
    mount: Callable[..., Path], tools: Any
) -> None:
    import subprocess

    disk = mount()
    store = DiskStore(disk / "stash", capacity_bytes=4 << 20)
    for number in range(20):
        assert store.put(tools.key(number), tools.value(number, 3000))
    # A busy file system refuses a plain remount while files are open for writing; a bind mount over it does not.
    inner = disk / "stash" / "segments"
    subprocess.run(["mount", "--bind", str(inner), str(inner)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(inner)], check=True)
        kept = [store.put(tools.key(number, "new"), tools.value(number, 30_000)) for number in range(100)]
        assert not all(kept), "no new segment can be made"
        assert reads_all(store, tools)
        assert sum(store.events.stats.drops.values()) == kept.count(False)
    finally:
        subprocess.run(["umount", "-l", str(inner)], check=True)
    assert store.put(tools.key(1, "later"), b"writable again")
    assert store.verify().ok
    store.close()


# --- no permission ---------------------------------------------------------------------------------------------------


def as_nobody(work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return work()

    return run


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder that other users may reach (pytest's own are private)."""
    import shutil
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="lmstash-test-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def open_and_say(place: Path, tools: Any, **options: Any) -> dict[str, Any]:
    """Open as a host program would, use it, and tell what was logged and raised."""
    import logging

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("lmstash").addHandler(handler)
    stash = lmstash.open(place, **options)
    kept = stash.store.put(tools.key(1, "other"), b"x")
    found = sum(value is not None for value in stash.store.get_many([tools.key(number) for number in range(20)]))
    stash.info()
    stash.close()
    try:
        strict = lmstash.open(place, strict=True, **options)
        strict.store.get(tools.key(1))
        strict.close()
        raised = ""
    except LmstashError as error:
        raised = f"{type(error).__name__}: {error}"
    return {"kept": kept, "found": found, "said": " ".join(said), "raised": raised}


@needs_root
@pytest.mark.parametrize("options", [{}, {"read_only": True}], ids=["write", "read_only"])
@pytest.mark.parametrize("where", ["theirs", "in a closed folder", "below theirs"])
def test_a_folder_of_another_user_is_explained_and_the_program_goes_on(
    where: str, options: dict[str, Any], public: Path, in_child: Callable[..., Any], tools: Any
) -> None:
    closed = public / "closed"
    closed.mkdir(mode=0o700)
    place = {"theirs": public / "stash", "in a closed folder": closed / "stash", "below theirs": public / "x" / "y"}[
        where
    ]
    if where != "below theirs":
        kept_store(place, tools)
    told = in_child(as_nobody(lambda: open_and_say(place, tools, **options)))
    assert not told["kept"]
    assert told["found"] == 0
    if where == "below theirs" and options:
        assert "holds no stash to read" in told["said"]
    else:
        assert "no permission" in told["said"]
        assert f"you are {NOBODY}" in told["said"]
    assert told["raised"].startswith("StoreUnavailableError")


@needs_root
def test_a_folder_readable_by_all_but_not_writable_can_be_read(
    public: Path, in_child: Callable[..., Any], tools: Any
) -> None:
    place = public / "stash"
    kept_store(place, tools)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    told = in_child(as_nobody(lambda: open_and_say(place, tools, read_only=True)))
    assert told["found"] == 20
    assert told["raised"] == ""
    refused = in_child(as_nobody(lambda: open_and_say(place, tools)))
    assert refused["raised"].startswith("StoreUnavailableError: no permission")


@needs_root
def test_permission_lost_while_open_breaks_nothing(public: Path, in_child: Callable[..., Any], tools: Any) -> None:
    place = public / "stash"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)

    def work() -> dict[str, Any]:
        store = DiskStore(place, capacity_bytes=4 << 20)
        for number in range(20):
            assert store.put(tools.key(number), tools.value(number, 3000))
        (place / "segments").chmod(0o000)
        kept = [store.put(tools.key(number, "new"), tools.value(number, 30_000)) for number in range(80)]
        for number in range(20):
            value = store.get(tools.key(number))
            assert value is None or value == tools.value(number, 3000)
        (place / "segments").chmod(0o700)
        after = store.put(tools.key(0, "after"), b"again")
        store.close()
        return {"all_kept": all(kept), "after": after}

    assert in_child(as_nobody(work)) == {"all_kept": False, "after": True}
    store = DiskStore(place)
    assert store.verify().ok
    assert store.get(tools.key(0, "after")) == b"again"
    store.close()


# --- what is no folder, and what a newer version wrote ---------------------------------------------------------------


@pytest.mark.parametrize("make", ["file", "below a file", "dangling link"])
def test_a_path_that_cannot_be_a_folder_is_explained(
    make: str, tmp_path: Path, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "thing"
    if make == "dangling link":
        path.symlink_to(tmp_path / "nowhere" / "at all" / "\0".replace("\0", "x"))
    else:
        path.write_text("mine")
    place = path / "stash" if make == "below a file" else path
    stash = lmstash.open(place)
    kept = stash.store.put(tools.key(1), b"x")
    stash.close()
    if make == "dangling link":
        assert kept or caplog.records
    else:
        assert not kept
        assert "is not a folder" in " ".join(record.getMessage() for record in caplog.records)
        assert path.read_text() == "mine"
        with pytest.raises(StoreUnavailableError, match="is not a folder"):
            lmstash.open(place, strict=True)


def test_a_folder_of_a_newer_format_is_refused_and_untouched(
    tmp_path: Path, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "stash"
    kept_store(folder, tools)
    description = folder / "stash.json"
    description.write_text(description.read_text().replace('"format": 1', '"format": 99'))
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    stash = lmstash.open(folder)
    assert not stash.store.put(tools.key(1), b"x")
    stash.close()
    assert "Upgrade lmstash" in " ".join(record.getMessage() for record in caplog.records)
    with pytest.raises(UnsupportedFormatError, match="Upgrade lmstash"):
        lmstash.open(folder, strict=True)
    with pytest.raises(UnsupportedFormatError, match="Upgrade lmstash"):
        lmstash.open(folder, strict=True, read_only=True)
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_read_only_needs_a_store_and_strict_says_so(tmp_path: Path, tools: Any) -> None:
    with pytest.raises(StoreUnavailableError, match="holds no stash"):
        lmstash.open(tmp_path / "none", read_only=True, strict=True)
    assert not (tmp_path / "none").exists()
    stash = lmstash.open(tmp_path / "none", read_only=True)
    assert stash.store.get(tools.key(1)) is None
    stash.close()


def test_a_strict_read_only_store_refuses_every_change(tmp_path: Path, tools: Any) -> None:
    kept_store(tmp_path / "stash", tools)
    store = DiskStore(tmp_path / "stash", read_only=True, strict=True)
    assert reads_all(store, tools)
    changes: list[Callable[[], object]] = [
        lambda: store.put(tools.key(1), b"x"),
        lambda: store.delete(tools.key(1)),
        lambda: store.pin_many([tools.key(1)]),
        lambda: store.evict(0),
        lambda: store.clear(),
        lambda: store.set_capacity(1 << 30),
    ]
    for change in changes:
        with pytest.raises(ReadOnlyError, match="read_only=True"):
            change()
    store.close()


# --- network file systems --------------------------------------------------------------------------------------------


def mounts(kind: str, point: Path) -> str:
    escaped = str(point)
    for character in "\\ \t\n":
        escaped = escaped.replace(character, f"\\{ord(character):03o}")
    return (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"40 22 0:35 / {escaped} rw,relatime shared:2 - {kind} server:/export rw,vers=4.2\n"
    )


@pytest.fixture
def mounted_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Makes the kernel's list of mounts say that a path lies on a file system of some kind."""

    def pretend(kind: str, point: Path) -> None:
        real = Path.read_text

        def read_text(path: Path, *arguments: Any, **options: Any) -> str:
            if str(path) == "/proc/self/mountinfo":
                return mounts(kind, point)
            return real(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", read_text)

    return pretend


NETWORK = ["nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "9p"]


@pytest.mark.parametrize("kind", NETWORK)
def test_a_network_file_system_is_refused_with_a_way_out(
    kind: str,
    tmp_path: Path,
    tools: Any,
    mounted_as: Callable[[str, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mounted_as(kind, tmp_path)
    stash = lmstash.open(tmp_path / "stash")
    assert not stash.store.put(tools.key(1), b"x")
    assert stash.store.get(tools.key(1)) is None
    stash.close()
    said = " ".join(record.getMessage() for record in caplog.records)
    assert kind.removeprefix("fuse.") in said
    assert "network file system" in said
    assert "LMSTASH_ALLOW_NETWORK=1" in said
    with pytest.raises(StoreUnavailableError, match="network file system"):
        lmstash.open(tmp_path / "stash", strict=True)
    monkeypatch.setenv("LMSTASH_ALLOW_NETWORK", "1")
    allowed = lmstash.open(tmp_path / "stash", strict=True)
    assert allowed.store.put(tools.key(1), b"x")
    allowed.close()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs", "fuseblk"])
def test_a_local_file_system_is_used(
    kind: str, tmp_path: Path, tools: Any, mounted_as: Callable[[str, Path], None]
) -> None:
    mounted_as(kind, tmp_path)
    with lmstash.open(tmp_path / "stash", strict=True) as stash:
        assert stash.store.put(tools.key(1), b"x")


@pytest.mark.parametrize("name", ["with space", "tab\there", "line\nbreak", "back\\slash", "uni-ö-漢"])
def test_a_network_mount_with_an_odd_name_is_recognised(
    name: str, tmp_path: Path, mounted_as: Callable[[str, Path], None]
) -> None:
    point = tmp_path / name
    point.mkdir()
    mounted_as("nfs4", point)
    assert folder_module.file_system(point / "stash") == "nfs4"
    assert folder_module.file_system(tmp_path) == "ext4"


def test_a_neighbour_whose_name_begins_alike_is_not_on_the_mount(
    tmp_path: Path, mounted_as: Callable[[str, Path], None]
) -> None:
    mounted_as("nfs", tmp_path / "data")
    assert folder_module.file_system(tmp_path / "data2") == "ext4"


# --- odd names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "100%",
        "50%41",
        "what?",
        "a#b",
        "ö-漢字-🙂",
        "line\nbreak",
        "'quote\"",
        "-dash",
        "file:x",
        "a;b&c=d",
        ":memory:",
        "x" * 200,
    ],
)
def test_folders_with_odd_names_work(name: str, tmp_path: Path, tools: Any) -> None:
    folder = tmp_path / name
    kept_store(folder, tools)
    assert (folder / "index.db").is_file()
    store = DiskStore(folder)
    assert reads_all(store, tools)
    store.close()
    reader = DiskStore(folder, read_only=True)
    assert reads_all(reader, tools)
    reader.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("name", ["what?immutable=0", "50%41", "a#b"])
def test_read_only_folders_with_odd_names_work(
    name: str, mount: Callable[..., Path], remount: Callable[..., None], tools: Any
) -> None:
    disk = mount()
    kept_store(disk / name, tools)
    remount(disk, "ro")
    reader = DiskStore(disk / name, read_only=True)
    assert reads_all(reader, tools)
    reader.close()


def test_a_relative_folder_stays_the_same_folder_when_the_program_moves(
    tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = DiskStore("stash", capacity_bytes=4 << 20)
    store.put(tools.key(1), b"one")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for number in range(100):
        assert store.put(tools.key(number, "more"), bytes(30_000))
    store.put(tools.key(1), b"one")
    assert store.get(tools.key(1)) == b"one"
    store.close()
    assert list((tmp_path / "elsewhere").iterdir()) == []
