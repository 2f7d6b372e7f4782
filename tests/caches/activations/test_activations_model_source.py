"""What lies between the model and the values read off it: casts that autocast keeps, errors of a full device."""

import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, XLNetConfig, XLNetModel

import lmstash
from lmstash.caches.activations.model_source import ModelSource
from lmstash.caches.activations.on_device import says_no_memory, to_host
from lmstash.caches.activations.prompts import read_prompts
from lmstash.errors import UnsupportedModelError


def build():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes)).eval()


def read(model):
    with lmstash.open("memory://", strict=True, trust_env=False) as stash:
        return stash.activations(model)([[1, 2, 3]], [0])


def test_casts_that_autocast_kept_of_older_weights_are_not_used():
    """Whoever edits weights within an autocast block computes with the old ones; what is kept must not."""
    model = build()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.tensor([[1, 2, 3]]))
        model.model.layers[0].mlp.down_proj.weight.data.mul_(3)
        within = read(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        afterwards = read(model)
    assert torch.equal(within, afterwards)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_full_device_is_out_of_memory_whoever_says_so(words, monkeypatch):
    def full(*_):
        raise RuntimeError(words)

    source = ModelSource(build())
    monkeypatch.setattr(source, "_forward", full)  # no device here to fill
    with pytest.raises(torch.cuda.OutOfMemoryError, match=re.escape(words)):
        source.compute(read_prompts([[1, 2]]), [0], "block_out", "last")


def test_other_errors_stay_what_they_are():
    assert not says_no_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not says_no_memory(
        RuntimeError("Expected all tensors to be on the same device, but out of memory is not it")
    )


def test_what_lies_on_the_host_is_handed_on_as_it_is():
    values = [torch.ones(2, 3), torch.zeros(1)]
    assert all(torch.equal(a, b) for a, b in zip(to_host(values)(), values, strict=True))


def build_xlnet():
    torch.manual_seed(0)
    return XLNetModel(XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32)).eval()


@pytest.mark.parametrize("pool", ["last", None])
def test_a_limit_below_0_is_none(pool):
    """As XLNet's configuration says that there is no limit."""
    model = build_xlnet()
    assert model.config.max_position_embeddings == -1
    assert ModelSource(model).max_tokens is None
    with lmstash.open("memory://", strict=True, trust_env=False) as stash:
        got = stash.activations(model)([[1, 2, 3], [4, 5, 6], [7, 8]], 0, pool, site="final")
    for values, ids in zip(got, ([1, 2, 3], [4, 5, 6], [7, 8]), strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(values[0], wanted[-1] if pool else wanted, rtol=1e-4, atol=1e-5)


def test_blocks_that_put_tokens_before_prompts_are_refused_though_there_are_as_many_of_both():
    with (
        lmstash.open("memory://", strict=True, trust_env=False) as stash,
        pytest.raises(UnsupportedModelError, match="block_out"),
    ):
        stash.activations(build_xlnet())([[1, 2], [3, 4]], 1)


@pytest.mark.parametrize("site", ["embed", "block_out", "final"])
def test_the_model_run_by_others_as_a_pass_begins_and_within_it_is_not_what_is_read(site, make_model, monkeypatch):
    model = make_model()
    mine, others = torch.tensor([[1, 2, 3]]), torch.tensor([[7, 8, 9]])
    runs = 0

    def run_others():
        nonlocal runs
        if runs in (0, 2):
            runs += 1
            with torch.no_grad():
                model(others)
            runs += 1

    source = ModelSource(model)
    (wanted,) = source.compute(read_prompts(mine.tolist()), [0], site, None)
    taken = source._switched_off
    monkeypatch.setattr(source, "_switched_off", lambda: (run_others(), taken())[1])  # what is read is hooked by then
    run_others.__dict__["_lmstash"] = True
    with model.model.embed_tokens.register_forward_pre_hook(lambda *_: run_others()):
        (values,) = source.compute(read_prompts(mine.tolist()), [0], site, None)
    assert runs == 4, "others ran before the pass and within it"
    torch.testing.assert_close(values[0], wanted[0], rtol=0, atol=0)
