"""Kept answers are found, pruned and forgotten by what people call them and by what they say."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import MISSING, Responses, register
from lmstash.caches.responses.exporting import export_responses
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash


@pytest.fixture(params=["disk", "memory", "compressed"])
def stash(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stash]:
    where = "memory://" if request.param == "memory" else tmp_path / "stash"
    with lmstash.open(where, strict=True) as opened:
        if request.param == "compressed":
            cache = opened.responses(model="m", compress=True)
            assert cache.put_many(range(1000), [f"padding {n}" for n in range(1000)]) == 1000
            cache.prune(text="padding")
        yield opened


@pytest.fixture
def responses(stash: Stash, request: pytest.FixtureRequest) -> Responses:
    compress = "compressed" in request.node.name
    cache = stash.responses(model="m", keep_sampled=True, compress=compress)
    cache.put({"q": "two and two"}, "four", tags={"task": "gsm8k", "doc": 1, "split": "test", "tags": ["kept", "a"]})
    cache.put({"q": 'say "hi"\n'}, ("hi", b"bytes"), tags={"task": "gsm8k_cot", "doc": 2, "run": "r1"})
    cache.put({"q": "odd \ud800 text"}, {"text": "odd"}, tags={"task": "mmlu", "user": "u", "epoch": 3})
    cache.put({"q": "hot", "temperature": 1}, "one")
    cache.put({"q": "hot", "temperature": 1}, "two")
    stash.responses(model="n").put({"q": "two and two"}, "n's four", tags={"task": "gsm8k"})
    return cache


def test_to_look_is_not_to_use(stash: Stash, responses: Responses, tmp_path: Path) -> None:
    """So that what nobody asks for goes first, and is found by `older_than=`, however often it is looked at."""
    before = {each.key: (each.last_used, each.hits) for each in stash.store.entries("responses/")}
    time.sleep(0.01)
    assert len(list(responses.find(text="two"))) == 2
    assert export_responses(stash.store, tmp_path / "all.jsonl") == 6
    assert {each.key: (each.last_used, each.hits) for each in stash.store.entries("responses/")} == before


def answers(found: Any) -> list[Any]:
    return sorted((each.answer for each in found), key=repr)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"task": "gsm8k"}, ["four"]),
        ({"task": "gsm8k*"}, ["four", ("hi", b"bytes")]),
        ({"task": "GSM8K"}, []),
        ({"tag": "task=gsm8k"}, ["four"]),
        ({"tag": "kept"}, ["four"]),
        ({"tag": "k?pt"}, ["four"]),
        ({"tag": "epoch=3"}, [{"text": "odd"}]),
        ({"tag": "gsm8k"}, []),
        ({"doc": 2}, [("hi", b"bytes")]),
        ({"doc": "2", "task": "mmlu"}, []),
        ({"split": "test"}, ["four"]),
        ({"run": "r*"}, [("hi", b"bytes")]),
        ({"user": "u"}, [{"text": "odd"}]),
        ({"text": "two and"}, ["four"]),
        ({"text": "two"}, ["four", "two"]),
        ({"text": 'say "hi"\n'}, [("hi", b"bytes")]),
        ({"text": "ytes"}, [("hi", b"bytes")]),
        ({"text": "odd \ud800"}, [{"text": "odd"}]),
        ({"text": "odd \ud801"}, []),
        ({"older_than": 3600}, []),
    ],
)
def test_find(responses: Responses, conditions: dict[str, Any], expected: list[Any]) -> None:
    assert answers(responses.find(**conditions)) == sorted(expected, key=repr)


def test_values_are_kept_in_the_form_of_this_run(responses: Responses, request: pytest.FixtureRequest) -> None:
    forms = {bytes(responses.store.get(each.key) or b"")[0] for each in responses.find()}
    assert forms == ({1} if "[compressed" in request.node.name else {0})


def test_what_is_found_is_readable(responses: Responses) -> None:
    before = time.time()
    found = next(responses.find(task="gsm8k_cot"))
    assert found.request == {"q": 'say "hi"\n'}
    assert found.answer == ("hi", b"bytes")
    assert found.tags == {"task": "gsm8k_cot", "doc": 2, "run": "r1"}
    assert found.created <= before
    assert {each.occurrence for each in responses.find(text="hot")} == {0, 1}
    assert len(list(responses.find())) == 5


def test_an_answer_of_a_type_that_is_not_registered_is_found_in_plain_words(stash: Stash) -> None:
    @dataclasses.dataclass
    class Mine:
        text: str

    register(Mine, name="mine of this test")
    cache = stash.responses(model="m")
    cache.put("q", [Mine("hello")])
    from lmstash.caches.responses.answers import records as module

    del module._by_name["mine of this test"]
    assert next(cache.find(text="hello")).answer == [{"type": "mine of this test", "value": {"text": "hello"}}]


def test_prune_removes_what_meets_the_conditions_and_only_of_this_model(stash: Stash, responses: Responses) -> None:
    assert responses.prune(task="gsm8k*", dry_run=True).entries == 2
    assert len(list(responses.find())) == 5
    assert responses.prune(task="gsm8k*").entries == 2
    assert answers(responses.find()) == sorted([{"text": "odd"}, "one", "two"], key=repr)
    assert responses.prune(text="hot").entries == 2
    assert answers(responses.find()) == [{"text": "odd"}]
    assert answers(stash.responses(model="n").find()) == ["n's four"]
    with pytest.raises(InvalidArgumentError, match="needs a condition"):
        responses.prune()
    with pytest.raises(InvalidArgumentError, match="older_than"):
        responses.prune(tusk="gsm8k")


def test_the_stash_prunes_by_named_tags_and_by_the_names_of_models(stash: Stash, responses: Responses) -> None:
    assert stash.prune(tag="task=gsm8k").entries == 2
    assert stash.prune(tag="task=gsm8k_*", kind="responses").entries == 1
    assert stash.prune(model="m", kind="responses").entries == 3
    assert not list(responses.find())


def test_forget_removes_every_answer_to_a_text(tmp_path: Path, stash: Stash, responses: Responses) -> None:
    assert stash.forget(prompt="two and two", dry_run=True).entries == 2
    assert stash.forget(prompt="two and two").entries == 2
    assert stash.forget(prompt="odd \ud800").entries == 1
    assert stash.forget(prompt="four").entries == 0  # it was in answers only, and these are gone
    assert responses.get({"q": "two and two"}, MISSING) is MISSING
    assert len(list(responses.find())) == 3


def test_what_is_forgotten_is_in_no_file(tmp_path: Path) -> None:
    with lmstash.open(tmp_path, strict=True) as stash:
        cache = stash.responses(model="m")
        cache.put({"q": "my secret plan"}, "noted")
        cache.put({"q": "other"}, "noted, too")
        stash.forget(prompt="secret plan")
        assert len(list(cache.find())) == 1
    assert b"secret plan" not in b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())


def test_under_a_salt_only_what_is_ones_own_is_found_and_pruned(tmp_path: Path) -> None:
    with lmstash.open(tmp_path, strict=True) as stash:
        ours, theirs = (stash.responses(model="m", salt=salt, keep_sampled=True) for salt in ("ours", "theirs"))
        for n in range(3):
            ours.put({"q": "hot", "temperature": 1}, f"ours {n}", tags={"task": "t"})
            theirs.put({"q": "hot", "temperature": 1}, f"theirs {n}", tags={"task": "t"})
        assert answers(ours.find(task="t")) == ["ours 0", "ours 1", "ours 2"]
        assert ours.prune(task="t").entries == 3
        assert answers(theirs.find()) == ["theirs 0", "theirs 1", "theirs 2"]


def test_a_private_stash_is_searched_by_answers_and_tags(tmp_path: Path) -> None:
    with lmstash.open(tmp_path, strict=True, private=True) as stash:
        cache = stash.responses(model="m")
        cache.put({"q": "confidential"}, "four", tags={"task": "t"})
        assert [each.request for each in cache.find(text="four", task="t")] == [None]
        assert not list(cache.find(text="confidential"))


def test_expired_and_damaged_answers_are_not_found(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        cache = stash.responses(model="m")
        cache.put("a", "damaged " * 20)
        cache.put("b", "whole")
        cache.put("c", "expired", ttl_seconds=0.05)
    for path in (tmp_path / "segments").iterdir():
        path.write_bytes(path.read_bytes().replace(b"damaged damaged", b"damaged damagex", 1))
    time.sleep(0.1)
    with lmstash.open(tmp_path) as stash:
        assert answers(stash.responses(model="m").find()) == ["whole"]
