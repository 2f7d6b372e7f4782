"""What the harness says of a request beside its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def is_padding(request: Any) -> bool:
    """Whether a rank's requests were filled up with this one, whose answer is thrown away."""
    return bool((getattr(request, "metadata", None) or {}).get("__padding_only__"))


def length_of(request: Any) -> int:
    """Return how long a request's context is; 0 where it has none that is a text."""
    args = request.args
    return len(args[0]) if args and isinstance(args[0], str) else 0


def repeats_of(requests: Sequence[Any]) -> list[int]:
    """Return the how-manieth time each request is asked in this call: harnesses repeat the same object.

    Padding is asked for the first time, so that it is what has been answered.
    """
    seen: dict[int, int] = {}
    out: list[int] = []
    for each in requests:
        number = 0 if is_padding(each) else seen.get(id(each), 0)
        seen[id(each)] = number + 1
        out.append(number)
    return out


def tags_of(request: Any) -> dict[str, Any]:
    """Return what a kept answer is found by."""
    metadata = getattr(request, "metadata", None)
    split = metadata.get("split") if isinstance(metadata, Mapping) else None
    doc = getattr(request, "doc_id", None)
    return {
        "task": getattr(request, "task_name", None),
        "doc": doc if isinstance(doc, int | str) else None,
        "split": split,
    }
