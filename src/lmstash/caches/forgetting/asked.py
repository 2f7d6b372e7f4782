"""What is to be forgotten: a text, the token ids that a tokenizer makes of it, or token ids themselves."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.tokens import TokenIds, token_bytes

Tokenizer = Callable[..., Any]
"""Turns a text, or its bytes, into token ids: a transformers tokenizer, `llm.tokenize`, any function."""

_EITHER = ("add_special_tokens", "add_bos", "special")
"""What decides about special tokens where a tokenizer takes it: ids are made with and without."""
_NEVER = ("padding", "truncation")


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt."""

    text: str | None
    names: list[bytes]
    """The token ids that it may have been given as, distinct, as `token_bytes` makes them."""

    @classmethod
    def of(cls, prompt: str | TokenIds, tokenizer: Tokenizer | None) -> Asked:
        """Read what a person gave.

        Raises:
            InvalidArgumentError: It is neither text nor token ids, or the tokenizer returns none.
        """
        if not isinstance(prompt, str):
            given: Any = prompt
            is_of_tokenizer = isinstance(given, Mapping) and "input_ids" in given
            return cls(None, [_name(given["input_ids"] if is_of_tokenizer else given)])
        if tokenizer is None or not prompt:
            return cls(prompt, [])
        made = [_name(ids) for ids in _tokenized(prompt, tokenizer)]
        return cls(prompt, list(dict.fromkeys(made)))


def _name(ids: Any) -> bytes:
    """Return token ids as bytes, of a single row `[1, n_tokens]`, too."""
    if hasattr(ids, "__len__") and len(ids) == 1:
        only = ids[0]
        ids = only if hasattr(only, "__len__") and getattr(only, "shape", None) != () else ids
    name = token_bytes(ids)
    if not name:
        raise InvalidArgumentError("there is nothing to forget: prompt= has no tokens")
    return name


def _tokenized(text: str, tokenizer: Tokenizer) -> Iterator[Any]:
    """Yield what a tokenizer makes of a text, with special tokens and without, as far as it can be told so."""
    try:
        taken = inspect.signature(tokenizer).parameters
    except (TypeError, ValueError):
        taken = {}
    never = {name: False for name in _NEVER if name in taken}
    either = [name for name in _EITHER if name in taken]
    for chosen in itertools.product((True, False), repeat=len(either)):
        yield _call(tokenizer, text, never | dict(zip(either, chosen, strict=True)))


def _call(tokenizer: Tokenizer, text: str, options: dict[str, bool]) -> Any:
    try:
        made = tokenizer(text, **options)
    except Exception:  # llama.cpp takes bytes, and says so in its own way
        made = tokenizer(text.encode("utf-8", "surrogatepass"), **options)
    if isinstance(made, Mapping):
        return made["input_ids"]
    return getattr(made, "ids", made)
