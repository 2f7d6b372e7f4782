"""Reads what llama-cpp-python's `LlamaDiskCache` pickled, without unpickling it.

A key is a tuple of token ids. A value is a `llama_cpp.llama.LlamaState`: a plain object whose attributes are numbers,
bytes and two numpy arrays (`input_ids`, int32 `[n_ctx]`, of which only the first `n_tokens` mean something, and
`scores`, float32 `[n_rows, n_vocab]`, all zeros unless `logits_all` was set). `foreign_pickle` follows the opcodes;
what it describes is compared here with that one layout, as Python 3.8 and later and numpy 1 and 2 write it, and
everything else is refused. `scores` are passed over on disk: their bytes are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from lmstash.codecs.foreign_pickle import Made, Name, Seekable, Span, follow
from lmstash.errors import CorruptEntryError

if TYPE_CHECKING:
    from numpy import int32
    from numpy.typing import NDArray

MAX_TOKENS: Final = 2**24
"""Of a key and of `input_ids`; the longest contexts of today have 10 million."""
MAX_STATE_BYTES: Final = 2**34
"""Of one state, which is read into memory whole."""

_STATE = Name("llama_cpp.llama", "LlamaState")
_DTYPE = Name("numpy", "dtype")
_NDARRAY = Name("numpy", "ndarray")
_FROM_BUFFER = {Name(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
"""Protocol 5: (bytes, dtype, shape, order)."""
_RECONSTRUCT = {Name(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
"""Before protocol 5, and for arrays that are not contiguous: state is (1, shape, dtype, is_fortran, bytes)."""
_NAMES = frozenset({_STATE, _DTYPE, _NDARRAY, *_FROM_BUFFER, *_RECONSTRUCT})
_REQUIRED = {"input_ids", "scores", "n_tokens", "llama_state", "llama_state_size"}
_OPTIONAL = {"seed"}
"""Since llama-cpp-python 0.3.9 or so."""


@dataclass(frozen=True)
class OldState:
    """What a `LlamaState` held, but for its scores."""

    input_ids: NDArray[int32]
    """[n_tokens]: the evaluated tokens; stale ones after them are left out."""
    n_tokens: int
    llama_state: bytes
    """What `llama_state_get_data` of llama.cpp wrote."""
    seed: int | None
    """None where an older llama-cpp-python did not keep it."""


def read_key(data: bytes) -> tuple[int, ...]:
    """Return the token ids of a pickled key. Costs about 1 us a token.

    Raises:
        CorruptEntryError: It is no tuple of token ids.
    """
    if len(data) > 5 * MAX_TOKENS:
        raise CorruptEntryError(f"its key has {len(data):,} bytes")
    try:
        key = follow(BytesIO(data), len(data), names=(), max_opcodes=MAX_TOKENS)
    except CorruptEntryError as error:
        raise CorruptEntryError(f"its key is not a pickled tuple of token ids: {error}") from error
    if type(key) is not tuple or not all(type(token) is int and 0 <= token < 2**31 for token in key):
        raise CorruptEntryError("its key is not a tuple of token ids")
    return key


def read_state(file: Seekable, n_bytes: int, *, max_state_bytes: int = MAX_STATE_BYTES) -> OldState:
    """Return the state in the first `n_bytes` of `file`.

    Cost: reads the state itself, the tokens, and a few hundred bytes around them, whatever the size of the scores.

    Raises:
        CorruptEntryError: It is damaged, not a pickled `LlamaState`, one of a version that is not known here, one that
            contradicts itself, or one whose state is larger than `max_state_bytes`.
        OSError: From `file`.
    """
    described = follow(file, n_bytes, names=_NAMES)
    match described:
        case Made(function, (), dict() as held) if function == _STATE:
            pass
        case _:
            raise CorruptEntryError("it is not a pickled LlamaState")
    if "eval_tokens" in held:
        raise CorruptEntryError("it is of llama-cpp-python before 0.1.66, whose states are not known here")
    if not held.keys() >= _REQUIRED or not held.keys() <= _REQUIRED | _OPTIONAL:
        raise CorruptEntryError("its LlamaState has other attributes than those known here")
    match held:
        case {"n_tokens": int(n_tokens), "llama_state": Span() as blob, "llama_state_size": int(n_blob_bytes)} if (
            type(n_tokens) is type(n_blob_bytes) is int  # and not bool
        ):
            pass
        case _:
            raise CorruptEntryError("its LlamaState has attributes of other types than those known here")
    seed = held.get("seed")
    if seed is not None and type(seed) is not int:
        raise CorruptEntryError("its seed is not a number")
    shape, tokens = _array(held["input_ids"], "i4", n_dims=1)
    _array(held["scores"], "f4", n_dims=2)
    if not 0 < n_tokens <= min(shape[0], MAX_TOKENS):
        raise CorruptEntryError(f"it claims {n_tokens:,} tokens where there is room for {shape[0]:,}")
    if blob.n_bytes != n_blob_bytes:
        raise CorruptEntryError(f"its state has {blob.n_bytes:,} bytes, and claims {n_blob_bytes:,}")
    if blob.n_bytes > max_state_bytes:
        raise CorruptEntryError(f"its state has {blob.n_bytes:,} bytes, more than the limit of {max_state_bytes:,}")
    import numpy as np

    input_ids = np.frombuffer(_read(file, Span(tokens.start, 4 * n_tokens)), dtype="<i4").astype(np.int32)
    if int(input_ids.min()) < 0:
        raise CorruptEntryError("its tokens are not token ids")
    return OldState(input_ids, n_tokens, _read(file, blob), seed)


def _array(described: Any, dtype: str, *, n_dims: int) -> tuple[tuple[int, ...], Span]:
    """Return the shape of an array of `dtype`, and where its values lie."""
    match described:
        case Made(function, (Span() as span, Made() as kind, tuple() as shape, str()), None) if (
            function in _FROM_BUFFER
        ):
            pass
        case Made(function, (base, (0,), Span()), (1, tuple() as shape, Made() as kind, bool(), Span() as span)) if (
            function in _RECONSTRUCT and base == _NDARRAY
        ):
            pass
        case _:
            raise CorruptEntryError("one of its arrays is not pickled as numpy does it")
    match kind:
        case Made(function, (code, False, True), (3, "<", None, None, None, -1, -1, 0)) if (
            function == _DTYPE and type(code) is str and code == dtype
        ):
            pass
        case _:
            raise CorruptEntryError(f"one of its arrays is not of little-endian {dtype}")
    if len(shape) != n_dims or not all(type(size) is int and 0 <= size < 2**32 for size in shape):
        raise CorruptEntryError(f"one of its arrays has not {n_dims} dimensions")
    n_items = 1
    for size in shape:
        n_items *= size
    if span.n_bytes != 4 * n_items:
        raise CorruptEntryError(f"one of its arrays has {span.n_bytes:,} bytes for {n_items:,} values of 4")
    return shape, span


def _read(file: Seekable, span: Span) -> bytes:
    file.seek(span.start)
    data = file.read(span.n_bytes)
    if len(data) != span.n_bytes:
        raise CorruptEntryError("it ends early")
    return data
