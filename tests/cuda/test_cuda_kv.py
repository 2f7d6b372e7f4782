"""KV prefixes of a model on a GPU: restored there, continued as the live cache would have, kept from there."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import lmstash  # noqa: E402

pytestmark = pytest.mark.cuda
WANT = {"do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}


def tiny(device, dtype):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**shape, num_key_value_heads=2, vocab_size=120, max_position_embeddings=512)
    model = transformers.LlamaForCausalLM(config).to(device, dtype).eval()
    model.generation_config.eos_token_id = None
    return model


def prompt(device, n_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 120, (1, 400), generator=generator)[:, :n_tokens].to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_continues_as_the_live_cache(cuda, tmp_path, dtype):
    model, ids = tiny(cuda, dtype), prompt(cuda, 220)
    with torch.no_grad():
        past = model(ids[:, :200], use_cache=True).past_key_values
    with lmstash.open(tmp_path / "kept") as stash:
        assert stash.kv(model).put(ids[:, :200], past) == 200
    expected = model.generate(ids, past_key_values=past, **WANT)
    with lmstash.open(tmp_path / "kept") as stash:
        kv = stash.kv(model)
        out = kv.generate(ids, **WANT)
        assert kv.stats.tokens_reused == 200
        assert torch.equal(torch.stack(out.logits), torch.stack(expected.logits))
        assert {layer.keys.device for layer in out.past_key_values.layers} == {ids.device}


def test_what_one_device_computed_serves_another(cuda, tmp_path):
    model, ids = tiny("cpu", torch.float32), prompt("cpu", 220)
    with lmstash.open(tmp_path / "kept") as stash:
        stash.kv(model).prefill(ids[:, :200])
        model.to(cuda)
        kv = stash.kv(model)
        out = kv.generate(ids.to(cuda), **WANT)
        assert kv.stats.tokens_reused == 200
        expected = model.generate(ids.to(cuda), **WANT)
        assert torch.allclose(torch.stack(out.logits), torch.stack(expected.logits), atol=1e-3)
        strict = stash.kv(model, strict_numerics=True)
        assert strict.past(ids) == (None, 0)


def test_an_edit_on_the_device_is_noticed(cuda, tmp_path):
    model, ids = tiny(cuda, torch.float32), prompt(cuda, 150)
    with lmstash.open(tmp_path / "kept") as stash:
        kv = stash.kv(model)
        kv.prefill(ids)
        model.model.layers[0].self_attn.k_proj.weight.data[0] += 1
        out = kv.generate(ids, **WANT)
        assert kv.stats.tokens_reused == 0
        assert torch.equal(out.sequences, model.generate(ids, **WANT).sequences)


def test_batches_beams_and_half_the_disk(cuda, tmp_path):
    model = tiny(cuda, torch.bfloat16)
    rows = torch.cat([torch.cat([prompt(cuda, 130), prompt(cuda, 20, seed)], dim=1) for seed in (1, 2)])
    with lmstash.open(tmp_path / "kept") as stash:
        kv = stash.kv(model)
        kv.prefill(prompt(cuda, 130))
        for want in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
            out = kv.generate(rows, **{"do_sample": False, "max_new_tokens": 3, **want})
            assert out.shape[1] == 153
        assert kv.stats.tokens_reused >= 3 * 260
        assert not kv.stats.passed_on
