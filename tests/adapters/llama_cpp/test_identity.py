"""Who computed it: whatever may change a token's K/V is another identity, and a miss; what is harmless is not."""

import ctypes
import os
import shutil
import subprocess
import sys

import llama_cpp
import numpy as np
import pytest
from llama_cpp import llama_cpp as c

from lmstash.adapters.llama_cpp import LlamaRAMCache, bind
from lmstash.errors import UnsupportedModelError

from .conftest import STORY, say
from .lora import write_lora

pytestmark = pytest.mark.model

SHORT = STORY[:100]


def ids_of(llm):
    return llm.tokenize(SHORT.encode())


def kept(load, cache, **options):
    """Load the model in another way; return it, and whether what is in the cache is served to it."""
    llm = load(cache, **options)
    return llm, ids_of(llm) in llm.cache


@pytest.fixture
def cache(load):
    """What a completion by the model as it is leaves."""
    made = LlamaRAMCache()
    say(load(made), SHORT, 2)
    return made


HARMLESS = [
    {"n_ctx": 1024},
    {"n_ctx": 256},
    {"n_batch": 32},
    {"n_ubatch": 64},
    {"n_threads": 2},
    {"seed": 5},
    {"use_mmap": False},
    {"last_n_tokens_size": 8},
    {"no_perf": True},
    {"n_gpu_layers": 3},
    {"offload_kqv": False},
    {"op_offload": False},
    {"chat_format": "llama-2"},
]
OTHERS = [
    {"rope_freq_base": 20_000.0},
    {"rope_freq_scale": 0.5},
    {"rope_scaling_type": 2},
    {"yarn_ext_factor": 1.0},
    {"yarn_attn_factor": 1.5},
    {"yarn_beta_fast": 16.0},
    {"yarn_beta_slow": 2.0},
    {"yarn_orig_ctx": 1024},
    {"flash_attn": True},
    {"type_k": 8},
    {"type_k": 0},
    {"type_v": 0},
    {"type_k": 8, "type_v": 8, "flash_attn": True},
    {"swa_full": False},
    {"kv_overrides": {"llama.rope.freq_base": 5000.0}},
    {"kv_overrides": {"llama.attention.layer_norm_rms_epsilon": 1e-3}},
    {"variant": "mine"},
    {"strict_numerics": True},
]


@pytest.mark.parametrize("options", HARMLESS, ids=str)
def test_what_is_harmless_is_the_same_identity(load, cache, options):
    assert kept(load, cache, **options)[1]


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_what_may_change_a_value_is_another_identity(load, cache, options):
    llm, is_kept = kept(load, cache, **options)
    assert not is_kept
    say(llm, SHORT, 1)
    assert ids_of(llm) in llm.cache  # and has its own


def test_other_settings_answer_as_without_a_cache(load, plain):
    cache = LlamaRAMCache()
    for options in ({}, {"rope_freq_scale": 0.25}, {"type_k": 8}, {"flash_attn": True}):
        for _ in range(2):
            assert say(load(cache, **options), STORY, 6) == say(plain(**options), STORY, 6)


def test_strict_numerics_makes_the_device_count(load):
    cache = LlamaRAMCache()
    say(load(cache, strict_numerics=True), SHORT, 1)
    assert kept(load, cache, strict_numerics=True)[1]
    assert not kept(load, cache, strict_numerics=True, offload_kqv=False)[1]


def test_a_copy_of_the_file_is_the_same_model(load, cache, own_file):
    assert kept(load, cache, path=own_file)[1]


def change(path, at=-1000):
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_END)
        old = file.read(4)
        file.seek(at, os.SEEK_END)
        file.write(bytes(each ^ 1 for each in old))


def test_a_file_with_one_bit_changed_is_another_model(load, cache, own_file):
    change(own_file)
    assert not kept(load, cache, path=own_file)[1]


@pytest.mark.parametrize("how", ["in place", "in place, times put back", "replaced", "removed"])
def test_a_file_that_changes_under_a_loaded_model_stops_caching(load, cache, own_file, how):
    llm, is_kept = kept(load, cache, path=own_file)
    assert is_kept
    n = len(cache)
    status = own_file.stat()
    if how == "replaced":
        other = own_file.with_name("other.gguf")
        shutil.copyfile(own_file, other)
        change(other)
        os.replace(other, own_file)
    elif how == "removed":
        own_file.unlink()
    else:
        change(own_file)
        if "times" in how:
            os.utime(own_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ids_of(llm) not in llm.cache
    say(llm, STORY, 2)
    assert len(cache) == n
    if how != "removed":
        assert not kept(load, cache, path=own_file)[1]


def test_a_file_that_changes_between_evaluating_and_saving_is_not_saved(load, own_file):
    cache = LlamaRAMCache()
    llm = load(cache, path=own_file)
    stream = llm.create_completion(SHORT, max_tokens=3, temperature=0.0, stream=True)
    next(stream)
    change(own_file)
    list(stream)
    assert len(cache) == 0


def test_adapters_are_part_of_the_identity(load, cache, plain, tmp_path):
    one, other = write_lora(tmp_path / "one.gguf"), write_lora(tmp_path / "other.gguf", seed=1)
    seen = set()
    for options in ({"lora_path": str(one)}, {"lora_path": str(other)}, {"lora_path": str(one), "lora_scale": 0.5}):
        llm, is_kept = kept(load, cache, **options)
        assert not is_kept
        text = say(llm, STORY, 8)
        assert text == say(plain(**options), STORY, 8)
        assert say(load(cache, **options), STORY, 8) == text
        seen.add(llm.identity_now())
    assert len(seen) == 3


def set_adapters(llm, *adapters):
    handles = (c.llama_adapter_lora_p_ctypes * max(1, len(adapters)))(*[handle for handle, _ in adapters])
    scales = (ctypes.c_float * max(1, len(adapters)))(*[scale for _, scale in adapters])
    assert c.llama_set_adapters_lora(llm.ctx, handles, len(adapters), scales) == 0


def test_an_adapter_changed_later_is_another_identity(load, plain, tmp_path):
    path = write_lora(tmp_path / "one.gguf")
    expected = {True: say(plain(lora_path=str(path)), STORY, 8), False: say(plain(), STORY, 8)}
    assert expected[True] != expected[False]
    cache = LlamaRAMCache()
    llm = load(cache)
    adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(path).encode())
    for on in (False, True, False, True, True, False):
        set_adapters(llm, *([(adapter, 1.0)] if on else []))
        assert say(llm, STORY, 8) == expected[on]
    assert len(cache) == 2
    set_adapters(llm, (adapter, 0.0))
    assert say(llm, STORY, 8) == expected[False]
    loaded = load(cache, lora_path=str(path))
    assert ids_of(loaded) in loaded.cache


def test_an_adapter_changed_in_the_middle_of_a_text_is_not_kept(load, tmp_path):
    path = write_lora(tmp_path / "one.gguf")
    cache = LlamaRAMCache()
    llm = load(cache)
    adapter = c.llama_adapter_lora_init(llm.model, str(path).encode())
    stream = llm.create_completion(SHORT, max_tokens=4, temperature=0.0, stream=True)
    next(stream)
    set_adapters(llm, (adapter, 1.0))
    list(stream)
    assert len(cache) == 0


def test_a_control_vector_is_part_of_the_identity(load, cache):
    llm, is_kept = kept(load, cache)
    assert is_kept
    data = (ctypes.c_float * (576 * 29))(*([0.5] * (576 * 29)))
    assert c.llama_set_adapter_cvec(llm.ctx, data, len(data), 576, 1, 29) == 0
    assert ids_of(llm) not in llm.cache
    say(llm, SHORT, 2)
    assert ids_of(llm) in llm.cache
    assert c.llama_set_adapter_cvec(llm.ctx, None, 0, 576, 1, 29) == 0
    assert llm.cache[ids_of(llm)].origin == llm.identity_now()


def test_an_edited_memory_is_not_kept(load):
    cache = LlamaRAMCache()
    llm = load(cache)
    say(llm, STORY, 2)
    n = len(cache)
    llm._ctx.kv_cache_seq_rm(0, 10, 20)
    llm._ctx.kv_cache_seq_shift(0, 20, -1, -10)
    llm.input_ids[10 : llm.n_tokens - 10] = llm.input_ids[20 : llm.n_tokens].copy()
    llm.n_tokens -= 10
    ids = llm.input_ids[: llm.n_tokens].tolist()
    llm.cache[ids] = llm.save_state()
    assert len(cache) == n


def test_tokens_that_came_otherwise_are_not_kept(load):
    """Image embeddings are decoded behind the back of `eval`."""
    cache = LlamaRAMCache()
    llm = load(cache)
    ids = ids_of(llm)
    llm.eval(ids[:5])
    llm._batch.set_batch(batch=ids[5:10], n_past=5, logits_all=False)
    llm._ctx.decode(llm._batch)
    llm.n_tokens = 10
    llm.input_ids[5:10] = ids[11:16]
    llm.eval(ids[10:])
    llm.cache[ids] = llm.save_state()
    assert len(cache) == 0


def test_a_state_of_another_model_is_not_kept_as_ours(load):
    cache = LlamaRAMCache()
    other, llm = load(rope_freq_scale=0.5), load(cache)
    say(other, STORY, 2)
    llm.load_state(other.save_state())
    say(llm, STORY, 2)
    assert len(cache) == 0
    llm.load_state(load().save_state())
    say(llm, SHORT, 2)
    assert len(cache) == 1


def test_a_state_loaded_past_us_is_not_kept(load, plain):
    cache = LlamaRAMCache()
    other, llm = load(rope_freq_scale=0.5), load(cache)
    say(other, STORY, 2)
    say(llm, STORY, 2)
    blob = other.save_state().blob
    at = blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    n = len(cache)
    assert c.llama_state_set_data(llm.ctx, at, blob.nbytes) == blob.nbytes
    llm.cache[llm.input_ids[: llm.n_tokens].tolist()] = llm.save_state()
    assert len(cache) == n
    assert say(llm, STORY + "And", 4) == say(plain(), STORY + "And", 4)


def test_a_closed_object_misses(load):
    cache = LlamaRAMCache()
    llm = load(cache)
    say(llm, SHORT, 2)
    ids = ids_of(llm)
    llm.close()
    assert ids not in llm.cache
    with pytest.raises(KeyError):
        _ = llm.cache[ids]
    with pytest.raises(UnsupportedModelError):
        llm.identity_now()


def test_a_model_opened_again_at_an_address_used_before_is_looked_at_anew(load):
    cache = LlamaRAMCache()
    for options in ({}, {"rope_freq_scale": 0.5}, {}, {"rope_freq_scale": 0.5}):
        llm, is_kept = kept(load, cache, **options)
        assert is_kept == (len(cache) >= 2)
        say(llm, SHORT, 2)
        llm.close()


def test_logits_for_every_token_are_left_to_llama_cpp_python(load):
    cache = LlamaRAMCache()
    options = {"logits_all": True, "n_ctx": 128}
    llm, reference = load(cache, **options), load(kind=llama_cpp.Llama, **options)
    for _ in range(2):
        done = llm.create_completion(SHORT, max_tokens=3, temperature=0.0, logprobs=2, echo=True)
        wanted = reference.create_completion(SHORT, max_tokens=3, temperature=0.0, logprobs=2, echo=True)
        assert done["choices"][0]["text"] == wanted["choices"][0]["text"]
        ours, theirs = (np.array(each["choices"][0]["logprobs"]["token_logprobs"][1:]) for each in (done, wanted))
        assert np.allclose(ours, theirs, atol=1e-3)


def test_a_model_made_before_lmstash_looked_is_not_served(gguf):
    code = f"""
import llama_cpp, logging, sys
llm = llama_cpp.Llama({str(gguf)!r}, n_ctx=64, verbose=False)
from lmstash.adapters.llama_cpp import LlamaRAMCache, bind
cache = LlamaRAMCache()
bind(llm).set_cache(cache)
logging.basicConfig(stream=sys.stdout)
llm("Hi", max_tokens=1)
print(len(cache))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert "Import lmstash.adapters.llama_cpp first" in done.stdout


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_rotation_of_quantised_rows_counts_as_it_was_when_the_context_was_made(load, monkeypatch, value):
    options = {"type_k": 8, "type_v": 8, "flash_attn": True}
    cache = LlamaRAMCache()
    say(load(cache, **options), SHORT, 2)
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", value)
    llm = load(cache, **options)
    monkeypatch.delenv("LLAMA_ATTN_ROT_DISABLE")
    assert ids_of(llm) not in llm.cache


def test_bind_after_import_knows_everything(load, cache):
    llm = bind(load(kind=llama_cpp.Llama))
    llm.set_cache(cache)
    assert ids_of(llm) in llm.cache
