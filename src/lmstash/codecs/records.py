"""Records: Python values as JSON that keeps their types. Nothing is ever unpickled. `docs/format.md`: typed JSON.

What JSON can say is written as plain JSON. The rest is an object with one key that starts with `$`:

    {"$tuple": [...]}  {"$bytes": base64}  {"$int": hex}        more than 64 bits
    {"$float": "nan" | "inf" | "-inf" | 16 hex digits}          the digits are the bits of an unusual NaN
    {"$str": base64 of UTF-8}                                   text with lone surrogates
    {"$dict": [[key, value], ...]}                              a key that is no text or starts with `$`
    {"$object": [name, value]}                                  what the caller's codec took apart

so that a plain object never has such a key, and reading is unambiguous.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Sequence
from json.decoder import scanstring  # pyright: ignore[reportAttributeAccessIssue]
from json.encoder import encode_basestring
from typing import Any

from lmstash.errors import CorruptEntryError, InvalidArgumentError

MAX_DEPTH = 200
"""How deep values may nest, both when written and when read."""

TakeApart = Callable[[Any], tuple[str, Any] | None]
"""Given an object that a record cannot hold: its name and what it is made of, or None."""
PutTogether = Callable[[str, Any], Any]
"""Given a name and what an object was made of, the object."""

_PLAIN = frozenset((type(None), bool))
_SIMPLE = frozenset((type(None), bool, str, float))
"""What JSON says by itself, if the text can be encoded and the number is finite (the encoder finds out)."""
_SIMPLE_WITH_INT = _SIMPLE | {int}
_JOINED, _JOINED_BYTES = 512, 256 << 10
"""Records that are read as one list: so many, and together no longer. Long ones gain nothing by it."""
_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_NAMED_FLOATS = {
    "nan": struct.pack(">d", math.nan),
    "inf": struct.pack(">d", math.inf),
    "-inf": struct.pack(">d", -math.inf),
}


def encode_record(value: Any, take_apart: TakeApart | None = None) -> bytes:
    """Return `value` as UTF-8 JSON from which `decode_record` makes an equal value of the same types.

    Takes None, bool, int, float, str, bytes, list, tuple and dict (with keys of these types), exactly these types:
    a subclass would come back as its base. Order of dicts is kept; the same value gives the same bytes.
    Costs about 3 us for a short request.

    Args:
        value: The value.
        take_apart: Asked about every object of another type.

    Raises:
        InvalidArgumentError: another type, or nested more than `MAX_DEPTH` deep (as a value within itself is).
    """
    try:
        if _is_simple(value, MAX_DEPTH):
            try:
                return (encode_basestring(value) if type(value) is str else _dumps(value)).encode()
            except ValueError:  # a float that is no number, or text with lone surrogates
                pass
        return _dumps(_tag(value, MAX_DEPTH, take_apart)).encode()
    except RecursionError as error:
        raise InvalidArgumentError("The record nests too deep for the stack that is left: flatten it.") from error


def decode_record(data: bytes | bytearray | memoryview, put_together: PutTogether | None = None) -> Any:
    """Return the value that `encode_record` wrote.

    Args:
        data: The bytes.
        put_together: Makes an object of a name and what `take_apart` made of it.

    Raises:
        CorruptEntryError: the bytes are no such record, or nest more than `MAX_DEPTH` deep.
    """
    try:
        text = str(data, "utf-8")
        try:
            if text[:1] == '"':  # as the decoder would, without its three calls on the way
                value, end = scanstring(text, 1, True)
            else:
                value, end = _decoder.raw_decode(text)
        except ValueError:
            value, end = None, -1
        if end != len(text):
            value = _decoder.decode(text)  # white space is around it, or it is no JSON, which this says
        if type(value) is str:
            return value
        if '"$' not in text and text.count("[") + text.count("{") <= MAX_DEPTH:
            return value  # no tags, and not too deep
        return _untag(value, MAX_DEPTH, put_together)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptEntryError(f"The record is damaged: {error}") from error


def decode_records(
    data: Sequence[bytes | bytearray | memoryview], put_together: PutTogether | None = None
) -> list[Any]:
    """As `decode_record`, for many records: those of up to 300 bytes cost half. Holds little beside what it returns.

    They are read as one list of JSON. One that is no record always shows; two that are none, and make two values
    where they are joined, would not: checksums are there for that.

    Raises:
        CorruptEntryError: not as many records, or one that nests too deep: `decode_record` says which.
    """
    out: list[Any] = []
    for start in range(0, len(data), _JOINED):
        part = data[start : start + _JOINED]
        if sum(map(len, part)) > _JOINED_BYTES:
            out += [decode_record(each, put_together) for each in part]
        else:
            out += _decode_joined(part, put_together)
    return out


def _decode_joined(data: Sequence[bytes | bytearray | memoryview], put_together: PutTogether | None) -> list[Any]:
    try:
        text = str(b"[%b]" % b",".join(data), "utf-8")
        values, end = _decoder.raw_decode(text)
        if len(values) != len(data) or end != len(text):
            raise ValueError("these are not as many records")
        if _SIMPLE_WITH_INT.issuperset(map(type, values)):
            return values
        if '"$' not in text and all(_is_flat_enough(bytes(each)) for each in data):
            return values
        return [_untag(value, MAX_DEPTH, put_together) for value in values]
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptEntryError(f"A record is damaged: {error}") from error


def _is_flat_enough(data: bytes) -> bool:
    return data.count(b"[") + data.count(b"{") <= MAX_DEPTH


def _is_simple(value: Any, depth: int) -> bool:
    """Whether JSON says a value by itself, but for odd numbers and odd text."""
    kind = type(value)
    if kind in _SIMPLE:
        return True
    if kind is int:
        return value.bit_length() <= 64
    if depth <= 0:
        return False
    if kind is list:
        return all(_is_simple(item, depth - 1) for item in value)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or key[:1] == "$" or not _is_simple(item, depth - 1):
                return False
        return True
    return False


def _tag(value: Any, depth: int, take_apart: TakeApart | None) -> Any:
    kind = type(value)
    if kind is str:
        return (
            value if value.isascii() or _encodable(value) else {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
        )
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if value.bit_length() <= 64 else {"$int": f"{value:x}"}
    if kind is float:
        return value if math.isfinite(value) else {"$float": _float_name(value)}
    if kind is bytes:
        return {"$bytes": _base64(value)}
    if depth <= 0:
        raise InvalidArgumentError(f"A record may nest {MAX_DEPTH} deep, and not hold itself: flatten it.")
    if kind is list:
        return [_tag(item, depth - 1, take_apart) for item in value]
    if kind is tuple:
        return {"$tuple": [_tag(item, depth - 1, take_apart) for item in value]}
    if kind is dict:
        if all(type(key) is str and key[:1] != "$" and _encodable(key) for key in value):
            return {key: _tag(item, depth - 1, take_apart) for key, item in value.items()}
        pairs = [[_tag(key, depth - 1, take_apart), _tag(item, depth - 1, take_apart)] for key, item in value.items()]
        return {"$dict": pairs}
    taken = None if take_apart is None else take_apart(value)
    if taken is not None:
        return {"$object": [taken[0], _tag(taken[1], depth - 1, take_apart)]}
    raise InvalidArgumentError(
        f"A record holds None, bool, int, float, str, bytes, list, tuple and dict; got {kind.__module__}."
        f"{kind.__qualname__}: convert it first."
    )


def _untag(value: Any, depth: int, put_together: PutTogether | None) -> Any:
    kind = type(value)
    if kind is not list and kind is not dict:
        return value
    if depth <= 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if kind is list:
        return [_untag(item, depth - 1, put_together) for item in value]
    tag = next(iter(value), "")
    if len(value) == 1 and tag[:1] == "$":
        return _untag_one(tag, value[tag], depth, put_together)
    if any(key[:1] == "$" for key in value):
        raise ValueError("a tag beside other keys")
    return {key: _untag(item, depth - 1, put_together) for key, item in value.items()}


def _untag_one(tag: str, body: Any, depth: int, put_together: PutTogether | None) -> Any:
    if tag == "$tuple" and type(body) is list:
        return tuple([_untag(item, depth - 1, put_together) for item in body])
    if tag == "$dict" and type(body) is list:
        pairs = [(_untag(key, depth - 1, put_together), _untag(item, depth - 1, put_together)) for key, item in body]
        return _unique(pairs)
    if tag == "$object" and type(body) is list and put_together is not None:
        name, value = body
        if type(name) is not str:
            raise ValueError("an object without a name")
        return put_together(name, _untag(value, depth - 1, put_together))
    if type(body) is not str:
        raise ValueError(f"tag {tag[:20]} with a body of another type")
    if tag == "$bytes":
        return base64.b64decode(body, validate=True)
    if tag == "$int":
        return int(body, 16)
    if tag == "$float":
        bits = _NAMED_FLOATS.get(body) or bytes.fromhex(body)
        if len(bits) != 8:
            raise ValueError("a float that has not 64 bits")
        return struct.unpack(">d", bits)[0]
    if tag == "$str":
        return base64.b64decode(body, validate=True).decode("utf-8", "surrogatepass")
    raise ValueError(f"unknown tag {tag[:20]}")


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _float_name(value: float) -> str:
    bits = struct.pack(">d", value)
    return next((name for name, known in _NAMED_FLOATS.items() if known == bits), bits.hex())
