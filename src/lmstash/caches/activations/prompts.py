"""Prompts as the model sees them: strings, id lists and chat messages become token ids. Tokens are the identity."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, overload

import numpy as np

from lmstash.caches.activations.texts import TextIndex, tokenize
from lmstash.errors import InvalidArgumentError
from lmstash.identity.tokens import pack_lists, token_bytes

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


class Prompts(Sequence[Prompt]):
    """Prompts side by side. They come by the ten thousand: an object for each would cost more than its token ids.

    Not to be changed; threads may share it.
    """

    __slots__ = ("lengths", "names", "texts")

    def __init__(
        self, names: list[bytes], texts: list[str | None] | None = None, lengths: list[int] | None = None
    ) -> None:
        """Take the token ids of each as `token_bytes` makes them; `texts` and `lengths` where they are known."""
        self.names = names
        """The token ids of each as bytes, which tell it from others."""
        self.lengths = [len(name) // 4 for name in names] if lengths is None else lengths
        """Tokens of each."""
        self.texts = texts

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> Prompts:
        """Put single prompts side by side."""
        return cls([token_bytes(each.ids) for each in prompts], [each.text for each in prompts])

    def __len__(self) -> int:
        """Prompts."""
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> Prompts: ...
    def __getitem__(self, place: int | slice) -> Prompt | Prompts:
        """Return one prompt, made for the occasion, or some of them."""
        if isinstance(place, slice):
            return Prompts(self.names[place], None if self.texts is None else self.texts[place])
        return Prompt(self.ids(place), self.text(place))

    def ids(self, place: int) -> np.ndarray:
        """Return the token ids of one prompt, `[n_tokens]` uint32; read-only."""
        return np.frombuffer(self.names[place], "<u4")

    def arrays(self) -> list[np.ndarray]:
        """Return the token ids of each, as `ids` does."""
        joined = self._joined()
        return [joined[span] for span in self._spans()]

    def lists(self) -> list[list[int]]:
        """Return the token ids of each as lists of Python's own numbers."""
        joined = self._joined().tolist()
        return [joined[span] for span in self._spans()]

    def _joined(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.names), "<u4")

    def _spans(self) -> Iterator[slice]:
        """Yield where each prompt's ids lie among those of all."""
        return itertools.starmap(slice, itertools.pairwise(itertools.accumulate(self.lengths, initial=0)))

    def highest_id(self) -> int:
        """Return the highest token id of all; 0 where there are no prompts."""
        return int(self._joined().max(initial=0))

    def text(self, place: int) -> str | None:
        """Return the text that one prompt came from, where there was one."""
        return None if self.texts is None else self.texts[place]

    def plain_texts(self) -> list[str]:
        """Return the text of each, empty where there was none."""
        return [text or "" for text in self.texts] if self.texts is not None else [""] * len(self)

    def pick(self, places: Sequence[int]) -> Prompts:
        """Return prompts by their places, in that order."""
        if len(places) == len(self.names) and list(places) == list(range(len(places))):
            return self
        names, lengths = [self.names[place] for place in places], [self.lengths[place] for place in places]
        return Prompts(names, None if self.texts is None else [self.texts[place] for place in places], lengths)


def read_prompts(prompts: Sequence[Any], tokenizer: Any = None, index: TextIndex | None = None) -> Prompts:
    """Turn what a user passes into token ids; `Prompts` pass as they are.

    Strings are tokenized in one batch, without truncation or padding and with the tokenizer's own special tokens;
    lists of chat messages go through its chat template. Costs one tokenizer call for all strings, and about half a
    microsecond for a short list of ids.

    Args:
        prompts: Strings, sequences of token ids (lists, tuples, 1-d arrays or tensors), lists of `{"role", "content"}`
            messages, or `Prompt` objects; kinds may be mixed.
        tokenizer: A transformers tokenizer; needed for strings and messages only.
        index: Spares calling the tokenizer on texts it has seen.

    Raises:
        InvalidArgumentError: For anything else, and for an empty prompt; the message names its index.
    """
    prompts = as_list(prompts)
    if isinstance(prompts, Prompts):
        return prompts
    if set(map(type, prompts)) <= {list, tuple} and (plain := _read_ids(prompts)) is not None:
        return plain
    names: list[bytes] = [b""] * len(prompts)
    texts: list[str | None] = [None] * len(prompts)
    unread: list[int] = []
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            texts[place] = prompt
            unread.append(place)
        elif isinstance(prompt, Prompt):
            names[place], texts[place] = _as_name(prompt.ids, place), prompt.text
        elif _is_chat(prompt):
            names[place], texts[place] = _render_chat(prompt, tokenizer, place)
        else:
            names[place] = _as_name(prompt, place)
    if unread:
        if tokenizer is None:
            raise InvalidArgumentError("prompts are strings but there is no tokenizer: pass tokenizer=, or token ids.")
        strings = [prompts[place] for place in unread]
        encoded = tokenize(strings, tokenizer) if index is None else index.tokenize(strings)
        for place, name in zip(unread, encoded, strict=True):
            if not name:
                raise _empty(place)
            names[place] = name
    return Prompts(names, texts)


def as_list(prompts: Sequence[Any]) -> Sequence[Any]:
    """Return the prompts by their places: a pandas Series goes by its labels, which say another order once sorted.

    Raises:
        InvalidArgumentError: These are no prompts side by side.
    """
    if isinstance(prompts, str | bytes):
        raise InvalidArgumentError("prompts is one string; pass a list of prompts: [text].")
    kind = type(prompts).__name__
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        raise InvalidArgumentError(
            f"prompts is a {kind}, as tokenizers return it. Pass the texts themselves, or its ids if it padded none: "
            'enc["input_ids"].'
        )
    if isinstance(prompts, Mapping) or hasattr(prompts, "columns"):  # these give their names, not their rows
        raise InvalidArgumentError(f"prompts must be a list; got a {kind}. Pass one of its columns.")
    if not hasattr(prompts, "__len__"):
        raise InvalidArgumentError(f"prompts must be a list; got {kind}. Use list(...) on iterators.")
    return prompts if isinstance(prompts, Prompts) else list(prompts)


def _read_ids(prompts: Sequence[Sequence[Any]]) -> Prompts | None:
    """Return lists of token ids as prompts; None unless they are nothing but that."""
    lengths = list(map(len, prompts))
    if 0 in lengths:
        raise _empty(lengths.index(0))
    if bool in set(map(type, map(itemgetter(0), prompts))):  # packing takes them for numbers
        return None
    try:
        return Prompts(pack_lists(prompts), lengths=lengths)
    except struct.error:  # messages, or what is no id: told apart one by one
        return None


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


def _render_chat(messages: Sequence[Any], tokenizer: Any, index: int) -> tuple[bytes, str]:
    if tokenizer is None or not hasattr(tokenizer, "apply_chat_template"):
        raise InvalidArgumentError(
            f"prompt {index} is a list of chat messages; they need tokenizer=, one with a chat template."
        )
    try:
        rendered = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except Exception as error:  # the template's own: jinja's, or what it raises of messages that it does not take
        raise InvalidArgumentError(f"prompt {index}: the chat template does not take it: {error}.") from error
    # The template writes special tokens itself; adding them again would change what the model sees.
    encoded = tokenizer([rendered], add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return _as_name(encoded["input_ids"][0], index), rendered


def _as_name(ids: Any, index: int) -> bytes:
    """Return token ids as bytes, or raise for what they are not; `index` is that of the prompt."""
    given: Any = _unpadded(ids, index) if isinstance(ids, Mapping) and "input_ids" in ids else ids
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InvalidArgumentError(f"prompt {index} is not a list of token ids: {error}.") from None
    if array.ndim == 1 and array.size == 0:
        raise _empty(index)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"prompt {index} must be a string, a list of token ids or a list of chat messages; got "
            f"{type(ids).__name__} of shape {array.shape} and dtype {array.dtype}."
        )
    if array.min() < 0 or array.max() >= 2**32:
        raise InvalidArgumentError(f"prompt {index} holds the id {array.min()}..{array.max()}: ids are 0 to 2**32 - 1.")
    return array.astype("<u4").tobytes()


def _unpadded(encoded: Mapping[str, Any], index: int) -> Any:
    """Return the ids of what tokenizers and chat templates return, if nothing else in it decides what is computed."""
    plain = {"attention_mask": 1, "token_type_ids": 0}
    for name, value in encoded.items():
        if name == "input_ids" or (name in plain and np.all(np.asarray(value) == plain[name])):
            continue
        raise InvalidArgumentError(
            f"prompt {index} is padded, or has more to it than ids ({name}). Pass its ids alone, without padding."
        )
    return encoded["input_ids"]


def _empty(index: int) -> InvalidArgumentError:
    return InvalidArgumentError(f"prompt {index} is empty (no tokens): there is nothing to read. Leave it out.")
