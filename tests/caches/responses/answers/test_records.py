"""Which answers are kept unless a caller says something else."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from lmstash.caches.responses.answers.records import is_kept

INSIDE: list[Any] = []
INSIDE.append(INSIDE)


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "", " \n\t", b"", b" ", [], (), {}, [""], ("",), [None, None], [[], {}], {"text": ""}, {"choices": []}),
        *({"text": " ", "logprobs": (), "extra": {"tools": None}}, [{"text": ""}, {"text": "\n"}]),
        *({"error": "x"}, {"error": {"code": 429}, "text": "partly"}, MappingProxyType({"error": "x"})),
        *({"status": "error"}, {"status": "Failed", "id": 7}, {"object": "error", "message": "too long"}),
        *([{"text": "good"}, {"error": "x"}], {"error": np.ones(2)}),
    ],
)
def test_what_is_empty_or_reports_a_failure_is_not_kept(answer: Any) -> None:
    assert not is_kept(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "a",
            " a ",
            b"\0",
            0,
            0.0,
            False,
            (float("nan"), False),
            [0],
            [0.0, None],
            {"score": 0},
            {"ok": False},
            "error",
        ),
        *({"text": "", "finish_reason": "stop"}, {"error": None, "text": "a"}, {"error": "", "text": "a"}),
        *({"status": "completed", "text": "a"}, {"status": 200, "text": "a"}, {"answer": {"status": "error"}}),
        *({"errors": ["a typing error in line 3"]}, ["", "a"], np.zeros(3), INSIDE, object()),
    ],
)
def test_what_says_anything_is_kept(answer: Any) -> None:
    assert is_kept(answer)
