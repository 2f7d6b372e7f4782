"""Prompts that share beginnings, in any order, with entries lost and stashes reopened: always what the model says."""

import shutil
import tempfile

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from transformers import LlamaConfig, LlamaForCausalLM

import lmstash

VOCABULARY = 60
_BRANCHES = [torch.randint(3, VOCABULARY, (260,), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def tiny(seed):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=512)).eval()
    model.generation_config.eos_token_id = None
    return model


class Prompts(RuleBasedStateMachine):
    """A prompt is a beginning of one branch, then of another one: prompts part from each other anywhere."""

    lengths = st.integers(1, 200)
    branches = st.integers(0, 3)

    @initialize()
    def begin(self):
        torch.set_num_threads(1)
        self.folder = tempfile.mkdtemp(prefix="lmstash-kv-", dir="/dev/shm")
        self.models = [tiny(seed) for seed in range(2)]
        self.model = self.models[0]
        self.fed = 0
        self.open()

    def open(self):
        self.stash = lmstash.open(self.folder, capacity_bytes=1 << 28)
        self.kv = self.stash.kv(self.model)

    def teardown(self):
        if hasattr(self, "stash"):
            self.stash.close()
            shutil.rmtree(self.folder)

    def ids(self, one, n, other, m):
        return torch.cat([_BRANCHES[one][:n], _BRANCHES[other][:m]])[None]

    @rule(one=branches, n=lengths, other=branches, m=lengths, new=st.integers(1, 70))
    def generate(self, one, n, other, m, new):
        ids = self.ids(one, n, other, m)
        want = {"do_sample": False, "max_new_tokens": new, "return_dict_in_generate": True, "output_logits": True}
        out, expected = self.kv.generate(ids, **want), self.model.generate(ids, **want)
        assert torch.allclose(out.logits[0], expected.logits[0], atol=1e-4)
        assert torch.equal(out.sequences, expected.sequences)

    @rule(one=branches, n=lengths, other=branches, m=lengths)
    def past(self, one, n, other, m):
        ids = self.ids(one, n, other, m)
        past, n_tokens = self.kv.past(ids)
        with torch.no_grad():
            expected = self.model(ids, use_cache=True)
        assert n_tokens < ids.shape[1]
        for number in range(2 if n_tokens else 0):
            live, kept = expected.past_key_values.layers[number], past.layers[number]
            assert torch.allclose(kept.keys, live.keys[:, :, :n_tokens], atol=1e-4)
            assert torch.allclose(kept.values, live.values[:, :, :n_tokens], atol=1e-4)

    @rule(one=branches, n=lengths, other=branches, m=lengths)
    def prefill(self, one, n, other, m):
        ids = self.ids(one, n, other, m)
        self.kv.prefill(ids)
        assert self.kv.prefill(ids) == 0
        assert self.kv.past(ids)[1] == ids.shape[1] - 1

    @rule(rows=st.lists(st.tuples(branches, lengths), min_size=2, max_size=3))
    def batch(self, rows):
        width = max(length for _, length in rows)
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        for row, (branch, length) in enumerate(rows):
            ids[row, width - length :], mask[row, width - length :] = _BRANCHES[branch][:length], 1
        want = {"do_sample": False, "max_new_tokens": 3, "attention_mask": mask, "pad_token_id": 0}
        assert torch.equal(self.kv.generate(ids, **want), self.model.generate(ids, **want))

    @rule(which=st.integers(0, 10**6))
    def lose(self, which):
        self.stash.flush()
        keys = sorted(entry.key for entry in self.stash.store.entries("kv/"))
        if keys:  # there is none where the check of the model took longer than a pass, and came after an edit
            assert self.stash.store.delete(keys[which % len(keys)])

    @rule()
    def flush(self):
        self.stash.flush()

    @rule()
    def reopen(self):
        self.stash.close()
        self.open()

    @rule(which=st.integers(0, 1))
    def another_model(self, which):
        self.model = self.models[which]
        self.kv = self.stash.kv(self.model)

    @rule()
    def edit(self):
        self.model.lm_head.weight.data[0] += 0.25
        self.model.model.layers[0].self_attn.k_proj.weight.data[0] += 0.05

    @invariant()
    def nothing_odd(self):
        if hasattr(self, "stash"):
            stats = self.kv.stats
            assert set(stats.passed_on) <= {"what was kept proved damaged, or the model changed"}
            assert set(stats.not_kept) <= {"the model changed before or while it computed"}
            assert self.stash.stats.damaged == 0
            assert self.stash.stats.misses["mismatch"] == 0


TestPrompts = Prompts.TestCase
TestPrompts.settings = settings(stateful_step_count=20, max_examples=15, deadline=None)
