"""The tables of `docs/format.md`, and what they say of bytes: readers that know nothing of the code."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
Row = list[str]
Arrays = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Dtype, shape and bytes by name."""


def tables(heading: str) -> list[list[Row]]:
    """The tables under a heading, as cells without backquotes, each without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    found: list[list[Row]] = []
    before = ""
    for line in re.split(r"^#", section, flags=re.MULTILINE)[0].splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return [table[2:] for table in found]


ITEM_BYTES = {dtype.strip("`"): int(size) for dtype, size, _ in tables("Tensors")[0]}
FLOATS = {code for code in ITEM_BYTES if code.startswith(("F", "BF"))}
_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "U16": "<u2", "U32": "<u4", "I64": "<i8"}


def read_tensors(value: bytes) -> tuple[Arrays, dict[str, str]]:
    """Tensors and metadata, with every promise of "Tensors" checked."""
    (length,) = struct.unpack_from("<Q", value)
    end = 8 + length
    assert end % 64 == 0
    header = json.loads(value[8:end])
    metadata = header.pop("__metadata__", {})
    arrays: Arrays = {}
    covered = 0
    for name, spec in header.items():
        first, last = spec["data_offsets"]
        assert last - first == math.prod(spec["shape"]) * ITEM_BYTES[spec["dtype"]]
        assert not (end + first) % ITEM_BYTES[spec["dtype"]], "aligned to its elements"
        arrays[name] = spec["dtype"], tuple(spec["shape"]), value[end + first : end + last]
        covered += last - first
    assert end + covered == len(value)
    return arrays, metadata


def array(found: tuple[str, tuple[int, ...], bytes]) -> np.ndarray:
    """Numbers of a tensor; bfloat16 by the words of the document."""
    code, shape, data = found
    if code == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, _NUMPY[code]).reshape(shape)


def fits(arrays: Arrays, table: list[Row]) -> None:
    """Every tensor is in the table, with its dtype and a shape in which equal names are equal numbers."""
    known = {re.sub(r"<\w+>", r"\\d+", re.escape(row[0].strip("`"))): row for row in table}
    sizes: dict[tuple[str, str], int] = {}
    for name, (code, shape, _) in arrays.items():
        [(row_name, dtype, shapes, _)] = [row for pattern, row in known.items() if re.fullmatch(pattern, name)]
        assert dtype == "any" or (code in FLOATS if dtype == "float" else code == dtype), (name, code)
        if shapes == "any":
            continue
        said = [each.split(", ") for each in re.findall(r"\[(.*?)\]", shapes)]
        [dimensions] = [each for each in said if len(each) == len(shape)]
        for dimension, size in zip(dimensions, shape, strict=True):
            of = name if "<" in row_name and dimension.isalpha() else ""
            expected = int(dimension) if dimension.isdigit() else sizes.setdefault((of, dimension), size)
            assert size == expected, (name, dimension)


def read_struct(table: list[Row], value: bytes) -> tuple[dict[str, Any], int]:
    """The fields of a table of offsets, and where they end."""
    out: dict[str, Any] = {}
    end = 0
    for offset, size, kind, field, _ in table:
        assert int(offset) == end, "the table leaves no gap"
        end += int(size)
        part = value[int(offset) : end]
        assert len(part) == int(size)
        out[field.strip("`")] = part if kind == "bytes" else int.from_bytes(part, "little")
    return out, end


def typed(data: bytes, named: Callable[[str, Any], Any] = lambda name, value: ("object", name, value)) -> Any:
    """What typed JSON says."""

    def read(value: Any) -> Any:
        if type(value) is list:
            return [read(each) for each in value]
        if type(value) is not dict:
            return value
        tag, body = next(iter(value.items()), ("", None))
        if not tag.startswith("$"):
            assert not any(name.startswith("$") for name in value)
            return {name: read(each) for name, each in value.items()}
        assert len(value) == 1
        return tags[tag](body)

    def real(body: str) -> float:
        return float(body) if body in ("nan", "inf", "-inf") else struct.unpack(">d", bytes.fromhex(body))[0]

    tags: dict[str, Callable[[Any], Any]] = {
        "$tuple": lambda body: tuple(read(each) for each in body),
        "$bytes": base64.b64decode,
        "$int": lambda body: int(body, 16),
        "$float": real,
        "$str": lambda body: base64.b64decode(body).decode("utf-8", "surrogatepass"),
        "$dict": lambda body: {read(name): read(each) for name, each in body},
        "$object": lambda body: named(body[0], read(body[1])),
    }
    assert list(tags) == [row[0].strip("`") for row in tables("Typed JSON")[0]]
    return read(json.loads(data))


def of_key(value: Any) -> Any:
    """What JSON of keys says."""
    if type(value) is list:
        return [of_key(each) for each in value]
    if type(value) is not dict:
        return value
    tag, body = next(iter(value.items()), ("", None))
    if not tag.startswith("$"):
        return {name: of_key(each) for name, each in value.items()}
    tags: dict[str, Callable[[Any], Any]] = {
        "$tuple": lambda body: tuple(of_key(each) for each in body),
        "$bytes": bytes.fromhex,
        "$int": lambda body: int(body, 16),
        "$float": float,
        "$str": lambda body: bytes.fromhex(body).decode("utf-8", "surrogatepass"),
        "$dict": lambda body: {of_key(name): of_key(each) for name, each in body},
    }
    assert list(tags) == [row[0].strip("`") for row in tables("JSON of keys")[0]]
    return tags[tag](body)


def plain(value: bytes) -> bytes:
    """What compressed bytes were."""
    size, shuffled = value[0], zstandard.ZstdDecompressor().decompress(value[1:])
    whole = len(shuffled) // size
    planes = np.frombuffer(shuffled[: whole * size], np.uint8).reshape(size, whole)
    return planes.T.tobytes() + shuffled[whole * size :]
