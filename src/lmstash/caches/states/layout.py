"""How the K/V rows of a llama.cpp model lie in a state blob, and in what is kept of it.

A blob holds *parts* (one for a plain KV cache, two for models that mix full and sliding-window attention); a part holds
one *side* for the K of each layer, then one for the V of each. A side is a row for each token, or, for V without flash
attention, a channel after another with one element for each token (V transposed).

What is kept of some tokens, a *payload*, has the same bytes without headers: for each part the cell extensions, then
its sides, each for these tokens only. Layouts are text in entries, so that each entry says by itself what it holds.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache

from lmstash.errors import CorruptEntryError

EXT_BYTES = 12
"""Of a cell's extension (M-RoPE position and token), where a model has one."""
MOST_LAYERS = 4096
MOST_CHANNELS = 1 << 24
_MOST_TYPES = 1 << 10
_MOST_TEXT = 64 << 10

ROWS_HEADER = struct.Struct("<iQ")
"""ggml type, bytes of a row."""
CHANNELS_HEADER = struct.Struct("<iII")
"""ggml type, bytes of an element, channels."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Sides that are alike and follow one another."""

    count: int
    ggml_type: int
    row_bytes: int
    """Bytes of one token."""
    channels: int = 0
    """Of transposed V; 0 for rows."""

    @property
    def unit_bytes(self) -> int:
        """Bytes of one token that lie together."""
        return self.row_bytes // self.channels if self.channels else self.row_bytes

    @property
    def header(self) -> bytes:
        """What stands before each side in a blob."""
        if self.channels:
            return CHANNELS_HEADER.pack(self.ggml_type, self.unit_bytes, self.channels)
        return ROWS_HEADER.pack(self.ggml_type, self.row_bytes)


@dataclass(frozen=True, slots=True)
class Part:
    """One KV cache."""

    v_trans: bool
    n_layers: int
    sides: tuple[Sides, ...]


@dataclass(frozen=True)
class Layout:
    """What a model's blobs look like, whatever the number of tokens."""

    arch: str
    ext_bytes: int
    """Of each cell: 0 or 12."""
    parts: tuple[Part, ...]

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of a payload for one token."""
        return sum(self.ext_bytes + sum(sides.count * sides.row_bytes for sides in part.sides) for part in self.parts)

    @property
    def cell_bytes(self) -> int:
        """Bytes that say of a cell where it is: position, one sequence, extension."""
        return 12 + self.ext_bytes

    @cached_property
    def text(self) -> bytes:
        """The layout as it stands in entries."""
        parts = [
            [int(part.v_trans), part.n_layers, [[s.count, s.ggml_type, s.row_bytes, s.channels] for s in part.sides]]
            for part in self.parts
        ]
        return json.dumps([self.arch, self.ext_bytes, parts], separators=(",", ":")).encode()


@lru_cache(maxsize=256)
def decode_layout(text: bytes) -> Layout:
    """Return the layout that `Layout.text` describes.

    Raises:
        CorruptEntryError: It is no such text.
    """
    try:
        if len(text) > _MOST_TEXT:
            raise ValueError("too long")
        arch, ext_bytes, described = json.loads(text)
        parts = tuple(
            Part(bool(v_trans), _within(n_layers, 1, MOST_LAYERS), tuple(_sides(each) for each in sides))
            for v_trans, n_layers, sides in described
        )
        layout = Layout(arch, ext_bytes, parts)
        if type(arch) is not str or ext_bytes not in (0, EXT_BYTES) or len(parts) > 2 or layout.text != text:
            raise ValueError("not as it is written")
        if any(sum(sides.count for sides in part.sides) > 2 * part.n_layers for part in parts):
            raise ValueError("more sides than layers have")
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptEntryError(f"a state's layout cannot be read: {error}") from None
    return layout


def alike(sides: list[tuple[int, int, int]]) -> tuple[Sides, ...]:
    """Return sides, each given as `(ggml type, bytes of a row, channels)`, with those that are alike counted."""
    out: list[Sides] = []
    for ggml_type, row_bytes, channels in sides:
        last = out[-1] if out else None
        if last is not None and (last.ggml_type, last.row_bytes, last.channels) == (ggml_type, row_bytes, channels):
            out[-1] = Sides(last.count + 1, ggml_type, row_bytes, channels)
        else:
            out.append(Sides(1, ggml_type, row_bytes, channels))
    return tuple(out)


def _sides(described: object) -> Sides:
    count, ggml_type, row_bytes, channels = described  # pyright: ignore[reportGeneralTypeIssues]
    sides = Sides(
        _within(count, 1, 2 * MOST_LAYERS),
        _within(ggml_type, 0, _MOST_TYPES),
        _within(row_bytes, 1, 1 << 32),
        _within(channels, 0, MOST_CHANNELS),
    )
    if channels and (row_bytes % channels or row_bytes // channels > 8):
        raise ValueError("channels do not divide a row")
    return sides


def _within(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is not from {least} to {most}")
    return value
