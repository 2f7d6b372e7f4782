"""`UNSET`: stands for an argument that was not given, where None is a value (unlimited)."""

from __future__ import annotations

from typing import Any, Final


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final[Any] = _Unset()
