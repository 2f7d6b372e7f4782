"""Rows of the index: what a damaged one may hand out is told from what can be."""

import pytest

from lmstash.store.disk.files.rows import FAR, PLACE, IndexDamagedError, Row, checked, columns_of, row_of, sane

ROW = Row(-5, bytes(32), 1, 64, 160, 0, 0, 7, 0, 0)


@pytest.mark.parametrize("row", [ROW, Row(2**63 - 1, b"\xff" * 32, 2**32 - 1, FAR - 1, 1, FAR - 1, 2**32 - 1, 7, 8, 1)])
def test_a_row_that_can_be_is_taken(row):
    assert sane(row)
    assert checked(columns_of(row)) == row


@pytest.mark.parametrize(
    "wrong",
    [{"k": None}, {"k": "1"}, {"key": None}, {"off": FAR}, {"head": 0}, {"head": 2**21}, {"size": FAR}, {"gen": None},
     {"gen": -1}, {"exp": "1"}, {"exp": -1}],
)  # fmt: skip
def test_a_row_that_cannot_be_is_damage(wrong):
    with pytest.raises(IndexDamagedError):
        checked(columns_of(ROW._replace(**wrong)))


@pytest.mark.parametrize("place", [None, 1, 1.5, "a" * PLACE.size, b"", bytes(PLACE.size - 1), bytes(PLACE.size + 1)])
def test_a_row_without_a_place_is_damage(place):
    with pytest.raises(IndexDamagedError):
        row_of((-5, bytes(32), place, 7, 0, 0))


@pytest.mark.parametrize("name", ["seg", "off", "head", "size", "slot"])
@pytest.mark.parametrize("value", [None, "1", 1.5])
def test_numbers_of_another_type_are_not_sane(name, value):
    assert not sane(ROW._replace(**{name: value}))
