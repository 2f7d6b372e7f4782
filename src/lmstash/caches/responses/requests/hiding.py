"""What of a request is never stored: values of fields that are named for secrets, and URLs with secrets in them.

A digest of each stands in the request, so that it counts and does not show. A secret in a field of another name, or
within a text, is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from lmstash.identity.content.media import Media, bytes_media, text_media

CREDENTIALS = re.compile(r"(x[-_]?)?api[-_]?key", re.IGNORECASE)
"""Names of fields that let a request through and change no answer: neither stored nor part of the key."""

SECRETS = re.compile(
    r".*(api[-_]?key|(auth|access|security|bearer|api|refresh|hf|id)[-_]?token|secret([-_]?key)?|authorization|bearer|"
    r"cookie|password|passphrase|(private|access)[-_]?key)",
    re.IGNORECASE | re.DOTALL,
)
"""Names that are a secret's wherever they stand: also of headers and attributes, which then do not count at all."""

_FIELDS = re.compile(
    r"token|(.*[-_])?(x|session|security|github|gitlab|hub|private|personal|user|client|bot|csrf|xsrf|sas|jwt)[-_]?token|"
    r"(?!.*(bos|eos|pad|unk|sep|cls|mask|stop|start|begin|end|image|video|audio|next|last|first|special|new)_token)"
    r".*[-_]token|"
    r"(.*[-_])?(jwt|credentials?|o?auth|sas|auth[-_]?(header|info|data|string)s?)|.*(passwd|pwd)|"
    r"signature|x[-_].*signature|"
    r".*(api[-_]?key|secret([-_]?key)?|cookie|password|passphrase|(private|access)[-_]?key)s|"
    r".*(subscription|account|signing|encryption|master)[-_]?keys?",
    re.IGNORECASE | re.DOTALL,
)
"""Further names of fields whose values are not stored; alone they may also be words, and arguments of a tool."""

_NUMBERED = re.compile(r"[-_]?\d{1,3}$")

LONG: Final = 4096
"""Bytes, and texts that are media (`data:` URLs), of this length or more stand in a request as their digests."""
_LONG_NAME = 256
_NAME_FIELDS = ("name", "key", "header")
"""Where the name stands whose `value` stands beside it."""
_SCHEMA = frozenset({"$ref", "anyOf", "oneOf", "allOf", "enum"})
_TYPES = frozenset({"string", "object", "array", "number", "integer", "boolean", "null"})

_PAIR = re.compile(
    rb'\["(?:[^"\\]|\\.){0,256}(?:key|token|secret|zation|bearer|cookie|password|phrase|jwt|credential|auth|header|info|data|'
    rb'string|wd|sas|ture)s?(?:[-_]?[0-9]{1,3})?","',
    re.IGNORECASE,
)
"""A secret's name as the first of two texts, as headers are written."""
_RICH_URL = re.compile(r'" *[a-z][a-z0-9+.-]*://(?:[^"\s\\]|\\.)*[@?&#;]', re.IGNORECASE)
"""A text in a record that begins with a URL of more than an address."""
_URL = re.compile(r" *[a-z][a-z0-9+.-]*://([^/?#\s]*)(\S*)\s*", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&#;]([^=?&#;]+)=")
_SHORT_PARAMETERS = frozenset({"key", "sig", "code"})
"""Parameters of a URL that are a secret there, whatever such words mean elsewhere."""

_SAID = re.compile(
    r"""(?P<open>[(\[]\s*)?(?P<quote>['"])(?P<name>[^'"]{1,256})(?P=quote)\s*(?P<how>[:,])\s*+"""
    r"""(?!none\b|null\b|true\b|false\b|[-\d]|''|""|\{['"]lc['"]|SecretStr\()""",
    re.IGNORECASE,
)
"""A name that a value follows, in JSON or in what `repr` makes; LangChain's own places for secrets are no values."""
_QUOTED_URL = re.compile(r"""(?<=['"])[a-z][a-z0-9+.-]*://[^'"\s]*""", re.IGNORECASE)


@lru_cache(maxsize=4096)
def is_credential(name: str) -> bool:
    """Whether a field of this name lets a request through and changes no answer."""
    return CREDENTIALS.fullmatch(name) is not None


def is_secret(name: str) -> bool:
    """Whether the value of a field of this name is never stored; a number at its end says nothing."""
    # Long texts come here, too, as the first of two; they are not remembered.
    return _is_secret(name) if len(name) <= _LONG_NAME else SECRETS.fullmatch(name[-_LONG_NAME:]) is not None


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    name = _NUMBERED.sub("", name)
    return SECRETS.fullmatch(name) is not None or _FIELDS.fullmatch(name) is not None


def may_show(text: bytes) -> bool:
    """Whether a record that has no field named for a secret may still hold what `shorten` takes out."""
    return len(text) > LONG or (b'["' in text and _PAIR.search(text) is not None) or b"://" in text


def may_show_url(text: str) -> bool:
    """Whether a record that holds a URL may show a secret in it."""
    return _RICH_URL.search(text) is not None


def url_shows_secret(text: str) -> bool:
    """Whether a text is a URL that has a user name, a password, or a parameter named for a secret."""
    if "://" not in text:
        return False
    url = _URL.fullmatch(text)
    if url is None:
        return False
    names = (unquote(name) for name in _PARAMETER.findall(url[2]))
    return "@" in url[1] or any(is_secret(name) or name.lower() in _SHORT_PARAMETERS for name in names)


def settings_show_secret(text: str) -> bool:
    """Whether a text that a program made of its settings, by `json` or `repr`, shows a secret."""
    for each in _SAID.finditer(text):
        first = each["open"] or ""  # of a tuple as `items()` gives them, or of a list
        if is_secret(each["name"]) and (each["how"] == ":" or first[:1] == "(" or (first and _is_header(each["name"]))):
            return True
    return any(url_shows_secret(each[0]) for each in _QUOTED_URL.finditer(text))


def shorten(value: Any, encode: Callable[[Any], bytes]) -> Any:
    """Return a value with secrets and long texts of media in it as digests; the same object if there are none.

    Args:
        value: A request, or a part of it.
        encode: Makes bytes of what is hidden.
    """
    kind = type(value)
    if kind is str:
        is_long = len(value) >= LONG and value.startswith("data:")
        return text_media(value) if is_long or url_shows_secret(value) else value
    if kind is bytes:
        return bytes_media(value) if len(value) >= LONG else value
    if kind is list or kind is tuple:
        if len(value) == 2 and _is_header(value[0]):
            return kind([value[0], _hidden(value[1], encode)])
        shorter = [shorten(each, encode) for each in value]
        same = all(new is old for new, old in zip(shorter, value, strict=True))
        return value if same else kind(shorter)
    if kind is dict:
        found = {name: _field(name, each, encode) for name, each in value.items()}
        if "value" in value and any(_is_header(value.get(each)) for each in _NAME_FIELDS):
            found["value"] = _hidden(value["value"], encode)
        return value if all(new is old for new, old in zip(found.values(), value.values(), strict=True)) else found
    return value


def _is_header(name: Any) -> bool:
    """Whether the first of two texts names a secret, as headers are written; a lone `token` may be one of two words."""
    name = _as_text(name)
    return is_secret(name) and (SECRETS.fullmatch(name) is not None or "-" in name or "_" in name)


def _as_text(name: Any) -> str:
    """Return a name, which programs near HTTP write in bytes; an empty text for what is none."""
    return name if type(name) is str else name.decode("latin-1") if type(name) is bytes else ""


def _hidden(value: Any, encode: Callable[[Any], bytes]) -> Any:
    """Return what stands for a secret; what says nothing stays as it is."""
    if value is None or isinstance(value, bool | float | Media):
        return value
    return text_media(value) if type(value) is str else bytes_media(encode(value))


def _field(name: Any, value: Any, encode: Callable[[Any], bytes]) -> Any:
    called = _as_text(name)
    if is_secret(called):
        if SECRETS.fullmatch(called):
            return _hidden(value, encode)
        if not isinstance(value, int) and not _is_schema(value):
            return _hidden(value, encode)
    return shorten(value, encode)


def _is_schema(value: Any) -> bool:
    """Whether a value describes an argument of a tool."""
    if type(value) is not dict:
        return False
    stated = value.get("type")
    return (type(stated) is str and stated in _TYPES) or not _SCHEMA.isdisjoint(value)
