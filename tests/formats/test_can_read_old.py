"""Every format ever released is read for ever: stores that each version wrote, kept here, with what they hold.

`v1.tar.gz` is a folder as a killed process left it: sealed segments, open ones, an index with its log. `v1.json` says
what it holds. They are never written again. When a new format comes, run this file as a script; it adds the files of
the current version, and refuses to replace any.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lmstash.errors import UnsupportedFormatError
from lmstash.events import MissReason
from lmstash.store.base import Write
from lmstash.store.disk.files.format import FORMAT_VERSION, Located, RecordType
from lmstash.store.disk.files.segment import read_footer, read_segment_header, scan
from lmstash.store.disk.store import DiskStore

HERE = Path(__file__).parent
VERSIONS = sorted(path.name.removesuffix(".tar.gz") for path in HERE.glob("v*.tar.gz"))


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def unpack(version: str, folder: Path) -> dict[str, Any]:
    """Make the old folder anew, and return what it holds."""
    with tarfile.open(HERE / f"{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return json.loads((HERE / f"{version}.json").read_text(encoding="utf-8"))


def lose_index(folder: Path) -> None:
    for path in folder.glob("index.db*"):
        path.unlink()


def check(store: DiskStore, held: dict[str, Any]) -> None:
    """All that was kept is served as it was, and what was not is not."""
    entries = {entry["name"]: entry for entry in held["entries"]}
    keys = [key(name) for name in entries]
    assert store.contains_many(keys) == [True] * len(keys)
    for entry, found in zip(entries.values(), store.fetch_many(keys), strict=True):
        assert found is not None, entry["name"]
        assert hashlib.sha256(found.value).hexdigest() == entry["sha256"], entry["name"]
        assert len(found.value) == entry["nbytes"]
        assert (found.namespace, found.meta) == (entry["namespace"], entry["meta"])
        assert found.parent == (key(entry["parent"]) if entry["parent"] else b"")
        assert (found.n_tokens, found.compute_seconds) == (entry["n_tokens"], entry["compute_seconds"])
        assert (found.created, found.expires) == (entry["created"], entry["expires"])
    pinned = {info.key for info in store.entries() if info.pinned}
    assert pinned == {key(name) for name, entry in entries.items() if entry["pinned"]}
    absent = [key(name) for name in held["removed"]]
    assert store.get_many(absent) == [None] * len(absent)
    expired = [key(name) for name in held["expired"]]
    assert store.get_many(expired) == [None] * len(expired)
    assert store.events.stats.misses == {MissReason.ABSENT: len(absent), MissReason.EXPIRED: len(expired)}
    assert store.info().entries == len(keys) + len(expired)
    assert store.info().capacity_bytes == held["capacity_bytes"]
    assert store.verify().damaged == []


def test_the_current_format_is_among_those_kept():
    assert f"v{FORMAT_VERSION}" in VERSIONS
    assert all((HERE / f"{version}.tar.gz").stat().st_size < 200_000 for version in VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_store_is_read(version: str, tmp_path: Path):
    held = unpack(version, tmp_path / "old")
    store = DiskStore(tmp_path / "old")
    check(store, held)
    assert store.events.stats.damaged == 0
    store.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_store_is_read_without_its_index(version: str, tmp_path: Path):
    held = unpack(version, tmp_path / "old")
    lose_index(tmp_path / "old")
    store = DiskStore(tmp_path / "old")
    check(store, held)
    assert store.events.stats.damaged == 0
    store.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_store_is_read_without_writing(version: str, tmp_path: Path):
    held = unpack(version, tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old" / "segments").iterdir()}
    store = DiskStore(tmp_path / "old", read_only=True)
    check(store, held)
    store.close()
    assert {path: path.read_bytes() for path in (tmp_path / "old" / "segments").iterdir()} == before


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("indexed", [True, False])
def test_an_old_store_is_written_on(version: str, indexed: bool, tmp_path: Path):
    """Old and new records live side by side, through closing, opening and losing the index again."""
    held = unpack(version, tmp_path / "old")
    if not indexed:
        lose_index(tmp_path / "old")
    name = held["entries"][0]["name"]
    store = DiskStore(tmp_path / "old")
    store.put_many([Write(key("new"), b"new"), Write(key(name), b"replaced")])
    store.delete(key(held["entries"][1]["name"]))
    for lost in (False, True):
        store.close()
        if lost:
            lose_index(tmp_path / "old")
        store = DiskStore(tmp_path / "old")
        asked = [key("new"), key(name), key(held["entries"][1]["name"]), *(key(each) for each in held["removed"])]
        found = [None if each is None else bytes(each) for each in store.get_many(asked)]
        assert found == [b"new", b"replaced", None, *([None] * len(held["removed"]))]
        assert store.verify().damaged == []
    store.close()


def test_a_store_from_the_future_is_refused_and_left_as_it_is(tmp_path: Path):
    unpack(VERSIONS[0], tmp_path / "old")
    description = tmp_path / "old" / "stash.json"
    description.write_text(json.dumps({"format": FORMAT_VERSION + 1}), encoding="utf-8")
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    for read_only in (False, True):
        with pytest.raises(UnsupportedFormatError, match="Upgrade lmstash"):
            DiskStore(tmp_path / "old", read_only=read_only)
    after = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path in before} == before


# --- writing the files of a new format ----------------------------------------------------------------------------

ACTIVATIONS, PROMPTS = "activations/0123456789abcdef", "prompts/fedcba9876543210"
FIFTY_YEARS = 50 * 365 * 86400.0


def value(name: str, n_bytes: int) -> bytes:
    """Bytes that follow from the name: noise where short, a pattern that packs well where long."""
    block = b"".join(
        hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(min(n_bytes, 4096) // 32 + 1)
    )
    return (block * (n_bytes // len(block) + 1))[:n_bytes]


def write_store(folder: Path) -> tuple[DiskStore, dict[str, Any]]:
    """Write every kind of record there is; the store comes back open, as a killed process leaves it."""
    store = DiskStore(folder, capacity_bytes=64 << 20)

    def put(name: str, n_bytes: int, namespace: str, **fields: Any) -> None:
        assert store.put(key(name), value(name + fields.pop("again", ""), n_bytes), namespace=namespace, **fields)

    for number in range(12):
        parent = key(f"act {number - 1}") if number else b""
        meta = {"name": "tiny", "text": f"prompt {number} – ü", "tags": ["t1", "t2"][: number % 3]}
        put(
            f"act {number}",
            400 + number,
            ACTIVATIONS,
            meta=meta,
            parent=parent,
            n_tokens=64 * number,
            compute_seconds=0.25,
        )
    for number, size in enumerate([0, 1, 15, 16, 17, 4095, 4096, 4097]):
        put(f"size {size}", size, PROMPTS, meta={"number": number})
    put("chunked", (1 << 20) + 16, ACTIVATIONS, meta={"large": True})
    put("dies old", 100, PROMPTS, ttl_seconds=FIFTY_YEARS)
    put("dead of age", 100, PROMPTS, ttl_seconds=0)
    store.pin_many([key("act 1"), key("act 2"), key("act 3"), key("size 0")])
    store.pin_many([key("act 2")], pinned=False)
    store.close()

    store = DiskStore(folder)
    put("act 3", 70, ACTIVATIONS, again="replaced, and pinned all the same")
    put("size 16", 30, ACTIVATIONS, again="moved to another namespace")
    store.delete_many([key("act 4"), key("size 17"), key("size 4096")])
    put("size 4096", 50, PROMPTS, again="put again after it was removed")
    store.pin_many([key("act 5"), key("act 6")])
    store.delete(key("act 5"))
    put("act 5", 60, ACTIVATIONS, again="put again, and not pinned")
    put("user", 5, "user")
    return store, {"removed": ["act 4", "size 17", "never"], "expired": ["dead of age"]}


def describe(store: DiskStore, held: dict[str, Any]) -> dict[str, Any]:
    """Say what the store holds; names are found by their keys."""
    candidates = [f"act {number}" for number in range(12)] + [f"size {n}" for n in (0, 1, 15, 16, 17, 4095, 4096, 4097)]
    names = {key(name): name for name in [*candidates, "chunked", "dies old", "dead of age", "user"]}
    entries: list[dict[str, Any]] = []
    for info in sorted(store.entries(), key=lambda each: names[each.key]):
        entry = store.fetch_many([info.key])[0]
        if entry is None:
            assert names[info.key] in held["expired"]
            continue
        entries.append(
            {
                "name": names[info.key],
                "namespace": info.namespace,
                "nbytes": info.nbytes,
                "sha256": hashlib.sha256(entry.value).hexdigest(),
                "meta": info.meta,
                "parent": names[info.parent] if info.parent else None,
                "n_tokens": info.n_tokens,
                "compute_seconds": info.compute_seconds,
                "created": info.created,
                "expires": info.expires,
                "pinned": info.pinned,
            }
        )
    return {"format": FORMAT_VERSION, "capacity_bytes": store.info().capacity_bytes, "entries": entries, **held}


def require_every_kind_of_record(folder: Path) -> None:
    """Refuse a store that would test less than it should."""
    sealed, found = [], list[Located]()
    for path in (folder / "segments").iterdir():
        with path.open("rb") as file:
            listed = read_footer(file.fileno())
            sealed.append(listed is not None)
            found += listed if listed is not None else scan(file.fileno(), read_segment_header(file.fileno())[1])
    assert True in sealed
    assert False in sealed
    assert {each.type for each in found} == set(RecordType)
    entries = [each.key for each in found if each.type == RecordType.ENTRY]
    assert {key("act 4"), key("size 17")} <= set(entries), "what was removed should still lie there"
    assert entries.count(key("act 3")) == 2, "what was replaced should still lie there"


def main() -> None:
    """Add the files of the current format."""
    archive, listing = HERE / f"v{FORMAT_VERSION}.tar.gz", HERE / f"v{FORMAT_VERSION}.json"
    if archive.exists() or listing.exists():
        sys.exit(f"{archive.name} is kept for ever and is not written again.")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "stash"
        store, held = write_store(folder)
        described = describe(store, held)
        require_every_kind_of_record(folder)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.endswith("-shm"):
                    entry = tarfile.TarInfo(str(path.relative_to(folder)))
                    entry.size, entry.mode = path.stat().st_size, 0o600
                    tar.addfile(entry, io.BytesIO(path.read_bytes()))
        archive.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
        listing.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        store.close()
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
