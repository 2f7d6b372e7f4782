"""The safetensors header: which tensor lies where in a buffer.

The layout is the public safetensors one (https://github.com/huggingface/safetensors): eight bytes of header length, a
JSON header, then the bytes of all tensors without holes. Two choices are ours and stay within it: the header is padded
with spaces so that the data starts at a multiple of 64 bytes, and tensors lie in order of falling element size, so that
each one is aligned to its elements. The JSON keeps the caller's order. `docs/format.md` says which values are so.

Bytes that cannot be read raise `CorruptEntryError` and nothing else, whatever they hold.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from lmstash.errors import CorruptEntryError, InvalidArgumentError

Buffer = bytes | bytearray | memoryview

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E4M3FNUZ": 1,
        "F8_E5M2": 1,
        "F8_E5M2FNUZ": 1,
        "I16": 2,
        "U16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "U32": 4,
        "F32": 4,
        "I64": 8,
        "U64": 8,
        "F64": 8,
        "C64": 8,
    }
)
"""Every element type that is kept, by its safetensors name."""

ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
"""What every numpy can hold; far above what models make."""

_MAX_TENSOR_BYTES = 2**63 - 1
_MEMO_HEADER_BYTES = 16 * 1024
"""Larger headers are parsed each time: the memo stays within a few megabytes."""

if sys.byteorder != "little":  # pragma: no cover - no such host among the supported ones
    raise ImportError("lmstash keeps tensors in little-endian order as they lie in memory; this host is big-endian.")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies and what it is."""

    name: str
    dtype: str
    """Its safetensors name, for instance `BF16`."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the buffer."""
    nbytes: int
    count: int
    """Elements."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a parsed header says. Shared between callers: do not edit."""

    tensors: Mapping[str, TensorSpec]
    """By name, in the order of the header."""
    metadata: Mapping[str, str]
    data_start: int
    """Bytes from the start of the buffer to the first tensor."""
    nbytes: int
    """Bytes of the whole buffer."""


def view_of(buffer: Buffer) -> memoryview:
    """Return a flat byte view of its own over `buffer`, which thereby cannot be resized while the view lives.

    Raises:
        InvalidArgumentError: `buffer` is no contiguous bytes-like object.
    """
    try:
        view = memoryview(buffer)
        return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"Encoded tensors are read from contiguous bytes; got {type(buffer)!r}.") from error


def read_layout(view: memoryview) -> Layout:
    """Parse and check the header at the start of `view`, which holds exactly one encoding.

    A header seen lately costs about 0.7 us (looked up by its bytes); any thread may call this.

    Raises:
        CorruptEntryError: the bytes are not one whole, gapless safetensors encoding.
    """
    size = len(view)
    if size < 8:
        raise CorruptEntryError(f"A tensor encoding has at least 8 bytes; got {size}.")
    header_bytes = int.from_bytes(view[:8], "little")
    if header_bytes > min(size - 8, MAX_HEADER_BYTES):
        raise CorruptEntryError(f"The tensor header claims {header_bytes} bytes; the buffer has {size}.")
    header = view[8 : 8 + header_bytes].tobytes()
    layout = _parse_known(header) if header_bytes <= _MEMO_HEADER_BYTES else _parse(header)
    if layout.nbytes != size:
        raise CorruptEntryError(f"The tensor header describes {layout.nbytes} bytes; the buffer has {size}.")
    return layout


def build_header(specs: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """Return length and padded header for tensors of (name, dtype, shape), laid out as `data_order` says.

    Raises:
        InvalidArgumentError: a name or metadata item is not valid text, or the header would exceed 100 MB.
    """
    if metadata is None and len(specs) <= 64:
        return _build_known(tuple(specs))
    return _build(specs, metadata)


def data_order(dtypes: Sequence[str]) -> list[int]:
    """Return positions in the order in which the tensors' bytes follow each other: wide elements first."""
    return sorted(range(len(dtypes)), key=lambda position: -ITEM_BYTES[dtypes[position]])


@lru_cache(maxsize=512)
def _build_known(specs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    return _build(specs, None)


def _build(specs: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {}
    if metadata:
        for key, value in metadata.items():
            if type(key) is not str or type(value) is not str:
                raise InvalidArgumentError(f"Tensor metadata maps text to text; got {key!r}: {value!r}. Use str().")
        entries["__metadata__"] = dict(metadata)
    for name, dtype, shape in specs:
        if type(name) is not str or name == "__metadata__":
            raise InvalidArgumentError(f"{name!r} cannot name a tensor: use any str but '__metadata__'.")
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": None}
    offset = 0
    for position in data_order([dtype for _, dtype, _ in specs]):
        name, dtype, shape = specs[position]
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name]["data_offsets"] = [offset, end]
        offset = end
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("Tensor names and metadata must be valid Unicode (no lone surrogates).") from error
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise InvalidArgumentError(f"The tensor header takes {len(text)} bytes, over 100 MB: keep less metadata in it.")
    return len(text).to_bytes(8, "little") + text


@lru_cache(maxsize=512)
def _parse_known(header: bytes) -> Layout:
    return _parse(header)


def _parse(header: bytes) -> Layout:
    if header[:1] != b"{":
        raise CorruptEntryError("The tensor header is not a JSON object.")
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique)
        for name in entries:
            name.encode()
    except (ValueError, RecursionError) as error:
        raise CorruptEntryError(f"The tensor header is not valid JSON: {error}") from error
    data_start = 8 + len(header)
    metadata = entries.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise CorruptEntryError("The metadata in the tensor header does not map text to text.")
    tensors = {name: _spec(name, entry, data_start) for name, entry in entries.items()}
    end = data_start
    for spec in sorted(tensors.values(), key=lambda spec: (spec.offset, spec.nbytes)):
        if spec.offset != end:
            raise CorruptEntryError(f"The tensor header has a hole or an overlap before tensor {spec.name[:80]!r}.")
        end += spec.nbytes
    return Layout(MappingProxyType(tensors), MappingProxyType(metadata), data_start, end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _spec(name: str, entry: Any, data_start: int) -> TensorSpec:
    where = f"The header of tensor {name[:80]!r}"
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptEntryError(f"{where} lacks dtype, shape or data_offsets, or has more than these.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    item_bytes = ITEM_BYTES.get(dtype) if type(dtype) is str else None
    if item_bytes is None:
        raise CorruptEntryError(f"{where} names an unknown dtype: {str(dtype)[:80]!r}.")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise CorruptEntryError(f"{where} has a shape that is not up to {MAX_DIMENSIONS} natural numbers.")
    if not _naturals(offsets) or len(offsets) != 2:
        raise CorruptEntryError(f"{where} has offsets that are not two natural numbers.")
    # A dimension of 0 empties the tensor, but its other dimensions must still make strides that fit.
    span = item_bytes
    for dimension in shape:
        span *= dimension or 1
        if span > _MAX_TENSOR_BYTES:
            raise CorruptEntryError(f"{where} has a shape too large for any memory.")
    count = math.prod(shape)
    if offsets[1] - offsets[0] != count * item_bytes:
        raise CorruptEntryError(f"{where} has offsets that do not fit its shape and dtype.")
    return TensorSpec(name, dtype, tuple(shape), data_start + offsets[0], count * item_bytes, count)


def _naturals(values: Any) -> bool:
    return type(values) is list and all(type(value) is int and value >= 0 for value in values)
