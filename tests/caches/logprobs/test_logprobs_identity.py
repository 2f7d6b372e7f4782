"""Who computes: a model that changes in place, adapters that are switched, numerics. A wrong hit is unforgivable."""

import pytest
import torch

import lmstash
from lmstash.errors import MismatchError


class Adapted(torch.nn.Module):
    """A linear layer with adapters of which some are active, as peft keeps them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.active = ["first"]
        self.scaling = {"first": 8.0, "second": 8.0}
        torch.manual_seed(1)
        self.deltas = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.randn_like(inner.weight)) for name in ("first", "second")}
        )

    def forward(self, x):
        out = self.inner(x)
        for name in self.active:
            out = out + self.scaling[name] * torch.nn.functional.linear(x, self.deltas[name])
        return out


@pytest.fixture
def adapted(model):
    block = model.model.layers[1].mlp
    block.down_proj = Adapted(block.down_proj)
    return model


CHANGES = {
    "weights": lambda m: m.model.layers[0].mlp.up_proj.weight.mul_(3),
    "weights through .data": lambda m: m.model.layers[0].mlp.up_proj.weight.data.mul_(3),
    "one weight through .data": lambda m: m.model.layers[0].self_attn.v_proj.weight.data[0, 0].add_(30),
    "the head": lambda m: m.lm_head.weight.mul_(2),
    "another head": lambda m: setattr(m, "lm_head", torch.nn.Linear(32, 97, bias=False)),
    "another adapter": lambda m: m.model.layers[1].mlp.down_proj.active.__setitem__(0, "second"),
    "no adapter": lambda m: m.model.layers[1].mlp.down_proj.active.clear(),
    "an adapter's scale": lambda m: m.model.layers[1].mlp.down_proj.scaling.update(first=0.5),
    "a setting": lambda m: setattr(m.model.norm, "variance_epsilon", 0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("place", ["memory://", "folder"])
def test_a_change_in_place_is_answered_by_the_model_as_it_is(adapted, plain, tmp_path, place, change):
    contexts = [[1, 2, 3], [4, 5], [4, 5, 6]]
    with lmstash.open(place if place == "memory://" else tmp_path / place) as stash:
        lp = stash.logprobs(adapted)
        before = lp.batch_next_token_logprobs(contexts)
        handle = lp.start([4, 5, 6])
        handle.logprobs()
        first = lp.fingerprint
        with torch.no_grad():
            change(adapted)
        after = lp.batch_next_token_logprobs([*contexts, [4, 5, 6, 7]])
        for context, row in zip([*contexts, [4, 5, 6, 7]], after, strict=True):
            assert (row - plain(adapted, context)).abs().max() < 1e-4
        assert (after[:3] - before).abs().max() > 1e-3
        assert lp.fingerprint != first
        assert (handle.logprobs() - after[2]).abs().max() < 1e-5
        assert (handle.extend(9).logprobs() - plain(adapted, [4, 5, 6, 9])).abs().max() < 1e-4
        assert (lp.score([4, 5, 6]) - _scores(adapted, [4, 5, 6])).abs().max() < 1e-4


def test_adapters_switched_back_and_forth_find_their_own_answers_in_the_store(adapted, plain):
    layer = adapted.model.layers[1].mlp.down_proj
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(adapted)
        rows = {}
        for name in ("first", "second", "first", "second"):
            layer.active = [name]
            row = lp.next_token_logprobs([1, 2, 3])
            assert (row - plain(adapted, [1, 2, 3])).abs().max() < 1e-4
            assert (row - rows.setdefault(name, row)).abs().max() < 1e-4
            lp.flush()
        assert (rows["first"] - rows["second"]).abs().max() > 1e-3
        assert stash.stats.puts >= 2


def test_what_a_changed_model_computed_is_not_saved(adapted):
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(adapted, row_bytes=0, answer_bytes=0)
        lp.next_token_logprobs([1, 2, 3])
        lp.flush()
        puts = stash.stats.puts
        lp.next_token_logprobs([4, 5, 6])
        with torch.no_grad():
            adapted.lm_head.weight.mul_(2)
        lp.flush()  # what was computed since the last look may be the changed model's
        assert stash.stats.puts == puts
        assert stash.stats.drops["model_changed"] == 1


def test_a_strict_store_says_that_the_model_changed(adapted):
    with lmstash.open("memory://", strict=True) as stash:
        lp = stash.logprobs(adapted)
        lp.next_token_logprobs([1, 2, 3])
        lp.flush()
        lp.next_token_logprobs([4, 5, 6])
        with torch.no_grad():
            adapted.lm_head.weight.mul_(2)
        with pytest.raises(MismatchError):
            lp.flush()


def test_assume_frozen_takes_the_callers_word(model):
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model, assume_frozen=True)
        row = lp.next_token_logprobs([1, 2, 3])
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        assert lp.next_token_logprobs([1, 2, 3]).equal(row)


def test_variants_salts_and_numerics_share_nothing(model, tmp_path, count_fed):
    with lmstash.open(tmp_path) as stash:
        stash.logprobs(model).next_token_logprobs([1, 2, 3])
        stash.flush()
        fed = count_fed(model)
        for options in ({"variant": "mine"}, {"salt": "tenant"}, {"strict_numerics": True}):
            lp = stash.logprobs(model, **options)
            fed.take()
            lp.next_token_logprobs([1, 2, 3])
            assert fed.take() == (1, 3), options
        lp = stash.logprobs(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            row = lp.next_token_logprobs([1, 2, 3])
            fed.take()
            assert lp.next_token_logprobs([1, 2, 3]).equal(row)
            assert fed.take() == (0, 0)
        assert not lp.next_token_logprobs([1, 2, 3]).equal(row)


def test_two_models_do_not_answer_for_each_other(make_model, plain, tmp_path):
    with lmstash.open(tmp_path) as stash:
        one, other = make_model(0), make_model(1)
        for model in (one, other, one):
            row = stash.logprobs(model).next_token_logprobs([5, 6])
            assert (row - plain(model, [5, 6])).abs().max() < 1e-5
            stash.flush()


def _scores(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
