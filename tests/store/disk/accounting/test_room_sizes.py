"""The sizes that follow from a limit: segments, steps, reserve and log fit into it whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.store.disk.accounting.recency import REGION_UNIT, SLOT_BYTES
from lmstash.store.disk.accounting.room import MIN_CAPACITY_BYTES, Sizes

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("capacity", "segment"),
    [(2 * MIB, 128 << 10), (16 * MIB, MIB), (100 * MIB, MIB), (GIB, 8 * MIB), (50 * GIB, 256 * MIB), (None, 256 * MIB)],
)
def test_a_segment_is_a_share_of_the_limit(capacity: int | None, segment: int):
    assert Sizes.of(capacity).segment_bytes == pytest.approx(segment, rel=0.6)
    assert Sizes.of(capacity).segment_bytes <= 256 * MIB


@given(st.integers(MIN_CAPACITY_BYTES, 1 << 50))
def test_what_is_set_aside_leaves_most_of_the_limit(capacity: int):
    sizes = Sizes.of(capacity)
    assert 0 < sizes.step_bytes <= sizes.segment_bytes
    assert sizes.reserve_bytes == 2 * sizes.segment_bytes
    aside = sizes.reserve_bytes + sizes.log_bytes + sizes.segment_slots * SLOT_BYTES
    assert aside <= capacity // 3
    assert sizes.segment_slots % REGION_UNIT == 0
    assert sizes.segment_slots > 0


@given(st.integers(MIN_CAPACITY_BYTES, 1 << 50), st.integers(0, 1 << 50))
def test_sizes_grow_with_the_limit(capacity: int, more: int):
    small, large = Sizes.of(capacity), Sizes.of(capacity + more)
    assert small.segment_bytes <= large.segment_bytes
    assert small.step_bytes <= large.step_bytes
    assert small.log_bytes <= large.log_bytes
    assert small.segment_slots <= large.segment_slots
