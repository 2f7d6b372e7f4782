"""What somebody's own code asks for by name."""

from __future__ import annotations

import functools
import os
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.adapters.lm_eval.who.own_names import Followed, harmless, variables
from lmstash.errors import UnsupportedModelError

from ..conftest import tiny_model


class Base:
    @property
    def shift(self) -> Any:
        return [self.delta for _ in range(2)]  # pyright: ignore[reportAttributeAccessIssue]


class Mine(Base, HFLM):
    def tok_encode(self, string: str, **options: Any) -> Any:
        return (lambda: self.header + string)()


def beside(lm: Any) -> Any:
    return getattr(lm, "peft" if lm.timeout else "")


class Helped(HFLM):
    def tok_encode(self, string: str, **options: Any) -> Any:
        return beside(self)


def followed(kind: type, held: dict[str, Any] | None = None) -> Followed:
    code = Followed("lm_eval")
    code.note_class(kind)
    code.note_held(held or {})
    code.add(kind)
    return code


def test_names_are_those_of_ones_own_methods_and_of_functions_within_them() -> None:
    named = followed(Mine).asked({})
    assert {"delta", "header"} <= named
    assert "pretrained" not in named  # which the harness's own code asks for
    assert followed(HFLM).asked({}) <= {"_tuple_new"}  # of a named tuple


def test_names_are_those_of_functions_that_ones_own_methods_lead_to_and_texts() -> None:
    assert {"timeout", "peft"} <= followed(Helped).asked({})


def test_names_are_those_of_functions_that_were_put_into_the_harness_and_into_the_object(monkeypatch) -> None:
    held = {"tok_encode": functools.partial, "_model_call": lambda self: self.client}
    assert "client" in followed(HFLM, held).asked(held)
    monkeypatch.setattr(HFLM, "tok_decode", lambda self: self.revision)
    assert "revision" in followed(HFLM).asked({})


def test_code_that_reaches_what_it_does_not_name_asks_for_all_that_is_held() -> None:
    class Any_(HFLM):
        def tok_encode(self, string: str, **options: Any) -> Any:
            return [each for name, each in vars(self).items() if name[0] == "t"]

    assert {"timeout", "header"} <= followed(Any_).asked({"timeout": 3, "header": {}})
    assert "other" not in followed(Any_).asked({"timeout": 3})


def test_what_is_held_under_these_names_counts_whatever_it_is() -> None:
    held = {"delta": 0.5, "header": object(), "timeout": 3}
    names = {"delta", "header", "timeout", "other"}
    assert harmless(names, {"delta", "header", "other"}, held) == {"timeout", "other"}


NAME = "LMSTASH_TEST_NAMED_ELSEWHERE"


@pytest.fixture
def environment(monkeypatch):
    for name in ("SCALE", "NAMED_ELSEWHERE", "PART_A", "HELD", "OTHER", "API_KEY"):
        monkeypatch.setenv(f"LMSTASH_TEST_{name}", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    return {f"LMSTASH_TEST_{name}" for name in ("SCALE", "NAMED_ELSEWHERE", "PART_A", "HELD")}


def read(part: str) -> Any:
    return [os.environ[NAME], os.environ[f"LMSTASH_TEST_PART_{part}"], os.getenv("LMSTASH_TEST_API_KEY", "LOCAL_RANK")]


class Reading(HFLM):
    def _model_call(self, inps: Any, **options: Any) -> Any:
        return read("a"), "LMSTASH_TEST_SCALE"


def test_variables_are_those_that_ones_own_code_names_wherever_it_does(environment, monkeypatch) -> None:
    held = {"which": ["LMSTASH_TEST_HELD"]}
    said = variables([followed(Reading)], held)
    assert [*said] == sorted(environment)
    assert "1" not in said.values()  # not in the clear
    assert variables([followed(Mine)], held) == {}
    assert variables([followed(HFLM)], held) == {}
    monkeypatch.delenv("LMSTASH_TEST_SCALE")
    assert "LMSTASH_TEST_SCALE" not in variables([followed(Reading)], held)


def test_what_a_function_reads_of_the_environment_is_another_model(tokenizer, monkeypatch) -> None:
    def look(kind: type, value: str) -> Any:
        monkeypatch.setenv("LMSTASH_TEST_SCALE", value)
        return who_answers(kind(pretrained=tiny_model(), tokenizer=tokenizer)).look()

    assert look(Reading, "2") == look(Reading, "2") != look(Reading, "3")
    assert look(Mine, "2") == look(Mine, "3")


class Retrieving(HFLM):
    def tok_encode(self, string: str, **options: Any) -> Any:
        found = beside(self), self.client.find(string), self.auth_token  # pyright: ignore[reportAttributeAccessIssue]
        return super().tok_encode(str(found), **options)


def test_an_object_that_ones_own_code_goes_by_counts_under_whatever_name(tokenizer) -> None:
    def look(kind: Any = Retrieving, **attributes: Any) -> Any:
        lm = kind(pretrained=tiny_model(), tokenizer=tokenizer)
        vars(lm).update(attributes)
        return who_answers(lm).look()

    for name in ("client", "timeout", "auth_token"):  # the second is named in a function that a method calls
        held = [SimpleNamespace(words=[word]) for word in ("cats", "cats", "dogs")]
        assert look(**{name: held[0]}) == look(**{name: held[1]}) != look(**{name: held[2]}), name
    assert look(HFLM, timeout=SimpleNamespace(seconds=1)) == look(HFLM, timeout=SimpleNamespace(seconds=2))


STEERING = torch.tensor([1.0, 2.0])


class Steering(HFLM):
    def _model_call(self, inps: Any, **options: Any) -> Any:
        return super()._model_call(inps, **options) + STEERING[0]


def test_a_small_tensor_that_ones_own_code_names_counts_by_its_content(tokenizer, monkeypatch) -> None:
    def look(**attributes: Any) -> Any:
        lm = Steering(pretrained=tiny_model(), tokenizer=tokenizer)
        vars(lm).update(attributes)
        return who_answers(lm).look()

    first = look()
    assert first == look()
    assert look(by=torch.ones(2)) == look(by=torch.ones(2)) != look(by=torch.zeros(2))
    assert look(by=torch.ones(2), more=torch.ones(1)) != look(by=torch.zeros(2), more=torch.ones(1))
    monkeypatch.setitem(globals(), "STEERING", torch.tensor([1.5, 2.0]))
    assert first != look()
    with pytest.raises(UnsupportedModelError, match="does not read"):
        look(by=torch.ones(20 << 20))


SPACES = re.compile(r"\s+")


class Cleaning(HFLM):
    def generate_until(self, requests: Any, **options: Any) -> Any:
        return [SPACES.sub(" ", each) for each in super().generate_until(requests, **options)]


def test_a_compiled_pattern_that_ones_own_code_names_counts_by_what_it_says(tokenizer, monkeypatch) -> None:
    def look() -> Any:
        return who_answers(Cleaning(pretrained=tiny_model(), tokenizer=tokenizer)).look()

    first = look()
    assert first == look()
    monkeypatch.setitem(globals(), "SPACES", re.compile(r"\s"))
    assert first != look()


def test_a_client_that_hangs_on_a_model_counts_by_where_it_asks(tokenizer) -> None:
    openai = pytest.importorskip("openai")
    from lm_eval.models.openai_completions import LocalChatCompletion

    class Gateway(LocalChatCompletion):
        def model_call(self, messages: Any, **options: Any) -> Any:
            return self.client.chat.completions.create(messages=messages)  # pyright: ignore[reportAttributeAccessIssue]

    def look(url: str, key: str = "k", *, local: bool = False, name: str = "client", **options: Any) -> Any:
        lm: Any = Gateway(model="m", tokenizer_backend=None)
        if local:
            lm = Retrieving(pretrained=tiny_model(), tokenizer=tokenizer)
        setattr(lm, name, openai.OpenAI(base_url=url, api_key=key, **options))
        return who_answers(lm).look()

    for local in (False, True):
        one = look("http://a/v1", local=local)
        assert one == look("http://a/v1", "other key", local=local)
        assert one != look("http://b/v1", local=local)
        assert one != look("http://a/v1", local=local, default_headers={"X-Model": "2"})
    assert look("http://a/v1", name="judge") != look("http://b/v1", name="judge")


def test_a_client_that_asks_in_somebody_s_own_way_is_refused_unless_vouched_for(tokenizer) -> None:
    httpx, openai = pytest.importorskip("httpx"), pytest.importorskip("openai")
    lm: Any = Retrieving(pretrained=tiny_model(), tokenizer=tokenizer)
    client = httpx.Client(transport=httpx.MockTransport(lambda request: None))
    lm.client = openai.OpenAI(base_url="http://a/v1", api_key="k", http_client=client)
    with pytest.raises(UnsupportedModelError, match="whom it asks"):
        who_answers(lm)
    assert who_answers(lm, variant="v").look()


def test_what_is_no_client_of_such_a_package_counts_by_what_it_holds(tokenizer) -> None:
    httpx = pytest.importorskip("httpx")

    def look(number: int) -> Any:
        lm: Any = Retrieving(pretrained=tiny_model(), tokenizer=tokenizer)
        lm.client = httpx.Limits(max_connections=number)
        return who_answers(lm).look()

    assert look(1) == look(1) != look(2)


def test_a_client_of_its_own_transport_does_not_count_by_its_address_alone(tokenizer) -> None:
    httpx = pytest.importorskip("httpx")

    def look(word: str) -> Any:
        lm: Any = Retrieving(pretrained=tiny_model(), tokenizer=tokenizer)
        lm.client = httpx.Client(base_url="http://a", transport=httpx.MockTransport(lambda request: word))
        try:
            return who_answers(lm).look()
        except UnsupportedModelError:
            return object()

    assert look("cats") != look("dogs")
