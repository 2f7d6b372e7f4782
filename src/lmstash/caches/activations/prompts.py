"""Prompts as the model sees them: strings, id lists and chat messages become token ids. Tokens are the identity."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np

from lmstash.caches.activations.texts import TextIndex, tokenize
from lmstash.errors import InvalidArgumentError

TEXT_KEPT_CHARACTERS = 200
"""How much of a prompt's text is kept beside its entries, for people to read."""


@dataclass(slots=True, eq=False)
class Prompt:
    """One prompt as token ids, with the text it came from where there was one. Not to be changed.

    May itself be given wherever prompts are taken.
    """

    ids: np.ndarray
    """`[n_tokens]` uint32, C-contiguous."""
    text: str | None = None

    def __len__(self) -> int:
        """Tokens."""
        return len(self.ids)

    @property
    def excerpt(self) -> str | None:
        """The text, cut to what is kept beside entries."""
        return None if self.text is None else self.text[:TEXT_KEPT_CHARACTERS]


def read_prompts(prompts: Sequence[Any], tokenizer: Any = None, index: TextIndex | None = None) -> list[Prompt]:
    """Turn what a user passes into token ids.

    Strings are tokenized in one batch, without truncation or padding and with the tokenizer's own special tokens;
    lists of chat messages go through its chat template. Costs one tokenizer call for all strings, and about 1 us for a
    short list of ids.

    Args:
        prompts: Strings, sequences of token ids (lists, tuples, 1-d arrays or tensors), lists of `{"role", "content"}`
            messages, or `Prompt` objects; kinds may be mixed.
        tokenizer: A transformers tokenizer; needed for strings and messages only.
        index: Spares calling the tokenizer on texts it has seen.

    Raises:
        InvalidArgumentError: For anything else, and for an empty prompt; the message names its index.
    """
    if isinstance(prompts, str | bytes):
        raise InvalidArgumentError("prompts is one string; pass a list of prompts: [text].")
    if isinstance(prompts, Mapping) or not hasattr(prompts, "__len__"):
        raise InvalidArgumentError(f"prompts must be a list; got {type(prompts).__name__}. Use list(...) on iterators.")
    if set(map(type, prompts)) <= {list, tuple} and (plain := _read_ids(prompts)) is not None:
        return plain
    out: list[Prompt | None] = [None] * len(prompts)
    texts: list[int] = []
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            texts.append(place)
        elif isinstance(prompt, Prompt):
            out[place] = Prompt(_as_ids(prompt.ids, place), prompt.text)
        elif _is_chat(prompt):
            out[place] = _render_chat(prompt, tokenizer, place)
        else:
            out[place] = Prompt(_as_ids(prompt, place))
    if texts:
        if tokenizer is None:
            raise InvalidArgumentError("prompts are strings but there is no tokenizer: pass tokenizer=, or token ids.")
        strings = [prompts[place] for place in texts]
        encoded = tokenize(strings, tokenizer) if index is None else index.tokenize(strings)
        for place, text, ids in zip(texts, strings, encoded, strict=True):
            if not len(ids):
                raise _empty(place)
            out[place] = Prompt(ids, text)
    return [prompt for prompt in out if prompt is not None]


def _read_ids(prompts: Sequence[Sequence[Any]]) -> list[Prompt] | None:
    """Return lists of token ids as prompts; None unless they are nothing but that."""
    try:
        whole = np.frombuffer(array("I", chain.from_iterable(prompts)), np.uint32)
    except (TypeError, OverflowError, ValueError):  # messages, or what is no id: told apart one by one
        return None
    lengths = list(map(len, prompts))
    if 0 in lengths:
        raise _empty(lengths.index(0))
    if bool in {type(prompt[0]) for prompt in prompts}:  # an array takes them for numbers
        return None
    ends = accumulate(lengths)
    return [Prompt(whole[end - n_tokens : end]) for end, n_tokens in zip(ends, lengths, strict=True)]


def check_length(n_tokens: int, index: int, name: str, max_tokens: int | None) -> None:
    """Raise InvalidArgumentError unless prompt `index` fits into the context of the model `name`."""
    if max_tokens is not None and n_tokens > max_tokens:
        raise InvalidArgumentError(
            f"prompt {index} has {n_tokens:,} tokens; {name} takes {max_tokens:,}. Shorten it: lmstash never truncates."
        )


def check_vocabulary(ids: np.ndarray, index: int, name: str, vocabulary: int | None) -> None:
    """Raise InvalidArgumentError unless the model `name` knows every id of prompt `index` (a GPU would crash on it)."""
    if vocabulary is not None and (top := int(ids.max())) >= vocabulary:
        raise InvalidArgumentError(
            f"prompt {index} holds the id {top:,}; {name} knows ids below {vocabulary:,}. Is this its own tokenizer?"
        )


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and all(isinstance(turn, Mapping) for turn in prompt)


def _render_chat(messages: Sequence[Any], tokenizer: Any, index: int) -> Prompt:
    if tokenizer is None or not hasattr(tokenizer, "apply_chat_template"):
        raise InvalidArgumentError(
            f"prompt {index} is a list of chat messages; they need tokenizer=, one with a chat template."
        )
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=False)
    # The template writes special tokens itself; adding them again would change what the model sees.
    encoded = tokenizer([rendered], add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return Prompt(_as_ids(encoded["input_ids"][0], index), rendered)


def _as_ids(ids: Any, index: int) -> np.ndarray:
    if hasattr(ids, "detach"):
        ids = ids.detach().cpu().numpy()
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InvalidArgumentError(f"prompt {index} is not a list of token ids: {error}.") from None
    if array.ndim == 1 and array.size == 0:
        raise _empty(index)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"prompt {index} must be a string, a list of token ids or a list of chat messages; got "
            f"{type(ids).__name__} of shape {array.shape} and dtype {array.dtype}."
        )
    if array.dtype == np.uint32:
        return np.ascontiguousarray(array)
    if array.min() < 0 or array.max() >= 2**32:
        raise InvalidArgumentError(f"prompt {index} holds the id {array.min()}..{array.max()}: ids are 0 to 2**32 - 1.")
    return np.ascontiguousarray(array, dtype=np.uint32)


def _empty(index: int) -> InvalidArgumentError:
    return InvalidArgumentError(f"prompt {index} is empty (no tokens): there is nothing to read. Leave it out.")
