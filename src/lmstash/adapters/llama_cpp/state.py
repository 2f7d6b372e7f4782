"""`LlamaState` as llama-cpp-python knows it, without the copies and without 100 MB of zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llama_cpp.llama import LlamaState as _LlamaState

from lmstash.adapters.llama_cpp.rows import taking
from lmstash.caches.states.cache import Loaded
from lmstash.caches.states.scores import Take


class LlamaState(_LlamaState):
    """A state that was saved by our `Llama`, or is kept in a cache and read when it is needed.

    Attributes are those of llama-cpp-python's class. `llama_state` copies the bytes at each call.
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        scores: np.ndarray | None,
        n_tokens: int,
        llama_state: Any,
        llama_state_size: int,
        seed: int,
        *,
        origin: bytes | None = None,
        shape: tuple[int, int] = (0, 0),
        read: Callable[[bool], Loaded] | None = None,
        seconds_per_token: float = 0.0,
        sums: Sequence[int | None] = (),
    ) -> None:
        """Take what llama-cpp-python's class takes, and more.

        Args:
            input_ids: `[n_ctx]` int32; the first `n_tokens` count.
            scores: `[n, n_vocab]` float32; None when they were never computed (`logits_all=False`).
            n_tokens: Tokens in the state.
            llama_state: Its bytes, as any buffer; None when `read` gives them.
            llama_state_size: How many they are.
            seed: Of the sampler.
            origin: Digest of who computed all of it; None when that is not known.
            shape: Of the zeros that stand for scores: rows, n_vocab.
            read: Gives the state, in the sequence form when given True; raises KeyError when it is gone.
            seconds_per_token: What a token took to compute.
            sums: Of the rows of `scores`, as llama.cpp gave them: see `rows`.
        """
        self.input_ids = input_ids
        self.n_tokens = n_tokens
        self.seed = seed
        self.origin = origin
        self.seconds_per_token = seconds_per_token
        self.sums = tuple(sums)
        self._scores = scores
        self._shape = shape
        self._blob = None if llama_state is None else np.frombuffer(llama_state, np.uint8)
        self._size = llama_state_size
        self._read = read

    @property
    def blob(self) -> np.ndarray:
        """The state, `[n_bytes]` uint8; not to be written to.

        Raises:
            KeyError: It was kept in a cache, and is gone or damaged.
        """
        if self._blob is None:
            loaded = self.read(False)
            self._blob, self._scores = loaded.blob, loaded.scores
            self._size = self._blob.nbytes
        return self._blob

    def read(self, sequence: bool) -> Loaded:
        """Read the state from the cache, in the form of `llama_state_seq_set_data` if `sequence`.

        Raises:
            KeyError: It is gone or damaged.
        """
        assert self._read is not None
        return self._read(sequence)

    # llama-cpp-python's load_state asks for the scores before it changes anything: a state that is gone is a KeyError
    # there, which it takes as a miss.
    @property
    def scores(self) -> np.ndarray:
        """The logits of each token, where they were asked for; else zeros."""
        _ = self.blob
        return np.broadcast_to(np.float32(0), self._shape) if self._scores is None else self._scores

    @property
    def has_scores(self) -> bool:
        """Whether `scores` are logits, not zeros that stand for them."""
        _ = self.blob
        return self._scores is not None

    def take_scores(self) -> Take | None:
        """Return what gives the rows of `scores` that are as llama.cpp gave them; None where there are none."""
        return None if self._scores is None else taking(self._scores, self.sums)

    @property
    def llama_state(self) -> bytes:
        """The state's bytes."""
        return self.blob.tobytes()

    @property
    def llama_state_size(self) -> int:
        """How many bytes it has."""
        return self.blob.nbytes

    @property
    def is_kept(self) -> bool:
        """Whether it comes from a cache, which has checked it."""
        return self._read is not None
