"""Words in code and texts by which it asks for what it does not name: attributes, globals, the environment."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

ANY_NAME = frozenset({"getattr", "vars", "dir", "__dict__", "getmembers", "attrgetter", "__getattribute__"})
"""By which code reaches what it does not name."""
TABLES = frozenset({"globals", "vars", "eval", "exec"})
"""By which it reaches globals that only its texts name."""
ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "expandvars"})
"""By which it reads the environment."""
RUN = frozenset({"eval", "exec"})
"""By which it runs texts."""
SOURCE = frozenset({"getsource", "getsourcelines", "getcomments", "findsource"})
"""By which it reads the comments and the layout of code, which nobody else does."""
_MAPPINGS = (os.environ, getattr(os, "environb", os.environ))
_READERS = (os.getenv, getattr(os, "getenvb", os.getenv), os.path.expandvars)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
"""As `os.path.expandvars` finds them."""
_FIELD = re.compile(r"\{[{%]?([^{}]{1,500})\}")
"""Of a template: `{config.MODEL}`, `{{ config.MODEL }}`, `{% if config.STRICT %}`."""
_ATTRIBUTE = re.compile(r"[.\[]([A-Za-z_]\w*)")
"""In such a field."""
_WORD = re.compile(r"[^\W\d]\w*")


class SourceText:
    """Stands among objects for what code reads by one of `SOURCE`."""


def is_environment(value: Any) -> bool:
    """Return whether a value is the environment, or reads it."""
    return any(value is each for each in (*_MAPPINGS, *_READERS))


def variables_under(names: Collection[str], without: Callable[[str], bool] = lambda _: False) -> dict[Any, Any]:
    """Return digests of the environment's variables that are set under some names, by name. Costs some 50 us.

    Under what is put together of a name and something else (`f"{kind}_MODEL"`), too: a variable whose name begins with
    one of those that end with `_`, or ends with one that begins with it; where `_` itself is a word, one whose name is
    made of two of them, in capitals or not (`f"{kind}_{name.upper()}"`).

    Args:
        names: Words of the code that reads it.
        without: Says by its name which variable does not count.
    """
    beginnings = tuple(each for each in names if each[-1:] == "_" and each.strip("_"))
    endings = tuple(each for each in names if each[:1] == "_" and each.strip("_"))
    pieces = {each.upper() for each in names} if "_" in names else set[str]()
    said = [
        (name, value)
        for name, value in sorted(os.environ.items())
        if (
            name in names
            or name.startswith(beginnings)
            or name.endswith(endings)
            or (pieces and _is_made_of(name, pieces))
        )
        and not without(name)
    ]
    return {name: hashlib.sha256(os.fsencode(value)).hexdigest() for name, value in said}


def _is_made_of(name: str, pieces: Collection[str]) -> bool:
    """Whether a name is two pieces with `_` between them."""
    cuts = [at for at, each in enumerate(name) if each == "_"]
    return any(name[:at].upper() in pieces and name[at + 1 :].upper() in pieces for at in cuts)


def words_of(text: str | bytes) -> Iterable[str]:
    """Return what in a text may name an attribute, or a variable of the environment."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    return [str(text)] if text.isidentifier() else _VARIABLE.findall(text)


def words_within(value: Any, told: set[str] | None = None) -> set[str]:
    """Return such words of all texts in plain containers.

    Args:
        value: A text, or a container.
        told: Takes all words in the fields of templates among the texts; else those count that name attributes.
    """
    words = set[str]()
    for each in texts_within(value):
        words.update(words_of(each))
        fields = _FIELD.findall(each) if isinstance(each, str) and "{" in each else []
        for field in fields:
            words.update(_ATTRIBUTE.findall(field)) if told is None else told.update(_WORD.findall(field))
    return words


def all_words_in(value: Any) -> set[str]:
    """Return all words of all texts in plain containers: of code that is run as a text."""
    return {word for each in texts_within(value) if isinstance(each, str) for word in _WORD.findall(each)}


def texts_within(value: Any) -> Iterator[str | bytes]:
    """Yield the texts in plain containers."""
    todo, seen = [value], set[int]()
    while todo:
        each = todo.pop()
        if isinstance(each, str | bytes):
            yield each
        elif isinstance(each, dict | list | tuple | set | frozenset) and id(each) not in seen:
            seen.add(id(each))
            todo += [*each, *each.values()] if isinstance(each, dict) else each
