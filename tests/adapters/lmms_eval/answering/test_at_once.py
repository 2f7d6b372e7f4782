"""How many requests a model says that it computes at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lmstash.adapters.lmms_eval.answering.at_once import batch_size_of

CLIENT = type("Client", (), {"__module__": "openai.client"})()
ADAPTIVE = SimpleNamespace(max_concurrency=128)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ({}, 1),
        ({"batch_size": 8}, 8),
        ({"batch_size_per_gpu": 4, "batch_size": 8}, 4),
        ({"batch_size": "auto"}, 1),
        ({"batch_size": 1, "num_concurrent": 32}, 32),
        ({"batch_size": 64, "num_concurrent": 32}, 64),
        ({"num_cpus": 6}, 6),
        ({"max_workers": None, "concurrency": "12"}, 12),
        ({"num_concurrent": 32, "adaptive_concurrency": True, "adaptive_config": ADAPTIVE}, 128),
        ({"num_concurrent": 32, "adaptive_concurrency": False, "adaptive_config": ADAPTIVE}, 32),
        ({"client": CLIENT}, 64),
        ({"client": CLIENT, "batch_size": 2}, 2),
        ({"client": CLIENT, "num_concurrent": 3}, 3),
    ],
)
def test_it_is_its_batch_or_what_it_asks_a_server_for_side_by_side(says: dict[str, Any], expected: int) -> None:
    assert batch_size_of(SimpleNamespace(**says)) == expected
