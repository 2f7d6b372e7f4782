"""Transports for clients of `httpx`, `httpx2` and `openai`: pure requests are answered from a stash."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lmstash.adapters.openai.control import asks_nobody
from lmstash.adapters.openai.endpoints import endpoint_of
from lmstash.adapters.openai.library import Case, Library
from lmstash.adapters.openai.question import Bypass, lower
from lmstash.adapters.openai.recorded import MARK, REASON, Recorded, record
from lmstash.caches.responses.single_flight.steps import drive, drive_async

if TYPE_CHECKING:
    from lmstash.stash import Stash


class _Transport:
    """What both transports share."""

    def __init__(self, stash: Stash, inner: Any = None, **options: Any) -> None:
        """Answer from `stash`, and ask `inner` for what is not kept.

        Args:
            stash: The stash; it stays the caller's to close.
            inner: The transport that sends requests; default: the client's package's own. Proxies and certificates are
                its business: `httpx.HTTPTransport(proxy=..., verify=...)`.
            **options: `keep_sampled=`, `trust_urls=`, `by_token=`, `revision=`, `ttl_seconds=`, `wait_seconds=`: see
                `lmstash.adapters.openai.library.Library`.
        """
        self.library = Library(stash, **options)
        self._inner = inner
        self._lock = threading.RLock()  # a signal handler may ask in the middle of it

    def _sender(self, request: Any, name: str) -> Any:
        """Return the transport that sends; the first request says of which package it has to be."""
        if self._inner is None:
            with self._lock:
                made = getattr(_package_of(request), name)()
                if self._inner is None:  # who has had the lock before, or a signal handler, may have made one
                    self._inner = made
        return self._inner

    def _consider(self, request: Any, body: bytes) -> Case | Bypass:
        headers = lower(request.headers.multi_items())
        host = request.headers.get("host", "").lower()
        if host and host != request.url.netloc.decode("ascii", "replace").lower():  # a gateway finds the model by it
            headers = [*headers, (":authority", host)]
        return self.library.consider(request.method, str(request.url), headers, body)


class CachingTransport(_Transport):
    """For `httpx.Client(transport=CachingTransport(stash))`. Threads may share it.

    Of those who ask the same at once one asks the server, and the others wait for its answer, each as long as its own
    read timeout; then it asks for itself. Those who ask for streams each do, since a stream is as slow as its reader.
    """

    def handle_request(self, request: Any) -> Any:
        """Return the answer to a request. What sending it raises, it raises."""
        inner = self._sender(request, "HTTPTransport")
        if request.method != "POST":
            return inner.handle_request(request)
        if endpoint_of(request.url.path) is None:  # its body may be large, and come as it is sent
            return _marked(inner.handle_request(request), "bypass", Bypass.ENDPOINT)
        body = request.read()
        case = self._consider(request, body)
        if isinstance(case, Bypass):
            if asks_nobody(lower(request.headers.multi_items())):
                return _nothing_kept(request, case)
            return _marked(inner.handle_request(request), "bypass", case)
        recorded = case.kept()
        if recorded is not None:
            return _rebuilt(request, recorded)
        if case.control.only_kept:
            return _nothing_kept(request)
        sent = _as_sent(request, body)
        if case.question.streamed:
            started = time.perf_counter()
            try:
                response = _marked(inner.handle_request(sent), "miss")
            except BaseException:
                case.give_back()
                raise
            response.stream = _recording(_package_of(request))(case, response, started)
            return response
        answered: list[Any] = []

        def call() -> Recorded:
            response = inner.handle_request(sent)
            try:
                data = b"".join(response.stream)
            finally:
                response.close()
            answered.append((response, data))
            return record(response.status_code, lower(response.headers.multi_items()), data)

        recorded, here = drive(case.steps(_patience_seconds(request)), call)
        return _copied(request, *answered[-1]) if here else _rebuilt(request, recorded)

    def close(self) -> None:
        """Close the transport that sends; the stash stays open."""
        if self._inner is not None:
            self._inner.close()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class AsyncCachingTransport(_Transport):
    """As `CachingTransport`, for `httpx.AsyncClient(transport=...)`. Tasks of one loop may share it."""

    async def handle_async_request(self, request: Any) -> Any:
        """Return the answer to a request. What sending it raises, it raises."""
        inner = self._sender(request, "AsyncHTTPTransport")
        if request.method != "POST":
            return await inner.handle_async_request(request)
        if endpoint_of(request.url.path) is None:
            return _marked(await inner.handle_async_request(request), "bypass", Bypass.ENDPOINT)
        body = await request.aread()
        case = self._consider(request, body)
        if isinstance(case, Bypass):
            if asks_nobody(lower(request.headers.multi_items())):
                return _nothing_kept(request, case)
            return _marked(await inner.handle_async_request(request), "bypass", case)
        recorded = case.kept()
        if recorded is not None:
            return _rebuilt(request, recorded)
        if case.control.only_kept:
            return _nothing_kept(request)
        sent = _as_sent(request, body)
        if case.question.streamed:
            started = time.perf_counter()
            try:
                response = _marked(await inner.handle_async_request(sent), "miss")
            except BaseException:
                case.give_back()
                raise
            response.stream = _async_recording(_package_of(request))(case, response, started)
            return response
        answered: list[Any] = []

        async def call() -> Recorded:
            response = await inner.handle_async_request(sent)
            try:
                data = b"".join([piece async for piece in response.stream])
            finally:
                await response.aclose()
            answered.append((response, data))
            return record(response.status_code, lower(response.headers.multi_items()), data)

        recorded, here = await drive_async(case.steps(_patience_seconds(request)), call)
        return _copied(request, *answered[-1]) if here else _rebuilt(request, recorded)

    async def aclose(self) -> None:
        """Close the transport that sends; the stash stays open."""
        if self._inner is not None:
            await self._inner.aclose()

    async def __aenter__(self) -> Self:
        """Return it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()


# --- streams: passed on as they come, and kept when they ended properly ---------------------------------------------


class _Recording:
    """A stream that remembers what passed."""

    def __init__(self, case: Case, response: Any, started: float) -> None:
        self._case: Case | None = case
        self._status = response.status_code
        self._headers = lower(response.headers.multi_items())
        self._inner = response.stream
        self._started = started
        self._passed: list[bytes] = []

    def _keep(self) -> None:
        """Keep what passed, once. A caller may close a stream at its last event: that one says that it is the last."""
        case, self._case = self._case, None
        if case is not None:
            recorded = record(self._status, self._headers, b"".join(self._passed))
            case.keep(recorded, time.perf_counter() - self._started)
            self._passed.clear()


class _SyncRecording(_Recording):
    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self._passed.append(piece)
            yield piece
        self._keep()

    def close(self) -> None:
        self._keep()
        self._inner.close()


class _AsyncRecording(_Recording):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            self._passed.append(piece)
            yield piece
        self._keep()

    async def aclose(self) -> None:
        self._keep()
        await self._inner.aclose()


@lru_cache(maxsize=4)
def _recording(package: Any) -> Any:
    return type("Recording", (_SyncRecording, package.SyncByteStream), {})


@lru_cache(maxsize=4)
def _async_recording(package: Any) -> Any:
    return type("AsyncRecording", (_AsyncRecording, package.AsyncByteStream), {})


# --- requests and answers of either package -------------------------------------------------------------------------


def _package_of(request: Any) -> Any:
    return sys.modules[type(request).__module__.partition(".")[0]]


def _patience_seconds(request: Any) -> float | None:
    """Return how long a request waits for a server's next words, which is how long it waits for another request's."""
    return (request.extensions.get("timeout") or {}).get("read")


def _as_sent(request: Any, body: bytes) -> Any:
    """Return the request, asking for an answer that is not compressed: kept answers serve every client."""
    headers = request.headers.copy()
    headers["accept-encoding"] = "identity"
    return type(request)(request.method, request.url, headers=headers, content=body, extensions=request.extensions)


def _marked(response: Any, mark: str, reason: str | None = None) -> Any:
    response.headers[MARK] = mark
    if reason:
        response.headers[REASON] = reason
    return response


def _copied(request: Any, response: Any, body: bytes) -> Any:
    return _marked(_made(request, response.status_code, response.headers, body, response.extensions), "miss")


def _rebuilt(request: Any, recorded: Recorded) -> Any:
    about = {"age": str(int(recorded.age_seconds)), "content-length": str(len(recorded.body)), MARK: "hit"}
    return _made(request, recorded.status, recorded.headers | about, recorded.body)


def _nothing_kept(request: Any, reason: str | None = None) -> Any:
    content = {"error": {"message": "lmstash keeps no answer to this request", "type": "only_if_cached", "code": 504}}
    body = json.dumps(content).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    return _marked(_made(request, 504, headers, body), "miss", reason)


def _made(request: Any, status: int, headers: Any, body: bytes, extensions: Any = None) -> Any:
    """Return an answer that nobody has read yet: its client does, as one from a server, and says how long it took."""
    package = _package_of(request)
    return package.Response(status, headers=headers, stream=package.ByteStream(body), extensions=extensions)
