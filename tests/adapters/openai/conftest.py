"""A server that answers as OpenAI's does, and proxies in front of it: each a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Server:
    """A process that serves at `url`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def get(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode()

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(30)


class Upstream(Server):
    """The server that answers."""

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def calls(self) -> int:
        return sum(self.look()["calls"].values())

    def look(self) -> dict[str, Any]:
        return json.loads(self.get("/look"))

    def go(self) -> None:
        """Let the model `held` go on."""
        self.get("/go", "POST")

    def forget(self) -> None:
        self.get("/forget", "POST")


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[Upstream]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(HERE / "upstream.py"), str(port)], text=True)
    found = Upstream(process, f"http://127.0.0.1:{port}")
    try:
        _wait_until(lambda: _answers(found))
        yield found
    finally:
        found.stop(signal.SIGKILL)


@pytest.fixture
def upstream(upstream_process: Upstream) -> Upstream:
    """The server, which has forgotten what it was asked before."""
    upstream_process.forget()
    return upstream_process


Start = Callable[..., Server]


@pytest.fixture
def start_proxy(upstream: Upstream, tmp_path: Path) -> Iterator[Start]:
    """Starts `lmstash proxy` with the options given, on the folder `stash` unless `folder=` says otherwise."""
    running: list[Server] = []

    def start(*options: str, folder: Path = tmp_path / "stash", to: str = upstream.base_url) -> Server:
        command = [sys.executable, "-m", "lmstash", "proxy", "--upstream", to, "--port", "0", "--json", "--dir", folder]
        process = subprocess.Popen([*map(str, command), *options], stdout=subprocess.PIPE, text=True, env=os.environ)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the proxy ended with {process.wait(10)}"
        running.append(Server(process, json.loads(line)["url"]))
        return running[-1]

    yield start
    for each in running:
        each.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is so; fails if it takes half a minute."""
    return _wait_until


def _wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def _answers(server: Server) -> bool:
    try:
        server.get("/look")
    except OSError:
        return False
    return True
