"""Words in code and texts by which it asks for what it does not name: attributes, globals, the environment."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container, Iterable
from typing import Any

ANY_NAME = frozenset({"getattr", "vars", "dir", "__dict__", "getmembers", "attrgetter", "__getattribute__"})
"""By which code reaches what it does not name."""
TABLES = frozenset({"globals", "vars", "eval", "exec"})
"""By which it reaches globals that only its texts name."""
ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb", "expandvars"})
"""By which it reads the environment."""
SOURCE = frozenset({"getsource", "getsourcelines", "getcomments", "findsource"})
"""By which it reads the comments and the layout of code, which nobody else does."""
_MAPPINGS = (os.environ, getattr(os, "environb", os.environ))
_READERS = (os.getenv, getattr(os, "getenvb", os.getenv), os.path.expandvars)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
"""As `os.path.expandvars` finds them."""
_FIELD = re.compile(r"\{([^{}]*)\}")
_ATTRIBUTE = re.compile(r"[.\[]([A-Za-z_]\w*)")
"""Of a field of `str.format` or a template: `{self.name}`."""


class SourceText:
    """Stands among objects for what code reads by one of `SOURCE`."""


def is_environment(value: Any) -> bool:
    """Return whether a value is the environment, or reads it."""
    return any(value is each for each in (*_MAPPINGS, *_READERS))


def variables_under(names: Container[str]) -> dict[Any, Any]:
    """Return digests of the environment's variables that are set under some names, by name. Costs some 30 us."""
    said = sorted(each for each in os.environ.items() if each[0] in names)
    return {name: hashlib.sha256(os.fsencode(value)).hexdigest() for name, value in said}


def words_of(text: str | bytes) -> Iterable[str]:
    """Return what in a text may name an attribute, or a variable of the environment."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    if text.isidentifier():
        return [str(text)]
    fields = _FIELD.findall(text) if "{" in text else []
    return [*_VARIABLE.findall(text), *(name for each in fields for name in _ATTRIBUTE.findall(each))]


def words_within(value: Any) -> set[str]:
    """Return such words of all texts in plain containers."""
    todo, seen, words = [value], set[int](), set[str]()
    while todo:
        each = todo.pop()
        if isinstance(each, str | bytes):
            words.update(words_of(each))
        elif isinstance(each, dict | list | tuple | set | frozenset) and id(each) not in seen:
            seen.add(id(each))
            todo += [*each, *each.values()] if isinstance(each, dict) else each
    return words
