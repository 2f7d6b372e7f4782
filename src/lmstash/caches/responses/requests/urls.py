"""Media that a request only names, by URL or by path: what lies there may change while the name stays the same.

Whether a text names media is told by where it stands (`places`): a URL in text is text. A path of this machine is named
by what the file holds, as a `pathlib.Path` is; what becomes of URLs is the caller's choice.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from lmstash.caches.responses.requests.places import ADDRESS, NAMED, PATH, URL, replace_named
from lmstash.errors import InvalidArgumentError
from lmstash.identity.content.media import Media, media_of

POLICIES: Final = ("refuse", "content", "trust")
MOST_BYTES: Final = 64 << 20
MOST_SECONDS: Final = 20.0
_READ_BYTES = 1 << 16
_LONG_PATH = 4096

_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class UnreadUrlError(InvalidArgumentError):
    """A request names media by a URL whose content is not known."""


def resolve_media(request: Any, policy: str, fetch: Callable[[str], Media] | None = None) -> Any:
    """Return a request with what lies there for each URL of media, and beside each path of media.

    Args:
        request: The request; it is not changed, and returned itself if it names none.
        policy: What becomes of URLs: `refuse`, `content`, or `trust`, which leaves them.
        fetch: Returns what lies under a URL; default: `fetch_media`.

    Raises:
        UnreadUrlError: It names one, and they are refused, or this one cannot be read.
        InvalidArgumentError: It names a file that cannot be read, or a folder.
    """

    def see(text: str, holds: int) -> Any:
        if _URL.match(text):
            return _one(text, policy, fetch or fetch_media) if holds & URL and policy != "trust" else text
        return _with_file(text, bool(holds & URL)) if holds & PATH else text

    return replace_named(request, see)


def points_at_urls(value: Any) -> bool:
    """Whether a value names media by URL, or has any text but a `data:` URL in a field that is named for a URL."""
    found: list[str] = []

    def see(text: str, holds: int) -> str:
        if _URL.match(text) or (holds & ADDRESS and not text.startswith("data:")):
            found.append(text)
        return text

    try:
        replace_named(value, see)
    except RecursionError:  # nobody can say
        return True
    return bool(found)


def _with_file(text: str, is_media: bool) -> Any:
    """Return a text, with what the file holds if it names one here; a folder of media is an error, others are names."""
    if not text or len(text) > _LONG_PATH or text.startswith("data:"):
        return text
    path = os.path.expanduser(text)
    if not (os.path.exists(path) if is_media else os.path.isfile(path)):
        return text
    file = media_of(Path(text))
    assert file is not None
    return [text, Media(NAMED, file.digest, file.facts)]


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
