"""Who answers: local models by content, models behind an API by what they were given, all others by declaration."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.identity import RemoteModel, who_answers
from lmstash.errors import UnsupportedModelError

from ..conftest import Scripted, echo, generations, instance, tiny_model


def test_the_same_model_under_another_path_or_as_an_object_is_the_same(tmp_path, tokenizer, hflm):
    transformers = pytest.importorskip("transformers")
    model = tiny_model()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    from lm_eval.models.huggingface import HFLM

    paths = [who_answers(HFLM(pretrained=str(tmp_path / name), device="cpu")).look() for name in ("a", "b")]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    given = who_answers(HFLM(pretrained=loaded, tokenizer=words)).look()
    assert paths[0] == paths[1]
    assert not given.explain(paths[0])


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"max_batch_size": 3}, {"logits_cache": False}])
def test_how_a_local_model_is_run_makes_no_difference(hflm, options):
    assert who_answers(hflm(**options)).look() == who_answers(hflm()).look()


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 64},
        {"truncation": True},
        {"add_bos_token": True},
        {"prefix_token_id": 5},
        {"think_end_token": "</think>"},
        {"softmax_dtype": "float64"},
        {"mixed_precision_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_what_changes_the_answers_of_a_local_model_counts(hflm, options):
    assert who_answers(hflm(**options)).look() != who_answers(hflm()).look()


def test_its_generation_defaults_and_its_tokenizer_count_as_they_are_now(hflm, tokenizer):
    import copy

    lm = hflm(tokenizer=copy.deepcopy(tokenizer))
    who = who_answers(lm)
    first = who.look()
    lm.model.generation_config.repetition_penalty = 1.3
    second = who.look()
    assert first != second
    lm.tokenizer.add_tokens(["<new>"])
    assert who.look() not in (first, second)
    assert not who.unchanged(first)


def questions() -> list[Any]:
    return [instance("loglikelihood", "a b", f" {word}") for word in "cdef"]


def test_another_module_put_in_its_place_is_another_model(stash, hflm):
    inner, first, second = hflm(), tiny_model(0), tiny_model(1)
    inner._model = first
    lm = CachedLM(inner, stash)
    plain = lm.loglikelihood(questions()[:2])
    inner._model = second
    swapped = lm.loglikelihood(questions())
    assert swapped == inner.loglikelihood(questions()) != plain
    assert lm.counts.hits == 0
    inner._model = first
    assert lm.loglikelihood(questions())[:2] == plain
    assert lm.counts.hits == 2
    assert CachedLM(hflm(model=tiny_model(0)), stash).loglikelihood(questions()) == hflm().loglikelihood(questions())
    assert CachedLM(hflm(model=tiny_model(1)), stash).loglikelihood(questions()) == swapped


def test_another_module_put_in_its_place_while_it_answers_takes_its_answers_back(stash, hflm):
    inner, other = hflm(), tiny_model(1)
    lm = CachedLM(inner, stash)

    class Meanwhile:
        def add_partial(self, *arguments: Any) -> None:
            inner._model = other

    lm.set_cache_hook(Meanwhile())
    lm.loglikelihood(questions())
    assert stash.stats.drops["model_changed"] == 4
    assert CachedLM(hflm(), stash).loglikelihood(questions()) == hflm().loglikelihood(questions())


def test_how_a_tokenizer_puts_texts_together_counts(hflm, tokenizer):
    import copy

    words = copy.deepcopy(tokenizer)
    who = who_answers(hflm(tokenizer=words))
    first = who.look()
    assert first == who_answers(hflm()).look()
    words.clean_up_tokenization_spaces = True
    assert who.look() == who_answers(hflm(tokenizer=words)).look() != first


def _begin_with_a_word(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )


@pytest.mark.parametrize(
    "change", [_begin_with_a_word, lambda tokenizer: tokenizer.add_tokens(["world"])], ids=["rule", "word"]
)
def test_a_tokenizer_changed_in_place_is_another_one_though_no_word_is_new(hflm, tokenizer, change):
    import copy

    words = copy.deepcopy(tokenizer)
    assert "world" in words.get_vocab()
    who = who_answers(hflm(tokenizer=words))
    first = who.look()
    change(words)
    assert not who.unchanged(first)
    assert who.look() == who_answers(hflm(tokenizer=words)).look() != first


def test_a_dtype_counts(hflm):
    import torch

    half = tiny_model().to(torch.bfloat16)
    assert who_answers(hflm(model=half)).look() != who_answers(hflm()).look()


def test_a_class_of_ones_own_counts_by_its_code(tokenizer):
    from lm_eval.models.huggingface import HFLM

    def make(factor: float) -> Any:
        class Mine(HFLM):
            scale = factor

            def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
                return super().tok_decode(tokens, skip_special_tokens) * int(self.scale)

        return who_answers(Mine(pretrained=tiny_model(), tokenizer=tokenizer)).look()

    assert make(1) == make(1)
    assert make(1) != make(2)


def test_an_attribute_of_ones_own_class_counts_under_whatever_name(tokenizer):
    from lm_eval.models.huggingface import HFLM

    class Steered(HFLM):
        def tok_encode(self, string: str, **options: Any) -> Any:
            return super().tok_encode(f"{self.header}{string}{self.delta}{self.revision}{self.timeout}", **options)

    def look(kind: Any = Steered, **attributes: Any) -> Any:
        lm = kind(pretrained=tiny_model(), tokenizer=tokenizer)
        vars(lm).update({"delta": 0.0, "header": "", "revision": "main", "timeout": 3, **attributes})
        return who_answers(lm).look()

    assert look() == look(batch_size_per_gpu=9, write_out=True)
    for change in ({"delta": 3.0}, {"header": "You are a pirate. "}, {"revision": "b"}, {"timeout": 5}):
        assert look(**change) != look()
    assert look(HFLM, revision="b", timeout=5) == look(HFLM)
    for change in ({"delta": 3.0}, {"header": "You are a pirate. "}):  # code that is put into the harness may read them
        assert look(HFLM, **change) != look(HFLM)


def test_an_attribute_of_a_declared_class_counts_that_its_code_goes_by():
    class Mine(Scripted):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(echo)
            vars(self).update(attributes)

        def generate_until(self, requests: list[Any]) -> list[Any]:
            return [f"{self.write_out} {each}" for each in super().generate_until(requests)]

    def look(**attributes: Any) -> Any:
        return who_answers(Mine(**attributes), model="m").look()

    assert look(write_out=1) != look(write_out=2)
    assert look(timeout=1) == look(timeout=2)


# --- behind an API ------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Completes prompts; says what it was asked."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((asked, dict(self.headers)))  # pyright: ignore[reportAttributeAccessIssue]
        prompts = asked.get("prompt", asked.get("text"))
        said = self.server.say  # pyright: ignore[reportAttributeAccessIssue]
        each = prompts if isinstance(prompts, list) else [prompts]
        choices = [{"index": i, "text": said(asked, prompt)} for i, prompt in enumerate(each)]
        data = json.dumps({"choices": choices} if "prompt" in asked else choices).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as opened:
        opened.asked = []  # pyright: ignore[reportAttributeAccessIssue]
        opened.say = lambda asked, prompt: f"{asked.get('model')}: {prompt}"  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def remote(server: Any, **options: Any) -> Any:
    pytest.importorskip("tenacity")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    url = f"http://127.0.0.1:{server.server_address[1]}/v1/completions"
    given = {"model": "m", "base_url": url, "tokenizer_backend": None, "tokenized_requests": False, **options}
    return LocalCompletionsAPI(**given)


@pytest.mark.parametrize("n_concurrent", [1, 3])
def test_a_server_is_asked_once(stash, server, n_concurrent):
    said = CachedLM(remote(server, num_concurrent=n_concurrent), stash).generate_until(generations(5))
    assert len(server.asked) == 5
    others = {1: 1, 3: 2}[n_concurrent]  # how many others there are changes nothing, but whether there are any does
    again = CachedLM(remote(server, batch_size=2, timeout=9, max_retries=1, num_concurrent=others), stash)
    assert again.generate_until(generations(5)) == said
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"seed": 7}, {"max_gen_toks": 9}, {"header": {"X-Model-Version": "2"}}], ids=str
)
def test_what_is_said_of_a_server_counts(stash, server, change):
    CachedLM(remote(server), stash).generate_until(generations(2))
    CachedLM(remote(server, **change), stash).generate_until(generations(2))
    assert len(server.asked) == 4


@pytest.mark.parametrize("options", [{}, {"model": "declared"}], ids=["seen", "declared"])
def test_requests_beside_others_which_the_harness_sends_otherwise_are_others(stash, server, options):
    for n_concurrent in (1, 2, 3):
        lm = remote(server, num_concurrent=n_concurrent, eos_string="</s>")
        CachedLM(lm, stash, **options).generate_until(generations(1))
    assert [asked["stop"] for asked, _ in server.asked] == [["\n", "</s>"], ["\n"]]


@pytest.mark.parametrize("options", [{}, {"model": "declared"}], ids=["seen", "declared"])
@pytest.mark.parametrize(
    ("name", "value"), [("eos_string", "zzz"), ("eos_string", None), ("eot_token_id", 7), ("prefix_token_id", 9)]
)
def test_what_the_harness_makes_of_other_attributes_counts_where_it_was_replaced(server, name, value, options):
    def look(change: bool) -> Any:
        lm = remote(server, eos_string="</s>")
        assert who_answers(lm, **options).look() == plain
        getattr(lm, name)  # kept by the object from now on, and says nothing new
        assert who_answers(lm, **options).look() == plain
        if change:
            setattr(lm, name, value)
        return who_answers(lm, **options).look()

    plain = who_answers(remote(server, eos_string="</s>"), **options).look()
    assert look(True) == look(True) != look(False)


def test_a_stop_word_that_nobody_knows_is_not_complained_of_at_each_look(server, caplog):
    lm = remote(server)
    assert lm.eos_string is None
    caplog.clear()
    assert who_answers(lm).look() == who_answers(remote(server)).look()
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


def test_a_declared_revision_counts(stash, server):
    for revision in ("2026-10", "2026-11", "2026-11"):
        CachedLM(remote(server), stash, revision=revision).generate_until(generations(1))
    assert len(server.asked) == 2


def test_another_address_is_another_model(server):
    other = remote(server, base_url="http://127.0.0.1:1/v1/completions")
    assert who_answers(other).look() != who_answers(remote(server)).look()


def test_keys_are_neither_identity_nor_kept(tmp_path, stash, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-one")
    lm = CachedLM(remote(server, auth_token="secret-two", header={"Authorization": "Bearer secret-three"}), stash)
    lm.generate_until(generations(2))
    again = CachedLM(remote(server), stash)
    again.generate_until(generations(2))
    assert again.counts.computed == 0
    stash.flush()
    everything = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
    assert b"prompt 1" in everything
    assert b"secret-" not in everything


def test_values_in_an_address_count_and_are_not_kept(tmp_path, stash, server):
    url = f"http://me:pass-one@127.0.0.1:{server.server_address[1]}/v1/completions?key=AIza-two&code=three-3&api_key=k4"
    others = [url.replace("three-3", "other-5"), url.replace("me:pass-one@", "").replace("k4", "k6")]
    who = [who_answers(remote(server, base_url=each)).look() for each in (url, *others)]
    assert who[0] != who[1]
    assert who[0] == who[2]
    assert who_answers(remote(server, base_url=f"{url}&eu")).look() != who_answers(remote(server, base_url=url)).look()
    for options in ({}, {"model": "declared"}):
        CachedLM(remote(server, base_url=url), stash, **options).generate_until(generations(2))
    stash.flush()
    everything = b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())
    assert b"/v1/completions" in everything
    for secret in (b"pass-one", b"AIza-two", b"three-3"):
        assert secret not in everything


def test_where_no_address_is_given_what_the_environment_says_counts(monkeypatch):
    pytest.importorskip("tenacity")
    monkeypatch.setitem(sys.modules, "litellm", types.ModuleType("litellm"))
    kind = importlib.import_module("lm_eval.models.litellm_llms").LiteLLMChatCompletion

    def look(value: str, **options: Any) -> Any:
        monkeypatch.setenv("OPENAI_API_BASE", value)
        return who_answers(kind(model="openai/m", **options)).look()

    assert look("http://a/v1") == look("http://me:pw@a/v1/") != look("http://b/v1")
    assert look("http://a/v1", base_url="http://c") == look("http://b/v1", base_url="http://c")
    assert "pw" not in str(look("http://me:pw@a/v1").components)


SENT = [
    ("openai_completions", "LocalCompletionsAPI", 1234),
    ("openai_completions", "LocalChatCompletion", 1234),
    ("openai_completions", "OpenAIChatCompletion", 1234),
    ("sglang_generate_API", "SGLANGGENERATEAPI", None),
    ("anthropic_llms", "AnthropicChat", None),
    ("litellm_llms", "LiteLLMChatCompletion", None),
]


@pytest.mark.parametrize(("module", "name", "seed"), SENT, ids=[each[1] for each in SENT])
def test_a_seed_is_known_of_those_that_send_it(server, monkeypatch, module, name, seed):
    pytest.importorskip("tenacity")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    monkeypatch.setitem(sys.modules, "litellm", types.ModuleType("litellm"))
    kind = getattr(importlib.import_module(f"lm_eval.models.{module}"), name)
    lm = kind(model="m", base_url="http://127.0.0.1:1/v1", tokenizer_backend=None, tokenized_requests=False)
    assert RemoteModel(lm, revision=None, variant=None).seed() == seed


def test_a_seed_is_not_known_of_code_of_ones_own_or_where_the_server_chooses_one(server):
    class Mine(type(remote(server))):
        def _create_payload(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            return super()._create_payload(*arguments, **options)

    given = {"model": "m", "base_url": "http://127.0.0.1:1", "tokenizer_backend": None, "tokenized_requests": False}
    replaced = remote(server)
    replaced.model_call = lambda messages, **options: None
    for lm in (Mine(**given), replaced, remote(server, seed=-1)):
        assert RemoteModel(lm, revision=None, variant=None).seed() is None


def test_samples_of_a_server_that_gets_no_seed_are_not_served_again(stash, server):
    from lm_eval.models.sglang_generate_API import SGLANGGENERATEAPI

    options = {"base_url": f"http://127.0.0.1:{server.server_address[1]}", "tokenizer_backend": None}
    for kind, n_asked in ((SGLANGGENERATEAPI, 4), (type(remote(server)), 6)):
        for _ in range(2):
            lm = CachedLM(kind(model="m", tokenized_requests=False, **options), stash)
            lm.generate_until(generations(2, do_sample=True, temperature=1.0))
        assert len(server.asked) == n_asked


def test_a_server_that_says_nothing_is_asked_again(stash, server):
    server.say = lambda asked, prompt: None
    for _ in range(2):
        assert CachedLM(remote(server), stash).generate_until(generations(2)) == ["", ""]
    assert len(server.asked) == 4


# --- all others ---------------------------------------------------------------------------------------------------


def test_nobody_guesses(hflm):
    with pytest.raises(UnsupportedModelError, match="Declare which"):
        who_answers(Scripted(echo))
    from lm_eval.models.dummy import DummyLM

    with pytest.raises(UnsupportedModelError):
        who_answers(DummyLM())


def test_a_declaration_stands_before_what_can_be_seen(stash, hflm):
    CachedLM(hflm(0), stash, model="mine").loglikelihood([instance("loglikelihood", "a", " b")])
    again = CachedLM(hflm(1), stash, model="mine")
    again.loglikelihood([instance("loglikelihood", "a", " b")])
    assert again.counts.hits == 1
