"""The prefix index: what finding a prefix costs, in RAM and in a store, what making room costs, and how small it is.

Beside it in the same process: SGLang 0.5.23's Python radix tree (its released files), a trie with a node for each token
(the design of genlm-backend's), and a dict keyed by the whole tuple, which is the floor of what asking with a list can
cost. Figures are medians of rounds that take turns; each round makes many calls.
"""

from __future__ import annotations

import gc
import random
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import peers

if __name__ == "__main__":
    peers.run_inside("sglang")

import numpy as np
import sglang_tree
from measuring import Report, Scratch, Timing, arguments, interleave, ratio

from lmstash.identity.chain import chain_ids, chain_key, chain_root, tail_key
from lmstash.identity.tokens import token_bytes
from lmstash.prefix.kept import find_kept, tail_meta
from lmstash.prefix.tree import Handle, PointKind, PrefixTree, SpanKind
from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore

VOCABULARY = 49_152
GOAL_LOOKUP_US, GOAL_LONG_RATIO, GOAL_CHAIN_MS, GOAL_EVICT_S, GOAL_TOKEN_BYTES = 5.0, 1.0, 0.2, 0.05, 16.0
WHAT = {"kind": "kv", "site": "block", "layout": "bench", "dtype": "float32"}


def per_call(contenders: Mapping[str, Callable[[], object]], calls: int, rounds: int) -> dict[str, Timing]:
    """Time `calls` calls of each in every round."""

    def timed(call: Callable[[], object]) -> Callable[[Timing], None]:
        def run(timing: Timing) -> None:
            with timing.measure():
                for _ in range(calls):
                    call()

        return run

    return interleave({name: timed(call) for name, call in contenders.items()}, rounds)


# --- peers ------------------------------------------------------------------------------------------------------------


class TokenNode:
    """One token of a trie of dicts."""

    def __init__(self) -> None:
        self.children: dict[int, TokenNode] = {}
        self.logprobs: Any = None
        self.past_key_values: Any = None


def trie_insert(node: TokenNode, ids: list[int]) -> TokenNode:
    for token in ids:
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = TokenNode()
        node = child
    return node


def trie_find(node: TokenNode, ids: list[int]) -> TokenNode:
    for token in ids:
        if token not in node.children:
            break
        node = node.children[token]
    return node


class FreeSlots:
    """What SGLang's tree gives slots back to."""

    device = "cpu"

    def free_segment(self, slots: Any, start_pos: int) -> None:
        pass


class Sglang:
    """Its tree, asked with what a caller has."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.tree = module.RadixCache.create_simulated(mock_allocator=FreeSlots())

    def key(self, ids: Any) -> Any:
        tokens: array[int] = array("q")
        if isinstance(ids, np.ndarray):
            tokens.frombytes(ids.astype(np.int64).tobytes())
        else:
            tokens.fromlist(ids)
        return self.module.RadixKey(tokens)

    def insert(self, ids: Any) -> None:
        self.tree.insert(self.module.InsertParams(key=self.key(ids)))

    def match(self, ids: Any) -> int:
        return self.match_key(self.key(ids))

    def match_key(self, key: Any) -> int:
        return self.tree.match_prefix(self.module.MatchPrefixParams(key=key)).device_prefix_len

    def evict(self, n_tokens: int) -> int:
        return self.tree.evict(self.module.EvictParams(num_tokens=n_tokens)).num_tokens_evicted


# --- particles --------------------------------------------------------------------------------------------------------


def particle_contexts(seed: int = 0) -> list[list[list[int]]]:
    """Return the contexts of 32 particles at each of 30 steps after 200 tokens, resampled every 5 steps."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    weights /= weights.sum()
    prompt = [rng.randrange(VOCABULARY) for _ in range(200)]
    particles, steps = [list(prompt) for _ in range(32)], []
    for step in range(30):
        steps.append([list(each) for each in particles])
        tokens = draw.choice(VOCABULARY, 32, p=weights).tolist()
        particles = [[*each, token] for each, token in zip(particles, tokens, strict=True)]
        if step and step % 5 == 0:
            chosen = rng.choices(range(32), [rng.random() ** 3 for _ in range(32)], k=32)
            particles = [list(particles[each]) for each in chosen]
    return steps


def look_up(report: Report, rounds: int, calls: int) -> None:
    steps = particle_contexts()
    tree = PrefixTree({"row": PointKind()}, SpanKind(4))
    theirs, trie, whole = Sglang(sglang_tree.load()), TokenNode(), {}
    for contexts in steps:
        for ids in contexts:
            tree.start(ids).put_point("row", ids, 1)
            theirs.insert(ids)
            trie_insert(trie, ids).logprobs = ids
            whole[tuple(ids)] = ids
    asked = steps[14]
    arrays = [np.array(ids, np.int32) for ids in asked]
    assert all(tree.get("row", ids) == ids for ids in asked)
    assert all(theirs.match(ids) == len(ids) == 214 for ids in asked)
    handles = [tree.match(ids) for ids in asked]

    def each(call: Callable[[Any], object], rows: list[Any]) -> Callable[[], object]:
        def run() -> None:
            for ids in rows:
                call(ids)

        return run

    keys = [theirs.key(ids) for ids in asked]
    contenders: dict[str, Callable[[], object]] = {
        "lmstash get, from a list": each(lambda ids: tree.get("row", ids), asked),
        "lmstash get, from int32": each(lambda ids: tree.get("row", ids), arrays),
        "lmstash match to a handle, from a list": each(tree.match, asked),
        "lmstash match to a handle, from int32": each(tree.match, arrays),
        "lmstash match_many of 32, from lists": lambda: tree.match_many(asked),
        "lmstash match_many of 32, from int32": lambda: tree.match_many(arrays),
        "lmstash handle.point (no walk)": each(lambda handle: handle.point("row"), handles),
        "lmstash handle.extend (known token)": each(lambda handle: handle.extend(0), handles),
        "SGLang match_prefix, key at hand": each(theirs.match_key, keys),
        "SGLang match_prefix, from a list": each(theirs.match, asked),
        "SGLang match_prefix, from int32": each(theirs.match, arrays),
        "trie with a node for each token": each(lambda ids: trie_find(trie, ids).logprobs, asked),
        "dict by the whole tuple (floor)": each(lambda ids: whole.get(tuple(ids)), asked),
    }
    timings = per_call(contenders, calls, rounds)
    us = {name: [seconds / calls / 32 * 1e6 for seconds in timing.wall] for name, timing in timings.items()}
    info = tree.info()
    report.table(
        f"One of 32 contexts of 214 tokens ({info.n_nodes} nodes, {info.points['row'][0]} answers)",
        ["way", "us", "fastest round"],
        [[name, median(each), min(each)] for name, each in us.items()],
    )
    for name in list(contenders)[:4]:
        report.goal(f"214 tokens, {name}", median(us[name]), GOAL_LOOKUP_US, unit=" us")


def long_prompt(report: Report, rounds: int, n_tokens: int) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, n_tokens, np.int32)
    other = np.array(ids)
    other[-1] ^= 1
    rows = []
    for shape, cuts in (("one edge", []), ("256 edges", np.linspace(0, n_tokens, 257)[1:-1].astype(int).tolist())):
        tree, theirs = PrefixTree(span=SpanKind(4)), Sglang(sglang_tree.load())
        kept = [tree.start(ids)] + [tree.start(np.append(ids[:cut], VOCABULARY)) for cut in cuts]
        theirs.insert(ids)
        for cut in cuts:
            theirs.insert(np.append(ids[:cut], np.int32(VOCABULARY)))
        assert tree.match(ids).depth == theirs.match(ids) == n_tokens
        assert tree.match(other).depth == theirs.match(other) == n_tokens - 1
        key = theirs.key(ids)
        timings = per_call(
            {
                "ours": lambda tree=tree: tree.match(ids),
                "theirs": lambda theirs=theirs: theirs.match(ids),
                "theirs, key at hand": lambda theirs=theirs, key=key: theirs.match_key(key),
                "parted at the last token": lambda tree=tree: tree.match(other),
                "theirs, parted": lambda theirs=theirs: theirs.match(other),
            },
            20,
            rounds,
        )
        us = {name: timing.seconds / 20 * 1e6 for name, timing in timings.items()}
        rows += [[shape, name, each] for name, each in us.items()]
        for name in ("theirs", "theirs, key at hand"):
            report.goal(
                f"{n_tokens:,} tokens, {shape}: lmstash from int32 / SGLang's {name.removeprefix('theirs, ')}",
                ratio(timings["ours"].wall, timings[name].wall),
                GOAL_LONG_RATIO,
            )
        del kept
    copy = np.array(ids)
    floor = per_call({"compare": lambda: (copy == ids).all()}, 20, rounds)["compare"].seconds / 20 * 1e6
    rows.append(["", "numpy: (copy == ids).all()", floor])
    report.table(f"Match {n_tokens:,} tokens of an int32 array", ["tree", "way", "us"], rows)


def chain(report: Report, rounds: int) -> None:
    import hashlib

    ids = np.random.default_rng(0).integers(0, VOCABULARY, 8192, np.int32)
    listed, root, block = ids.tolist(), chain_root(b"m" * 32), bytes(310)
    timings = per_call(
        {
            "from int32": lambda: chain_ids(root, ids),
            "from a list": lambda: chain_ids(root, listed),
            "128 bare SHA-256 of as many bytes": lambda: [hashlib.sha256(block).digest() for _ in range(128)],
        },
        50,
        rounds,
    )
    ms = {name: timing.seconds / 50 * 1e3 for name, timing in timings.items()}
    report.table("Block ids of 8,192 tokens", ["way", "ms"], [[name, each] for name, each in ms.items()])
    for name in ("from int32", "from a list"):
        report.goal(f"block ids of 8,192 tokens {name}", ms[name], GOAL_CHAIN_MS, unit=" ms")


# --- room -------------------------------------------------------------------------------------------------------------


def one_token_nodes(n_nodes: int) -> list[list[int]]:
    """Return sequences, parents first, of a tree whose nodes have 10 children of one token each."""
    rng, out, level = random.Random(0), [], [[]]
    while len(out) < n_nodes:
        following = []
        for base in level:
            following += [[*base, token] for token in rng.sample(range(VOCABULARY), 10)]
        out += following
        level = following
    return out[:n_nodes]


def conversations(n_tokens: int, mean: int) -> list[list[int]]:
    """Return sequences, each an earlier one with about `mean` more tokens, until there are `n_tokens`."""
    rng, out, total = random.Random(0), [[]], 0
    while total < n_tokens:
        new = [rng.randrange(VOCABULARY) for _ in range(min(n_tokens - total, rng.randrange(mean // 2, mean * 3 // 2)))]
        out.append(rng.choice(out[-200:]) + new)
        total += len(new)
    return out[1:]


def fill(tree: PrefixTree, sequences: list[list[int]], *, points: bool, slots: bool) -> None:
    for ids in sequences:
        handle = tree.start(ids)
        if slots:
            covered = handle.covered
            handle.put_slots(covered, range(covered, handle.depth))
        if points:
            handle.put_point("row", None, 1)


def make_room(report: Report, rounds: int, n_nodes: int) -> None:
    rows, evict = [], {}
    shapes = {
        f"{n_nodes:,} nodes of one token": one_token_nodes(n_nodes),
        "conversations of 100,000 tokens": conversations(100_000, 23),
    }
    module = sglang_tree.load()
    for shape, sequences in shapes.items():
        timings: dict[str, Timing] = {name: Timing() for name in ("slots", "points", "SGLang")}
        for turn in range(rounds):
            for name in timings:
                if name == "SGLang":
                    if turn:
                        continue  # building its tree takes long
                    theirs = Sglang(module)
                    for ids in sequences:
                        theirs.insert(ids)
                    n_half = theirs.tree.evictable_size() // 2
                    with timings[name].measure():
                        assert theirs.evict(n_half) >= n_half
                    del theirs
                    continue
                tree = PrefixTree({"row": PointKind()}, SpanKind(4))
                fill(tree, sequences, points=name == "points", slots=name == "slots")
                info = tree.info()
                with timings[name].measure():
                    if name == "slots":
                        n_gone = tree.evict_span(info.span_tokens // 2)
                    else:
                        n_gone = tree.evict_points("row", info.points["row"][1] // 2)
                rows_of = evict.setdefault((shape, name), [info.n_nodes, info.n_tokens, n_gone])
                assert rows_of[2] == n_gone
                del tree
                gc.collect()
        for name, timing in timings.items():
            nodes, tokens, gone = evict.get((shape, name), ["", "", ""])
            rows.append([shape, name, nodes, tokens, gone, timing.seconds, min(timing.wall)])
            if name != "SGLang":
                report.goal(f"evict half: {shape}, {name}", timing.seconds, GOAL_EVICT_S, unit=" s")
    report.table("Evict half", ["tree", "payload", "nodes", "tokens", "evicted", "s", "fastest round"], rows)


def traced(build: Callable[[], Any]) -> tuple[Any, int]:
    """Return what `build` returns, and the bytes that it left allocated."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    out = build()
    gc.collect()
    n_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return out, n_bytes


def memory(report: Report, n_nodes: int) -> None:
    """The structure alone is what is left when only handles hold it, less the handles."""
    rows = []
    for shape, sequences in (
        ("conversations", conversations(100_000, 23)),
        ("one token a node", one_token_nodes(n_nodes)),
    ):
        for ids in sequences:
            token_bytes(ids)  # fills caches that are not the tree's

        def build(points: bool, slots: bool, sequences: list[list[int]] = sequences) -> Any:
            tree = PrefixTree({"row": PointKind()}, SpanKind(4))
            if points or slots:
                fill(tree, sequences, points=points, slots=slots)
                return tree, []
            return tree, [tree.start(ids) for ids in sequences]

        for what, points, slots in (
            ("structure alone", False, False),
            ("and a point for each sequence", True, False),
            ("and a slot for each token", False, True),
        ):
            (tree, held), n_bytes = traced(lambda build=build, points=points, slots=slots: build(points, slots))
            n_bytes -= sys.getsizeof(held) + sum(sys.getsizeof(each) + sys.getsizeof(each.depth) for each in held)
            info = tree.info()
            each = n_bytes / info.n_tokens
            rows.append([f"{shape}: {what}", info.n_nodes, info.n_tokens, each, n_bytes / info.n_nodes])
            if shape == "conversations" and held:
                report.goal(f"structure of {info.n_nodes:,} nodes", each, GOAL_TOKEN_BYTES, unit=" bytes a token")
            del tree, held

        def build_trie(sequences: list[list[int]] = sequences) -> TokenNode:
            trie = TokenNode()
            for ids in sequences:
                trie_insert(trie, ids)
            return trie

        n_bytes = traced(build_trie)[1]
        n_tokens = info.n_tokens
        rows.append([f"{shape}: trie with a node for each token", n_tokens, n_tokens, *[n_bytes / n_tokens] * 2])
    report.table("Memory (tracemalloc)", ["tree", "nodes", "tokens", "bytes a token", "bytes a node"], rows)


def long_sequences(report: Report, n_tokens: int) -> None:
    """One sequence, grown in one go and token by token, branched, read, evicted and cleared: nothing recurses."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, n_tokens, np.int32)
    tree, rows = PrefixTree({"row": PointKind()}, SpanKind(4)), []

    def timed(what: str, act: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        out = act()
        rows.append([what, (time.perf_counter() - started) * 1e3])
        return out

    handle = timed("start", lambda: tree.start(ids))
    timed("put a slot for each token", lambda: handle.put_slots(0, array("I", range(n_tokens))))
    assert timed("match", lambda: tree.match(ids)).depth == n_tokens
    assert len(timed("read all slots", handle.slots)) == n_tokens
    step = tree.start([VOCABULARY])

    def grow() -> Handle:
        last = step
        for token in ids.tolist():
            last = last.extend(token)
        return last

    last = timed("extend by one token, as often", grow)
    assert last.depth == n_tokens + 1
    branches = timed(
        "1,000 branches",
        lambda: [tree.start(np.append(ids[:cut], VOCABULARY)) for cut in range(0, n_tokens, n_tokens // 1000)],
    )
    timed("pin and unpin below them", lambda: (handle.pin(), handle.unpin()))
    timed("evict everything", lambda: tree.evict_span(0))
    timed("clear", tree.clear)
    del branches
    report.table(f"A sequence of {n_tokens:,} tokens", ["what", "ms"], rows)


# --- the store --------------------------------------------------------------------------------------------------------


def kept(report: Report, scratch: Scratch, rounds: int, n_tokens: int) -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, n_tokens + 40, np.int32)
    root = chain_root(b"m" * 32)
    store = DiskStore(scratch.fresh("kept"))
    keys = [chain_key(each, **WHAT) for each in chain_ids(root, ids)]
    store.put_many([Write(key, bytes(4096), "kv/bench", n_tokens=64) for key in keys])
    rest = ids[n_tokens:]
    key = tail_key(chain_ids(root, ids)[-1], int(rest[0]), **WHAT)
    store.put(key, bytes(4096), namespace="kv/bench", n_tokens=len(rest), meta=tail_meta(rest))
    store.flush()
    halved = np.array(ids)
    halved[n_tokens // 2 :] += 1
    cases = {"all of it": (ids, n_tokens + 40), "half of it": (halved, n_tokens // 2), "nothing": (ids + 1, 0)}
    for asked, n_kept in cases.values():
        assert find_kept(store, root, asked, **WHAT).n_tokens == n_kept
    timings = per_call(
        {name: lambda asked=asked: find_kept(store, root, asked, **WHAT) for name, (asked, _) in cases.items()},
        3,
        rounds,
    )
    hashes = per_call({"hash": lambda: chain_ids(root, ids)}, 3, rounds)["hash"].seconds / 3 * 1e3
    store.close()
    rows = [[f"{name} is kept", timing.seconds / 3 * 1e3] for name, timing in timings.items()]
    report.table(
        f"How far a folder keeps {n_tokens:,} tokens, and a tail",
        ["case", "ms"],
        [*rows, ["its block ids alone", hashes]],
    )


def main() -> None:
    args = arguments(__doc__)
    quick = args.quick
    rounds = args.rounds or (3 if quick else 9)
    report = Report("prefix", quick=quick)
    look_up(report, rounds, 10 if quick else 60)
    long_prompt(report, rounds, 131_072)
    chain(report, rounds)
    make_room(report, 2 if quick else 3, 10_000 if quick else 100_000)
    memory(report, 10_000 if quick else 100_000)
    long_sequences(report, 10_000 if quick else 100_000)
    with Scratch(args.dir or Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as scratch:
        kept(report, scratch, rounds, 131_072)
    report.finish()


if __name__ == "__main__":
    main()
