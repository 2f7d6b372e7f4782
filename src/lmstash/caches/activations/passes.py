"""Passes over one model, after which it is as it was: what its forward leaves on its modules is put back.

Some models remember what the last batch was like: rotary embeddings that turn otherwise in long batches, BigBird's kind
of attention, the dtype that a router was given. With that on it a model goes by another name than it has in a fresh
process, and may compute something else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from lmstash.events import logger
from lmstash.forks import renew_after_fork
from lmstash.identity.models.structure import HARMLESS, TORCH_OWN

_Out = TypeVar("_Out")
_Name = tuple[type, str]
_SKIP = TORCH_OWN | HARMLESS
_BUFFER_BYTES = 2**16
"""Largest buffer of which a copy is held during a pass; one that is larger and written to stays so."""
_ABSENT = object()


class Passes:
    """Runs the passes over one model, and puts back what its forward leaves. Threads may share it.

    Put back is only what modules of transformers' own classes hold (attributes, buffers, children), and only names that
    the forward assigns again when it runs again: anybody else's edit stays, and the model counts as changed. So does
    what is found after passes that others' threads ran meanwhile. A model that is known to leave something runs in one
    thread at a time; others' code must not run it meanwhile.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._running: set[int] = set()
        """Threads within a pass."""
        self._mixed: set[int] = set()
        """Those of them beside whose pass another one ran."""
        self._taken = False
        """Whether nobody else may begin a pass."""
        self._first = True
        """Whether none has ended yet: the first one runs alone, as most models that leave something do at once."""
        self._names: frozenset[_Name] = frozenset()
        """What the forward is known to assign: class and attribute."""
        renew_after_fork(self, _turn=threading.Condition, _running=set, _mixed=set, _taken=bool)

    def run(
        self,
        model: nn.Module,
        base: nn.Module,
        once: Callable[[], _Out],
        *,
        again: Callable[[], object],
        may_undo: Callable[[], bool],
    ) -> _Out:
        """Return what `once` returns. Costs 0.5 ms for 400 modules where nothing is left on them.

        Args:
            model: All of it.
            base: What every pass calls.
            once: The pass.
            again: A cheaper one of the same length, run when something is left whose origin is not known yet.
            may_undo: Whether only the modules' own code runs; asked when something is left.
        """
        here = threading.get_ident()
        if here in self._running:  # within a pass, by somebody's hook
            return once()
        with self._begun(here), strangers_seen(base, lambda: self._mixed.add(here)):
            before, learn = State(model, is_own), None  # after an error only what is known is put back
            try:
                out = once()
                learn = again
                return out
            finally:
                marks = before.marks()
                if marks and may_undo():
                    self._put_back(before, marks, here, learn)
                self._first = False

    @contextmanager
    def none_running(self) -> Iterator[None]:
        """Look at a model while no pass of another thread is on the way that may have left something."""
        here = threading.get_ident()
        if not (self._names or self._first) or here in self._running:
            yield
            return
        with self._begun(here):
            yield

    @contextmanager
    def _begun(self, here: int) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: not self._running or not (self._names or self._taken or self._first))
            self._running.add(here)
            if len(self._running) > 1:
                self._mixed |= self._running
        try:
            yield
        finally:
            with self._turn:
                self._running.discard(here)
                self._mixed.discard(here)
                self._taken = False
                self._turn.notify_all()

    def _put_back(self, before: State, marks: list[Mark], here: int, again: Callable[[], object] | None) -> None:
        """Undo marks whose names are known or can be learnt; none where they may be of another's pass."""
        with self._turn:
            if here in self._mixed:
                return
            self._taken = True
        if again is not None and not self._names.issuperset(each.name for each in marks):
            self._learn(before, marks, again)
        for each in marks:
            if each.name in self._names:
                each.undo()

    def _learn(self, before: State, marks: list[Mark], again: Callable[[], object]) -> None:
        """Run once more from where the last pass began, and learn which names are assigned again."""
        found: frozenset[_Name] = frozenset()
        for each in marks:
            each.undo()
        try:
            again()
            found = frozenset(each.name for each in before.marks())
        except Exception as error:
            logger.debug("what a forward pass left on the model could not be told from others' edits: %r", error)
        finally:
            self._names |= found.intersection(each.name for each in marks)
            for each in marks:
                each.redo()


def is_own(kind: type) -> bool:
    """Whether a class is transformers' own."""
    return kind.__module__.startswith("transformers.")


@contextmanager
def strangers_seen(base: nn.Module, tell: Callable[[], object]) -> Iterator[None]:
    """Tell of passes that begin in other threads meanwhile, the program's own too."""
    here = threading.get_ident()

    def notice(module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != here:
            tell()

    notice.__dict__["_lmstash"] = True
    handle = base.register_forward_pre_hook(notice)
    try:
        yield
    finally:
        handle.remove()


@dataclass(slots=True)
class Mark:
    """One thing that is not as it was."""

    name: _Name
    holder: dict[str, Any]
    """A module's attributes, buffers or children."""
    then: Any
    now: Any
    contents: tuple[Tensor, Tensor] | None = None
    """Of a buffer that was written to, before and after."""

    def undo(self) -> None:
        """Put back what was there."""
        self._set(self.then, 0)

    def redo(self) -> None:
        """Put what was found there."""
        self._set(self.now, 1)

    def _set(self, value: Any, side: int) -> None:
        if self.contents is not None:
            with torch.no_grad():
                value.copy_(self.contents[side])
        elif value is _ABSENT:
            self.holder.pop(self.name[1], None)
        else:
            self.holder[self.name[1]] = value


class State:
    """What modules hold beside their weights: those of the classes that are asked for."""

    def __init__(self, model: nn.Module, of: Callable[[type], bool]) -> None:
        self._held: list[tuple[type, dict[str, Any], dict[str, Any]]] = []
        self._buffers: list[tuple[type, dict[str, Any], str, Tensor, int, Tensor]] = []
        pending, seen = [model], {id(model)}
        while pending:
            module = pending.pop()
            state, kind = module.__dict__, type(module)
            for each in state["_modules"].values():
                if each is not None and id(each) not in seen:
                    seen.add(id(each))
                    pending.append(each)
            if not of(kind):
                continue
            for holder in (state, state["_buffers"], state["_modules"]):
                if holder:
                    self._held.append((kind, holder, holder.copy()))
            for name, buffer in state["_buffers"].items():
                if buffer is not None and buffer.nbytes <= _BUFFER_BYTES and not buffer.is_inference():
                    copy = buffer.detach().clone()
                    self._buffers.append((kind, state["_buffers"], name, buffer, buffer._version, copy))

    def marks(self) -> list[Mark]:
        """Return what is not as it was, to the very objects."""
        out: list[Mark] = []
        for kind, holder, then in self._held:
            if len(holder) == len(then) and all(map(is_, holder.values(), then.values())):
                continue
            for name in [*then, *(each for each in holder if each not in then)]:
                old, new = then.get(name, _ABSENT), holder.get(name, _ABSENT)
                if old is not new and name not in _SKIP:
                    out.append(Mark((kind, name), holder, old, new))
        for kind, holder, name, buffer, version, copy in self._buffers:
            if buffer._version != version:
                contents = copy, buffer.detach().clone()
                out.append(Mark((kind, name), holder, buffer, buffer, contents))
        return out


_passes: WeakValueDictionary[int, Passes] = WeakValueDictionary()
"""By the `id` of the base model, which is its own for as long as a source of it lives and holds these."""


def passes_over(base: nn.Module) -> Passes:
    """Return the one that all sources of a model share; hold it together with the model."""
    return _passes.setdefault(id(base), Passes())
