"""All that is known of one model: rows that are hot, answers in their form, KV; and how what is not known is computed.

A look goes from cheap to dear: the exact row in RAM; the answer in its form in RAM, of which the head makes the row;
the same in the store; the model.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.activations.prompts import check_vocabulary
from lmstash.caches.activations.publish import Publisher
from lmstash.caches.drawing import NOT_KEPT
from lmstash.caches.logprobs.feeding import Feeder
from lmstash.caches.logprobs.forms import form_named
from lmstash.caches.logprobs.hot_rows import HotRows
from lmstash.caches.logprobs.kv_form import SlotPool
from lmstash.caches.logprobs.language_model import LanguageModel, Reuse
from lmstash.caches.logprobs.shelf import Owner, Shelf
from lmstash.caches.logprobs.slab import Slab
from lmstash.errors import InvalidArgumentError
from lmstash.events import DropReason
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.prefix.tree import PointKind, PrefixTree, SpanKind

ANSWER = "answer"
"""The kind of point in the index that is an answer in its form, in RAM."""
ROW = ANSWER
"""What says in the index that a context is known."""
_CONTEXTS_AT_ONCE = 512
"""Rows of so many are made at a time, beside those that are returned."""
SCORE_SPECS = (("value", "F32", (BLOCK_TOKENS,)),)
"""Of the scores of a block: a number for each token, 0 for the first one of all, which nothing precedes."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """What may be held in RAM, in bytes."""

    kv_bytes: int
    row_bytes: int
    answer_bytes: int


class Engine:
    """One model as it is now, with what it computed. For one thread at a time.

    Rows that are returned are the caller's own.
    """

    def __init__(
        self, model: LanguageModel, owner: Owner, publisher: Publisher, *, keep: str, budgets: Budgets
    ) -> None:
        """Start with nothing in RAM.

        Args:
            model: Who computes.
            owner: Whose answers they are, in which store.
            publisher: Saves them.
            keep: The form of answers, one of `forms.FORMS`.
            budgets: For RAM.
        """
        self.model = model
        self.device = model.device
        """Where the KV is. A model that moves stays the same model, but not for what lies here."""
        self._owner = owner
        self._publisher = publisher
        self.form = form_named(keep, model, model.finals, model.n_logits)
        self.shelf = Shelf(owner, self.form.name, "vector", self.form.specs)
        self.score_shelf = Shelf(owner, "score", "block", SCORE_SPECS)
        self.hot = HotRows(model.n_logits, budgets.row_bytes)
        self._answers = Slab(self.form.n_bytes, 0 if self.form.exact else budgets.answer_bytes)
        pool: SlotPool | None = None
        if model.reuse is Reuse.KV and model.form is not None:
            pool = SlotPool(model.form, budgets.kv_bytes // 2)
        answers = PointKind(self._answers.capacity * self._answers.n_bytes, self._answers.give_back)
        span = SpanKind(1, 0)
        if pool is not None:
            span = SpanKind(pool.form.token_bytes, pool.capacity * pool.form.token_bytes, pool.give_back)
        self.index = PrefixTree({ANSWER: answers}, span)
        self.feeder = Feeder(model, self.index, pool, budgets.kv_bytes // 2)
        self._seconds = 0.0
        """What one context took to compute, lately."""

    @property
    def held_bytes(self) -> int:
        """RAM taken."""
        return self.hot.held_bytes + self._answers.held_bytes + self.feeder.held_bytes

    def let_go(self) -> None:
        """Free the memory: handles may keep the index alive, and with it whatever it tells of evictions."""
        self.index.clear()
        self.hot.close()
        self._answers.close()
        self.feeder.close()

    def rows(self, contexts: Sequence[bytes]) -> Tensor:
        """Return log-probabilities after each context, `[n, vocabulary]` float32, computing what is not known.

        Raises:
            InvalidArgumentError: A context is empty, too long, or names a token that the model has not.
        """
        slots = self.hot.find(contexts)
        hot = [slot for slot in slots if slot is not None]
        if len(hot) == len(slots):
            self._hit(contexts)
            return self.hot.read(hot)
        distinct = list(dict.fromkeys(contexts))
        if len(distinct) < len(contexts):
            slots = self.hot.find(distinct)
        out = torch.empty((len(distinct), self.model.n_logits), dtype=torch.float32, device="cpu")
        self._fill(out, distinct, slots)
        if len(distinct) == len(contexts):
            return out
        place = {context: row for row, context in enumerate(distinct)}
        return out[_indices([place[context] for context in contexts])]

    def save(self, shelf: Shelf, contexts: Sequence[bytes], values: Tensor, seconds: float) -> None:
        """Hand values `[n, n_bytes]` to the store, which gets them once the model is known not to have changed."""
        shelf.offer(self._publisher, contexts, values, seconds)

    def drop_drawn(self, shelf: Shelf, contexts: Sequence[bytes], n_drawn: int) -> bool:
        """Count values as dropped if the model drew at random since it had `n_drawn`; return whether it did."""
        if self.model.n_drawn == n_drawn:
            return False
        events = self._owner.store.events
        for context in contexts:
            events.drop(self._owner.namespace, shelf.key_of(context), DropReason.RANDOM)
        name = self.model.name
        events.warn_once(f"{name} draws", "lmstash: log-probabilities of %s are not kept: %s", name, NOT_KEPT)
        return True

    def _fill(self, out: Tensor, contexts: Sequence[bytes], slots: Sequence[int | None]) -> None:
        """Write the row of each distinct context into `out`."""
        known = [(place, slot) for place, slot in enumerate(slots) if slot is not None]
        if known:
            places = [place for place, _ in known]
            out[_indices(places)] = self.hot.read([slot for _, slot in known])
            self._hit([contexts[place] for place in places])
        missing = [place for place, slot in enumerate(slots) if slot is None]
        left = self._fill_from_answers(out, contexts, missing)
        if left:
            self._fill_from_store(out, contexts, left)

    def _fill_from_answers(self, out: Tensor, contexts: Sequence[bytes], missing: list[int]) -> list[int]:
        """Make rows of the answers in RAM; returns the places for which there is none."""
        if not self._answers.capacity:
            return missing
        handles = self.index.match_many([_ids(contexts[place]) for place in missing])
        slots = [
            handle.point(ANSWER) if 4 * handle.depth == len(contexts[place]) else None
            for place, handle in zip(missing, handles, strict=True)
        ]
        known = [(place, slot) for place, slot in zip(missing, slots, strict=True) if slot is not None]
        if known:
            held = self._answers.read([slot for _, slot in known])
            places = [place for place, _ in known]
            self._hit([contexts[place] for place in places])
            self._set(out, contexts, places, self.form.rows(held))
        return [place for place, slot in zip(missing, slots, strict=True) if slot is None]

    def _fill_from_store(self, out: Tensor, contexts: Sequence[bytes], missing: list[int]) -> None:
        """Make rows of the answers in the store, and compute the others."""
        names = [contexts[place] for place in missing]
        for name in names:
            self.check(name)
        found, held = self.shelf.fetch(names)
        if found:
            self._note([names[place] for place in found], held)
            self._set(out, contexts, [missing[place] for place in found], self.form.rows(held))
        there = set(found)
        left = [place for number, place in enumerate(missing) if number not in there]
        left.sort(key=contexts.__getitem__)  # so that what begins alike is computed together
        for start in range(0, len(left), _CONTEXTS_AT_ONCE):
            self._compute(out, contexts, left[start : start + _CONTEXTS_AT_ONCE])

    def _compute(self, out: Tensor, contexts: Sequence[bytes], places: list[int]) -> None:
        started = time.perf_counter()
        names = [contexts[place] for place in places]
        n_drawn = self.model.n_drawn
        finals = self.feeder.finals(names)
        rows = self.model.rows(finals)
        if self.drop_drawn(self.shelf, names, n_drawn):
            out[_indices(places)] = rows
            return
        self._seconds = (time.perf_counter() - started) / len(names)
        answers, unfit = self.form.encode(finals, rows)
        self._set(out, contexts, places, rows)
        if unfit:
            without = set(unfit)
            fit = [number for number in range(len(names)) if number not in without]
            names, answers = [names[number] for number in fit], answers[fit]
        self._note(names, answers)
        self.save(self.shelf, names, answers, self._seconds)

    def _set(self, out: Tensor, contexts: Sequence[bytes], places: list[int], rows: Tensor) -> None:
        """Write rows to their places, and keep them hot."""
        if len(places) == len(out) and places == list(range(len(out))):
            out.copy_(rows)
        else:
            out[_indices(places)] = rows
        self.hot.put([contexts[place] for place in places], rows)

    def _note(self, contexts: Sequence[bytes], answers: Tensor) -> None:
        """Keep answers `[n, n_bytes]` in RAM; of more than there is room for, the last ones."""
        slab = self._answers
        first = max(0, len(contexts) - slab.capacity)
        if len(contexts) - first > slab.room:
            self.index.evict_points(ANSWER, max(0, (slab.capacity - len(contexts) + first) * slab.n_bytes))
        for number in range(first, len(contexts)):
            handle = self.index.start(_ids(contexts[number]))
            slot = slab.put(answers[number])
            if not handle.put_point(ANSWER, slot, slab.n_bytes):
                slab.give_back([slot])
            handle.release()

    def check(self, context: bytes) -> None:
        """Raise unless the model can be given this context."""
        size, limit = len(context) >> 2, self.model.max_tokens
        if not size:
            raise InvalidArgumentError("a context has at least one token: give the begin token where there is nothing.")
        if limit is not None and size > limit:
            raise InvalidArgumentError(f"{self.model.name} takes {limit} tokens at most; a context has {size}.")
        check_vocabulary(np.frombuffer(context, np.uint32), 0, self.model.name, self.model.vocabulary)

    def _hit(self, contexts: Sequence[bytes]) -> None:
        """Count answers that were served from RAM."""
        events, n_bytes = self._owner.store.events, 4 * self.model.n_logits
        if not events.listening:
            events.hits(len(contexts), len(contexts) * n_bytes, len(contexts) * self._seconds)
            return
        for context in contexts:
            events.hit(self._owner.namespace, self.shelf.key_of(context), n_bytes, self._seconds)


def _indices(places: list[int]) -> Tensor:
    return torch.tensor(places, dtype=torch.int64, device="cpu")


def _ids(context: bytes) -> array[int]:
    out: array[int] = array("I")
    out.frombytes(context)
    return out
