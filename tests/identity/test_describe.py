"""What hangs on a model and steers it, whatever it is kept in."""

from __future__ import annotations

import gc
import logging
import math
import random
import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lmstash
from lmstash.identity.watch import watch_model


class Scale:
    def __init__(self) -> None:
        self.by = 1.0


class Flag(threading.Event):
    pass


class Steered(torch.nn.Module):
    def __init__(self, switch: Any) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.switch = switch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


SCALE, OTHER, WHOLE = Scale(), torch.ones(4), torch.nn.Linear(4, 4)
SWITCHES: dict[str, tuple[Any, Callable[[Any], object], Callable[[Any], object]]] = {
    "an event": (threading.Event(), lambda it: it.set(), lambda it: it.clear()),
    "an event of one's own class": (Flag(), lambda it: it.set(), lambda it: it.clear()),
    "a weak reference": (
        weakref.ref(SCALE),
        lambda it: setattr(it(), "by", 2.0),
        lambda it: setattr(it(), "by", 1.0),
    ),
    "a weak reference to a tensor": (weakref.ref(OTHER), lambda it: it().add_(1), lambda it: it().sub_(1)),
    "a weak reference to another model": (
        weakref.ref(WHOLE),
        lambda it: it().requires_grad_(False).bias.add_(1),
        lambda it: it().bias.sub_(1),
    ),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_counts_and_is_noticed(name: str) -> None:
    switch, on, off = SWITCHES[name]
    torch.manual_seed(0)
    model = Steered(switch).eval()
    watch = watch_model(model)
    watch.recognise()
    first = watch.recognise().hex
    on(switch)
    try:
        second = watch.refresh().hex if "tensor" in name or "model" in name else watch.recognise().hex
        assert second != first
        assert lmstash.fingerprint(model).hex == second
    finally:
        off(switch)
    if "model" not in name:  # whose bits an addition may have rounded
        assert watch.refresh().hex == first == lmstash.fingerprint(model).hex


def test_a_reference_to_the_models_own_parts_says_nothing_new() -> None:
    model = torch.nn.LSTM(3, 4).eval()
    before = lmstash.fingerprint(model)
    assert "globals" not in before.components or not before.components["globals"]
    own = Steered(None).eval()
    own.switch = weakref.ref(own.inner)
    assert not lmstash.fingerprint(own).components["globals"]


def test_a_reference_to_what_is_gone_is_another_one() -> None:
    held = Scale()
    model = Steered(weakref.ref(held)).eval()
    alive = lmstash.fingerprint(model).hex
    del held
    gc.collect()
    assert lmstash.fingerprint(model).hex != alive


def test_locks_and_loggers_say_nothing() -> None:
    lock, logger = threading.Lock(), logging.getLogger("lmstash.tests.describe")
    model = Steered([lock, logger]).eval()
    before = lmstash.fingerprint(model).hex
    with lock:
        logger.setLevel(logging.DEBUG)
        assert lmstash.fingerprint(model).hex == before


class Cleaning(torch.nn.Module):
    """As what is pasted from notebooks: it logs, and its code names compiled patterns."""

    def __init__(self, pattern: Any, log: Any) -> None:
        super().__init__()
        self.pattern, self.log = pattern, log
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.debug("called")
        return self.linear(x) * len(self.pattern.findall("a b a"))


def test_compiled_patterns_count_by_what_they_say_and_loggers_do_not() -> None:
    one, two = map(logging.getLogger, ("one", "two"))

    def digest(pattern: Any, log: Any = one) -> bytes:
        torch.manual_seed(0)
        return lmstash.fingerprint(Cleaning(pattern, log)).digest

    patterns = [re.compile("a"), re.compile("b"), re.compile("a", re.IGNORECASE), re.compile(b"a")]
    assert len({digest(each) for each in patterns}) == len(patterns)
    assert digest(re.compile("a")) == digest(re.compile("a"), two)
    loguru = pytest.importorskip("loguru")
    assert digest(re.compile("a"), loguru.logger) == digest(re.compile("a"), loguru.logger.bind(run=7))


MODES = {
    "its value": ("COT = 'step by step'", "COT = 'at once'"),
    "its attributes": (
        "COT = 1\n def __init__(self, n): self.text = 'a'",
        "COT = 1\n def __init__(self, n): self.text = 'b'",
    ),
    "its methods": ("COT = 1\n def say(self): return 'a'", "COT = 1\n def say(self): return 'b'"),
}


@pytest.mark.parametrize("what", MODES)
def test_a_member_of_an_enum_counts_by_more_than_its_name(what: str) -> None:
    def steered(body: str) -> Any:
        made: dict[str, Any] = {"__name__": "program"}
        exec(
            f"import enum, types\nclass Mode(enum.Enum):\n {body}\nSETTINGS = types.SimpleNamespace(mode=Mode.COT)",
            made,
        )
        return lmstash.fingerprint(Steered(made["SETTINGS"])).digest

    one, other = MODES[what]
    torch.manual_seed(0)
    first = steered(one)
    torch.manual_seed(0)
    again = steered(one)
    torch.manual_seed(0)
    assert first == again != steered(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"k": 2.0}.get, {"k": 3.0}.get),
        (torch.ones(2).mul, torch.zeros(2).mul),
        (["k", "j"].index, ["j", "k"].index),
        (re.compile("a").sub, re.compile("b").sub),
        ("<{}>".format, "({})".format),
    ],
)
def test_methods_in_c_count_by_what_they_are_bound_to(one: Any, other: Any) -> None:
    def digest(function: Any) -> bytes:
        torch.manual_seed(0)
        return lmstash.fingerprint(Steered(function)).digest

    assert digest(one) == digest(one) != digest(other)


@pytest.mark.parametrize("function", [random.random, math.sin, dict.fromkeys, torch.relu, sys.stdout.write])
def test_functions_of_modules_count_by_their_names(function: Any) -> None:
    torch.manual_seed(0)
    model = Steered(function)
    before = lmstash.fingerprint(model).digest
    random.random()

    assert lmstash.fingerprint(model).digest == before
