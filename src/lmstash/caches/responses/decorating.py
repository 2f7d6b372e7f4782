"""`@responses.cached`: what a function returned, kept under its name, its code and its arguments."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from lmstash.caches.responses.asking import KIND
from lmstash.caches.responses.hiding import is_secret
from lmstash.caches.responses.requests import ARGUMENTS, NUMBERS, read_request
from lmstash.errors import InvalidArgumentError
from lmstash.events import MissReason
from lmstash.identity.code import CodeGraph
from lmstash.identity.keys import Key
from lmstash.identity.media import media_of

if TYPE_CHECKING:
    from lmstash.caches.responses.cache import Responses
    from lmstash.caches.responses.shelf import Tags

_SAYS_SAMPLING: Final = NUMBERS | ARGUMENTS | {"do_sample", "seed", "random_seed"}
_PLAIN = (type(None), bool, int, float, str, bytes)
_MOST_NESTED = 100
_MOST_KNOWN = 1000


def decorate(
    cache: Responses,
    fn: Callable[..., Any],
    *,
    tags: Tags | Callable[..., Tags | None] | None = None,
    harmless: Sequence[str] = (),
    ttl_seconds: float | None = None,
) -> Callable[..., Any]:
    """Return `fn` so that each call is computed once: see `Responses.cached`.

    Raises:
        InvalidArgumentError: No function whose result can be kept.
    """
    if isinstance(fn, staticmethod | classmethod | property):
        kind = type(fn).__name__
        raise InvalidArgumentError(f"put @responses.cached under @{kind}, next to the function itself")
    if not isinstance(fn, FunctionType):
        raise InvalidArgumentError(f"@responses.cached takes a function written in Python, not {fn!r:.80}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidArgumentError(f"{fn.__qualname__} yields: what it gives cannot be kept. Return a list.")
    calls = Calls(cache, fn, tags, frozenset(harmless), ttl_seconds)
    # The wrappers name `fn` themselves, so that whoever reads their code (as `CodeGraph` does) is led to it.
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await calls.later(fn, args, kwargs)

        return awaited

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        return calls.now(fn, args, kwargs)

    return called


class Calls:
    """The calls of one decorated function. Threads may share it."""

    def __init__(
        self,
        cache: Responses,
        fn: FunctionType,
        tags: Tags | Callable[..., Tags | None] | None,
        harmless: frozenset[str],
        ttl_seconds: float | None,
    ) -> None:
        """Read nothing yet: what the function names may come to be after it."""
        self._cache = cache
        self._tags = tags
        self._harmless = harmless
        self._ttl_seconds = ttl_seconds
        self._signature = inspect.signature(fn)
        self._name = f"{fn.__module__}.{fn.__qualname__}"
        self._codes: dict[int, _Code] = {}
        self._lock = threading.RLock()
        self._reading = threading.local()

    def now(self, fn: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call."""
        request = self._request(fn, args, kwargs)
        if request is None:
            return fn(*args, **kwargs)
        about = self._about(args, kwargs)
        return self._cache.get_or_compute(
            request, lambda: fn(*args, **kwargs), tags=about, ttl_seconds=self._ttl_seconds
        )

    async def later(self, fn: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of a function that is awaited."""
        request = self._request(fn, args, kwargs)
        if request is None:
            return await fn(*args, **kwargs)
        about = self._about(args, kwargs)
        return await self._cache.get_or_compute_async(
            request, lambda: fn(*args, **kwargs), tags=about, ttl_seconds=self._ttl_seconds
        )

    def _request(self, fn: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Return what a call asks; None, counted as a miss, where that cannot be said or is no call of the function."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            return None  # the function itself says what is wrong
        bound.apply_defaults()
        events = self._cache.store.events
        try:
            code = self._code(fn)
            arguments = {name: self._argument(name, value) for name, value in self._named(bound.arguments).items()}
        except Exception as error:  # objects may do anything when they are looked at
            events.warn_once(f"call {self._name}", "lmstash: calls of %s are not cached: %s", self._name, error)
            events.miss(KIND, b"", MissReason.UNSUPPORTED)
            return None
        request = {"function": self._name, "code": code, "arguments": arguments}
        # Said once more where requests say it, so that a call that samples is known for one.
        sampling = {name: value for name, value in arguments.items() if name in _SAYS_SAMPLING}
        return request | ({"options": sampling} if sampling else {})

    def _named(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, those of `**kwargs` among them, without those that do not count."""
        out: dict[str, Any] = {}
        for name, value in arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                if not value.keys().isdisjoint(self._signature.parameters):
                    raise InvalidArgumentError("two of its arguments have one name, one of them in **kwargs")
                out |= {each: value[each] for each in sorted(value)}
            else:
                out[name] = value
        return {name: value for name, value in out.items() if name not in self._harmless}

    def _argument(self, name: str, value: Any) -> Any:
        try:
            return self._plain(value, _MOST_NESTED)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"argument {name}: {error}") from error

    def _plain(self, value: Any, depth: int) -> Any:
        """Return what stands for an argument in a request.

        Raises:
            InvalidArgumentError: Nobody can tell it from another one of its kind.
        """
        kind = type(value)
        if kind in _PLAIN:
            return value
        if depth <= 0:
            raise InvalidArgumentError(f"it is nested more than {_MOST_NESTED} deep")
        if kind is list or kind is tuple:
            return kind([self._plain(each, depth - 1) for each in value])
        if kind is dict:
            return {self._plain(key, depth - 1): self._plain(each, depth - 1) for key, each in value.items()}
        if isinstance(value, enum.Enum):
            inner = value.value if type(value.value) in _PLAIN else None
            return {"enum": self._code(kind), "name": value.name, "value": inner}
        if isinstance(value, FunctionType | type):
            return {"code of": f"{value.__module__}.{value.__qualname__}", "is": self._code(value)}
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "builtins":
            return {"code of": f"builtins.{value.__qualname__}", "is": "builtin"}
        fields = _fields_of(value)
        if fields is not None:
            about = {name: self._plain(each, depth - 1) for name, each in fields.items()}
            return {"code of": f"{kind.__module__}.{kind.__qualname__}", "is": self._code(kind), "fields": about}
        media = media_of(value)
        if media is not None:
            return media
        raise InvalidArgumentError(
            f"an object of {kind.__module__}.{kind.__qualname__} has no content that lmstash knows how to read. Make "
            "it a dataclass, pass what it stands for, or name the argument in harmless= if it changes no answer"
        )

    def _code(self, code: Any) -> str:
        """Return the digest of a function's or class's code, and of what it leads to. Costs 0.1 ms once it is known.

        Raises:
            InvalidArgumentError: It names an object that nobody can tell from another one of its kind.
        """
        with self._lock:
            known = self._codes.get(id(code))
            if known is None or not known.graph.unchanged():
                if len(self._codes) >= _MOST_KNOWN:
                    self._codes.clear()
                known = self._codes[id(code)] = _Code(code, self._harmless)
        reading: set[int] = vars(self._reading).setdefault("codes", set())
        said = {name: os.environ[name] for name in known.variables if name in os.environ}
        if not (known.objects or said) or id(code) in reading:  # a class may hold an instance of itself
            return known.digest
        reading.add(id(code))
        try:
            held: dict[Any, Any] = {place: self._content(place, value) for place, value in known.objects.items()}
        finally:
            reading.discard(id(code))
        return Key({"code": known.digest, "objects": held, **({"environment": said} if said else {})}).hex

    def _content(self, place: str, value: Any) -> Any:
        """Return what an object that code names is made of now, as a key can hold it."""
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, type | ModuleType | None):
            owner = value.__self__
            return ["builtin", getattr(owner, "__qualname__", getattr(owner, "__name__", None)), value.__qualname__]
        if isinstance(value, re.Pattern):
            return ["pattern", value.pattern, value.flags]
        if isinstance(value, logging.Logger):
            return ["logger"]
        if isinstance(value, functools._lru_cache_wrapper) and isinstance(value.__wrapped__, FunctionType):
            return ["wrapped", self._code(value.__wrapped__)]
        try:
            return ["object", read_request([self._plain(value, _MOST_NESTED)], urls="trust").text]
        except InvalidArgumentError as error:
            name = place.rpartition(":")[2]
            raise InvalidArgumentError(
                f"its code names `{name}`: {error} (a client of the model that the cache is for, say)"
            ) from error

    def _about(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tags | None:
        if not callable(self._tags):
            return self._tags
        try:
            return self._tags(*args, **kwargs)
        except Exception as error:  # a tag is no reason to lose a call
            events = self._cache.store.events
            events.warn_once(f"tags {self._name}", "lmstash: calls of %s have no tags: %r", self._name, error)
            return None


class _Code:
    """The code of a function or class, as it was when it was read."""

    def __init__(self, code: Any, harmless: frozenset[str]) -> None:
        from lmstash.caches.responses.cache import Responses

        self.graph = CodeGraph(installed_by_version=True)
        self.graph.add(code)  # keeps it alive, so that its id stays its own
        units: dict[Any, Any] = {
            name: each for name, each in self.graph.components().items() if not _is_harmless(name, harmless)
        }
        self.digest = Key({"code": units, "packages": self.graph.packages()}).hex
        self.variables = sorted(name for name in self.graph.variables if not is_secret(name))
        self.objects = {
            place: value
            for place, value in self.graph.objects.items()
            if not _is_harmless(place, harmless) and not isinstance(value, Calls | Responses)
        }


def _fields_of(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass or pydantic model; None where it is none, or holds more than its fields."""
    if dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
        more = set(getattr(value, "__dict__", names)) - set(names)
        return None if more else {name: getattr(value, name) for name in names}
    if hasattr(type(value), "model_fields") and hasattr(value, "model_dump") and not value.__pydantic_private__:
        return {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
    return None


def _is_harmless(place: Any, harmless: frozenset[str]) -> bool:
    """Whether a place in the code (`module.function:variable`) is one of an object that changes no answer."""
    _function, colon, variable = str(place).rpartition(":")
    return bool(colon) and variable in harmless
