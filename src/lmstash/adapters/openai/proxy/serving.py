"""A process that serves the proxy: binds, says where it is, serves, and ends when it is told to."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from lmstash.adapters.openai.proxy.app import make_app

if TYPE_CHECKING:
    from lmstash.stash import Stash


_IDLE_SECONDS = 75
"""How long a client's idle connection is kept: longer than clients keep theirs, so that none is cut as it is used."""


def serve(
    stash: Stash,
    upstream: str,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    grace_seconds: float = 30.0,
    **options: Any,
) -> None:
    """Serve until SIGINT or SIGTERM; then finish the answers under way.

    Args:
        stash: Where answers are kept; it stays the caller's to close.
        upstream: Where the server's interface begins.
        host: The address to listen at.
        port: The port; 0 for a free one.
        ready: Told the proxy's URL once clients can connect.
        grace_seconds: How long the end waits for answers under way.
        **options: As `make_app` takes.

    Raises:
        InvalidArgumentError: `upstream` is no URL of HTTP.
        OSError: The address cannot be listened at.
    """
    app = make_app(stash, upstream, grace_seconds=grace_seconds, **options)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
    with _listen(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        server = uvicorn.Server(config)
        with _signals_end(server):
            ready(f"http://{shown}:{listening.getsockname()[1]}")
            server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio turns delays (Nagle's algorithm, 40 ms here) off only for sockets that say TCP.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except BaseException:
        listening.close()
        raise
    return listening


@contextmanager
def _signals_end(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the server only: uvicorn raises them again when it is done, the stash still open."""

    def end(_number: int, _frame: FrameType | None) -> None:
        server.should_exit = True

    before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
