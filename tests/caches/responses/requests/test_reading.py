"""The quick way of reading requests, against the general one."""

from __future__ import annotations

import contextlib
import inspect
import marshal
import sys
import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmstash
from lmstash.caches.responses import MISSING
from lmstash.caches.responses.requests import reading
from lmstash.caches.responses.requests.encoding import ARGUMENTS, HARMLESS, NUMBERS, Request, read_request
from lmstash.caches.responses.requests.hiding import LONG
from lmstash.caches.responses.requests.reading import RequestReader
from lmstash.caches.responses.requests.sampling import is_sampled, seed_of
from lmstash.errors import InvalidArgumentError

NAMES = st.sampled_from(
    [
        *("prompt", "messages", "content", "role", "100%s", "%", "q\"'", "\ud800", "", "$dict", "$odd"),
        *("seed", "random_seed", "do_sample", "api_key", "authorization", "x-api-key", "password", "url", "image_url"),
        *("image", "video_paths", "source", "data", "path", "token", "auth", "signature"),
        *("type", "options", *sorted(HARMLESS), *sorted(NUMBERS)[-4:], *sorted(ARGUMENTS)),
        *(
            "temperature",
            "temperature",
            "n",
            "num_return_sequences",
            "num_beams",
            "config",
            "generationConfig",
            "tools",
        ),
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**53 - 1, 2**53, 2**64 - 1, 2**64, -(2**64), 1e300, -0.0, float("nan"), float("inf")])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["http://a/b.png", "image_url", "token", "authorization", "\ud800", "%s", "data:x"])
    | st.sampled_from(["image", "file", "sftp://a/b", __file__, "X-Auth", "auth_header", "https://a?b=1"])
    | st.sampled_from(
        ["https://a:b@c", " https://c/?Token=b", "see https://a:b@c", 'https://c/"\n\\?sig=b', "http://a#key="]
    )
    | st.sampled_from(["data:image/png;base64," + "A" * LONG, "x" * LONG, '{"api_key":"' + "x" * LONG])
    | st.binary(max_size=3)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=2).map(tuple) | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=8,
)
REQUESTS = st.dictionaries(NAMES, VALUES, max_size=5) | VALUES


def read(reader: RequestReader, request: Any) -> Request:
    """Read a request as those do who look it up: quickly, or the general way."""
    arguments: dict[str, Any] = {}
    text = reader.write(request, arguments)
    return reader.read(request) if text is None else Request(text, arguments)


def outcome(read: Callable[[], Any], by_default: bool) -> Any:
    try:
        found = read()
    except InvalidArgumentError as error:
        return str(error)
    return found.text, is_sampled(found.arguments, by_default), seed_of(found.arguments)


@settings(max_examples=500, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=4), st.sampled_from(["refuse", "trust"]), st.booleans(), st.data())
def test_both_ways_read_the_same(requests: list[Any], urls: str, by_default: bool, data: st.DataObject) -> None:
    harmless = HARMLESS | data.draw(st.frozensets(NAMES, max_size=2))
    reader = RequestReader(harmless, urls)
    for request in requests:
        expected = outcome(lambda request=request: read_request(request, harmless, urls), by_default)
        for _again in range(2):
            assert outcome(lambda request=request: read(reader, request), by_default) == expected


ALIKE = st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(
        st.fixed_dictionaries({name: st.sampled_from([0, 0.0, 1, True, {"top_k": 1}]) | VALUES for name in names}),
        min_size=1,
        max_size=4,
    )
)


@settings(max_examples=500, deadline=None)
@given(ALIKE | st.lists(REQUESTS, min_size=1, max_size=3), st.sampled_from(["refuse", "trust"]), st.data())
def test_many_are_read_as_each_is(requests: list[Any], urls: str, data: st.DataObject) -> None:
    harmless = HARMLESS | data.draw(st.frozensets(NAMES, max_size=2))
    reader = RequestReader(harmless, urls)
    for _again in range(2):
        found = reader.write_alike(requests)
        if found is None:
            continue
        texts, arguments = found
        for by_default in (False, True):
            said = is_sampled(arguments, by_default), seed_of(arguments)
            expected = [outcome(lambda each=each: read_request(each, harmless, urls), by_default) for each in requests]
            assert [(text, *said) for text in texts] == expected


SAME = {"gen_kwargs": {"temperature": 0, "until": ["\n"]}, "n": None, "max_tokens": 7, "top_p": 1, "x": 0.5, "m": [1]}


@pytest.mark.parametrize(
    "requests",
    [
        [{"prompt": f"Question {number}?", **SAME} for number in range(3)],
        [{**SAME, "prompt": "long " * LONG * number} for number in range(3)],
        [{"temperature": 0, "seed": 3, "prompt": f"p{number}", "do_sample": True} for number in range(3)],
        [{"top_k": 40 + number} for number in range(3)],
    ],
)
def test_usual_batches_are_read_field_by_field(requests: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = RequestReader()
    monkeypatch.setattr(reader, "_keywords", reader._keywords if "gen_kwargs" in requests[0] else None)
    found = reader.write_alike(requests)
    assert found is not None
    assert found[0] == [read_request(each).text for each in requests]
    read_one = read_request(requests[0]).arguments
    assert is_sampled(found[1]) == is_sampled(read_one)
    assert seed_of(found[1]) == seed_of(read_one)


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [{}],
        ["text", "text"],
        [{"a": 1}, {"b": 1}],
        [{"a": 1, "b": 1}, {"b": 1, "a": 1}],
        [{"prompt": "p", "temperature": 0}, {"prompt": "p", "temperature": 1}],
        [{"prompt": "p", "seed": 1}, {"prompt": "p", "seed": 2}],
        [{"prompt": "p", "do_sample": 0}, {"prompt": "p", "do_sample": False}],
        [{"top_k": 2**53}, {"top_k": 1}],
        [{"top_k": 1}, {"top_k": 1.0}],
        [{"gen_kwargs": {"top_k": 1}}, {"gen_kwargs": {"top_k": 2}}],
        [{"options": {"top_k": 1}}, {"options": {"top_k": 1}}],
        [{"a": object()}, {"a": object()}],
    ],
)
def test_what_is_not_alike_is_left_to_be_read_one_by_one(requests: list[Any]) -> None:
    assert RequestReader().write_alike(requests) is None


@pytest.mark.parametrize("how", ["one", "many"])
def test_options_that_change_while_they_are_read_are_remembered_as_they_were(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or all who have the options that were looked at would be named by those that they were changed into."""
    reader, options = RequestReader(), {"max_tokens": 16}

    def disturbed(value: Any, version: int) -> bytes:
        look = marshal.dumps(value, version)
        options["max_tokens"] = 999
        return look

    with monkeypatch.context() as patch:
        patch.setattr(reading, "dumps", disturbed)
        asked = {"gen_kwargs": options}
        assert (reader.write(asked, {}) if how == "one" else reader.write_alike([asked])) is None
    for n_tokens in (16, 999):
        untouched = {"gen_kwargs": {"max_tokens": n_tokens}}
        assert read(reader, untouched).text == read_request(untouched).text
        assert reader.write_alike([untouched] * 2) == ([read_request(untouched).text] * 2, {})


@pytest.mark.parametrize("within", [False, True])
def test_a_name_never_gets_anothers_value_from_a_request_that_changes_meanwhile(within: bool) -> None:
    reader, request, stop = RequestReader(), {"a": "a", "x": "x"}, threading.Event()

    def change() -> None:
        while not stop.is_set():
            for old, new in (("x", "y"), ("y", "x")):
                del request[old]
                request[new] = new

    seen: set[bytes] = set()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3_000):
            found = reader.write_alike([{"m": request} if within else request])
            seen |= set(found[0]) if found else set()
            one = reader.write({"m": request} if within else request, {})
            seen |= set() if one is None else {one}
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)
    whole = [b'{"a":"a"}', b'{"a":"a","x":"x"}', b'{"a":"a","y":"y"}']
    assert seen <= {b'{"m":%s}' % each if within else each for each in whole}


class Unhashable(type):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(cls, other: object) -> bool:
        return cls is other


class Failing(type):
    def __hash__(cls) -> int:
        raise ZeroDivisionError


@pytest.mark.parametrize("meta", [Unhashable, Failing])
def test_types_that_cannot_be_hashed_break_nothing(meta: type) -> None:
    value, table = meta("V", (), {}), meta("D", (dict,), {})
    with lmstash.open("memory://", trust_env=False) as stash:
        responses = stash.responses(model="p/m")
        for odd in ({"prompt": value()}, table(prompt="x"), {"gen_kwargs": {"a": value()}}, {"a": [value()]}):
            assert responses.get(odd) is None
            assert responses.get_many([odd, {"prompt": "p"}]) == [MISSING, MISSING]
            assert responses.put_many([odd, {"prompt": "q"}], ["a", "b"]) == 1


class Drawn(Sequence[Any]):
    """Makes each item when it is asked for."""

    def __init__(self) -> None:
        self.n = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: Any) -> Any:
        if place >= 3:
            raise IndexError
        self.n += 1
        return {"id": self.n, "prompt": f"q{self.n}"}


def test_requests_may_come_in_anything_that_can_be_looked_through_once() -> None:
    with lmstash.open("memory://", trust_env=False) as stash:
        responses = stash.responses(model="p/m")
        some: Any = {1: {"prompt": "x"}, 2: {"prompt": "y"}}
        assert responses.put_many(some.values(), ["a", "b"]) == 2
        assert responses.get_many(some.values()) == ["a", "b"]
        assert responses.get_many(each for each in some.values()) == ["a", "b"]  # pyright: ignore[reportArgumentType]
        asked = responses.asker.ask_many(responses.asker.look(), Drawn())
        assert [each and each.text for each in asked] == [b'{"id":%d,"prompt":"q%d"}' % (n, n) for n in (1, 2, 3)]


@pytest.fixture
def only_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def general(*_: Any) -> None:
        raise AssertionError("read the general way")

    monkeypatch.setattr(reading, "read_request", general)


CHAT = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
    "temperature": 0,
    "extra_body": {"top_k": 1, "seed": 3},
    "stop": ["\n", "Q:"],
    "stream": False,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "integer"}}}}],
}


@pytest.mark.usefixtures("only_quick")
@pytest.mark.parametrize("request_", [CHAT, {"prompt": "p", "max_tokens": 3, "temperature": 0.5, "n": None}, {}])
def test_usual_requests_are_read_the_quick_way(request_: dict[str, Any]) -> None:
    found = read(RequestReader(), request_)
    assert found.text == read_request(request_).text
    assert seed_of(found.arguments) == (3 if request_ is CHAT else None)


def test_a_name_that_only_equals_a_text_is_not_taken_for_it() -> None:
    class Name(StrEnum):
        PROMPT = "prompt"

    reader = RequestReader()
    assert read(reader, {"prompt": "p"}).text == b'{"prompt":"p"}'
    for odd in ({Name.PROMPT: "p"}, {"a": {Name.PROMPT: "p"}}, {"prompt": Name.PROMPT}):
        with pytest.raises(InvalidArgumentError):
            read(reader, odd)


def test_layouts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_MOST_LAYOUTS", 4)
    reader = RequestReader()
    for number in range(40):
        asked = {f"name{number}": {"x": {str(number): 1}}}
        assert read(reader, asked).text == read_request(asked).text
    assert len(reader._of_requests) <= 4
    assert len(reader._of_dicts) <= 4


def test_what_holds_itself_or_nests_deep_is_left_to_the_general_way() -> None:
    within: dict[str, Any] = {}
    within["a"] = within
    with pytest.raises(InvalidArgumentError):
        read(RequestReader(), within)
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    assert read(RequestReader(), {"a": deep}).text == read_request({"a": deep}).text


def test_arguments_are_no_longer_the_callers() -> None:
    asked = {"temperature": 0.0}
    found = read(RequestReader(), asked)
    asked["temperature"] = 1.0
    assert not is_sampled(found.arguments)


def test_what_is_remembered_of_options_does_not_change_with_the_callers_values() -> None:
    reader, odd = RequestReader(), [1]
    assert is_sampled(read(reader, {"gen_kwargs": {"do_sample": odd}}).arguments)
    odd.clear()
    assert is_sampled(read(reader, {"gen_kwargs": {"do_sample": [1]}}).arguments)


def test_near_the_recursion_limit_it_is_not_usual() -> None:
    asked = {"a": [[[["x"]]]], "gen_kwargs": {"b": [["y"]]}}
    reader = RequestReader()

    def descend(left: int) -> bytes | None:
        return descend(left - 1) if left else reader.write(asked, {})

    found: set[bytes | None] = set()
    for room in range(100):
        with contextlib.suppress(RecursionError):  # of `descend` itself
            found.add(descend(sys.getrecursionlimit() - len(inspect.stack(0)) + 20 - room))
    assert found == {None, read_request(asked).text}
