"""Requests as bytes: the whole request counts, minus fields that are known by name to be harmless.

A request is any value that JSON can say, with tuples, bytes, media and numbers of Python among it. Types count (`1` is
not `True`, a tuple is not a list), and so does the order of a dict's items inside the request, since programs render
them in that order (the properties of a tool's schema, for instance). The order of the request's own fields does not
count, nor of the fields of a dict of generation arguments in it: they are keyword arguments. In these, numbers that
are named for sampling are the same as int and as float.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from lmstash.caches.responses.requests.hiding import is_credential, is_secret, may_show, shorten
from lmstash.caches.responses.requests.places import is_place, may_name_file
from lmstash.caches.responses.requests.sampling import ARGUMENTS, NAMES, note, note_elsewhere, telling
from lmstash.caches.responses.requests.urls import resolve_media
from lmstash.codecs.records import encode_record
from lmstash.errors import InvalidArgumentError
from lmstash.identity.content.media import Media, media_of

HARMLESS = frozenset({"timeout", "request_timeout", "max_retries"})
"""Fields of a request that change no answer."""

NUMBERS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "top_a", "tfs_z", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty", "guidance_scale"),
    }
)
"""Sampling arguments of which `0` and `0.0` are the same."""

EXACT = 2**53
"""Whole numbers under this are the same as int and as float."""
URL, SECRET, SAMPLING = 1, 2, 4


class Request:
    """One request in its canonical form.

    Attributes:
        text: UTF-8 of a record (`lmstash.codecs.records`): what is hashed into the key, and what is stored. Media and
            long bytes are in it as digests, secrets not at all.
        arguments: What it says of sampling, wherever it says so (`sampling.NAMES`).
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
        InvalidArgumentError: It holds something that nobody can tell from another one of its kind, or names a file that
            cannot be read.
    """
    arguments: dict[str, Any] = {}
    if type(request) is dict:
        request = _sort(request, harmless, arguments)
    text = _encode(request)
    notable = 0
    for part in text.split(b'":')[:-1]:  # each ends with the name of a field
        notable |= may_hold(part[part.rfind(b'"') + 1 :])
    if notable & SAMPLING:
        note_elsewhere(arguments, request)
    if notable & URL or may_name_file(text):
        known = resolve_media(request, urls)
        if known is not request:
            request, text = known, _encode(known)
    if notable & SECRET or may_show(text):
        text = _encode(shorten(request, _encode))
    return Request(text, arguments)


def _sort(
    given: dict[Any, Any], harmless: frozenset[str], arguments: dict[str, Any], are_arguments: bool = False
) -> dict[Any, Any]:
    """Return keyword arguments in one order and without what does not count; notes what they say of sampling."""
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
            value = _sort(value, frozenset(), arguments, True)
        kept[name] = value
    note(arguments, {name: kept[name] for name in telling(kept, are_arguments)})
    return kept


@lru_cache(maxsize=8192)
def may_hold(name: bytes) -> int:
    """Return what a field of this name may hold."""
    if name == b"$dict":  # its names are written as the values are
        return URL | SECRET | SAMPLING
    if name in (b"$bytes", b"value"):  # maybe a name that is a secret's, or what stands beside one
        return SECRET
    text = name.decode("utf-8", "replace")
    return (URL if is_place(text) else 0) | (SECRET if is_secret(text) else 0) | (SAMPLING if text in NAMES else 0)


class _UnreadError(Exception):
    """It has no content that lmstash knows how to read."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _encode(value: Any) -> bytes:
    try:
        return encode_record(value, _take_apart)
    except _UnreadError as error:
        raise InvalidArgumentError(_why_unread(error.value, value)) from None


def _take_apart(value: Any) -> tuple[str, Any]:
    media = value if isinstance(value, Media) else media_of(value)
    if media is None:
        raise _UnreadError(value)
    return "media", media.describe()


def _why_unread(value: Any, request: Any) -> str:
    """Return what in a request cannot be read, and what to do."""
    path = _path_to(value, request)
    at = f" in `{'.'.join(map(str, path))}`" if path else ""
    kind = type(value)
    if not isinstance(value, type):
        return (
            f"a request holds{at} {kind.__module__}.{kind.__qualname__}, which has no content that lmstash knows "
            "how to read. Put what it stands for into the request: text, numbers, bytes, an image, a Path."
        )
    schema = f"{value.__qualname__}.model_json_schema()" if hasattr(value, "model_json_schema") else "its JSON schema"
    return (
        f"a request holds{at} the class {value.__qualname__}, whose content lmstash does not read. Put {schema} there, "
        "and have the function that computes use the class"
    )


def _path_to(value: Any, held: Any, depth: int = 8) -> list[Any] | None:
    """Return the names of the fields that lead to a value in dicts and lists; None where they do not."""
    inner = held.items() if type(held) is dict else enumerate(held) if type(held) in (list, tuple) else ()
    for name, each in inner if depth else ():
        path = [] if each is value else _path_to(value, each, depth - 1)
        if path is not None:
            return [name, *path]
    return None
