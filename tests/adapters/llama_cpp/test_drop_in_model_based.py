"""The drop-in caches in any order, against plain dicts: what `in`, `len` and a look-up say of each other."""

import shutil
import tempfile
from types import SimpleNamespace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmstash.adapters.llama_cpp import LlamaDiskCache, LlamaRAMCache, LlamaState
from lmstash.adapters.llama_cpp.rows import Rows
from lmstash.caches.states.cache import Memory
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

from ...caches.states.conftest import ROWS, token_values, toy_blob

N_CTX, VOCABULARY = 400, 5
BRANCHES = [np.random.default_rng(seed).integers(0, 9, 200).tolist() for seed in range(3)]


class Toy:
    """What a bound cache asks of a model; what its state is follows from its name and the tokens."""

    def __init__(self, name, logits_all):
        self.name, self._logits_all = name, logits_all
        self.fingerprint = Fingerprint(Key({"name": name}), {"name": name})
        self._identity = SimpleNamespace(
            refresh=lambda: self.fingerprint, memory=Memory, recall=lambda *_: None, keep=lambda *_: None
        )
        self.input_ids = np.zeros(N_CTX, np.intc)
        self.scores = np.zeros((N_CTX if logits_all else 64, VOCABULARY), np.float32)
        self.n_tokens, self._seed = 0, 7

    def trim_to_exact(self, tokens): ...

    def exact_tokens(self):
        return None

    def exact_point(self, most, n_tokens):
        return most

    def blob(self, ids):
        return toy_blob(ROWS, self.name, ids)

    def logits(self, ids):
        values = token_values(self.name, ids)
        return np.array([np.frombuffer(value[: 4 * VOCABULARY], "<f4") for value in values]).reshape(-1, VOCABULARY)

    def state(self, ids):
        """As `save_state` gives it."""
        scores, rows = self.logits(ids) if self._logits_all else None, Rows()
        if scores is not None:
            rows.note(scores, 0, len(ids))
        held = np.concatenate([ids, np.full(N_CTX - len(ids), -1)]).astype(np.intc)
        blob = self.blob(ids)
        origin = self.fingerprint.digest
        return LlamaState(held, scores, len(ids), blob, len(blob), 7, origin=origin, sums=rows.sums)


class Caches(RuleBasedStateMachine):
    """Three models over one cache: two are the same but for `logits_all`."""

    lengths = st.integers(0, 150)
    branches = st.integers(0, 2)
    who = st.integers(0, 2)

    @initialize()
    def begin(self):
        self.models = [Toy("one", False), Toy("one", True), Toy("other", False)]
        self.kept = {"one": {}, "other": {}}  # sequences; whether with scores
        self.lost = False
        self.open()

    def open(self):
        self.cache = LlamaRAMCache(1 << 28)
        self.bind()

    def bind(self):
        self.views = [self.cache.bound_to(model) for model in self.models]

    @rule(who=who, one=branches, n=lengths, other=branches, m=lengths, more=st.integers(0, 2))
    def put(self, who, one, n, other, m, more):
        model, ids = self.models[who], BRANCHES[one][:n] + BRANCHES[other][:m]
        self.views[who][[*ids, *range(more)]] = model.state(ids)  # the key may have a token that is not evaluated yet
        if ids:
            kept = self.kept[model.name]
            kept[tuple(ids)] = model._logits_all or kept.get(tuple(ids), False)

    @rule(who=who, one=branches, n=lengths, other=branches, m=lengths)
    def look(self, who, one, n, other, m):
        self.check(who, BRANCHES[one][:n] + BRANCHES[other][:m])

    @precondition(lambda self: any(self.kept.values()))
    @rule(who=who, seed=st.integers(0, 1 << 16), more=st.integers(0, 2))
    def look_at_what_was_put(self, who, seed, more):
        kept = sorted(self.kept[self.models[who].name])
        if kept:
            self.check(who, [*kept[seed % len(kept)], *range(more)])

    def check(self, who, ids):
        model, view = self.models[who], self.views[who]
        there = tuple(ids) in view
        longest = max((len(each) for each in self.usable(model) if each == tuple(ids[: len(each)])), default=0)
        # Pointers are kept after 1, 16, 32, ... tokens of a block, and lead to what was put there last: without scores,
        # or another way after 1 token, where fewer than 16 are the same.
        sure = longest - 15
        try:
            state = view[ids]
            found = state.llama_state  # read only now
        except KeyError:
            assert self.lost or not there  # what an entry leans on may be evicted before it
            assert self.lost or sure <= 0
            return
        assert there
        n_tokens = state.n_tokens
        assert 0 < n_tokens <= len(ids)
        assert state.input_ids[:n_tokens].tolist() == ids[:n_tokens]
        assert len(state.input_ids) == N_CTX
        assert found == model.blob(ids[:n_tokens])
        assert state.scores.shape == (n_tokens if model._logits_all else min(n_tokens, 64), VOCABULARY)
        assert state.scores.tobytes() == (
            model.logits(ids[:n_tokens]).tobytes() if model._logits_all else bytes(state.scores.nbytes)
        )
        assert self.lost or n_tokens >= sure
        assert tuple(ids[:n_tokens]) in {each[:n_tokens] for each in self.kept[model.name]}

    def usable(self, model):
        return [each for each, scored in self.kept[model.name].items() if scored or not model._logits_all]

    @invariant()
    def distinct_sequences_are_counted(self):
        if hasattr(self, "cache"):
            kept = sum(map(len, self.kept.values()))
            assert len(self.cache) == len(self.views[0]) <= kept
            assert self.lost or len(self.cache) == kept
            assert bool(self.cache)
            assert self.cache.cache_size == self.cache.store.info().physical_bytes

    @rule()
    def clear(self):
        self.cache.store.clear()
        self.kept, self.lost = {"one": {}, "other": {}}, False

    @rule(share=st.floats(0.2, 0.9))
    def evict(self, share):
        self.cache.store.evict(int(self.cache.cache_size * share))
        self.lost = True

    @rule(who=who)
    def put_what_another_model_computed(self, who):
        other = self.models[2 if who < 2 else 0]
        before = len(self.cache)
        self.views[who][BRANCHES[0][:90]] = other.state(BRANCHES[0][:90])
        assert len(self.cache) == before

    def teardown(self):
        if hasattr(self, "cache"):
            self.cache.store.close()


class OnDisk(Caches):
    """The same in a folder that is closed and opened again."""

    def open(self):
        if not hasattr(self, "folder"):
            self.folder = tempfile.mkdtemp(prefix="lmstash-drop-in-", dir="/dev/shm")
        self.cache = LlamaDiskCache(self.folder, 1 << 28)
        self.bind()

    @rule()
    def reopen(self):
        self.cache.store.close()
        self.open()

    def teardown(self):
        super().teardown()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestInMemory = Caches.TestCase
TestInMemory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestOnDisk = OnDisk.TestCase
TestOnDisk.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
