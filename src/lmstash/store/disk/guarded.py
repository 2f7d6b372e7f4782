"""`with` blocks that an interrupt cannot leave entered but without an end."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Guarded(Generic[T]):
    """What `contextlib.contextmanager` makes of a generator, but for an interrupt while the block is being entered.

    There the generator would stay suspended, with its lock taken and its transaction open, for as long as anybody keeps
    the traceback, which notebooks do until the next one.
    """

    __slots__ = ("_generator",)

    def __init__(self, generator: Generator[T, None, None]) -> None:
        """Take a generator that yields once, and swallows nothing."""
        self._generator = generator

    def __enter__(self) -> T:
        try:
            return next(self._generator)
        except BaseException:
            self._generator.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            next(self._generator, None)
            return
        try:
            self._generator.throw(error)
        except BaseException as raised:
            if raised is not error:
                raise
            error.__traceback__ = trace
