"""Whether an answer is complete, and neither empty nor a failure: what is not known to be good is not kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lmstash.adapters.openai.endpoints import EMBEDDINGS, RESPONSES, Endpoint
from lmstash.adapters.openai.recorded import Recorded

_GOOD_ENDS = frozenset({"stop", "length", "tool_calls", "function_call", "eos_token", "stop_sequence"})
"""Reasons to finish that are the model's own, or the request's."""

_CONTENT = ("content", "text", "tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "audio")
_DONE = "[DONE]"


def is_worth_keeping(endpoint: Endpoint, streamed: bool, recorded: Recorded) -> bool:
    """Whether an answer may be served again.

    Args:
        endpoint: Whose answer it is.
        streamed: Whether a stream was asked for.
        recorded: The answer, in full as far as we know.
    """
    if recorded.status != 200 or recorded.headers.get("content-encoding", "identity") != "identity":
        return False
    if streamed != recorded.is_stream:
        return False
    try:
        if streamed:
            return _is_good_stream(endpoint, list(_events(recorded.body)))
        return _is_good(endpoint, json.loads(recorded.body))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # it is not built as such answers are
        return False


def _is_good(endpoint: Endpoint, answer: Any) -> bool:
    if not isinstance(answer, dict) or answer.get("error"):
        return False
    if endpoint is EMBEDDINGS:
        return bool(answer["data"]) and all(_is_vector(each["embedding"]) for each in answer["data"])
    if endpoint is RESPONSES:
        return _is_good_response(answer)
    choices = answer["choices"]
    return bool(choices) and all(
        each["finish_reason"] in _GOOD_ENDS and (_has_content(each.get("message", each)) or _is_scored(each))
        for each in choices
    )


def _is_good_response(answer: dict[str, Any]) -> bool:
    status, details = answer["status"], answer.get("incomplete_details") or {}
    ended = status == "completed" or (status == "incomplete" and details.get("reason") == "max_output_tokens")
    return ended and not answer.get("error") and bool(answer["output"])


def _is_good_stream(endpoint: Endpoint, events: list[Any]) -> bool:
    if not events or any(not isinstance(each, dict) or each.get("error") for each in events if each != _DONE):
        return False
    if endpoint is RESPONSES:
        last = [each for each in events if each != _DONE][-1]
        return last["type"] in ("response.completed", "response.incomplete") and _is_good_response(last["response"])
    if events[-1] != _DONE or _DONE in events[:-1]:
        return False
    ends: dict[int, str | None] = {}
    filled: set[int] = set()
    for event in events[:-1]:
        for choice in event.get("choices") or ():
            number = choice.get("index", 0)
            ends[number] = choice.get("finish_reason") or ends.get(number)
            if _has_content(choice.get("delta", choice)) or _is_scored(choice):
                filled.add(number)
    return bool(ends) and filled == ends.keys() and all(end in _GOOD_ENDS for end in ends.values())


def _has_content(part: dict[str, Any]) -> bool:
    said = [part.get(name) for name in _CONTENT]
    return any(not each.isspace() if each and isinstance(each, str) else each for each in said)


def _is_scored(choice: dict[str, Any]) -> bool:
    """Whether scores of tokens came, whatever the tokens are: one that is a blank, or ends the answer, has a score."""
    scores = choice.get("logprobs")
    if not isinstance(scores, dict):
        return False
    chat, completion = (scores.get(name) for name in ("content", "token_logprobs"))
    said = [each.get("logprob") for each in chat if isinstance(each, dict)] if isinstance(chat, list) else []
    return any(each is not None for each in said + (completion if isinstance(completion, list) else []))


def _is_vector(embedding: Any) -> bool:
    """Whether it is one: base64, or numbers and nothing else (a server writes null for what is none)."""
    return bool(embedding) and (isinstance(embedding, str) or None not in embedding)


def _events(body: bytes) -> Iterator[Any]:
    """Yield what the events of a stream say, JSON read; raises ValueError if it is cut or says other things.

    Source: the event stream format of the HTML standard, section 9.2.6.
    """
    text = body.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n\n"):
        raise ValueError("a stream ends within an event")
    for block in text.split("\n\n"):
        data: list[str] = []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
            elif name == "event" and value.strip() == "error":
                raise ValueError("a stream reports a failure")
            elif name not in ("", "event", "id", "retry"):  # llama.cpp reports failures in a field of its own
                raise ValueError(f"a stream says {name!r}")
        said = "\n".join(data)
        if said == _DONE:
            yield _DONE
        elif data:
            yield json.loads(said)
