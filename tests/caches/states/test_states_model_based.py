"""States in any order, with entries lost, damaged and evicted, two openers and two models: against plain sets."""

import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import lmstash
from lmstash.caches.states.cache import States
from lmstash.caches.states.naming import POINTED
from lmstash.caches.states.scores import RUN_TOKENS
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.memory import MemoryStore

from .conftest import ROWS, token_values, toy_blob

NAMES = ("one", "other")
BRANCHES = [np.random.default_rng(seed).integers(0, 9, 200).tolist() for seed in range(3)]
VOCABULARY = 3


def common(one, other):
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def scores_of(states, ids):
    values = token_values(states.fingerprint.hex, ids)
    return np.array([np.frombuffer(value[: 4 * VOCABULARY], "<f4") for value in values], "<f4").reshape(-1, VOCABULARY)


class Sequences(RuleBasedStateMachine):
    """A prompt is a beginning of one branch, then of another: prompts part from each other anywhere."""

    lengths = st.integers(0, 150)
    branches = st.integers(0, 2)
    names = st.sampled_from(NAMES)
    openers = st.integers(0, 1)

    @initialize()
    def begin(self):
        self.kept = {name: {} for name in NAMES}  # sequences; whether with scores
        self.lost = False  # whether something may be gone
        self.unsound = False  # whether something may be damaged, or gone that another entry leans on
        self.open()

    def open(self):
        self.stores = [MemoryStore()]
        self.bind()

    def bind(self):
        self.views = [
            {name: States(store, Fingerprint(Key({"name": name}), {"name": name})) for name in NAMES}
            for store in self.stores
        ]

    def view(self, name, opener):
        return self.views[opener % len(self.views)][name]

    def ids(self, one, n, other, m):
        return BRANCHES[one][:n] + BRANCHES[other][:m]

    @rule(name=names, opener=openers, one=branches, n=lengths, other=branches, m=lengths, scored=st.booleans())
    def put(self, name, opener, one, n, other, m, scored):
        states, ids = self.view(name, opener), self.ids(one, n, other, m)
        rows = scores_of(states, ids)
        blob = toy_blob(ROWS, states.fingerprint.hex, ids)
        states.put(ids, blob, scores=(lambda a, b: rows[a:b]) if scored else None)
        if ids:
            self.kept[name][tuple(ids)] = scored or self.kept[name].get(tuple(ids), False)

    @rule(name=names, opener=openers, one=branches, n=lengths, other=branches, m=lengths, scored=st.booleans())
    def look(self, name, opener, one, n, other, m, scored):
        self.check(self.view(name, opener), self.kept[name], self.ids(one, n, other, m), scored)

    @precondition(lambda self: any(self.kept.values()))
    @rule(opener=openers, seed=st.integers(0, 1 << 20), scored=st.booleans(), more=st.integers(0, 3))
    def look_at_what_was_put(self, opener, seed, scored, more):
        name, ids = random.Random(seed).choice([(name, ids) for name, kept in self.kept.items() for ids in kept])
        asked = list(ids)[: len(ids) - seed % 3] + [9] * more
        self.check(self.view(name, opener), self.kept[name], asked, scored)

    def check(self, states, kept, ids, scored):
        """What is loaded is right, as much as can be, and as much as was said."""
        match = states.match(ids)
        said = states.usable(match, len(ids), scores=scored)
        loaded = states.load(match, n_vocab=VOCABULARY if scored else 0)
        n_tokens = 0 if loaded is None else loaded.n_tokens
        most = max((common(each, ids) for each in kept), default=0)
        assert n_tokens <= most
        if loaded is not None:
            assert n_tokens > 0
            assert loaded.blob.tobytes() == toy_blob(ROWS, states.fingerprint.hex, ids[:n_tokens])
            if scored:
                assert loaded.scores.tobytes() == scores_of(states, ids[:n_tokens]).tobytes()
        if not self.unsound:
            assert n_tokens == said
        elif n_tokens != said:  # what was found not to be sound is not promised again
            for _ in range(100):
                match = states.match(ids)
                said = states.usable(match, len(ids), scores=scored)
                loaded = states.load(match, n_vocab=VOCABULARY if scored else 0)
                if said == (0 if loaded is None else loaded.n_tokens):
                    break
            else:
                raise AssertionError("what is not sound is promised again and again")
        if self.lost:
            return
        if not scored:
            assert n_tokens > most - max(np.diff([*POINTED, 64]))
            assert n_tokens == most or tuple(ids) not in kept
        else:
            most = max((common(each, ids) for each, with_scores in kept.items() if with_scores), default=0)
            assert n_tokens >= most - most % RUN_TOKENS - max(np.diff([*POINTED, 64]))

    @invariant()
    def distinct_sequences_are_counted(self):
        for views in getattr(self, "views", []):
            for name, states in views.items():
                if self.lost:
                    assert states.n_sequences() <= len(self.kept[name])
                else:
                    assert states.n_sequences() == len(self.kept[name])

    @rule(opener=openers)
    def clear(self, opener):
        self.stores[opener % len(self.stores)].clear()
        self.kept = {name: {} for name in NAMES}
        self.lost = self.unsound = False

    @rule(opener=openers, share=st.floats(0.2, 0.95))
    def evict(self, opener, share):
        store = self.stores[opener % len(self.stores)]
        store.evict(int(store.info().physical_bytes * share))
        self.lost = self.unsound = True  # the oldest goes first, and what newer entries lean on may be that

    @rule(opener=openers, seed=st.integers(0, 1 << 20))
    def delete(self, opener, seed):
        store = self.stores[opener % len(self.stores)]
        keys = sorted(entry.key for entry in store.entries())
        if keys:
            store.delete(random.Random(seed).choice(keys))
            self.lost = self.unsound = True

    @precondition(lambda self: any(self.kept.values()))
    @rule(opener=openers, seed=st.integers(0, 1 << 20))
    def heal(self, opener, seed):
        """Whatever was lost, what is put again comes back whole, once what is damaged was found."""
        name, ids = random.Random(seed).choice([(name, ids) for name, kept in self.kept.items() for ids in kept])
        states, ids = self.view(name, opener), list(ids)
        rows = scores_of(states, ids)
        for _ in range(100):
            states.put(ids, toy_blob(ROWS, states.fingerprint.hex, ids), scores=lambda a, b: rows[a:b])
            loaded = states.load(states.match(ids), n_vocab=VOCABULARY)
            if loaded is not None and loaded.n_tokens == len(ids):
                break
        else:
            raise AssertionError("it does not heal")
        self.kept[name][tuple(ids)] = True

    def teardown(self):
        for store in getattr(self, "stores", []):
            store.close()


class OnDisk(Sequences):
    """Two openers of one folder, which are closed and opened again, and whose files are damaged."""

    def open(self):
        if not hasattr(self, "folder"):
            self.folder = tempfile.mkdtemp(prefix="lmstash-states-", dir="/dev/shm")
        self.stashes = [lmstash.open(self.folder, capacity_bytes=1 << 28) for _ in range(2)]
        self.stores = [stash.store for stash in self.stashes]
        self.bind()

    @rule()
    def reopen(self):
        for stash in self.stashes:
            stash.close()
        self.open()

    @rule(seed=st.integers(0, 1 << 20))
    def damage(self, seed):
        draw = random.Random(seed)
        files = sorted(path for path in Path(self.folder).rglob("*.seg*") if path.stat().st_size)
        if not files:
            return
        path = draw.choice(files)
        with path.open("r+b") as file:
            at = draw.randrange(path.stat().st_size)
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0x55]))
        self.lost = self.unsound = True

    def teardown(self):
        for stash in getattr(self, "stashes", []):
            stash.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestInMemory = Sequences.TestCase
TestInMemory.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestOnDisk = OnDisk.TestCase
TestOnDisk.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
