"""Which answers of a backend are kept, and in which types."""

from __future__ import annotations

import math
import sys
from typing import Any


def is_kept(answer: Any, empty: bool) -> bool:
    """Whether an answer is one that is worth keeping; `empty` texts, if it says so."""
    if answer is None:
        return False
    if isinstance(answer, str) and answer and answer == _placeholder():
        return False
    if isinstance(answer, list):  # of samples that were drawn together, too
        return (empty or bool(answer)) and all(is_kept(each, empty) for each in answer)
    if isinstance(answer, str | dict):
        return empty or bool(answer)
    numbers = answer if isinstance(answer, tuple) else (answer,)
    return not any(isinstance(each, float) and math.isnan(each) for each in numbers)


def _placeholder() -> str:
    """Return what the harness writes where an API gave nothing."""
    name = "LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER"
    return getattr(sys.modules.get("lm_eval.models.api_models"), name, name)


def plain(answer: Any) -> Any:
    """Return an answer in Python's own types: some backends give numbers of numpy."""
    if type(answer) is tuple and len(answer) == 2:
        value, greedy = answer
        if isinstance(value, float) and type(greedy).__name__ in ("bool", "bool_"):
            return float(value), bool(greedy)
    return float(answer) if isinstance(answer, float) else answer
