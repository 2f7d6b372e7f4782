"""One of all who ask a proxy the same asks the server, and the others listen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import lmstash
from lmstash.adapters.openai.library import Case, Library
from lmstash.adapters.openai.proxy.flights import Board
from lmstash.adapters.openai.proxy.metrics import Metrics
from lmstash.adapters.openai.proxy.upstream import Sent

URL = "http://localhost/v1/chat/completions"
HEADERS = [("content-type", "application/json")]
SAMPLED = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()


def test_who_asks_when_an_answer_has_ended_that_is_not_kept_asks_anew() -> None:
    library = Library(lmstash.open("memory://", strict=True), keep_sampled=True)
    board, asked = Board(Metrics()), 0

    async def ask() -> Sent:
        nonlocal asked
        asked += 1
        said = {"finish_reason": "content_filter", "message": {"content": f"answer {asked}"}}

        async def pieces() -> AsyncGenerator[bytes]:
            yield json.dumps({"choices": [said]}).encode()

        return Sent(200, HEADERS, pieces())

    async def hear() -> Any:
        case = library.consider("POST", URL, HEADERS, SAMPLED)
        assert isinstance(case, Case)
        flight, joined = board.join(case, "", ask)
        assert not joined
        return [json.loads(each)["choices"][0]["message"]["content"] async for each in flight.pieces()]

    async def run() -> None:
        assert [await hear(), await hear()] == [["answer 1"], ["answer 2"]]
        await board.land(10)

    asyncio.run(run())
