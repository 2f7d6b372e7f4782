"""Clients in one line: what the environment says of proxies counts, as for `openai` itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

import lmstash
from lmstash.adapters.openai import async_http_client, http_client
from lmstash.stash import Stash

ASK: dict[str, Any] = {"model": "echo", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says which proxies the environment names: those and no others."""
    names = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]
    for each in names:
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.upper(), raising=False)

    def say(**said: str) -> None:
        for name, value in said.items():
            monkeypatch.setenv(name, value)

    return say


def ask(base_url: str, made: Any) -> tuple[str | None, str]:
    with openai.OpenAI(base_url=base_url, api_key="k", http_client=made, max_retries=0) as client:
        answer = client.chat.completions.with_raw_response.create(**ASK)
        return answer.parse().choices[0].message.content, answer.headers["x-lmstash"]


async def ask_async(base_url: str, made: Any) -> tuple[str | None, str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="k", http_client=made, max_retries=0) as client:
        answer = await client.chat.completions.with_raw_response.create(**ASK)
        return answer.parse().choices[0].message.content, answer.headers["x-lmstash"]


def test_requests_go_by_the_proxy_that_the_environment_names(stash: Stash, upstream: Any, say: Any) -> None:
    asked = urlsplit(upstream.base_url)
    base_url = f"http://model.invalid{asked.path}"  # where nobody is, but for a proxy
    say(http_proxy=f"http://{asked.netloc}")
    assert ask(base_url, http_client(stash)) == ("you said hi", "miss")
    assert asyncio.run(ask_async(base_url, async_http_client(stash, revision="2"))) == ("you said hi", "miss")
    assert ask(base_url, http_client(stash)) == ("you said hi", "hit")
    assert asyncio.run(ask_async(base_url, async_http_client(stash))) == ("you said hi", "hit")
    assert upstream.calls == 2


def test_what_needs_no_proxy_goes_by_none_and_is_kept_too(stash: Stash, upstream: Any, say: Any) -> None:
    say(http_proxy="http://127.0.0.1:9", no_proxy="127.0.0.1")
    assert ask(upstream.base_url, http_client(stash)) == ("you said hi", "miss")
    assert asyncio.run(ask_async(upstream.base_url, async_http_client(stash))) == ("you said hi", "hit")


def test_the_environment_does_not_count_if_the_caller_says_so_or_gives_a_transport(
    stash: Stash, upstream: Any, say: Any
) -> None:
    say(http_proxy="http://127.0.0.1:9")
    with pytest.raises(openai.APIConnectionError):
        ask(upstream.base_url, http_client(stash))
    assert ask(upstream.base_url, http_client(stash, trust_env=False)) == ("you said hi", "miss")
    made = http_client(stash, inner=httpx2.HTTPTransport(), revision="2")
    assert ask(upstream.base_url, made) == ("you said hi", "miss")
    made = async_http_client(stash, trust_env=False)
    assert asyncio.run(ask_async(upstream.base_url, made)) == ("you said hi", "hit")
