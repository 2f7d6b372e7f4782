"""What functions of a model's own code remember (`functools.lru_cache`) of how all was before.

A prompt's file is edited in a notebook, and the evaluation is run again: the function that reads it returns what it
read first. What is answered by that is none of the model as it is now.
"""

from __future__ import annotations

import contextlib
import functools
from types import FunctionType
from typing import Any

from lmstash.caches.responses.functions.content import Content
from lmstash.caches.responses.functions.memos import Memos
from lmstash.identity.code.named_texts import may_be_path
from lmstash.identity.code.owners import is_installed, owner_of
from lmstash.identity.content.held_files import content_of


class Remembered:
    """Looks at such functions when a call of the harness begins. For the thread that calls."""

    def __init__(self, lm: Any) -> None:
        """Take the harness's model; of one that somebody installed there is nothing to see."""
        module = type(lm).__module__
        self._lm = lm
        self._content = None if is_installed(module) else Content(owner_of(module), frozenset())

    def begin(self) -> Memos | None:
        """A call begins; returns the functions that remember, to be told of its end."""
        content = self._content
        if content is None:
            return None
        look = content.begin()
        with contextlib.suppress(Exception):  # what cannot be looked into is told of elsewhere
            content.code(type(self._lm), given=True)
            for each in vars(self._lm).values():
                if isinstance(each, FunctionType | functools._lru_cache_wrapper):
                    content.plain(each)
            content.objects()
            content.files()
        with contextlib.suppress(Exception):
            held = [*vars(self._lm).values()]
            files = {each: content_of(each) for each in held if type(each) is str and may_be_path(each)}
            return Memos(content, look, {"self": self._lm}, files, held)
        return None
