"""Running what was planned: batches, their KV from the last batch or from the pool, and KV kept for what comes next."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmstash.caches.activations.batching import ACCELERATOR_BATCH_TOKENS, BATCH_TOKENS
from lmstash.caches.logprobs.kv_form import SlotPool
from lmstash.caches.logprobs.language_model import LanguageModel, Reuse
from lmstash.caches.logprobs.plan import Feed, plan
from lmstash.prefix.tree import PrefixTree

if TYPE_CHECKING:
    from lmstash.caches.logprobs.kv_rows import KVRows

_ROWS = 256
"""Most contexts in a batch."""
_WORKING_BYTES = 256 * 2**20
"""KV that a batch may take while it is computed, however little may be kept afterwards."""
_BESIDE_TOKENS = 4
"""What is left of a context that is computed beside the children of the batch in use."""


class Feeder:
    """Computes the final states of contexts. For one thread at a time.

    Half of the budget is for the pool of token slots, from which any context may go on, half for the batch last used,
    which the next one goes on from without a copy where it asks for children of the same contexts.
    """

    def __init__(self, model: LanguageModel, index: PrefixTree, pool: SlotPool | None, batch_bytes: int) -> None:
        """Compute with `model`.

        Args:
            model: Who computes.
            index: Where slots are noted.
            pool: Where KV is kept; None where KV cannot be cut.
            batch_bytes: How much of the KV of the last batch may be kept as it lies.
        """
        self._model = model
        self._index = index
        self._pool = pool
        self._batch_bytes = batch_bytes
        self._rows: KVRows | None = None
        self.fed_tokens = 0
        """Tokens that went through the model, padding not counted."""
        self.passes = 0

    @property
    def held_bytes(self) -> int:
        """Memory taken by KV."""
        return (self._rows.held_bytes if self._rows else 0) + (self._pool.held_bytes if self._pool else 0)

    def finals(self, contexts: Sequence[bytes]) -> Tensor:
        """Return the final states after distinct contexts, `[n, width]`, in their order."""
        model = self._model
        if model.reuse is not Reuse.KV:
            levels = plan(contexts, [0] * len(contexts), inside=model.reuse is Reuse.INSIDE, shares=False)
            return self._in_order(contexts, levels)
        rows = self._live()
        children = [context for context in contexts if context[:-4] in rows]
        others = [context for context in contexts if context[:-4] not in rows]
        handles = self._index.match_many([_ids(context) for context in others])
        for handle in handles:
            handle.pin()
        try:
            levels = plan(others, [handle.covered for handle in handles])
            if children:
                levels = self._with_children(children, levels)
            return self._in_order(contexts, levels)
        finally:
            for handle in handles:
                handle.release()
            self._let_go()

    def states_inside(self, context: bytes, reads: list[int]) -> Tensor:
        """Return the final states after some beginnings of one context, `[n_reads, width]`, from one pass.

        Args:
            context: Its tokens; fed to the last read, or wholly where a state depends on what follows.
            reads: Lengths of the beginnings, rising.
        """
        if self._model.reuse is Reuse.NOTHING:
            return self._run([Feed(context, 0, reads)])
        context = context[: 4 * reads[-1]]
        if self._model.reuse is not Reuse.KV:
            return self._run([Feed(context, 0, reads)])
        handle = self._index.match(_ids(context))
        handle.pin()
        try:
            return self._run([Feed(context, min(handle.covered, reads[0] - 1), reads)])
        finally:
            handle.release()
            self._let_go()

    def close(self) -> None:
        """Free the memory of KV."""
        self.forget()
        if self._pool is not None:
            self._pool.close()

    def forget(self) -> None:
        """Let go of the last batch."""
        self._rows = None

    def _let_go(self) -> None:
        if self._rows is not None and self._rows.held_bytes > self._batch_bytes:
            self.forget()

    def _with_children(self, children: list[bytes], levels: list[list[Feed]]) -> list[list[Feed]]:
        """Put what goes on from the batch in use first, with what fits beside it, while its rows are where they are."""
        end = self._live().end
        first = levels[0] if levels else []
        beside = [feed for feed in first if feed.n_tokens <= _BESIDE_TOKENS and feed.n_past <= end]
        rest = [feed for feed in first if feed.n_tokens > _BESIDE_TOKENS or feed.n_past > end]
        return [[_last(context) for context in children] + beside, rest, *levels[1:]]

    def _in_order(self, contexts: Sequence[bytes], levels: Sequence[Sequence[Feed]]) -> Tensor:
        """Run all levels and put what was read into the order of the contexts."""
        place: dict[bytes, int] = {}
        parts: list[Tensor] = []
        for level in levels:
            for batch in self._batches(level):
                parts.append(self._run(batch))
                for feed in batch:
                    for length in feed.reads:
                        place[feed.context[: 4 * length]] = len(place)
        found = torch.cat(parts) if len(parts) > 1 else parts[0]
        order = [place[context] for context in contexts]
        if order == list(range(len(order))):
            return found
        return found[torch.tensor(order, dtype=torch.int64, device=found.device)]

    def _batches(self, feeds: Sequence[Feed]) -> Iterator[list[Feed]]:
        """Group feeds by what is left to compute: like lengths side by side, within budgets."""
        on_cpu = self._model.device.type == "cpu"
        most_tokens = BATCH_TOKENS if on_cpu else ACCELERATOR_BATCH_TOKENS
        token_bytes = self._model.form.token_bytes if self._model.form is not None else 0
        most_bytes = max(self._batch_bytes, _WORKING_BYTES)
        alike = self._model.reuse is Reuse.NOTHING
        most_rows = 1 if self._model.runs_alone else _ROWS
        batch: list[Feed] = []
        longest = columns = 0
        for feed in sorted(feeds, key=lambda each: (-each.n_tokens, -each.n_past)):
            wide = max(columns, feed.n_past)
            n_rows = len(batch) + 1
            if batch and (
                n_rows > most_rows
                or n_rows * longest > most_tokens
                or n_rows * (wide + longest) * token_bytes > most_bytes
                or feed.n_tokens < (longest if alike else longest // 2 - 8)
                or feed.n_past < columns // 2 - 64
            ):
                yield batch
                batch = []
            if not batch:
                longest, columns = feed.n_tokens, feed.n_past
            batch.append(feed)
            columns = max(columns, feed.n_past)
        if batch:
            yield batch

    def _run(self, feeds: list[Feed]) -> Tensor:
        """Run one batch; returns what it reads. A batch that does not fit the device is halved."""
        try:
            return self._run_with_kv(feeds) if self._model.reuse is Reuse.KV else self._run_whole(feeds)
        except torch.OutOfMemoryError:
            self.forget()
            if len(feeds) < 2:
                raise
        half = len(feeds) // 2
        return torch.cat([self._run(feeds[:half]), self._run(feeds[half:])])

    def _run_whole(self, feeds: list[Feed]) -> Tensor:
        self._count(feeds)
        if self._model.reuse is Reuse.INSIDE:
            return self._model.run(feeds, [0] * len(feeds), 0)
        self._model.reset()
        try:
            return self._model.run(feeds, [0] * len(feeds), 0)
        finally:
            self._model.reset()

    def _run_with_kv(self, feeds: list[Feed], *, clean: bool = False) -> Tensor:
        """Run one batch over the rows in use; `clean` if these were made for it."""
        rows = self._live()
        names = [feed.context[: 4 * feed.n_past] for feed in feeds]
        if not rows.reaches(names):
            rows.forget()
        slots = self._slots(feeds, names)
        longest = max(feed.n_tokens for feed in feeds)
        try:
            row_of, absent = rows.seat(names, longest)
            filled: dict[bytes, int] = {}
            for index in absent:
                row, past = row_of[index], slots[index]
                known = filled.setdefault(names[index], row)
                if known != row:
                    rows.repeat(known, row)
                elif past is not None and self._pool is not None:
                    self._pool.read(past, rows.fill(row))
            ordered = [feeds[index] for index in sorted(range(len(feeds)), key=row_of.__getitem__)]
            self._count(ordered)
            n_drawn = self._model.n_drawn
            out = self._model.run(ordered, rows.starts, rows.end, rows.cache())
        except BaseException:
            self.forget()  # half written
            raise
        if bool(out.isnan().any()):
            # Under another context's padding, what is not a number would spoil that one: nought times it is not nought.
            self.forget()
            if not clean:
                return self._run_with_kv(feeds, clean=True)
            return out if ordered == feeds else out[_back(feeds, row_of).to(out.device)]
        if self._model.n_drawn > n_drawn:  # nothing may go on from this
            self.forget()
            return out if ordered == feeds else out[_back(feeds, row_of).to(out.device)]
        self._keep(ordered, rows)
        before = rows.end
        rows.end = before + longest
        for row, feed in enumerate(ordered):
            rows.name(row, feed.context)  # those that are padded on the right go on from the pool
        if ordered == feeds:
            return out
        return out[_back(feeds, row_of).to(out.device)]

    def _slots(self, feeds: list[Feed], names: list[bytes]) -> list[array[int] | None]:
        """Return the slots of each feed's past; a past that is neither in a row nor in slots is fed again."""
        rows = self._live()
        out: list[array[int] | None] = [None] * len(feeds)
        for index, (feed, name) in enumerate(zip(feeds, names, strict=True)):
            if feed.n_past and name not in rows:
                handle = self._index.match(_ids(name))
                found = handle.slots(0, feed.n_past)
                handle.release()
                if len(found) < feed.n_past:
                    feed.n_past = len(found)
                    names[index] = name[: 4 * feed.n_past]
                out[index] = found
        return out

    def _keep(self, feeds: list[Feed], rows: KVRows) -> None:
        """Copy the new KV into slots, as far as there is room."""
        pool = self._pool
        if pool is None:
            return
        for row, feed in enumerate(feeds):
            n_tokens = min(feed.n_tokens, pool.capacity)
            if not n_tokens:
                return
            slots = pool.take(n_tokens)
            if slots is None:
                self._index.evict_span(pool.capacity - n_tokens)
                slots = pool.take(n_tokens)
                if slots is None:  # all that is left is in use
                    continue
            pool.write(slots, rows.added(row, rows.end, n_tokens))
            handle = self._index.start(_ids(feed.context))
            pool.give_back(handle.put_slots(feed.n_past, slots))
            handle.release()

    def _live(self) -> KVRows:
        if self._rows is None:
            from lmstash.caches.logprobs.kv_rows import KVRows

            assert self._model.form is not None
            self._rows = KVRows(self._model.form, self._batch_bytes)
        return self._rows

    def _count(self, feeds: list[Feed]) -> None:
        self.passes += 1
        self.fed_tokens += sum(feed.n_tokens for feed in feeds)


def _back(feeds: list[Feed], row_of: list[int]) -> Tensor:
    """Return where in the order of rows each read of `feeds` is."""
    starts = [0] * len(feeds)
    order = sorted(range(len(feeds)), key=row_of.__getitem__)
    at = 0
    for index in order:
        starts[index] = at
        at += len(feeds[index].reads)
    places = [starts[index] + number for index, feed in enumerate(feeds) for number in range(len(feed.reads))]
    return torch.tensor(places, dtype=torch.int64, device="cpu")


def _last(context: bytes) -> Feed:
    """Return the feed of a context's last token."""
    size = len(context) >> 2
    return Feed(context, size - 1, [size])


def _ids(context: bytes) -> array[int]:
    out: array[int] = array("I")
    out.frombytes(context)
    return out
