"""What hangs on a model and steers it, whatever it is kept in."""

from __future__ import annotations

import collections
import datetime
import functools
import gc
import logging
import math
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lmstash
from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.describe import Describer
from lmstash.identity.models.structure import stamp
from lmstash.identity.models.watch import watch_model


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


class Templates(dict[str, str]):
    def __init__(self, style: str) -> None:
        super().__init__(a="b")
        self.style = style

    def __missing__(self, name: str) -> str:
        return self.style


class Words(list[str]):
    sep: str


class Prompt(str):
    stop: str


class Rows(collections.UserDict[str, str]):
    style: str


class Array(np.ndarray):
    unit: str


class Row(collections.namedtuple("Row", "a")):
    unit: str


class Day(datetime.date):
    unit: str


class Adder:
    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, text: str) -> str:
        return text + self.word

    def method(self, text: str) -> str:
        return text + self.word


def bearing(made: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def _adding(word: str) -> Callable[[str], str]:
    return lambda text: text + word


BEARING: dict[str, Callable[[str], Any]] = {
    "a dict": Templates,
    "a list": lambda word: bearing(Words(["a"]), sep=word),
    "a text": lambda word: bearing(Prompt("Q"), stop=word),
    "a mapping": lambda word: bearing(Rows({"a": "b"}), style=word),
    "an ordered dict": lambda word: bearing(type("Ordered", (collections.OrderedDict,), {})(a=1), style=word),
    "an array": lambda word: bearing(np.zeros(2).view(Array), unit=word),
    "a named tuple": lambda word: bearing(Row(1), unit=word),
    "a date": lambda word: bearing(Day(2026, 1, 1), unit=word),
    "a partial": lambda word: bearing(functools.partial(str), word=word),
    "a dict with a default": lambda word: collections.defaultdict(_adding(word)),
    "a class of dicts with a default": (
        lambda word: bearing(type("D", (collections.defaultdict,), {"__module__": __name__})(list), word=word)
    ),
    "a static method": lambda word: staticmethod(_adding(word)),
    "a class method": lambda word: classmethod(functools.partial(Adder, word)),
    "a remembered object": lambda word: functools.lru_cache(Adder(word)),
    "a remembered method": lambda word: functools.cache(Adder(word).method),
    "a remembered partial": lambda word: functools.cache(functools.partial(re.sub, "a", word)),
    "a remembered method in C": lambda word: functools.cache(re.compile(word).sub),
    "a remembered closure": lambda word: functools.cache(_adding(word)),
}


@pytest.mark.parametrize("what", BEARING)
def test_what_an_object_bears_beside_what_it_holds_counts(what: str) -> None:
    def digest(word: str) -> bytes:
        torch.manual_seed(0)
        return lmstash.fingerprint(Steered(BEARING[what](word))).digest

    assert digest("x") == digest("x") != digest("y")


def test_the_code_of_ones_own_dicts_and_texts_counts() -> None:
    def digest(base: str, body: str) -> bytes:
        scope: dict[str, Any] = {"__name__": __name__}
        exec(f"class Own({base}):\n    def __missing__(self, name): return {body}", scope)
        torch.manual_seed(0)
        return lmstash.fingerprint(Steered(scope["Own"]())).digest

    for base in ("dict", "list", "str", "tuple", "float"):
        assert digest(base, "1") == digest(base, "1") != digest(base, "2")


def test_what_a_librarys_dict_bears_refuses_nothing() -> None:
    """Of those that lmstash cannot look into."""

    class Held(dict[str, int]):
        def __init__(self) -> None:
            super().__init__(a=1)
            self.frame = sys._getframe()

    Held.__module__ = "numpy.own"
    torch.manual_seed(0)
    model = Steered(Held())
    assert lmstash.fingerprint(model).hex == lmstash.fingerprint(model).hex


@pytest.mark.parametrize("paths", [["a"] * 5, ["a'", "a", "a", "a''", "a'", "a", "a"], ["a''", "a'", "a", "a'", "a"]])
def test_what_comes_later_to_a_place_bears_marks_as_fingerprints_have_had_them(paths: list[str]) -> None:
    describer, taken = Describer(CodeByText(), lenient=False), list[str]()
    for path in paths:
        expected = path
        while expected in taken:
            expected += "'"
        taken.append(expected)
        assert describer._place(path) == expected


def test_a_look_costs_in_proportion_to_the_attributes_that_go_by_one_name() -> None:
    """As adapters have them on each layer: with one more mark each, 6600 modules took half a second a look."""

    def seconds(n_modules: int) -> float:
        model = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(n_modules)))
        for each in model:
            vars(each)["held"] = {"scale": Scale()}
        times = []
        for _ in range(3):
            started = time.process_time()
            stamp(model)
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(4000) < 10 * seconds(1000)


@pytest.mark.parametrize(
    "value", [[1, 2.0, "a"], {"a": 1, 2: (3, [4])}, {"a": {"b": [1]}, "c": {}}, ([], {}, [{}])], ids=repr
)
def test_what_is_plain_is_seen_to_change_in_place(value: Any) -> None:
    model = Steered(value)
    watch = watch_model(model)
    first = watch.refresh()

    def change(held: Any) -> None:
        for each in held.values() if type(held) is dict else held:
            if type(each) in (list, dict, tuple):
                change(each)
        if type(held) is dict:
            held["more"] = -0.0
        elif type(held) is list:
            held.append(0.0)

    change(value)
    changed = watch.refresh()
    assert changed != first
    model.switch = type(value)(value)  # equal
    assert watch.refresh() == changed
