"""What of an HTTP request counts: everything but what is known by name to be harmless."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmstash
from lmstash.adapters.openai.control import Control, read_control
from lmstash.adapters.openai.library import Case, Library
from lmstash.adapters.openai.question import Bypass
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash

URL = "https://api.example.com/v1/chat/completions"
BODY = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
PLAIN = {"content-type": "application/json", "authorization": "Bearer sk-1"}


@pytest.fixture
def stash() -> Stash:
    return lmstash.open("memory://", strict=True)


def key(stash: Stash, body: Any = BODY, url: str = URL, headers: dict[str, str] | None = None, **options: Any) -> Any:
    """What a request is looked up by, or why it is not."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = Library(stash, **options).consider("POST", url, list({**PLAIN, **(headers or {})}.items()), text)
    return found.key if isinstance(found, Case) else found


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": [{"role": "user", "content": "hi "}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"model": "n"},
        {"max_tokens": 1},
        {"max_tokens": 1.0},
        {"stream": True},
        {"seed": 1},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"never_heard_of": None},
    ],
)
def test_what_may_change_an_answer_is_another_question(stash: Stash, changed: dict[str, Any]) -> None:
    other = key(stash, BODY | changed)
    assert isinstance(other, bytes)
    assert other != key(stash)


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("https://api.example.org/v1/chat/completions", {}),
        ("http://api.example.com/v1/chat/completions", {}),
        ("https://api.example.com/v2/chat/completions", {}),
        ("https://api.example.com/v1/chat/completions?api-version=1", {}),
        ("https://api.example.com/v1/completions", {}),
        (URL, {"openai-organization": "o"}),
        (URL, {"openai-beta": "b"}),
        (URL, {"x-route-to": "another model"}),
        (URL, {"accept": "text/plain"}),
        (URL, {"origin": "http://localhost:3000"}),
    ],
)
def test_another_server_or_an_unknown_header_is_another_question(
    stash: Stash, url: str, headers: dict[str, str]
) -> None:
    assert key(stash, url=url, headers=headers) != key(stash)


@pytest.mark.parametrize(
    ("changed", "headers"),
    [
        ({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}, "store": True}, {}),
        ({"stream": False}, {}),
        ({"stream": None}, {}),
        ({"temperature": 0.0}, {}),
        ({}, {"user-agent": "another", "x-stainless-retry-count": "1", "x-request-id": "7", "accept": "*/*"}),
        ({}, {"authorization": "Bearer sk-2", "cookie": "a=b", "api-key": "k"}),
    ],
)
def test_what_changes_no_answer_is_the_same_question(
    stash: Stash, changed: dict[str, Any], headers: dict[str, str]
) -> None:
    assert key(stash, BODY | changed, headers=headers) == key(stash)


@pytest.mark.parametrize(
    "name",
    [
        *("traceparent", "sentry-trace", "x-datadog-trace-id", "x-datadog-parent-id", "x-amzn-trace-id"),
        *("x-b3-traceid", "x-amzn-requestid", "b3", "x-cloud-trace-context", "newrelic", "elastic-apm-traceparent"),
        *("uber-trace-id", "x-trace-id", "request-id", "x-ms-client-request-id", "cf-ray", "cf-connecting-ip"),
        *("true-client-ip", "x-client-ip", "x-request-start", "x-envoy-attempt-count", "langsmith-trace"),
    ],
)
def test_what_traces_a_request_is_no_part_of_it(stash: Stash, name: str) -> None:
    assert key(stash, headers={name: "0af7651916cd43dd8448eb211c80319c"}) == key(stash)


@pytest.mark.parametrize("name", ["x-envoy-original-dst-host", "x-amzn-bedrock-guardrailidentifier", "x-trace-id-b"])
def test_headers_of_the_same_makers_that_may_change_an_answer_count(stash: Stash, name: str) -> None:
    assert key(stash, headers={name: "a"}) != key(stash, headers={name: "b"})


def test_metadata_that_a_gateway_may_act_on_count(stash: Stash) -> None:
    """LiteLLM chooses among deployments by `tags`; what OpenAI takes there are words under names."""
    noted = [{"metadata": {"tags": [each]}} for each in ("free", "paid")]
    assert len({key(stash, BODY | each) for each in [*noted, {"metadata": {"a": 1}}, {"metadata": ["a"]}, {}]}) == 5
    assert key(stash, BODY | {"metadata": {"a": "b"}}) == key(stash, BODY | {"metadata": None}) == key(stash)


@pytest.mark.parametrize("name", ["x-forwarded-user", "x-forwarded-email", "x-forwarded-groups", "x-forwarded-host"])
def test_whom_and_what_a_gateway_forwards_for_counts(stash: Stash, name: str) -> None:
    assert key(stash, headers={name: "a"}) != key(stash, headers={name: "b"})
    assert key(stash, headers={"x-forwarded-for": "10.0.0.1", "x-forwarded-proto": "https"}) == key(stash)


def test_order_and_spaces_of_a_body_are_the_same_question_but_the_order_within_a_schema_is_not(stash: Stash) -> None:
    assert key(stash, json.dumps(dict(reversed(BODY.items())), indent=3).encode()) == key(stash)
    schemas = [{"a": {"type": "string"}, "b": {"type": "string"}}, {"b": {"type": "string"}, "a": {"type": "string"}}]
    one, two = (key(stash, BODY | {"response_format": {"type": "json_schema", "schema": each}}) for each in schemas)
    assert one != two


def test_fields_that_an_answer_of_the_responses_endpoint_repeats_count(stash: Stash) -> None:
    url, body = "https://api.example.com/v1/responses", {"model": "m", "temperature": 0, "input": "hi"}
    changes: list[dict[str, Any]] = [{"metadata": {"a": "b"}}, {"user": "u"}, {"store": False}]
    assert len({key(stash, body | each, url) for each in [{}, *changes]}) == 4


def test_callers_share_answers_unless_asked_otherwise(stash: Stash) -> None:
    other = {"authorization": "Bearer sk-2"}
    assert key(stash, headers=other) == key(stash)
    assert key(stash, headers=other, by_token=True) != key(stash, by_token=True)
    assert key(stash, by_token=True) != key(stash)


def test_an_answer_that_its_server_holds_for_a_caller_is_for_that_caller_only(stash: Stash) -> None:
    """Its id, in a later request, leads nobody else to it."""
    url, body = "https://api.example.com/v1/responses", {"model": "m", "temperature": 0, "input": "hi"}
    other, cookie = {"authorization": "Bearer sk-2"}, {"cookie": "__cf_bm=1"}
    assert key(stash, body, url, other) != key(stash, body, url)
    assert key(stash, body | {"store": None}, url, other) != key(stash, body | {"store": None}, url)
    assert key(stash, body | {"store": False}, url, other) == key(stash, body | {"store": False}, url)
    assert key(stash, body, url, cookie) == key(stash, body, url)  # which a server may set anew at any time
    found = [
        Library(stash).consider("POST", url, [("content-type", "application/json"), session], json.dumps(body).encode())
        for session in (("cookie", "session=1"), ("cookie", "session=2"))
    ]
    assert len({each.key for each in found if isinstance(each, Case)}) == 2


def test_another_revision_is_another_model(stash: Stash) -> None:
    assert len({key(stash, revision=each) for each in (None, "1", "2")}) == 3
    assert key(stash, revision="1") == key(stash, revision="1")


@pytest.mark.parametrize(
    "body",
    [
        b"no json",
        b"[]",
        b'{"model": "m", "temperature": 0, "temperature": 1}',
        b'{"model": "m", "messages": [{"role": "user", "role": "system"}]}',
        b'{"model": "m", "temperature": NaN}',
        b'{"model": ["m"]}',
        b'{"model": "m", "stream": 1}',
        b'{"model": "m", "stream": "yes"}',
        b'{"model": "m", "lmstash": {}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_not_one_clear_object_is_passed_on(stash: Stash, body: bytes) -> None:
    assert key(stash, body) is Bypass.BODY


def test_a_form_or_a_compressed_body_is_passed_on(stash: Stash) -> None:
    assert key(stash, headers={"content-type": "text/plain"}) is Bypass.BODY
    assert key(stash, headers={"content-encoding": "gzip"}) is Bypass.BODY
    assert isinstance(key(stash, headers={"content-type": "application/json; charset=utf-8"}), bytes)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/v1/chat/completions/1", "/v1/responses/r/cancel", "/"])
def test_every_other_endpoint_is_passed_on(stash: Stash, path: str) -> None:
    assert key(stash, url=f"https://api.example.com{path}") is Bypass.ENDPOINT
    assert Library(stash).consider("GET", URL, [], b"") is Bypass.ENDPOINT


def _with_part(part: dict[str, Any]) -> dict[str, Any]:
    return BODY | {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]}


def test_an_image_by_url_is_passed_on_unless_urls_are_trusted(stash: Stash) -> None:
    by_url = _with_part({"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}})
    flat = _with_part({"type": "input_image", "image_url": "http://example.com/cat.png"})
    for each in (by_url, flat):
        assert key(stash, each) is Bypass.URL
        assert isinstance(key(stash, each, trust_urls=True), bytes)
    assert stash.stats.misses["unsupported"] == 2


@pytest.mark.parametrize(
    "body",
    [
        _with_part({"type": "image", "image": "http://example.com/cat.png"}),
        _with_part({"type": "image", "uri": "gs://bucket/cat.png"}),
        _with_part({"type": "image", "source": "http://example.com/cat.png"}),
        _with_part({"type": "input_audio", "input_audio": "http://example.com/cat.wav"}),
        _with_part({"type": "image_url", "image_url": {"url": "/data/cat.png"}}),
        _with_part({"type": "of tomorrow", "url": "example.com/cat.obj"}),
        BODY | {"messages": [{"role": "user", "content": "x", "images": ["http://example.com/cat.png"]}]},
        BODY | {"images": ["http://example.com/cat.png"]},
    ],
)
def test_whatever_names_media_by_url_is_passed_on(stash: Stash, body: dict[str, Any]) -> None:
    assert key(stash, body) is Bypass.URL


def test_texts_and_schemas_that_speak_of_urls_are_looked_up(stash: Stash) -> None:
    schema = {"properties": {"url": {"type": "string", "default": "http://example.com"}, "image_url": {}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    said = [{"role": "user", "content": "see http://example.com/cat.png", "images": ["iVBORw0KGgo="]}]
    assert isinstance(key(stash, BODY | {"tools": tools, "messages": said}), bytes)


def test_an_image_by_content_is_told_from_another_one(stash: Stash) -> None:
    long = "data:image/png;base64," + "A" * 10_000
    one, two = (
        key(stash, _with_part({"type": "image_url", "image_url": {"url": url}})) for url in (long + "B", long + "C")
    )
    assert isinstance(one, bytes)
    assert one != two


@pytest.mark.parametrize(
    "changed",
    [
        {"previous_response_id": "r"},
        {"data_sources": [{"type": "azure_search"}]},
        {"search_parameters": {"mode": "auto"}},
        {"plugins": [{"id": "web"}]},
        {"thread_id": "t"},
        {"agent_id": "ag:1"},
        {"model": "openai/gpt-5:online"},
        {"model": "gpt-4o-search-preview"},
        {"model": "perplexity/sonar-pro"},
        {"tools": [{"type": ["function"]}]},
        {"tools": [{"type": "function", "function": {"name": "$web_search"}}]},
        {"conversation": "c"},
        {"background": True},
        {"prompt": {"id": "p"}},
        {"web_search_options": {}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}, {"type": "mcp", "server_url": "https://example.com"}]},
        {"input": [{"type": "item_reference", "id": "i"}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
    ],
)
def test_what_the_server_remembers_or_looks_up_is_passed_on(stash: Stash, changed: dict[str, Any]) -> None:
    assert key(stash, BODY | changed) is Bypass.STATE


def test_what_is_answered_by_chance_is_passed_on_unless_it_has_a_seed_or_is_asked_to_be_kept(stash: Stash) -> None:
    default = {name: value for name, value in BODY.items() if name != "temperature"}
    assert key(stash, default) is Bypass.SAMPLED
    assert key(stash, default | {"temperature": None}) is Bypass.SAMPLED
    assert key(stash, default | {"temperature": 0.7}) is Bypass.SAMPLED
    assert stash.stats.misses["sampled"] == 3
    assert isinstance(key(stash, default | {"seed": 1}), bytes)
    keep = {"x-lmstash-keep-sampled": "1"}
    first, again, second = (
        key(stash, default, headers=keep | {"x-lmstash-occurrence": number}) for number in ("0", "0", "1")
    )
    assert first == again != second
    assert key(stash, default, headers=keep | {"x-lmstash-occurrence": "two"}) is Bypass.UNSUPPORTED


@pytest.mark.parametrize(
    "unread",
    [
        {"options": {"temperature": 0}},
        {"extra_body": {"temperature": 0}},
        {"generation_config": {"temperature": 0, "seed": 1}},
        {"parameters": {"do_sample": False}},
        {"config": {"seed": 1, "temperature": 1}},
        {"do_sample": False},
        {"random_seed": 3},
        {"use_beam_search": True, "n": 2},
    ],
)
def test_only_what_servers_read_makes_an_answer_one_that_is_not_drawn(stash: Stash, unread: dict[str, Any]) -> None:
    default = {name: value for name, value in BODY.items() if name != "temperature"}
    assert key(stash, default | unread) is Bypass.SAMPLED
    assert stash.stats.misses["sampled"] == 1
    keys = [key(stash, default | unread, keep_sampled=True) for _ in range(2)]
    assert keys[0] is Bypass.UNSUPPORTED or keys[0] != keys[1]  # two draws are no one answer
    assert isinstance(key(stash, BODY | unread | {"n": 1}), bytes)
    assert isinstance(key(stash, default | unread | {"seed": 1}), bytes)


def test_what_asks_for_chance_anywhere_makes_a_greedy_request_one_that_may_be_drawn(stash: Stash) -> None:
    for unread in ({"options": {"temperature": 0.7}}, {"do_sample": True}):
        assert isinstance(key(stash, BODY | unread), Bypass)


def test_embeddings_are_not_sampled(stash: Stash) -> None:
    assert isinstance(key(stash, {"model": "m", "input": "hi"}, "https://api.example.com/v1/embeddings"), bytes)


@pytest.mark.parametrize(
    ("value", "control"),
    [
        ("no-store", Control(bypass=True)),
        ("no-cache", Control(max_age_seconds=0)),
        ("Max-Age=60, only-if-cached", Control(max_age_seconds=60, only_kept=True)),
        ('max-age="5"', Control(max_age_seconds=5)),
        ("max-age=soon", Control(max_age_seconds=0)),
        ("no-cache, max-age=60", Control(max_age_seconds=0)),
        ("max-stale", Control(max_age_seconds=math.inf)),
    ],
)
def test_cache_control(value: str, control: Control) -> None:
    assert read_control([("cache-control", value)]) == control
    assert read_control([("cache-control", each.strip()) for each in value.split(",")]) == control


def test_pragma_says_no_cache_where_cache_control_says_nothing() -> None:
    assert read_control([("pragma", "no-cache")]) == Control(max_age_seconds=0)
    assert read_control([("pragma", "Token, No-Cache")]) == Control(max_age_seconds=0)
    assert read_control([("pragma", "no-cache"), ("cache-control", "max-age=60")]) == Control(max_age_seconds=60)
    assert read_control([("pragma", "no-store, only-if-cached")]) == Control()


@pytest.mark.parametrize("value", ["-1", "two", "9" * 5000])
def test_an_occurrence_is_a_number(value: str) -> None:
    with pytest.raises(InvalidArgumentError, match="from 0"):
        read_control([("x-lmstash-occurrence", value)])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "input",
        "prompt",
        "stream",
        "temperature",
        "seed",
        "tools",
        "n",
        "user",
        "stop",
        "background",
    ]
)
_BODIES = st.dictionaries(_FIELDS, _JSON, max_size=6)
_HEADERS = st.lists(st.tuples(st.sampled_from(["cache-control", "x-a", "accept", "x-lmstash-occurrence"]), st.text()))


@given(body=_BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(), headers=_HEADERS)
def test_any_request_is_looked_up_or_passed_on(body: bytes, headers: list[tuple[str, str]]) -> None:
    library = Library(lmstash.open("memory://", strict=True), keep_sampled=True)
    found = library.consider("POST", URL, [("content-type", "application/json"), *headers], body)
    assert isinstance(found, Case | Bypass)


@given(one=_BODIES, two=_BODIES)
def test_requests_have_one_key_only_if_they_say_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    stash = lmstash.open("memory://", strict=True)
    keys = [
        key(stash, json.dumps(each).encode(), headers={"x-lmstash-occurrence": "0"}, keep_sampled=True)
        for each in (one, two)
    ]
    if isinstance(keys[0], bytes) and keys[0] == keys[1]:
        assert _plain(one) == _plain(two)


def _plain(body: dict[str, Any]) -> str:
    """What a body says, `1` and `True` and `1.0` told apart, without what we take for harmless."""
    counts = {name: value for name, value in body.items() if name != "user" and (name, value) != ("stream", None)}
    if counts.get("stream") is False:
        del counts["stream"]
    if type(counts.get("temperature")) is int:
        counts["temperature"] = float(counts["temperature"])
    return json.dumps(dict(sorted(counts.items())))
