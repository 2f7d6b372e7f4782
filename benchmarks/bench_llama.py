"""What states of llama.cpp cost and save: lmstash beside llama-cpp-python's own caches, on SmolLM2-135M Q4_1.

Everything runs on one thread, greedily, in the same process or in pairs of processes, in an order that turns.

Look-ups: 10, 100 and 1,000 sequences of 1,000 tokens, of which 500 are the same for all. Values are tiny: what is
measured is finding. `again` asks for keys that were asked for before, `first` for each key once, by a cache object that
was just made over what is kept; `nothing` for keys that share no token. llama-cpp-python's disk cache deletes what it
reads, so each of its look-ups is of an entry that is put back outside the clock.

Second completions: a prompt of 1,000 shared tokens and a question, after an unrelated prompt was evaluated. The floor
is the same with the shared tokens still in the context. 8 tokens are generated: the fewer, the more a cache costs.

Nothing to reuse: prompts that share no token with what is kept, and prompts of chats, which share their template's
first tokens, against no cache.
"""

from __future__ import annotations

import contextlib
import gc
import io
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from llama_work import NEW, TOUCH_BYTES, is_ours, needs_llama
from measuring import (
    Report,
    Scratch,
    Timing,
    arguments,
    interleave,
    ratio,
)

PARTS = ("lookups", "second", "nothing")
GOAL_LOOKUP_MS, GOAL_FLAT = 0.1, 1.5
GOAL_RAM, GOAL_DISK, GOAL_THEIRS = 1.15, 1.3, 1.0
GOAL_ADDED = 1.03


def caches(scratch: Scratch) -> dict[str, Any]:
    """Return each contender's cache, empty, by name; `ours` of them are for our `Llama`."""
    import llama_cpp

    from lmstash.adapters.llama_cpp import LlamaDiskCache, LlamaRAMCache

    return {
        "lmstash, RAM": LlamaRAMCache(),
        "lmstash, disk": LlamaDiskCache(str(scratch.fresh("ours"))),
        "llama-cpp-python, RAM": llama_cpp.LlamaRAMCache(),
        "llama-cpp-python, disk": llama_cpp.LlamaDiskCache(str(scratch.fresh("theirs"))),
    }


def close(models: dict[str, Any], held: dict[str, Any]) -> None:
    for llm in models.values():
        llm.close()
    for name, cache in held.items():
        if is_ours(name):
            cache.store.close()


# --- look-ups -----------------------------------------------------------------------------------------------------


def per_call(call: Callable[[Any], Any], keys: Sequence[Any], after: Callable[[Any], Any] | None = None) -> list[float]:
    """Return milliseconds of processor time of each call."""
    taken = []
    gc.collect()
    gc.disable()
    for key in keys:
        started = time.thread_time_ns()
        with contextlib.suppress(KeyError):
            call(key)
        taken.append((time.thread_time_ns() - started) / 1e6)
        if after is not None:
            after(key)
    gc.enable()
    return taken


def lookups(report: Report, scratch: Scratch, rounds: int, *, quick: bool) -> None:
    import llama_cpp
    import numpy as np
    from llama_cpp.llama import LlamaState as TheirState
    from llama_work import PREFIX, load, small_state

    from lmstash.adapters.llama_cpp import LlamaDiskCache, LlamaRAMCache

    llm = load("ours")
    draw = random.Random(0)
    shared = [draw.randrange(100, 40_000) for _ in range(PREFIX // 2)]
    sizes = (10, 100) if quick else (10, 100, 1000)
    keys = [(*shared, *(draw.randrange(100, 40_000) for _ in range(PREFIX // 2))) for _ in range(sizes[-1])]
    strangers = [tuple(draw.randrange(41_000, 49_000) for _ in range(PREFIX)) for _ in range(30)]
    tiny = small_state(8, 0)
    rows, found = [], {}
    for size in sizes:
        folder = str(scratch.fresh("lookups"))
        ours = {"lmstash, RAM": LlamaRAMCache(), "lmstash, disk": LlamaDiskCache(folder)}
        theirs = {
            "llama-cpp-python, RAM": llama_cpp.LlamaRAMCache(),
            "llama-cpp-python, disk": llama_cpp.LlamaDiskCache(str(scratch.fresh("lookups-theirs"))),
        }
        asked = draw.sample(keys[:size], min(size, 10 if quick else 30))
        for name, cache in ours.items():
            states = cache.states_of(llm)
            for number, key in enumerate(keys[:size]):
                states.put(list(key), small_state(PREFIX, number))
            if name.endswith("disk"):
                cache.store.close()
                cache = LlamaDiskCache(folder)
            else:
                cache._states.clear()  # what was remembered while putting
            llm.set_cache(cache)
            first = per_call(llm.cache.__getitem__, [list(key) for key in asked])
            again = [each for _ in range(rounds) for each in per_call(llm.cache.__getitem__, [list(k) for k in asked])]
            nothing = per_call(llm.cache.__getitem__, [list(key) for key in strangers])
            found[name, size] = [statistics.median(each) for each in (again, first, nothing)]
            llm.set_cache(None)
            cache.store.close()
        for name, cache in theirs.items():
            values = {
                key: TheirState(np.array(key, np.intc), np.zeros((1, 1), np.single), PREFIX, tiny, len(tiny), 0)
                for key in keys[:size]
            }
            with contextlib.redirect_stderr(io.StringIO()):
                for key, value in values.items():
                    cache[key] = value

                def put_back(key: Any, cache: Any = cache, values: Any = values) -> None:
                    cache[key] = values[key]

                after = put_back if name.endswith("disk") else None
                again = per_call(cache.__getitem__, asked, after)
                nothing = per_call(cache.__getitem__, strangers)
            found[name, size] = [statistics.median(again), "", statistics.median(nothing)]
        rows += [[f"{name}, {size:,}", *found[name, size]] for name in (*ours, *theirs)]
    columns = ["cache, entries", "again, CPU ms", "first, CPU ms", "nothing, CPU ms"]
    report.table(f"One look-up among sequences of {PREFIX:,} tokens, median", columns, rows)
    least, most = sizes[0], sizes[-1]
    for name in ("lmstash, RAM", "lmstash, disk"):
        for place, what in enumerate(("again", "first", "nothing")):
            report.goal(
                f"look-up, {name}, {most:,} entries, {what}", found[name, most][place], GOAL_LOOKUP_MS, unit=" ms"
            )
        for place, what in enumerate(("again", "first")):
            grown = found[name, most][place] / found[name, least][place]
            report.goal(f"the same against {least} entries, {what}", grown, GOAL_FLAT, unit="x")
    llm.close()


# --- a shared prefix ----------------------------------------------------------------------------------------------


def second(report: Report, scratch: Scratch, rounds: int, *, flash: bool) -> None:
    from llama_work import PREFIX, AttachedSplit, Words, load, say, split

    import lmstash
    from lmstash.adapters.llama_cpp import attach
    from lmstash.store.memory import MemoryStore

    # The floor has an object of its own: what it holds from the round before is the shared prefix and another question.
    names = ("ours", "theirs", "theirs, live", "ours, attach RAM", "ours, attach disk")
    models = {kind: load(kind.split(",")[0], flash_attn=flash) for kind in names}
    words = Words(models["theirs"])
    system, turn = words.system(), 0
    texts: dict[str, list[str]] = {}
    parts: dict[str, list[dict[str, float]]] = {}
    working: dict[str, int] = {}
    held = caches(scratch)
    stash = lmstash.open(scratch.fresh("attached"), trust_env=False)

    def timed(name: str, llm: Any, timing: Timing) -> None:
        with timing.measure(touch_bytes=TOUCH_BYTES):
            text = say(llm, system + words.question(100 + turn), NEW)
        texts.setdefault(name, []).append(text)

    def live(timing: Timing) -> None:
        timed("live", models["theirs, live"], timing)

    def cached(name: str) -> Callable[[Timing], None]:
        llm = models["ours" if is_ours(name) else "theirs"]

        def run(timing: Timing) -> None:
            say(llm, words.unrelated(turn, 24), 1)
            with split(llm, held[name]) as spent:
                timed(name, llm, timing)
            parts.setdefault(name, []).append(spent.seconds)

        return run

    def attached(name: str, attachment: Any) -> Callable[[Timing], None]:
        llm = models[f"ours, {name}"]

        spent = AttachedSplit(attachment)

        def run(timing: Timing) -> None:
            with attachment.paused():
                say(llm, words.unrelated(turn, 24), 1)
            spent.seconds = {}
            timed(name, llm, timing)
            parts.setdefault(name, []).append(spent.seconds)
            attachment.flush()
            working[name] = attachment.working_bytes

        return run

    fresh = Timing()
    timed("no cache", models["theirs"], fresh)
    say(models["ours"], system + words.question(100), NEW)  # the same batches as there
    models["theirs, live"].load_state(models["theirs"].save_state())
    for name in names[3:]:
        models[name].load_state(models["ours"].save_state())
    for name, cache in held.items():  # the first completion of each goes on from what was just computed
        llm = models["ours" if is_ours(name) else "theirs"]
        llm.set_cache(cache)
        say(llm, system + words.question(999), NEW)
        llm.set_cache(None)
    say(models["theirs, live"], system + words.question(999), NEW)
    contenders: dict[str, Callable[[Timing], None]] = {"live": live} | {name: cached(name) for name in held}
    for name, where in (("attach RAM", MemoryStore()), ("attach disk", stash)):
        llm = models[f"ours, {name}"]
        attachment = attach(llm, where)
        say(llm, system + words.question(999), NEW)
        contenders[name] = attached(name, attachment)

    def counted(way: Callable[[Timing], None]) -> Callable[[Timing], None]:
        def run(timing: Timing) -> None:
            nonlocal turn
            turn = len(timing.wall)
            way(timing)

        return run

    timings = interleave({name: counted(way) for name, way in contenders.items()}, rounds)
    floor = timings["live"]
    rows = []
    for name, each in {**timings, "no cache": fresh}.items():
        if name == "no cache":
            ratios, same = [each.seconds / floor.seconds, min(each.wall) / min(floor.wall)], ""
        else:
            ratios = [ratio(each.wall, floor.wall), min(each.wall) / min(floor.wall)]
            same = f"{sum(a == b for a, b in zip(texts[name], texts['live'], strict=True))} of {rounds}"
        where = [
            1000 * statistics.median(one.get(what, 0.0) for one in parts[name]) if name in parts else ""
            for what in ("look-up", "load_state", "save_state", "store")
        ]
        rows.append([name, 1000 * each.seconds, 1000 * min(each.wall), 1000 * each.cpu_seconds, *ratios, *where, same])
    columns = ["cache", "median, ms", "least, ms", "CPU, ms", "x live, median of rounds", "x live, least"]
    columns += ["look-up, ms", "load_state", "save_state", "store", "text as live"]
    on = f"flash attention {'on' if flash else 'off'}"
    report.table(f"{PREFIX:,} shared tokens and a question after an unrelated prompt, {on}", columns, rows)
    report.note(f"an attachment keeps {max(working.values()) / 1e6:.1f} MB to copy states in")
    for tier, limit in (("RAM", GOAL_RAM), ("disk", GOAL_DISK)):
        against = ratio(timings[f"attach {tier}"].wall, floor.wall)
        report.goal(f"attach, {tier}, against live KV, {on}", against, limit, unit="x")
        spent = statistics.median(sum(each.values()) for each in parts[f"attach {tier}"])
        report.goal("the same by what is spent in the cache", 1 + spent / floor.seconds, limit, unit="x")
        against = ratio(timings[f"lmstash, {tier}"].wall, timings[f"llama-cpp-python, {tier}"].wall)
        report.goal(f"drop-in, {tier}, against theirs, {on}", against, GOAL_THEIRS, unit="x")
    stash.close()
    close(models, held)


# --- nothing to reuse ---------------------------------------------------------------------------------------------


def nothing(report: Report, scratch: Scratch, rounds: int, n_tokens: int, *, chat: bool) -> None:
    from llama_work import Words, forget, load, say, split

    models = {kind: load(kind) for kind in ("ours", "theirs")}
    words = Words(models["theirs"])
    held = caches(scratch)
    inside: dict[str, list[float]] = {}
    turn, warming = 0, Timing()

    def run(name: str) -> Callable[[Timing], None]:
        llm = models["ours" if is_ours(name) else "theirs"]

        def complete(timing: Timing) -> None:
            nonlocal turn
            turn = len(timing.wall)
            ids = words.unrelated(100 if timing is warming else 101 + turn, n_tokens, chat=chat)
            forget(llm)
            if name not in held:
                with timing.measure(touch_bytes=TOUCH_BYTES):
                    say(llm, ids, NEW)
                return
            with split(llm, held[name]) as spent, timing.measure(touch_bytes=TOUCH_BYTES):
                say(llm, ids, NEW)
            inside.setdefault(name, []).append(sum(spent.seconds.values()))

        return complete

    for name in ("no cache", *held):  # something is kept, and code is loaded
        run(name)(warming)
    inside.clear()
    timings = interleave({name: run(name) for name in ("no cache", *held)}, rounds)
    plain = timings["no cache"]
    rows = []
    for name, each in timings.items():
        spent = statistics.median(inside[name]) if name in inside else 0.0
        rows.append(
            [
                name,
                1000 * each.seconds,
                1000 * each.cpu_seconds,
                ratio(each.wall, plain.wall),
                ratio(each.cpu, plain.cpu),
                1000 * spent,
                1 + spent / plain.seconds,
            ]
        )
    shares = "but the chat template's head" if chat else "at all"
    columns = ["cache", "median, ms", "CPU, ms", "ratio, wall", "ratio, CPU", "inside the cache, ms", "ratio by that"]
    report.table(f"Nothing to reuse {shares}: {n_tokens} tokens and {NEW} new ones", columns, rows)
    for tier in ("RAM", "disk"):
        name = f"lmstash, {tier}"
        what = f"nothing to reuse{', chat' if chat else ''}, {tier}"
        report.goal(f"{what}: wall, median of rounds", ratio(timings[name].wall, plain.wall), GOAL_ADDED, unit="x")
        share = 1 + statistics.median(inside[name]) / plain.seconds
        report.goal("the same by what is spent in the cache", share, GOAL_ADDED, unit="x")
    close(models, held)


def main() -> None:
    args = arguments(__doc__, parts=PARTS)
    needs_llama()
    parts = (args.part,) if args.part else PARTS
    report = Report("llama" + (f"-{args.part}" if args.part else ""), quick=args.quick)
    rounds = args.rounds or (2 if args.quick else 6)
    with Scratch(args.dir) as scratch:
        if "lookups" in parts:
            lookups(report, scratch, rounds, quick=args.quick)
        for flash in (False, True):
            if "second" in parts:
                second(report, scratch, rounds, flash=flash)
        for chat in (False, True):
            if "nothing" in parts:
                nothing(report, scratch, max(2, rounds - 2), 64 if args.quick else 128, chat=chat)
    report.finish()


if __name__ == "__main__":
    main()
