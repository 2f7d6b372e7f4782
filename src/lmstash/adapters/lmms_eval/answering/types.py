"""What lmms-eval's models answer with, and which of it is worth keeping."""

from __future__ import annotations

import sys
from typing import Any

from lmstash.caches.responses import register
from lmstash.caches.responses.answers.records import is_kept


def register_types() -> None:
    """Let answers be of the harness's own types, if the harness is loaded."""
    instance = sys.modules.get("lmms_eval.api.instance")
    if instance is not None:
        for name in ("GenerationResult", "TokenCounts"):
            register(getattr(instance, name), name=f"lmms_eval.api.instance.{name}")


def is_worth_keeping(answer: Any) -> bool:
    """Whether an answer is neither empty nor a report of failure: models return empty text where a call failed."""
    if isinstance(answer, str):
        return bool(answer.strip())
    if hasattr(answer, "text"):
        return is_worth_keeping(answer.text)
    if isinstance(answer, tuple | list):
        if answer and isinstance(answer[0], float):
            return answer[0] == answer[0]
        texts = [each for each in answer if isinstance(each, str) or hasattr(each, "text")]
        return is_kept(answer) and (not texts or any(map(is_worth_keeping, texts)))
    return is_kept(answer)
