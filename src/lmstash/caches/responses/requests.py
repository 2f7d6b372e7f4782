"""Requests as bytes: the whole request counts, minus fields that are known by name to be harmless.

A request is any value that JSON can say, with tuples, bytes, media and numbers of Python among it. Types count (`1` is
not `True`, a tuple is not a list), and so does the order of a dict's items inside the request, since programs render
them in that order (the properties of a tool's schema, for instance). The order of the request's own fields does not
count, nor of the fields of a dict of generation arguments in it: they are keyword arguments. In these, numbers that
are named for sampling are the same as int and as float.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lmstash.caches.responses.urls import is_place, resolve_urls
from lmstash.codecs.records import encode_record
from lmstash.errors import InvalidArgumentError
from lmstash.identity.media import Media, bytes_media, media_of, text_media

HARMLESS = frozenset({"timeout", "request_timeout", "max_retries"})
"""Fields of a request that change no answer."""

CREDENTIALS = re.compile(r"(x[-_]?)?api[-_]?key", re.IGNORECASE)
"""Names of fields that let a request through and change no answer: neither stored nor part of the key."""

SECRETS = re.compile(
    r".*(api[-_]?key|(auth|access|security|bearer|api|refresh|hf|id)[-_]?token|secret([-_]?key)?|authorization|bearer|"
    r"cookie|password|passphrase|(private|access)[-_]?key)",
    re.IGNORECASE | re.DOTALL,
)
"""Names of fields, anywhere in a request, whose values are never stored: only a digest tells one from another."""

ARGUMENTS = frozenset({"gen_kwargs", "generation_kwargs", "generation_config", "sampling_params", "extra_body"})
"""Fields of a request that hold generation arguments, and nothing else."""

MAY_HOLD_ARGUMENTS = ARGUMENTS | {"options", "parameters"}
"""These are looked through for what says sampling; `options` may also be answers to choose from: their order counts."""

NUMBERS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "top_a", "tfs_z", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty", "guidance_scale"),
    }
)
"""Sampling arguments of which `0` and `0.0` are the same."""

EXACT = 2**53
"""Whole numbers under this are the same as int and as float."""
LONG = 4096
"""Bytes, and texts that are media (`data:` URLs), of this length or more stand in a request as their digests."""
_PAIR = re.compile(rb'(key|token|secret|zation|bearer|cookie|password|phrase)","', re.IGNORECASE)
"""A secret's name as the first of two texts, as headers are written."""
_LONG_NAME = 256
URL, SECRET = 1, 2


class Request:
    """One request in its canonical form.

    Attributes:
        text: UTF-8 of a record (`lmstash.codecs.records`): what is hashed into the key, and what is stored. Media and
            long bytes are in it as digests, secrets not at all.
        arguments: At least the fields that say sampling (`sampling.NAMES`), of the request and of its generation
            arguments.
    """

    __slots__ = ("arguments", "text")

    def __init__(self, text: bytes, arguments: Mapping[str, Any]) -> None:
        self.text = text
        self.arguments = arguments


def read_request(request: Any, harmless: frozenset[str] = HARMLESS, urls: str = "refuse") -> Request:
    """Return `request` in its canonical form. Does not change it. Costs about 12 us, and the digests of its media.

    Args:
        request: Any value that JSON can say, with media in it.
        harmless: Names of the request's own fields that do not count.
        urls: What becomes of URLs of media: `refuse`, `content` or `trust`.

    Raises:
        InvalidArgumentError: It holds something that nobody can tell from another one of its kind.
    """
    arguments: dict[str, Any] = {}
    if type(request) is dict:
        request = _sort(request, harmless, arguments)
    text = encode_record(request, _take_apart)
    notable = 0
    for part in text.split(b'":')[:-1]:  # each ends with the name of a field
        notable |= may_hold(part[part.rfind(b'"') + 1 :])
    if notable & URL and urls != "trust" and b"://" in text:
        known = resolve_urls(request, urls)
        if known is not request:
            request, text = known, encode_record(known, _take_apart)
    if notable & SECRET or len(text) > LONG or (b'["' in text and _PAIR.search(text)):
        text = encode_record(_shorten(request), _take_apart)
    return Request(text, arguments)


def _sort(given: dict[Any, Any], harmless: frozenset[str], flat: dict[str, Any]) -> dict[Any, Any]:
    """Return keyword arguments in one order and without what does not count; adds them to `flat`."""
    try:
        names = sorted(given)
    except TypeError:  # not all are text
        names = list(given)
    kept: dict[Any, Any] = {}
    for name in names:
        if name in harmless or (type(name) is str and is_credential(name)):
            continue
        value = given[name]
        kind = type(value)
        if kind is int and name in NUMBERS and abs(value) < EXACT:
            value = float(value)
        elif kind is dict and name in ARGUMENTS:
            value = _sort(value, frozenset(), flat)
        elif kind is dict and name in MAY_HOLD_ARGUMENTS:
            _note_arguments(value, flat)
        kept[name] = value
    flat |= kept
    return kept


def _note_arguments(held: dict[Any, Any], flat: dict[str, Any]) -> None:
    for name, value in held.items():
        if type(value) is dict and name in MAY_HOLD_ARGUMENTS:
            _note_arguments(value, flat)
        else:
            flat[name] = value


@lru_cache(maxsize=4096)
def is_credential(name: str) -> bool:
    """Whether a field of this name lets a request through and changes no answer."""
    return CREDENTIALS.fullmatch(name) is not None


def is_secret(name: str) -> bool:
    """Whether the value of a field of this name is never stored."""
    # Long texts come here, too, as the first of two; they are not remembered.
    return _is_secret(name) if len(name) <= _LONG_NAME else SECRETS.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return SECRETS.fullmatch(name) is not None


@lru_cache(maxsize=8192)
def may_hold(name: bytes) -> int:
    """Return what a field of this name may hold."""
    if name == b"$dict":  # its names are written as the values are
        return URL | SECRET
    text = name.decode("utf-8", "replace")
    return (URL if is_place(text) else 0) | (SECRET if is_secret(text) else 0)


def _shorten(value: Any) -> Any:
    """Return a container with long texts of media and secrets in it as digests; the same object if there are none."""
    kind = type(value)
    if kind is str:
        return text_media(value) if len(value) >= LONG and value.startswith("data:") else value
    if kind is bytes:
        return bytes_media(value) if len(value) >= LONG else value
    if kind is list or kind is tuple:
        if len(value) == 2 and type(value[0]) is str and type(value[1]) is str and is_secret(value[0]):
            return kind([value[0], text_media(value[1])])  # headers are written so
        shorter = [_shorten(each) for each in value]
        same = all(new is old for new, old in zip(shorter, value, strict=True))
        return value if same else kind(shorter)
    if kind is dict:
        found = {name: _field(name, each) for name, each in value.items()}
        return value if all(new is old for new, old in zip(found.values(), value.values(), strict=True)) else found
    return value


def _field(name: Any, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | Media):
        return value
    if type(name) is str and is_secret(name):
        return text_media(value) if type(value) is str else bytes_media(encode_record(value, _take_apart))
    return _shorten(value)


def _take_apart(value: Any) -> tuple[str, Any]:
    media = value if isinstance(value, Media) else media_of(value)
    if media is None:
        raise InvalidArgumentError(
            f"a request holds {type(value).__module__}.{type(value).__qualname__}, which has no content that lmstash "
            "knows how to read. Put what it stands for into the request: text, numbers, bytes, an image, a Path."
        )
    return "media", media.describe()
