"""Anything in any order against a plain model: queries of all kinds, tiny budgets, edits, flushes, new caches."""

import copy

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from transformers import LlamaConfig, LlamaForCausalLM

import lmstash

from .conftest import _SHAPE, VOCABULARY

_TOKENS = st.integers(0, VOCABULARY - 1)


class AnyOrder(RuleBasedStateMachine):
    """Every answer is what the model, as it is then, gives in a pass of its own."""

    @initialize(
        keep=st.sampled_from(["hidden", "exact", "uint16"]),
        kv=st.sampled_from([0, 20_000, 10**6]),
        rows=st.sampled_from([0, 2_000, 10**6]),
        answers=st.sampled_from([0, 500, 10**5]),
    )
    def start(self, keep, kv, rows, answers):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(**_SHAPE)).eval()
        self.options = {"keep": keep, "kv_bytes": kv, "row_bytes": rows, "answer_bytes": answers}
        self.tolerance = 1e-3 if keep == "uint16" else 1e-4
        self.stash = lmstash.open("memory://")
        self.lp = self.stash.logprobs(self.model, **self.options)
        self.known = [[1, 2, 3]]
        self.held = []

    def teardown(self):
        if hasattr(self, "stash"):
            self.stash.close()

    def right(self, context, row):
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([list(context)]), use_cache=False).logits[0, -1]
        return (row - torch.log_softmax(logits.float(), -1)).abs().max() < self.tolerance

    @rule(data=st.data())
    def ask(self, data):
        asked = []
        for _ in range(data.draw(st.integers(1, 6))):
            base = data.draw(st.sampled_from(self.known))
            cut = data.draw(st.integers(0, len(base)))
            context = [*base[:cut], *data.draw(st.lists(_TOKENS, max_size=4))] or [0]
            asked.append(context)
        for context, row in zip(asked, self.lp.batch_next_token_logprobs(asked), strict=True):
            assert self.right(context, row)
        self.known = [*self.known, *asked][-12:]

    @rule(tokens=st.lists(_TOKENS, min_size=20, max_size=90))
    def ask_for_a_long_one(self, tokens):
        assert self.right(tokens, self.lp.next_token_logprobs(tokens))
        self.known.append(tokens)

    @rule(data=st.data())
    def hold(self, data):
        self.held = [*self.held, self.lp.start(data.draw(st.sampled_from(self.known)))][-6:]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go_on(self, data):
        grown = [data.draw(st.sampled_from(self.held)).extend(data.draw(_TOKENS)) for _ in self.held]
        for each, row in zip(grown, self.lp.batch_next_token_logprobs(grown), strict=True):
            assert self.right(each.ids, row)
        assert self.right(grown[0].ids, grown[0].fork().logprobs())
        self.held = grown

    @rule(data=st.data())
    def score(self, data):
        ids = data.draw(st.sampled_from(self.known))
        scores = self.lp.score(ids)
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:], dtype=torch.int64)[:, None])[:, 0]
        assert scores.shape == expected.shape
        assert not len(scores) or (scores - expected).abs().max() < 1e-4

    @rule(data=st.data(), through_data=st.booleans())
    def edit(self, data, through_data):
        weights = dict(self.model.named_parameters())
        weight = weights[data.draw(st.sampled_from(sorted(weights)))]
        place = tuple(data.draw(st.integers(0, size - 1)) for size in weight.shape)
        with torch.no_grad():
            (weight.data if through_data else weight)[place] += 20

    @rule()
    def flush(self):
        self.stash.flush()

    @rule()
    def a_new_cache(self):
        self.stash.flush()
        self.model = copy.deepcopy(self.model)
        self.lp = self.stash.logprobs(self.model, **self.options)
        self.held = []


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
