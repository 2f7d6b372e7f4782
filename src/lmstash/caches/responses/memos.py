"""What functions remember (`functools.lru_cache`) of how all was before: an answer made of that is none of now.

Somebody edits a prompt's file in a notebook and asks again: the function that reads it returns what it read first. What
comes of that must not be kept under the file as it is now.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

from lmstash.caches.responses.content import Content
from lmstash.caches.responses.looks import Look

_FILLED: weakref.WeakKeyDictionary[Any, dict[frozenset[str], dict[str, Any]]] = weakref.WeakKeyDictionary()
"""What functions go by, as it was when they began to remember, by what is said to be harmless."""


_READING = ("open", "read", "load", "file", "path", "from_", "glob", "dir", "template", "import", "data", "source")
"""In the names of what reads files."""


def memos_in(look: Look, more: Iterable[Any] = ()) -> dict[str, Any]:
    """Return the functions that remember results among what the code of a call leads to and `more`, by name."""
    found: dict[str, Any] = {}
    held = [*more]
    for code in look.used.values():
        held += [*code.graph.objects.values()]
        held += [inner for cls in code.graph.classes for inner in map(_within, vars(cls).values())]
    for each in held:
        if isinstance(each, functools._lru_cache_wrapper) and isinstance(each.__wrapped__, FunctionType):
            found[each.__wrapped__.__qualname__] = each
    return found


class Memos:
    """The functions that remember, beside a call that computes. For one call.

    Costs about what naming a call of each of them costs; nothing where there is none.
    """

    def __init__(
        self,
        content: Content,
        look: Look,
        named: Mapping[str, Any],
        arguments: Mapping[str, Any],
        files: Mapping[str, Any],
        more: Iterable[Any] = (),
    ) -> None:
        """Look at them before the call computes.

        Args:
            content: Reads the function that is called.
            look: How all was when the call was named.
            named: The arguments of the call.
            arguments: What stands for these.
            files: What the files hold that they name.
            more: Values that are reached, too.
        """
        self._harmless = content.harmless
        self._now: list[tuple[Any, dict[str, Any]]] = []
        self.stale: list[str] = []
        """Those that remember what was before something changed."""
        for called, memo in memos_in(look, more).items():
            try:
                world = _world(content, memo.__wrapped__)
            except Exception:  # objects may do anything when they are looked at
                continue
            if memo.__wrapped__.__code__.co_argcount:  # it may be handed what the call names
                if _may_read(content.last()):
                    world |= {f"file {text}": held for text, held in [*look.files.items(), *files.items()]}
                objects = {at: look.used[at[0]].objects.get(at[1]) for at in look.held}
                world |= {f"object {at[1]}": look.held[at] for at, each in objects.items() if _bears(each, memo)}
                world |= {f"of {id(each)}": arguments.get(name) for name, each in named.items() if _bears(each, memo)}
            self._now.append((memo, world))
            if not memo.cache_info().currsize:
                _FILLED.pop(memo, None)
            elif self._differs(memo, world):
                self.stale.append(called)

    def _differs(self, memo: Any, world: dict[str, Any]) -> bool:
        """Whether something was another thing when a function began to remember; notes what was not seen then."""
        before = _FILLED.setdefault(memo, {}).setdefault(self._harmless, {})
        differs = any(name in before and before[name] != held for name, held in world.items())
        before.update({name: held for name, held in world.items() if name not in before})
        return differs

    def note(self) -> None:
        """The call has computed: what is remembered from now on is of now."""
        for memo, world in self._now:
            if memo.cache_info().currsize:
                self._differs(memo, world)


def _within(member: Any) -> Any:
    """Return the function of a member of a class."""
    return getattr(member, "__func__", getattr(member, "fget", member))


def _may_read(look: Look) -> bool:
    """Whether code may read the file that it is handed the name of."""
    names = {name for code in look.used.values() for each in code.graph.functions for name in each.__code__.co_names}
    return any(word in name.lower() for name in names for word in _READING)


def _bears(value: Any, memo: Any) -> bool:
    """Whether a method that remembers may be called of an object."""
    return getattr(type(value), memo.__name__, None) is not None


def _world(content: Content, function: FunctionType) -> dict[str, Any]:
    """Return digests of what a function's results hang on but its arguments.

    Raises:
        InvalidArgumentError: They cannot be told.
    """
    code, _ = content.told(function, {})
    world: dict[str, Any] = {"code": code, "environment": content.environment({})}
    content.files()
    return world | {f"file {text}": held for text, held in content.last().files.items()}
