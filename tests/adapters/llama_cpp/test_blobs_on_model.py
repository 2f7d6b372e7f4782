"""What is built of pieces is byte for byte what llama.cpp writes after evaluating these tokens itself."""

import ctypes

import numpy as np
import pytest
from llama_cpp import llama_cpp as c

from lmstash.caches.states.blob import Span, build, cut, parse

pytestmark = pytest.mark.model

FORMS = {
    "flash attention off": {},
    "flash attention on": {"flash_attn": True},
    "q8_0": {"flash_attn": True, "type_k": 8, "type_v": 8},
    "q4_0 K only": {"type_k": 2},
    "f32": {"type_k": 0, "type_v": 0},
}
RARE = ("q4_0 K only", "f32")
forms = pytest.mark.parametrize(
    "options",
    [pytest.param(FORMS[each], marks=pytest.mark.campaign if each in RARE else (), id=each) for each in FORMS],
)


def ids_of(n_tokens, seed=0):
    return np.random.default_rng(seed).integers(10, 40_000, 400)[:n_tokens].tolist()


def state_of(llm, *, sequence=False):
    size = c.llama_state_seq_get_size(llm.ctx, 0) if sequence else c.llama_state_get_size(llm.ctx)
    blob = np.empty(size, np.uint8)
    at = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    if sequence:
        assert c.llama_state_seq_get_data(llm.ctx, at, size, 0) == size
    else:
        assert c.llama_state_get_data(llm.ctx, at, size) == size
    return blob


def put_state(llm, blob):
    at = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    assert c.llama_state_set_data(llm.ctx, at, blob.nbytes) == blob.nbytes


def logits_after(llm, tokens):
    llm.eval(tokens)
    return np.ctypeslib.as_array(c.llama_get_logits(llm.ctx), (llm.n_vocab(),)).copy()


def evaluated(llm, ids, *, step=64):
    llm.reset()
    for start in range(0, len(ids), step):
        llm.eval(ids[start : start + step])


@forms
def test_a_prefix_is_byte_equal_to_a_fresh_run_of_its_length(load, options):
    llm = load(**options)
    evaluated(llm, ids_of(300))
    whole, sequence = state_of(llm), state_of(llm, sequence=True)
    state = parse(whole)
    pieces = [Span(cut(state, at, at + 64), 64, 0, 64) for at in range(0, 256, 64)]
    last = Span(cut(state, 256, 300), 44, 0, 44)
    assert np.array_equal(build(state.layout, [*pieces, last]), whole)
    assert np.array_equal(build(state.layout, [*pieces, last], sequence=True), sequence)
    evaluated(llm, ids_of(192))
    assert np.array_equal(build(state.layout, pieces[:3]), state_of(llm))


@forms
def test_a_restored_prefix_goes_on_bit_for_bit(load, options):
    llm = load(**options)
    evaluated(llm, ids_of(300))
    state = parse(state_of(llm))
    kept = build(state.layout, [Span(cut(state, 0, 128), 128, 0, 128), Span(cut(state, 128, 192), 64, 0, 64)])
    suffix = ids_of(100, seed=1)
    evaluated(llm, ids_of(192))
    expected = logits_after(llm, suffix)
    llm.reset()
    put_state(llm, kept)
    llm.input_ids[:192] = ids_of(192)
    llm.n_tokens = 192
    assert np.array_equal(logits_after(llm, suffix), expected)


def test_cells_stay_in_order_after_trimming(load):
    """What llama-cpp-python does between completions leaves a state that can be cut."""
    llm = load()
    for n_tokens, keep in ((200, 100), (150, 149), (300, 1), (80, 40)):
        evaluated(llm, ids_of(n_tokens))
        llm._ctx.kv_cache_seq_rm(-1, keep, -1)
        llm.n_tokens = keep
        llm.eval(ids_of(60, seed=2))
        assert parse(state_of(llm)).n_tokens == keep + 60
