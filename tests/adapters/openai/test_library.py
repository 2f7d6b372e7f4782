"""What is kept of an answer, and for how long."""

from __future__ import annotations

import json
from typing import Any

import pytest

import lmstash
from lmstash.adapters.openai.library import Case, Library
from lmstash.adapters.openai.recorded import record

JSON = [("content-type", "application/json")]
DAY_SECONDS = 86400.0


@pytest.mark.parametrize(
    ("body", "of_stash", "ttl_seconds", "served_seconds"),
    [
        ({}, None, None, 30 * DAY_SECONDS),
        ({}, None, 40 * DAY_SECONDS, 30 * DAY_SECONDS),
        ({}, 40 * DAY_SECONDS, None, 30 * DAY_SECONDS),
        ({}, 40 * DAY_SECONDS, DAY_SECONDS, DAY_SECONDS),
        ({}, DAY_SECONDS, None, DAY_SECONDS),
        ({"store": False}, None, None, None),
        ({"store": False}, DAY_SECONDS, None, DAY_SECONDS),
        ({"store": False}, None, 40 * DAY_SECONDS, 40 * DAY_SECONDS),
    ],
)
def test_an_answer_that_its_server_holds_is_served_no_longer_than_it_is_held(
    body: dict[str, Any], of_stash: float | None, ttl_seconds: float | None, served_seconds: float | None
) -> None:
    stash = lmstash.open("memory://", strict=True, ttl_seconds=of_stash)
    asked = json.dumps({"model": "m", "temperature": 0, "input": "hi", **body}).encode()
    case = Library(stash, ttl_seconds=ttl_seconds).consider("POST", "http://localhost/v1/responses", JSON, asked)
    assert isinstance(case, Case)
    case.keep(record(200, JSON, b'{"status": "completed", "output": [{"type": "message"}]}'), 0.1)
    (info,) = stash.store.describe_many([case.key])
    assert info is not None
    assert (None if info.expires is None else round(info.expires - info.created)) == served_seconds
