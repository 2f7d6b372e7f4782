"""Computing what is not kept: batch by batch, each saved as it is done, with retries for remote extractors."""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from lmstash.caches.activations.batching import plan_batches
from lmstash.caches.activations.bundles import Kept
from lmstash.caches.activations.extractor import ExtractionError
from lmstash.caches.activations.pooling import Pool
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.publish import Publisher
from lmstash.caches.activations.source import Source, Values
from lmstash.caches.drawing import moved, torch_states
from lmstash.errors import LmstashError, MissingDependencyError
from lmstash.events import logger

_OutOfMemory: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
_MISTAKES = (TypeError, AttributeError, NameError, ArithmeticError, ImportError, NotImplementedError)
"""What code raises that is wrong: in a first batch, no other time makes it right."""
_LONGEST_WAIT_SECONDS = 60.0
_PROMPTS_NAMED = 10
_RAW_BATCH_BYTES = 512 * 2**20
"""Most that the raw values of one batch may take, in float32, when the user names no batch size."""


class Shelf(Protocol):
    """Where values of some prompts are kept (pooled or raw)."""

    def missing_of(self, prompts: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the positions of the layers that must be computed for each of some prompts."""
        ...

    def keep(self, members: Sequence[int], positions: Sequence[int], values: Sequence[Values], seconds: float) -> Kept:
        """Take what one batch computed."""
        ...


@dataclass(slots=True)
class _Running:
    """A batch that was started."""

    members: Sequence[int]
    positions: Sequence[int]
    started: float
    finish: Callable[[], Sequence[Values]]
    seconds: float | None = None
    """What it took, where that is known already."""
    drew: bool = False
    """Whether a model that runs here drew at random on the way."""


class Runner:
    """Computes the missing values of one call. Used by one thread."""

    def __init__(
        self,
        source: Source,
        shelf: Shelf,
        publisher: Publisher,
        prompts: Prompts,
        layers: Sequence[int],
        site: str,
        pool: Pool,
    ) -> None:
        """Bind what a batch needs."""
        self._source = source
        self._shelf = shelf
        self._publisher = publisher
        self._prompts = prompts
        self._layers = layers
        self._site = site
        self._pool = pool
        self._running: _Running | None = None
        """The batch that was started and is not kept yet."""
        self._has_computed = False
        """Whether a batch was."""
        self._finished = 0.0
        """When the one before it was done."""

    def run(
        self,
        absent: Sequence[int],
        places: Sequence[int],
        *,
        batch_size: int | None,
        progress: bool | None,
        max_retries: int | None,
    ) -> None:
        """Compute and save the prompts `absent`; what was done is saved whatever happens.

        Args:
            absent: Which prompts.
            places: For each prompt its index in the caller's list, for messages.
            batch_size: Prompts per batch.
            progress: Whether to show a bar; None decides by the terminal.
            max_retries: For batches of an extractor that fail.

        Raises:
            ExtractionError: Batches failed for good.
        """
        queue = deque(self._plan(absent, batch_size))
        failed: list[int] = []
        reason: Exception | None = None
        bar = _bar(progress, len(absent))
        try:
            while queue:
                members, positions = queue.popleft()
                # A block shared with an earlier batch may have been the last thing missing.
                todo = [member for member, lacks in zip(members, self._shelf.missing_of(members), strict=True) if lacks]
                try:
                    running = self._start(todo, positions, max_retries) if todo else None
                except _OutOfMemory:
                    if self._running is not None:  # its values lie on the device still
                        queue.appendleft((members, positions))
                        self._keep_running()
                        continue
                    if len(todo) < 2:
                        raise
                    half = len(todo) // 2
                    queue.extendleft([(todo[half:], positions), (todo[:half], positions)])
                    bar.update(len(members) - len(todo))
                    continue
                except _BatchFailed as error:
                    failed.extend(todo)
                    reason = error.__cause__ if isinstance(error.__cause__, Exception) else error
                    running = None
                # While a GPU computes this batch, the one before it is kept.
                self._keep_running()
                self._running = running
                if running is not None and running.seconds is not None:
                    self._keep_running()
                bar.update(len(members))
            self._keep_running()
        except BaseException:
            self._save_before_leaving()
            raise
        finally:
            bar.close()
        self._publisher.flush()
        if failed:
            named = sorted(places[index] for index in failed)
            more = f" and {len(named) - _PROMPTS_NAMED} more" if len(named) > _PROMPTS_NAMED else ""
            raise ExtractionError(
                f"{self._source.name}: {len(failed)} of {len(absent)} prompts could not be computed: prompts "
                f"{', '.join(map(str, named[:_PROMPTS_NAMED]))}{more} ({type(reason).__name__}: {reason}). The others "
                "are saved; call again to go on."
            ) from reason

    def _plan(self, absent: Sequence[int], batch_size: int | None) -> list[tuple[list[int], tuple[int, ...]]]:
        """Group by which layers are missing, so that none is computed that is kept, then by length."""
        groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, lacks in zip(absent, self._shelf.missing_of(absent), strict=True):
            groups[lacks].append(index)
        out: list[tuple[list[int], tuple[int, ...]]] = []
        padded_tokens = self._source.padded_tokens(self._site)
        if self._source.runs_alone(self._site):
            batch_size = 1
        for positions, members in groups.items():
            lengths = [self._prompts.lengths[member] for member in members]
            batches = plan_batches(lengths, batch_size, self._batch_tokens(len(positions)), padded_tokens)
            out.extend(([members[each] for each in batch], positions) for batch in batches)
        return out

    def _batch_tokens(self, n_layers: int) -> int:
        """Return the token budget of a batch; raw values of many layers bound it by what they take in memory."""
        if self._pool is not None:
            return self._source.batch_tokens
        token_bytes = 4 * (self._source.width(self._site) or 4096) * n_layers
        return min(self._source.batch_tokens, max(1, _RAW_BATCH_BYTES // token_bytes))

    def _start(self, members: Sequence[int], positions: Sequence[int], max_retries: int | None) -> _Running:
        """Compute a batch; where the source can, only start to."""
        batch = self._prompts.pick(members)
        layers = [self._layers[position] for position in positions]
        retries = self._source.max_retries if max_retries is None else max_retries
        for attempt in range(retries + 1):
            started = time.perf_counter()
            before = torch_states() if getattr(self._source, "draws_show", False) else {}
            try:
                launch = getattr(self._source, "launch", None)
                if launch is not None and getattr(self._source, "overlaps", False):
                    finish, seconds = launch(batch, layers, self._site, self._pool), None
                else:
                    values = self._source.compute(batch, layers, self._site, self._pool)
                    finish, seconds, self._has_computed = partial(_same, values), time.perf_counter() - started, True
                drew = bool(before and moved(before, torch_states()))
                return _Running(members, positions, started, finish, seconds, drew)
            except (LmstashError, _OutOfMemory):
                raise
            except Exception as error:
                if not self._source.remote or (isinstance(error, _MISTAKES) and not self._has_computed):
                    raise
                if attempt == retries:
                    raise _BatchFailed from error
                wait = min(self._source.retry_seconds * 2**attempt, _LONGEST_WAIT_SECONDS) * random.uniform(1.0, 1.25)
                logger.info("%s: a batch failed (%s); trying again in %.1f s", self._source.name, error, wait)
                time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _keep_running(self) -> None:
        """Wait for the batch that was started last, if any, and keep its values."""
        batch, self._running = self._running, None
        if batch is None:
            return
        values = batch.finish()
        now = time.perf_counter()
        seconds = now - max(batch.started, self._finished) if batch.seconds is None else batch.seconds
        self._finished = now
        fresh, again = self._shelf.keep(batch.members, batch.positions, values, seconds)
        if batch.drew:
            self._publisher.refuse_drawn([*fresh, *again], self._source.name)
        else:
            self._publisher.offer(fresh, again)

    def _save_before_leaving(self) -> None:
        """Save what is held while another error is on its way, which must not be hidden."""
        for save in (self._keep_running, self._publisher.flush):
            try:
                save()
            except Exception as error:
                logger.warning("lmstash: what was computed before the error could not be saved: %s", error)


def _same(values: Sequence[Values]) -> Sequence[Values]:
    return values


class _BatchFailed(Exception):
    pass


class _NoBar:
    def update(self, n: int) -> None:
        pass

    def close(self) -> None:
        pass


def _bar(progress: bool | None, total: int) -> Any:
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
        needed = False
    else:
        needed = progress
    if not progress:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if needed:
            raise MissingDependencyError("tqdm", "torch") from None
        return _NoBar()
    return tqdm(total=total, unit="prompt", desc="activations")
