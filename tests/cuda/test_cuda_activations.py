"""Activations of models on the GPU: right at every site, in every dtype, whatever moves or changes meanwhile."""

import random
import threading

import numpy as np
import pytest
import torch

import lmstash
from lmstash.caches.activations import batching
from lmstash.caches.activations.sites import find_submodule

pytestmark = pytest.mark.cuda

LENGTHS = (1, 2, 5, 9, 30, 64, 65, 130)
SITES = ("block_out", "embed", "attn_out", "mlp_out", "router_logits", "final")
POOLS = ("last", "first", "mean", "max", 0, -1, None)


@pytest.fixture
def stash():
    with lmstash.open("memory://", strict=True, trust_env=False) as stash:
        yield stash


def prompts(lengths=LENGTHS, vocabulary=256, seed=1):
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]


def by_hand(model, ids, layers, site, cuda):
    """Return `[n_layers, n_tokens, width]` of one prompt on the GPU, alone in its batch: no padding, no lmstash."""
    base = model.base_model
    blocks = base.layers if hasattr(base, "layers") else base.h
    kept = {}

    def keep(layer):
        def hook(module, args, output):
            kept[layer] = args[0] if site == "embed" else output

        return hook

    handles = []
    for layer in layers:
        module = {"block_out": blocks[layer], "embed": blocks[0], "final": base}.get(site)
        if module is None:
            module = find_submodule(blocks[layer], site, layer, getattr(model.config, "num_experts", None))
        handles.append(module.register_forward_hook(keep(layer)))
    with torch.no_grad():
        model(torch.tensor([ids], device=cuda))
    for each in handles:
        each.remove()
    out = []
    for layer in layers:
        value = kept[layer]
        value = getattr(value, "last_hidden_state", value)
        value = value[0] if isinstance(value, tuple) else value
        out.append(value if value.ndim == 2 else value[0])
    return torch.stack(out)


def pooled(values, pool):
    if pool is None:
        return values
    if pool == "mean":
        return values.double().mean(1)
    if pool == "max":
        return values.amax(1)
    return values[:, {"last": -1, "first": 0}.get(pool, pool)]


TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("site", SITES)
def test_values_are_those_of_hooks_set_by_hand(build, build_moe, cuda, stash, site, dtype):
    """Each prompt alone, against batches of prompts of unlike lengths, padded."""
    if site == "router_logits":
        build = build_moe
    model = build().to(cuda, dtype)
    layers = [0] if site in ("embed", "final") else [0, 2]
    asked = prompts()
    truth = [by_hand(model, ids, layers, site, cuda).cpu() for ids in asked]
    acts = stash.activations(model)
    for pool in POOLS:
        cold = acts(asked, layers, pool, site=site, batch_size=3)
        warm = acts(asked, layers, pool, site=site, on_miss="error")
        for index, values in enumerate(truth):
            assert cold[index].dtype == dtype
            assert cold[index].device.type == "cpu"
            assert not cold[index].is_pinned()
            assert torch.equal(cold[index].view(torch.uint8), warm[index].view(torch.uint8))
            expected = pooled(values, pool).double()
            error = (cold[index].double() - expected).norm() / expected.norm()
            assert error <= TOLERANCE[dtype], (pool, index, error)


def test_values_of_equal_batches_are_bit_for_bit_those_of_hooks(build_llama, cuda, stash):
    model = build_llama().to(cuda, torch.bfloat16)
    (ids,) = prompts((40,))
    assert torch.equal(
        stash.activations(model)([ids], [0, 1, 2], None)[0], by_hand(model, ids, [0, 1, 2], "block_out", cuda).cpu()
    )


def test_what_one_device_kept_the_other_finds(build, cuda, stash):
    model = build()
    asked = prompts()
    acts = stash.activations(model)
    here = acts(asked, [1])
    model.to(cuda)
    assert torch.equal(acts(asked, [1], on_miss="error"), here)
    more = prompts((3, 4), seed=2)
    there = acts(more, [1])  # computed on the GPU by a cache that was made for the CPU
    assert there.device.type == "cpu"
    model.to("cpu")
    assert torch.equal(acts(more, [1], on_miss="error"), there)
    again = acts(prompts((7,), seed=3), [1])
    assert torch.isfinite(again).all()
    assert torch.equal(stash.activations(model)(asked + more, [1], on_miss="error"), torch.cat([here, there]))


@pytest.mark.parametrize("kind", ["array", "memory map", "tensor", "tensor on the GPU", "wider", "not contiguous"])
def test_out_is_filled(build_llama, cuda, stash, tmp_path, kind):
    model = build_llama().to(cuda, torch.float16)
    asked = prompts()
    acts = stash.activations(model)
    expected = stash.activations(model)(asked, [0, 2])
    shape = tuple(expected.shape)
    out = {
        "array": lambda: np.zeros(shape, np.float16),
        "memory map": lambda: np.memmap(tmp_path / "out", np.float16, "w+", shape=shape),
        "tensor": lambda: torch.zeros(shape, dtype=torch.float16),
        "tensor on the GPU": lambda: torch.zeros(shape, dtype=torch.float16, device=cuda),
        "wider": lambda: np.zeros(shape, np.float32),
        "not contiguous": lambda: torch.zeros(*shape[:2], 2 * shape[2], dtype=torch.float16)[:, :, ::2],
    }[kind]()
    for refresh in (True, False):
        assert acts(asked, [0, 2], out=out, refresh=refresh) is out
        found = torch.from_numpy(np.array(out)) if isinstance(out, np.ndarray) else out.cpu()
        assert torch.equal(found.to(torch.float16), expected)
        out[:] = 0


def test_hits_of_changed_weights_are_not_served(build, cuda, stash):
    model = build().to(cuda)
    asked = prompts()
    acts = stash.activations(model)
    before = acts(asked, [2], "mean")
    model.base_model.get_input_embeddings().weight.data[asked[3][0]] += 1
    after = acts(asked, [2], "mean")
    assert not torch.equal(before, after)
    truth = torch.stack([pooled(by_hand(model, ids, [2], "block_out", cuda), "mean") for ids in asked]).cpu()
    assert torch.allclose(after.double(), truth, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.base_model.get_input_embeddings().weight.mul_(2)
    assert len(acts.missing(asked, [2], "mean")) == len(asked)


@pytest.mark.parametrize("edit", ["in place", "data", "another stream"])
def test_a_model_changed_during_a_call_keeps_nothing(build_llama, cuda, edit):
    model = build_llama().to(cuda)
    weight = model.model.layers[2].mlp.down_proj.weight
    calls = []

    def change(module, args):
        calls.append(1)
        if len(calls) == 2:
            if edit == "in place":
                with torch.no_grad():
                    weight.add_(1)
            elif edit == "data":
                weight.data[0, 0] += 1
            else:
                stream = torch.cuda.Stream(cuda)
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(1_000_000_000)
                    weight.data[0, 0] += 1

    change._lmstash = True  # a hook as lmstash's own: it is the weights that must give it away
    asked = prompts((20,) * 8)
    with lmstash.open("memory://", trust_env=False) as stash:
        acts = stash.activations(model)
        handle = model.model.layers[0].register_forward_pre_hook(change)
        acts(asked, [1], batch_size=4)
        handle.remove()
        torch.cuda.synchronize()
        assert len(calls) == 2
        assert len(acts.missing(asked, [1])) == 8
        fresh = acts(asked, [2], batch_size=4)
        truth = torch.stack([by_hand(model, ids, [2], "block_out", cuda)[:, -1] for ids in asked]).cpu()
        assert torch.allclose(fresh, truth, rtol=1e-4, atol=1e-4)


def test_casts_that_autocast_kept_of_older_weights_are_not_used(build_llama, cuda):
    model = build_llama().to(cuda)
    asked = prompts()

    def read():
        with lmstash.open("memory://", strict=True, trust_env=False) as stash:
            return stash.activations(model)(asked, [1])

    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        model(torch.tensor([[1, 2, 3]], device=cuda))
        model.model.layers[0].mlp.down_proj.weight.data.mul_(3)
        within = read()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(read(), within)


def test_autocast_and_attention_do_not_share_entries(build_llama, cuda, stash):
    model = build_llama().to(cuda)
    asked = prompts()
    acts = stash.activations(model)
    plain = acts(asked, [2])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert len(acts.missing(asked, [2])) == len(asked)
        cast = acts(asked, [2])
    assert not torch.equal(cast.float(), plain)
    assert torch.equal(acts(asked, [2], on_miss="error"), plain)
    model.set_attn_implementation("eager")
    assert len(acts.missing(asked, [2])) == len(asked)


def test_two_threads_share_a_model_on_the_gpu(build_llama, cuda, stash):
    model = build_llama().to(cuda)
    acts = stash.activations(model)
    asked = {seed: prompts(LENGTHS, seed=seed) for seed in range(6)}
    found, faults = {}, []

    def work(seeds):
        try:
            with torch.cuda.stream(torch.cuda.Stream(cuda)):
                for seed in seeds:
                    found[seed] = acts(asked[seed], [0, 2], None, batch_size=3)
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(range(start, 6, 2),)) for start in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert faults == []
    for seed, values in found.items():
        for ids, value in zip(asked[seed], values, strict=True):
            truth = by_hand(model, ids, [0, 2], "block_out", cuda).cpu()
            assert torch.allclose(value, truth, rtol=1e-4, atol=1e-4)


def test_raw_values_of_a_causal_model_share_prefixes_on_the_gpu(build_llama, cuda, stash):
    model = build_llama().to(cuda, torch.bfloat16)
    acts = stash.activations(model)
    assert acts._source.causal()
    (ids,) = prompts((200,))
    long = acts([ids], [1], None)[0]
    assert len(acts.missing([ids[:128]], [1], None)) == 0, "its blocks are those of the longer one"
    assert torch.equal(acts([ids[:128]], [1], None)[0], long[:, :128])


def full_to(free_bytes, cuda):
    """Leave so much memory on the GPU to this process, and no more."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + free_bytes) / total, cuda)


@pytest.mark.parametrize("pool", ["mean", None])
def test_a_batch_too_large_for_the_device_is_halved(build_llama, cuda, stash, pool, monkeypatch):
    monkeypatch.setattr(batching, "BATCH_PROMPTS", 64)
    model = build_llama(hidden_size=1024, intermediate_size=4096, head_dim=256).to(cuda)
    asked = prompts((250,) * 64)
    acts = stash.activations(model)
    tried = []
    model.model.embed_tokens.register_forward_pre_hook(noting := lambda _, args: tried.append(len(args[0])))
    noting.__dict__["_lmstash"] = True
    acts(prompts((8,), seed=9), [1], pool)  # so that libraries have what they need
    tried.clear()
    full_to(300 * 2**20, cuda)
    try:
        found = acts(asked, [1], pool, batch_size=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert tried[0] == 64
    assert min(tried) < 64
    for index in (0, 31, 63):
        truth = pooled(by_hand(model, asked[index], [1], "block_out", cuda), pool).cpu()
        assert torch.allclose(found[index].double(), truth.double(), rtol=1e-3, atol=1e-4)
    assert acts.missing(asked, [1], pool) == []


def test_one_prompt_too_large_for_the_device_is_the_callers_to_know(build_llama, cuda, stash):
    model = build_llama(hidden_size=1024, intermediate_size=8192, head_dim=256).to(cuda)
    acts = stash.activations(model)
    small, large = prompts((5, 2000))
    full_to(20 * 2**20, cuda)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            acts([large, small], [1])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    assert acts([large, small], [1]).shape == (2, 1, 1024)
