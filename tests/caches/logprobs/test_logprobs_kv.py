"""KV in slots and in rows, against plain copies."""

import random
from array import array

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lmstash.caches.logprobs.hot_rows import HotRows
from lmstash.caches.logprobs.kv_form import KVForm, Plane, SlotPool
from lmstash.caches.logprobs.kv_rows import KVRows, mask_of
from lmstash.caches.logprobs.slab import Slab

CPU = torch.device("cpu")
FORM = KVForm(
    (Plane(2, 3, torch.float32, 2), Plane(1, 5, torch.bfloat16, 2)), (((0, 0), (1, 0)), ((0, 1), (1, 1))), CPU
)


def kv_of(tokens, place=0):
    """KV that follows from a token and all before it, as a model's does: for each plane."""
    out = [torch.zeros(plane.members, plane.heads, len(tokens), plane.width) for plane in FORM.planes]
    seed = 0
    for column, token in enumerate(tokens):
        seed = (seed * 31 + token + 1) % 10007
        for number, plane in enumerate(out):
            plane[:, :, column] = seed % 251 + number
    return [each.to(plane.dtype) for each, plane in zip(out, FORM.planes, strict=True)]


def same(ours, theirs):
    return all(mine.equal(other) for mine, other in zip(ours, theirs, strict=True))


def test_the_form_is_read_off_a_cache():
    class Layer:
        keys = torch.zeros(1, 2, 7, 3)
        values = torch.zeros(1, 1, 7, 5, dtype=torch.bfloat16)

    form = KVForm.of([Layer, Layer])
    assert form == FORM
    assert form.token_bytes == 2 * 2 * 3 * 4 + 2 * 1 * 5 * 2
    Layer.keys = None
    assert KVForm.of([Layer]) is None


@pytest.mark.parametrize("seed", range(5))
def test_slots_give_back_what_was_written(seed, monkeypatch):
    monkeypatch.setattr("lmstash.caches.logprobs.kv_form._SLAB_BYTES", 20 * FORM.token_bytes)
    generator = random.Random(seed)
    pool = SlotPool(FORM, 75 * FORM.token_bytes)
    assert pool.capacity == 75
    held = {}
    for step in range(200):
        if held and generator.random() < 0.45:
            pool.give_back(held.pop(generator.choice(list(held)))[0])
            continue
        n_tokens = generator.randrange(1, 30)
        slots = pool.take(n_tokens)
        free = 75 - sum(len(each) for each, _ in held.values())
        assert (slots is None) == (n_tokens > free)
        if slots is None:
            continue
        rows = [torch.rand(plane.members, plane.heads, n_tokens, plane.width).to(plane.dtype) for plane in FORM.planes]
        pool.write(slots, rows)
        held[step] = slots, rows
        used = [slot for each, _ in held.values() for slot in each]
        assert len(set(used)) == len(used)
        for slots, rows in held.values():
            found = [torch.empty_like(row) for row in rows]
            pool.read(slots, found)
            assert same(found, rows)
    assert pool.held_bytes <= 80 * FORM.token_bytes


def test_part_of_what_was_written_can_be_read():
    pool = SlotPool(FORM, 50 * FORM.token_bytes)
    slots = pool.take(10)
    rows = kv_of(range(10))
    pool.write(slots, rows)
    found = [row[:, :, 3:7].clone().zero_() for row in rows]
    pool.read(slots[3:7], found)
    assert same(found, [row[:, :, 3:7] for row in rows])


class Seating(RuleBasedStateMachine):
    """Contexts go on from others, in any number and order; each row holds the KV of its own context."""

    @initialize(capacity=st.sampled_from([0, 10**4, 10**7]))
    def start(self, capacity):
        self.rows = KVRows(FORM, capacity)
        self.live = []

    @rule(data=st.data())
    def go_on(self, data):
        old = data.draw(st.lists(st.sampled_from(self.live), max_size=4)) if self.live else []
        new = data.draw(st.lists(st.lists(st.integers(0, 3), max_size=6).map(tuple), max_size=3))
        pasts = old + new
        if not pasts:
            return
        counts = data.draw(st.lists(st.integers(1, 3), min_size=len(pasts), max_size=len(pasts)))
        if not data.draw(st.booleans()):
            counts = [counts[0]] * len(pasts)
        longest = max(counts)
        names = [array("I", past).tobytes() for past in pasts]
        row_of, absent = self.rows.seat(names, longest)
        assert sorted(row_of) == list(range(len(pasts)))
        if self.live and self.rows.end >= max(map(len, pasts)):
            lying = {each for index, each in enumerate(pasts) if index not in absent}
            assert lying <= set(self.live)
        for index in absent:
            for mine, theirs in zip(self.rows.fill(row_of[index]), kv_of(pasts[index]), strict=True):
                mine.copy_(theirs)
        cache = self.rows.cache()
        wholes = [(*past, *range(count)) for past, count in zip(pasts, counts, strict=True)]
        fresh = [torch.zeros(plane.members, len(pasts), plane.heads, longest, plane.width) for plane in FORM.planes]
        for index, whole in enumerate(wholes):
            for mine, theirs in zip(fresh, kv_of(whole), strict=True):
                mine[:, row_of[index], :, : counts[index]] = theirs[:, :, len(pasts[index]) :].float()
        for layer, (keys, values) in enumerate(FORM.places):
            found = cache.update(
                fresh[keys[0]][keys[1]].to(FORM.planes[keys[0]].dtype),
                fresh[values[0]][values[1]].to(FORM.planes[values[0]].dtype),
                layer,
            )
            assert found[0].shape[2] == self.rows.end + longest == cache.get_seq_length(layer)
        for index, whole in enumerate(wholes):
            row, start = row_of[index], self.rows.starts[row_of[index]]
            assert same(self.rows.added(row, start, len(whole)), kv_of(whole))
        self.rows.end += longest
        self.live = []
        for index, whole in enumerate(wholes):
            name = array("I", whole).tobytes()
            self.rows.name(row_of[index], name)
            assert (name in self.rows) or counts[index] < longest
            if counts[index] == longest:
                self.live.append(whole)

    @rule()
    def forget(self):
        self.rows.forget()
        self.live = []

    @invariant()
    def what_lies_here_is_known(self):
        for whole in getattr(self, "live", []):
            assert array("I", whole).tobytes() in self.rows


TestSeating = Seating.TestCase
TestSeating.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_children_of_one_context_are_copied_and_the_first_stays():
    rows = KVRows(FORM, 10**6)
    parent = tuple(range(5))
    name = array("I", parent).tobytes()
    rows.seat([b""], 5)
    for mine, theirs in zip(rows.added(0, 0, 5), kv_of(parent), strict=True):
        mine.copy_(theirs)
    rows.end = 5
    rows.name(0, name)
    row_of, absent = rows.seat([name, name, name], 1)
    assert (row_of, absent) == ([0, 1, 2], [])
    assert all(same(rows.fill(row), kv_of(parent)) for row in range(3))


def test_the_mask_names_the_columns_of_each_row():
    assert mask_of([0, 0], 4, [2, 2], CPU) is None
    assert mask_of([0, 3], 4, [2, 2], CPU).tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert mask_of([0, 4], 4, [2, 1], CPU).tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0]]


def test_hot_rows_go_in_the_order_of_use():
    rows = torch.arange(20.0).view(5, 4)
    hot = HotRows(4, 3 * (16 + 512) + 100)
    names = [b"a" * 4, b"b" * 4, b"c" * 8000, b"d" * 8000, b"e" * 4]
    hot.put(names[:3], rows[:3])
    assert hot.find(names[:1]) == [0]
    hot.put(names[3:4], rows[3:4])
    found = hot.find(names)
    assert [slot is not None for slot in found] == [True, False, True, True, False]
    assert hot.read([found[3], found[0], found[2]]).equal(rows[[3, 0, 2]])
    assert hot.held_bytes <= 3 * (16 + 512)
    hot.put(names[:1], rows[4:])  # the first one stays
    assert hot.read([hot.find(names[:1])[0]]).equal(rows[:1])
    hot.put(names, rows)  # more than there is room for: the last ones
    assert [slot is not None for slot in hot.find(names)] == [False, False, True, True, True]
    assert len(hot) == 3


def test_a_slab_hands_out_copies_and_uses_slots_again():
    slab = Slab(8, 30)
    assert (slab.capacity, slab.room, slab.held_bytes) == (3, 3, 0)
    slots = [slab.put(torch.full((8,), number, dtype=torch.uint8)) for number in range(3)]
    assert slab.room == 0
    found = slab.read([slots[2], slots[0], slots[2]])
    assert found[:, 0].tolist() == [2, 0, 2]
    found.zero_()
    assert slab.read(slots)[:, 0].tolist() == [0, 1, 2]
    slab.give_back([slots[1]])
    assert slab.put(torch.full((8,), 9, dtype=torch.uint8)) == slots[1]
    assert slab.held_bytes == 24
    assert slab.read([], torch.float32).shape == (0, 2)
