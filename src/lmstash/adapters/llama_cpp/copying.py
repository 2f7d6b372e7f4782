"""The state of a context: read out of it, and put into it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as _c

from lmstash.adapters.llama_cpp import watching


def read_out(context: Any, room: Callable[[int], np.ndarray]) -> np.ndarray | None:
    """Return the state in the whole form, `[n_bytes]` uint8; None when llama.cpp does not say it. Costs one copy.

    Args:
        context: Of llama.cpp.
        room: Gives so many bytes of memory.
    """
    size = _c.llama_state_get_size(context)
    blob = room(size)
    written = _c.llama_state_get_data(context, _pointer(blob), size)
    return blob[:written] if 0 < written <= size else None


def put_in(context: Any, blob: np.ndarray, n_tokens: int, *, sequence: bool) -> bool:
    """Put a state of `n_tokens` into a context; returns whether llama.cpp took it. Costs one copy.

    A whole state costs filling all memory of the context with zeros before; and llama.cpp, where it goes on from one,
    writes over tokens that have left a sliding window, so that it can be trimmed no more. A sequence has neither fault.

    Args:
        context: Of llama.cpp; what it held is gone.
        blob: `[n_bytes]` uint8, may be read-only.
        n_tokens: That it holds.
        sequence: It is of the sequence form (not for recurrent states and small windows).
    """
    memory: Any = _c.llama_get_memory(context)
    if sequence:
        _c.llama_memory_clear(memory, False)  # so that it comes to lie where a fresh run puts it
        done = watching.originals["llama_state_seq_set_data"](context, _pointer(blob), blob.nbytes, 0)
    else:
        done = watching.originals["llama_state_set_data"](context, _pointer(blob), blob.nbytes)
    return done == blob.nbytes and (not n_tokens or _c.llama_memory_seq_pos_max(memory, 0) == n_tokens - 1)


def holds_start(context: Any) -> bool:
    """Whether a context holds the first token in every layer, or nothing."""
    memory: Any = _c.llama_get_memory(context)
    return _c.llama_memory_seq_pos_min(memory, 0) <= 0


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
