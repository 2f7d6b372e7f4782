"""What a program sets in an installed package's module counts where its code names that module."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import library, made_program

CLIENT = "base_url = None\nmax_retries = 2\napi_key = None\nMOST = 1\ndef send(x): return f'{x} by {base_url}'"
USES = {
    "a global": "import lmstash_test_client\ndef ask(x): return lmstash_test_client.send(x)",
    "another name of it": "import lmstash_test_client as c\ndef ask(x): return c.send(x)",
    "another function": "import lmstash_test_client as c\ndef send(x): return c.send(x)\ndef ask(x): return send(x)",
    "a variable that it closes over": "def make():\n import lmstash_test_client as c\n def ask(x): return c.send(x)\n"
    " return ask\nask = make()",
}


@pytest.mark.parametrize("about", USES)
def test_a_setting_counts_in_the_next_run_and_in_this_one(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: str
) -> None:
    for server in ("http://a", "http://b", "http://user:word@c"):
        client = library(tmp_path, monkeypatch, "lmstash_test_client", CLIENT)
        ask = responses.cached(made_program(USES[about])["ask"])
        client.base_url = server
        assert [ask("x"), ask("x")] == [f"x by {server}"] * 2
        client.base_url = server + "/v1"
        assert [ask("x"), ask("x")] == [f"x by {server}/v1"] * 2
    assert dict(stash.stats.misses) == {"absent": 6}
    assert stash.stats.hits == 6


def test_what_is_no_setting_or_changes_no_answer_does_not_count(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        client = library(tmp_path, monkeypatch, "lmstash_test_client", CLIENT)
        client.api_key, client.max_retries, client._seen, client.trace = f"key {number}", number, number, number
        ask = responses.cached(made_program(USES["a global"])["ask"], harmless=["trace"])
        assert ask("x") == "x by None"
    assert (stash.stats.hits, dict(stash.stats.misses)) == (1, {"absent": 1})


def test_a_module_within_a_package_that_code_names_counts_by_its_settings_too(responses: Responses) -> None:
    backends = pytest.importorskip("torch").backends
    ask = responses.cached(made_program("import torch\ndef ask(x): return torch.backends.lmstash_test + x")["ask"])
    try:
        for word in ("one", "two"):
            backends.lmstash_test = word
            assert ask("x") == f"{word}x"
    finally:
        del backends.lmstash_test
