"""`UNSET`: stands for an argument that was not given, where None is a value (unlimited)."""

from __future__ import annotations

from typing import Any, Final

UNSET: Final[Any] = object()
