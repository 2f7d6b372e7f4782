"""What a prompt's values are must not depend on how long the prompts beside it are."""

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from lmstash.caches.activations import Activations
from lmstash.caches.activations.model_source import ModelSource
from lmstash.caches.activations.padding import pad, rounding_of, shows_company, shows_padding
from lmstash.store.memory import MemoryStore

SHORT = [5, 6, 7]
LONGER = [[5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8], [9] * 30]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 90, "pad_token_id": 0}
HEADS = {**SMALL, "num_attention_heads": 4}


class Custom(transformers.PreTrainedModel):
    """Embeddings and blocks of somebody's own; `mix` takes `[n_prompts, n_tokens, 32]` and the mask."""

    config_class = transformers.PretrainedConfig

    def __init__(self, mix):
        super().__init__(transformers.PretrainedConfig(num_hidden_layers=2, hidden_size=32, vocab_size=90))
        self.embed = nn.Embedding(90, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(2))
        self.mix = mix

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        for block in self.blocks:
            hidden = block(hidden + self.mix(hidden, attention_mask))
        return hidden


class Convolution(nn.Module):
    """Sees a neighbour at `distance` on each side, padding or not."""

    def __init__(self, distance):
        super().__init__()
        self.inner = nn.Conv1d(32, 32, 3, padding=distance, dilation=distance)

    def forward(self, hidden, mask):
        return self.inner(hidden.transpose(1, 2)).transpose(1, 2)


class MeanOverTheBatchsLength(nn.Module):
    """Honours the mask, but divides by a number of tokens that counts the padding."""

    def forward(self, hidden, mask):
        return (hidden * mask[:, :, None]).mean(dim=1, keepdim=True).expand_as(hidden)


class MeanOfRealTokens(nn.Module):
    def forward(self, hidden, mask):
        real = mask[:, :, None]
        return ((hidden * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)).expand_as(hidden)


class RefusesPadding(nn.Module):
    def forward(self, hidden, mask):
        if not mask.all():
            raise ValueError("no padding, please")
        return hidden.mean(dim=1, keepdim=True).expand_as(hidden)


def build(name, **options):
    """A tiny model with weights away from zeros and ones."""
    torch.manual_seed(0)
    if isinstance(name, nn.Module):
        model = Custom(name).eval()
    else:
        kind = getattr(transformers, name)
        model = kind(kind.config_class(**{**(SMALL if name == "FNetModel" else HEADS), **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


LEAKING = [
    ("FNetModel", {}),
    ("ConvBertModel", {"embedding_size": 32, "num_groups": 1, "head_ratio": 2}),
    (Convolution(1), {}),
    (Convolution(10), {}),
    (MeanOverTheBatchsLength(), {}),
    (RefusesPadding(), {}),
]
HONEST = [
    ("BertModel", {}),
    ("RobertaModel", {}),
    ("DistilBertModel", {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48}),
    ("ElectraModel", {"embedding_size": 16}),
    ("DebertaV2Model", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    ("ModernBertModel", {"local_attention": 4, "global_attn_every_n_layers": 2}),
    (MeanOfRealTokens(), {}),
]


@pytest.mark.parametrize("pool", ["last", "mean", None])
@pytest.mark.parametrize(("name", "options"), LEAKING, ids=lambda each: str(each).split("(")[0])
def test_values_of_a_model_that_sees_its_padding_are_those_of_each_prompt_alone(name, options, pool):
    model = build(name, **options)
    alone = [Activations(MemoryStore(), model)([ids], "all", pool)[0] for ids in (SHORT, *LONGER)]
    store = MemoryStore()
    together = Activations(store, model)([SHORT, *LONGER], "all", pool)
    for got, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    kept = Activations(store, model)([SHORT], "all", pool, on_miss="error")[0]
    assert torch.equal(kept, together[0])


@pytest.mark.parametrize(("name", "options"), LEAKING, ids=lambda each: str(each).split("(")[0])
def test_such_a_model_still_runs_prompts_of_one_length_together(name, options):
    model = build(name, **options)
    acts = Activations(MemoryStore(), model)
    acts([SHORT], 1)  # tries it
    shapes = []

    def note(module, args, output):
        shapes.append(tuple(output.shape[:2]))

    note._lmstash = True
    model.get_input_embeddings().register_forward_hook(note)
    acts([[1, 2], SHORT[::-1], [3, 4], [5, 6]], 1)
    assert shapes == [(1, 3), (3, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("name", "options"), HONEST, ids=lambda each: str(each).split("(")[0])
def test_a_model_that_honours_its_mask_is_padded(name, options, dtype):
    source = ModelSource(build(name, **options).to(dtype))
    assert [source.padded_tokens(site) for site in ("block_out", "embed", "final")] == [None] * 3


def test_rounding_under_autocast_is_no_padding_that_shows():
    source = ModelSource(build("BertModel"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rounding_of(source.dtype, source.device) == torch.finfo(torch.bfloat16).eps
        assert source.padded_tokens("block_out") is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), LEAKING[1:-1], ids=lambda each: str(each).split("(")[0])
def test_padding_that_shows_is_seen_at_low_precision(name, options, dtype):
    assert ModelSource(build(name, **options).to(dtype)).padded_tokens("block_out") == 0


def test_a_model_is_tried_once_for_each_site(count_forwards):
    model = build("BertModel")
    acts = Activations(MemoryStore(), model)
    forwards = count_forwards(model)
    acts([SHORT], 1)
    tried = forwards.batches - 1
    assert tried == 6
    acts([LONGER[0]], 1)
    acts([SHORT], 1, "mean")
    assert forwards.batches == tried + 3


def test_a_causal_model_costs_no_trial(model, count_forwards):
    acts = Activations(MemoryStore(), model)
    forwards = count_forwards(model)
    acts([SHORT, *LONGER], 1)
    assert (forwards.batches, forwards.rows) == (1, 4)
    acts([SHORT, *LONGER], 1, None)  # raw values: whether it is causal is tried, nothing else
    assert forwards.batches == 3


def test_what_was_kept_with_padding_is_not_served_without():
    store = MemoryStore()
    for name in ("FNetModel", "BertModel"):
        Activations(store, build(name))([SHORT], 1, "mean")
    named = [entry.meta["id"]["components"] for entry in store.entries("activations/")]
    assert sorted(each.get("padded_tokens", -1) for each in named) == [-1, 0]


def test_hooks_that_count_from_the_end_are_noticed(model):
    """A causal model stays causal in batches of one shape, and yet the last column is padding to the shorter ones."""
    model.model.layers[1].register_forward_hook(lambda module, args, output: output + _at_the_end(output))
    prompts = [SHORT, LONGER[1]]
    alone = [Activations(MemoryStore(), model, variant="steered")([ids], [1, 3], "mean")[0] for ids in prompts]
    acts = Activations(MemoryStore(), model, variant="steered")
    torch.testing.assert_close(acts(prompts, [1, 3], "mean"), torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert not ModelSource(model).causal()


class StopsAtOne(nn.Module):
    """Takes a single token for one of an answer, and lets it be."""

    def forward(self, hidden, mask):
        return hidden.detach() * (hidden.shape[1] > 1)


@pytest.mark.parametrize("pool", ["last", None])
def test_a_prompt_of_one_token_has_the_values_that_it_has_alone(pool):
    model = build(StopsAtOne())
    prompts = [[5], *LONGER]
    alone = [Activations(MemoryStore(), model)([ids], 1, pool)[0] for ids in prompts]
    for got, wanted in zip(Activations(MemoryStore(), model)(prompts, 1, pool), alone, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def _at_the_end(hidden):
    out = torch.zeros_like(hidden)
    out[:, -1] = 3.0
    return out


def test_rotary_embeddings_that_turn_otherwise_in_long_batches_are_not_padded_beyond():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    options = {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_parameters": rope}
    source = ModelSource(build("Phi3Model", **options))
    assert source.padded_tokens("block_out") == 16
    alone = [Activations(MemoryStore(), build("Phi3Model", **options))([ids], 2, "mean")[0] for ids in LONGER]
    together = Activations(MemoryStore(), build("Phi3Model", **options))(LONGER, 2, "mean")
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_attention_that_is_sparse_in_long_batches_is_not_padded_and_not_tried():
    model = build("BigBirdModel", max_position_embeddings=1024)
    assert ModelSource(model).padded_tokens("block_out") == 0
    assert model.attention_type == "block_sparse"  # one short prompt would change it for good
    assert ModelSource(build("BigBirdModel", attention_type="original_full")).padded_tokens("block_out") is None


class FailsAtFirst(nn.Module):
    """Raises `errors`, one at a pass with padding; without one left it honours its mask."""

    def __init__(self, *errors):
        super().__init__()
        self.errors = list(errors)

    def forward(self, hidden, mask):
        if self.errors and not mask.all():
            raise self.errors.pop()
        return MeanOfRealTokens()(hidden, mask)


def test_an_error_that_passes_is_no_verdict():
    assert ModelSource(build(FailsAtFirst(RuntimeError("a hiccup")))).padded_tokens("block_out") is None


def test_a_model_that_refuses_padding_is_tried_twice_and_then_no_more():
    source = ModelSource(build(FailsAtFirst(*[ValueError("no padding, please")] * 3)))
    assert source.padded_tokens("block_out") == 0
    assert source.renewed() is source
    assert len(source.model.mix.errors) == 1
    assert source.padded_tokens("block_out") == 0
    assert not source.runs_alone("block_out")


def test_a_device_that_was_full_is_no_verdict_for_the_next_call():
    full = torch.cuda.OutOfMemoryError("out of memory")
    source = ModelSource(build(FailsAtFirst(full, full)))
    assert [source.padded_tokens("block_out") for _ in range(2)] == [0, 0]  # a call keeps to one answer
    assert source.renewed().padded_tokens("block_out") is None
    assert source.padded_tokens("block_out") == 0


def test_the_call_after_one_without_memory_shares_with_all_others(encoder, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("out of memory")

    store = MemoryStore()
    acts = Activations(store, encoder)
    with monkeypatch.context() as patch:
        patch.setattr("lmstash.caches.activations.model_source.shows_padding", full)  # no device here to fill
        acts([SHORT], 1)
    assert acts.missing([SHORT], 1) == [SHORT]
    acts([SHORT], 1)
    named = [entry.meta["id"]["components"] for entry in store.entries("activations/")]
    assert sorted(each.get("padded_tokens", -1) for each in named) == [-1, 0]
    Activations(store, encoder)([SHORT], 1, on_miss="error")


def build_moe(fraction, **more):
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": 4, "pad_token_id": 1}
    steps = {"encoder_sparse_step": 1, "decoder_sparse_step": 1, "max_position_embeddings": 256, "vocab_size": 128}
    config = transformers.NllbMoeConfig(**sizes, **heads, **steps, moe_eval_capacity_token_fraction=fraction, **more)
    torch.manual_seed(0)
    return transformers.NllbMoeModel(config).eval().get_encoder()


def test_experts_with_room_for_so_many_tokens_of_a_batch_are_given_one_prompt_at_a_time():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 128, (8, 20), generator=generator).tolist()
    model = build_moe(0.25)
    alone = [Activations(MemoryStore(), build_moe(0.25))([ids], 0, None, site="final")[0] for ids in prompts]
    acts = Activations(MemoryStore(), model)
    for got, wanted in zip(acts(prompts, 0, None, site="final", batch_size=4), alone, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert ModelSource(model).runs_alone("block_out")
    assert not ModelSource(build_moe(1.0)).runs_alone("block_out")


def test_experts_with_room_for_more_tokens_than_a_trial_has_are_given_one_prompt_at_a_time():
    prompts = torch.randint(3, 128, (20, 60), generator=torch.Generator().manual_seed(0)).tolist()
    alone = build_moe(-1.0, expert_capacity=64)
    got = Activations(MemoryStore(), build_moe(-1.0, expert_capacity=64))(prompts, 0, "mean", site="final")
    for ids, values in zip(prompts, got[:, 0], strict=True):
        with torch.no_grad():
            wanted = alone(input_ids=torch.tensor([ids]))[0][0].mean(dim=0)
        torch.testing.assert_close(values, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["a module", "its class", "the configuration"])
def test_a_capacity_is_believed_wherever_it_is_named(where):
    model = build_moe(1.0)
    assert not ModelSource(model).shares_among_tokens

    class Mine(nn.Identity):
        pass

    if where == "the configuration":
        model.config.moe_eval_capacity_token_fraction = 0.5
    elif where == "its class":
        Mine.capacity_factor = 1.25
    model.mine = Mine()
    if where == "a module":
        model.mine.capacity = 64
    assert ModelSource(model).runs_alone("block_out")


@pytest.mark.parametrize(("name", "options"), LEAKING, ids=lambda each: str(each).split("(")[0])
def test_a_model_that_sees_its_padding_only_is_not_run_alone(name, options):
    assert not ModelSource(build(name, **options).float()).runs_alone("block_out")


def test_a_model_with_which_company_cannot_be_tried_is_given_one_prompt_at_a_time():
    class RefusesCompany(nn.Module):
        def forward(self, hidden, mask):
            if len(hidden) > 1:
                raise ValueError("one at a time, please")
            return hidden.mean(dim=1, keepdim=True).expand_as(hidden)

    prompts = [[1, 2, 3], [4, 5, 6]]
    assert Activations(MemoryStore(), build(RefusesCompany()))(prompts, 1).shape == (2, 1, 32)


@pytest.mark.parametrize(("moved", "shows"), [(0.0, False), (0.01, False), (0.1, True), (float("nan"), True)])
def test_company_shows_where_values_move_by_more_than_rounding(moved, shows):
    def run(ids, mask):
        return [torch.ones(*ids.shape, 1) * (1 + moved * (len(ids) > 1))]

    assert shows_company(run, vocabulary=9, max_tokens=5, rounding=0.002) is shows


def test_prompts_lie_on_the_left_under_a_mask():
    ids, mask = pad([np.array([7, 8, 9], np.uint32), np.array([5], np.uint32)])
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_a_context_too_short_to_try_is_not_padded(max_tokens):
    assert shows_padding(
        lambda ids, mask: [torch.zeros(*ids.shape, 1)], vocabulary=9, max_tokens=max_tokens, rounding=0
    )


def test_values_that_are_no_numbers_are_not_padded():
    def run(ids, mask):
        return [torch.full((*ids.shape, 1), float("nan"))]

    assert shows_padding(run, vocabulary=9, max_tokens=None, rounding=0.1)
