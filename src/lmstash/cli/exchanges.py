"""Kept responses on the command line: their requests and answers in few words or in full."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lmstash.cli.output import clip
from lmstash.cli.place import plain
from lmstash.errors import FormatError
from lmstash.store.base import EntryInfo, Store

KIND = "responses"
_TELLING = (
    "messages",
    "prompt",
    "input",
    "question",
    "context",
    "arguments",
    "choices",
    "message",
    "content",
    "output",
    "text",
)
"""Fields of a request or an answer that say most of it, the first one first."""


def exchange_of(store: Store, entry: EntryInfo) -> dict[str, Any]:
    """Return `request` and `answer` of a kept response, JSON-able; None for what is not kept or cannot be read."""
    from lmstash.caches.responses.answers.finding import open_value
    from lmstash.caches.responses.answers.records import read_back

    kept = open_value(store, entry)
    try:
        if kept is not None:
            request = plain(read_back(kept.request)) if kept.request else None
            return {"request": request, "answer": plain(read_back(kept.answer))}
    except FormatError:
        pass
    return {"request": None, "answer": None}


def words_of(store: Store, entries: Sequence[EntryInfo]) -> dict[bytes, str]:
    """Return the first words of request and answer, by key, of those entries that are responses."""
    out: dict[bytes, str] = {}
    for entry in entries:
        if entry.kind == KIND:
            said = exchange_of(store, entry)
            said["answer"] = body_of(said["answer"])
            out[entry.key] = f"{clip(telling(said['request']), 32) or '-'} → {clip(telling(said['answer']), 25)}"
    return out


def body_of(answer: Any) -> Any:
    """Return what an answer of a server says: the JSON in its body, of a stream what its pieces say; else itself."""
    from lmstash.adapters.openai.recorded import from_answer

    recorded = from_answer(answer)
    if recorded is None:
        return answer
    try:
        if not recorded.is_stream:
            return json.loads(recorded.body)
        pieces = [each.partition(b"data:")[2].strip() for each in recorded.pieces()]
        events = [json.loads(each) for each in pieces if each not in (b"", b"[DONE]")]
    except ValueError:
        return recorded.body.decode("utf-8", "replace")
    return "".join(map(_piece, events)) or events


def _piece(event: Any) -> str:
    """Return the text of an event of a stream: of a chat, of completions, of OpenAI's responses."""
    if not isinstance(event, dict):
        return ""
    if isinstance(event.get("delta"), str) and event.get("type") == "response.output_text.delta":
        return event["delta"]
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta = first.get("delta")
    said = delta.get("content") if isinstance(delta, dict) else first.get("text")
    return said if isinstance(said, str) else ""


def telling(value: Any) -> str:
    """Return the part of a request or an answer that says most of it: of a chat, its last message."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        named = next((value[name] for name in _TELLING if value.get(name)), None)
        return telling(named) if named is not None else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and value:
        if all(isinstance(each, dict) for each in value):
            return telling(value[-1])
        if isinstance(value[0], str):
            return value[0]
    return json.dumps(value, ensure_ascii=False)


def place_in_task(entry: EntryInfo) -> str:
    """Return what a response is an answer to: `gsm8k 17 test`."""
    words = [str(entry.meta[name]) for name in ("task", "doc", "split") if entry.meta.get(name) is not None]
    return " ".join(words) or "-"


def in_full(value: Any) -> str:
    """Return a request or an answer on as many lines as it takes; what a terminal would obey is shown as `�`."""
    if value is None:
        return "(not kept)"
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(each if each.isprintable() or each in "\n\t" else "�" for each in text)
