"""The proxy under 200 requests a second: what it adds to an answer, kept or not; and 200 who ask the same at once.

Three processes: the server (a bare ASGI application under uvicorn, which answers at once: what any answer of this stack
costs at least), `lmstash proxy` in front of it, and this one, which sends requests at their times over kept
connections, whether or not earlier ones have been answered, and measures from these times. Contenders take turns; the
figures are medians of the rounds. Bodies: 1 KiB asked, 1.5 KiB answered.

Where others use the processors, `chrt -f 5 python benchmarks/bench_responses_proxy.py` (root) runs all three first.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from measuring import Report, Scratch, arguments

RATE, HERD = 200, 200
GOAL_SECONDS = 0.002
PATH = "/v1/chat/completions"
QUESTION, ANSWER = "why? " * 190, "because " * 160


# --- the server -----------------------------------------------------------------------------------------------------


def serve(port: int) -> None:
    """Answer at once; a stream takes ten times 2 ms. `GET /` says how many were asked."""
    import uvicorn

    calls = Counter()
    end = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
    plain = json.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": [end]}).encode()
    piece = {"id": "c", "object": "chat.completion.chunk", "model": "m"}
    parts = [{**piece, "choices": [{"index": 0, "finish_reason": None, "delta": {"content": "because "}}]}] * 10
    parts.append({**piece, "choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]})
    events = [f"data: {json.dumps(each)}\n\n".encode() for each in parts] + [b"data: [DONE]\n\n"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["method"] == "GET":
            said = str(calls["asked"]).encode()
        else:
            calls["asked"] += 1
            said = plain
        if b'"stream": true' in body:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            for event in events:
                await asyncio.sleep(0.002)
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        if b"herd" in body:
            await asyncio.sleep(0.5)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, timeout_keep_alive=120)


# --- those who ask --------------------------------------------------------------------------------------------------


class Line:
    """Kept connections to one server: a lean client, so that what is measured is not the client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, what: str, stream: bool = False) -> tuple[float, bytes, str]:
        """Ask; returns when the first byte of the body came, the body, and where it came from."""
        body = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": QUESTION + what}]}
        data = json.dumps(body | ({"stream": True} if stream else {})).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return await self._exchange(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)

    async def look(self) -> int:
        """Return how many were asked."""
        return int((await self._exchange(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"))[1])

    async def _exchange(self, request: bytes) -> tuple[float, bytes, str]:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if " 200 " not in lines[0]:
            raise RuntimeError(lines[0])
        first, body = 0.0, b""
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
            first = time.perf_counter()
        else:
            while n_bytes := int(await reader.readline(), 16):
                body += (await reader.readexactly(n_bytes + 2))[:-2]
                first = first or time.perf_counter()
            await reader.readline()
        self._free.append((reader, writer))
        return first, body, headers.get("x-lmstash", "")


async def steady(line: Line, words: list[str], expect: str, stream: bool = False) -> list[tuple[float, float]]:
    """Ask at a steady rate; returns (seconds until the first byte, until the last) of each."""
    out: list[tuple[float, float]] = []
    start = time.perf_counter() + 0.05

    async def one(number: int, word: str) -> None:
        due = start + number / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()  # the clock of this loop is a millisecond coarse: not the server's business
        first, _, mark = await line.ask(word, stream)
        if mark != expect:
            raise RuntimeError(f"{mark!r} instead of {expect!r}")
        out.append((first - sent, time.perf_counter() - sent))

    await asyncio.gather(*(one(number, word) for number, word in enumerate(words)))
    return out


async def herd(proxy: Line, server: Line, stream: bool) -> tuple[int, float]:
    """All ask the same at once; returns how often the server was asked, and the seconds until all are answered."""
    before = await server.look()
    started = time.perf_counter()
    word = f"herd {started}"
    answers = await asyncio.gather(*(proxy.ask(word, stream) for _ in range(HERD)))
    seconds = time.perf_counter() - started
    if len({body for _, body, _ in answers}) != 1:
        raise RuntimeError("answers differ")
    return await server.look() - before, seconds


# --- the benchmark --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("a server does not start")


def middle(rounds: list[list[tuple[float, float]]], place: int, share: float) -> float:
    """Return the median over the rounds of a quantile, in seconds."""
    return statistics.median(sorted(each[place] for each in one)[int(share * (len(one) - 1))] for one in rounds)


async def measure(report: Report, ports: dict[str, int], n_rounds: int, n_asked: int) -> None:
    server, proxy = Line(ports["server"]), Line(ports["proxy"])
    kept = [f"kept {number}" for number in range(100)]
    for stream in (False, True):
        for word in kept:
            await proxy.ask(word, stream)
    names = ("direct", "miss", "hit", "direct, stream", "miss, stream", "hit, stream")
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in names}
    for turn in range(-1, n_rounds):
        for name in names:
            stream = "stream" in name
            words = [f"{turn} {name} {number}" for number in range(n_asked)]
            if name.startswith("hit"):
                words = [kept[number % len(kept)] for number in range(n_asked)]
            expect = "" if name.startswith("direct") else name[: name.find(",")] if stream else name
            rounds = await steady(server if name.startswith("direct") else proxy, words, expect, stream)
            if turn >= 0:  # the first round only warms
                found[name].append(rounds)
    rows = []
    for name, rounds in found.items():
        times = [middle(rounds, place, share) * 1000 for place, share in ((0, 0.5), (1, 0.5), (1, 0.9), (1, 0.99))]
        rows.append([name, *times])
    columns = ("answer", "first byte, ms", "whole, ms", "whole p90, ms", "whole p99, ms")
    report.table(f"{RATE} requests a second, {n_asked} in each of {n_rounds} rounds", columns, rows)

    def added(name: str, place: int, share: float = 0.5) -> float:
        direct = found["direct, stream" if "stream" in name else "direct"]
        pairs = zip(found[name], direct, strict=True)
        return statistics.median(middle([a], place, share) - middle([b], place, share) for a, b in pairs)

    report.goal(
        "a hit, whole (nothing subtracted)", middle(found["hit"], 1, 0.5) * 1000, GOAL_SECONDS * 1000, unit=" ms"
    )
    report.goal("a hit, added to direct", added("hit", 1) * 1000, GOAL_SECONDS * 1000, unit=" ms")
    report.goal("a miss, added to direct", added("miss", 1) * 1000, GOAL_SECONDS * 1000, unit=" ms")
    report.goal("a stream's first byte, added", added("miss, stream", 0) * 1000, GOAL_SECONDS * 1000, unit=" ms")
    crowds = [("plain", await herd(proxy, server, False)), ("stream", await herd(proxy, server, True))]
    rows = [[name, HERD, asked, seconds] for name, (asked, seconds) in crowds]
    report.table("The same question at once", ("answer", "asked at once", "reached the server", "seconds"), rows)
    for name, (asked, _) in crowds:
        report.goal(f"{HERD} at once reach the server, {name}", asked, 1)


def main() -> None:
    args = arguments(__doc__)
    if args.worker:
        serve(int(json.loads(args.worker)["port"]))
        return
    report = Report("responses-proxy", quick=args.quick)
    if os.sched_getscheduler(0) == os.SCHED_FIFO:
        report.note("(at real-time priority)")
    with Scratch(args.dir) as scratch:
        ports = {name: free_port() for name in ("server", "proxy")}
        worker = [sys.executable, __file__, "--worker", json.dumps({"port": ports["server"]})]
        upstream = f"http://127.0.0.1:{ports['server']}/v1"
        command = [sys.executable, "-m", "lmstash", "proxy", "--upstream", upstream, "--port", str(ports["proxy"])]
        command += ["--dir", str(scratch.path / "stash")]
        processes = [subprocess.Popen(each, env=os.environ, stderr=subprocess.DEVNULL) for each in (worker, command)]
        try:
            for port in ports.values():
                wait_for(port)
            n_rounds, n_asked = (args.rounds or 2, 100) if args.quick else (args.rounds or 5, 400)
            asyncio.run(measure(report, ports, n_rounds, n_asked))
        finally:
            for each in processes:
                each.send_signal(signal.SIGTERM)
            for each in processes:
                each.wait(30)
    report.finish()


if __name__ == "__main__":
    main()
