"""Answers as bytes: a record of the answer, and a record of what was asked.

    form (1 byte, 0)   length of the answer (u32, little-endian)   the answer   the request

Both are records of `lmstash.codecs.records`, so that types come back as they went in and nothing is ever unpickled.
A private stash keeps no request: that part is empty then.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from lmstash.codecs.records import decode_record, decode_records, encode_record
from lmstash.errors import CorruptEntryError, InvalidArgumentError, LmstashError
from lmstash.store.base import Buffer

PLAIN: Final = 0
_HEAD = struct.Struct("<BI")
_read_head = _HEAD.unpack_from
_FAILED: Final = frozenset({"error", "failed", "failure"})
_MOST_NESTED: Final = 50


class UnknownTypeError(LmstashError):
    """An answer is of a type that this process has not registered."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    cls: type
    name: str
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]
    given: bool


_by_class: dict[type, _Codec] = {}
_by_name: dict[str, _Codec] = {}


def register(
    cls: type,
    *,
    name: str | None = None,
    to_plain: Callable[[Any], Any] | None = None,
    from_plain: Callable[[Any], Any] | None = None,
) -> type:
    """Let answers be of type `cls`; may be used as a decorator.

    Dataclasses, named tuples, enums and pydantic models need nothing more. Every process that reads such an answer has
    to register its type: to others it is a miss.

    Args:
        cls: The class; its instances exactly, not those of subclasses.
        name: What it is called in the store; default: its module and qualified name.
        to_plain: Returns what an instance is made of, in values that a record can hold.
        from_plain: Makes an instance of that.

    Raises:
        InvalidArgumentError: Nobody knows how to take an instance apart, or the name is another class's.
    """
    given = to_plain is not None and from_plain is not None
    if to_plain is None or from_plain is None:
        to_plain, from_plain = _known(cls)
    called = name or f"{cls.__module__}.{cls.__qualname__}"
    other = _by_name.get(called)
    if other is not None and other.cls is not cls and other.cls.__qualname__ != cls.__qualname__:
        raise InvalidArgumentError(f"{called!r} names {other.cls} already; give another name=")
    _by_class[cls] = _by_name[called] = _Codec(cls, called, to_plain, from_plain, given)
    return cls


def _known(cls: type) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if dataclasses.is_dataclass(cls):
        names = [each.name for each in dataclasses.fields(cls) if each.init]
        if len(names) == len(dataclasses.fields(cls)):
            return lambda value: {name: getattr(value, name) for name in names}, lambda plain: cls(**plain)
    if issubclass(cls, enum.Enum):
        return lambda value: value.value, cls
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return lambda value: list(value), lambda plain: cls(*plain)
    if hasattr(cls, "model_dump") and hasattr(cls, "model_validate"):
        validate: Callable[[Any], Any] = getattr(cls, "model_validate")  # noqa: B009 (pyright knows no such attribute)
        return lambda value: value.model_dump(mode="json", exclude_unset=True, by_alias=True), validate
    raise InvalidArgumentError(
        f"{cls.__qualname__} is no dataclass with plain fields, named tuple, enum or pydantic model: give to_plain= "
        "and from_plain="
    )


def encode_answer(answer: Any) -> bytes:
    """Return an answer as a record.

    Raises:
        InvalidArgumentError: It holds something of a type that is not registered, or that would come back as another.
    """
    taken: list[str] = []

    def take_apart(value: Any) -> tuple[str, Any] | None:
        parts = _take_apart(value)
        if parts is not None:
            taken.append(parts[0])
        return parts

    encoded = encode_record(answer, take_apart)
    if taken:
        try:
            same = _is_same(answer, decode_answer(encoded))
        except Exception:  # other people's classes are asked
            same = False
        if not same:
            raise InvalidArgumentError(
                f"an answer of type {taken[0]} would come back as another: it is checked, changed or shortened when it "
                "is made. Give to_plain= and from_plain=."
            )
    return encoded


def decode_answer(data: Buffer) -> Any:
    """Return the answer that a record holds; it is the caller's own.

    Raises:
        CorruptEntryError: It is no record.
        UnknownTypeError: It holds something of a type that is not registered here.
    """
    return decode_record(data, _put_together)


def copy_of(encoded: bytes, answer: Any) -> Any:
    """Return an answer of the caller's own, made of its encoded form; `answer` itself where that cannot be."""
    try:
        return decode_answer(encoded)
    except LmstashError:
        return answer


def pack(answer: bytes, request: bytes) -> list[bytes]:
    """Return the value that is kept, in parts: of an encoded answer and an encoded request."""
    return [_HEAD.pack(PLAIN, len(answer)), answer, request]


def unpack(value: Buffer) -> tuple[memoryview, memoryview]:
    """Return the answer and the request of a kept value, both encoded.

    Raises:
        CorruptEntryError: It is no such value.
    """
    view = memoryview(value)
    end = _end_of_answer(view)
    return view[_HEAD.size : end], view[end:]


def read_answer(value: Buffer) -> Any:
    """Return the answer of a kept value; it is the caller's own.

    Raises:
        CorruptEntryError: It is no such value.
        UnknownTypeError: It holds something of a type that is not registered here.
    """
    return decode_record(value[_HEAD.size : _end_of_answer(value)], _put_together)


def read_answers(values: Sequence[Buffer]) -> list[Any]:
    """As `read_answer`, for many at once: small ones cost half.

    Raises:
        CorruptEntryError: One of them is no such value, or nests deeper than a record may.
        UnknownTypeError: One holds something of a type that is not registered here.
    """
    return decode_records([value[_HEAD.size : _end_of_answer(value)] for value in values], _put_together)


def _end_of_answer(value: Buffer) -> int:
    try:
        form, length = _read_head(value)
    except struct.error:
        raise CorruptEntryError("a kept answer is cut short") from None
    end = _HEAD.size + length
    if form != PLAIN or end > len(value):
        raise CorruptEntryError("a kept answer is not laid out as this version knows it")
    return end


def read_back(data: Buffer) -> Any:
    """Return what a kept request says, for people: media come back as what is known of them.

    Raises:
        CorruptEntryError: It is no record.
    """
    return decode_record(data, _as_facts)


def is_kept(answer: Any) -> bool:
    """Whether an answer is worth keeping: neither empty nor a report of failure.

    Empty is None, white space, and a list, tuple or dict of nothing else; numbers and booleans are answers. A dict
    reports a failure by an `error`, or by the `status` or `object` `error`, `failed` or `failure`. What cannot be
    looked at is not kept.
    """
    if type(answer) is str:
        return bool(answer) and not answer.isspace()
    try:
        if isinstance(answer, list | tuple):
            several = bool(answer) and isinstance(answer[0], Mapping)
            if several and any(isinstance(each, Mapping) and _reports_failure(each) for each in answer):
                return False
        elif isinstance(answer, Mapping) and _reports_failure(answer):
            return False
        return not _is_empty(answer, _MOST_NESTED)
    except Exception:  # other people's objects are looked at
        return False


def _reports_failure(answer: Mapping[Any, Any]) -> bool:
    if answer.get("error"):
        return True
    for name in ("status", "object"):
        said = answer.get(name)
        if isinstance(said, str) and said.lower() in _FAILED:
            return True
    return False


def _is_empty(answer: Any, depth: int) -> bool:
    if answer is None:
        return True
    if isinstance(answer, (str, bytes)):
        return not answer or answer.isspace()
    if isinstance(answer, (dict, list, tuple)) and depth > 0:
        return all(_is_empty(each, depth - 1) for each in (answer.values() if isinstance(answer, dict) else answer))
    return False


def _take_apart(value: Any) -> tuple[str, Any] | None:
    codec = _by_class.get(type(value))
    if codec is None:
        return None
    try:
        return codec.name, codec.to_plain(value)
    except Exception as error:
        raise InvalidArgumentError(f"an answer of type {codec.name} cannot be taken apart: {error}") from error


def _is_same(answer: Any, made: Any) -> bool:
    """Whether an answer came back as it went in."""
    if type(answer) is not type(made):
        return False
    if isinstance(answer, float):
        return answer == made or (answer != answer and made != made)
    if isinstance(answer, dict):
        pairs = zip(answer.items(), made.items(), strict=True)
        return all(_is_same(a, b) and _is_same(c, d) for (a, c), (b, d) in pairs)
    if isinstance(answer, list | tuple):
        return len(answer) == len(made) and all(map(_is_same, answer, made))
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        held, back = ({each: getattr(one, each) for each in _names_in(one)} for one in (answer, made))
        return _is_same(held, back)
    if hasattr(answer, "__pydantic_fields_set__"):  # pydantic's own comparison takes an enum and its value for the same
        return all(_is_same(*parts) for parts in zip(_parts_of(answer), _parts_of(made), strict=True))
    if isinstance(answer, enum.Enum):
        return answer is made
    codec = _by_class.get(type(answer))
    if codec is not None and codec.given:  # whoever gave it says what an instance is made of
        return _is_same(codec.to_plain(answer), codec.to_plain(made)) or bool(answer == made)
    return bool(answer == made)


def _parts_of(model: Any) -> tuple[Any, ...]:
    """Return what a pydantic model is made of: its fields, and what was set beside them."""
    held = vars(model)  # one that was made without validation may lack some
    fields = {name: held.get(name) for name in type(model).model_fields}
    return fields, set(model.__pydantic_fields_set__), model.__pydantic_extra__, model.__pydantic_private__


def _names_in(instance: Any) -> list[str]:
    return sorted({*(each.name for each in dataclasses.fields(instance)), *getattr(instance, "__dict__", ())})


def _put_together(name: str, plain: Any) -> Any:
    codec = _by_name.get(name)
    if codec is None:
        raise UnknownTypeError(
            f"an answer of type {name} is kept, which this program has not registered: call "
            "lmstash.caches.responses.register(...)"
        )
    try:
        return codec.from_plain(plain)
    except Exception as error:
        raise CorruptEntryError(f"what is kept makes no {name}: {error}") from error


def _as_facts(name: str, plain: Any) -> Any:
    if name == "media" and isinstance(plain, list) and len(plain) == 2:
        return {"media": plain[0], "sha256": plain[1]}
    return {"type": name, "value": plain}
