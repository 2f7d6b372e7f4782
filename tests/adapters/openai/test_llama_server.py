"""The proxy in front of llama.cpp's own server, with SmolLM2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .conftest import free_port


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    pytest.importorskip("llama_cpp")
    for needed in ("fastapi", "sse_starlette", "starlette_context", "pydantic_settings"):
        pytest.importorskip(needed)
    from lmstash.cli.demo.model import find_gguf
    from lmstash.errors import NotFoundError

    try:
        gguf = find_gguf()
    except NotFoundError as error:
        pytest.skip(str(error))
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port), "--n_ctx", "256"]
    process = subprocess.Popen([*command, "--n_threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.model
@pytest.mark.slow
def test_answers_of_a_real_model(start_proxy: Any, llama: str, wait_until: Any) -> None:
    proxy = start_proxy(to=llama)

    def is_there() -> bool:
        try:
            return bool(client.models.list().data)
        except openai.APIError:
            return False

    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=120) as client:
        wait_until(is_there)
        ask: dict[str, Any] = {"model": "smollm2", "temperature": 0, "max_tokens": 6}
        messages: list[Any] = [{"role": "user", "content": "Name the capital of France."}]
        for stream in (False, True):
            said, marks = [], []
            for _ in range(2):
                raw = client.chat.completions.with_raw_response.create(messages=messages, stream=stream, **ask)
                marks.append(raw.headers["x-lmstash"])
                made: Any = raw.parse()
                said.append("".join(c.choices[0].delta.content or "" for c in made) if stream else raw.text)
                wait_until(lambda: '"flights":0' in proxy.get("/health"))
            assert marks == ["miss", "hit"]
            assert said[0] == said[1]
            assert "Paris" in said[0]
        with pytest.raises(openai.InternalServerError):
            client.embeddings.create(model="smollm2", input="it makes none")
