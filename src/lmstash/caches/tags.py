"""What people call an entry: words (`tags`), and facts that have a name (`task=gsm8k`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from lmstash.errors import InvalidArgumentError

NAMED: Final = ("task", "doc", "split", "run", "user")
"""The usual facts with a name. Each is one field of an entry's `meta`; words are in its field `tags`."""


def as_words(tags: Iterable[str] | str | None) -> tuple[str, ...]:
    """Return what somebody gives as words: one, several, or none.

    Raises:
        InvalidArgumentError: It is something else.
    """
    words = () if tags is None else (tags,) if isinstance(tags, str) else tags
    if not isinstance(words, Iterable) or isinstance(words, Mapping):
        raise InvalidArgumentError(f"tags={tags!r}: give words, such as ['probe-7'].")
    found = tuple(words)
    if not all(isinstance(each, str) for each in found):
        raise InvalidArgumentError(f"tags={tags!r}: each must be a word, such as 'probe-7'.")
    return found


def has_tag(meta: Mapping[str, Any], tag: str) -> bool:
    """Whether an entry is called `tag`: a word, or `name=value` for a named fact. Both may be patterns (`gsm8k*`)."""
    words = meta.get("tags", ())
    if isinstance(words, list | tuple) and any(is_like(word, tag) for word in words):
        return True
    name, given, value = tag.partition("=")
    return bool(given) and is_like(meta.get(name), value)


def is_like(value: Any, pattern: Any) -> bool:
    """Whether a fact is what is asked for, as it is or as a pattern of `fnmatch` (`*`, `?`, `[abc]`); case counts."""
    if value is None:
        return False
    text, asked = str(value), str(pattern)
    return text == asked or fnmatchcase(text, asked)
