"""The server behind the proxy: requests are sent on, again where that is safe, and answers come piece by piece."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from lmstash.adapters.openai.proxy.metrics import Metrics
from lmstash.errors import InvalidArgumentError

Pairs = Sequence[tuple[str, str]]

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Headers that belong to one connection: RFC 9110, section 7.6.1."""

_BUSY = frozenset({502, 503, 504})
"""Answers of what stands before a model that has not seen the request."""
_SHORTEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.25, 8.0
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 4.0
"""How long an idle connection is kept: shorter than servers keep theirs (uvicorn: 5)."""

_LONGEST_HEADER_BYTES = 64 * 1024
_OF_THE_SENDER = frozenset({"host", "expect"})

_NOT_BEGUN = (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ConnectionTimeoutError)
"""Nothing of an answer has come, and the server is not silent."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An answer whose head has come.

    Attributes:
        status: 200, ...
        headers: Names in lower case; without those of the connection.
        pieces: The body as it comes. Ends the connection when it is closed.
    """

    status: int
    headers: list[tuple[str, str]]
    pieces: AsyncGenerator[bytes]


class Upstream:
    """Sends requests on. Tasks of one loop share it. Keeps no cookies, follows no redirects."""

    def __init__(self, url: str, metrics: Metrics, *, timeout_seconds: float = 600.0, retries: int = 2) -> None:
        """Connect to nothing yet.

        Args:
            url: Where the server's interface begins, for instance `https://api.openai.com/v1`.
            metrics: Counts retries.
            timeout_seconds: The longest silence of the server.
            retries: How often a request to a pure endpoint is sent again.

        Raises:
            InvalidArgumentError: No URL of HTTP, or one with a password in it.
        """
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None:
            raise InvalidArgumentError("--upstream takes no user name and no password: who asks sends their own")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InvalidArgumentError(f"--upstream takes a URL such as https://api.openai.com/v1, not {url!r}")
        self.url = url.rstrip("/")
        self._strip = "/v1" if self.url.endswith("/v1") else ""
        self._metrics = metrics
        self._retries = retries
        connect_seconds = min(_CONNECT_SECONDS, timeout_seconds)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    def target(self, path: str, query: str) -> str:
        """Return the URL that a path of the proxy stands for. `/v1` is not said twice."""
        if self._strip and (path == self._strip or path.startswith(self._strip + "/")):
            path = path.removeprefix(self._strip)
        return f"{self.url}{path}{'?' + query if query else ''}"

    async def send(self, method: str, url: str, headers: Pairs, body: Any) -> Sent:
        """Send a request once; returns when the head of the answer has come.

        Args:
            method: `POST`, ...
            url: As `target` returned it.
            headers: Of the client, names in lower case.
            body: Bytes, or what yields them.

        Raises:
            aiohttp.ClientError: It could not be sent, or no answer came.
        """
        passed = [each for each in headers if each[0] not in HOP_BY_HOP and each[0] not in _OF_THE_SENDER]
        where = URL(url, encoded=True)
        session = self._connected()
        response = await session.request(method, where, headers=passed, data=body, allow_redirects=False)
        back = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.raw_headers]
        return Sent(response.status, [each for each in back if each[0] not in HOP_BY_HOP], _pieces(response))

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                auto_decompress=False,
                timeout=self._timeout,
                max_line_size=_LONGEST_HEADER_BYTES,
                max_field_size=_LONGEST_HEADER_BYTES,
            )
        return self._session

    async def send_pure(self, method: str, url: str, headers: Pairs, body: bytes) -> Sent:
        """As `send`, for a request that changes nothing: sent again, after a while, where nothing of an answer came.

        A server that is silent is not asked again: it may be computing. Nor is one that says when to come again later
        than we would wait (and 429 is the client's to handle).
        """
        plain = [(name, value) for name, value in headers if name != "accept-encoding"]
        plain.append(("accept-encoding", "identity"))  # a kept answer serves clients that read no other
        wait_seconds = _SHORTEST_WAIT_SECONDS
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            asked_for = wait_seconds
            try:
                sent = await self.send(method, url, plain, body)
            except _NOT_BEGUN:
                if last:
                    raise
            else:
                asked_for = _retry_after(sent.headers, wait_seconds)
                if last or sent.status not in _BUSY or asked_for > _LONGEST_WAIT_SECONDS:
                    return sent
                await sent.pieces.aclose()
            self._metrics.retries += 1
            await asyncio.sleep(asked_for * random.uniform(0.75, 1.25))
            wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()


async def _pieces(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    finally:
        response.release()  # closes the connection if something is left


def _retry_after(headers: Pairs, default: float) -> float:
    value = dict(headers).get("retry-after")
    if value is None:
        return default
    return float(value) if value.isdecimal() else _LONGEST_WAIT_SECONDS + 1  # a date: too long for us
