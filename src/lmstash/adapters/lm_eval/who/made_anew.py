"""Attributes that look as if each process made them anew, so that nothing is found by them: times, and random ids."""

from __future__ import annotations

import datetime
import re
import time
import uuid
from collections.abc import Collection
from typing import Any

from lmstash.identity.content.object_parts import attributes_of

_DAY_SECONDS = 86400
_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}", re.IGNORECASE)
"""As `uuid4` draws them."""
_TIME = re.compile(r"20\d\d[-_]?[01]\d[-_]?[0-3]\d[-_T ]?[0-2]\d[-_:]?[0-5]\d")


def made_anew(lm: Any, counting: Collection[Any]) -> list[str]:
    """Return the names of such attributes among those that count."""
    return sorted(name for name, value in attributes_of(lm).items() if name in counting and _is_new(value))


def _is_new(value: Any) -> bool:
    if isinstance(value, datetime.datetime | uuid.UUID):
        return True
    if isinstance(value, str):
        return _ID.search(value) is not None or _TIME.search(value) is not None
    return type(value) in (int, float) and 0 <= time.time() - value < _DAY_SECONDS
