"""States of llama.cpp over processes: what many users' prompts take, and what a restart costs, on SmolLM2-135M Q4_1.

Users: 50 that share one system prompt of 1,000 tokens: bytes on disk, and memory against what the cache reports. What
llama.cpp and a cache need to work, whatever is kept, is there before the count begins: twelve users were served by
another cache, which stays, since malloc would fill what it leaves (llama.cpp itself takes 4 MB more when one of them
asks longer). llama-cpp-python's own caches have 5 users; 50 would take 6 GB.

Restart: the first completion of a new process over a kept prefix, and two after it, each after an unrelated prompt.
Loading the model is not counted, reading its file for its identity is, where it is not done by then.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from llama_work import NEW, TOUCH_BYTES, is_ours, needs_llama
from measuring import Report, Scratch, Timing, arguments, drop_pages, in_new_process, private_bytes, ratio

PARTS = ("users", "restart")
GOAL_BYTES, GOAL_MEMORY = 1.2, 0.05
GOAL_RESTART = 1.3


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
    first = library.LlamaRAMCache()
    llm.set_cache(first)  # what a cache needs to work, whatever is in it, is not what it keeps
    for number in range(12):
        say(llm, words.unrelated(number, 64), 1)
        say(llm, system + words.question(1000 + number), NEW)
    llm.set_cache(None)
    before = private_bytes()
    cache = make()
    llm.set_cache(cache)
    kept = 0
    for number in range(task["users"]):
        ids = system + words.question(number)
        say(llm, ids, NEW)
        kept += len(ids) + NEW - 1 - PREFIX  # the last token is not evaluated
    after = private_bytes()
    del first
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
    plan = {"lmstash, RAM": count, "lmstash, disk": count, "llama-cpp-python, RAM": 5, "llama-cpp-python, disk": 5}
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
    for name in ("lmstash, disk", "no cache") if flash else ("lmstash, disk", "llama-cpp-python, disk", "no cache"):
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
    needs_llama()
    parts = (args.part,) if args.part else PARTS
    report = Report("llama-processes" + (f"-{args.part}" if args.part else ""), quick=args.quick)
    rounds = args.rounds or (1 if args.quick else 4)
    with Scratch(args.dir) as scratch:
        if "users" in parts:
            users(report, scratch, 5 if args.quick else 50)
        for flash in (False, True):
            if "restart" in parts:
                restart(report, scratch, max(1, rounds - 2 * flash), flash=flash)
    report.finish()


if __name__ == "__main__":
    main()
