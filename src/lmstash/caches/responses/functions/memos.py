"""What functions remember (`functools.lru_cache`) of how all was before: an answer made of that is none of now.

Somebody edits a prompt's file in a notebook and asks again: the function that reads it returns what it read first. What
comes of that must not be kept under the file as it is now.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from lmstash.caches.responses.functions.content import Content
from lmstash.caches.responses.functions.looks import Look
from lmstash.identity.dataflow.calls import calls_in
from lmstash.identity.dataflow.expressions import CONST
from lmstash.identity.dataflow.lying_in import attributes_lying_in

_FILLED: weakref.WeakKeyDictionary[Any, dict[frozenset[str], dict[str, Any]]] = weakref.WeakKeyDictionary()
"""What functions go by, as it was when they began to remember, by what is said to be harmless."""

_SEEN_EMPTY: weakref.WeakSet[Any] = weakref.WeakSet()
_STARTING_SECONDS = 0.1
"""So long a program takes to begin, at least; how exactly its own time is known, too."""
_READING = ("open", "read", "load", "file", "path", "from_", "glob", "dir", "template", "import", "data", "source")
"""In the names of what reads files."""
_PLAIN = (type(None), bool, int, float, str, bytes)
_DEEP, _MOST = 4, 1000


def memos_in(look: Look, more: Iterable[Any] = ()) -> list[Any]:
    """Return the functions that remember results among what the code of a call leads to and `more`."""
    left = [*more]
    for code in look.used.values():
        left += code.graph.objects.values()
        left += [getattr(each, "__func__", each) for cls in code.graph.classes for each in vars(cls).values()]
    found: list[Any] = []
    seen = set[int]()
    for _ in range(_DEEP):
        new = {id(each): each for each in left if type(each) not in _PLAIN and id(each) not in seen}
        seen.update(new)
        memos = [each for each in new.values() if isinstance(each, functools._lru_cache_wrapper)]
        found += [each for each in memos if _function_of(each) is not None]
        left = [inner for each in itertools.islice(new.values(), _MOST) for inner in _within(each)]
    return found


def _within(value: Any) -> Iterable[Any]:
    """Return what may remember in what code names: members of containers, attributes of objects, what is wrapped."""
    if isinstance(value, dict):
        return [*value.values()][:_MOST]
    if isinstance(value, list | tuple):
        return value[:_MOST]
    if isinstance(value, functools.partial):
        return [value.func]
    if isinstance(value, property):
        return [value.fget]
    held = {} if isinstance(value, type | ModuleType | FunctionType) else attributes_lying_in(value)
    return [*held.values()][:_MOST]


def _function_of(memo: Any) -> FunctionType | None:
    """Return the function whose results are remembered."""
    wrapped = getattr(memo.__wrapped__, "__func__", memo.__wrapped__)
    return wrapped if isinstance(wrapped, FunctionType) else None


class Memos:
    """The functions that remember, beside a call that computes. For one call.

    Costs about what naming a call of each of them costs; nothing where there is none.
    """

    def __init__(
        self,
        content: Content,
        look: Look,
        named: Mapping[str, Any],
        files: Mapping[str, Any],
        more: Iterable[Any] = (),
    ) -> None:
        """Look at them before the call computes.

        Args:
            content: Reads the function that is called.
            look: How all was when the call was named.
            named: The arguments of the call.
            files: What the files hold that they name.
            more: Values that are reached, too.
        """
        self._harmless = content.harmless
        self._now: list[tuple[Any, dict[str, Any]]] = []
        self.stale: list[str] = []
        """Those that remember what was before something changed."""
        memos: list[Any] = []
        with contextlib.suppress(Exception):  # objects may do anything when they are looked at
            memos = memos_in(look, more)
        for memo in memos:
            with contextlib.suppress(Exception):
                world = self._world(content, look, named, files, memo)
                self._now.append((memo, world))
                if not memo.cache_info().currsize:
                    _FILLED.pop(memo, None)
                    _SEEN_EMPTY.add(memo)
                elif self._differs(memo, world, filled=True):
                    self.stale.append(memo.__qualname__)

    @staticmethod
    def _world(
        content: Content, look: Look, named: Mapping[str, Any], files: Mapping[str, Any], memo: Any
    ) -> dict[str, Any]:
        """Return what the results of a function hang on that remembers, by what it goes by."""
        function = _function_of(memo)
        assert function is not None
        world = _world(content, function)
        if function.__code__.co_argcount:  # it may be handed what the call names
            names = _names_in(content.last()) or {function.__name__, *function.__code__.co_names}
            objects = [each for code in look.used.values() for each in code.objects.values()]
            for value in [*objects, *named.values(), getattr(memo.__wrapped__, "__self__", None)]:
                world |= _attributes(content, value, names)
            if any(word in name.lower() for name in names for word in _READING):
                functions = [each for code in look.used.values() for each in code.graph.functions]
                given = files if _is_handed_more(memo, functions) else {}
                world |= {f"file {text}": each for text, each in [*given.items(), *look.files.items()]}
        return world

    def _differs(self, memo: Any, world: dict[str, Any], *, filled: bool) -> bool:
        """Whether something was another thing when a function began to remember; notes what was not seen then."""
        by_harmless = _FILLED.setdefault(memo, {})
        if self._harmless not in by_harmless:  # nobody has seen it fill: what is younger than the program may be new
            unseen = filled and memo not in _SEEN_EMPTY
            by_harmless[self._harmless] = dict.fromkeys(filter(_is_younger, world)) if unseen else {}
        before = by_harmless[self._harmless]
        differs = any(name in before and before[name] != held for name, held in world.items())
        before.update({name: held for name, held in world.items() if name not in before})
        return differs

    def note(self) -> None:
        """The call has computed: what is remembered from now on is of now."""
        for memo, world in self._now:
            with contextlib.suppress(Exception):
                if memo.cache_info().currsize:
                    self._differs(memo, world, filled=False)


def _is_younger(name: str) -> bool:
    """Whether what a function goes by is a file that changed while the program ran."""
    kind, _, path = name.partition(" ")
    try:
        return kind == "file" and os.stat(path).st_mtime > _BEGAN + _STARTING_SECONDS
    except (OSError, ValueError):  # none of that name here
        return False


def _began() -> float:
    """Return when the program began; where the system does not say it, when this was imported."""
    now = time.time()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return min(now, now - up + ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return now


_BEGAN = _began()


def _names_in(look: Look) -> set[str]:
    """Return the names that the code asks for that was read last."""
    return {name for code in look.used.values() for each in code.graph.functions for name in each.__code__.co_names}


def _attributes(content: Content, value: Any, names: set[str]) -> dict[str, Any]:
    """Return what stands for those attributes of an object that code may ask for."""
    held = {} if isinstance(value, type | ModuleType | FunctionType) else attributes_lying_in(value)
    found: dict[str, Any] = {}
    for name in sorted(names & held.keys()):
        with contextlib.suppress(Exception):
            found[f"attribute {name} of {id(value)}"] = content.argument(name, held[name])
    return found


def _is_handed_more(memo: Any, functions: Iterable[FunctionType]) -> bool:
    """Whether a function that remembers may be called with something that no call writes out."""
    calls = [node for each in functions for _, node in calls_in(each.__code__) if node.parts[0].name == memo.__name__]
    return not calls or any(each.kind != CONST for node in calls for each in node.parts[1:])


def _world(content: Content, function: FunctionType) -> dict[str, Any]:
    """Return digests of what a function's results hang on but its arguments.

    Raises:
        InvalidArgumentError: They cannot be told.
    """
    code, _ = content.told(function, {})
    world: dict[str, Any] = {"code": code, "environment": content.environment({})}
    content.files()
    return world | {f"file {text}": held for text, held in content.last().files.items()}
