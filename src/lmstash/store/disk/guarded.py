"""`with` blocks that an interrupt cannot leave entered but without an end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Entered(threading.local):
    """The blocks that a thread is in, from the outermost to the innermost, as far as anybody still holds them."""

    def __init__(self) -> None:
        self.blocks: list[weakref.ref[Guarded[Any]]] = []


_entered = _Entered()


class Guarded(Generic[T]):
    """What `contextlib.contextmanager` makes of a generator, but for an interrupt while the block is being entered.

    There the generator would stay suspended, with its lock taken and its transaction open, for as long as anybody keeps
    the traceback, which notebooks do until the next one. An interrupt just as the block is left, before its end has
    begun, leaves it so, too: whatever block it lies in ends it then.
    """

    __slots__ = ("__weakref__", "_generator")

    def __init__(self, generator: Generator[T, None, None]) -> None:
        """Take a generator that yields once, and swallows nothing."""
        self._generator = generator

    def __enter__(self) -> T:
        try:
            found = next(self._generator)
            _entered.blocks.append(weakref.ref(self))
            return found
        except BaseException:
            self._generator.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        blocks = _entered.blocks
        try:
            if blocks and blocks[-1]() is self:  # as it nearly always is
                blocks.pop()
            else:
                self._end_those_within(blocks)
        finally:
            self._end(error, trace)

    def _end_those_within(self, blocks: list[weakref.ref[Guarded[Any]]]) -> None:
        while any(each() is self for each in blocks):
            last = blocks.pop()()
            if last is not None and last is not self:
                last._generator.close()

    def _end(self, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            next(self._generator, None)
            return
        try:
            self._generator.throw(error)
        except BaseException as raised:
            if raised is not error:
                raise
            error.__traceback__ = trace
