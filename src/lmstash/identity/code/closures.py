"""What functions have closed over."""

from __future__ import annotations

from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any


def is_empty(cell: CellType) -> bool:
    """Whether a variable has no value yet, or none any more."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def variables_of(function: FunctionType) -> Iterator[tuple[str, CellType, Any]]:
    """Yield the variables that a function has closed over and that have a value, with it."""
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield variable, cell, cell.cell_contents
        except ValueError:  # an empty cell
            continue
