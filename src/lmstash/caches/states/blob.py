"""State blobs of llama.cpp: parsed, cut into payloads of some tokens, and built from payloads again.

Two forms: *whole* (`llama_state_get_data`: the architecture's name, then the memory) and *sequence*
(`llama_state_seq_get_data`: a magic number and a sequence id, then the memory). A blob has no magic of its own for the
memory, no version and no checksum, so every length is checked against what is there before it is used.

A blob built from the payloads of a prompt's tokens is byte for byte what llama.cpp itself would write after evaluating
these tokens (`tests/caches/states/test_blob_on_models.py`). Layout as of llama.cpp 0c1e57098, `llama-kv-cache.cpp`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmstash.caches.states.buffers import buffer
from lmstash.caches.states.layout import (
    CHANNELS_HEADER,
    EXT_BYTES,
    MOST_CHANNELS,
    MOST_LAYERS,
    ROWS_HEADER,
    Layout,
    Part,
    Sides,
    alike,
)
from lmstash.errors import CorruptEntryError

SEQUENCE_MAGIC = 0xAF143CD8
_MOST_ARCH = 128
_MOST_ROW = 1 << 32
_u32 = struct.Struct("<I")
_two_u32 = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class State:
    """A parsed blob: one sequence of tokens at the positions 0, 1, ..."""

    layout: Layout
    n_tokens: int
    data: np.ndarray
    """`[n_bytes]` uint8: the blob."""
    starts: tuple[int, ...]
    """Where the cells of each part begin."""
    rest: int
    """Where what follows the parts begins: the state of recurrent or sliding-window layers."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some tokens of a payload that are used."""

    payload: np.ndarray
    """`[n_bytes]` uint8."""
    n_tokens: int
    """That the payload holds."""
    first: int
    last: int
    """Exclusive."""


def parse(data: object, *, n_parts: int = 1, has_rest: bool = False, sequence: bool = False, arch: str = "") -> State:
    """Return what a blob holds. Costs about a microsecond a layer, and a pass over 12 bytes a token.

    Args:
        data: A buffer: the blob. Its bytes must not change afterwards.
        n_parts: How many KV caches with all tokens it begins with: 0, 1 or 2.
        has_rest: Whether something else follows.
        sequence: It is of the sequence form, which does not name `arch`.
        arch: See `sequence`.

    Raises:
        CorruptEntryError: It is not such a blob, or not of one sequence at the positions 0, 1, ...
    """
    whole = np.frombuffer(data, np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    reader = _Reader(memoryview(whole), 0)
    if sequence:
        if reader.take(_two_u32)[0] != SEQUENCE_MAGIC:
            raise CorruptEntryError("a state does not begin as a sequence does")
    else:
        arch = reader.name()
    if n_parts == 0:
        return State(Layout(arch, 0, ()), 0, whole, (), reader.at)
    errors: list[str] = []
    for ext_bytes in (0, EXT_BYTES):
        try:
            return _parse_parts(whole, _Reader(reader.view, reader.at), arch, n_parts, ext_bytes, has_rest)
        except CorruptEntryError as error:
            errors.append(str(error))
    raise CorruptEntryError(errors[0])


def cut(state: State, first: int, last: int) -> np.ndarray:
    """Return the payload of the tokens from `first` to before `last`: `[n_bytes]` uint8, memory of its own.

    Costs a copy of its bytes.
    """
    out = buffer((last - first) * state.layout.token_bytes)
    n_tokens = last - first
    for (cells, sides), (kept_ext, kept_sides) in zip(
        _blob_views(state.data, state.layout, state.n_tokens, state.starts),
        _payload_views(out, state.layout, n_tokens),
        strict=True,
    ):
        if kept_ext is not None:
            kept_ext[:] = cells[first:last, 8 : 8 + EXT_BYTES]
        for (unit, _, view), (_, kept) in zip(sides, kept_sides, strict=True):
            kept[:] = view[:, :, first * unit : last * unit]
    return out


def build(
    layout: Layout,
    spans: Sequence[Span],
    *,
    rest: object = b"",
    sequence: bool = False,
    room: Callable[[int], np.ndarray] = buffer,
) -> np.ndarray:
    """Return the blob of the tokens in `spans`, one after another: `[n_bytes]` uint8.

    Costs one copy of the bytes.

    Args:
        layout: Of every payload.
        spans: Payloads that hold exactly their `n_tokens`.
        rest: What follows the parts.
        sequence: Make the sequence form (of sequence 0).
        room: Gives `[n_bytes]` uint8 to build it in.

    Raises:
        CorruptEntryError: A payload does not hold what it says.
    """
    n_tokens = sum(span.last - span.first for span in spans)
    for span in spans:
        whole = span.n_tokens * layout.token_bytes == span.payload.nbytes
        if not whole or not 0 <= span.first < span.last <= span.n_tokens:
            raise CorruptEntryError("a piece of a state does not hold the tokens that it says")
    name = layout.arch.encode()
    head = _two_u32.pack(SEQUENCE_MAGIC, 0) if sequence else _u32.pack(len(name)) + name
    tail = np.frombuffer(rest, np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    starts: list[int] = []
    at = len(head)
    for part in layout.parts:
        starts.append(at + 8)
        at += _part_bytes(part, layout, n_tokens)
    out = room(at + tail.nbytes)
    out[: len(head)] = np.frombuffer(head, np.uint8)
    out[at:] = tail
    if not n_tokens:
        for start in starts:
            out[start - 8 : start] = np.frombuffer(_two_u32.pack(1, 0), np.uint8)
        return out
    views = list(_blob_views(out, layout, n_tokens, tuple(starts)))
    for part, start, (cells, sides) in zip(layout.parts, starts, views, strict=True):
        out[start - 8 : start] = np.frombuffer(_two_u32.pack(1, n_tokens), np.uint8)
        _write_cells(cells, n_tokens)
        end = start + n_tokens * layout.cell_bytes
        out[end : end + 8] = np.frombuffer(_two_u32.pack(int(part.v_trans), part.n_layers), np.uint8)
        for alike_sides, (_, headers, _) in zip(part.sides, sides, strict=True):
            headers[:] = np.frombuffer(alike_sides.header, np.uint8)
    at = 0
    for span in spans:
        n = span.last - span.first
        for (cells, sides), (ext, kept_sides) in zip(
            views, _payload_views(span.payload, layout, span.n_tokens), strict=True
        ):
            if ext is not None:
                cells[at : at + n, 8 : 8 + EXT_BYTES] = ext[span.first : span.last]
            for (unit, _, view), (_, kept) in zip(sides, kept_sides, strict=True):
                view[:, :, at * unit : (at + n) * unit] = kept[:, :, span.first * unit : span.last * unit]
        at += n
    return out


def extensions(state: State) -> list[np.ndarray]:
    """Return the extensions of the cells of each part: `[n_tokens, 3]` int32 (x, y, token); nothing without them."""
    if not state.layout.ext_bytes:
        return []
    views = _blob_views(state.data, state.layout, state.n_tokens, state.starts)
    return [np.ascontiguousarray(cells[:, 8 : 8 + EXT_BYTES]).view("<i4") for cells, _ in views]


def blob_bytes(layout: Layout, n_tokens: int) -> int:
    """Return the bytes of the whole form, without a rest."""
    parts = sum(_part_bytes(part, layout, n_tokens) for part in layout.parts)
    return 4 + len(layout.arch.encode()) + parts


# --- where everything lies --------------------------------------------------------------------------------------------

_SideView = tuple[int, np.ndarray, np.ndarray]
"""Bytes of a token in one place, headers `[count, header]`, values `[count, channels or 1, n_tokens * unit]`; uint8."""


def _part_bytes(part: Part, layout: Layout, n_tokens: int) -> int:
    if not n_tokens:
        return 8
    sides = sum(each.count * (len(each.header) + n_tokens * each.row_bytes) for each in part.sides)
    return 8 + n_tokens * layout.cell_bytes + 8 + sides


def _blob_views(
    data: np.ndarray, layout: Layout, n_tokens: int, starts: Sequence[int]
) -> Iterator[tuple[np.ndarray, list[_SideView]]]:
    """Yield for each part its cells `[n_tokens, cell_bytes]`, and of each run of sides what a `_SideView` is."""
    for part, start in zip(layout.parts, starts, strict=True):
        end = start + n_tokens * layout.cell_bytes
        cells = data[start:end].reshape(n_tokens, layout.cell_bytes)
        at = end + 8
        sides: list[_SideView] = []
        for each in part.sides:
            header = len(each.header)
            step = header + n_tokens * each.row_bytes
            headers = np.ndarray((each.count, header), np.uint8, data, at, (step, 1))
            width = n_tokens * each.unit_bytes
            shape = (each.count, each.channels or 1, width)
            sides.append((each.unit_bytes, headers, np.ndarray(shape, np.uint8, data, at + header, (step, width, 1))))
            at += each.count * step
        yield cells, sides


def _payload_views(
    payload: np.ndarray, layout: Layout, n_tokens: int
) -> Iterator[tuple[np.ndarray | None, list[tuple[int, np.ndarray]]]]:
    at = 0
    for part in layout.parts:
        ext = None
        if layout.ext_bytes:
            ext = payload[at : at + n_tokens * EXT_BYTES].reshape(n_tokens, EXT_BYTES)
            at += n_tokens * EXT_BYTES
        sides: list[tuple[int, np.ndarray]] = []
        for each in part.sides:
            n_bytes = each.count * n_tokens * each.row_bytes
            shape = (each.count, each.channels or 1, n_tokens * each.unit_bytes)
            sides.append((each.unit_bytes, payload[at : at + n_bytes].reshape(shape)))
            at += n_bytes
        yield ext, sides


def _write_cells(cells: np.ndarray, n_tokens: int) -> None:
    cells[:, :4] = np.arange(n_tokens, dtype="<i4").view(np.uint8).reshape(n_tokens, 4)
    cells[:, 4:8] = np.frombuffer(_u32.pack(1), np.uint8)
    cells[:, -4:] = 0


# --- reading ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Takes numbers from a blob, never beyond its end."""

    def __init__(self, view: memoryview, at: int) -> None:
        self.view = view
        self.at = at

    @property
    def left(self) -> int:
        return len(self.view) - self.at

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        if self.left < form.size:
            raise CorruptEntryError("a state ends in the middle of a number")
        out = form.unpack_from(self.view, self.at)
        self.at += form.size
        return out

    def skip(self, n_bytes: int) -> None:
        if not 0 <= n_bytes <= self.left:
            raise CorruptEntryError("a state ends before its values do")
        self.at += n_bytes

    def name(self) -> str:
        (length,) = self.take(_u32)
        if not 0 < length <= min(_MOST_ARCH, self.left):
            raise CorruptEntryError("a state does not begin with the name of an architecture")
        name = bytes(self.view[self.at : self.at + length])
        self.at += length
        if not name.isascii() or not name.decode().isprintable():
            raise CorruptEntryError("a state does not begin with the name of an architecture")
        return name.decode()


def _parse_parts(whole: np.ndarray, reader: _Reader, arch: str, n_parts: int, ext_bytes: int, has_rest: bool) -> State:
    parts: list[Part] = []
    starts: list[int] = []
    n_tokens = -1
    for number in range(n_parts):
        n_streams, n_cells = reader.take(_two_u32)
        if n_streams != 1:
            raise CorruptEntryError(f"a state of {n_streams} streams; one is expected")
        if n_tokens not in (-1, n_cells):
            raise CorruptEntryError("the parts of a state differ in their tokens")
        n_tokens = n_cells
        starts.append(reader.at)
        parts.append(_parse_part(whole, reader, n_cells, ext_bytes, last=number == n_parts - 1 and not has_rest))
    if not has_rest and reader.left:
        raise CorruptEntryError(f"a state goes on for {reader.left:,} bytes after its end")
    return State(Layout(arch, ext_bytes, tuple(parts)), n_tokens, whole, tuple(starts), reader.at)


def _parse_part(whole: np.ndarray, reader: _Reader, n_cells: int, ext_bytes: int, *, last: bool) -> Part:
    if not n_cells:
        return Part(False, 1, ())
    start, cell_bytes = reader.at, 12 + ext_bytes
    reader.skip(n_cells * cell_bytes)
    cells = whole[start : reader.at].reshape(n_cells, cell_bytes)
    positions = np.ascontiguousarray(cells[:, :4]).view("<i4").ravel()
    counts = np.ascontiguousarray(cells[:, 4:8]).view("<u4")
    owners = np.ascontiguousarray(cells[:, -4:]).view("<i4")
    if (counts != 1).any() or (owners != owners[0]).any():
        raise CorruptEntryError("a state of several sequences")
    if not np.array_equal(positions, np.arange(n_cells, dtype=np.int32)):
        raise CorruptEntryError("the cells of a state are not at the positions 0, 1, 2, ...")
    v_trans, n_layers = reader.take(_two_u32)
    if v_trans > 1 or not 0 < n_layers <= MOST_LAYERS:
        raise CorruptEntryError("a state does not say how many layers it has")
    sides = [_parse_rows(reader, n_cells) for _ in range(n_layers)]
    # A model without V of its own (MLA) has none here; another part or the end follows.
    n_values = 0 if last and not reader.left else n_layers
    parse_value = _parse_channels if v_trans else _parse_rows
    sides += [parse_value(reader, n_cells) for _ in range(n_values)]
    return Part(bool(v_trans), n_layers, alike(sides))


def _parse_rows(reader: _Reader, n_cells: int) -> tuple[int, int, int]:
    ggml_type, row_bytes = reader.take(ROWS_HEADER)
    if not 0 <= ggml_type < 1 << 10 or not 0 < row_bytes <= _MOST_ROW:
        raise CorruptEntryError("a state does not say what its rows are")
    reader.skip(n_cells * row_bytes)
    return ggml_type, row_bytes, 0


def _parse_channels(reader: _Reader, n_cells: int) -> tuple[int, int, int]:
    ggml_type, unit_bytes, channels = reader.take(CHANNELS_HEADER)
    if not 0 <= ggml_type < 1 << 10 or not 0 < unit_bytes <= 8 or not 0 < channels <= MOST_CHANNELS:
        raise CorruptEntryError("a state does not say what its channels are")
    reader.skip(n_cells * channels * unit_bytes)
    return ggml_type, channels * unit_bytes, channels


__all__ = ["Sides", "Span", "State", "blob_bytes", "build", "cut", "extensions", "parse"]
