"""Who waits for whom: a computation whose own threads ask for the same thing is not waited for; an honest one is."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import Responses
from lmstash.caches.responses.single_flight import blocking, waiting
from lmstash.caches.responses.single_flight.flights import Flights
from lmstash.stash import Stash

Ask = Callable[[str], str]


@pytest.fixture
def responses(stash: Stash) -> Responses:
    return stash.responses(model="m", wait_seconds=30.0)


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what `work` does, which must not take longer."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(work()), daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it waits, {time.monotonic() - started:.1f} s by now"
    return got[0]


def by_map(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, batch))


def by_few_threads(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(1) as pool:
        return list(pool.map(ask, batch))


def by_results(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(ask, each) for each in batch]
        return [each.result(60) for each in found]


def by_wait(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(ask, each) for each in batch]
        assert not futures.wait(found, timeout=60).not_done
        return [each.result() for each in found]


def by_as_completed(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        found = {pool.submit(ask, each): each for each in batch}
        answers = {found[each]: each.result() for each in futures.as_completed(found)}
        return [answers[each] for each in batch]


def by_shutdown(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(ask, each) for each in batch]
    return [each.result() for each in found]


def by_thread_pool(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPool(4) as pool:
        return pool.map(ask, batch)


def by_imap(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPool(4) as pool:
        return list(pool.imap(ask, batch))


def by_apply(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPool(4) as pool:
        found = [pool.apply_async(ask, (each,)) for each in batch]
        return [each.get(60) for each in found]


def by_pool_join(ask: Ask, batch: list[str]) -> list[str]:
    pool = ThreadPool(4)
    found = [pool.apply_async(ask, (each,)) for each in batch]
    pool.close()
    pool.join()
    return [each.get() for each in found]


def by_join(ask: Ask, batch: list[str]) -> list[str]:
    answers: dict[str, str] = {}
    threads = [threading.Thread(target=lambda each=each: answers.update({each: ask(each)})) for each in batch]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return [answers[each] for each in batch]


def by_pool_within_pool(ask: Ask, batch: list[str]) -> list[str]:
    def inner(each: str) -> str:
        with ThreadPool(1) as pool:
            return pool.apply(ask, (each,))

    return by_results(inner, batch)


def by_loop_in_a_pool(ask: Ask, batch: list[str]) -> list[str]:
    async def later(each: str) -> str:
        async def answer() -> str:
            return f"answer to {each}"

        return await ask.responses.get_or_compute_async(each, answer)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda each: asyncio.run(later(each)), batch))


SPREADS = [value for name, value in list(globals().items()) if name.startswith("by_")]


def asking(responses: Responses, seconds: float = 0.0) -> Ask:
    def compute(request: str) -> str:
        time.sleep(seconds)
        return f"answer to {request}"

    def ask(request: str) -> str:
        return responses.get_or_compute(request, lambda: compute(request))

    ask.responses = responses  # type: ignore[attr-defined]
    return ask


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("spread", SPREADS)
def test_threads_of_a_computation_do_not_wait_for_it(
    responses: Responses, spread: Callable[[Ask, list[str]], list[str]], size: int
) -> None:
    requests, ask = [f"q{n}" for n in range(size)], asking(responses)
    got = within(12, lambda: responses.map(requests, lambda batch: spread(ask, batch), batch_size=size))
    assert got == [f"answer to {each}" for each in requests]
    again = within(12, lambda: responses.get_or_compute("other", lambda: spread(ask, ["other"])[0]))
    assert again == "answer to other"
    assert not responses.flights._aloft


@pytest.mark.parametrize("spread", [by_map, by_results, by_as_completed, by_apply, by_thread_pool])
def test_threads_of_one_computation_work_side_by_side(
    responses: Responses, spread: Callable[[Ask, list[str]], list[str]]
) -> None:
    ask, started = asking(responses, 1.5), time.monotonic()
    within(30, lambda: responses.map(["a", "b", "c", "d"], lambda batch: spread(ask, batch), batch_size=4))
    assert time.monotonic() - started < 4.5, "one after the other it takes 6 s"


def test_on_a_busy_machine_they_find_out_soon(responses: Responses, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look may take long there; how it was then is not how it is for long."""
    write = blocking._written

    def busily() -> str:
        written = write()
        time.sleep(0.15)
        return written

    def after_a_while(ask: Ask, batch: list[str]) -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(ask, batch[0])
            time.sleep(0.1)
            return [found.result(60)]

    monkeypatch.setattr(blocking, "_written", busily)
    ask, started = asking(responses), time.monotonic()
    within(30, lambda: responses.map(["a"], lambda batch: after_a_while(ask, batch)))
    assert time.monotonic() - started < 2.0, "three seconds, if the first look counted for all of them"


def test_threads_that_need_each_others_answers_do_not_hang(responses: Responses) -> None:
    both = threading.Barrier(2)

    def need(mine: str, other: str) -> str:
        def compute() -> str:
            both.wait()
            return f"{mine} with " + responses.get_or_compute(other, lambda: f"inner {other}")

        return responses.get_or_compute(mine, compute)

    def scene() -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(need, "ab", "ba"))

    one, two = within(12, scene)
    assert one.startswith("a with ")
    assert two.startswith("b with ")


def test_a_ring_of_threads_does_not_hang(responses: Responses) -> None:
    """Each leads one answer, and needs the next one's by way of a thread of its own."""
    all_of_them = threading.Barrier(3)

    def need(number: int) -> str:
        def compute() -> str:
            all_of_them.wait()
            other = f"q{(number + 1) % 3}"
            return by_map(lambda each: responses.get_or_compute(each, lambda: "inner"), [other])[0]

        return responses.get_or_compute(f"q{number}", compute)

    def scene() -> list[str]:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(need, range(3)))

    assert "inner" in within(12, scene)


# --- honest waits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
def test_a_slow_computation_that_uses_a_pool_is_waited_for(
    responses: Responses, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of other pools, of the same pool and of none, and tasks, wait for it, whatever the stacks look like."""
    calls: list[str] = []
    leading = threading.Event()
    if broken:
        monkeypatch.setattr(blocking, "_stacks", lambda _since: {threading.get_ident(): object(), 0: None})

    def slow(request: str) -> str:
        leading.set()
        time.sleep(1.5)
        calls.append(request)
        return f"answer to {request}"

    def lead() -> list[str]:
        with ThreadPool(2) as pool:
            return responses.map(["a", "b"], lambda batch: pool.map(slow, batch), batch_size=2)

    def ask(request: str) -> str:
        return responses.get_or_compute(request, lambda: calls.append("again") or "again")

    async def later(request: str) -> str:
        async def again() -> str:
            return calls.append("again") or "again"

        return await responses.get_or_compute_async(request, again)

    async def tasks() -> list[str]:
        return await asyncio.gather(later("a"), later("b"))

    def scene() -> list[Any]:
        with ThreadPoolExecutor(4) as pool:
            leader = pool.submit(lead)
            leading.wait()
            rest = [pool.submit(ask, "b"), pool.submit(ask, "a"), pool.submit(asyncio.run, tasks())]
            return [ask("a"), *[each.result() for each in [leader, *rest]]]

    one, two = "answer to a", "answer to b"
    assert within(20, scene) == [one, [one, two], two, one, [one, two]]
    assert sorted(calls) == ["a", "b"]


def test_a_task_waits_for_a_thread_that_waits_for_another_task_of_its_loop(responses: Responses) -> None:
    calls: list[str] = []

    def in_thread() -> str:
        return responses.get_or_compute("a", lambda: responses.get_or_compute("b", lambda: "again") + " in a")

    async def slow() -> str:
        await asyncio.sleep(1.0)
        return "b"

    async def again() -> str:
        return calls.append("again") or "again"

    async def main() -> list[str]:
        first = asyncio.create_task(responses.get_or_compute_async("b", slow))
        await asyncio.sleep(0.1)
        second = asyncio.get_running_loop().run_in_executor(None, in_thread)
        await asyncio.sleep(0.1)
        return await asyncio.gather(first, second, responses.get_or_compute_async("a", again))

    assert within(12, lambda: asyncio.run(main())) == ["b", "b in a", "b in a"]
    assert not calls


GARBAGE = """
import gc, sys, threading, time
from lmstash.caches.responses.single_flight.blocking import leads_back

class Garbage:
    def __init__(self):
        self.me = self
    def __del__(self):
        time.sleep(0)  # lets other threads go on

def look():
    deep(40)

def deep(n):
    if n:
        return deep(n - 1)
    for _ in range(100):
        Garbage()
        leads_back(leader, True)

gc.set_threshold(2)
sys.setswitchinterval(0.0001)
leader = threading.get_ident()
threads = [threading.Thread(target=look) for _ in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(gc.isenabled())
"""


def test_looking_at_stacks_does_not_halt_the_interpreter_when_garbage_is_collected() -> None:
    done = subprocess.run([sys.executable, "-c", GARBAGE], timeout=60, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


# --- what cannot be seen --------------------------------------------------------------------------------------------


def in_a_loop(ask: Ask, batch: list[str]) -> list[str]:
    async def main() -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*[loop.run_in_executor(pool, ask, each) for each in batch])

    return asyncio.run(main())


def by_looking_again(ask: Ask, batch: list[str]) -> list[str]:
    with ThreadPoolExecutor(1) as pool:
        found = [pool.submit(ask, each) for each in batch]
        while not all(each.done() for each in found):
            time.sleep(0.01)
        return [each.result() for each in found]


@pytest.mark.parametrize("spread", [in_a_loop, by_looking_again])
def test_what_is_stuck_unseen_costs_one_wait_and_not_one_for_each_request(
    responses: Responses, spread: Callable[[Ask, list[str]], list[str]]
) -> None:
    responses.wait_seconds = 1.0
    requests, started = [f"q{n}" for n in range(8)], time.monotonic()
    got = within(12, lambda: responses.map(requests, lambda b: spread(asking(responses), b), batch_size=8))
    assert got == [f"answer to {each}" for each in requests]
    assert 0.9 < time.monotonic() - started < 4


def test_tasks_that_are_stuck_unseen_cost_one_wait(responses: Responses) -> None:
    responses.wait_seconds = 1.0
    requests, ask = [f"q{n}" for n in range(8)], asking(responses)

    async def spread(batch: list[str]) -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*[loop.run_in_executor(pool, ask, each) for each in batch])

    started = time.monotonic()
    got = within(12, lambda: asyncio.run(responses.map_async(requests, spread, batch_size=8)))
    assert got == [f"answer to {each}" for each in requests]
    assert 0.9 < time.monotonic() - started < 4


def test_who_has_less_patience_does_not_keep_others_from_waiting(stash: Stash) -> None:
    hasty, patient = stash.responses(model="m", wait_seconds=0.1), stash.responses(model="m", wait_seconds=30.0)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> None:  # nothing worth keeping, so that nobody finds it
        entered.set()
        leave.wait(20)

    def scene() -> list[Any]:
        with ThreadPoolExecutor(3) as pool:
            leader = pool.submit(patient.get_or_compute, "q", slow)
            entered.wait()
            assert pool.submit(hasty.get_or_compute, "q", lambda: None).result(10) is None
            calls: list[float] = []
            waits = pool.submit(patient.get_or_compute, "q", lambda: calls.append(time.monotonic()))
            time.sleep(0.5)
            left = time.monotonic()
            leave.set()
            leader.result(10)
            waits.result(10)
            return [each > left for each in calls]

    assert within(20, scene) == [True]


# --- what the log says ----------------------------------------------------------------------------------------------


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    monkeypatch.setattr(waiting, "_TELL_AFTER", 0.2)
    caplog.set_level(logging.INFO, "lmstash")
    return lambda: [each for each in caplog.messages if "waiting" in each]


def test_a_long_wait_for_a_thread_is_told_once(responses: Responses, lines: Callable[[], list[str]]) -> None:
    def slow(batch: list[str]) -> list[str]:
        time.sleep(1.0)
        return batch

    async def tasks() -> list[Any]:
        return await asyncio.gather(*[responses.get_or_compute_async(each, None) for each in "ab"])  # type: ignore[arg-type]

    def scene() -> None:
        leader = threading.Thread(target=responses.map, args=("ab", slow), kwargs={"batch_size": 2}, name="the leader")
        leader.start()
        time.sleep(0.2)
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(asking(responses), each) for each in "abab"]
            asyncio.run(tasks())
            assert [each.result() for each in found] == list("abab")
        leader.join()

    within(20, scene)
    (line,) = lines()
    assert "thread 'the leader'" in line


@pytest.mark.parametrize("how", ["get_or_compute", "map"])
def test_a_long_wait_for_a_process_is_told(tmp_path: Path, lines: Callable[[], list[str]], how: str) -> None:
    with lmstash.open(tmp_path / "stash") as stash:
        responses = stash.responses(model="m", wait_seconds=0.6)
        model = responses.asker.look()
        asked = responses.asker.ask(model, "q", None)
        assert asked is not None
        elsewhere = Flights(responses.flights._folder)  # as another process: locks belong to open files
        flight, _leads = elsewhere.join(asked.key)
        assert elsewhere.lock(flight)
        if how == "map":
            within(10, lambda: responses.map(["q"], lambda batch: batch))
        else:
            within(10, lambda: responses.get_or_compute("q", lambda: "q"))
        elsewhere.end(flight)
    (line,) = lines()
    assert "another process" in line


def test_the_stacks_of_many_threads_are_looked_at_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[float] = []
    written = blocking._written
    monkeypatch.setattr(blocking, "_written", lambda: looked.append(time.monotonic()) or written())
    monkeypatch.setattr(blocking, "_last", (-1.0, -1.0, {}))
    monkeypatch.setattr(blocking, "_REST", 1e6)
    began = time.monotonic()
    for _ in range(8):
        assert not blocking.leads_back(-1, True, began)
    assert len(looked) == 1
    assert not blocking.leads_back(-1, True, time.monotonic())
    assert len(looked) == 2, "what was before somebody waited is not good enough"
