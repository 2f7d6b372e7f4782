"""An interrupt, or a signal handler that asks in the midst of an evaluation, leaves it as it is."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from tests.at_lines import at_line

from lmstash.adapters.lm_eval import CachedLM

from .conftest import Scripted, echo, generations, instance


def asked(number: int, n: int = 3) -> list[Any]:
    return [instance("generate_until", f"{number} {k}", {"until": ["\n"]}, doc=k) for k in range(n)]


def answers(requests: list[Any]) -> list[Any]:
    return [echo("generate_until", each.args) for each in requests]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_handler_that_asks_ends_no_evaluation(stash):
    lm = CachedLM(Scripted(echo, reports=True), stash, model="m")
    lm._vouched._cost_seconds = -1.0  # it is always time to look
    within = "/lm_eval/who/vouching.py"
    total = at_line(0, lambda: lm.generate_until(asked(0)), lambda: None, within)
    assert total > 20
    for line in range(1, total + 1):
        outer, inner, found = asked(2 * line), asked(2 * line + 1, 1), list[Any]()
        at_line(
            line,
            lambda outer=outer, found=found: found.extend(lm.generate_until(outer)),
            lambda inner=inner, found=found: found.extend(lm.generate_until(inner)),
            within,
        )
        assert found == answers([*inner, *outer])
        before = lm.counts.computed
        lm.generate_until([*inner, *outer])
        assert lm.counts.computed == before  # all were kept


@pytest.mark.parametrize("within", ["/lm_eval/who/vouching.py", "/lm_eval/cached.py"])
def test_no_call_that_was_interrupted_stays_under_way(stash, within):
    lm = CachedLM(Scripted(echo, reports=True), stash, model="m")
    total = at_line(0, lambda: lm.generate_until(asked(0)), lambda: None, within)
    assert total > 20
    for line in range(1, total + 1):
        requests = asked(line)
        with contextlib.suppress(KeyboardInterrupt):
            at_line(line, lambda requests=requests: lm.generate_until(requests), interrupt, within)
        assert lm._vouched._calls.now is None
        assert lm._who.made._calls.now is None
        assert lm.generate_until(requests) == answers(requests)


def test_what_is_reported_after_a_handler_asked_is_kept_at_once(stash):
    requests = generations(4)

    def say(method: str, arguments: tuple[Any, ...]) -> Any:
        if arguments[0] == "prompt 1":
            lm.generate_until(asked(0))
        if arguments[0] == "prompt 3":
            raise RuntimeError("out of memory")
        return echo(method, arguments)

    inner = Scripted(say, reports=True)
    inner.batch_size = 4
    lm = CachedLM(inner, stash, model="m")
    with pytest.raises(RuntimeError, match="out of memory"):
        lm.generate_until(requests)
    again = CachedLM(Scripted(echo, reports=True), stash, model="m")
    assert again.generate_until(requests) == answers(requests)
    assert (again.counts.hits, again.counts.computed) == (3, 1)
