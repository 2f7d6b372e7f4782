"""Rows of the index and headers of records as arrays, and whether they say the same."""

from __future__ import annotations

import numpy as np

from lmstash.store.base import KEY_BYTES
from lmstash.store.disk.files.format import FLAG_PINNED, FORMAT_VERSION, HEADER, PLAIN_ENTRY, RECORD_MAGIC
from lmstash.store.disk.files.rows import FAR, PLACE, IndexDamagedError
from lmstash.store.disk.files.segment import SegmentFile

HEADER_DTYPE = np.dtype(
    [
        ("total", "<u8"),
        ("magic", "S4"),
        ("version", "u1"),
        ("type", "u1"),
        ("flags", "<u2"),
        ("head", "<u4"),
        ("meta", "<u4"),
        ("payload", "<u8"),
        ("key", "u1", 32),
        ("parent", "u1", 32),
        ("generation", "<u8"),
        ("created", "<u8"),
        ("expires", "<u8"),
        ("seconds", "<f8"),
        ("tokens", "<u4"),
        ("reserved", "<u4"),
        ("namespace", "<u8"),
        ("checksum", "<u8"),
    ]
)
"""`format.HEADER` as numpy says it."""
assert HEADER_DTYPE.itemsize == HEADER.size
_FIRST_WORD = int.from_bytes(PLAIN_ENTRY, "little")
_ALL_BUT_PINNED = np.uint64(2**64 - 1 - (FLAG_PINNED << 48))
_KEY_WORDS = slice(4, 8)
"""Where the key is among the words of a header."""
_NUMBERS = {"seg": "<u4", "off": "<u8", "head": "<u4", "size": "<u8", "slot": "<u4"}
PLACE_DTYPE = np.dtype(list(_NUMBERS.items()))
"""`rows.PLACE` as numpy says it."""
assert PLACE_DTYPE.itemsize == PLACE.size
SEG, OFF, HEAD, SIZE, SLOT = range(5)
"""Columns of what `table_of` returns."""
_MOST_SECONDS = 1e9


def headers_at(data: bytes, starts: list[int]) -> tuple[list[bytes], list[int], list[int], list[int], list[int]] | None:
    """Return key, type, flags, head bytes and payload bytes of the records that start there; None if one does not."""
    if starts[-1] + HEADER.size > len(data):
        return None
    columns = np.array(starts)[:, None] + np.arange(HEADER.size)
    fixed = np.frombuffer(data, np.uint8)[columns].view(HEADER_DTYPE)[:, 0]
    if (fixed["magic"] != RECORD_MAGIC).any() or (fixed["version"] != FORMAT_VERSION).any():
        return None
    names = fixed["key"].tobytes()
    keys = [names[at : at + KEY_BYTES] for at in range(0, len(names), KEY_BYTES)]
    return keys, *(fixed[name].tolist() for name in ("type", "flags", "head", "payload"))


def table_of(places: bytes) -> np.ndarray:
    """Return what the index said of some rows as `[n, 5]` int64, which may make no sense (`must_be_sane`)."""
    rows = np.frombuffer(places, PLACE_DTYPE)
    table = np.empty((len(rows), len(_NUMBERS)), np.int64)
    for column, name in enumerate(_NUMBERS):
        table[:, column] = rows[name]
    return table


def must_be_sane(rows: np.ndarray) -> None:
    """Raise `IndexDamagedError` if places that are there cannot be so."""
    far = (rows[:, OFF : SIZE + 1] < 0) | (rows[:, OFF : SIZE + 1] >= FAR)
    if far.any() or (rows[:, HEAD] > 1 << 20).any() or (rows[:, HEAD] < HEADER.size).any():
        raise IndexDamagedError("rows make no sense")


def as_expected(file: SegmentFile, rows: np.ndarray, keys: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Return which headers say what the index and the asker know: for `rows` asked for by `keys` (`[n, 32]`)."""
    words = fixed.view("<u8").reshape(-1, HEADER.size // 8)  # fields of fewer bytes compare slowly
    good = (words[:, 1] & _ALL_BUT_PINNED) == _FIRST_WORD
    good &= (words[:, _KEY_WORDS] == keys.view("<u8")).all(axis=1)
    plain = HEADER.size + fixed["meta"].astype(np.int64)
    good &= (fixed["head"] == rows[:, HEAD]) & (fixed["payload"] == rows[:, SIZE]) & (plain <= rows[:, HEAD])
    return good & (fixed["namespace"] == file.namespace_hash)


def sane_seconds(seconds: np.ndarray) -> np.ndarray:
    """Return what headers say that values took to compute, 0 where it makes no sense: no checksum covers it here."""
    return np.where((seconds >= 0) & (seconds < _MOST_SECONDS), seconds, 0.0)
