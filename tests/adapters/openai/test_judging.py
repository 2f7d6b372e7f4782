"""Only whole and good answers are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.adapters.openai.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Endpoint
from lmstash.adapters.openai.judging import is_worth_keeping
from lmstash.adapters.openai.recorded import from_answer, record, to_answer

JSON = [("content-type", "application/json")]
EVENTS = [("content-type", "text/event-stream; charset=utf-8")]


def good(endpoint: Endpoint, answer: Any, status: int = 200, headers: Any = JSON) -> bool:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return is_worth_keeping(endpoint, False, record(status, headers, body))


def good_stream(endpoint: Endpoint, *events: Any, end: bytes = b"data: [DONE]\n\n", line: bytes = b"\n") -> bool:
    body = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + end
    return is_worth_keeping(endpoint, True, record(200, EVENTS, body.replace(b"\n", line)))


def chat(end: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": end, "message": message}]}


def delta(end: Any = None, index: int = 0, **inner: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "finish_reason": end, "delta": inner}]}


def response(status: str = "completed", **fields: Any) -> dict[str, Any]:
    return {"status": status, "output": [{"type": "message"}], "error": None, "incomplete_details": None, **fields}


def test_good_answers() -> None:
    assert good(CHAT, chat(content="hi"))
    assert good(CHAT, chat("length", content=None, reasoning_content="so"))
    assert good(CHAT, chat("tool_calls", content=None, tool_calls=[{"id": "t"}]))
    assert good(COMPLETIONS, {"choices": [{"finish_reason": "length", "text": "hi"}]})
    assert good(EMBEDDINGS, {"data": [{"embedding": [0.0]}, {"embedding": "AAAA"}]})
    assert good(RESPONSES, response())
    assert good(RESPONSES, response("incomplete", incomplete_details={"reason": "max_output_tokens"}))


@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [
        (CHAT, chat("content_filter", content="hi")),
        (CHAT, chat("error", content="hi")),
        (CHAT, chat("abort", content="hi")),
        (CHAT, chat(None, content="hi")),
        (CHAT, chat(content="")),
        (CHAT, chat(content=None)),
        (CHAT, chat(content=" \n")),
        (CHAT, {"choices": []}),
        (CHAT, {"choices": None}),
        (CHAT, {"choices": [*chat(content="hi")["choices"], *chat(content="")["choices"]]}),
        (CHAT, {"error": {"message": "no"}}),
        (CHAT, {**chat(content="hi"), "error": {"message": "no"}}),
        (CHAT, {}),
        (CHAT, []),
        (CHAT, b'{"choices": [{"finish_reason": "stop", "message": {"content": "hi'),
        (CHAT, b""),
        (COMPLETIONS, {"choices": [{"finish_reason": "stop", "text": ""}]}),
        (EMBEDDINGS, {"data": []}),
        (EMBEDDINGS, {"data": [{"embedding": []}]}),
        (EMBEDDINGS, {"data": [{"embedding": [0.5, None]}]}),
        (RESPONSES, response("failed")),
        (RESPONSES, response("in_progress")),
        (RESPONSES, response("queued")),
        (RESPONSES, response("incomplete", incomplete_details={"reason": "content_filter"})),
        (RESPONSES, response(error={"code": "server_error"})),
        (RESPONSES, response(output=[])),
    ],
)
def test_failures_and_empty_answers(endpoint: Endpoint, answer: Any) -> None:
    assert not good(endpoint, answer)


def scored(endpoint: Endpoint, token: str, end: str = "length", logprob: float | None = -0.1) -> dict[str, Any]:
    if endpoint is CHAT:
        inner = {"content": [{"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}]}
        return {"index": 0, "finish_reason": end, "message": {"content": token}, "logprobs": inner}
    inner = {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": [{token: logprob}], "text_offset": [0]}
    return {"index": 0, "finish_reason": end, "text": token, "logprobs": inner}


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("token", [" ", "\n", ""])
def test_a_blank_token_with_its_score_is_an_answer(endpoint: Endpoint, token: str) -> None:
    assert good(endpoint, {"choices": [scored(endpoint, token)]})
    assert not good(endpoint, {"choices": [scored(endpoint, token, end="content_filter")]})
    assert not good(endpoint, {"choices": [scored(endpoint, token, logprob=None)]})
    assert not good(endpoint, {"choices": [scored(endpoint, token), chat(content="")["choices"][0]]})
    empties: list[Any] = [None, {}, {"content": []}, {"content": None}, {"tokens": [], "token_logprobs": []}, [], "?"]
    for empty in empties:
        assert not good(endpoint, {"choices": [scored(endpoint, token) | {"logprobs": empty}]})
    streamed = scored(endpoint, token)
    if endpoint is CHAT:
        streamed["delta"] = streamed.pop("message")
    assert good_stream(endpoint, {"choices": [streamed]})
    assert not good_stream(endpoint, {"choices": [streamed | {"logprobs": None}]})
    odd = streamed | {"logprobs": {"content": ["?", {}], "token_logprobs": 1}, "finish_reason": None}
    assert good_stream(endpoint, {"choices": [odd]}, {"choices": [streamed]})


def test_only_status_200_of_the_kind_that_was_asked_for() -> None:
    assert not good(CHAT, chat(content="hi"), status=201)
    assert not good(CHAT, chat(content="hi"), headers=[*JSON, ("content-encoding", "br")])
    assert not good(CHAT, chat(content="hi"), headers=EVENTS)
    assert not is_worth_keeping(CHAT, True, record(200, JSON, json.dumps(chat(content="hi")).encode()))


def test_good_streams() -> None:
    for line in (b"\n", b"\r\n", b"\r"):
        assert good_stream(CHAT, delta(role="assistant"), delta(content="hi"), delta("stop"), line=line)
    usage = {"choices": [], "usage": {"total_tokens": 3}}
    assert good_stream(CHAT, delta(content="a"), delta(content="b", index=1), delta("stop"), delta("stop", 1), usage)
    assert good_stream(COMPLETIONS, {"choices": [{"text": "hi", "finish_reason": "stop"}]})
    ended = {"type": "response.completed", "response": response()}
    assert good_stream(RESPONSES, {"type": "response.created"}, ended, end=b"")
    chatty = b": a comment\n\nid: 1\nevent: e\nretry: 3\ndata:[DONE]\n\n"
    assert good_stream(CHAT, delta("stop", content="hi"), end=chatty)


def test_streams_that_are_cut_failed_or_empty() -> None:
    whole = [delta(content="hi"), delta("stop")]
    assert good_stream(CHAT, *whole, end=b"event: message\ndata: [DONE]\n\n")
    assert not good_stream(CHAT, *whole, end=b"event: error\ndata: {}\n\ndata: [DONE]\n\n")
    assert not good_stream(CHAT, delta(content=" "), delta("stop"))
    assert not good_stream(CHAT, *whole, end=b"")
    assert not good_stream(CHAT, *whole, end=b"data: [DONE]\n")
    assert not good_stream(CHAT, *whole, end=b"data: [DO")
    assert not good_stream(CHAT, *whole, end=b"data: {broken\n\ndata: [DONE]\n\n")
    assert not good_stream(CHAT, *whole, end=b'error: {"message": "no"}\n\ndata: [DONE]\n\n')
    assert not good_stream(CHAT, *whole, {"error": {"message": "no"}})
    assert not good_stream(CHAT, *whole, end=b"data: [DONE]\n\ndata: [DONE]\n\n")
    assert not good_stream(CHAT, delta(content="hi"))
    assert not good_stream(CHAT, delta(content="hi"), delta("content_filter"))
    assert not good_stream(CHAT, delta(content="hi"), delta("stop"), delta(content="and", index=1))
    assert not good_stream(CHAT, delta("stop"))
    assert not good_stream(CHAT)
    assert not good_stream(CHAT, end=b"")
    assert not good_stream(RESPONSES, {"type": "response.created"}, end=b"")
    assert not good_stream(RESPONSES, {"type": "response.failed", "response": response("failed")}, end=b"")


@pytest.mark.parametrize("body", [b'{"a": "\xc3\xa4"}', b"\xff\x00", b""])
def test_an_answer_comes_back_as_it_was_without_what_belongs_to_the_moment(body: bytes) -> None:
    headers = [*JSON, ("set-cookie", "secret"), ("x-ratelimit-remaining", "1"), ("x-request-id", "r")]
    kept = to_answer(record(200, headers, body))
    back = from_answer(kept)
    assert back is not None
    assert (back.status, back.body) == (200, body)
    assert back.headers == {"content-type": "application/json", "x-request-id": "r"}


@pytest.mark.parametrize("other", [None, "text", {}, {"http": 2}, {"http": 1, "status": "200"}, {"http": 1}])
def test_what_another_program_kept_is_no_answer(other: Any) -> None:
    assert from_answer(other) is None


def test_a_stream_is_replayed_event_by_event() -> None:
    events = [b"data: a\n\n", b"event: b\r\ndata: b\r\n\r\n", b"data: [DONE]\n\n", b"rest"]
    recorded = record(200, EVENTS, b"".join(events))
    assert list(recorded.pieces()) == events
    assert list(record(200, JSON, b"a\n\nb").pieces()) == [b"a\n\nb"]


def _whole() -> list[tuple[Endpoint, bool, bytes]]:
    events = [delta(role="assistant"), delta(content="hi"), delta("stop")]
    stream = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + b"data: [DONE]\n\n"
    ended = json.dumps({"type": "response.completed", "response": response()}).encode()
    return [
        (CHAT, False, json.dumps(chat(content="hi")).encode()),
        (EMBEDDINGS, False, json.dumps({"data": [{"embedding": [0.5]}]}).encode()),
        (CHAT, True, stream),
        (RESPONSES, True, b"event: response.completed\ndata: " + ended + b"\n\n"),
    ]


@pytest.mark.parametrize(("endpoint", "streamed", "body"), _whole())
def test_an_answer_that_is_cut_anywhere_is_not_kept(endpoint: Endpoint, streamed: bool, body: bytes) -> None:
    headers = EVENTS if streamed else JSON
    assert is_worth_keeping(endpoint, streamed, record(200, headers, body))
    for n_bytes in range(len(body)):
        assert not is_worth_keeping(endpoint, streamed, record(200, headers, body[:n_bytes])), n_bytes


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "finish_reason", "message", "data", "error"]), inner, max_size=3)
    ),
    max_leaves=8,
)
_BODIES = _JSON.map(lambda value: json.dumps(value).encode())


@given(
    st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES]),
    st.booleans(),
    st.binary() | _BODIES | _BODIES.map(lambda body: b"data: " + body + b"\n\n"),
)
def test_any_answer_is_judged(endpoint: Endpoint, streamed: bool, body: bytes) -> None:
    headers = EVENTS if streamed else JSON
    assert is_worth_keeping(endpoint, streamed, record(200, headers, body)) in (True, False)
