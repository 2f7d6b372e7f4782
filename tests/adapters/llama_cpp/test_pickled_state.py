"""Pickled `LlamaState`s are read without unpickling; what is not exactly one is refused and never run."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llama_cpp")

from llama_cpp.llama import LlamaState

from lmstash.adapters.llama_cpp.pickled_state import OldState, read_key, read_state
from lmstash.errors import CorruptEntryError

from .old_caches import N_VOCAB, small_blob, small_state

TOKENS = [1, 5, 49_151, 0, 2**31 - 1]


def read(data: bytes, **options: Any) -> OldState:
    return read_state(io.BytesIO(data), len(data), **options)


def as_numpy_1(data: bytes) -> bytes:
    """Return the pickle with the module names of numpy before 2.0 (tests/formats has what numpy 1.26 itself wrote)."""
    for module in (b"numeric", b"multiarray"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old).replace(b"c" + new, b"c" + old)
    if data[1] < 4:
        return data
    return data.replace(data[2:11], b"\x95" + (len(data) - 11).to_bytes(8, "little"), 1)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("change", [bytes, as_numpy_1])
def test_a_state_comes_out_as_it_was(protocol: int, change: Any):
    state = small_state(TOKENS)
    old = read(change(pickle.dumps(state, protocol=protocol)))
    assert old.input_ids.tolist() == TOKENS
    assert old.input_ids.dtype == np.int32
    assert (old.n_tokens, old.seed, old.llama_state) == (len(TOKENS), 0xFFFFFFFF, state.llama_state)


def test_states_with_large_contexts_and_scores_come_out_without_reading_the_scores():
    class Counting(io.BytesIO):
        n_read = 0

        def read(self, n_bytes: int | None = -1, /) -> bytes:
            data = super().read(n_bytes)
            self.n_read += len(data)
            return data

    state = small_state(TOKENS, n_ctx=100_000, scores=np.zeros((512, 40_000), dtype=np.single))
    data = pickle.dumps(state, protocol=5)
    assert len(data) > 80_000_000
    file = Counting(data)
    assert read_state(file, len(data)).llama_state == state.llama_state
    assert file.n_read < len(state.llama_state) + 1000


@pytest.mark.parametrize(
    "scores",
    [
        np.zeros((0, N_VOCAB), dtype=np.single),
        np.zeros((N_VOCAB, 3), dtype=np.single).T,
        np.zeros((4, 2 * N_VOCAB), dtype=np.single)[:, ::2],
        np.ones((3, N_VOCAB), dtype=np.single),
    ],
)
def test_scores_of_any_order_are_passed_over(scores: Any):
    assert read(pickle.dumps(small_state(TOKENS, scores=scores), protocol=5)).input_ids.tolist() == TOKENS


def test_a_state_without_a_seed_is_read():
    state = small_state(TOKENS)
    del state.seed
    assert read(pickle.dumps(state)).seed is None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"n_tokens": 0}, "claims 0 tokens"),
        ({"n_tokens": -1}, "claims -1 tokens"),
        ({"n_tokens": 257}, "claims 257 tokens"),
        ({"n_tokens": True}, "other types"),
        ({"n_tokens": 5.0}, "other types"),
        ({"n_tokens": np.int64(5)}, "which plain values do not need"),
        ({"n_tokens": None}, "other types"),
        ({"llama_state": "text", "llama_state_size": 4}, "other types"),
        ({"llama_state_size": 3}, "claims 3"),
        ({"seed": "seed"}, "seed"),
        ({"seed": True}, "seed"),
        ({"input_ids": [1, 2, 3, 4, 5]}, "not pickled as numpy does it"),
        ({"input_ids": np.zeros(5, dtype=np.int64)}, "little-endian i4"),
        ({"input_ids": np.zeros(5, dtype=">i4")}, "little-endian i4"),
        ({"input_ids": np.zeros((5, 1), dtype=np.intc)}, "not 1 dimension"),
        ({"input_ids": np.full(5, -1, dtype=np.intc)}, "not token ids"),
        ({"scores": np.zeros(5, dtype=np.single)}, "not 2 dimensions"),
        ({"scores": np.zeros((5, 5))}, "little-endian f4"),
        ({"scores": None}, "as numpy does"),
        ({"scores": b"bytes"}, "as numpy does"),
        ({"scores": np.array([[None]])}, "opcode|as numpy does"),
    ],
)
def test_states_that_contradict_themselves_or_the_layout_are_refused(changed: dict[str, Any], reason: str):
    with pytest.raises(CorruptEntryError, match=reason):
        read(pickle.dumps(small_state(TOKENS, **changed)))


def test_states_of_other_versions_are_refused():
    more, less, old = (small_state(TOKENS) for _ in range(3))
    more.something_new = 1
    del less.scores
    old.__dict__ = {"eval_tokens": deque([1]), "eval_logits": deque(), "llama_state": b"", "llama_state_size": 0}
    with pytest.raises(CorruptEntryError, match="other attributes"):
        read(pickle.dumps(more))
    with pytest.raises(CorruptEntryError, match="other attributes"):
        read(pickle.dumps(less))
    with pytest.raises(CorruptEntryError, match=r"collections\.deque"):
        read(pickle.dumps(old))


def test_a_state_larger_than_the_limit_is_refused():
    data = pickle.dumps(small_state(TOKENS))
    with pytest.raises(CorruptEntryError, match="more than the limit of 100"):
        read(data, max_state_bytes=100)


def test_other_protocols_are_refused():
    for protocol in (0, 1, 2):  # which spell bytes out as text
        with pytest.raises(CorruptEntryError):
            read(pickle.dumps(small_state(TOKENS), protocol=protocol))


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "place", ["whole", "input_ids", "scores", "n_tokens", "llama_state", "llama_state_size", "seed", "more"]
)
def test_planted_calls_are_refused_and_never_run(place: str, protocol: int, tmp_path: Path):
    marker = tmp_path / "was-run"
    for function, *arguments in (
        (os.system, f"touch {marker}"),
        (eval, f"open({str(marker)!r}, 'w')"),
        (exec, f"open({str(marker)!r}, 'w')"),
        (subprocess.Popen, ["touch", str(marker)]),
        (open, str(marker), "w"),
    ):
        evil = Evil(function, *arguments)
        planted = evil if place == "whole" else small_state(TOKENS)
        if place != "whole":
            setattr(planted, place, evil)
        with pytest.raises(CorruptEntryError):
            read(pickle.dumps(planted, protocol=protocol))
    assert not marker.exists()
    # The same without the readers: this is what unpickling does, so the marker would have been seen.
    loaded = pickle.loads(pickle.dumps(Evil(open, str(marker), "w"), protocol=protocol))  # noqa: S301
    loaded.close()
    assert marker.exists()


def test_reading_imports_nothing_that_is_named(monkeypatch: pytest.MonkeyPatch):
    """Also not what is expected: a planted `llama_cpp/llama.py` or `numpy` beside the program is not imported."""
    data = pickle.dumps(small_state(TOKENS))
    monkeypatch.delitem(sys.modules, "llama_cpp.llama")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert read(data).input_ids.tolist() == TOKENS


def test_object_graphs_and_cycles_are_refused():
    state = small_state(TOKENS)
    state.seed = state  # a cycle
    with pytest.raises(CorruptEntryError, match="seed"):
        read(pickle.dumps(state))
    for value in ({}, (), None, 5, (small_state(TOKENS),), LlamaState, copyreg, {"a": small_state(TOKENS)}):
        try:
            data = pickle.dumps(value)
        except TypeError:  # a module
            continue
        with pytest.raises(CorruptEntryError):
            read(data)


def test_memo_bombs_are_refused_at_once():
    """2**280 leaves in 1,400 bytes, wherever a reader might compare, print or count them."""
    bomb = b"Nq\x00" + b"h\x00\x86q\x00" * 280
    whole = b"\x80\x04" + bomb + b"."
    # In the place of the seed, which is the last thing in the pickle.
    data = pickle.dumps(small_state(TOKENS, seed=None), protocol=4)
    assert data.endswith(b"Nub.")
    # The bomb's own memo must not disturb the state's.
    inside = b"\x80\x04" + data[11:-4] + bomb.replace(b"q\x00", b"q\xff").replace(b"h\x00", b"h\xff") + b"ub."
    for bad in (whole, inside):
        with pytest.raises(CorruptEntryError):
            read(bad)
    with pytest.raises(CorruptEntryError, match="tuple of token ids"):
        read_key(whole)


def test_every_cut_is_refused():
    data = pickle.dumps(small_state(TOKENS, n_ctx=8, n_rows=1))
    for length in range(len(data)):
        with pytest.raises(CorruptEntryError):
            read(data[:length])
    with pytest.raises(CorruptEntryError, match="follow its end"):
        read(data + b"\0")


WHOLE = pickle.dumps(small_state(TOKENS, n_ctx=8, n_rows=1, llama_state=small_blob(2, n_layers=1)))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=3))
def test_flipped_bytes_raise_only_what_the_reader_says(flips: list[tuple[int, int]]):
    data = bytearray(WHOLE)
    for place, change in flips:
        data[place] ^= change
    try:
        old = read(bytes(data))
    except CorruptEntryError:
        return
    assert 0 < old.n_tokens <= 8
    assert len(old.input_ids) == old.n_tokens


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("key", [(1,), (1, 2), tuple(range(5)), (0, 255, 256, 65_535, 65_536, 2**31 - 1) * 300])
def test_keys_come_out_as_they_were(key: tuple[int, ...], protocol: int):
    assert read_key(pickle.dumps(key, protocol=protocol)) == key


@pytest.mark.parametrize(
    "key", [[1, 2], (1, "a"), (1, -1), (1, 2**31), (1, True), (1, None), ((1,),), 5, "text", None, {}, (1, b"x")]
)
def test_keys_that_are_no_token_ids_are_refused(key: Any):
    with pytest.raises(CorruptEntryError, match="its key is not a"):
        read_key(pickle.dumps(key))


def test_keys_that_would_run_something_are_refused(tmp_path: Path):
    with pytest.raises(CorruptEntryError, match=r"posix\.system"):
        read_key(pickle.dumps((1, Evil(os.system, f"touch {tmp_path}/was-run"))))
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=100))
def test_any_bytes_for_a_key_are_read_or_refused(data: bytes):
    try:
        assert isinstance(read_key(b"\x80\x05" + data), tuple)
    except CorruptEntryError:
        return
