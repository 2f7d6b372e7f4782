"""`lmstash proxy`, a real process, between the real `openai` client and a real server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

import lmstash
from lmstash.adapters.openai import http_client
from lmstash.cli.main import main

ASK: dict[str, Any] = {"model": "echo", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
SLOW = ASK | {"model": "slow"}
HELD = ASK | {"model": "held"}


def client_of(proxy: Any, key: str = "sk-secret-1") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0)


def _listens(proxy: Any) -> bool:
    try:
        proxy.get("/health")
    except OSError:
        return False
    return True


def metric(proxy: Any, name: str) -> float:
    match = re.search(rf"^lmstash_{re.escape(name)} (\S+)$", proxy.get("/metrics"), re.MULTILINE)
    return float(match[1]) if match else 0.0


def test_every_kind_of_request_is_asked_once_also_after_a_restart(
    start_proxy: Any, upstream: Any, tmp_path: Path
) -> None:
    for _ in range(2):
        proxy = start_proxy()
        with client_of(proxy) as client:
            for _ in range(2):
                assert client.chat.completions.create(**ASK).choices[0].message.content == "you said hi"
                chunks = list(client.chat.completions.create(**ASK, stream=True))
                assert "".join(each.choices[0].delta.content or "" for each in chunks) == "you said hi "
                assert (
                    client.completions.create(model="echo", prompt="p", temperature=0).choices[0].text == "you said p"
                )
                assert client.embeddings.create(model="echo", input="abc").data[0].embedding == [3.0, 0.5]
                assert client.responses.create(model="echo", input="q", temperature=0).output_text == "you said q"
                *_, last = client.responses.create(model="echo", input="q", temperature=0, stream=True)
                assert last.type == "response.completed"
                assert last.response.output_text == "you said q"
            assert client.models.list().data == []
            assert json.loads(proxy.get("/health")) == {"status": "ok", "upstream": upstream.base_url, "flights": 0}
        assert proxy.stop() == 0
    assert upstream.calls == 6
    kept = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
    assert b"you said hi" in kept
    assert b"sk-secret" not in kept
    assert {each["headers"]["authorization"] for each in upstream.look()["seen"]} == {"Bearer sk-secret-1"}


def test_the_first_byte_leaves_before_the_last_comes(start_proxy: Any, upstream: Any, wait_until: Any) -> None:
    with client_of(start_proxy()) as client:
        stream = client.chat.completions.create(**HELD, stream=True)
        assert next(iter(stream)).choices[0].delta.content == "you "
        assert upstream.look()["finished"] == 0
        upstream.go()
        assert len(list(stream)) == 3
        wait_until(lambda: upstream.look()["finished"] == 1)


def test_200_who_ask_the_same_at_once_reach_upstream_once(start_proxy: Any, upstream: Any) -> None:
    proxy = start_proxy()

    async def run() -> None:
        limits = httpx2.Limits(max_connections=300)
        async with httpx2.AsyncClient(limits=limits, timeout=60, headers={"authorization": "Bearer k"}) as client:
            url = f"{proxy.url}/v1/chat/completions"
            plain = [client.post(url, json=SLOW) for _ in range(100)]
            streams = [client.post(url, json=SLOW | {"stream": True}) for _ in range(100)]
            answers = await asyncio.gather(*plain, *streams)
        assert {each.status_code for each in answers} == {200}
        assert len({each.content for each in answers[:100]}) == len({each.content for each in answers[100:]}) == 1

    asyncio.run(run())
    assert upstream.calls == 2
    assert metric(proxy, 'proxy_requests_total{result="miss",reason="asked"}') == 2
    assert metric(proxy, "proxy_flights") == 0


def test_a_client_that_goes_away_takes_nothing_with_it(start_proxy: Any, upstream: Any, wait_until: Any) -> None:
    proxy = start_proxy()
    with client_of(proxy) as client, client.chat.completions.create(**HELD, stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.content == "you "
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{proxy.url}/v1/chat/completions", json=HELD, timeout=0.5)
    wait_until(lambda: upstream.calls == 2)
    assert metric(proxy, "proxy_flights") == 2
    upstream.go()
    wait_until(lambda: metric(proxy, "proxy_flights") == 0)
    for body in (HELD, HELD | {"stream": True}):
        assert httpx2.post(f"{proxy.url}/v1/chat/completions", json=body).headers["x-lmstash"] == "hit"
    assert upstream.calls == 2


def test_failures_pass_through_and_are_not_kept(start_proxy: Any, upstream: Any) -> None:
    proxy = start_proxy("--timeout", "1")
    with client_of(proxy) as client:
        for _ in range(2):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(**ASK | {"model": "busy"})
            assert caught.value.response.headers["retry-after"] == "7"
            assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
            with pytest.raises(openai.InternalServerError, match="broken"):
                client.chat.completions.create(**ASK | {"model": "broken"})
            for model in ("filtered", "empty"):
                client.chat.completions.create(**ASK | {"model": model})
                list(client.chat.completions.create(**ASK | {"model": model}, stream=True))
            list(client.chat.completions.create(**ASK | {"model": "rude"}, stream=True))
            with pytest.raises(openai.APIConnectionError):
                list(client.chat.completions.create(**ASK | {"model": "torn"}, stream=True))
            with pytest.raises(openai.InternalServerError, match="in time") as late:
                client.chat.completions.create(**ASK | {"model": "silent"})
            assert late.value.status_code == 504
    assert upstream.calls == 18
    assert metric(proxy, "entries") == 0
    assert metric(proxy, "proxy_upstream_retries_total") == 0


def test_a_server_that_is_starting_is_asked_again_and_one_that_is_not_there_is_502(
    start_proxy: Any, upstream: Any, tmp_path: Path
) -> None:
    proxy = start_proxy()
    with client_of(proxy) as client:
        assert client.chat.completions.create(**ASK | {"model": "flaky"}).choices[0].message.content == "you said hi"
    assert metric(proxy, "proxy_upstream_retries_total") == 2
    nowhere = start_proxy("--retries", "1", to="http://127.0.0.1:9/v1", folder=tmp_path / "nowhere")
    with client_of(nowhere) as client, pytest.raises(openai.InternalServerError, match="cannot be reached") as caught:
        client.chat.completions.create(**ASK)
    assert caught.value.status_code == 502
    assert metric(nowhere, "proxy_upstream_retries_total") == 1


def test_nobody_hears_a_refusal_that_was_meant_for_another_caller(
    start_proxy: Any, upstream: Any, wait_until: Any
) -> None:
    proxy = start_proxy()

    def ask(key: str) -> int:
        url, headers = f"{proxy.url}/v1/chat/completions", {"authorization": f"Bearer {key}"}
        return httpx2.post(url, json=ASK, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor() as threads:
        refused = threads.submit(ask, "wrong")
        wait_until(lambda: upstream.calls == 1)
        assert [*threads.map(ask, ["right", "right"])] == [200, 200]
        assert refused.result() == 401
    assert upstream.calls == 2


def test_callers_share_nothing_if_asked_so(start_proxy: Any, upstream: Any) -> None:
    proxy = start_proxy("--by-token")
    for key in ("a", "b", "a"):
        with client_of(proxy, key) as client:
            client.chat.completions.create(**ASK)
    assert upstream.calls == 2


def test_what_is_passed_on_says_why_and_is_counted(start_proxy: Any, upstream: Any) -> None:
    proxy = start_proxy()
    image = {"type": "image_url", "image_url": {"url": "http://example.com/cat.png"}}
    by_url = ASK | {"messages": [{"role": "user", "content": [image]}]}
    sampled = {name: value for name, value in ASK.items() if name != "temperature"}
    for body, why in ((by_url, "url"), (sampled, "sampled"), (ASK | {"background": True}, "state")):
        for _ in range(2):
            made = httpx2.post(f"{proxy.url}/v1/chat/completions", json=body)
            assert (made.headers["x-lmstash"], made.headers["x-lmstash-reason"]) == ("bypass", why)
        assert metric(proxy, f'proxy_requests_total{{result="bypass",reason="{why}"}}') == 2
    assert upstream.calls == 6
    sent = httpx2.put(f"{proxy.url}/v1/files?a=b", content=iter([b"\x00", b"\xff" * 100_000]))
    assert (sent.status_code, sent.content, sent.headers["x-mine"]) == (201, b"\x00" + b"\xff" * 100_000, "kept")
    assert httpx2.get(f"{proxy.url}/models?a=%20b").json()["query"] == "a=%20b"


def test_a_redirect_is_the_clients_to_follow(start_proxy: Any, upstream: Any) -> None:
    """Another host would get it without its key, or as another method, and that answer would be kept as ours."""
    proxy = start_proxy()
    answers = [
        *(httpx2.post(f"{proxy.url}/v1/chat/completions", json=ASK | {"model": "moved"}) for _ in range(2)),
        httpx2.post(f"{proxy.url}/v1/chat/completions", json=ASK | {"model": "moved", "stream": True}),
        httpx2.get(f"{proxy.url}/v1/moved"),
        httpx2.put(f"{proxy.url}/v1/moved", content=iter([b"a", b"b"])),
    ]
    assert [each.status_code for each in answers] == [307, 307, 302, 307, 307]
    assert {each.headers["location"] for each in answers} == {f"{urlsplit(upstream.base_url).path}/elsewhere"}
    assert upstream.look()["calls"] == {"/v1/chat/completions": 3}
    assert metric(proxy, "entries") == 0


def test_sampled_answers_are_kept_by_number_if_asked(start_proxy: Any, upstream: Any) -> None:
    sampled = {name: value for name, value in ASK.items() if name != "temperature"}

    def ask(proxy: Any, number: int) -> str:
        headers = {"x-lmstash-keep-sampled": "1", "x-lmstash-occurrence": str(number)}
        return httpx2.post(f"{proxy.url}/v1/chat/completions", json=sampled, headers=headers).json()["id"]

    proxy = start_proxy()
    ids = [ask(proxy, number) for number in (0, 1, 0, 1)]
    assert ids == [ids[0], ids[1]] * 2
    assert len(set(ids)) == 2
    assert [ask(start_proxy(), number) for number in (1, 0)] == [ids[1], ids[0]]
    assert upstream.calls == 2


def test_cache_control_of_a_request(start_proxy: Any, upstream: Any) -> None:
    proxy = start_proxy()

    def ask(control: str) -> str:
        made = httpx2.post(f"{proxy.url}/v1/chat/completions", json=ASK, headers={"cache-control": control})
        return f"{made.headers['x-lmstash']} {made.json().get('id', made.status_code)}"

    asked = ["only-if-cached", "no-store", "max-age=60", "only-if-cached", "no-store", "no-cache", "max-age=60"]
    assert [ask(each) for each in asked] == [
        *("miss 504", "bypass c-1", "miss c-2", "hit c-2", "bypass c-3", "miss c-4", "hit c-4"),
    ]
    time.sleep(1.1)
    assert ask("max-age=1") == "miss c-5"
    sampled = ASK | {"temperature": 1}  # nor may anybody be asked what is not cached at all
    made = httpx2.post(f"{proxy.url}/v1/chat/completions", json=sampled, headers={"cache-control": "only-if-cached"})
    assert (made.status_code, made.headers["x-lmstash"], upstream.calls) == (504, "miss", 5)


def test_a_page_of_another_site_may_read_a_kept_answer_as_it_may_read_the_servers(
    start_proxy: Any, upstream: Any
) -> None:
    proxy = start_proxy()
    for body in (ASK, ASK | {"stream": True}):
        for mark in ("miss", "hit"):
            for origin in ("http://localhost:3000", "http://localhost:4000", None):
                headers = {"origin": origin} if origin else {}
                made = httpx2.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers)
                assert made.headers["x-lmstash"] == mark
                assert made.headers.get("access-control-allow-origin") == origin
                assert made.headers.get("access-control-allow-credentials") == ("true" if origin else None)
    assert upstream.calls == 6


def test_two_proxies_on_one_folder_ask_once(start_proxy: Any, upstream: Any) -> None:
    proxies = [start_proxy(), start_proxy()]

    async def run() -> None:
        async with httpx2.AsyncClient(timeout=60) as client:
            asked = [client.post(f"{proxies[i % 2].url}/v1/chat/completions", json=SLOW) for i in range(40)]
            assert len({each.content for each in await asyncio.gather(*asked)}) == 1

    asyncio.run(run())
    assert upstream.calls == 1


def test_a_proxy_that_is_killed_within_a_stream_keeps_none_of_it_and_all_of_what_was_answered(
    start_proxy: Any, upstream: Any
) -> None:
    proxy = start_proxy()
    with client_of(proxy) as client:
        client.chat.completions.create(**ASK)
        stream = client.chat.completions.create(**HELD, stream=True)
        next(iter(stream))
        proxy.stop(signal.SIGKILL)
        upstream.go()
        with pytest.raises(openai.APIConnectionError):
            list(stream)
    with client_of(start_proxy()) as client:
        client.chat.completions.create(**ASK)
        assert upstream.calls == 2
        assert len(list(client.chat.completions.create(**HELD, stream=True))) == 4
        assert upstream.calls == 3


def test_an_end_that_is_asked_for_waits_for_the_answers_under_way(
    start_proxy: Any, upstream: Any, wait_until: Any
) -> None:
    proxy = start_proxy()
    with client_of(proxy) as client:
        stream = client.chat.completions.create(**HELD, stream=True)
        next(iter(stream))
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _listens(proxy))
        upstream.go()
        assert len(list(stream)) == 3
    assert proxy.process.wait(20) == 0
    with client_of(start_proxy()) as client:
        list(client.chat.completions.create(**HELD, stream=True))
    assert upstream.calls == 1


def test_damage_is_a_miss(start_proxy: Any, upstream: Any, tmp_path: Path) -> None:
    proxy = start_proxy()
    with client_of(proxy) as client:
        client.chat.completions.create(**ASK)
    proxy.stop()
    hurt = 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and b"you said hi" in (data := path.read_bytes()):
            path.write_bytes(data.replace(b"you said hi", b"you said ho"))
            hurt += 1
    assert hurt == 1
    with client_of(start_proxy()) as client:
        for _ in range(2):
            assert client.chat.completions.create(**ASK).choices[0].message.content == "you said hi"
    assert upstream.calls == 2


def test_a_warning_where_others_can_connect(upstream: Any, tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "lmstash", "proxy", "--upstream", upstream.base_url, "--port", "0", "--json"]
    for host, warns in (("0.0.0.0", True), ("127.0.0.1", False)):
        process = subprocess.Popen(
            [*command, "--dir", str(tmp_path), "--host", host],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert "http://" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=20)
        assert ("warning" in talk) == warns
        assert process.returncode == 0


def test_a_proxy_and_a_transport_share_answers(start_proxy: Any, upstream: Any, tmp_path: Path) -> None:
    with client_of(start_proxy()) as client:
        client.chat.completions.create(**ASK)
        *_, last = client.chat.completions.create(**ASK, stream=True)
        assert last.choices[0].finish_reason == "stop"
    with (
        lmstash.open(tmp_path / "stash", strict=True) as stash,
        openai.OpenAI(base_url=upstream.base_url, api_key="k", http_client=http_client(stash)) as client,
    ):
        for stream in (False, True):
            answer = client.chat.completions.with_raw_response.create(**ASK, stream=stream)
            assert answer.headers["x-lmstash"] == "hit"
    assert upstream.calls == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--upstream", "ftp://example.com"],
        ["--upstream", "example.com/v1"],
        ["--upstream", "http://user:secret@example.com/v1"],
        ["--upstream", "http://example.com", "--retries", "-1"],
        ["--upstream", "http://example.com", "--ttl", "soon"],
        [],
    ],
)
def test_a_command_line_that_is_not_right_ends_with_2(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["proxy", *options, "--port", "0", "--dir", str(tmp_path / "stash")]) == 2
    assert "secret" not in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_keeps_nothing_and_stops_nobody(
    start_proxy: Any, upstream: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    with client_of(start_proxy(folder=tmp_path / "file")) as client:
        for _ in range(2):
            assert client.chat.completions.create(**ASK).choices[0].message.content == "you said hi"


def test_switched_off_it_passes_everything_on(start_proxy: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSTASH_DISABLE", "1")
    with client_of(start_proxy()) as client:
        for _ in range(2):
            assert client.chat.completions.create(**ASK).choices[0].message.content == "you said hi"
            assert len(list(client.chat.completions.create(**ASK, stream=True))) == 4
    assert upstream.calls == 4
