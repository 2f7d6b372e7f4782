"""The proxy as an ASGI application: pure requests are answered from the stash, everything else passes through."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lmstash.adapters.openai.control import asks_nobody
from lmstash.adapters.openai.endpoints import endpoint_of
from lmstash.adapters.openai.library import Case, Library
from lmstash.adapters.openai.proxy.flights import Board
from lmstash.adapters.openai.proxy.metrics import CONTENT_TYPE, Metrics
from lmstash.adapters.openai.proxy.upstream import HOP_BY_HOP, Pairs, Sent, Upstream
from lmstash.adapters.openai.question import Bypass, credentials_digest
from lmstash.adapters.openai.recorded import MARK, REASON, Recorded

if TYPE_CHECKING:
    from lmstash.stash import Stash

logger = logging.getLogger("lmstash.proxy")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Proxy:
    """A caching reverse proxy. Belongs to one event loop."""

    def __init__(self, stash: Stash, upstream: Upstream, library: Library, metrics: Metrics) -> None:
        """Take the stash (the caller's to close), the server behind, and what finds answers."""
        self._stash = stash
        self._upstream = upstream
        self._library = library
        self._metrics = metrics
        self._board = Board(metrics)

    async def land(self, seconds: float) -> None:
        """Wait for the answers under way, and close the connections to the server."""
        await self._board.land(seconds)
        await self._upstream.close()

    async def health(self, _request: Request) -> Response:
        """Say that it is alive, and in front of whom. The server is not asked."""
        return JSONResponse({"status": "ok", "upstream": self._upstream.url, "flights": self._metrics.aloft})

    async def metrics(self, _request: Request) -> Response:
        """Say what happened."""
        return Response(self._metrics.text(self._stash), media_type=CONTENT_TYPE)

    async def answer(self, request: Request) -> Response:
        """Answer a request from the stash, or from the server."""
        scope = request.scope
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        url = self._upstream.target(path, scope["query_string"].decode("latin-1"))
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        if request.method != "POST" or endpoint_of(path) is None:
            has_body = any(name in ("content-length", "transfer-encoding") for name, _ in headers)
            sending = self._upstream.send(request.method, url, headers, request.stream() if has_body else None)
            return await self._pass_on(sending, Bypass.ENDPOINT)
        body = await request.body()
        case = self._library.consider("POST", url, headers, body)
        if isinstance(case, Bypass):
            if asks_nobody(headers):
                return self._nothing_kept()
            return await self._pass_on(self._upstream.send("POST", url, headers, body), case)
        recorded = case.kept()
        if recorded is not None:
            return self._kept(recorded)
        if case.control.only_kept:
            return self._nothing_kept()
        return await self._listen(case, url, headers, body)

    async def _listen(self, case: Case, url: str, headers: Pairs, body: bytes) -> Response:
        async def ask() -> Sent:
            return await self._upstream.send_pure("POST", url, headers, body)

        flight, joined = self._board.join(case, credentials_digest(headers), ask)
        try:
            await flight.begun()
        except Exception as error:
            return self._failed(error, "miss")
        result = "hit" if flight.kept else "miss"
        self._metrics.requests[result, "joined" if joined else "waited" if flight.kept else "asked"] += 1
        return _streaming(flight.status, flight.headers, flight.pieces(), result)

    def _kept(self, recorded: Recorded) -> Response:
        self._metrics.requests["hit", "kept"] += 1
        headers = recorded.headers | {"age": str(int(recorded.age_seconds)), MARK: "hit"}
        if not recorded.is_stream:
            return Response(recorded.body, recorded.status, headers)
        return _streaming(recorded.status, list(headers.items()), _each(recorded.pieces()), "hit")

    def _nothing_kept(self) -> Response:
        self._metrics.requests["miss", "only_if_cached"] += 1
        return _failure(504, "only_if_cached", "lmstash keeps no answer to this request", "miss")

    async def _pass_on(self, sending: object, why: Bypass) -> Response:
        try:
            sent: Sent = await sending  # type: ignore[misc]
        except aiohttp.ClientError as error:
            return self._failed(error, "bypass")
        self._metrics.upstream[sent.status] += 1
        self._metrics.requests["bypass", why] += 1
        return _streaming(sent.status, [*sent.headers, (REASON, why)], sent.pieces, "bypass", _Streaming)

    def _failed(self, error: Exception, mark: str) -> Response:
        self._metrics.requests["error", type(error).__name__] += 1
        logger.warning("%s: %s: %s", self._upstream.url, type(error).__name__, error)
        slow = isinstance(error, aiohttp.ServerTimeoutError)
        said = "did not answer in time" if slow else "cannot be reached"
        return _failure(504 if slow else 502, "upstream_error", f"{self._upstream.url} {said}: {error}", mark)


def make_app(
    stash: Stash,
    upstream: str,
    *,
    timeout_seconds: float = 600.0,
    retries: int = 2,
    grace_seconds: float = 30.0,
    **options,
) -> Starlette:
    """Return the proxy as an ASGI application.

    Args:
        stash: Where answers are kept; it stays the caller's to close.
        upstream: Where the server's interface begins, for instance `https://api.openai.com/v1`.
        timeout_seconds: The longest silence of the server.
        retries: How often a request to a pure endpoint is sent again before anything of its answer came.
        grace_seconds: How long a shutdown waits for answers under way.
        **options: As `lmstash.adapters.openai.library.Library` takes.

    Raises:
        InvalidArgumentError: `upstream` is no URL of HTTP.
    """
    metrics = Metrics()
    server = Upstream(upstream, metrics, timeout_seconds=timeout_seconds, retries=retries)
    proxy = Proxy(stash, server, Library(stash, **options), metrics)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await proxy.land(grace_seconds)

    routes = [
        Route("/health", proxy.health),
        Route("/metrics", proxy.metrics),
        Route("/{path:path}", proxy.answer, methods=list(_METHODS)),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


class _Streaming(StreamingResponse):
    """An answer whose source may break: then the connection does, so that nobody takes it for a whole one."""

    async def stream_response(self, send: Send) -> None:
        """Send the head, the pieces as they come, and the end if there is one."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self.body_iterator:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (aiohttp.ClientError, OverflowError) as error:
            logger.warning("an answer broke off: %s: %s", type(error).__name__, error)
            return  # without an end, which uvicorn takes for a reason to close the connection
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Unwatched(_Streaming):
    """One that costs nobody anything when its client has gone away, so that nobody has to look whether it has."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await self.stream_response(send)


def _streaming(
    status: int, headers: Pairs, pieces: AsyncIterator[bytes], mark: str, kind: type[_Streaming] = _Unwatched
) -> Response:
    response = kind(pieces, status)
    passed = [(name, value) for name, value in headers if name not in HOP_BY_HOP and name != MARK]
    response.raw_headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in [*passed, (MARK, mark)]
    ]
    return response


def _failure(status: int, kind: str, message: str, mark: str) -> Response:
    content = {"error": {"message": message, "type": kind, "code": status}}
    return Response(json.dumps(content), status, {MARK: mark}, "application/json")
