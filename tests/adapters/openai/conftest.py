"""A server that answers as OpenAI's does, and proxies in front of it: each a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import secrets
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

    def __init__(self, process: subprocess.Popen[Any], url: str) -> None:
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
    """The server that answers, as one test knows it."""

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


@pytest.fixture(scope="session")
def upstream_process() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:  # who asks early waits
        command = [sys.executable, str(HERE / "upstream.py"), str(listening.fileno())]
        process = subprocess.Popen(command, pass_fds=[listening.fileno()])
        found = Server(process, f"http://127.0.0.1:{listening.getsockname()[1]}")
    try:
        found.get("/nobody/look")
        yield found
    finally:
        found.stop(signal.SIGKILL)


@pytest.fixture
def upstream(upstream_process: Server) -> Upstream:
    """The server by a path that nobody has asked yet: what an earlier test still asks is not counted here."""
    return Upstream(upstream_process.process, f"{upstream_process.url}/{secrets.token_hex(4)}")


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
