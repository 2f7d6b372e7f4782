"""What callers give for many requests at once, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmstash.errors import InvalidArgumentError


def listed(requests: Iterable[Any]) -> Sequence[Any]:
    """Return requests by number: columns of tables count by label, datasets by column, and generators not at all."""
    return requests if isinstance(requests, list | tuple) else list(requests)


def one_for_each(tags: Any, n_requests: int) -> Sequence[Any]:
    """Return facts for each of several requests, of which one dict is meant for all.

    Raises:
        InvalidArgumentError: There are not as many.
    """
    if tags is None or isinstance(tags, Mapping):
        return [tags] * n_requests
    tags = listed(tags)
    if len(tags) != n_requests:
        raise InvalidArgumentError(f"{n_requests} requests have {len(tags)} tags: give a dict for each, or one for all")
    return tags
