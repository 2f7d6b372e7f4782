"""llama-cpp-python's own server over our caches: asked as a client asks, through a socket."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import SETTINGS, STORY, say

pytest.importorskip("llama_cpp.server.app", reason="the server's packages are not installed", exc_type=ImportError)

from llama_cpp.server import app as server_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

from lmstash.adapters.llama_cpp import LlamaDiskCache, LlamaRAMCache
from lmstash.adapters.llama_cpp.server import create_app

pytestmark = pytest.mark.model


GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0}  # the server's own default penalizes


class Client:
    """Asks a server."""

    def __init__(self, port):
        self.port = port

    def _post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def ask(self, prompt, n_tokens=12, *, path="/v1/completions", **options):
        asked = {"messages": prompt} if "chat" in path else {"prompt": prompt}
        body = {**asked, "max_tokens": n_tokens, **GREEDY, **options}
        connection, response = self._post(path, body)
        said = json.loads(response.read())
        connection.close()
        assert response.status == 200, said
        return said["choices"][0]

    def stream(self, prompt, n_tokens=12, *, stop_after=None, **options):
        body = {"prompt": prompt, "max_tokens": n_tokens, "stream": True, **GREEDY, **options}
        connection, response = self._post("/v1/completions", body)
        out = []
        while line := response.readline():
            if line.startswith(b"data: {"):
                out.append(json.loads(line[6:])["choices"][0]["text"])
                if len(out) == stop_after:
                    break
        if stop_after is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        return "".join(out)


@pytest.fixture
def serve(gguf):
    """Run the server with models of some settings, over a cache."""
    import uvicorn

    with contextlib.ExitStack() as running:

        def make(*models, **named):
            usual = {**SETTINGS, "logits_all": False}
            settings = [
                ModelSettings(model=str(gguf), **{**usual, "model_alias": f"m{number}", **options})
                for number, options in enumerate(models or [{}])
            ]
            app = create_app(server_settings=ServerSettings(), model_settings=settings, **named)
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
            thread = threading.Thread(target=server.run)
            thread.start()

            def stop():
                server.should_exit = True
                thread.join()
                server_app._llama_proxy.free()

            running.callback(stop)
            until = time.monotonic() + 30
            while not server.started and time.monotonic() < until:
                time.sleep(0.01)
            return Client(server.servers[0].sockets[0].getsockname()[1])

        yield make


def current():
    """The model that the server holds."""
    return server_app._llama_proxy._current_model


def test_completions_and_chats_are_those_of_a_server_without_a_cache(serve, plain):
    cache = LlamaRAMCache()
    client = serve(cache=cache)
    questions = [STORY + "The librarian", "Rain is water that", STORY + "The lamp", STORY + "The librarian"]
    assert [client.ask(each)["text"] for each in questions] == [say(plain(), each) for each in questions]
    messages = [{"role": "system", "content": STORY}, {"role": "user", "content": "Who lit the lamp?"}]
    wanted = plain().create_chat_completion(messages, max_tokens=8, temperature=0.0)["choices"][0]
    for _ in range(2):
        said = client.ask(messages, 8, path="/v1/chat/completions")
        assert said["message"]["content"] == wanted["message"]["content"]
    assert cache.events.stats.hits > 0
    assert len(cache) == 4
    assert current()._eval_tokens < 3 * len(current().tokenize(STORY.encode())) + 6 * 13 + 30


def test_its_own_settings_make_our_caches(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = serve({"cache": True, "cache_type": "disk", "cache_size": 1 << 28}, {"cache": True}, {})
    client.ask("Hi", 1)
    assert isinstance(current().cache.cache, LlamaDiskCache)
    assert (len(current().cache), current().cache.capacity_bytes) == (1, 1 << 28)
    assert os.path.isdir(current().cache.cache.cache_dir)
    client.ask("Hi", 1, model="m1")
    ours = current().cache.cache
    assert isinstance(ours, LlamaRAMCache)
    client.ask("Hi", 1, model="m2")
    assert current().cache is None
    client.ask("Hi", 1, model="m1")
    assert current().cache.cache is ours


def test_streams_say_the_same_and_may_be_closed_early(serve, plain):
    cache = LlamaRAMCache()
    client = serve(cache=cache)
    wanted = say(plain(), STORY, 8)
    assert client.stream(STORY, 8) == wanted
    assert len(cache) == 1
    part = client.stream("The sea is", 200, stop_after=2)
    assert say(plain(), "The sea is", 200).startswith(part)
    assert client.ask("The sea is", 8)["text"] == say(plain(), "The sea is", 8)
    assert client.stream(STORY, 8) == wanted
    assert client.ask(STORY, 8)["text"] == wanted


def test_two_requests_at_a_time(serve, plain):
    client = serve(cache=LlamaRAMCache())
    questions = [STORY + "The librarian", STORY + "The lamp", "Rain is water that"] * 3
    wanted = {each: {say(plain(), each, 6)} for each in questions}
    for each, texts in wanted.items():
        llm = plain()
        say(llm, each, 6)
        texts.add(say(llm, each, 6))  # its last token evaluated alone, as after a restore
    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(lambda each: client.ask(each, 6)["text"], questions))
    assert all(text in wanted[each] for text, each in zip(said, questions, strict=True))


def test_models_of_different_settings_share_one_cache(serve, plain):
    cache = LlamaRAMCache()
    models = [{}, {"flash_attn": True}, {"n_ctx": 1024, "n_batch": 128}, {"logits_all": True}]
    client = serve(*models, cache=cache)
    for turn in range(2):
        for number, options in enumerate(models):
            named = {"logprobs": 2} if "logits_all" in options else {}
            said = client.ask(STORY, 4, model=f"m{number}", **named)
            computing = {name: options[name] for name in ("flash_attn", "logits_all") if name in options}
            assert said["text"] == say(plain(**computing), STORY, 4)
            assert len((said["logprobs"] or {"tokens": []})["tokens"]) == 4 * bool(named)
            # Another context of the first one's settings takes its states; the others compute once.
            assert (current()._eval_tokens > 20) == (turn == 0 and number != 2)


@pytest.mark.slow
def test_as_a_command_it_keeps_states_over_a_restart(gguf, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lmstash.adapters.llama_cpp.server", "--model", str(gguf), "--n_ctx", "512"]
    command += ["--cache", "true", "--cache_type", "disk", "--port", str(port), "--n_threads", "1"]
    command += ["--verbose", "false"]
    texts = []
    for _ in range(2):
        log = tmp_path / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out)
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None:
                with contextlib.suppress(OSError):
                    texts.append(Client(port).ask(STORY, 4)["text"])
                    break
                time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(timeout=30)
        assert texts, log.read_text()
    assert texts[0] == texts[1]
    cache = LlamaDiskCache(str(tmp_path / ".cache" / "llama_cpp"))
    assert len(cache) == 1
    hits = sum(entry.hits for entry in cache.store.entries("states/"))
    assert hits > 0
    cache.store.close()
