"""Functions in saved requests: described by their source, and found again in the task that is being built."""

from __future__ import annotations

import contextvars
import functools
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmstash.adapters.lmms_eval.who.code_of import ROLES, is_of_task, source_of
from lmstash.errors import LmstashError


@dataclass(frozen=True)
class Building:
    """A task whose requests the harness is building."""

    task: Any
    fingerprint: str
    """Of all that these are made of."""
    wanted: bool
    """Whether the harness was asked to save and load them."""


building: contextvars.ContextVar[Building | None] = contextvars.ContextVar("lmstash_lmms_eval_building", default=None)
"""The task at hand, inside the harness; outside it there is none, and functions come back as None."""


class DetachedError(LmstashError):
    """A function in saved requests is not there any more, or does something else now."""


class Attaching:
    """Describes functions, and finds them again. For one value that is saved or loaded."""

    def __init__(self) -> None:
        """Look where the harness is now."""
        now = building.get()
        self._task = None if now is None else now.task
        self._sources: dict[Any, tuple[Any, str]] = {}

    def describe(self, function: Any) -> dict[str, Any]:
        """Return where a function is found and the digest of its source."""
        if is_of_task(function):
            return {"method": function.__func__.__name__, "source": self._source(function)}
        if isinstance(function, functools.partial):
            role = self._role(function.func)
            if role is not None:
                told = {"config": role, "args": list(function.args), "keywords": dict(function.keywords)}
                return {**told, "source": self._source(function.func)}
            return {"function": _place(function.func), "source": None}
        role = self._role(function)
        if role is not None:
            return {"config": role, "args": None, "keywords": None, "source": self._source(function)}
        bound = isinstance(function, types.MethodType) or "<locals>" in _place(function)
        return {"function": _place(function), "source": None if bound else self._source(function)}

    def find(self, told: Mapping[str, Any]) -> Any:
        """Return the function; None outside the harness.

        Raises:
            DetachedError: Inside it, where the function is not what it was.
        """
        if self._task is None:
            return None
        found = self._find(told)
        if found is None or told["source"] is None or self._source(_inner(found)) != told["source"]:
            raise DetachedError(f"a function of saved requests is not what it was: {_called(told)}")
        return found

    def _find(self, told: Mapping[str, Any]) -> Any:
        if "method" in told:
            return getattr(self._task, told["method"], None)
        if "config" in told:
            function = getattr(getattr(self._task, "config", None), told["config"], None)
            if told["keywords"] is None or not callable(function):
                return function
            return functools.partial(function, *told["args"], **told["keywords"])
        module, _, name = told["function"].partition(":")
        value: Any = sys.modules.get(module)  # nothing is imported because a file says so
        for part in name.split("."):
            value = getattr(value, part, None)
        return value

    def _role(self, function: Any) -> str | None:
        config = getattr(self._task, "config", None)
        return next((role for role in ROLES if getattr(config, role, None) is function), None)

    def _source(self, function: Callable[..., Any]) -> str:
        name = (id(getattr(function, "__self__", None)), id(getattr(function, "__func__", function)))
        if name not in self._sources:
            self._sources[name] = (function, source_of(function))
        return self._sources[name][1]


def _inner(function: Any) -> Any:
    return function.func if isinstance(function, functools.partial) else function


def _place(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None)}:{name}"


def _called(told: Mapping[str, Any]) -> str:
    return str(told.get("method") or told.get("config") or told.get("function"))
