"""A signal handler in the midst of a request asks through the same client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.at_lines import at_line

import lmstash
from lmstash.adapters.openai import CachingTransport, library
from lmstash.adapters.openai.library import Case, Library

URL = "http://localhost/v1/chat/completions"
HEADERS = [("content-type", "application/json")]


def everywhere(make: Callable[[], Any], work: Callable[[Any], Any], act: Callable[[Any], Any], within: str) -> None:
    """Do `act` at every line of `work`, in a thread that is not waited for when it waits for itself."""

    def run() -> None:
        n_lines = at_line(0, lambda: work(make()), lambda: None, within)
        for line in range(1, n_lines + 1):
            subject = make()
            at_line(line, lambda subject=subject: work(subject), lambda subject=subject: act(subject), within)
        ended.set()

    ended = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    assert ended.wait(60)


@pytest.mark.parametrize("model", ["m", "another"])
def test_a_handler_finds_the_answers_of_a_model(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_MOST_MODELS", 2)
    stash = lmstash.open("memory://", strict=True)

    def ask(subject: Library, *models: str) -> None:
        for each in models:
            body = json.dumps({"model": each, "temperature": 0, "messages": [{"role": "user", "content": "hi"}]})
            assert isinstance(subject.consider("POST", URL, HEADERS, body.encode()), Case)
        assert len(subject._caches) <= 2

    def work(subject: Library) -> None:
        ask(subject, "m", "second", "m", "third")

    everywhere(lambda: Library(stash), work, lambda subject: ask(subject, model, "fourth"), "openai/library.py")


def test_a_handler_sends_by_the_transport_that_stays() -> None:
    request, senders = httpx.Request("GET", URL), []

    def send(subject: CachingTransport) -> None:
        senders.append((subject, subject._sender(request, "HTTPTransport")))

    def make() -> CachingTransport:
        return CachingTransport(lmstash.open("memory://", strict=True))

    everywhere(make, send, send, "openai/transport.py")
    assert len(senders) > 4
    assert all(sender is subject._inner for subject, sender in senders)
