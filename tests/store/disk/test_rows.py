"""Rows of the index: what a damaged one may hand out is told from what can be."""

import pytest

from lmstash.store.disk.rows import IndexDamagedError, Row, checked, sane

ROW = Row(-5, bytes(32), 1, 64, 160, 0, 0, 7, 0, 0)


def test_a_row_that_can_be_is_taken():
    assert sane(ROW)
    assert checked(ROW) == ROW


@pytest.mark.parametrize(
    "wrong", [{"k": None}, {"seg": None}, {"off": -1}, {"head": 0}, {"size": "1"}, {"slot": 2**50}]
)
def test_a_row_that_cannot_be_is_damage(wrong):
    row = ROW._replace(**wrong)
    assert not sane(row)
    with pytest.raises(IndexDamagedError):
        checked(row)
