"""The forms of kept answers: what each costs in bytes, and its error, measured."""

import pytest
import torch

import lmstash
from lmstash.caches.logprobs.forms import FORMS, CompactForm, ExactForm, form_named
from lmstash.caches.logprobs.language_model import LanguageModel

from .conftest import VOCABULARY


@pytest.mark.parametrize(("form", "error"), [("hidden", 4e-5), ("exact", 0.0), ("uint16", 4e-4)])
def test_rows_come_back_within_the_error_that_is_stated(build_family, contexts, form, error):
    for family in ("llama", "gemma2", "gpt2"):
        model = build_family(family)
        with lmstash.open("memory://") as stash:
            lp = stash.logprobs(model, keep=form, row_bytes=1 << 20)
            first = lp.batch_next_token_logprobs(contexts)
            assert lp.batch_next_token_logprobs(contexts).equal(first)  # hot rows are exact in every form
            lp.flush()
            again = stash.logprobs(model, keep=form, row_bytes=0)
            assert (again.batch_next_token_logprobs(contexts) - first).abs().max() <= error
            assert (again.batch_next_token_logprobs(contexts) - first).abs().max() <= error  # from RAM


def test_sixteen_bits_are_off_by_half_a_step(make_model):
    rows = torch.log_softmax(torch.randn(20, 1000, dtype=torch.float64) * 6, -1).float()
    form = CompactForm(1000)
    held, unfit = form.encode(rows, rows)
    assert held.shape == (20, 2008)
    assert unfit == []
    step = (rows.amax(1) - rows.amin(1)) / 65535
    assert ((form.rows(held) - rows).abs().amax(1) <= 0.51 * step + 2e-6).all()


@pytest.mark.parametrize("value", [0.0, -7.5])
def test_sixteen_bits_of_a_row_without_a_span(value):
    form = CompactForm(5)
    rows = torch.full((2, 5), value)
    held, unfit = form.encode(rows, rows)
    assert unfit == []
    assert form.rows(held).equal(rows)


def test_a_row_with_an_infinity_has_no_compact_form_and_is_served_all_the_same(model, plain):
    rows = torch.log_softmax(torch.randn(3, 50), -1)
    rows[1, 7] = -torch.inf
    assert CompactForm(50).encode(rows, rows)[1] == [1]
    with torch.no_grad():
        model.lm_head = torch.nn.Linear(32, VOCABULARY)  # one with a bias, which masks a token
        model.lm_head.bias[3] = -torch.inf
    with lmstash.open("memory://") as stash:
        lp = stash.logprobs(model, keep="uint16", row_bytes=0)
        for _ in range(2):
            row = lp.next_token_logprobs([1, 2])
            assert row[3] == -torch.inf
            assert row.nan_to_num().allclose(plain(model, [1, 2]).nan_to_num(), atol=1e-5)
        lp.flush()
        assert not any(each.kind == "logprobs" for each in stash.store.entries())


def test_a_model_without_a_head_of_its_own_keeps_rows(build_family):
    found = LanguageModel(build_family("llama4_text"))
    assert isinstance(form_named("hidden", found, found.finals, found.n_logits), ExactForm)


def test_bytes_of_an_answer(build_family):
    found = LanguageModel(build_family("llama"))
    sizes = [form_named(name, found, found.finals, found.n_logits).n_bytes for name in FORMS]
    assert sizes == [4 * 32, 4 * VOCABULARY, 8 + 2 * VOCABULARY]
    half = LanguageModel(build_family("llama").bfloat16())
    assert form_named("hidden", half, half.finals, half.n_logits).n_bytes == 2 * 32
