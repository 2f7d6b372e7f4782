"""URLs of media in a request: what lies there may change while the URL stays the same.

Whether a URL is media is told by where it stands: in a field such as `image_url`, or as `url`, `uri`, `image`, `audio`
or `video` of a part whose `type` says so. A URL in text is text.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from lmstash.errors import InvalidArgumentError
from lmstash.identity.media import Media, media_of

POLICIES: Final = ("refuse", "content", "trust")
MOST_BYTES: Final = 64 << 20
MOST_SECONDS: Final = 20.0
_READ_BYTES = 1 << 16

_FIELDS = re.compile(r"(image|audio|video|file|document|media)_?ur[li]", re.IGNORECASE)
_TYPES = re.compile(r"(input_?)?(image|audio|video|file|document|media|url)(_?url)?", re.IGNORECASE)
_PLACES = frozenset({"url", "uri", "image", "audio", "video", "file"})
_URL = re.compile(r"\s*(https?|ftp|file|gs|s3)://", re.IGNORECASE)


class UnreadUrlError(InvalidArgumentError):
    """A request names media by a URL whose content is not known."""


def is_place(name: str) -> bool:
    """Whether a field of this name may hold the URL of media."""
    return _FIELDS.fullmatch(name) is not None or name in _PLACES or name == "source"


def resolve_urls(request: Any, policy: str, fetch: Callable[[str], Media] | None = None) -> Any:
    """Return a request with each URL of media replaced by what lies there; the same object if there are none.

    Args:
        request: The request; it is not changed.
        policy: `refuse` or `content`.
        fetch: Returns what lies under a URL; default: `fetch_media`.

    Raises:
        UnreadUrlError: It names one, and they are refused, or this one cannot be read.
    """
    return _walk(request, False, policy, fetch or fetch_media)


def _walk(value: Any, is_media: bool, policy: str, fetch: Callable[[str], Media]) -> Any:
    kind = type(value)
    if kind is str:
        return _one(value, policy, fetch) if is_media and _URL.match(value) else value
    if kind is list or kind is tuple:
        seen = [_walk(each, is_media, policy, fetch) for each in value]
        return value if all(new is old for new, old in zip(seen, value, strict=True)) else kind(seen)
    if kind is not dict:
        return value
    stated = value.get("type")
    of_part = type(stated) is str and _TYPES.fullmatch(stated) is not None
    found: dict[Any, Any] = {}
    for name, each in value.items():
        named = type(name) is str and (
            _FIELDS.fullmatch(name) is not None
            or ((of_part or is_media) and name in _PLACES)
            or (of_part and name == "source")
        )
        found[name] = _walk(each, named, policy, fetch)
    return value if all(new is old for new, old in zip(found.values(), value.values(), strict=True)) else found


def _one(url: str, policy: str, fetch: Callable[[str], Media]) -> Media:
    if policy != "content":
        raise UnreadUrlError(
            f"it names media by URL ({_without_secrets(url)}), and what lies there may change. Put the bytes into the "
            "request, or open the cache with urls='content' (fetched and hashed at each look-up) or urls='trust'"
        )
    return fetch(url.strip())


def fetch_media(url: str, *, most_bytes: int = MOST_BYTES, most_seconds: float = MOST_SECONDS) -> Media:
    """Return what stands for the content under a URL: a digest of its bytes and its content type. Keeps nothing.

    Only `http`, `https` and `file` of this machine. Blocks for at most about `most_seconds`.

    Raises:
        UnreadUrlError: It cannot be read within the limits.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        from pathlib import Path

        try:
            media = media_of(Path(unquote(parts.path)))
        except InvalidArgumentError as error:
            raise UnreadUrlError(str(error)) from error
        assert media is not None
        return media
    if parts.scheme.lower() not in ("http", "https"):
        raise UnreadUrlError(f"media under {parts.scheme}:// are not fetched")
    from http.client import HTTPException
    from urllib.request import Request

    deadline, state, n_bytes = time.monotonic() + most_seconds, hashlib.sha256(b"lmstash url\0\1"), 0
    try:
        with _opener().open(Request(url, headers={"Accept-Encoding": "identity"}), timeout=most_seconds) as reply:
            kind = str(reply.headers.get("Content-Type", "")).partition(";")[0].strip().lower()
            state.update(kind.encode() + b"\0")
            while data := reply.read1(_READ_BYTES):
                n_bytes += len(data)
                if n_bytes > most_bytes:
                    raise UnreadUrlError(f"{_without_secrets(url)} is larger than {most_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise UnreadUrlError(f"{_without_secrets(url)} takes more than {most_seconds:g} s to read")
                state.update(data)
            told = reply.headers.get("Content-Length")
            if told is not None and told.isdigit() and int(told) != n_bytes:
                raise UnreadUrlError(f"{_without_secrets(url)} was cut short")
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        if isinstance(error, UnreadUrlError):
            raise
        raise UnreadUrlError(f"{_without_secrets(url)} cannot be read: {error}") from error
    return Media("url", state.hexdigest(), (kind, n_bytes))


def _opener() -> Any:
    """Return what opens http and https and nothing else, redirects included; proxies are those of the environment."""
    from urllib import request

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _without_secrets(url: str) -> str:
    parts = urlsplit(url.strip())
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
