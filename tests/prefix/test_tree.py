from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
from array import array

import numpy as np
import pytest
import torch
from tests.at_lines import at_line

from lmstash.errors import InterruptedChangeError, InvalidArgumentError
from lmstash.prefix.tree import PointKind, PrefixTree, SpanKind


def kept(tree, ids, slots=(), namespace=""):
    """Put slots for all of `ids` (so far without) and let go."""
    handle = tree.start(ids, namespace)
    assert not handle.put_slots(handle.covered, slots)
    return handle


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_match_ends_where_tokens_part_also_inside_an_edge():
    tree = PrefixTree({"row": PointKind()})
    tree.start(range(100)).put_point("row", "hundred", 1)
    assert tree.match([*range(40), 7, 7]).depth == 40
    assert tree.match(range(100)).depth == 100
    assert tree.match(range(200)).depth == 100
    assert tree.match([5]).depth == 0
    assert tree.match([]).depth == 0
    assert tree.get("row", range(100)) == "hundred"
    assert tree.get("row", range(99)) is None
    assert tree.get("row", range(101)) is None


@pytest.mark.parametrize("place", [0, 1, 62, 63, 64, 65, 127, 128, 500, 998, 999])
def test_where_long_edges_part_is_found_to_the_token(place):
    tree = PrefixTree({"row": PointKind()})
    ids = [random.Random(place).randrange(2**32) for _ in range(1000)]
    tree.start(ids).put_point("row", 1, 1)
    other = list(ids)
    other[place] ^= 1 << 31  # only the last byte of the token differs
    assert tree.match(other).depth == place
    other = list(ids)
    other[place] ^= 1
    assert tree.match(other).depth == place
    assert tree.start(other).depth == 1000
    assert tree.match(ids).depth == 1000


def test_all_sorts_of_token_ids_are_one():
    tree = PrefixTree({"row": PointKind()})
    ids = [1, 2**32 - 1, 3]
    tree.start(ids).put_point("row", "x", 1)
    for same in (tuple(ids), array("I", ids), np.array(ids), np.array(ids, np.uint32), torch.tensor(ids)):
        assert tree.get("row", same) == "x"
    for wrong in ([-1], [2**32], "text", [1.5], np.array([-1], np.int32), np.zeros((1, 2), int)):
        for call in (tree.match, tree.start, lambda ids: tree.get("row", ids), tree.match([1]).extend):
            with pytest.raises(InvalidArgumentError):
                call(wrong)
    with pytest.raises(InvalidArgumentError, match="token id"):
        tree.match([1]).extend(-1)


def test_namespaces_share_nothing():
    tree = PrefixTree({"row": PointKind()}, SpanKind(1))
    kept(tree, [1, 2], [5, 6], "a").put_point("row", "a", 1)
    assert tree.match([1, 2], "b").depth == 0
    assert tree.get("row", [1, 2]) is None
    assert tree.get("row", [1, 2], "a") == "a"
    assert tree.match([1, 2], "a").covered == 2


def test_what_a_tree_does_not_keep_is_refused_by_name():
    tree = PrefixTree({"row": PointKind()})
    handle = tree.start([1])
    for call in (lambda: tree.get("rows", [1]), lambda: handle.point("rows"), lambda: tree.evict_points("x", 0)):
        with pytest.raises(InvalidArgumentError, match="keeps no"):
            call()
    for call in (lambda: handle.covered, lambda: handle.put_slots(0, [1]), lambda: tree.evict_span(0)):
        with pytest.raises(InvalidArgumentError, match="no span"):
            call()


def test_match_many_is_match_of_each():
    tree = PrefixTree({"row": PointKind()})
    prompt = list(range(200))
    rows = [[*prompt, k, k % 3] for k in range(32)]
    for k, row in enumerate(rows[::2]):
        tree.start(row).put_point("row", k, 1)
    found = tree.match_many(rows)
    assert [handle.depth for handle in found] == [tree.match(row).depth for row in rows] == [202, 200] * 16
    assert [handle.point("row") for handle in found[::2]] == list(range(16))
    assert tree.match_many([]) == []


# --- handles ----------------------------------------------------------------------------------------------------------


def test_particles_go_on_without_walking_and_share_their_prompt():
    tree = PrefixTree({"row": PointKind()})
    prompt = tree.start(range(200))
    particles = [prompt.extend(1000 + k) for k in range(32)]
    forks = [particle.fork().extend([5, 6]) for particle in particles]
    assert tree.info().n_tokens == 200 + 32 * 3
    assert forks[3].tokens().tolist() == [*range(200), 1003, 5, 6]
    assert prompt.extend(1003).extend(5).depth == 202
    assert prompt.extend([]).tokens().tolist() == list(range(200))
    assert tree.match([*range(200), 1031, 5]).depth == 202
    del particles, forks
    assert tree.info().n_tokens == 200


def test_what_has_no_payload_and_no_handle_is_forgotten():
    tree = PrefixTree({"row": PointKind()})
    handle = tree.start(range(1000))
    handle.put_point("row", "x", 1, depth=10)
    assert tree.info().n_tokens == 1000
    del handle
    assert (tree.info().n_nodes, tree.info().n_tokens) == (1, 10)
    tree.evict_points("row", 0)
    assert (tree.info().n_nodes, tree.info().n_tokens, tree._index.roots) == (0, 0, {})


def test_a_handle_finds_its_place_after_splits_and_evictions():
    tree = PrefixTree({"row": PointKind()}, SpanKind(1))
    long = kept(tree, range(50), range(50))
    places = [tree.match(range(n)) for n in range(0, 51, 5)]
    others = [tree.start([*range(n), 999]) for n in (33, 7, 20, 49)]
    for n, place in zip(range(0, 51, 5), places, strict=True):
        assert place.tokens().tolist() == list(range(n))
        assert place.slots().tolist() == list(range(n))
    tree.evict_span(0)
    assert [place.covered for place in places] == [0] * 11
    assert places[4].extend(20).tokens().tolist() == list(range(21))
    assert [other.depth for other in others] == [34, 8, 21, 50]
    assert long.put_slots(0, list(range(100, 150))).tolist() == []
    assert places[3].slots().tolist() == list(range(100, 115))


def test_a_released_handle_says_so():
    tree = PrefixTree({"row": PointKind()})
    handle = tree.start([1, 2])
    handle.release()
    handle.release()
    assert tree.info().n_tokens == 0
    with pytest.raises(InvalidArgumentError, match="released"):
        handle.point("row")


def test_a_hundred_thousand_tokens_need_no_recursion():
    """One edge; a chain of as many nodes; and all that goes over them."""
    tree = PrefixTree({"row": PointKind()}, SpanKind(1))
    ids = np.arange(100_000, dtype=np.int32)
    handle = kept(tree, ids, range(100_000))
    assert tree.match(ids).depth == 100_000
    step = tree.start([])
    for token in range(0, 100_000, 10):  # a branch at every tenth token
        step = step.extend(ids[token : token + 10])
        step.extend(100_000).put_point("row", token, 1)
    assert tree.info().n_nodes == 19_999
    assert handle.covered == 100_000
    assert handle.slots().tolist() == list(range(100_000))
    assert handle.tokens().tolist() == ids.tolist()
    assert tree.match(ids).depth == 100_000
    handle.pin()
    assert tree.evict_span(0) == 0
    handle.unpin()
    assert handle.points("row") == [None] * 100_000
    assert tree.evict_points("row", 5_000) == 5_000
    assert tree.evict_span(1) == 99_999
    del handle, step
    tree.clear()
    assert tree.info().n_nodes == 0
    kept(tree, ids, range(100_000))
    for token in range(0, 100_000, 2):
        tree.start([*range(token % 50), 7]).put_point("row", 1, 1)
    del tree  # nor does letting go of it all
    gc.collect()


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_go_by_use_and_within_their_own_budget():
    gone: list = []
    tree = PrefixTree({"row": PointKind(30, gone.extend), "hidden": PointKind()})
    for n in (1, 2, 3):
        assert tree.start(range(n)).put_point("row", n, 10)
        assert tree.start(range(n)).put_point("hidden", -n, 1000)
    assert tree.get("row", [0]) == 1
    assert tree.start(range(4)).put_point("row", 4, 10)
    assert gone == [2]
    assert tree.start([9]).put_point("row", "big", 25)
    assert gone == [2, 3, 1, 4]
    assert not tree.start([8]).put_point("row", "too big", 31)
    assert tree.info().points == {"row": (1, 25), "hidden": (3, 3000)}
    assert tree.match([8]).depth == 0


def test_a_point_is_replaced_unless_told_otherwise():
    gone: list = []
    tree = PrefixTree({"row": PointKind(10, gone.extend)})
    handle = tree.start([1, 2])
    assert handle.put_point("row", "first", 4)
    assert handle.put_point("row", "second", 10, replace=False)
    assert (handle.point("row"), gone, tree.info().points["row"]) == ("first", [], (1, 4))
    assert handle.put_point("row", "third", 9)
    assert (handle.point("row"), gone, tree.info().points["row"]) == ("third", ["first"], (1, 9))
    assert not handle.put_point("row", "too big", 11)
    assert handle.point("row") == "third"


def test_points_at_many_depths_are_read_at_once():
    tree = PrefixTree({"row": PointKind(), "other": PointKind()})
    handle = tree.start(range(20))
    for depth in range(0, 21, 3):
        handle.put_point("row", depth, 1, depth=depth)
        handle.put_point("other", None, 1, depth=depth)
    tree.start([*range(11), 99])
    expected = [depth if depth % 3 == 0 else None for depth in range(21)]
    assert handle.points("row") == expected[1:]
    assert handle.points("row", 0) == expected
    assert handle.points("row", 5, 13) == expected[5:13]
    assert handle.points("row", 5, 5) == []
    assert tree.match(range(17)).deepest("row") == (15, 15)
    assert tree.match(range(2)).deepest("row") == (0, 0)
    for wrong in ((-1, 2), (5, 4), (0, 22)):
        with pytest.raises(InvalidArgumentError, match="depths"):
            handle.points("row", *wrong)
    for depth in (-1, 21):
        with pytest.raises(InvalidArgumentError, match="depth"):
            handle.point("row", depth)


# --- slots ------------------------------------------------------------------------------------------------------------


def test_slots_not_taken_stay_the_callers():
    tree = PrefixTree(span=SpanKind(1))
    handle = tree.start(range(10))
    assert handle.put_slots(2, [1, 2]).tolist() == [1, 2]  # a hole before them
    assert handle.put_slots(0, range(4)).tolist() == []
    assert handle.put_slots(2, [50, 51, 52, 53, 54]).tolist() == [50, 51]  # some are there already
    assert handle.put_slots(7, [60, 61, 62, 63, 64]).tolist() == [63, 64]  # beyond this place
    assert handle.put_slots(0, range(10)).tolist() == list(range(10))
    assert handle.slots().tolist() == [0, 1, 2, 3, 52, 53, 54, 60, 61, 62]
    with pytest.raises(InvalidArgumentError, match="start"):
        handle.put_slots(-1, [1])


def test_a_branch_shares_the_slots_before_it():
    freed: list[int] = []
    tree = PrefixTree(span=SpanKind(1, on_free=freed.extend))
    kept(tree, [1, 2, 3, 4], [10, 11, 12, 13])
    branch = tree.start([1, 2, 9])
    assert branch.covered == 2
    assert not branch.put_slots(2, [20])
    assert branch.slots().tolist() == [10, 11, 20]
    assert tree.match([1, 2, 3, 4, 5]).slots(1, 3).tolist() == [11, 12]
    assert tree.evict_span(0) == 5
    assert sorted(freed) == [10, 11, 12, 13, 20]


def test_a_full_budget_evicts_others_not_what_it_is_put_after():
    freed: list[int] = []
    tree = PrefixTree(span=SpanKind(8, 8 * 10, freed.extend))
    kept(tree, [1, 2, 3], [1, 2, 3])
    kept(tree, [5, 6, 7, 8], [5, 6, 7, 8])
    assert kept(tree, [1, 2, 3, 4, 5, 6], [11, 12, 13]).covered == 6  # full now
    assert not tree.start(range(1, 9)).put_slots(6, [14, 15])
    assert freed == [7, 8]
    assert tree.start(range(1, 20)).put_slots(8, range(20, 31)).tolist() == list(range(22, 31))
    assert sorted(freed) == [5, 6, 7, 8]
    assert tree.info().span_bytes == 80


def test_pinned_slots_stay_and_go_when_unpinned():
    tree = PrefixTree(span=SpanKind(1, 6))
    pinned = kept(tree, [1, 2, 3], [1, 2, 3])
    pinned.pin()
    pinned.pin()
    assert kept(tree, [1, 2, 7], [7]).covered == 3
    assert tree.start([9, 9, 9, 9]).put_slots(0, [5, 6, 8, 9]).tolist() == [9]
    assert pinned.covered == 3
    assert tree.evict_span(0) == 3
    assert pinned.covered == 3
    pinned.unpin()
    assert tree.evict_span(0) == 0
    fork = pinned.fork()
    del pinned  # takes its pin along
    assert tree.evict_span(0) == 3
    with pytest.raises(InvalidArgumentError, match="no pin"):
        fork.unpin()


@pytest.mark.parametrize("seed", range(5))
def test_ends_of_the_longest_unused_branches_go_first(seed):
    """Against a plain search: of the tokens without a covered one after them, the one unused for longest goes.

    Whole sequences are used, to their ends: a use inside an edge counts for all of the edge.
    """
    rng = random.Random(seed)
    order: list[int] = []
    tree = PrefixTree(span=SpanKind(1, on_free=order.extend))
    last_use: dict[tuple, int] = {}
    slot_of: dict[tuple, int] = {}
    sequences: list[tuple] = [()]

    def use(sequence, tick):
        for n in range(1, len(sequence) + 1):
            last_use[sequence[:n]] = tick

    for tick in range(60):
        if tick % 3 < 2:
            base = rng.choice(sequences)
            sequence = base + tuple(rng.randrange(10**6) for _ in range(rng.randrange(1, 5)))
            sequences.append(sequence)
            handle = tree.start(sequence)
            new = [len(slot_of) + k for k in range(len(sequence) - len(base))]
            for k, slot in enumerate(new):
                slot_of[sequence[: len(base) + k + 1]] = slot
            assert not handle.put_slots(len(base), new)
        else:
            bases = {each[:n] for each in sequences for n in range(len(each))}
            sequence = rng.choice([each for each in sequences if each not in bases])
            assert tree.match(sequence).slots().tolist() == [slot_of[sequence[: n + 1]] for n in range(len(sequence))]
        use(sequence, tick)
    expected: list[int] = []
    left = dict(slot_of)
    while left:
        inner = {place[:-1] for place in left}
        place = min((each for each in left if each not in inner), key=lambda each: last_use[each])
        expected.append(left.pop(place))
    for n_left in range(len(slot_of) - 1, -1, -1):
        assert tree.evict_span(n_left) == 1
    assert order == expected


# --- clearing, callbacks, threads -------------------------------------------------------------------------------------


def test_a_cleared_namespace_is_found_by_nobody_and_takes_nothing():
    freed: list[int] = []
    gone: list = []
    tree = PrefixTree({"row": PointKind(None, gone.extend)}, SpanKind(1, on_free=freed.extend))
    handle = kept(tree, [1, 2, 3], [1, 2, 3], "a")
    handle.put_point("row", "x", 1)
    other = kept(tree, [1, 2, 3], [4, 5, 6], "b")
    handle.pin()
    tree.clear("a")
    assert (gone, freed) == (["x"], [])
    assert tree.match([1, 2, 3], "a").depth == 0
    assert handle.point("row") is None
    assert handle.slots().tolist() == [1, 2, 3]  # pinned: somebody is reading them
    assert not handle.put_point("row", "late", 1)
    assert handle.extend(4).put_slots(3, [9]).tolist() == [9]
    assert tree.start([1, 2], "a").covered == 0
    assert handle.fork().tokens().tolist() == [1, 2, 3]
    handle.unpin()
    assert sorted(freed) == [1, 2, 3]
    tree.clear("never there")
    assert other.covered == 3
    tree.clear()
    assert sorted(freed) == [1, 2, 3, 4, 5, 6]
    del handle, other
    assert tree.info().n_nodes == 0


def test_callbacks_may_use_the_tree():
    def on_evict(values):
        seen.extend((value, tree.info().points["row"][0]) for value in values)
        tree.start([99]).put_slots(0, [1])

    seen: list = []
    tree = PrefixTree({"row": PointKind(1, on_evict)}, SpanKind(1))
    tree.start([1]).put_point("row", "a", 1)
    tree.start([2]).put_point("row", "b", 1)
    assert seen == [("a", 1)]
    assert tree.match([99]).covered == 1


def test_a_handle_may_be_let_go_of_while_the_tree_is_busy():
    """The collector runs finalizers anywhere, also inside the tree's own lock."""
    tree = PrefixTree({"row": PointKind()})
    handle, other = tree.start([1, 2]), tree.start([3])
    with tree._index.lock:
        del handle
        other.release()
    assert tree.info().n_tokens == 0


def test_threads_share_a_tree():
    """Eight threads put, read, pin and evict; whoever reads a slot or a value finds its own tokens' one."""
    pool = list(range(2000))
    lock = threading.Lock()
    owner: dict[int, tuple] = {}
    faults: list = []

    def free(slots):
        with lock:
            for slot in slots:
                del owner[slot]
                pool.append(slot)

    tree = PrefixTree({"row": PointKind(300)}, SpanKind(1, 1500, free))

    def work(seed):
        rng = random.Random(seed)
        try:
            for _ in range(300):
                ids = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 30)))
                handle = tree.start(ids)
                handle.pin()
                covered = handle.covered
                with lock:
                    mine = [pool.pop() for _ in range(len(ids) - covered)] if len(pool) > len(ids) else []
                    owner.update((slot, ids[: covered + k + 1]) for k, slot in enumerate(mine))
                rest = handle.put_slots(covered, mine)
                with lock:
                    for slot in rest:
                        del owner[slot]
                        pool.append(slot)
                for k, slot in enumerate(handle.slots()):
                    if owner[slot] != ids[: k + 1]:
                        faults.append((slot, ids[: k + 1]))
                handle.unpin()
                handle.put_point("row", ids, 1)
                if tree.get("row", ids) not in (ids, None):
                    faults.append(ids)
                if rng.random() < 0.05:
                    tree.evict_span(700)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    tree.evict_span(0)
    assert (len(pool), owner) == (2000, {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_use_its_copy():
    tree = PrefixTree({"row": PointKind(100)})
    stop = threading.Event()

    def busy():
        n = 0
        while not stop.is_set():
            n += 1
            tree.start([n % 50, n % 7]).put_point("row", n, 1)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                tree.start([1, 2, 3]).put_point("row", "x", 1)
                os._exit(0 if tree.get("row", [1, 2, 3]) == "x" else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


# --- interrupts -------------------------------------------------------------------------------------------------------


def grown(tree, sequences):
    """Return handles to places that part, go on and are let go of again, with what their tokens are."""
    out = []
    for number, ids in enumerate(sequences):
        handle = tree.start(ids[:20])
        out.append((handle.extend(ids[20:]), ids))
        tree.start([*ids[: number % 30], 999, number]).extend(7).release()
    return out


def test_an_interrupt_at_any_line_leaves_the_tokens_of_places_right():
    draw = random.Random(1)
    trunk = [draw.randrange(50) for _ in range(30)]
    sequences = [trunk[: draw.randrange(30)] + [draw.randrange(3) for _ in range(30)] for _ in range(12)]

    def interrupt():
        raise KeyboardInterrupt

    total = at_line(0, lambda: grown(PrefixTree(), sequences), lambda: None, "/lmstash/prefix/")
    assert total > 500
    for line in range(1, total, 19):
        tree = PrefixTree()
        held = grown(tree, sequences[:6])
        with contextlib.suppress(KeyboardInterrupt):
            at_line(line, lambda tree=tree: grown(tree, sequences), interrupt, "/lmstash/prefix/")
        held += grown(tree, sequences)
        for handle, ids in held:
            assert handle.tokens().tolist() == ids
            assert tree.match(ids).depth == len(ids)


def test_what_comes_in_the_midst_of_a_change_is_refused_and_waits_for_nobody():
    tree = PrefixTree()
    place = tree.start([1, 2, 3, 4])
    ways = [lambda: tree.start([1]), lambda: tree.match([1]), lambda: tree.match_many([[1]]), place.fork, place.tokens]
    with tree._index.lock:
        for way in [*ways, lambda: place.extend(5)]:
            with pytest.raises(InterruptedChangeError, match="Let it return first"):
                way()
        place.release()  # is left to the next who comes
    assert tree.start([1, 2]).depth == 2
    assert tree.info().n_tokens == 0
