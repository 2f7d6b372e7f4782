"""Who computes and who waits, when things go wrong: forks, kill -9, cancelled tasks, threads and tasks together."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import Responses, register
from lmstash.caches.responses.answers import records as answers
from lmstash.stash import Stash


@pytest.fixture
def responses(stash: Stash) -> Responses:
    return stash.responses(model="m", wait_seconds=30.0)


def within(seconds: float, work: Any) -> Any:
    """Return what `work` does, which must not take longer."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(seconds)


def test_a_forked_child_does_not_wait_for_its_parents_flights(responses: Responses) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        leave.wait(30)
        return "parent"

    leader = threading.Thread(target=responses.get_or_compute, args=("q", slow))
    leader.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        # Another process computes it (the parent), so the child may wait for that one, but only as another process.
        code = 1
        try:
            responses.wait_seconds = 0.2
            started = time.monotonic()
            if responses.get_or_compute("q", lambda: "child") == "child" and time.monotonic() - started < 5:
                responses.get_or_compute("other", lambda: "child")
                code = 0
        finally:
            os._exit(code)
    try:
        _pid, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        leave.set()
        leader.join()
    assert responses.get("other") == "child"


KILLED = """
import sys, time, lmstash
responses = lmstash.open(sys.argv[1]).responses(model="m")
def compute():
    print("computing", flush=True)
    time.sleep(60)
responses.get_or_compute("q", compute)
"""


def test_who_waits_for_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "stash")], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"computing\n"
        with lmstash.open(tmp_path / "stash") as stash:
            responses = stash.responses(model="m", wait_seconds=60)
            with ThreadPoolExecutor(3) as pool:
                waiting = [pool.submit(responses.get_or_compute, "q", lambda: "mine")]
                waiting += [pool.submit(responses.map, ["q", "r"], lambda batch: [f"of {x}" for x in batch])]
                time.sleep(0.5)
                assert not waiting[0].done()
                worker.send_signal(signal.SIGKILL)
                got = [each.result(20) for each in waiting]
            assert got[1][1] == "of r"
            assert got[0] == got[1][0] == responses.get("q")
            assert got[0] in ("mine", "of q")
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()  # type: ignore[union-attr]


def test_a_task_that_is_cancelled_in_flight_leaves_the_others_going(responses: Responses) -> None:
    async def forever() -> str:
        await asyncio.sleep(60)
        return "never"

    async def quick() -> str:
        return "mine"

    async def scene() -> list[Any]:
        leader = asyncio.create_task(responses.get_or_compute_async("q", forever))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(responses.get_or_compute_async("q", quick)) for _ in range(5)]
        impatient = asyncio.create_task(responses.get_or_compute_async("q", quick))
        await asyncio.sleep(0.05)
        impatient.cancel()  # one who waits gives up: nobody else notices
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in rest)
        leader.cancel()
        got = await asyncio.wait_for(asyncio.gather(*rest), 10)
        with pytest.raises(asyncio.CancelledError):
            await leader
        with pytest.raises(asyncio.CancelledError):
            await impatient
        return got

    assert asyncio.run(scene()) == ["mine"] * 5
    assert responses.get("q") == "mine"
    assert not responses.flights._aloft


def test_a_map_whose_task_is_cancelled_lets_others_compute(responses: Responses) -> None:
    async def forever(batch: list[Any]) -> list[Any]:
        await asyncio.sleep(60)
        return batch

    async def scene() -> Any:
        leader = asyncio.create_task(responses.map_async(["a", "b"], forever, batch_size=2))
        await asyncio.sleep(0.05)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader

        async def quick(batch: list[Any]) -> list[Any]:
            return [each * 2 for each in batch]

        return await asyncio.wait_for(responses.map_async(["b", "a"], quick, batch_size=2), 10)

    assert asyncio.run(scene()) == ["bb", "aa"]
    assert not responses.flights._aloft


def test_a_stream_that_is_not_read_to_its_end_holds_nothing_back(responses: Responses) -> None:
    stream = responses.stream([1, 2, 3], lambda batch: [f"a{each}" for each in batch], batch_size=1)
    assert next(stream) == (0, "a1")
    stream.close()  # type: ignore[attr-defined]
    assert not responses.flights._aloft
    assert within(10, lambda: responses.get_or_compute(2, lambda: "mine")) == "mine"


def test_while_an_answer_is_read_the_rest_of_its_batch_is_not_held_back(responses: Responses) -> None:
    stream = responses.stream([1, 2], lambda batch: [None] * len(batch), batch_size=2)
    assert next(stream) == (0, None)  # the second one was computed with it, and is not worth keeping
    assert within(10, lambda: responses.get_or_compute(2, lambda: "mine")) == "mine"
    assert list(stream) == [(1, None)]


def test_threads_and_tasks_together_compute_each_request_once(responses: Responses) -> None:
    calls: list[int] = []
    lock = threading.Lock()

    def compute(n: int) -> str:
        with lock:
            calls.append(n)
        time.sleep(0.005)
        return f"a{n}"

    async def later(n: int) -> str:
        with lock:
            calls.append(n)
        await asyncio.sleep(0.005)
        return f"a{n}"

    def by_thread(shift: int) -> list[str]:
        numbers = [(n + shift) % 30 for n in range(30)]
        return [responses.get_or_compute({"n": n}, lambda n=n: compute(n)) for n in numbers]

    def by_loop(shift: int) -> list[str]:
        async def all_of_it() -> list[str]:
            numbers = [(n + shift) % 30 for n in range(30)]
            asked = [responses.get_or_compute_async({"n": n}, lambda n=n: later(n)) for n in numbers]
            return list(await asyncio.gather(*asked))

        return asyncio.run(all_of_it())

    def by_map(shift: int) -> list[str]:
        numbers = [(n + shift) % 30 for n in range(30)]
        return responses.map([{"n": n} for n in numbers], lambda batch: [compute(x["n"]) for x in batch], batch_size=7)

    def scene() -> None:
        with ThreadPoolExecutor(9) as pool:
            works = [(work, shift) for work in (by_thread, by_loop, by_map) for shift in (0, 11, 22)]
            found = [(shift, pool.submit(work, shift)) for work, shift in works]
            for shift, each in found:
                assert each.result(60) == [f"a{(n + shift) % 30}" for n in range(30)]

    within(60, scene)
    assert sorted(calls) == list(range(30))
    assert not responses.flights._aloft


def test_who_has_waited_long_enough_computes(stash: Stash) -> None:
    responses = stash.responses(model="m", wait_seconds=0.1)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        leave.wait(30)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(responses.get_or_compute, "q", slow)
        entered.wait()
        started = time.monotonic()
        assert responses.get_or_compute("q", lambda: "mine") == "mine"
        assert responses.map(["q"], lambda batch: ["mine too"]) in (["mine too"], ["mine"])

        async def later() -> str:
            return "later"

        assert asyncio.run(responses.get_or_compute_async("q", later)) in ("later", "mine", "mine too")
        assert time.monotonic() - started < 10
        leave.set()
        assert first.result(10) == "slow"


def test_a_function_that_maps_within_a_map_does_not_wait_for_itself(responses: Responses) -> None:
    def outer(batch: list[Any]) -> list[Any]:
        return responses.map(batch, lambda inner: [f"a{each}" for each in inner], batch_size=1)

    assert within(20, lambda: responses.map([1, 2], outer, batch_size=2)) == ["a1", "a2"]


def test_tasks_of_one_thread_that_need_each_others_answers_do_not_hang(responses: Responses) -> None:
    responses.wait_seconds = 0.3

    async def need(mine: str, other: str) -> str:
        async def compute() -> str:
            await asyncio.sleep(0.02)

            async def inner() -> str:
                return f"inner {other}"

            return mine + " with " + await responses.get_or_compute_async(other, inner)

        return await responses.get_or_compute_async(mine, compute)

    async def scene() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(need("a", "b"), need("b", "a")), 20)

    got = within(30, lambda: asyncio.run(scene()))
    assert got[0].startswith("a with ")
    assert got[1].startswith("b with ")


@pytest.mark.parametrize("how", ["task", "thread", "map"])
def test_a_task_or_thread_that_a_computation_starts_does_not_wait_for_it(responses: Responses, how: str) -> None:
    async def inner() -> str:
        return "inner"

    async def outer() -> str:
        if how == "thread":
            return await asyncio.to_thread(responses.get_or_compute, "q", lambda: "inner")
        return await asyncio.create_task(responses.get_or_compute_async("q", inner))

    async def batch(_requests: list[Any]) -> list[Any]:
        return [await outer()]

    async def main() -> list[str]:
        if how == "map":
            return await responses.map_async(["q"], batch)
        return [await responses.get_or_compute_async("q", outer)]

    assert within(20, lambda: asyncio.run(main())) == ["inner"]
    assert not responses.flights._aloft


def test_of_those_who_wait_for_one_that_is_called_off_one_computes(responses: Responses) -> None:
    calls: list[int] = []

    async def slow() -> str:
        calls.append(1)
        await asyncio.sleep(0.2)
        return f"answer {len(calls)}"

    async def mapped() -> str:
        async def batch(requests: list[Any]) -> list[Any]:
            return [await slow() for _ in requests]

        return (await responses.map_async(["q"], batch))[0]

    async def main() -> list[Any]:
        leader = asyncio.create_task(responses.get_or_compute_async("q", slow))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(responses.get_or_compute_async("q", slow)) for _ in range(20)]
        rest += [asyncio.create_task(mapped()) for _ in range(5)]
        await asyncio.sleep(0.05)
        leader.cancel()
        return await asyncio.wait_for(asyncio.gather(*rest), 20)

    assert asyncio.run(main()) == ["answer 2"] * 25
    assert len(calls) == 2
    assert not responses.flights._aloft


def test_those_who_wait_for_one_that_fails_compute_for_themselves_at_once(responses: Responses) -> None:
    calls: list[int] = []

    async def fails_once() -> str:
        calls.append(1)
        await asyncio.sleep(0.1)
        if len(calls) == 1:
            raise OSError("busy")
        return "answer"

    async def main() -> list[Any]:
        tasks = [responses.get_or_compute_async("q", fails_once) for _ in range(6)]
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    got = asyncio.run(main())
    assert [type(each) for each in got].count(OSError) == 1
    assert got.count("answer") == 5
    assert responses.get("q") == "answer"


@pytest.mark.parametrize("how", ["get_or_compute", "map"])
def test_a_plain_call_in_an_event_loop_does_not_wait_for_a_task_of_that_loop(responses: Responses, how: str) -> None:
    async def main() -> tuple[Any, Any]:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow() -> str:
            entered.set()
            await leave.wait()
            return "the task's"

        task = asyncio.create_task(responses.get_or_compute_async("q", slow))
        await entered.wait()
        if how == "map":
            (plain,) = responses.map(["q"], lambda batch: ["the caller's"] * len(batch))
        else:
            plain = responses.get_or_compute("q", lambda: "the caller's")
        leave.set()
        return plain, await task

    assert within(10, lambda: asyncio.run(main())) == ("the caller's", "the task's")


def test_a_map_computes_what_is_kept_and_cannot_be_read_here(stash: Stash) -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    register(Local, name="known elsewhere")
    responses = stash.responses(model="m", wait_seconds=0.2)
    asked = [{"q": n} for n in range(5)]
    assert responses.put_many(asked, [Local(n) for n in range(5)]) == 5
    del answers._by_name["known elsewhere"]
    calls: list[int] = []

    def compute(batch: list[Any]) -> list[str]:
        calls.append(len(batch))
        return ["fresh"] * len(batch)

    assert within(10, lambda: responses.map([*asked, {"q": "new"}], compute, batch_size=6)) == ["fresh"] * 6
    assert sum(calls) == 6
    assert responses.get(asked[4]) == "fresh"


def test_a_tag_that_cannot_be_said_is_no_reason_to_lose_an_answer(responses: Responses) -> None:
    assert responses.map([{"q": 1}], lambda batch: ["a"], tags=lambda request: request["nothing"]) == ["a"]
    assert responses.get({"q": 1}) == "a"


@pytest.mark.parametrize("who", ["another loop", "a thread", "a loop in a thread"])
def test_a_task_whose_loop_was_interrupted_is_not_waited_for(responses: Responses, who: str) -> None:
    async def compute() -> str:
        await asyncio.sleep(0.01)
        return "answer"

    async def begin() -> None:
        asked = asyncio.ensure_future(responses.get_or_compute_async("q", lambda: asyncio.sleep(60, "late")))
        await asyncio.sleep(0.01)
        assert not asked.done()
        raise KeyboardInterrupt

    halted = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        halted.run_until_complete(begin())
    started = time.monotonic()
    got: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        if who == "a thread":
            got.append(responses.get_or_compute("q", lambda: "answer"))
        else:
            got.append(asyncio.run(responses.get_or_compute_async("q", compute)))
        ended.set()

    if who == "another loop":
        ask()
    else:
        threading.Thread(target=ask, daemon=True).start()
    assert ended.wait(10)
    assert got == ["answer"]
    assert time.monotonic() - started < 10
    left = asyncio.all_tasks(halted)
    for each in left:
        each.cancel()
    halted.run_until_complete(asyncio.wait(left))
    halted.close()


def test_a_loop_that_a_handler_runs_does_not_wait_for_a_task_of_the_one_it_has_interrupted(
    responses: Responses,
) -> None:
    async def compute() -> str:
        return "answer"

    def handler() -> str:
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return asyncio.run(responses.get_or_compute_async("q", compute))
        finally:
            asyncio._set_running_loop(running)

    async def run() -> None:
        leave = asyncio.Event()
        asked = asyncio.ensure_future(responses.get_or_compute_async("q", leave.wait))
        await asyncio.sleep(0.01)
        started = time.monotonic()
        assert handler() == "answer"
        assert time.monotonic() - started < 10
        leave.set()
        await asked

    asyncio.run(run())
