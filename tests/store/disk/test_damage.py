"""Flipped bytes, cut files, lost files and moved records: counted misses with a reason, and a store that heals."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore

N_SMALL = 60
SIZES = [0, 1, 17, 700, 4095, 4096, 30_000]
LARGE = {1000: (1 << 20) + 5, 1001: 9 << 20}
"""One chunked payload, and one that is read in strides."""


def put_all(store: DiskStore, tools: Any, *, large: bool = True) -> None:
    writes = [
        Write(tools.key(number), tools.value(number, SIZES[number % len(SIZES)]), namespace=f"damage/{number % 3}")
        for number in range(N_SMALL)
    ]
    if large:
        writes += [
            Write(tools.key(number), tools.value(number, size), namespace="damage/large")
            for number, size in LARGE.items()
        ]
    writes.sort(key=lambda write: write.namespace)
    assert store.put_many(writes) == len(writes)


def expected(tools: Any, *, large: bool = True) -> dict[bytes, bytes]:
    small = {tools.key(n): tools.value(n, SIZES[n % len(SIZES)]) for n in range(N_SMALL)}
    return small | ({tools.key(n): tools.value(n, size) for n, size in LARGE.items()} if large else {})


def read_all(store: DiskStore, values: dict[bytes, bytes]) -> int:
    """Read every key both ways; returns how many are there. A wrong value fails the test."""
    keys = list(values)
    together = store.get_many(keys)
    found = 0
    for key, value in zip(keys, together, strict=True):
        alone = store.get(key)
        for each in (value, alone):
            assert each is None or each == values[key], "a wrong value was served"
        found += alone is not None
    return found


def heal(store: DiskStore, values: dict[bytes, bytes]) -> None:
    """Put again what is missing; then everything is there, nothing is damaged, and it stays so."""
    for _round in range(2):  # writing may come upon damage that no reading has met yet
        store.verify(repair=True)
        for key, value in values.items():
            if store.get(key) is None:
                assert store.put(key, value, namespace="damage/0")
        assert read_all(store, values) == len(values)
        if store.verify().ok:
            return
    assert store.verify().ok


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tools: Any) -> Path:
    """A closed store with small entries of three namespaces, replaced and deleted ones among them."""
    folder = tmp_path_factory.mktemp("template") / "stash"
    store = DiskStore(folder, capacity_bytes=64 << 20)
    put_all(store, tools, large=False)
    store.close()
    store = DiskStore(folder)
    put_all(store, tools, large=False)
    for number in range(5):
        store.put(tools.key(number, "gone"), b"deleted", namespace="damage/1")
    assert store.delete_many([tools.key(number, "gone") for number in range(5)]) == 5
    store.close()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "stash"))


def flip(path: Path, offset: int, mask: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def reasons(store: DiskStore) -> set[str]:
    return set(store.events.stats.misses)


# --- segments --------------------------------------------------------------------------------------------------------


def test_flipped_bytes_in_segments_are_misses_with_a_reason_and_heal(
    template: Path, tmp_path: Path, tools: Any
) -> None:
    values = expected(tools, large=False)
    draw = random.Random(3)
    damaged = 0
    for number in range(20):
        folder = Path(shutil.copytree(template, tmp_path / f"stash{number}"))
        for path in tools.segments(folder):
            for _each in range(draw.choice([1, 1, 5, 40])):
                flip(path, draw.randrange(path.stat().st_size), 1 << draw.randrange(8))
        store = DiskStore(folder)
        read_all(store, values)
        assert reasons(store) <= {"damaged", "mismatch", "absent"}
        damaged += store.events.stats.damaged
        assert bool(store.events.stats.damaged) == bool(store.events.stats.misses)
        heal(store, values)
        store.close()
        reopened = DiskStore(folder)
        assert read_all(reopened, values) == len(values)
        assert reopened.verify().ok
        reopened.close()
        shutil.rmtree(folder)
    assert damaged > 20


def test_flipped_bytes_do_not_come_back_with_a_rebuilt_index(template: Path, tmp_path: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    draw = random.Random(4)
    for number in range(12):
        folder = Path(shutil.copytree(template, tmp_path / f"stash{number}"))
        for path in tools.segments(folder):
            for _each in range(draw.choice([1, 5, 40])):
                flip(path, draw.randrange(path.stat().st_size), 1 << draw.randrange(8))
        (folder / "index.db").unlink()
        store = DiskStore(folder)
        read_all(store, values)
        for value in store.get_many([tools.key(each, "gone") for each in range(5)]):
            assert value in (None, b"deleted"), "a damaged tombstone may raise what it buried, and nothing else"
        heal(store, values)
        store.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize("number", LARGE)
def test_one_flipped_bit_in_a_large_value_is_found(number: int, tmp_path: Path, tools: Any) -> None:
    store = DiskStore(tmp_path / "stash", capacity_bytes=64 << 20)
    key, value = tools.key(number), tools.value(number, LARGE[number])
    draw = random.Random(number)
    for _round in range(4):
        assert store.put(key, value)
        found = [(path, path.read_bytes().rfind(value)) for path in tools.segments(tmp_path / "stash")]
        ((path, start),) = [each for each in found if each[1] > 0]  # those of the rounds before are damaged
        flip(path, start + draw.randrange(len(value)), 1 << draw.randrange(8))
        assert store.get(key) is None
        assert not store.contains(key)
    assert store.events.stats.damaged == 4
    assert tools.misses(store) == {"damaged": 4}
    store.close()


@pytest.mark.parametrize("keep", [0, 100, 512, 0.5, -1, -60])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_a_truncated_segment_costs_misses_and_heals(keep: float, is_open: bool, folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    if not is_open:
        store.close()
    for path in tools.segments(folder):
        size = path.stat().st_size
        os.truncate(path, int(size * keep) if isinstance(keep, float) else keep if keep >= 0 else size + keep)
    if not is_open:
        store = DiskStore(folder)
    found = read_all(store, values)
    assert found == len(values) if keep < 0 else found < len(values)
    assert reasons(store) <= {"damaged", "mismatch", "absent"}
    heal(store, values)
    store.close()
    with_index = DiskStore(folder)
    assert read_all(with_index, values) == len(values)
    with_index.close()


def test_a_deleted_segment_is_gone_and_refilled(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    store = DiskStore(folder)
    tools.segments(folder)[0].unlink()
    assert read_all(store, values) < len(values)
    assert "gone" in reasons(store)
    assert reasons(store) <= {"gone", "absent"}
    assert store.events.stats.damaged >= 1
    heal(store, values)
    store.close()


def test_who_remembers_what_is_kept_hears_of_damage_and_loss(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    store, other = DiskStore(folder), DiskStore(folder)
    path = tools.segments(folder)[0]
    before = other.removals()
    for place in range(64, path.stat().st_size, 97):
        flip(path, place, 1)
    assert read_all(store, values) < len(values)
    assert store.events.stats.damaged
    assert other.removals() != before
    before = other.removals()
    for each in tools.segments(folder):
        each.unlink()
    fresh = DiskStore(folder)
    assert read_all(fresh, values) == 0
    assert other.removals() != before
    for each in (store, other, fresh):
        each.close()


def test_a_segment_deleted_before_opening_is_noticed_when_opening(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    for path in tools.segments(folder):
        path.unlink()
    store = DiskStore(folder)
    assert store.info().entries == 0
    assert read_all(store, values) == 0
    assert reasons(store) == {"absent"}
    assert store.events.stats.damaged >= 1
    heal(store, values)
    store.close()


def test_segments_that_changed_places_serve_nothing_wrong(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    first, second = tools.segments(folder)[:2]
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    store = DiskStore(folder)
    read_all(store, values)
    assert reasons(store) <= {"damaged", "mismatch", "absent"}
    heal(store, values)
    store.close()


# --- the index -------------------------------------------------------------------------------------------------------


def spoil_nothing_but_the_file(folder: Path) -> None:
    (folder / "index.db").unlink()


def zero(folder: Path) -> None:
    size = (folder / "index.db").stat().st_size
    with (folder / "index.db").open("r+b") as file:
        file.write(bytes(size))


def zero_all_but_the_first_page(folder: Path) -> None:
    size = (folder / "index.db").stat().st_size
    with (folder / "index.db").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(size - 4096))


def cut(folder: Path) -> None:
    os.truncate(folder / "index.db", (folder / "index.db").stat().st_size // 2)


def empty(folder: Path) -> None:
    os.truncate(folder / "index.db", 0)


def write_text(folder: Path) -> None:
    (folder / "index.db").write_text("this is no database\n" * 500)


def put_another_database_there(folder: Path) -> None:
    (folder / "index.db").unlink()
    other = apsw.Connection(str(folder / "index.db"))
    other.execute("CREATE TABLE songs(title)")
    other.close()


SPOILERS = [
    spoil_nothing_but_the_file,
    zero,
    zero_all_but_the_first_page,
    cut,
    empty,
    write_text,
    put_another_database_there,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_lost_or_spoilt_index_is_rebuilt_with_nothing_missing_and_nothing_raised(
    spoil: Callable[[Path], None], folder: Path, tools: Any
) -> None:
    values = expected(tools, large=False)
    spoil(folder)
    store = DiskStore(folder)
    store.get(tools.key(0))  # damage deep in the file shows at the first use
    assert read_all(store, values) == len(values)
    assert store.get_many([tools.key(number, "gone") for number in range(5)]) == [None] * 5
    assert store.info().capacity_bytes == 64 << 20
    assert store.put(tools.key(0, "new"), b"new")
    heal(store, values)
    store.close()
    again = DiskStore(folder)
    assert read_all(again, values) == len(values)
    assert again.events.stats.damaged == 0
    again.close()


def fuzz_index(rounds: int, seed: int, template: Path, tmp_path: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    draw = random.Random(seed)
    for number in range(rounds):
        folder = Path(shutil.copytree(template, tmp_path / f"stash{number}"))
        index = folder / "index.db"
        size = index.stat().st_size
        for _each in range(draw.choice([1, 3, 30, 300])):
            offset = draw.randrange(100 if draw.random() < 0.05 else size)
            flip(index, offset, draw.choice([0xFF, 1, 2, 4, 8, 16, 32, 64, 128]))
        try:
            store = DiskStore(folder)
            read_all(store, values)
            list(store.entries())
            store.info()
            store.contains_many(list(values))
            store.pin_many(list(values)[:3])
            store.delete_many([tools.key(each, "gone") for each in range(5)])
            store.verify(repair=True)
            heal(store, values)
            store.evict(1 << 19)
            assert store.clear().entries >= 0
            heal(store, values)
            store.close()
            reopened = DiskStore(folder)
            heal(reopened, values)
            reopened.close()
        except Exception as error:
            raise AssertionError(f"round {number} of seed {seed}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)


def test_flipped_bytes_in_the_index_never_raise_or_lie_and_heal(template: Path, tmp_path: Path, tools: Any) -> None:
    fuzz_index(25, 5, template, tmp_path, tools)


@pytest.mark.parametrize("name", ["state", "granted", "tail", "records", "live", "n_slots"])
def test_an_index_whose_columns_have_other_names_is_made_anew(
    name: str, template: Path, tmp_path: Path, tools: Any
) -> None:
    """As one flipped bit in its schema makes it: whatever asks for the column first, the store opens."""
    values = expected(tools, large=False)
    folder = Path(shutil.copytree(template, tmp_path / "stash"))
    index = (folder / "index.db").read_bytes()
    old, new = f" {name} INTEGER".encode(), f" {name[:-1]}_ INTEGER".encode()
    assert index.count(old) == 1
    (folder / "index.db").write_bytes(index.replace(old, new))
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    heal(store, values)
    store.close()


def test_words_in_the_index_that_are_no_text_are_damage(template: Path, tmp_path: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    for number, word in enumerate([b"damage/", next((template / "segments").iterdir()).stem.encode()]):
        folder = Path(shutil.copytree(template, tmp_path / f"stash{number}"))
        index = (folder / "index.db").read_bytes()
        assert word in index
        (folder / "index.db").write_bytes(index.replace(word, word[:-1] + b"\xc9"))
        for change in (False, True):
            store = DiskStore(folder)
            read_all(store, values)
            list(store.entries())
            store.info()
            if change:
                heal(store, values)
                assert store.verify().damaged == []
            store.close()


def test_an_index_that_claims_a_format_nobody_may_write_is_made_anew(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    flip(folder / "index.db", 18, 0x08)
    store = DiskStore(folder)
    assert store.put(tools.key(0), values[tools.key(0)], namespace="damage/0")
    assert read_all(store, values) == len(values)
    store.close()


def test_verify_finds_an_index_that_is_out_of_order_and_makes_it_anew(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    index = bytearray((folder / "index.db").read_bytes())
    for page in range(4096, len(index), 4096):
        n_cells = int.from_bytes(index[page + 3 : page + 5], "big")
        if index[page] == 0x0D and n_cells > 10:  # a leaf of a table: two of its cells change places
            left, right = page + 8 + 2 * 2, page + 8 + 2 * 7
            index[left : left + 2], index[right : right + 2] = index[right : right + 2], index[left : left + 2]
    (folder / "index.db").write_bytes(index)
    store = DiskStore(folder)
    assert read_all(store, values) < len(values)
    report = store.verify()
    assert "the index" in report.damaged[0]
    assert report.entries == len(values)
    assert store.verify().ok
    assert read_all(store, values) == len(values)
    store.close()


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_flipped_bytes_in_the_index_at_length(template: Path, tmp_path: Path, tools: Any) -> None:
    seed = int.from_bytes(os.urandom(2), "little")
    fuzz_index(500, seed, template, tmp_path, tools)


def test_flipped_bytes_in_the_log_of_a_killed_writer_never_lie(
    tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    values = expected(tools, large=False)

    def write_and_stay(folder: Path) -> None:
        store = DiskStore(folder, capacity_bytes=64 << 20)
        put_all(store, tools, large=False)
        os._exit(0)

    draw = random.Random(6)
    for number in range(12):
        folder = tmp_path / f"stash{number}"
        child = start_child(write_and_stay, folder)
        os.waitpid(child.pid, 0)
        log = folder / "index.db-wal"
        assert log.stat().st_size > 4096
        for _each in range(draw.choice([1, 4, 50])):
            flip(log, draw.randrange(log.stat().st_size))
        store = DiskStore(folder)
        read_all(store, values)
        heal(store, values)
        store.close()


@pytest.mark.parametrize("spoil", SPOILERS)
def test_an_index_spoilt_under_an_open_store_harms_neither_process(
    spoil: Callable[[Path], None], tmp_path: Path, start_child: Callable[..., Any], tools: Any
) -> None:
    folder = tmp_path / "stash"
    values = expected(tools, large=False)
    to_child, from_child = os.pipe(), os.pipe()

    def stay_open() -> dict[str, Any]:
        store = DiskStore(folder, capacity_bytes=64 << 20)
        put_all(store, tools, large=False)
        os.write(from_child[1], b"x")
        os.read(to_child[0], 1)
        kept = [store.put(tools.key(number, "child"), tools.value(number, 500)) for number in range(30)]
        found = read_all(store, values)
        os.write(from_child[1], b"x")
        os.read(to_child[0], 1)
        theirs = store.get_many([tools.key(number, "parent") for number in range(30)])
        store.close()
        return {"kept": sum(kept[1:]), "found": found, "theirs": sum(each is not None for each in theirs)}

    child = start_child(stay_open)
    os.read(from_child[0], 1)
    spoil(folder)
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    os.write(to_child[1], b"x")
    os.read(from_child[0], 1)
    for number in range(30):
        assert store.put(tools.key(number, "parent"), tools.value(number, 600))
    os.write(to_child[1], b"x")
    assert child.result() == {"kept": 29, "found": len(values), "theirs": 30}
    mine = store.get_many([tools.key(number, "child") for number in range(1, 30)])
    assert mine == [tools.value(number, 500) for number in range(1, 30)]
    assert store.verify().ok
    store.close()
    again = DiskStore(folder)
    assert read_all(again, values) == len(values)
    again.close()
    for end in (*to_child, *from_child):
        os.close(end)


# --- rows that lie ---------------------------------------------------------------------------------------------------


def edit_index(folder: Path, sql: str, *bindings: Any) -> int:
    """Run `sql` on the index of a closed store."""
    connection = apsw.Connection(str(folder / "index.db"))
    connection.execute(sql, bindings)
    changed = connection.changes()
    connection.close()
    return changed


def test_a_record_moved_under_another_key_is_a_mismatch_not_a_wrong_hit(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    ours, other = tools.key(5), tools.key(12)  # of one size
    assert len(values[ours]) == len(values[other])
    assert values[ours] != values[other]
    sql = "UPDATE entries SET (place, gen) = (SELECT place, gen FROM entries WHERE key = ?) WHERE key = ?"
    assert edit_index(folder, sql, other, ours) == 1
    store = DiskStore(folder)
    assert store.get(ours) is None
    assert tools.misses(store) == {"mismatch": 1}
    assert store.get(other) == values[other]
    heal(store, values)
    store.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("size", 2**62),
        ("size", 2**64 - 1),
        ("size", 2**31),
        ("off", 2**64 - 5),
        ("off", 2**62),
        ("head", 0),
        ("head", 1),
        ("head", 2**31),
        ("head", 2**32 - 1),
        ("seg", 0),
        ("seg", 999_999),
        ("seg", 2**32 - 1),
        ("slot", 2**31),
        ("slot", 2**32 - 1),
        ("gen", -1),
        ("exp", -1),
        ("exp", "never"),
        ("exp", 2**63 - 1),
        ("pinned", 77),
        ("place", "many"),
        ("place", "many more than one might think"[:28]),
        ("place", b"blob"),
        ("place", b""),
        ("place", bytes(28)),
        ("place", b"\xff" * 28),
        ("place", 1.5),
        ("key", 5),
        ("key", b""),
    ],
)
def test_a_row_with_absurd_numbers_is_a_miss_at_most(column: str, value: Any, folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    connection = apsw.Connection(str(folder / "index.db"))
    assert tools.spoil_rows(connection, column, value) == len(values)
    connection.close()
    store = DiskStore(folder)
    read_all(store, values)
    list(store.entries())
    store.verify(repair=True)
    store.evict(1 << 20)
    heal(store, values)
    store.close()


def test_a_damaged_entry_shows_in_verify_and_is_gone_after_repair(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    path = tools.segments(folder)[0]
    content = path.read_bytes()
    key = next(key for key, value in values.items() if len(value) == 30_000 and value in content)
    flip(path, content.rfind(values[key]) + 100)
    store = DiskStore(folder)
    report = store.verify()
    assert len(report.damaged) == 1
    assert key.hex() in report.damaged[0]
    assert not report.repaired
    assert store.verify(repair=True).repaired
    assert store.verify().ok
    assert not store.contains(key)
    heal(store, values)
    store.close()


# --- the other files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x" * 77, b"\xff" * 100_000, None])
def test_a_spoilt_or_lost_recency_file_costs_no_entry(content: bytes | None, folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    if content is None:
        (folder / "recency").unlink()
    else:
        (folder / "recency").write_bytes(content)
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    store.put_many([Write(tools.key(number, "more"), bytes(2000)) for number in range(500)])
    store.evict(1 << 20)
    heal(store, values)
    store.close()


def test_a_recency_file_removed_under_an_open_store_is_made_anew(folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    store = DiskStore(folder)
    (folder / "recency").unlink()
    assert read_all(store, values) == len(values)
    other = DiskStore(folder)
    assert other.put(tools.key(1, "other"), b"other")
    assert store.get(tools.key(1, "other")) == b"other"
    assert read_all(other, values) == len(values)
    other.close()
    store.close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"capacity_bytes": "50GB"}', '{"capacity_bytes": -3}', '{"capacity_bytes": 1.5}', "null"]
)
def test_a_spoilt_description_costs_nothing_while_the_index_is_sound(text: str, folder: Path, tools: Any) -> None:
    values = expected(tools, large=False)
    (folder / "stash.json").write_text(text)
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    assert store.info().capacity_bytes == 64 << 20
    store.close()


@pytest.mark.parametrize("text", ["{", '{"capacity_bytes": "50GB"}', '{"capacity_bytes": -3}'])
def test_a_spoilt_description_and_a_lost_index_together_give_the_default_limit(
    text: str, folder: Path, tools: Any
) -> None:
    values = expected(tools, large=False)
    (folder / "stash.json").write_text(text)
    (folder / "index.db").unlink()
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    capacity = store.info().capacity_bytes
    assert capacity is not None
    assert capacity > 64 << 20
    store.close()


def test_the_files_of_strangers_are_left_alone(folder: Path, tmp_path: Path, tools: Any) -> None:
    outside = tmp_path / "thesis.txt"
    outside.write_text("outside")
    strangers = {
        folder / "notes.txt": b"mine",
        folder / "index.db.backup": b"mine",
        folder / "segments" / "notes.txt": b"mine",
        folder / "segments" / "short.seg": b"mine",
        folder / "segments" / f"{'a' * 32}.seg": b"not a segment at all, but longer than a header " * 40,
        folder / "segments" / f"{'B' * 32}.seg": b"mine",
        folder / "segments" / f"{'c' * 32}.seg.part": b"mine",
    }
    for path, content in strangers.items():
        path.write_bytes(content)
    (folder / "segments" / f"{'d' * 32}.seg").symlink_to(outside)
    (folder / "segments" / f"{'e' * 32}.seg").mkdir()
    os.mkfifo(folder / "segments" / f"{'f' * 32}.seg")
    names = sorted(path.name for path in folder.rglob("*") if "seg" not in path.name or path in strangers)

    def all_there() -> bool:
        return (
            all(path.read_bytes() == content for path, content in strangers.items())
            and outside.read_text() == "outside"
            and (folder / "segments" / f"{'d' * 32}.seg").is_symlink()
            and (folder / "segments" / f"{'e' * 32}.seg").is_dir()
            and (folder / "segments" / f"{'f' * 32}.seg").is_fifo()
        )

    values = expected(tools, large=False)
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    assert all_there()
    store.prune(lambda entry: entry.nbytes > 1000)
    store.prune(namespace="damage/1")
    store.evict(1 << 19)
    assert all_there()
    store.clear()
    assert all_there()
    assert store.info().entries == 0
    put_all(store, tools, large=False)
    store.close()
    for path in folder.glob("index.db*"):
        if path not in strangers:
            path.unlink()
    store = DiskStore(folder)
    assert read_all(store, values) == len(values)
    store.clear()
    store.close()
    DiskStore(folder).close()
    assert all_there()
    assert set(names) <= {path.name for path in folder.rglob("*")} | {"index.db-wal", "index.db-shm"}
