"""Promises about sheets: many values of one length, put and fetched together, are what single ones are."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from lmstash.errors import InvalidArgumentError
from lmstash.events import Hit, Miss, Put
from lmstash.store.base import Store, Write
from lmstash.store.sheets import Apart, Sheet, blank_values, fetch_sheets, put_sheets
from lmstash.testing.samples import OpenStore, sample_bytes, sample_key

_SPACE = "sheets/contract"


def sample_sheet(n: int, n_bytes: int, *, first: int = 0, uneven: bool = False, spaced: bool = False) -> Sheet:
    """Return a sheet of `n` values of `n_bytes`, under keys from `first` on, with facts of one or of many lengths.

    With `spaced`, its values lie in a block of `blank_values`.
    """
    values = np.frombuffer(sample_bytes(n * n_bytes, first), np.uint8).reshape(n, n_bytes)
    numbers = range(first, first + n)
    metas = [b'{"number":%d,"text":"%s"}' % (number, b"x" * (number % 97 if uneven else 5)) for number in numbers]
    block = None
    if spaced:
        blank, block = blank_values(n, n_bytes, max(map(len, metas)))
        block[:] = 0xAA
        blank[:] = values
        values = blank
    return Sheet(
        [sample_key(number) for number in numbers],
        values,
        _SPACE,
        metas,
        [sample_key(number - 1) if number % 3 else b"" for number in numbers],
        [0.5 + number for number in numbers],
        list(numbers),
        block=block,
    )


def fetched(store: Store, keys: list[bytes], *, apart: bool = False) -> dict[bytes, tuple[bytes, bytes]]:
    """Return value and parent of each key that some sheet has; no key may be in two."""
    out: dict[bytes, tuple[bytes, bytes]] = {}
    for found in fetch_sheets(store, keys, apart=apart):
        assert {each.dtype for each in found.values} == {np.dtype(np.uint8)}
        assert len({len(each) for each in found.values}) == 1
        for row, place in enumerate(found.places.tolist()):
            assert keys[place] not in out
            assert found.namespace == _SPACE
            out[keys[place]] = found.values[row].tobytes(), found.parent(row)
    return out


def expected(sheet: Sheet) -> dict[bytes, tuple[bytes, bytes]]:
    """Return what `fetched` must say of a sheet."""
    parents = sheet.parents or [b""] * len(sheet)
    rows = zip(sheet.keys, sheet.values, parents, strict=True)
    return {key: (value.tobytes(), parent) for key, value, parent in rows}


class SheetsContract:
    """`put_sheets` and `fetch_sheets`, whether a store has its own or not."""

    @pytest.mark.parametrize("spaced", [False, True])
    @pytest.mark.parametrize("uneven", [False, True])
    @pytest.mark.parametrize(
        ("n", "n_bytes"),
        [(1, 7), (5, 0), (300, 1), (700, 64), (300, 4095), (64, 4096), (5, 70_000), (2, (1 << 20) + 3)],
    )
    def test_a_sheet_comes_back_as_it_was(
        self, open_store: OpenStore, n: int, n_bytes: int, uneven: bool, spaced: bool
    ) -> None:
        """In sheets, one by one, and described."""
        store, sheet = open_store(), sample_sheet(n, n_bytes, uneven=uneven, spaced=spaced)
        assert put_sheets(store, [sheet]) == n
        assert fetched(store, list(sheet.keys)) == expected(sheet)
        singly = store.fetch_many(sheet.keys)
        for number, (entry, value) in enumerate(zip(singly, sheet.values, strict=True)):
            assert entry is not None
            assert bytes(entry.value) == value.tobytes()
            assert entry.parent == sheet.parents[number]
            assert entry.meta == {"number": number, "text": "x" * (number % 97 if uneven else 5)}
            assert (entry.n_tokens, entry.compute_seconds) == (number, 0.5 + number)
            assert entry.expires is None
        assert store.verify().ok

    def test_sheets_of_both_kinds_follow_each_other(self, open_store: OpenStore) -> None:
        """In one call, cut into parts, and put again over what is kept."""
        store = open_store()
        sheets = [sample_sheet(90, 5000, first=1000 * each, spaced=each % 2 == 0) for each in range(6)]
        sheets[2:3] = [sheets[2].part(0, 1), sheets[2].part(1, 50), sheets[2].part(50, 90)]
        for _again in range(2):
            assert put_sheets(store, sheets) == 540
            assert fetched(store, [key for each in sheets for key in each.keys]) == {
                key: value for each in sheets for key, value in expected(each).items()
            }
        assert store.verify().ok

    def test_what_was_put_singly_is_fetched_in_sheets(self, open_store: OpenStore) -> None:
        """Of several lengths, in any order, absent ones between them."""
        store = open_store()
        values = {sample_key(number): sample_bytes((5, 900, 5000)[number % 3], number) for number in range(200)}
        store.put_many([Write(key, value, _SPACE) for key, value in values.items()])
        keys = [sample_key(number) for number in (*range(150, 350), *range(100))]
        there = {key: (values[key], b"") for key in keys if key in values}
        assert fetched(store, keys) == there
        assert fetched(store, [sample_key(999)]) == {}
        assert fetched(store, []) == {}

    def test_hits_and_misses_are_counted_and_told(self, open_store: OpenStore) -> None:
        """Each key once, with what it saved."""
        store, sheet = open_store(), sample_sheet(40, 100)
        told: list[object] = []
        put_sheets(store, [sheet])
        keys = [*sheet.keys, sample_key(1000), sample_key(1001)]
        before = store.events.stats.hits
        assert len(fetched(store, keys)) == 40
        assert store.events.stats.hits == before + 40
        assert store.events.stats.misses["absent"] == 2
        assert store.events.stats.seconds_saved == pytest.approx(sum(sheet.compute_seconds))
        stop = store.events.listen(told.append)
        fetched(store, keys)
        put_sheets(store, [sample_sheet(5, 10, first=500)])
        stop()
        assert {each.key for each in told if isinstance(each, Hit)} == set(sheet.keys)
        assert {each.key for each in told if isinstance(each, Miss) and each.reason == "absent"} >= set(keys[40:])
        assert {each.key for each in told if isinstance(each, Put)} == {sample_key(500 + each) for each in range(5)}

    def test_what_is_kept_already_stays_or_is_replaced(self, open_store: OpenStore) -> None:
        """As asked for; the entries that are new are kept in both cases."""
        store, old = open_store(), sample_sheet(30, 200)
        put_sheets(store, [old])
        new = sample_sheet(60, 200)
        new.values = new.values[::-1].copy()
        assert put_sheets(store, [new], replace=False) == 60
        assert fetched(store, list(new.keys)) == expected(new) | expected(old)
        assert put_sheets(store, [new]) == 60
        assert fetched(store, list(new.keys)) == expected(new)

    def test_several_sheets_are_put_together(self, open_store: OpenStore) -> None:
        """More than a transaction takes, of several lengths."""
        store = open_store()
        sheets = [sample_sheet(900, (40, 50, 60)[part % 3], first=900 * part) for part in range(5)]
        assert put_sheets(store, sheets) == 4500
        together = {key: value for sheet in sheets for key, value in expected(sheet).items()}
        assert fetched(store, list(together)) == together

    def test_a_sheet_expires(self, open_store: OpenStore) -> None:
        """All of its entries, at their time."""
        store, short, long = open_store(), sample_sheet(20, 30), sample_sheet(20, 30, first=100)
        short.ttl_seconds, long.ttl_seconds = 0.05, 3600.0
        put_sheets(store, [short, long])
        time.sleep(0.1)
        assert fetched(store, [*short.keys, *long.keys]) == expected(long)

    def test_who_receives_a_sheet_may_write_into_it(self, open_store: OpenStore) -> None:
        """What is kept does not change, nor does what others were given."""
        store, sheet = open_store(), sample_sheet(50, 500)
        put_sheets(store, [sheet])
        held = list(fetch_sheets(store, sheet.keys))
        for found in held:
            if found.values.flags.writeable:
                found.values[:] = 7
        assert fetched(store, list(sheet.keys)) == expected(sheet)

    def test_values_apart_have_memory_of_their_own(self, open_store: OpenStore) -> None:
        """So that one can be handed on: whoever holds it holds no other, and may write into it."""
        store = open_store()
        sheets = [sample_sheet(20, 70_000), sample_sheet(9, 90_001, first=100), sample_sheet(5, 100, first=200)]
        put_sheets(store, sheets)
        keys = [key for sheet in sheets for key in sheet.keys][::-1]
        there = {key: each for sheet in sheets for key, each in expected(sheet).items()}
        assert fetched(store, keys, apart=True) == there
        large = 0
        for found in fetch_sheets(store, keys, apart=True):
            if isinstance(found, Apart):
                for value in found.values:
                    large += 1
                    owner: Any = value if value.base is None else value.base
                    assert memoryview(owner).nbytes == len(value)
                    if value.flags.writeable:
                        value[:] = 7
            else:
                assert found.values.shape[1] == 100
        assert large == 29
        assert fetched(store, keys, apart=True) == there

    def test_what_is_no_sheet_is_refused(self, open_store: OpenStore) -> None:
        """With a reason, and nothing is kept."""
        store, sheet, spaced = open_store(), sample_sheet(3, 8), sample_sheet(3, 8, spaced=True)
        assert spaced.block is not None
        wrong = [
            Sheet(sheet.keys, sheet.values, _SPACE, block=spaced.block),
            Sheet(sheet.keys, spaced.values, _SPACE),
            Sheet(sheet.keys, spaced.block[:, 1:9], _SPACE, block=spaced.block),
            Sheet(sheet.keys, spaced.values, _SPACE, block=spaced.block[:, 1:]),
            Sheet(sheet.keys[:2], sheet.values, _SPACE),
            Sheet(sheet.keys, sheet.values.view(np.int16), _SPACE),
            Sheet([*sheet.keys[:2], b"short"], sheet.values, _SPACE),
            Sheet([sheet.keys[0]] * 3, sheet.values, _SPACE),
            Sheet(sheet.keys, sheet.values, _SPACE, metas=[b"{}"]),
            Sheet(sheet.keys, sheet.values, _SPACE, metas=[b"no json"] * 3),
            Sheet(sheet.keys, sheet.values, _SPACE, parents=[b"x", b"", b""]),
            Sheet(sheet.keys, sheet.values, "", n_tokens=[1, 2, 3]),
            Sheet(sheet.keys, sheet.values, _SPACE, n_tokens=[1, -2, 3]),
        ]
        for each in wrong:
            with pytest.raises(InvalidArgumentError):
                put_sheets(store, [each])
        assert store.contains_many(sheet.keys) == [False] * 3
