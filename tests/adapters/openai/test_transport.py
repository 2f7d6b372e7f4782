"""The transports inside real clients: `openai`, `httpx` and `httpx2`, plain and async."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

import lmstash
from lmstash.adapters.openai import AsyncCachingTransport, CachingTransport, async_http_client, http_client
from lmstash.stash import Stash

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": "echo", "temperature": 0, "messages": MESSAGES}


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


@pytest.fixture
def client(stash: Stash, upstream: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=upstream.base_url, api_key="sk-secret-1", http_client=http_client(stash), max_retries=0
    ) as made:
        yield made


def test_a_chat_is_asked_once_and_found_by_a_new_program(upstream: Any, tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        with (
            lmstash.open(tmp_path / "stash", strict=True) as stash,
            openai.OpenAI(base_url=upstream.base_url, api_key="k", http_client=http_client(stash)) as client,
        ):
            for _ in range(2):
                answer = client.chat.completions.with_raw_response.create(**ASK)
                texts.append(answer.parse().choices[0].message.content)
                last = answer.headers["x-lmstash"]
    assert texts == ["you said hi"] * 4
    assert (upstream.calls, last) == (1, "hit")


def test_embeddings_completions_and_responses(client: openai.OpenAI, upstream: Any) -> None:
    for _ in range(2):
        vectors = client.embeddings.create(model="echo", input=["a", "bb"])
        assert [each.embedding for each in vectors.data] == [[1.0, 0.5], [2.0, 0.5]]
        assert client.completions.create(model="echo", prompt="p", temperature=0).choices[0].text == "you said p"
        assert client.responses.create(model="echo", input="q", temperature=0).output_text == "you said q"
    assert upstream.calls == 3


def test_a_stream_is_replayed_and_is_not_the_answer_to_a_plain_request(client: openai.OpenAI, upstream: Any) -> None:
    for _ in range(2):
        chunks = list(client.chat.completions.create(**ASK, stream=True))
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == "you said hi "
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert upstream.calls == 1
    assert client.chat.completions.create(**ASK).choices[0].message.content == "you said hi"
    assert upstream.calls == 2
    for _ in range(2):
        *_, last = client.responses.create(model="echo", input="q", temperature=0, stream=True)
        assert last.type == "response.completed"
        assert last.response.output_text == "you said q"
    assert upstream.calls == 3


def test_a_stream_comes_as_it_is_made(client: openai.OpenAI, upstream: Any) -> None:
    stream = client.chat.completions.create(**ASK | {"model": "held"}, stream=True)
    first = next(iter(stream))
    assert first.choices[0].delta.content == "you "
    assert upstream.look()["finished"] == 0
    stream.close()  # and what was left within is not kept
    upstream.go()
    list(client.chat.completions.create(**ASK | {"model": "held"}, stream=True))
    assert upstream.calls == 2


def test_the_async_client(stash: Stash, upstream: Any) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(
            base_url=upstream.base_url, api_key="k", http_client=async_http_client(stash)
        ) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(**ASK | {"model": "slow"}) for _ in range(20))
            )
            assert {each.choices[0].message.content for each in answers} == {"you said hi"}
            assert upstream.calls == 1
            for _ in range(2):
                stream = await client.chat.completions.create(**ASK, stream=True)
                parts = [each.choices[0].delta.content or "" async for each in stream]
                assert "".join(parts) == "you said hi "
            assert upstream.calls == 2

    asyncio.run(run())


def test_threads_that_ask_the_same_ask_once(client: openai.OpenAI, upstream: Any) -> None:
    texts: list[Any] = []

    def ask() -> None:
        texts.append(client.chat.completions.create(**ASK | {"model": "slow"}).choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert texts == ["you said hi"] * 8
    assert upstream.calls == 1


@pytest.mark.parametrize(("options", "timeout"), [({}, httpx.Timeout(60, read=0.05)), ({"wait_seconds": 0.05}, None)])
@pytest.mark.parametrize("is_async", [False, True])
def test_who_waits_for_anothers_answer_waits_no_longer_than_for_a_server(
    stash: Stash, options: dict[str, Any], timeout: Any, is_async: bool
) -> None:
    url = "http://localhost/v1/chat/completions"
    asked, go = threading.Event(), threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        if not asked.is_set():
            asked.set()
            go.wait(20)
        said = {"finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
        return httpx.Response(200, json={"choices": [said]})

    async def answer_async(request: httpx.Request) -> httpx.Response:
        return await asyncio.to_thread(answer, request)

    async def ask() -> None:
        transport = AsyncCachingTransport(stash, httpx.MockTransport(answer_async), **options)
        async with httpx.AsyncClient(transport=transport) as client:
            leader = asyncio.create_task(client.post(url, json=ASK, timeout=None))
            await asyncio.to_thread(asked.wait, 20)
            assert (await client.post(url, json=ASK, timeout=timeout)).headers["x-lmstash"] == "miss"
            assert not leader.done()
            go.set()
            assert (await leader).headers["x-lmstash"] == "miss"

    if is_async:
        asyncio.run(ask())
        return
    transport = CachingTransport(stash, httpx.MockTransport(answer), **options)
    with httpx.Client(transport=transport) as client, ThreadPoolExecutor() as threads:
        leader = threads.submit(client.post, url, json=ASK, timeout=None)
        assert asked.wait(20)
        assert client.post(url, json=ASK, timeout=timeout).headers["x-lmstash"] == "miss"
        assert not leader.done()
        go.set()
        assert leader.result(20).headers["x-lmstash"] == "miss"


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_clients_of_both_packages(package: Any, stash: Stash, upstream: Any) -> None:
    with package.Client(transport=CachingTransport(stash), base_url=upstream.base_url) as client:
        marks = [client.post("/chat/completions", json=ASK) for _ in range(2)]
        assert [each.headers["x-lmstash"] for each in marks] == ["miss", "hit"]
        assert marks[0].content == marks[1].content
        assert marks[0].headers["x-ratelimit-remaining-requests"] == "9"
        assert "x-ratelimit-remaining-requests" not in marks[1].headers
        assert client.get("/models?a=b").json()["query"] == "a=b"
        sent = client.post("/files", content=b"\x00\xff")
        assert (sent.status_code, sent.content, sent.headers["x-mine"]) == (201, b"\x00\xff", "kept")

    async def run() -> None:
        async with package.AsyncClient(transport=AsyncCachingTransport(stash), base_url=upstream.base_url) as client:
            assert (await client.post("/chat/completions", json=ASK)).headers["x-lmstash"] == "hit"
            assert (await client.put("/files", content=b"abc")).content == b"abc"

    asyncio.run(run())


@pytest.mark.parametrize("package", [httpx, httpx2])
def test_an_answer_from_the_stash_is_read_as_one_from_a_server_and_says_how_long_it_took(
    package: Any, stash: Stash, upstream: Any
) -> None:
    not_kept = {"cache-control": "only-if-cached"}
    asked = [("miss", {}, ASK), ("hit", {}, ASK), ("miss", not_kept, ASK | {"seed": 1})]
    with package.Client(transport=CachingTransport(stash), base_url=upstream.base_url) as client:
        for mark, headers, body in asked:
            with client.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
                assert (answer.headers["x-lmstash"], answer.is_closed) == (mark, False)
                raw = b"".join(answer.iter_raw())
            assert len(raw) == int(answer.headers["content-length"]) == answer.num_bytes_downloaded
            assert answer.elapsed.total_seconds() > 0

    async def run() -> None:
        async with package.AsyncClient(transport=AsyncCachingTransport(stash), base_url=upstream.base_url) as client:
            for mark in ("miss", "hit"):
                asking = client.stream("POST", "/chat/completions", json=ASK | {"seed": 2})
                async with asking as answer:
                    assert json.loads(b"".join([each async for each in answer.aiter_raw()]))["object"]
                assert answer.headers["x-lmstash"] == mark
                assert answer.elapsed.total_seconds() > 0

    asyncio.run(run())
    assert upstream.calls == 2


def test_failures_reach_the_program_and_are_not_kept(client: openai.OpenAI, upstream: Any, stash: Stash) -> None:
    for _ in range(2):
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**ASK | {"model": "busy"})
        assert caught.value.response.headers["retry-after"] == "7"
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**ASK | {"model": "broken"})
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**ASK | {"model": "broken"}, stream=True)
        for model in ("filtered", "empty"):
            client.chat.completions.create(**ASK | {"model": model})
            list(client.chat.completions.create(**ASK | {"model": model}, stream=True))
        list(client.chat.completions.create(**ASK | {"model": "rude"}, stream=True))
        with pytest.raises(openai.APIConnectionError):
            list(client.chat.completions.create(**ASK | {"model": "torn"}, stream=True))
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).chat.completions.create(**ASK | {"model": "silent"})
    assert upstream.calls == 20
    assert stash.info().entries == 0


def test_what_is_answered_by_chance_is_asked_each_time(
    client: openai.OpenAI, upstream: Any, stash: Stash, tmp_path: Path
) -> None:
    for _ in range(2):
        client.chat.completions.create(model="echo", messages=MESSAGES)
    assert upstream.calls == 2
    keeping = client.with_options(http_client=http_client(stash, keep_sampled=True))
    ids = [keeping.chat.completions.create(model="echo", messages=MESSAGES).id for _ in range(3)]
    assert len(set(ids)) == 3
    with lmstash.open(tmp_path / "stash", strict=True) as opened:  # as a new program does
        again = client.with_options(http_client=http_client(opened, keep_sampled=True))
        assert [again.chat.completions.create(model="echo", messages=MESSAGES).id for _ in range(3)] == ids


def _answers(*said: Any) -> Any:
    """A transport that answers one thing after another, plain or as a stream: an exception, a status, or a text."""
    left = list(said)

    def answer(request: httpx.Request) -> httpx.Response:
        this = left.pop(0)
        if isinstance(this, BaseException):
            raise this
        if isinstance(this, int):
            return httpx.Response(this, stream=httpx.ByteStream(b'{"error": {"message": "not now"}}'))
        if not json.loads(request.content).get("stream"):
            said = {"finish_reason": "stop", "message": {"role": "assistant", "content": this}}
            return httpx.Response(200, json={"choices": [said]})
        event = json.dumps({"choices": [{"finish_reason": "stop", "delta": {"content": this}}]})
        end = "" if this == "torn" else "data: [DONE]\n\n"
        unread = httpx.ByteStream(f"data: {event}\n\n{end}".encode())
        return httpx.Response(200, stream=unread, headers={"content-type": "text/event-stream"})

    return httpx.MockTransport(answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("failure", [httpx.ConnectError("no"), 429, "", "torn", "probe"])
def test_an_attempt_that_gave_nothing_to_keep_uses_up_no_number_of_a_sample(
    tmp_path: Path, failure: Any, stream: bool, is_async: bool
) -> None:
    url, body = "http://localhost/v1/chat/completions", ASK | {"temperature": 1, "stream": stream}
    first = {"cache-control": "only-if-cached"} if failure == "probe" else {}
    lost: list[Any] = [] if first else [failure]
    if failure == "torn" and not stream:
        lost = [httpx.ReadError("torn")]

    def draw(server: Any, all_headers: list[dict[str, str]]) -> list[str]:
        """Ask in a program of its own; returns what comes."""
        came: list[str] = []
        with lmstash.open(tmp_path / "stash", strict=True) as stash:
            if is_async:

                async def run() -> None:
                    transport = AsyncCachingTransport(stash, server, keep_sampled=True)
                    async with httpx.AsyncClient(transport=transport) as client:
                        for headers in all_headers:
                            try:
                                came.append((await client.post(url, json=body, headers=headers)).text)
                            except httpx.TransportError as error:
                                came.append(str(error))

                asyncio.run(run())
                return came
            with httpx.Client(transport=CachingTransport(stash, server, keep_sampled=True)) as client:
                for headers in all_headers:
                    try:
                        came.append(client.post(url, json=body, headers=headers).text)
                    except httpx.TransportError as error:
                        came.append(str(error))
        return came

    drawn = draw(_answers(*lost, "one", "two"), [first, {}, {}])[1:]
    assert ["one" in drawn[0], "two" in drawn[1]] == [True, True]
    assert draw(_answers(), [{}, {}]) == drawn


def test_cache_control_of_a_request(client: openai.OpenAI, upstream: Any) -> None:
    def ask(control: str) -> str:
        made = client.chat.completions.with_raw_response.create(**ASK, extra_headers={"cache-control": control})
        return f"{made.headers['x-lmstash']} {json.loads(made.content)['id']}"

    with pytest.raises(openai.InternalServerError) as caught:
        ask("only-if-cached")
    assert (caught.value.status_code, upstream.calls) == (504, 0)
    with pytest.raises(openai.InternalServerError) as caught:  # nor may anybody be asked what is not cached at all
        client.chat.completions.create(**ASK | {"temperature": 1}, extra_headers={"cache-control": "only-if-cached"})
    assert (caught.value.status_code, upstream.calls) == (504, 0)
    assert ask("no-store") == "bypass c-1"
    assert ask("max-age=60") == "miss c-2"
    assert ask("only-if-cached") == "hit c-2"
    assert ask("no-store") == "bypass c-3"
    assert ask("no-cache") == "miss c-4"
    assert ask("max-age=60") == "hit c-4"
    assert ask("max-age=0") == "miss c-5"


def test_no_secret_is_in_the_folder(client: openai.OpenAI, stash: Stash, tmp_path: Path) -> None:
    client.with_options(
        default_headers={"cookie": "session=sk-secret-2", "x-custom-auth": "sk-secret-3"},
        default_query={"key": "sk-secret-4"},
        http_client=http_client(stash, by_token=True),
    ).chat.completions.create(**ASK, extra_body={"api_key": "sk-secret-5"})
    stash.close()
    kept = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
    assert b"you said hi" in kept
    assert b"sk-secret" not in kept


def test_an_own_transport_sends_and_a_compressed_answer_is_not_kept(stash: Stash) -> None:
    import gzip

    body = gzip.compress(b'{"choices": [{"finish_reason": "stop", "message": {"content": "hi"}}]}')
    asked_for: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked_for.append(request.headers["accept-encoding"])
        return httpx2.Response(
            200, headers={"content-encoding": "gzip", "content-type": "application/json"}, content=body
        )

    with httpx2.Client(transport=CachingTransport(stash, httpx2.MockTransport(answer))) as client:
        for _ in range(2):
            made = client.post("http://localhost/v1/chat/completions", json=ASK)
            assert made.json()["choices"][0]["message"]["content"] == "hi"
    assert asked_for == ["identity"] * 2
    assert stash.info().entries == 0


def test_behind_a_gateway_the_host_header_says_who_answers(stash: Stash) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        said = {"finish_reason": "stop", "message": {"role": "assistant", "content": request.headers["host"]}}
        return httpx.Response(200, json={"choices": [said]})

    with httpx.Client(transport=CachingTransport(stash, httpx.MockTransport(answer))) as client:
        said = [
            client.post("http://10.0.0.1/v1/chat/completions", json=ASK, headers={"host": host}).json()
            for host in ("svc-a", "svc-b", "svc-a", "10.0.0.1")
        ]
        plain = client.post("http://10.0.0.1/v1/chat/completions", json=ASK)
    assert [each["choices"][0]["message"]["content"] for each in said] == ["svc-a", "svc-b", "svc-a", "10.0.0.1"]
    assert plain.headers["x-lmstash"] == "hit"
    assert stash.stats.hits == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_what_goes_to_another_endpoint_is_sent_as_it_comes(stash: Stash, is_async: bool) -> None:
    came: list[bool] = []
    sent: list[bytes] = []

    def body() -> Iterator[bytes]:
        for number in range(3):
            sent.append(b"%d" % number)
            yield sent[-1]

    async def body_async() -> Any:
        for each in body():
            yield each

    class Server(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            came.append(not sent)
            return httpx.Response(200, content=b"".join(request.stream))  # pyright: ignore

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            came.append(not sent)
            return httpx.Response(200, content=b"".join([each async for each in request.stream]))  # pyright: ignore

    url = "http://localhost/v1/files"

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=AsyncCachingTransport(stash, Server())) as client:
            return await client.post(url, content=body_async())

    if is_async:
        answered = asyncio.run(ask())
    else:
        with httpx.Client(transport=CachingTransport(stash, Server())) as client:
            answered = client.post(url, content=body())
    assert answered.content == b"012"
    assert came == [True]
