"""What a hit returns is what was computed, or it is not kept; and no wish beside it costs the answer."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

import lmstash
from lmstash.caches.responses import register
from lmstash.caches.responses.answers.records import decode_answer, encode_answer
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash


class Aliased(BaseModel):
    kind: str = Field("none", alias="class")


class Scaled(BaseModel):
    score: float

    @field_validator("score")
    @classmethod
    def _share(cls, value: float) -> float:
        return value / 100


class Anything(BaseModel):
    said: Any


class Mood(enum.StrEnum):
    GOOD = "good"


class Rank(enum.IntEnum):
    FIRST = 1


class Feeling(BaseModel):
    mood: Mood
    rank: Rank = Rank.FIRST
    why: str = ""


class Outer(BaseModel):
    inner: Anything


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Secretive(BaseModel):
    key: SecretStr


class Base(BaseModel):
    a: int


class Derived(Base):
    b: int


class Holder(BaseModel):
    held: Base


@dataclass
class Grown:
    score: float

    def __post_init__(self) -> None:
        self.score *= 100


@dataclass
class Made:
    a: int
    more: InitVar[int] = 1

    def __post_init__(self, more: int) -> None:
        self.a += more


@dataclass
class Plain:
    words: list[str] = field(default_factory=list)
    odds: float = 0.0


class Own:
    def __init__(self, by: int) -> None:
        self.by = by


@pytest.fixture(autouse=True)
def known() -> None:
    for cls in (Aliased, Scaled, Anything, Feeling, Outer, Loose, Secretive, Base, Derived, Holder, Grown, Made, Plain):
        register(cls)
    register(Own, to_plain=lambda value: value.by, from_plain=Own)


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash") as opened:
        yield opened


@pytest.mark.parametrize(
    "answer",
    [
        Scaled(score=50),
        Anything(said=(1, 2)),
        Anything(said=Mood.GOOD),
        Anything(said=[{"of": Rank.FIRST}]),
        Anything(said=np.float64(1.5)),
        Outer(inner=Anything(said=Mood.GOOD)),
        Secretive(key=SecretStr("abc")),
        Holder(held=Derived(a=1, b=2)),
        Grown(0.5),
        Made(5, 1),
        [Plain(), Grown(1)],
    ],
)
def test_what_would_come_back_as_another_is_not_kept(stash: Stash, answer: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="come back as another"):
        encode_answer(answer)
    responses = stash.responses(model="m")
    for _ in range(2):
        assert responses.get_or_compute("x", lambda: answer) == answer
    assert stash.stats.hits == 0


@pytest.mark.parametrize(
    "answer",
    [
        Aliased(**{"class": "good"}),
        Anything(said=[1, {"a": None}]),
        Feeling(mood=Mood.GOOD, rank=Rank.FIRST),
        Outer(inner=Anything(said="good")),
        Loose.model_validate({"beside": [1.5, "x"]}),
        Holder(held=Base(a=1)),
        {"several": [Plain(["a"], 0.5), Plain()], "more": (Base(a=1),)},
    ],
)
def test_what_comes_back_as_itself_is_kept(answer: Any) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_numbers_that_are_none_and_classes_that_say_how_they_are_made_are_kept() -> None:
    assert str(decode_answer(encode_answer(Plain(odds=float("nan"))))) == "Plain(words=[], odds=nan)"
    assert decode_answer(encode_answer([Own(3)]))[0].by == 3


@pytest.mark.parametrize("tags", ["nightly", ["nightly"], 5])
def test_tags_that_are_no_dict_cost_neither_answer_nor_entry(
    stash: Stash, tags: Any, caplog: pytest.LogCaptureFixture
) -> None:
    responses = stash.responses(model="m")
    assert [responses.get_or_compute("x", lambda: "y", tags=tags) for _ in range(2)] == ["y", "y"]
    assert stash.stats.hits == 1
    assert caplog.text.count("tags= takes a dict") == 1


def test_a_keep_if_that_fails_costs_no_answer(stash: Stash, caplog: pytest.LogCaptureFixture) -> None:
    responses = stash.responses(model="m", keep_if=lambda answer: answer["choices"][0])
    for _ in range(2):
        assert responses.get_or_compute("x", lambda: {"oops": 1}) == {"oops": 1}
    assert responses.map(["y"], lambda batch: [{"oops": 2}]) == [{"oops": 2}]
    assert stash.stats.hits == 0
    assert caplog.text.count("keep_if= failed") == 1


def test_tags_of_a_call_that_fail_cost_no_call(stash: Stash) -> None:
    @stash.responses(model="m").cached(tags=lambda text: {"task": text["no"]})
    def title(text: str) -> str:
        return text.title()

    assert [title("a b"), title("a b")] == ["A B", "A B"]
    assert stash.stats.hits == 1


def test_arguments_of_one_name_are_passed_on(stash: Stash) -> None:
    @stash.responses(model="m").cached()
    def given(x: int, /, **more: Any) -> Any:
        return [x, more]

    assert given(1, x=2) == [1, {"x": 2}]
    assert given(3, x=2) == [3, {"x": 2}]
    assert given(1, y=2) == given(1, y=2)
    assert stash.stats.hits == 1


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "user", "content": "x"}],
        {"input": [{"role": "user", "content": "x"}]},
        {"body": {"messages": []}, "custom_id": "1"},
        {"request": {"body": {"contents": []}}},
    ],
)
def test_chats_within_are_sampled_where_they_say_nothing(stash: Stash, chat: Any) -> None:
    responses = stash.responses(model="m")
    assert not responses.put(chat, "y")
    if isinstance(chat, dict):
        assert responses.put(chat | {"temperature": 0}, "y")
        plain = dict.fromkeys(chat, "x")
        assert responses.put(plain, "y")
        found = responses.map([plain, chat, chat], lambda batch: list(range(len(batch))))
        assert found[0] == "y"
        assert responses.get_many([plain, chat])[1] is lmstash.caches.responses.MISSING


def test_a_request_or_file_that_changes_before_its_batch_is_not_kept_under_its_old_name(
    stash: Stash, tmp_path: Path
) -> None:
    responses, shared = stash.responses(model="m"), {"until": "."}
    requests: list[Any] = [{"p": number, "gen_kwargs": shared} for number in range(3)]

    def pops(batch: Any) -> list[str]:
        said = [f"until {each['gen_kwargs'].get('until')}" for each in batch]
        shared.pop("until", None)
        return said

    assert responses.map(requests, pops, batch_size=1) == ["until .", "until None", "until None"]
    shared["until"] = "."
    assert [responses.get(each, default="absent") for each in requests] == ["until .", "absent", "absent"]
    picture = tmp_path / "b.png"
    picture.write_bytes(b"one")
    asked: list[Any] = ["first", {"image": str(picture)}]

    def reads(batch: Any) -> list[bytes]:
        said = [picture.read_bytes() for _ in batch]
        picture.write_bytes(b"another")
        return said

    assert responses.map(asked, reads, batch_size=1) == [b"one", b"another"]
    picture.write_bytes(b"one")
    assert responses.get(asked[1], default="absent") == "absent"


@pytest.mark.parametrize("named", [str, Path])
def test_a_file_that_changes_between_the_look_up_and_the_first_batch_is_not_kept_under_its_old_name(
    stash: Stash, tmp_path: Path, named: Any
) -> None:
    responses, picture = stash.responses(model="m"), tmp_path / "b.png"
    picture.write_bytes(b"one")
    asked = [{"image": named(picture)}]

    def size() -> int:  # is asked for in between
        picture.write_bytes(b"another")
        return 1

    found = dict(responses.stream(asked, lambda batch: [picture.read_bytes() for _ in batch], batch_size=size))
    assert found == {0: b"another"}
    picture.write_bytes(b"one")
    assert responses.get(asked[0], default="absent") == "absent"


def test_arrays_of_a_registered_type_are_kept_though_they_have_no_one_answer_to_whether_they_are_equal(
    stash: Stash,
) -> None:
    register(np.ndarray, to_plain=lambda value: value.tolist(), from_plain=np.array)
    responses = stash.responses(model="m")
    for answer in (np.array([0.5, 1.5]), {"embedding": np.array([[1, 2], [3, 4]])}):
        responses.get_or_compute(repr(answer), lambda answer=answer: answer)
        again = responses.get(repr(answer))
        assert repr(again) == repr(answer)


def test_a_request_that_changes_as_a_kept_answer_is_handed_out_is_not_kept_under_its_old_name(stash: Stash) -> None:
    responses, shared = stash.responses(model="m"), {"until": "."}
    requests: list[Any] = [{"p": number, "gen_kwargs": shared} for number in range(2)]
    responses.put(requests[0], "kept")
    said = []
    for _, answer in responses.stream(requests, lambda batch: [str(each["gen_kwargs"]) for each in batch]):
        said.append(answer)
        shared.pop("until", None)
    assert said == ["kept", "{}"]
    shared["until"] = "."
    assert responses.get(requests[1], default="absent") == "absent"
