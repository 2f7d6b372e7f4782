"""One byte string per value: the canonical, type-tagged encoding that keys are hashed over.

Every value begins with a tag and is self-delimiting, so no two different values share an encoding: `True` is not `1`,
`1` is not `1.0`, a tuple is not a list, `{1: ...}` is not `{"1": ...}`. The order of a dict's items does not count.
The encoding is part of the key schema (`keys.SCHEMA_VERSION`) and never changes under one version.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from marshal import dumps
from typing import Any

from lmstash.errors import InvalidArgumentError

Component = None | bool | int | float | str | bytes | tuple[Any, ...] | list[Any] | dict[Any, Any]
"""What a key may be made of; tuples, lists and dicts (keys too) of the same, all the way down."""

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_ARRAYS = _SCALARS | {tuple, list}
_NESTED = 4
_UNSHARED = 2
"""The last version of Python's `marshal` in which equal values are written alike, whoever else holds them."""
_LENGTH = struct.Struct(">Q")
_FLOAT = struct.Struct(">d")
_NAN = b"f" + _FLOAT.pack(math.nan)
_pack_length = _LENGTH.pack
_pack_float = _FLOAT.pack


def encode(value: object) -> bytes:
    """Return the canonical encoding of `value`.

    Raises:
        InvalidArgumentError: `value` holds what is not a `Component` (subclasses are not), or nests too deep.
    """
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise InvalidArgumentError(
            f"a key cannot hold {type(value).__module__}.{type(value).__qualname__}{_shown(value)}. "
            "Use None, bool, int, float, str, bytes, or a tuple, list or dict of these."
        )
    try:
        return encoder(value)
    except RecursionError:
        raise InvalidArgumentError("a key component nests too deep, or holds itself. Flatten it.") from None


def snapshot(value: Any) -> bytes | None:
    """Return what tells plain values in a container from all others, and in which order they lie; None for others.

    For this process only, at a twentieth of the cost of `encode`. Dicts within are others: two places may share one.
    """
    held: list[object] = [*value, *value.values()] if isinstance(value, dict) else [*value]
    for _ in range(_NESTED):
        kinds = set(map(type, held))
        if kinds <= _SCALARS:
            try:
                return dumps(value, _UNSHARED)
            except ValueError:  # another thread has put something else there
                return None
        if not kinds <= _ARRAYS:
            return None
        held = [one for each in held if type(each) is list or type(each) is tuple for one in each]
    return None


def _shown(value: object) -> str:
    """Return a value for a message, but for what is made of many: to write that takes longer than all of a reading."""
    if hasattr(type(value), "__len__"):
        return ""
    try:
        return f": {value!r:.80}"
    except Exception:  # other people's objects
        return ""


def _encode_str(value: str) -> bytes:
    try:
        data = value.encode()
    except UnicodeEncodeError:  # lone surrogates, as in undecodable file names
        data = value.encode("utf-8", "surrogatepass")
    return b"s" + _pack_length(len(data)) + data


def _encode_bytes(value: bytes) -> bytes:
    return b"b" + _pack_length(len(value)) + value


def _encode_int(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True)
    return b"i" + _pack_length(len(data)) + data


def _encode_float(value: float) -> bytes:
    return b"f" + _pack_float(value) if value == value else _NAN


def _encode_tuple(value: tuple[object, ...]) -> bytes:
    return b"(" + _pack_length(len(value)) + b"".join([encode(each) for each in value])


def _encode_list(value: list[object]) -> bytes:
    return b"[" + _pack_length(len(value)) + b"".join([encode(each) for each in value])


def _encode_dict(value: dict[object, object]) -> bytes:
    items = sorted([(encode(key), encode(each)) for key, each in value.items()])
    return b"{" + _pack_length(len(items)) + b"".join([part for item in items for part in item])


class Encoded:
    """What stands in a component for another, whose encoding is known: for what is encoded again and again."""

    __slots__ = ("data",)

    def __init__(self, component: object) -> None:
        """Encode `component`. Raises what `encode` does."""
        self.data = encode(component)


_ENCODERS: dict[type, Callable[..., bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: _encode_int,
    float: _encode_float,
    str: _encode_str,
    bytes: _encode_bytes,
    tuple: _encode_tuple,
    list: _encode_list,
    dict: _encode_dict,
    Encoded: lambda value: value.data,
}


def decode(data: bytes) -> Component:
    """Return the value that `encode` made `data` from (dict items come back in canonical order)."""
    value, end = _decode(data, 0)
    if end != len(data):
        raise InvalidArgumentError("the encoding of a key component has bytes left over")
    return value


def _decode(data: bytes, at: int) -> tuple[Component, int]:
    tag = data[at : at + 1]
    at += 1
    if tag in b"NTF":
        return {b"N": None, b"T": True, b"F": False}[tag], at
    if tag == b"f":
        return _FLOAT.unpack_from(data, at)[0], at + 8
    length: int = _LENGTH.unpack_from(data, at)[0]
    at += 8
    if tag in b"sbi":
        raw = data[at : at + length]
        at += length
        if tag == b"b":
            return raw, at
        return raw.decode("utf-8", "surrogatepass") if tag == b"s" else int.from_bytes(raw, "big", signed=True), at
    items: list[Component] = []
    for _ in range(2 * length if tag == b"{" else length):
        item, at = _decode(data, at)
        items.append(item)
    if tag == b"{":
        return dict(zip(items[::2], items[1::2], strict=True)), at
    return (tuple(items) if tag == b"(" else items), at


def to_json(value: object) -> object:
    """Return `value` as JSON-able data that `from_json` turns back into the same value, types included.

    What JSON has no word for becomes an object with one key that starts with `$`.
    """
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        return value if -(2**53) < value < 2**53 else {"$int": hex(value)}
    if type(value) is float:
        return {"$float": repr(value)}
    if type(value) is bytes:
        return {"$bytes": value.hex()}
    if type(value) is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"$str": value.encode("utf-8", "surrogatepass").hex()}
        return value
    if type(value) is tuple:
        return {"$tuple": [to_json(each) for each in value]}
    if type(value) is list:
        return [to_json(each) for each in value]
    if type(value) is dict:
        if all(_plain_name(key) for key in value):
            return {str(key): to_json(each) for key, each in value.items()}
        return {"$dict": [[to_json(key), to_json(each)] for key, each in value.items()]}
    raise InvalidArgumentError(f"a key cannot hold {type(value).__qualname__}")


def from_json(data: object) -> Component:
    """Return the value that `to_json` described.

    Raises:
        ValueError: `data` is not such a description (also KeyError, TypeError, RecursionError on wilder ones).
    """
    if data is None or isinstance(data, bool | int | str):
        return data
    if isinstance(data, list):
        return [from_json(each) for each in data]
    if not isinstance(data, dict):
        raise ValueError(f"{type(data).__name__} is not part of a key's description")
    tag, body = next(iter(data.items())) if len(data) == 1 else ("", None)
    if not str(tag).startswith("$"):
        return {str(key): from_json(each) for key, each in data.items()}
    match tag, body:
        case "$int", str():
            return int(body, 16)
        case "$float", str():
            return float(body)
        case "$bytes", str():
            return bytes.fromhex(body)
        case "$str", str():
            return bytes.fromhex(body).decode("utf-8", "surrogatepass")
        case "$tuple", list():
            return tuple(from_json(each) for each in body)
        case "$dict", list():
            return {from_json(key): from_json(each) for key, each in body}
    raise ValueError(f"{tag!r} is not part of a key's description")


def _plain_name(key: object) -> bool:
    return type(key) is str and not key.startswith("$") and key.isprintable()
