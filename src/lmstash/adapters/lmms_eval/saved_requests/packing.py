"""Any value of a harness as a record, and back: types kept, live objects left alone, nothing ever unpickled."""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import sys
import types
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import PurePath
from typing import Any

from lmstash.adapters.lmms_eval.saved_requests.attaching import Attaching, DetachedError
from lmstash.adapters.lmms_eval.saved_requests.blobs import Blobs
from lmstash.adapters.lmms_eval.saved_requests.requests import Record, Request, answer_of
from lmstash.errors import CorruptEntryError

INSTANCES = "lmms_eval.api.instance"
_ANSWERED = "lmstash.adapters.lmms_eval.saved_requests.answered"
_OF_HARNESS = {(INSTANCES, name): name for name in ("Instance", "GenerationResult", "TokenCounts")}
_OF_HARNESS[_ANSWERED, "AnsweredInstance"] = "Instance"
"""Names that classes of the harness are kept under, and ours of such."""
_MEDIA = frozenset({"image", "frames", "array", "scalar", "tensor"})
_PLAIN: dict[type, Any] = {
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    int: int.__index__,
    float: float.__float__,
}
"""What a value of a subclass says, whatever that makes of `str(value)`: of a member of an enum its text."""
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)


class Packer:
    """Takes objects apart and puts them together, as `lmstash.codecs.records` asks for it.

    Args:
        blobs: Keeps media.
        attaching: Finds functions again.
    """

    def __init__(self, blobs: Blobs, attaching: Attaching) -> None:
        self._blobs = blobs
        self._attaching = attaching
        self.tasks: set[str] = set()
        """Names of tasks that were met."""

    def take_apart(self, value: Any) -> tuple[str, Any] | None:
        """Return what an object is made of; of one that nobody knows, its class's name and attributes."""
        kind = type(value)
        media = self._blobs.take(value)
        if media is not None:
            return media
        if kind is Request:
            self.tasks.add(str(value.task))
            return "request", dict(vars(value))
        name = _OF_HARNESS.get((kind.__module__, kind.__name__))
        if name is not None:
            if name == "Instance":
                self.tasks.add(str(value.task_name))
            return name, dict(vars(value))
        if isinstance(value, (_FUNCTIONS, type)):
            return "function", self._attaching.describe(value)
        if kind is set or kind is frozenset:
            return kind.__name__, sorted(value, key=repr)
        known = _known(value)
        if known is not None:
            return known
        if isinstance(value, datetime.datetime | datetime.date | datetime.time):
            return kind.__name__, value.isoformat()
        if isinstance(value, PurePath):
            return "path", str(value)
        if isinstance(value, Mapping):
            return "mapping", [_name(kind), dict(value.items())]
        for base, exact in _PLAIN.items():
            if isinstance(value, base):
                return "plain", [_name(kind), exact(value)]
        if isinstance(value, list | tuple):
            return "sequence", [_name(kind), list(value) if isinstance(value, list) else tuple(value)]
        return "object", [_name(kind), _attributes(value)]

    def put_together(self, name: str, made_of: Any) -> Any:
        """Return the object.

        Raises:
            CorruptEntryError: There is no such kind of object.
            DetachedError: It is a function that is not what it was.
        """
        if name in _MEDIA:
            return self._blobs.give(name, made_of)
        if name == "request":
            return Request(**made_of)
        if name in _OF_HARNESS.values():
            return _of_harness(name, made_of)
        if name == "function":
            return self._attaching.find(made_of)
        if name in ("set", "frozenset"):
            return set(made_of) if name == "set" else frozenset(made_of)
        if name in ("datetime", "date", "time"):
            return getattr(datetime, name).fromisoformat(made_of)
        if name in _MAKERS:
            return _MAKERS[name](made_of)
        if name == "path":
            from pathlib import Path

            return Path(made_of)
        if name in ("mapping", "plain", "sequence"):
            return made_of[1]
        if name == "object":
            return Record(*made_of)
        raise CorruptEntryError(f"a saved value holds a {name}, which this version does not know")


def _known(value: Any) -> tuple[str, Any] | None:
    """Return what an object of a class of Python's own is made of, which `_MAKERS` puts together; None for others."""
    kind = type(value)
    if kind is collections.defaultdict and value.default_factory in _FACTORIES.values():
        return "defaultdict", [getattr(value.default_factory, "__name__", ""), dict(value)]
    if kind is collections.OrderedDict or kind is collections.Counter:
        return kind.__name__, dict(value)
    if kind is collections.deque:
        return "deque", [list(value), value.maxlen]
    if kind is decimal.Decimal:
        return "Decimal", str(value)
    if kind is datetime.timedelta:
        return "timedelta", [value.days, value.seconds, value.microseconds]
    if kind is complex:
        return "complex", [value.real, value.imag]
    if kind is bytearray:
        return "bytearray", bytes(value)
    if kind is range:
        return "range", [value.start, value.stop, value.step]
    return None


_FACTORIES: dict[str, Any] = {each.__name__: each for each in (list, dict, set, tuple, int, float, str, bool)} | {
    "": None
}
_MAKERS: dict[str, Callable[[Any], Any]] = {
    "defaultdict": lambda made_of: collections.defaultdict(_FACTORIES[made_of[0]], made_of[1]),
    "OrderedDict": collections.OrderedDict,
    "Counter": collections.Counter,
    "deque": lambda made_of: collections.deque(*made_of),
    "Decimal": decimal.Decimal,
    "timedelta": lambda made_of: datetime.timedelta(*made_of),
    "complex": lambda made_of: complex(*made_of),
    "bytearray": bytearray,
    "range": lambda made_of: range(*made_of),
}


def _of_harness(name: str, fields: Mapping[str, Any]) -> Any:
    """Return an object of the harness where that is loaded; else a `Request`, or a plain record."""
    module = sys.modules.get(INSTANCES)
    if module is not None:
        kind = import_module(_ANSWERED).AnsweredInstance if name == "Instance" else getattr(module, name)
        made = object.__new__(kind)
        made.__dict__.update(fields)
        return made
    if name != "Instance":
        return Record(f"{INSTANCES}.{name}", fields)
    known = {"arguments", "resps", "task_name", "doc_id", "request_type"}
    return Request(
        arguments=fields.get("arguments", ()),
        response=answer_of(fields.get("resps"), fields.get("filtered_resps")),
        task=fields.get("task_name"),
        doc_id=fields.get("doc_id"),
        request_type=fields.get("request_type"),
        metadata={key: value for key, value in fields.items() if key not in known},
    )


def _attributes(value: Any) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        return {"text": repr(value)}
    found: dict[str, Any] = {}
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    found |= getattr(value, "__dict__", {})
    return {str(name): each for name, each in found.items()} or {"text": repr(value)}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


__all__ = ["DetachedError", "Packer"]
