"""Every value ever kept is found and read for ever: stores of values that each version wrote, beside what they hold.

`values/v1.tar.gz` is a stash with values of every kind, in plain and in a private stash under a salt, and an export of
its responses; `values/v1.json` says what was put. They are never written again. Who computed is a written name, so that
no version of a package and no weights change a key: what is not found here would not be found for anybody.

When a layout or a key is changed on purpose, these values must still be read. Then raise `LATEST`, and run
`python -m formats.test_can_read_old_values` in `tests/`, which adds what the current version writes.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses.exporting import export_responses, import_responses

from . import kept_answers
from .kept_kinds import NAMES, read, write

VALUES = Path(__file__).parent / "values"
LATEST = "v1"
VERSIONS = sorted(path.name.removesuffix(".tar.gz") for path in VALUES.glob("*.tar.gz"))


def held(version: str) -> dict[str, Any]:
    """What was put into a version's stash."""
    return json.loads((VALUES / f"{version}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a version's files anew, once."""
    folder = tmp_path_factory.mktemp("old values")

    def unpack(version: str) -> Path:
        if not (folder / version).exists():
            with tarfile.open(VALUES / f"{version}.tar.gz") as archive:
                archive.extractall(folder / version, filter="data")
        return folder / version

    return unpack


@pytest.mark.parametrize(("version", "name"), [(version, name) for version in VERSIONS for name in held(version)])
def test_old_values_are_found_and_read(unpacked: Callable[[str], Path], version: str, name: str):
    with lmstash.open(unpacked(version) / "stash", strict=True) as stash:
        assert read(stash, name) == held(version)[name]
        assert stash.stats.damaged == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_export_is_imported(unpacked: Callable[[str], Path], version: str):
    export = unpacked(version) / "export.jsonl"
    fresh = lmstash.open("memory://", strict=True)
    done = import_responses(fresh.store, export).as_dict()
    assert done == {
        "taken": len(export.read_bytes().splitlines()),
        "known": 0,
        "expired": 0,
        "unproven": 0,
        "damaged": 0,
    }
    for name in ("responses", "squeezed responses"):
        assert read(fresh, name) == held(version)[name]


def test_what_is_put_now_is_what_was_put_then(tmp_path: Path):
    """Else the functions that write were changed, and a version of its own is to be kept."""
    with lmstash.open(tmp_path / "stash", strict=True) as stash:
        assert {name: write(stash, name) for name in NAMES} == held(LATEST)
        for name in NAMES:
            assert read(stash, name) == held(LATEST)[name], name


def test_the_latest_version_is_among_those_kept_and_none_is_large():
    assert LATEST in VERSIONS
    assert all((VALUES / f"{version}.tar.gz").stat().st_size < 200_000 for version in VERSIONS)


def main() -> None:
    """Add the files of the current version."""
    archive, listing = VALUES / f"{LATEST}.tar.gz", VALUES / f"{LATEST}.json"
    if archive.exists() or listing.exists():
        sys.exit(f"{archive.name} is kept for ever and is not written again.")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "stash"
        with lmstash.open(folder, strict=True) as stash:
            put = {name: write(stash, name) for name in NAMES}
        export = io.StringIO()
        with lmstash.open("memory://", strict=True) as elsewhere:
            kept_answers.write_responses(elsewhere)
            kept_answers.write_squeezed(elsewhere)
            export_responses(elsewhere.store, export)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            # The index is made anew from these.
            files = [(f"stash/{each.relative_to(folder)}", each.read_bytes()) for each in sorted(folder.rglob("*.seg"))]
            files += [("stash/stash.json", (folder / "stash.json").read_bytes())]
            for name, content in [*files, ("export.jsonl", export.getvalue().encode())]:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o600
                tar.addfile(entry, io.BytesIO(content))
        VALUES.mkdir(exist_ok=True)
        archive.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
        listing.write_text(json.dumps(put, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
