"""Rows: computed once, right, the caller's own, within budgets; what a call may cost in tokens fed."""

import gc
import random
import threading
import weakref

import numpy as np
import pytest
import torch

import lmstash
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.events import Hit

from .conftest import VOCABULARY


@pytest.fixture
def stash():
    with lmstash.open("memory://") as stash:
        yield stash


@pytest.fixture
def lp(stash, model):
    return stash.logprobs(model)


def test_one_row_and_many_and_duplicates(lp, model, plain):
    row = lp.next_token_logprobs([1, 2, 3])
    assert row.shape == (VOCABULARY,)
    assert row.dtype is torch.float32
    assert (row - plain(model, [1, 2, 3])).abs().max() < 1e-5
    rows = lp.batch_next_token_logprobs([[1, 2], [1, 2, 3], (1, 2), np.array([1, 2, 3]), torch.tensor([4])])
    assert rows.shape == (5, VOCABULARY)
    assert rows[0].equal(rows[2])
    assert rows[1].equal(rows[3])
    assert rows[1].equal(row)
    assert (rows[4] - plain(model, [4])).abs().max() < 1e-5
    assert lp.batch_next_token_logprobs([]).shape == (0, VOCABULARY)


def test_what_is_known_is_not_computed_again(lp, model, count_fed):
    fed = count_fed(model)
    lp.batch_next_token_logprobs([[1, 2, 3], [1, 2, 3]])
    assert fed.take() == (1, 3)
    lp.next_token_logprobs([1, 2, 3])
    lp.batch_next_token_logprobs([[1, 2, 3]])
    assert fed.take() == (0, 0)


def test_one_token_is_fed_for_each_new_context(lp, model, count_fed):
    """The particle pattern: an uncached prompt once, then one token per distinct child, in one pass."""
    fed = count_fed(model)
    prompt = list(range(50))
    lp.batch_next_token_logprobs([prompt] * 8)
    assert fed.take() == (1, 50)
    lp.batch_next_token_logprobs([[*prompt, 1], [*prompt, 2], [*prompt, 1], [*prompt, 3]])
    assert fed.take() == (1, 3)
    lp.batch_next_token_logprobs([[*prompt, 1, 5], [*prompt, 1, 6], [*prompt, 3, 5]])
    assert fed.take() == (1, 3)


def test_what_new_contexts_begin_with_is_fed_once(lp, model, count_fed):
    fed = count_fed(model)
    prompt = list(range(60))
    lp.batch_next_token_logprobs([[*prompt, each] for each in range(10)])
    assert fed.take() == (2, 60 + 10)


def test_every_beginning_of_a_context_comes_from_one_pass(lp, model, plain, count_fed):
    """genlm-control's log_probability asks for all of them at once."""
    fed = count_fed(model)
    ids = list(range(40))
    rows = lp.batch_next_token_logprobs([ids[:length] for length in range(1, 41)])
    assert fed.take() == (1, 40)
    for length in (1, 7, 40):
        assert (rows[length - 1] - plain(model, ids[:length])).abs().max() < 1e-5


def test_an_old_context_is_gone_on_from_without_feeding_it_again(lp, model, plain, count_fed):
    """Its KV comes from the pool: the batch in use is of others."""
    lp.next_token_logprobs(list(range(50)))
    lp.batch_next_token_logprobs([[9, 9, each] for each in range(8)])
    fed = count_fed(model)
    row = lp.next_token_logprobs([*range(50), 7])
    assert fed.take() == (1, 1)
    assert (row - plain(model, [*range(50), 7])).abs().max() < 1e-5
    fed.take()
    row = lp.next_token_logprobs([*range(30), 80, 81])
    assert fed.take() == (1, 2)
    assert (row - plain(model, [*range(30), 80, 81])).abs().max() < 1e-5


def test_contexts_that_need_much_and_little_are_not_padded_to_each_other(lp, model, count_fed):
    fed = count_fed(model)
    lp.batch_next_token_logprobs([list(range(90)), [5, 6], [7]])
    passes, tokens = fed.take()
    assert passes == 2
    assert tokens == 90 + 2 * 2


def test_rows_are_the_callers_own(lp):
    for ask in (
        lambda: lp.batch_next_token_logprobs([[1, 2, 3], [4, 5]])[0],
        lambda: lp.next_token_logprobs([1, 2, 3]),
    ):
        first = ask()
        kept = first.clone()
        first.fill_(0)
        assert ask().equal(kept)
        ask().fill_(1)
        assert lp.start([1, 2, 3]).logprobs().equal(kept)
        lp.start([1, 2, 3]).logprobs().fill_(2)
        assert ask().equal(kept)


def test_a_kept_row_holds_on_to_no_batch(lp):
    row = lp.next_token_logprobs([1, 2, 3])
    assert row.untyped_storage().nbytes() == row.nbytes


@pytest.mark.parametrize("budgets", [{"kv_bytes": 0}, {"row_bytes": 0}, {"row_bytes": 0, "answer_bytes": 0}])
def test_a_budget_of_nothing_costs_only_work(stash, model, plain, contexts, budgets):
    lp = stash.logprobs(model, **budgets)
    for _ in range(2):
        rows = lp.batch_next_token_logprobs(contexts)
        for context, row in zip(contexts, rows, strict=True):
            assert (row - plain(model, context)).abs().max() < 1e-5


def test_budgets_hold(stash, model):
    lp = stash.logprobs(model, kv_bytes=64 << 10, row_bytes=8 << 10, answer_bytes=4 << 10)
    for start in range(0, 96, 2):
        lp.batch_next_token_logprobs([[start, other, 3, 4, 5, 6] for other in range(8)])
        info = lp._engine.index.info()
        assert lp._engine.hot.held_bytes <= 8 << 10
        assert info.points["answer"][1] <= 4 << 10
        assert info.span_bytes <= 32 << 10
    assert lp.held_bytes < (64 + 8 + 4 + 64) << 10


def test_a_switched_off_stash_keeps_nothing(monkeypatch, model, plain, count_fed):
    monkeypatch.setenv("LMSTASH_DISABLE", "1")
    fed = count_fed(model)
    with lmstash.open() as stash:
        lp = stash.logprobs(model)
        fed.take()
        for _ in range(2):
            assert (lp.next_token_logprobs([1, 2, 3]) - plain(model, [1, 2, 3])).abs().max() < 1e-5
            passes, tokens = fed.take()
            assert (passes, tokens) == (2, 6)  # one of them is the plain pass


@pytest.mark.parametrize("ids", [[], [VOCABULARY], [-1], [1.5], "text", [[1, 2]]])
def test_what_is_no_context_is_refused(lp, ids):
    with pytest.raises(InvalidArgumentError):
        lp.next_token_logprobs(ids)
    with pytest.raises(InvalidArgumentError):
        lp.batch_next_token_logprobs([[1, 2], ids])
    assert lp.next_token_logprobs([1, 2]).shape == (VOCABULARY,)


def test_a_context_longer_than_a_table_of_positions_is_refused(stash, build_family):
    lp = stash.logprobs(build_family("gpt2"))
    assert lp.next_token_logprobs([1] * 300).shape == (VOCABULARY,)
    with pytest.raises(InvalidArgumentError, match="300 tokens"):
        lp.next_token_logprobs([1] * 301)


def test_bad_options_are_refused(stash, model):
    with pytest.raises(InvalidArgumentError, match="keep"):
        stash.logprobs(model, keep="int4")
    with pytest.raises(InvalidArgumentError, match="budget"):
        stash.logprobs(model, kv_bytes="unlimited")
    with pytest.raises(InvalidArgumentError, match="RAM"):
        stash.logprobs(model, row_bytes=2**60)
    with pytest.raises(UnsupportedModelError):
        stash.logprobs(torch.nn.Linear(3, 3))
    with pytest.raises(UnsupportedModelError, match="causal"):
        stash.logprobs(model.model)


def test_a_model_in_training_mode_with_dropout_is_refused(stash, make_model):
    model = make_model(attention_dropout=0.1)
    lp = stash.logprobs(model)
    lp.next_token_logprobs([1, 2])
    model.train()
    with pytest.raises(UnsupportedModelError, match="eval"):
        lp.next_token_logprobs([1, 2])
    model.eval()
    assert lp.next_token_logprobs([1, 2]).shape == (VOCABULARY,)


def test_more_contexts_than_are_computed_at_once(stash, model, plain, monkeypatch):
    monkeypatch.setattr("lmstash.caches.logprobs.engine._CONTEXTS_AT_ONCE", 4)
    contexts = [[first, second, 5] for second in range(4) for first in range(5)]
    rows = stash.logprobs(model).batch_next_token_logprobs(contexts)
    for context, row in zip(contexts, rows, strict=True):
        assert (row - plain(model, context)).abs().max() < 1e-5


def test_hits_are_counted_and_told(stash, model):
    lp = stash.logprobs(model)
    lp.batch_next_token_logprobs([[1, 2], [3]])
    before = stash.stats.hits
    lp.batch_next_token_logprobs([[1, 2], [3], [4]])
    assert stash.stats.hits == before + 2
    told = []
    stop = stash.store.events.listen(told.append)
    lp.next_token_logprobs([1, 2])
    lp.start([3]).logprobs()
    stop()
    assert [type(each) for each in told] == [Hit, Hit]
    assert {each.namespace for each in told} == {f"logprobs/{lp.fingerprint[:16]}"}


def test_threads_get_what_one_gets(lp, model, plain):
    contexts = [[each, each + 1, *range(each)] for each in range(20)]
    found, failed = {}, []

    def work(seed):
        order = random.Random(seed).sample(contexts, len(contexts))
        try:
            for context in order:
                found.setdefault(tuple(context), []).append(lp.next_token_logprobs(context))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for context, rows in found.items():
        assert len(rows) == 4
        assert all(row.equal(rows[0]) for row in rows)
        assert (rows[0] - plain(model, context)).abs().max() < 1e-5


def test_a_pass_that_fails_leaves_nothing_half_done(lp, model, plain, monkeypatch):
    prompt = list(range(20))
    lp.batch_next_token_logprobs([[*prompt, 1], [*prompt, 2]])
    kept = type(model.model.layers[1]).forward

    def fail(self, *args, **kwargs):
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(lp._watch, "recognise", lambda found=lp._watch.fingerprint: found)
        patch.setattr(type(model.model.layers[1]), "forward", fail)
        with pytest.raises(RuntimeError, match="no"):
            lp.batch_next_token_logprobs([[*prompt, 1, 3], [*prompt, 1, 4], [*prompt, 2, 3]])
    assert type(model.model.layers[1]).forward is kept
    for context in ([*prompt, 1, 3], [*prompt, 2, 5]):
        assert (lp.next_token_logprobs(context) - plain(model, context)).abs().max() < 1e-5


def test_a_cache_that_is_let_go_of_goes(stash, model):
    lp = stash.logprobs(model)
    lp.next_token_logprobs([1, 2, 3])
    gone = weakref.ref(lp)
    del lp
    gc.collect()
    assert gone() is None


def test_it_says_what_it_is(lp):
    assert "LlamaForCausalLM" in repr(lp)
    assert repr(lp.start([1, 2])) == "<Context of 2 tokens>"
    lp.clear()
    assert "Llama" in repr(lp)
