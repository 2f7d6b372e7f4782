"""One `generate` call: what is restored for it, and what is kept of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from lmstash.caches.drawing import NOT_KEPT
from lmstash.caches.kv.calls import Call, read_call
from lmstash.caches.kv.clock import PrefillClock
from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.guard import Guard, UnverifiedError
from lmstash.caches.kv.keeping import PATIENCE, Filled
from lmstash.caches.kv.naming import Names
from lmstash.caches.kv.parts import Parts, restorable
from lmstash.caches.kv.passes import DrawsInPasses
from lmstash.caches.kv.recurrent import find_state, load, snapshot, stops
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.models.sighting import Sighting

_DOUBTED = "what was kept proved damaged, or the model changed"


@dataclass(slots=True)
class Turn:
    """One call of `generate` that is kept, and may be served."""

    call: Call
    names: Names
    matches: Sequence[Match]
    sight: Sighting
    width: int
    """Slots that are restored in `cache`."""
    guard: Guard
    """Of what was restored, and of who computes: an edit undone before the values are written must not pass."""
    cache: Any
    finding_seconds: float
    stops: Sequence[int] = ()
    """Slots after which the state of recurrent layers is to be kept."""
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """By slots."""

    def passed(self) -> bool:
        """Wait until model and what was restored have been checked; return whether it may be used, and kept."""
        return self.guard.passed()


class Generating:
    """Runs `generate` calls. Threads may share it as far as they may share the model."""

    def __init__(self, parts: Parts) -> None:
        """Take model and store."""
        self._parts = parts
        # An exception through accelerate's hooks would leave offloaded weights where they are.
        self._has_hooks = any(hasattr(module, "_hf_hook") for module in parts.model.modules())

    def generate(self, inputs: Any, arguments: Mapping[str, Any]) -> Any:
        """See `KV.generate`."""
        parts = self._parts
        turn = self._prepare(inputs, arguments)
        if not isinstance(turn, str) and turn.width:
            try:
                early = turn.call.streams or self._has_hooks or parts.family.linear or parts.watch.is_compiled()
                if early and not turn.passed():
                    raise UnverifiedError
                out = self._run(turn, inputs, arguments)
                if turn.passed():
                    return out
            except UnverifiedError:
                pass
            parts.pass_on(_DOUBTED)
            turn = self._prepare(inputs, arguments, afresh=True)
        if isinstance(turn, str):
            parts.pass_on(turn)
            return parts.model.generate(inputs, **arguments)
        return self._run(turn, inputs, arguments)

    def _prepare(self, inputs: Any, arguments: Mapping[str, Any], *, afresh: bool = False) -> Turn | str:
        """Look for what is kept of a prompt and begin to check it; return why, if the call is the model's alone.

        `afresh` looks for nothing: everything will be computed by the model as it is now.
        """
        parts = self._parts
        try:
            if reason := parts.idle():
                return reason
            call = read_call(parts.model, parts.family, inputs, arguments)
            if isinstance(call, str):
                return call
            sight = parts.watch.look()
            if reason := parts.unserved(sight.fingerprint):
                return reason
            names = parts.names(sight.fingerprint)
            finder = Finder(parts.store, parts.queue, names.namespace, lent=True, worth=parts.gate.worth)
            matches = [] if afresh else parts.find(finder, names, call.prompts.rows)
            matches = matches or [Match(names.path(row)) for row in call.prompts.rows]
            if parts.family.linear:
                return self._prepare_states(call, names, matches, sight, finder)
            width = restorable(call.prompts, matches)
            guard = Guard([*finder.checks, sight.holds], len(parts.family.kept))
            cache = parts.restored(call.prompts, matches, width, repeats=call.repeats, guard=guard)
            if finder.declined:
                parts.stats.decline(finder.declined)
            return Turn(call, names, matches, sight, width, guard, cache, finder.seconds)
        except Exception as error:  # a program that runs without the cache runs with it
            if parts.store.strict:
                raise
            return f"{type(error).__name__}: {error}"

    def _prepare_states(
        self, call: Call, names: Names, matches: Sequence[Match], sight: Sighting, finder: Finder
    ) -> Turn | str:
        """As `_prepare`, for a model with recurrent layers."""
        parts = self._parts
        if len(call.prompts.rows) * call.repeats > 1 or any(call.prompts.pads):
            return "several rows, or padding, of a model with recurrent layers"
        n_tokens = call.prompts.width
        n_blocks, state = find_state(finder, matches[0], (n_tokens - 1) // BLOCK_TOKENS)
        width = n_blocks * BLOCK_TOKENS
        guard = Guard([*finder.checks, sight.holds], 0)
        cache = parts.restored(call.prompts, matches, width)
        load(cache, state, parts.model.device)
        return Turn(
            call, names, matches, sight, width, guard, cache, finder.seconds, stops(n_tokens, matches[0], width)
        )

    def _run(self, turn: Turn, inputs: Any, arguments: Mapping[str, Any]) -> Any:
        """Generate, and keep what the cache holds then."""
        parts, cache = self._parts, turn.cache
        clock, draws = PrefillClock(), DrawsInPasses(parts.model)
        try:
            draws.begin()
            fed = turn.width
            for stop in turn.stops:
                parts.forward(turn.call.prompts.first(stop), cache, fed)
                turn.states[stop] = snapshot(cache, parts.family.linear)
                fed = stop
            processors = clock.listed([*(arguments.get("logits_processor") or ()), clock])
            given = {**arguments, "logits_processor": processors, parts.family.argument: cache}
            out = parts.model.generate(inputs, **given)
        except UnverifiedError:
            raise
        except Exception as error:
            if clock.seconds or turn.call.streams or _is_callers(error, parts.model):
                raise
            parts.pass_on(f"{type(error).__name__}: {error}")
            draws.hooks.live = False
            draws.hooks.remove()  # they may be what fails
            return parts.model.generate(inputs, **arguments)
        finally:
            draws.hooks.live = False
            draws.hooks.remove()
        try:
            if turn.passed():
                parts.count(turn.call.prompts, turn.matches, turn.width)
                if draws.seen():
                    parts.keeper.refuse(NOT_KEPT)
                else:
                    self._keep(turn, out, clock)
            else:
                parts.keeper.refuse("the model changed before or while it computed")
            parts.family.forget(cache)
        except Exception as error:  # what was generated is right; that it cannot be kept must not lose it
            if parts.store.strict:
                raise
            parts.keeper.refuse(f"{type(error).__name__}: {error}")
        return out

    def _keep(self, turn: Turn, out: Any, clock: PrefillClock) -> None:
        rows = _filled(turn, out)
        if isinstance(rows, str):
            self._parts.keeper.refuse(rows)
            return
        prompts, gate = turn.call.prompts, self._parts.gate
        n_fed = len(prompts.rows) * (prompts.width - turn.width)
        if turn.width:
            found = {id(match): match for match in turn.matches}.values()
            n_tokens, n_bytes = sum(match.n_tokens for match in found), sum(match.n_bytes for match in found)
            gate.restored(n_tokens, n_bytes, turn.finding_seconds + turn.guard.seconds)
        else:
            gate.computed(n_fed, clock.seconds)
        rate = gate.seconds_per_token
        self._parts.keeper.keep(
            rows,
            turn.cache,
            turn.names,
            turn.sight,
            states=turn.states,
            seconds_per_token=clock.seconds / n_fed if rate is None else rate,
            patience_seconds=PATIENCE * (time.perf_counter() - clock.started),
        )


def _is_callers(error: Exception, model: Any) -> bool:
    """Return whether an error came through code that is neither ours nor a library's: the caller's own callbacks."""
    known = {"lmstash", "transformers", "torch", "accelerate", "peft", type(model).__module__.partition(".")[0]}
    known |= sys.stdlib_module_names
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] not in known:
            return True
        trace = trace.tb_next
    return False


def _as_asked(call: Call, sequences: Tensor) -> bool:
    """Return whether what was generated still begins with the prompts: criteria may write into what they are shown."""
    for number, (ids, pads) in enumerate(zip(call.prompts.rows, call.prompts.pads, strict=True)):
        begun = sequences[number * call.repeats : (number + 1) * call.repeats, pads : pads + len(ids)]
        if any(not np.array_equal(row, ids) for row in begun.cpu().numpy()):
            return False
    return True


def _filled(turn: Turn, out: Any) -> list[Filled] | str:
    """Return which rows of the cache hold what after `generate`, or why that cannot be told."""
    call = turn.call
    sequences = out if isinstance(out, Tensor) else out.sequences
    length = turn.cache.get_seq_length()
    if not call.beams and not _as_asked(call, sequences):
        return "the prompt was changed while its answer was generated"
    if length < call.prompts.width or (not call.beams and length != sequences.shape[1] - 1):
        return "the cache does not hold what was generated"
    rows: list[Filled] = []
    for number, (ids, pads, match) in enumerate(zip(call.prompts.rows, call.prompts.pads, turn.matches, strict=True)):
        first = number * call.repeats
        if call.beams:  # beams took turns in these rows: they share the prompt only
            rows.append(Filled(ids, first, pads, match))
            continue
        if turn.stops:  # without a state there, what lies behind is of no use
            rows.append(Filled(ids[: turn.stops[-1]], first, pads, match))
            continue
        for row in range(first, first + call.repeats):
            tokens = sequences[row, pads:length].cpu().numpy()
            if len(sequences) > 1 and call.pad is not None:  # a row that was done before others
                stop = len(tokens)
                while stop > len(ids) and tokens[stop - 1] == call.pad:
                    stop -= 1
                tokens = tokens[:stop]
            rows.append(Filled(tokens.astype(np.uint32), row, pads, match))
    return rows
