"""A server that answers as OpenAI's does, by what is asked: as a program under real uvicorn, and it counts.

Run: python upstream.py FD, the number of a socket that listens. Each test asks under a path of its own, `/NAME/v1`, and
has counts of its own: a request of an earlier test that comes late counts there. It knows these models: `echo` (repeats
the last message), `slow` (a tenth of a second between pieces), `held` (goes on after its first piece when `/NAME/go` is
asked), `filtered`, `empty`, `broken` (500), `busy` (429), `moved` (is at `elsewhere` now), `rude` (leaves the end of a
stream out), `torn` (ends a connection within a stream), `flaky` (503 twice, then as echo), `silent` (never answers).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route


@dataclass
class Asked:
    """What one test has asked."""

    calls: Counter[str] = field(default_factory=Counter)
    """How often each path, without the test's name."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    finished: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)


by_test: defaultdict[str, Asked] = defaultdict(Asked)


def _asked(request: Request) -> Asked:
    return by_test[request.path_params["test"]]


def _path(request: Request) -> str:
    return request.url.path.removeprefix(f"/{request.path_params['test']}")


def _text(body: dict[str, Any]) -> str:
    if "messages" in body:
        said = body["messages"][-1]["content"]
        return f"you said {said if isinstance(said, str) else json.dumps(said)}"
    return f"you said {body.get('prompt') or body.get('input')}"


async def answer(request: Request) -> Response:
    body, asked = json.loads(await request.body()), _asked(request)
    asked.calls[_path(request)] += 1
    asked.seen.append({"headers": dict(request.headers), "body": body, "query": request.url.query})
    number, model = asked.calls.total(), body.get("model")
    if model == "busy":
        return JSONResponse(
            {"error": {"message": "slow down", "type": "rate_limit"}},
            429,
            {"retry-after": "7", "x-ratelimit-remaining-requests": "0"},
        )
    if model == "moved":
        return _elsewhere(request, 302 if body.get("stream") else 307)
    if model == "broken":
        return JSONResponse({"error": {"message": "broken", "type": "server_error"}}, 500)
    if model == "flaky" and asked.calls["flaky"] < 2:
        asked.calls["flaky"] += 1
        return JSONResponse({"error": {"message": "starting"}}, 503)
    if model == "silent":
        await asyncio.sleep(30)
    if request.headers.get("authorization") == "Bearer wrong":
        await asyncio.sleep(0.5)
        return JSONResponse({"error": {"message": "wrong key"}}, 401)
    if request.url.path.endswith("/embeddings"):
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": [float(len(t)), 0.5]} for i, t in enumerate(given)]
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": {"total_tokens": 3}})
    text = "" if model == "empty" else _text(body)
    if request.url.path.endswith("/responses"):
        made = _response(body, text, number)
        return _stream(asked, _response_events(made)) if body.get("stream") else JSONResponse(made)
    end = "content_filter" if model == "filtered" else "stop"
    chat = request.url.path.endswith("/chat/completions")
    if not body.get("stream"):
        if model == "slow":
            await asyncio.sleep(0.5)
        if model == "held":
            await asked.gate.wait()
        asked.finished += 1
        part: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices = [{"index": 0, "finish_reason": end, "logprobs": None, **part}]
        kind = "chat.completion" if chat else "text_completion"
        made = {"id": f"c-{number}", "object": kind, "created": 1, "model": model, "choices": choices}
        return JSONResponse(made, headers={"x-request-id": f"r-{number}", "x-ratelimit-remaining-requests": "9"})

    def chunk(part: str | None, end: str | None) -> dict[str, Any]:
        inner: dict[str, Any] = {"delta": {"content": part} if part else {}} if chat else {"text": part or ""}
        kind = "chat.completion.chunk" if chat else "text_completion"
        choices = [{"index": 0, "finish_reason": end, **inner}]
        return {"id": f"c-{number}", "object": kind, "created": 1, "model": model, "choices": choices}

    events = [chunk(word + " ", None) for word in text.split()] + [chunk(None, end)]
    if model == "rude":
        return _stream(asked, events[:2])
    if model == "torn":
        return _stream(asked, [*events[:2], None])
    return _stream(asked, [*events, "[DONE]"], 0.1 if model == "slow" else 0.0, held=model == "held")


def _response(body: dict[str, Any], text: str, number: int) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}]
    return {
        **{
            "id": f"resp-{number}",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": body["model"],
        },
        **{"output": output, "metadata": body.get("metadata") or {}, "error": None, "incomplete_details": None},
        **{"parallel_tool_calls": True, "tool_choice": "auto", "tools": []},
    }


def _response_events(made: dict[str, Any]) -> list[Any]:
    started = {**made, "status": "in_progress", "output": []}
    text = made["output"][0]["content"][0]["text"]
    delta = {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0}
    return [
        {"type": "response.created", "response": started, "sequence_number": 0},
        {**delta, "delta": text, "logprobs": [], "sequence_number": 1},
        {"type": "response.completed", "response": made, "sequence_number": 2},
    ]


def _stream(asked: Asked, events: list[Any], pause: float = 0.0, held: bool = False) -> Response:
    async def pieces() -> Any:
        for event in events:
            if event is None:
                raise ConnectionResetError("torn")
            said = event if isinstance(event, str) else json.dumps(event)
            kind = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
            yield f"{kind}data: {said}\n\n"
            await asyncio.sleep(pause)
            if held:
                await asked.gate.wait()
        asked.finished += 1

    return StreamingResponse(pieces(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def look(request: Request) -> Response:
    asked = _asked(request)
    return JSONResponse({"calls": dict(asked.calls), "seen": asked.seen, "finished": asked.finished})


async def go(request: Request) -> Response:
    _asked(request).gate.set()
    return JSONResponse({})


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [], "query": request.url.query})


async def echo(request: Request) -> Response:
    return Response(await request.body(), 201, {"x-mine": "kept"})


async def elsewhere(request: Request) -> Response:
    _asked(request).calls[_path(request)] += 1
    return JSONResponse({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "from elsewhere"}}]})


async def moved(request: Request) -> Response:
    return _elsewhere(request, 307)


def _elsewhere(request: Request, status: int) -> Response:
    return RedirectResponse(f"/{request.path_params['test']}/v1/elsewhere", status)


app = Starlette(
    routes=[
        Mount(
            "/{test}",
            routes=[
                *(
                    Route(f"/v1/{name}", answer, methods=["POST"])
                    for name in ("chat/completions", "completions", "embeddings", "responses")
                ),
                Route("/v1/models", models),
                Route("/v1/files", echo, methods=["PUT", "POST", "DELETE"]),
                Route("/v1/elsewhere", elsewhere, methods=["GET", "PUT", "POST"]),
                Route("/v1/moved", moved, methods=["GET", "PUT", "POST"]),
                Route("/look", look),
                Route("/go", go, methods=["POST"]),
            ],
        )
    ],
    middleware=[Middleware(CORSMiddleware, allow_origin_regex=".*", allow_credentials=True)],
)

if __name__ == "__main__":
    uvicorn.run(app, fd=int(sys.argv[1]), log_level="error", access_log=False, backlog=2048)
