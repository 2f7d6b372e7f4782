"""Whether a state that says nothing of its model was computed by this one: some of it is computed again and compared.

Only equal bits count. A tolerance would have to let pass what batches of other sizes change (up to 13 % in the last
layers of SmolLM2 Q4_1, measured), and a RoPE base that differs by a thousandth changes less. Two things are compared:

- K and V of all layers for the first tokens: they depend on nearly all weights, on RoPE, adapters and the code.
- V of the first layer for every eighth token of the whole state: it depends on the token alone, so it says whether the
  state is of the tokens that it claims. llama-cpp-python writes no token ids where an image was evaluated; whatever was
  there before then stands for it.

Not seen: bits that flipped on the disk elsewhere, and adapters that were changed in the middle of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from lmstash.caches.states.blob import State, cut, parse
from lmstash.caches.states.cache import Memory
from lmstash.caches.states.layout import Layout
from lmstash.errors import CorruptEntryError

FIRST_TOKENS: Final = 16
"""Compared in all layers."""
STRIDE: Final = 8
_BATCHES: Final = (64, FIRST_TOKENS)
"""Tokens evaluated at once. llama.cpp's flash attention has another kernel below 64, so either may be the one."""


class Checker:
    """Compares states with what one model computes. Evaluates tokens; for the thread that uses the model."""

    def __init__(self, llm: Any, memory: Memory) -> None:
        """Take the model (a `Llama` of lmstash) and what its states are made of."""
        self.seconds_per_token = 0.0
        """What evaluating took, as far as it is known."""
        self._llm = llm
        self._memory = memory
        self._layout: Layout | None = None
        self._beginnings: dict[tuple[bytes, int], bytes] = {}
        self._values: dict[int, set[bytes]] = {}
        """V of the first layer by token, as computed among others and, if that was asked for, alone."""

    def refusal(self, ids: np.ndarray, blob: bytes, *, compute: bool) -> str | None:
        """Return why a state is not taken, or None.

        Costs, with `compute`, evaluating up to 80 tokens for each new beginning, and each new token among every eighth.

        Args:
            ids: `[n_tokens]` int32.
            blob: The whole form of the state of these tokens.
            compute: Compare values; otherwise only the layout.

        Raises:
            RuntimeError: llama.cpp cannot evaluate.
        """
        if int(ids.max()) >= self._llm.n_vocab():
            return "it has tokens that the model does not know"
        try:
            state = parse(blob, n_parts=self._memory.n_parts, has_rest=self._memory.has_rest)
        except CorruptEntryError as error:
            return str(error)
        if state.n_tokens != len(ids):
            return f"its state is of {state.n_tokens:,} tokens, and {len(ids):,} are named"
        if self._layout is None:
            self._layout = self._evaluate(ids[:1].tolist()).layout
        if state.layout != self._layout:
            return "its layout is of another model, KV type or setting of flash attention"
        if not compute:
            return None
        return self._beginning(ids, state) or self._tokens(ids, state)

    def _beginning(self, ids: np.ndarray, state: State) -> str | None:
        n_tokens = min(len(ids), FIRST_TOKENS)
        kept = cut(state, 0, n_tokens).tobytes()
        for batch in _BATCHES:
            evaluated = ids[: min(batch, self._llm.n_ctx())]
            name = (evaluated.tobytes(), n_tokens)
            if name not in self._beginnings:
                self._beginnings[name] = cut(self._evaluate(evaluated.tolist()), 0, n_tokens).tobytes()
            if self._beginnings[name] == kept:
                return None
        return "the model computes other values for its first tokens"

    def _tokens(self, ids: np.ndarray, state: State) -> str | None:
        where = _first_values(state.layout)
        if where is None:
            return "its layers have no V, by which its tokens could be checked"
        places = range(0, len(ids), STRIDE)
        missing = sorted({int(ids[place]) for place in places} - self._values.keys())
        step = min(int(self._llm.n_batch), int(self._llm.n_ctx()))
        for start in range(0, len(missing), step):
            self._compute(missing[start : start + step], where)
        for place in places:
            token, kept = int(ids[place]), cut(state, place, place + 1)[where].tobytes()
            if kept not in self._values[token]:
                self._compute([token], where)  # as generated ones are: other kernels, on some machines
                if kept not in self._values[token]:
                    return f"its values at place {place:,} are not of the token that it names there"
        return None

    def _compute(self, tokens: list[int], where: slice) -> None:
        computed = self._evaluate(tokens)
        for n, token in enumerate(tokens):
            self._values.setdefault(token, set()).add(cut(computed, n, n + 1)[where].tobytes())

    def _evaluate(self, tokens: Sequence[int]) -> State:
        llm = self._llm
        llm.reset()
        llm.eval(tokens)
        state = llm.save_state()
        self.seconds_per_token = state.seconds_per_token
        return parse(state.blob, n_parts=self._memory.n_parts, has_rest=self._memory.has_rest)


def _first_values(layout: Layout) -> slice | None:
    """Return where V of the first layer lies in the payload of one token."""
    part = layout.parts[0]
    at, n_sides = layout.ext_bytes, 0
    for sides in part.sides:
        keys = min(sides.count, part.n_layers - n_sides)
        if keys < sides.count:
            at += keys * sides.row_bytes
            return slice(at, at + sides.row_bytes)
        at += sides.count * sides.row_bytes
        n_sides += sides.count
    return None
