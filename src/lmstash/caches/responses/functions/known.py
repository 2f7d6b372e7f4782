"""Objects of Python and of packages that go by a name or say what they are made of: methods, types, rows, times."""

from __future__ import annotations

import collections
import functools
import gc
import hashlib
import logging
import re
import sys
import threading
import types
import typing
from collections.abc import Callable
from typing import Any

from lmstash.caches.responses.functions.everyday import LOCKS, zone_of
from lmstash.errors import InvalidArgumentError
from lmstash.identity.code.annotations import taken_apart
from lmstash.identity.code.owners import is_installed, owner_of, version_of
from lmstash.identity.code.templates import is_template, parts_of_template
from lmstash.identity.content.tables import table_told
from lmstash.identity.live_tokenizers import LiveTokenizers, is_tokenizer

_WITHOUT_MEANING = (logging.Logger, type(threading.Lock()), type(threading.RLock()))
_TUPLE_GETTER: Any = type(vars(collections.namedtuple("_", "x"))["x"])
_OF_CLASSES = (types.MethodDescriptorType, types.WrapperDescriptorType)
_TEXTS_ARE_VALUES = (typing.Literal, typing.Annotated)
_tokenizers = LiveTokenizers()


def parts_of_known(value: Any) -> list[Any] | None:
    """Return what such an object is made of, the name of its kind first; None for others.

    Raises:
        InvalidArgumentError: It leads to something that it does not hold.
    """
    kind = type(value)
    if value is ...:
        return ["Ellipsis"]
    if isinstance(value, _OF_CLASSES):
        owner = value.__objclass__
        lies_there = is_installed(owner.__module__) and vars(owner).get(value.__name__) is value
        return (
            ["in", owner.__module__, value.__qualname__, version_of(owner_of(owner.__module__))] if lies_there else None
        )
    if isinstance(value, types.BuiltinFunctionType) and type(value.__self__) in (str, bytes, int, float):
        return ["method", value.__name__, value.__self__]
    if isinstance(value, types.MethodWrapperType):
        return ["method", value.__name__, value.__self__]
    if lies_in_its_package(value):
        return ["in", value.__module__, value.__qualname__, version_of(owner_of(value.__module__))]
    if kind is types.MappingProxyType:
        behind = gc.get_referents(value)[0]
        return ["mappingproxy", behind] if type(behind) is dict else None
    if is_template(value):
        return [f"{kind.__module__}.{kind.__qualname__}", version_of("jinja2"), *parts_of_template(value)]
    if is_tokenizer(value):
        return ["tokenizer", *_tokenizers.told(value)]
    table = table_told(value, lambda each: each)
    if table is not None:
        return ["table", table]
    read = _PARTS.get(f"{kind.__module__}.{kind.__qualname__}")
    if read is not None:
        return [f"{kind.__module__}.{kind.__qualname__}", version_of(owner_of(kind.__module__)), *read(value)]
    return _of_type(value)


def parts_of_tool(value: Any) -> list[Any] | None:
    """Return what stands for what a program works by and says little: loggers, locks, functions in C; None for others.

    Such as lie in code, or in an object: an argument has a meaning.
    """
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, type | types.ModuleType | None):
        owner = value.__self__
        return ["builtin", getattr(owner, "__qualname__", getattr(owner, "__name__", None)), value.__qualname__]
    if isinstance(value, re.Pattern):
        return ["pattern", value.pattern, value.flags]
    if isinstance(value, _WITHOUT_MEANING) or (type(value).__module__, type(value).__qualname__) in LOCKS:
        return ["logger" if isinstance(value, logging.Logger) else type(value).__qualname__]
    if type(value).__module__ == "loguru._logger":  # says nothing, either
        return ["logger"]
    if type(value) is threading.Event:
        return ["event", value.is_set()]
    if isinstance(value, _TUPLE_GETTER):
        return ["field", *value.__reduce__()[1]]
    if lies_in_its_package(value):
        return ["in", value.__module__, value.__qualname__, version_of(owner_of(value.__module__))]
    return None


def is_mark(value: Any) -> bool:
    """Whether an object stands for nothing and says nothing: `object()`, and those that dataclasses use."""
    kind = type(value)
    return kind is object or (
        kind.__module__ == "dataclasses" and not getattr(value, "__dict__", hasattr(kind, "__slots__"))
    )


def lies_in_its_package(value: Any) -> bool:
    """Whether an object is what an installed package has under the object's own name: its version says what it is."""
    try:
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    except Exception:  # `__getattr__ = dict.__getitem__`
        return False
    if not isinstance(module, str) or not isinstance(name, str) or not is_installed(module):
        return False
    return vars(sys.modules.get(module, object)).get(name) is value


def _of_type(value: Any) -> list[Any] | None:
    """Return what a type that is written out (`list[int]`, `Literal["a"]`) is made of."""
    apart = taken_apart(value)
    if apart is None:
        return None
    kind, parts = apart
    texts_lead = typing.get_origin(value) not in _TEXTS_ARE_VALUES
    if kind == "ForwardRef" or (texts_lead and any(isinstance(each, str) for each in parts)):
        raise InvalidArgumentError("it is a type that names another one in a text")
    return ["type", f"{type(value).__module__}.{type(value).__qualname__}", getattr(value, "_name", None), kind, parts]


def _secret(secret: Any) -> list[Any]:
    """Return a digest of a secret, which counts and does not show."""
    value = secret.get_secret_value()
    return [hashlib.sha256(value if isinstance(value, bytes) else str(value).encode()).hexdigest()]


def _row(row: Any) -> list[Any]:
    return [{key: row[key] for key in row}]


_PARTS: dict[str, Callable[[Any], list[Any]]] = {
    "pandas.Timestamp": lambda value: [*(value.value, value.unit, value.fold, zone_of(value.tzinfo))],
    "pydantic.type_adapter.TypeAdapter": lambda value: [value._type, value._config],
    "pydantic.types.SecretStr": _secret,
    "pydantic.types.SecretBytes": _secret,
    "datasets.formatting.formatting.LazyRow": _row,
    "datasets.formatting.formatting.LazyBatch": _row,
}
"""By the names of their classes."""


@functools.lru_cache(maxsize=1)
def answerers() -> tuple[type, ...]:
    """Return the classes of what answers for a model."""
    from lmstash.caches.responses.cache import Responses
    from lmstash.caches.responses.functions.decorating import Calls

    return Responses, Calls
