"""Requests are named one-to-one but for what is documented to be the same; answers come back as they went in."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import json
import struct
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstash.caches.responses import register
from lmstash.caches.responses.answers.records import UnknownTypeError, decode_answer, encode_answer
from lmstash.caches.responses.requests.encoding import ARGUMENTS, HARMLESS, NUMBERS, read_request
from lmstash.codecs.records import decode_record
from lmstash.errors import CorruptEntryError, InvalidArgumentError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a", "1", "é", "$tuple", "\ud800", 'q"', "data:x"])
    | st.text(max_size=8)
    | st.binary(max_size=6)
)
KEYS = st.sampled_from(["a", "b", "$tuple", "$object", "", "temperature", "api_key"]) | st.text(max_size=4)
ODD_KEYS = KEYS | st.integers(-2, 2) | st.none() | st.tuples(st.integers(0, 1))
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(ODD_KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["prompt", "messages", "stop", "seed", "api_key", "authorization", *sorted(HARMLESS), *sorted(NUMBERS)[:4]]
)
OPTIONS = st.dictionaries(NAMES, VALUES | st.integers(0, 2) | st.sampled_from([0.0, 1.0, -0.0]), max_size=4)
REQUESTS = st.dictionaries(NAMES, VALUES, max_size=3).flatmap(
    lambda own: st.dictionaries(st.sampled_from(sorted(ARGUMENTS)), OPTIONS, max_size=1).map(lambda args: own | args)
)
CREDENTIALS = {"api_key"}


def shape(value: Any) -> Any:
    """Say a value so that `==` tells what the canonical form has to tell."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, struct.pack(">d", value)
    if isinstance(value, list | tuple):
        return kind, tuple(map(shape, value))
    if isinstance(value, dict):
        return kind, tuple((shape(key), shape(each)) for key, each in value.items())
    return kind, value


def documented(request: Any, top: bool = True) -> Any:
    """As `shape`, with the documented equalities of a request's own fields."""
    if not isinstance(request, dict):
        return shape(request)
    out = []
    names = sorted(request) if all(type(name) is str for name in request) else list(request)
    for name in names:
        value = request[name]
        if (top and name in HARMLESS) or name in CREDENTIALS:
            continue
        if type(value) is int and name in NUMBERS and abs(value) < 2**53:
            value = float(value)
        nested = type(value) is dict and name in ARGUMENTS
        out.append((name, documented(value, top=False) if nested else shape(value)))
    return "request", tuple(out)


def near(value: Any, draw: Any) -> Any:
    """Return a value that is like another one, or the same."""
    if isinstance(value, dict) and value:
        items = list(value.items())
        at = draw(st.integers(0, len(items) - 1))
        how = draw(st.sampled_from(["order", "drop", "value"]))
        if how == "order":
            return dict(draw(st.permutations(items)))
        if how == "drop":
            return dict(items[:at] + items[at + 1 :])
        items[at] = (items[at][0], near(items[at][1], draw))
        return dict(items)
    if isinstance(value, list | tuple):
        if value and draw(st.booleans()):
            at = draw(st.integers(0, len(value) - 1))
            return type(value)([*value[:at], near(value[at], draw), *value[at + 1 :]])
        return draw(st.sampled_from([tuple(value), list(value), [*value, None]]))
    if isinstance(value, bool | int | float) and value == value and abs(value) < 2**60:
        return draw(st.sampled_from([value, int(value), float(value), bool(value), str(value), -value]))
    if isinstance(value, str):
        return draw(st.sampled_from([value, value.encode("utf-8", "surrogatepass"), [value], value + " "]))
    return draw(VALUES)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_requests_have_one_name_exactly_if_they_are_documented_to_be_the_same(data: st.DataObject) -> None:
    ours = data.draw(REQUESTS | VALUES)
    theirs = near(ours, data.draw)
    before = copy.deepcopy(ours)
    same = read_request(ours).text == read_request(theirs).text
    assert shape(ours) == shape(before)
    top = isinstance(ours, dict) and isinstance(theirs, dict) and all(type(name) is str for name in [*ours, *theirs])
    if top:
        assert same == (documented(ours) == documented(theirs))
    elif not isinstance(ours, dict):
        assert same == (shape(ours) == shape(theirs))


@settings(max_examples=200, deadline=None)
@given(REQUESTS)
def test_the_text_of_a_request_survives_an_export(request_: Any) -> None:
    text = read_request(request_).text
    again = json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    assert again == text


@pytest.mark.parametrize(
    "request_",
    [
        {"extra_headers": {"Authorization": "Bearer sk-1"}},
        {"extra_headers": {"authorization": ["Bearer sk-1"]}},
        {"headers": [("X-Api-Key", "sk-1")]},
        {"headers": [["cookie", "sk-1"]]},
        {"headers": {"x-goog-api-key": "sk-1"}},
        {"extra": {"aws": {"secret_key": "sk-1", "AWS_SECRET_ACCESS_KEY": "sk-1"}}},
        {"user": {"password": b"sk-1"}},
        {"hf_token": "sk-1"},
        {"odd": {1: 2, "api_key": ["sk-1"]}},
        {"quo'ted\"": {'x"api_key': "sk-1"}},
        {"tool": {"secret": {"value": "sk-1"}}},
    ],
)
def test_secrets_are_no_part_of_what_is_stored_and_still_count(request_: Any) -> None:
    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: other(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(other, value))
        if isinstance(value, bytes):
            return value.replace(b"1", b"2")
        return value.replace("1", "2") if isinstance(value, str) else value

    text = read_request(request_).text
    assert b"sk-1" not in text
    assert b"c2stM" not in text  # base64
    assert read_request(other(request_)).text != text


class Colour(enum.Enum):
    RED = "red"
    BOTH = ("red", "green")


class Point(NamedTuple):
    x: float
    y: Any


@dataclasses.dataclass
class Answer:
    text: str
    logprobs: tuple[Any, ...]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


for each in (Colour, Point, Answer):
    register(each)

ANSWERS = st.recursive(
    LEAVES | st.sampled_from(list(Colour)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(ODD_KEYS, inner, max_size=3)
        | st.builds(Point, st.floats(), inner)
        | st.builds(Answer, st.text(max_size=3), st.tuples(inner), st.dictionaries(KEYS, inner, max_size=2))
    ),
    max_leaves=8,
)


def shape_of_answer(value: Any) -> Any:
    if isinstance(value, Point):
        return "Point", tuple(map(shape_of_answer, value))
    if isinstance(value, Answer):
        return "Answer", value.text, shape_of_answer(value.logprobs), shape_of_answer(value.extra)
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(shape_of_answer, value))
    if isinstance(value, dict):
        return tuple((shape(key), shape_of_answer(each)) for key, each in value.items())
    return shape(value)


@settings(max_examples=300, deadline=None)
@given(ANSWERS)
def test_answers_come_back_as_they_went_in(answer: Any) -> None:
    assert shape_of_answer(decode_answer(encode_answer(answer))) == shape_of_answer(answer)


def test_pydantic_models_come_back(tmp_path: Any) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Choice(pydantic.BaseModel):
        text: str
        index: int = 0
        extra: dict[str, Any] = pydantic.Field(default_factory=dict)

    register(Choice)
    choice = Choice(text="four", extra={"a": [1, 2]})
    again = decode_answer(encode_answer([choice]))
    assert again == [choice]
    assert again[0].model_fields_set == choice.model_fields_set


@settings(max_examples=200, deadline=None)
@given(ANSWERS, st.data())
def test_a_damaged_answer_is_told_or_is_another_record_and_never_runs_code(answer: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_answer(answer))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptEntryError, UnknownTypeError):  # and no other
        decode_answer(bytes(encoded))


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 1, [object()], {"a": {"b": iter(())}}])
def test_what_has_no_content_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        read_request({"x": value})
    with pytest.raises(InvalidArgumentError):
        encode_answer({"x": value})


def test_a_value_within_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for each in (loop, {"x": loop}):
        with pytest.raises(InvalidArgumentError):
            read_request(each)


@pytest.mark.parametrize("huge", [10**400, -(10**400), 2**53 + 1])
def test_huge_numbers_are_named_apart(huge: int) -> None:
    assert read_request({"top_k": huge}).text != read_request({"top_k": huge - 1}).text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_are_told(data: bytes) -> None:
    with contextlib.suppress(CorruptEntryError):
        decode_record(data)
