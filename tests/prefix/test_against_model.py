"""The tree against plain dicts: whatever is done to it, it answers as they do, and its inside stays sound.

Points are modelled exactly (an ordered dict is a least-recently-used list). Of slots the model knows which tokens have
them, and learns from `on_free` which went; what it checks is that they may: nothing pinned, ends first, no more than
was needed, none lost and none freed twice.
"""

from __future__ import annotations

import gc
from collections import OrderedDict

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from lmstash.errors import InvalidArgumentError
from lmstash.prefix.node import LEAF, points_of
from lmstash.prefix.tree import PointKind, PrefixTree, SpanKind

N_SLOTS = 40
NAMESPACES = st.sampled_from(["", ("model", "lora")])
KINDS = st.sampled_from(["row", "hidden"])
# Few sequences, so that they meet: short ones that branch, and runs whose edges are long and get split.
TOKENS = st.one_of(
    st.lists(st.integers(0, 1), max_size=3).map(tuple),
    st.builds(lambda n, end: (7,) * n + tuple(end), st.integers(0, 8), st.lists(st.integers(0, 1), max_size=2)),
)


def check_inside(tree: PrefixTree, handles=()) -> None:
    """Look at every node: links, edges, payloads, counters, and who is in which list.

    Roots of cleared namespaces are found through the handles into them.
    """
    index = tree._index
    index.settle()
    n_nodes = n_tokens = n_slots = 0
    bearing, points = set(), set()
    assert LEAF == {}
    assert not any(root.detached or root.parent for root in index.roots.values())
    stack = [*index.roots.values(), *{handle._root for handle in handles if handle._root.detached}]
    while stack:
        node = stack.pop()
        if node.parent is not None:
            n_nodes += 1
            n_tokens += len(node.edge) // 4
            assert len(node.edge) % 4 == 0
            assert node.edge, "an edge without tokens"
            assert node.start == node.parent.end
            assert node.parent.children[bytes(node.edge[:4])] is node
        assert node.refs >= 0
        assert node.locks >= sum(child.locks for child in node.children.values())
        if node.slots is not None:
            bearing.add(node)
            n_slots += len(node.slots) // 4
            assert 0 < len(node.slots) <= len(node.edge)
            above = node.parent
            assert above.parent is None or len(above.slots) == len(above.edge), "slots after a hole"
        assert node.covered_children == sum(child.slots is not None for child in node.children.values())
        for point in points_of(node):
            points.add(point)
            assert point.node is node
            depth = point.key // index.n_kinds
            assert node.start < depth <= node.end or (node.parent is None and depth == 0)
        if not node.children and node.parent is not None and not node.refs:
            assert len(node.slots or b"") == len(node.edge) or any(
                point.key // index.n_kinds == node.end for point in points_of(node)
            ), "tokens that nobody needs"
        stack.extend(node.children.values())
    assert (n_nodes, n_tokens) == (index.n_nodes, index.n_tokens)
    listed = listed_in(index.spans.recency)
    assert index.spans.held == n_slots
    for node in bearing:
        assert node in listed or node.covered_children or node.locks, "slots that can never be evicted"
    for kind in index.points.values():
        mine = {point for point in points if point.key % index.n_kinds == kind.index}
        assert set(listed_in(kind.recency)) == mine
        assert kind.held_bytes == sum(point.n_bytes for point in mine)
        assert kind.count == len(mine)


def listed_in(recency):
    """Return the items of a list from the coldest on, having compared both directions."""
    there, back = [], []
    item = recency.hotter
    while item is not recency:
        there.append(item)
        item = item.hotter
    item = recency.colder
    while item is not recency:
        back.append(item)
        item = item.colder
    assert there == back[::-1]
    return there


class Held:
    """A handle, and what the model knows of it."""

    def __init__(self, handle, namespace, tokens):
        self.handle, self.namespace, self.tokens = handle, namespace, tokens
        self.pins = 0
        self.pinned_depth = 0  # how far the slots of its first pin must stay
        self.cleared = False


class TreeMachine(RuleBasedStateMachine):
    handles = Bundle("handles")

    @initialize(
        row_bytes=st.sampled_from([None, 12, 40]),
        hidden_bytes=st.sampled_from([None, 25]),
        n_slots=st.sampled_from([None, 8, 20, N_SLOTS]),
    )
    def make(self, row_bytes, hidden_bytes, n_slots):
        self.limits = {"row": row_bytes, "hidden": hidden_bytes}
        self.n_slots = n_slots
        self.gone: list = []
        self.freed: list[int] = []
        self.tree = PrefixTree(
            {name: PointKind(limit, self.gone.extend) for name, limit in self.limits.items()},
            SpanKind(8, None if n_slots is None else 8 * n_slots + 3, self.freed.extend),
        )
        self.points: dict[str, OrderedDict] = {"row": OrderedDict(), "hidden": OrderedDict()}
        self.slots: dict[tuple, int] = {}
        self.limbo: set[int] = set()
        self.pool = set(range(N_SLOTS))
        self.live: list[Held] = []
        self.seen: dict = {}
        self.serial = 0

    # --- handles ----------------------------------------------------------------------------------------------------

    @rule(target=handles, tokens=TOKENS, namespace=NAMESPACES)
    def start(self, tokens, namespace):
        self.seen.setdefault(namespace, set()).update(tokens[:n] for n in range(len(tokens) + 1))
        return self.hold(self.tree.start(list(tokens), namespace), namespace, tokens)

    @rule(target=handles, tokens=TOKENS, namespace=NAMESPACES, many=st.booleans())
    def match(self, tokens, namespace, many):
        if many:
            shorter, handle = self.tree.match_many([tokens[:3], tokens], namespace)
            assert shorter.depth == min(3, handle.depth, len(tokens))
        else:
            handle = self.tree.match(tokens, namespace)
        known = {()} | {prefix for space, prefix in self.needed() if space == namespace}
        least = max(n for n in range(len(tokens) + 1) if tokens[:n] in known)
        most = max(n for n in range(len(tokens) + 1) if n == 0 or tokens[:n] in self.seen.get(namespace, ()))
        assert least <= handle.depth <= most
        return self.hold(handle, namespace, tokens[: handle.depth])

    @rule(target=handles, held=handles, more=TOKENS, single=st.integers(0, 2))
    def extend(self, held, more, single):
        handle = held.handle.extend(single) if not more else held.handle.extend(list(more))
        tokens = held.tokens + (more or (single,))
        if not held.cleared:
            self.seen.setdefault(held.namespace, set()).update(tokens[:n] for n in range(len(tokens) + 1))
        return self.hold(handle, held.namespace, tokens, held.cleared)

    @rule(target=handles, held=handles)
    def fork(self, held):
        return self.hold(held.handle.fork(), held.namespace, held.tokens, held.cleared)

    @rule(held=consumes(handles), explicit=st.booleans())
    def let_go(self, held, explicit):
        self.live.remove(held)
        if explicit:
            held.handle.release()
            with pytest.raises(InvalidArgumentError, match="released"):
                held.handle.tokens()
        held.handle = None
        gc.collect(0)
        self.tree.evict_points("row", 10**9)  # evicts nothing: takes back what was let go of, and tells the news
        self.learn()

    def hold(self, handle, namespace, tokens, cleared=False):
        assert handle.depth == len(tokens)
        held = Held(handle, namespace, tokens)
        held.cleared = cleared
        self.live.append(held)
        return held

    @rule(tokens=TOKENS, namespace=NAMESPACES)
    def keep_some(self, tokens, namespace):
        self.keep(tokens, namespace, "row", 5)

    @rule(tokens=TOKENS, namespace=NAMESPACES, kind=KINDS, n_bytes=st.integers(0, 9))
    def keep(self, tokens, namespace, kind, n_bytes):
        """As a cache does: what was computed for one sequence is put, and the handle is let go of."""
        held = self.start(tokens, namespace)
        self.put_slots(held, 0, len(tokens))
        self.put_point(held, kind, n_bytes, True, 0)
        self.live.remove(held)
        held.handle = None

    @rule(kind=KINDS, which=st.integers(0, 99))
    def get_known(self, kind, which):
        places = sorted(self.points[kind], key=str)
        if places:
            namespace, tokens = places[which % len(places)]
            self.get(tokens, namespace, kind)

    # --- points -----------------------------------------------------------------------------------------------------

    @rule(held=handles, kind=KINDS, n_bytes=st.integers(0, 9), replace=st.booleans(), up=st.integers(0, 3))
    def put_point(self, held, kind, n_bytes, replace, up):
        depth = max(0, len(held.tokens) - up)
        self.serial += 1
        kept = held.handle.put_point(kind, self.serial, n_bytes, depth=depth, replace=replace)
        place, model, limit = (held.namespace, held.tokens[:depth]), self.points[kind], self.limits[kind]
        gone: list = []
        if held.cleared:
            assert not kept
        elif place in model and not replace:
            assert kept
            model.move_to_end(place)
        elif limit is not None and n_bytes > limit:
            assert not kept
        else:
            assert kept
            if place in model:
                gone.append(model.pop(place)[0])
            model[place] = self.serial, n_bytes
            while limit is not None and sum(size for _, size in model.values()) > limit:
                gone.append(model.popitem(last=False)[1][0])
        assert self.gone == gone
        self.gone.clear()

    @rule(held=handles, kind=KINDS, up=st.integers(0, 3))
    def read_point(self, held, kind, up):
        depth = max(0, len(held.tokens) - up)
        value = held.handle.point(kind) if not up else held.handle.point(kind, depth)
        assert value == self.expect(held, kind, depth)

    @rule(tokens=TOKENS, namespace=NAMESPACES, kind=KINDS)
    def get(self, tokens, namespace, kind):
        model, place = self.points[kind], (namespace, tokens)
        assert self.tree.get(kind, tokens, namespace) == (model[place][0] if place in model else None)
        if place in model:
            model.move_to_end(place)

    @rule(held=handles, kind=KINDS, start=st.integers(0, 4))
    def read_points(self, held, kind, start):
        start = min(start, len(held.tokens))
        got = held.handle.points(kind, start)
        # Touched from the last one up: so are they here.
        expected = [self.expect(held, kind, depth) for depth in range(len(held.tokens), start - 1, -1)]
        assert got == expected[::-1]

    @rule(held=handles, kind=KINDS)
    def deepest(self, held, kind):
        model = self.points[kind]
        depths = [n for n in range(len(held.tokens) + 1) if (held.namespace, held.tokens[:n]) in model]
        if held.cleared or not depths:
            assert held.handle.deepest(kind) is None
            return
        assert held.handle.deepest(kind) == (depths[-1], model[held.namespace, held.tokens[: depths[-1]]][0])
        model.move_to_end((held.namespace, held.tokens[: depths[-1]]))

    @rule(kind=KINDS, by=st.integers(1, 12))
    def evict_points(self, kind, by):
        model, gone = self.points[kind], []
        to_bytes = sum(size for _, size in model.values()) - by
        while model and sum(size for _, size in model.values()) > to_bytes:
            gone.append(model.popitem(last=False)[1][0])
        assert self.tree.evict_points(kind, to_bytes) == len(gone)
        assert self.gone == gone
        self.gone.clear()

    def expect(self, held, kind, depth):
        model, place = self.points[kind], (held.namespace, held.tokens[:depth])
        if held.cleared or place not in model:
            return None
        model.move_to_end(place)
        return model[place][0]

    # --- slots ------------------------------------------------------------------------------------------------------

    @rule(held=handles, back=st.integers(-2, 4), length=st.integers(0, 9))
    def put_slots(self, held, back, length):
        covered = self.covered(held)
        start = max(0, (covered if covered is not None else len(held.tokens)) - back)
        mine = sorted(self.pool)[:length]
        self.pool -= set(mine)
        before = len(self.slots) + len(self.limbo)
        rest = list(held.handle.put_slots(start, mine))
        self.pool |= set(rest)
        taken = [slot for slot in mine if slot not in rest]
        n_freed = len(self.freed)
        self.learn()
        if covered is None or start > covered:  # a cleared namespace, or a hole
            assert rest == mine
            assert not n_freed
            return
        wanted = max(0, min(len(mine), len(held.tokens) - start) - (covered - start))
        assert taken == mine[covered - start : covered - start + len(taken)]
        assert self.n_slots is None or before - n_freed + len(taken) <= self.n_slots
        if n_freed:  # no more than was needed
            assert before - n_freed + wanted >= self.n_slots
        if len(taken) < wanted:  # only for want of room
            assert before - n_freed + len(taken) == self.n_slots
        for number, slot in enumerate(taken):
            self.slots[held.namespace, held.tokens[: covered + number + 1]] = slot

    @rule(held=handles, start=st.integers(0, 5), stop=st.one_of(st.none(), st.integers(0, 12)))
    def read_slots(self, held, start, stop):
        covered = self.covered(held)
        if covered is None:
            return
        assert held.handle.covered == covered
        depths = range(start, covered if stop is None else min(stop, covered))
        assert list(held.handle.slots(start, stop)) == [
            self.slots[held.namespace, held.tokens[: depth + 1]] for depth in depths
        ]

    @rule(held=handles)
    def pin(self, held):
        covered = self.covered(held)
        held.handle.pin()
        held.pins += 1
        if held.pins == 1:
            held.pinned_depth = covered or 0

    @rule(held=handles)
    def unpin(self, held):
        if not held.pins:
            with pytest.raises(InvalidArgumentError, match="no pin"):
                held.handle.unpin()
            return
        held.handle.unpin()
        held.pins -= 1
        self.learn()

    @rule(by=st.one_of(st.integers(1, 5), st.just(N_SLOTS)))
    def evict_span(self, by):
        before = len(self.slots) + len(self.limbo)
        to_tokens = max(0, before - by)
        n_gone = self.tree.evict_span(to_tokens)
        assert n_gone == len(self.freed)
        self.learn()
        assert before - n_gone >= min(before, to_tokens)
        if not any(held.pins for held in self.live):
            assert before - n_gone == min(before, to_tokens)

    def covered(self, held):
        """Return how far the model knows slots on the way to a handle; None for one into a cleared namespace."""
        if held.cleared:
            return None
        return next(
            (n for n in range(len(held.tokens)) if (held.namespace, held.tokens[: n + 1]) not in self.slots),
            len(held.tokens),
        )

    def learn(self):
        """Take over what `on_free` said, having looked whether it may be."""
        freed, place_of = set(self.freed), {slot: place for place, slot in self.slots.items()}
        assert len(freed) == len(self.freed), "freed twice"
        self.freed.clear()
        pinned = {
            (held.namespace, held.tokens[: n + 1])
            for held in self.live
            if held.pins and not held.cleared
            for n in range(held.pinned_depth)
        }
        for slot in freed:
            assert slot not in self.pool, "freed though free"
            self.pool.add(slot)
            if slot in self.limbo:
                self.limbo.remove(slot)
            else:
                place = place_of[slot]
                assert place not in pinned
                del self.slots[place]
        for namespace, tokens in self.slots:
            assert len(tokens) == 1 or (namespace, tokens[:-1]) in self.slots, "a hole"

    # --- all at once ------------------------------------------------------------------------------------------------

    @rule(namespace=st.one_of(NAMESPACES, st.none()), chance=st.integers(0, 5))
    def clear(self, namespace, chance):
        if chance:
            return
        self.tree.clear(namespace)
        hit = [place for place in self.slots if namespace in (None, place[0])]
        gone = set()
        for model in self.points.values():
            for place in [place for place in model if namespace in (None, place[0])]:
                gone.add(model.pop(place)[0])
        assert set(self.gone) == gone
        assert len(self.gone) == len(gone)
        self.gone.clear()
        freed = set(self.freed)
        self.learn()
        pinned = [held for held in self.live if held.pins and namespace in (None, held.namespace) and not held.cleared]
        for place in hit:
            if place in self.slots:
                assert pinned, "not freed though nothing is pinned"
                self.limbo.add(self.slots.pop(place))
        assert freed <= self.pool
        for held in self.live:
            if namespace in (None, held.namespace):
                held.cleared = True
        for space in list(self.seen):
            if namespace in (None, space):
                del self.seen[space]

    def needed(self):
        """Return every prefix that payloads or live handles need."""
        ends = [place for model in self.points.values() for place in model]
        ends += list(self.slots)
        ends += [(held.namespace, held.tokens) for held in self.live if not held.cleared]
        return {(namespace, tokens[:n]) for namespace, tokens in ends for n in range(len(tokens) + 1)}

    @invariant()
    def sound(self):
        if not hasattr(self, "tree"):
            return
        check_inside(self.tree, [held.handle for held in self.live])
        info = self.tree.info()
        assert info.span_tokens == len(self.slots) + len(self.limbo)
        assert info.span_bytes == 8 * info.span_tokens
        assert len(self.pool) + info.span_tokens == N_SLOTS
        for held in self.live:
            assert tuple(held.handle.tokens()) == held.tokens
        if not any(held.cleared for held in self.live):
            assert info.n_tokens >= len({each for each in self.needed() if each[1]})

    def teardown(self):
        if not hasattr(self, "tree"):
            return
        self.live.clear()
        for name in list(self.names_to_values):
            held = self.names_to_values[name]
            if isinstance(held, Held):
                held.handle = None
        gc.collect(0)
        check_inside(self.tree)
        self.tree.evict_points("row", 10**9)
        self.learn()
        assert not self.limbo, "pinned slots outlived their pins"
        assert self.tree.info().n_tokens == len({each for each in self.needed() if each[1]})
        self.tree.evict_points("row", -1)  # a value of no bytes would stay at 0
        self.tree.evict_points("hidden", -1)
        self.tree.evict_span(0)
        self.learn()
        info = self.tree.info()
        assert (info.n_nodes, info.n_tokens, self.tree._index.roots) == (0, 0, {})
        assert len(self.pool) == N_SLOTS


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
