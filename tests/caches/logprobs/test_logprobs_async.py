"""Queries of many tasks: batched by passes of the event loop, without a timer; a cancelled one disturbs no other."""

import asyncio
import contextlib
import threading

import pytest
import torch
from tests.at_lines import after_interrupt, at_line

import lmstash
from lmstash.caches.logprobs.joining import Joiner
from lmstash.errors import InvalidArgumentError


@pytest.fixture
def lp(model):
    with lmstash.open("memory://") as stash:
        yield stash.logprobs(model)


def test_tasks_share_a_batch(lp, model, plain, count_fed):
    contexts = [[1, 2, each] for each in range(12)]
    fed = count_fed(model)

    async def run():
        return await asyncio.gather(*[lp.next_token_logprobs_async(each) for each in [*contexts, *contexts]])

    rows = asyncio.run(run())
    assert fed.take()[0] == 2  # what they begin with, and the rest
    for context, row in zip([*contexts, *contexts], rows, strict=True):
        assert (row - plain(model, context)).abs().max() < 1e-5
    assert len({row.data_ptr() for row in rows}) == 24  # each its own


def test_tasks_that_arrive_a_pass_later_join(lp, model, count_fed):
    fed = count_fed(model)

    async def late(context, passes):
        for _ in range(passes):
            await asyncio.sleep(0)
        return await lp.next_token_logprobs_async(context)

    async def run():
        await asyncio.gather(*[late([7, 8, each], each) for each in range(5)])

    asyncio.run(run())
    assert fed.take()[0] <= 2


def test_a_trickle_does_not_starve_the_first():
    asked = []

    def compute(contexts):
        asked.append(list(contexts))
        return torch.zeros(len(contexts), 3)

    async def run():
        joiner = Joiner(compute)
        first = asyncio.ensure_future(joiner.ask(b"first"))
        others = []
        for number in range(200):
            others.append(asyncio.ensure_future(joiner.ask(str(number).encode())))
            await asyncio.sleep(0)
            if first.done():
                break
        assert first.done()
        assert number < 50
        await asyncio.gather(*others)

    asyncio.run(run())
    assert asked[0][0] == b"first"


def test_a_cancelled_task_fails_no_other(lp, model, plain):
    async def run():
        tasks = [asyncio.ensure_future(lp.next_token_logprobs_async([3, each])) for each in range(6)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    for each, row in enumerate(found):
        if each in (0, 3):
            assert isinstance(row, asyncio.CancelledError)
        else:
            assert (row - plain(model, [3, each])).abs().max() < 1e-5


def test_of_equal_queries_one_may_be_cancelled(lp):
    async def run():
        one, other = (asyncio.ensure_future(lp.next_token_logprobs_async([3, 4])) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        return await other

    assert asyncio.run(run()).equal(lp.next_token_logprobs([3, 4]))


def test_a_query_that_is_wrong_fails_alone(lp):
    async def run():
        return await asyncio.gather(
            *[lp.next_token_logprobs_async(each) for each in ([1, 2], [10_000], [], [3])], return_exceptions=True
        )

    found = asyncio.run(run())
    assert [type(each) for each in found] == [torch.Tensor, InvalidArgumentError, InvalidArgumentError, torch.Tensor]


def test_a_batch_that_fails_tells_every_waiter_and_the_next_one_runs():
    calls = []

    def compute(contexts):
        calls.append(contexts)
        if len(calls) == 1:
            raise RuntimeError("device lost")
        return torch.zeros(len(contexts), 3)

    async def run():
        joiner = Joiner(compute)
        found = await asyncio.gather(joiner.ask(b"1"), joiner.ask(b"2"), return_exceptions=True)
        assert [str(each) for each in found] == ["device lost", "device lost"]
        assert (await joiner.ask(b"3")).shape == (3,)

    asyncio.run(run())


def test_batches_and_contexts_and_several_loops(lp, model, plain):
    async def run():
        handle = lp.start([1, 2])
        rows = await lp.batch_next_token_logprobs_async([[1, 2, 3], handle.extend(4), [1, 2, 3]])
        assert (await handle.extend(3).logprobs_async()).equal(rows[0])
        assert (await lp.batch_next_token_logprobs_async([])).shape == (0, rows.shape[1])
        return rows

    for _ in range(2):
        rows = asyncio.run(run())
        for context, row in zip([[1, 2, 3], [1, 2, 4], [1, 2, 3]], rows, strict=True):
            assert (row - plain(model, context)).abs().max() < 1e-5


def test_who_looks_into_the_engine_waits_for_the_thread_that_has_it_at_work(lp):
    """Taken for one that was interrupted, it would be thrown away in the midst of that work."""
    from lmstash.adapters.genlm.looking import look

    lp.next_token_logprobs([1, 2, 3])
    engine, at_work, go_on = lp._engine, threading.Event(), threading.Event()

    def work(_engine):
        at_work.set()
        assert go_on.wait(30)
        return torch.zeros(1)

    worker = threading.Thread(target=lambda: lp._with_engine(work))
    looker = threading.Thread(target=lambda: look(lp, [1, 2, 3]))
    worker.start()
    assert at_work.wait(30)
    looker.start()
    looker.join(0.2)
    assert looker.is_alive()
    go_on.set()
    worker.join(30)
    looker.join(30)
    assert lp._engine is engine


class Stop(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


@pytest.mark.parametrize("error", [Stop, TimeoutError])
def test_after_an_interrupt_the_queries_of_the_same_loop_are_answered(error):
    def compute(contexts):
        return torch.tensor([[float(sum(each))] for each in contexts])

    def interrupt():
        raise error

    async def ask_two(joiner):
        return await asyncio.wait_for(asyncio.gather(joiner.ask(b"a"), joiner.ask(b"b"), return_exceptions=True), 5)

    async def ask_next(joiner):
        return float(await asyncio.wait_for(joiner.ask(bytes([3, 4])), 5))

    n_lines = at_line(0, lambda: asyncio.run(ask_two(Joiner(compute))), interrupt, "logprobs/joining.py")
    assert n_lines > 10
    for line in range(1, n_lines + 1):
        loop, joiner = asyncio.new_event_loop(), Joiner(compute)
        loop.set_exception_handler(lambda *_: None)
        with contextlib.suppress(Stop, TimeoutError):
            at_line(
                line,
                lambda loop=loop, joiner=joiner: loop.run_until_complete(ask_two(joiner)),
                interrupt,
                "logprobs/joining.py",
            )
        assert after_interrupt(loop, lambda joiner=joiner: ask_next(joiner)) == 7.0, line
