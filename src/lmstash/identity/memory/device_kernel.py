"""The Triton kernel behind `device_sums`: one pass over the words, at the memory's speed. Imported only where used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

triton: Any = import_module("triton")  # optional, and absent where torch has no use for it
tl: Any = import_module("triton.language")
if TYPE_CHECKING:
    constexpr = int
else:
    constexpr = tl.constexpr


@triton.jit
def chunk_sums(table, out, weights, ROWS: constexpr, LANES: constexpr):  # noqa: D103 - see `device_sums._reference`
    chunk = tl.program_id(0)
    words = tl.load(table + 2 * chunk).to(tl.pointer_type(tl.int32))
    count = tl.load(table + 2 * chunk + 1).to(tl.int32)
    lanes = tl.arange(0, LANES)
    first = tl.zeros((LANES,), tl.int64)
    second = tl.zeros((LANES,), tl.int64)
    other = weights + ROWS + 2 * LANES
    full = count // LANES
    for row in range(full):
        word = tl.load(words + row * LANES + lanes).to(tl.int64)
        first += word * tl.load(weights + row)
        second += word * tl.load(other + row)
    if full * LANES < count:
        place = full * LANES + lanes
        word = tl.load(words + place, mask=place < count, other=0).to(tl.int64)
        first += word * tl.load(weights + full)
        second += word * tl.load(other + full)
    high, low = ROWS + lanes, ROWS + LANES + lanes
    one = (first >> 32) * tl.load(weights + high) + (first & 0xFFFFFFFF) * tl.load(weights + low)
    two = (second >> 32) * tl.load(other + high) + (second & 0xFFFFFFFF) * tl.load(other + low)
    tl.store(out + 2 * chunk, tl.sum(one))
    tl.store(out + 2 * chunk + 1, tl.sum(two))
