"""A glance that stands for a description of the model sees whatever the description would."""

from __future__ import annotations

import collections
import enum
import functools
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lmstash.identity import dict_stamps, object_words
from lmstash.identity import watch as watch_module
from lmstash.identity.glance import Glance
from lmstash.identity.reached import Reached
from lmstash.identity.structure import stamp
from lmstash.identity.watch import ModelWatch


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    left: list[int]
    right: Any


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


class Called(Plain):
    def __call__(self, x: Any) -> Any:
        return x * self.value


class Other(Plain):
    pass


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Named(str):
    pass


def counter(start: int) -> Any:
    count = start

    def step() -> int:
        return count

    def turn(value: int) -> None:
        nonlocal count
        count = value

    step.turn = turn  # type: ignore[attr-defined]
    return step


class Bare(torch.nn.Module):
    """A module that bears one of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(16.0).reshape(4, 4))
        self.register_buffer("mask", torch.ones(4))
        self.inner = torch.nn.Linear(4, 4)
        self.config = Plain({"eps": 1e-5, "names": ["a", "b"], "deep": {"er": [{"x": 1}]}})
        self.eps = 1e-5
        self.zero = 0.0
        self.flag = True
        self.number = 1
        self.text = Named("name")
        self.listed = [1, [2, 3], {"four": 4}]
        self.chosen = {"a", "b"}
        self.pair = Pair([1, 2], {"k": "v"})
        self.plain = Plain(Plain([1]))
        self.called = Called(2.0)
        self.colour = Colour.RED
        self.step = counter(1)
        self.method = self.plain.value.__init__
        self.ordered = collections.OrderedDict(a=1, b=2)
        self.defaults = collections.defaultdict(list, a=[1])
        self.by_object = {Colour.RED: 1, (1, 2): [3]}
        self.space = types.SimpleNamespace(value=1)
        self.attached = torch.zeros(3)
        self.hidden = [torch.nn.Linear(2, 2)]
        self.nothing = None
        self.empty: dict[str, int] = {}


def set_(name: str, value: Any) -> Any:
    return lambda m: setattr(m, name, value)


CHANGES = {
    "a number": set_("eps", 1e-6),
    "the sign of zero": set_("zero", -0.0),
    "the type of a number": set_("number", 1.0),
    "a number for a flag": set_("flag", 1),
    "another text": set_("text", "other"),
    "another attribute": set_("more", 1),
    "an attribute less": lambda m: delattr(m, "nothing"),
    "into a list": lambda m: m.listed[1].append(9),
    "an item of a list": lambda m: m.listed.__setitem__(0, 7),
    "the type of an item": lambda m: m.listed.__setitem__(0, True),
    "in a dict in a list": lambda m: m.listed[2].update(four=5),
    "into a set": lambda m: m.chosen.add("c"),
    "one for another in a set": lambda m: (m.chosen.remove("a"), m.chosen.add("z")),
    "in a tuple's list": lambda m: m.pair.left.append(1),
    "in a tuple's dict": lambda m: m.pair.right.update(k="w"),
    "in an object's object": lambda m: m.plain.value.value.append(2),
    "an object's attribute": lambda m: setattr(m.plain, "value", 3),
    "an object's class": lambda m: setattr(m.plain, "__class__", Other),
    "a callable's state": lambda m: setattr(m.called, "value", 3.0),
    "another member": set_("colour", Colour.BLUE),
    "what a function closed over": lambda m: m.step.turn(2),
    "a method's object": lambda m: setattr(m.plain.value, "extra", 1),
    "another method": lambda m: setattr(m, "method", m.plain.__init__),
    "in a default dict": lambda m: m.defaults["a"].append(2),
    "another default": lambda m: m.defaults["b"],
    "under an object": lambda m: m.by_object.update({Colour.BLUE: 2}),
    "a list under a tuple": lambda m: m.by_object[1, 2].append(4),
    "in a namespace": lambda m: setattr(m.space, "value", 2),
    "in the configuration": lambda m: m.config.value.update(eps=1e-6),
    "deep in the configuration": lambda m: m.config.value["deep"]["er"][0].update(x=2),
    "the configuration's class": lambda m: setattr(m.config, "__class__", Other),
    "another configuration": lambda m: setattr(m, "config", Plain(1)),
    "no configuration": lambda m: delattr(m, "config"),
    "into what was empty": lambda m: m.empty.update(a=1),
    "an attribute of a parameter": lambda m: setattr(m.weight, "scale", 2.0),
    "an attribute of a loose tensor": lambda m: setattr(m.attached, "scale", 2.0),
    "a loose tensor": lambda m: setattr(m, "attached", torch.zeros(3)),
    "transposed through .data": lambda m: setattr(m.weight, "data", m.weight.data.T),
    "another shape through .data": lambda m: setattr(m.weight, "data", m.weight.data.view(2, 8)),
    "a strided view through .data": lambda m: setattr(m.mask, "data", m.mask.data.as_strided((4,), (0,))),
    "another type of the same memory": lambda m: setattr(m.attached, "data", m.attached.data.view(torch.int32)),
    "another parameter": lambda m: setattr(m, "weight", torch.nn.Parameter(m.weight.detach().clone())),
    "no buffer": lambda m: m._buffers.clear(),
    "none for a buffer": lambda m: m._buffers.update(mask=None),
    "other children": lambda m: m._modules.update(inner=torch.nn.Linear(4, 4)),
    "a child's attribute": lambda m: setattr(m.inner, "bias", None),
    "a hidden module's weight": lambda m: setattr(m.hidden[0], "weight", torch.nn.Parameter(torch.zeros(2, 2))),
    "a hidden module's attribute": lambda m: setattr(m.hidden[0], "more", 1),
    "a hidden module's hook": lambda m: m.hidden[0].register_forward_pre_hook(lambda *_: None),
    "a hook": lambda m: m.inner.register_forward_hook(lambda *_: None),
    "a class": lambda m: setattr(m.inner, "__class__", type("Sub", (torch.nn.Linear,), {})),
    "all attributes at once": lambda m: setattr(m.inner, "__dict__", {**m.inner.__dict__, "more": 1}),
    "all of an object's attributes": lambda m: setattr(m.plain, "__dict__", {"value": 5}),
    "mode": lambda m: m.eval(),
    "a forward": lambda m: setattr(m, "forward", lambda x: x),
}


@pytest.fixture(params=["all that is read", "no stamps", "by hand"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this Python offers, and what others do."""
    if request.param != "all that is read":
        monkeypatch.setattr(dict_stamps, "_are_kept", lambda: False)
    if request.param == "by hand":
        monkeypatch.setattr(object_words, "_are_readable", lambda: False)


def described(model: torch.nn.Module) -> Any:
    found, live = stamp(model, {})
    return found, watch_module._addresses(live)


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_description_sees_a_glance_sees(change: Any) -> None:
    model = Bare()
    before, glance = described(model), Glance(model, {})
    assert glance.is_whole
    assert glance.stands()
    change(model)
    assert described(model) != before, "or it is no change"
    assert not glance.stands()
    assert not glance.stands(), "nor the second time"


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_watch_that_lets_glances_stand_sees_it(change: Any) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    first = watch.refresh()
    for _ in range(3):
        assert watch.refresh() == first
    assert watch._glance is not None
    assert watch._glance.stands()
    reading = watch._reading
    change(model)
    watch.refresh()
    assert watch._reading is not reading


def opaque(model: Bare) -> dict[str, Any]:
    return {
        "slots": Slotted(1),
        "an array": np.zeros(3),
        "partial": functools.partial(max, 1),
        "a queue": collections.deque([1]),
        "a chain of dicts": collections.ChainMap({"a": 1}),
        "a proxy": types.MappingProxyType({"a": 1}),
        "a bytearray": bytearray(b"x"),
        "an iterator": iter([1, 2]),
        "its own way of listing": type("Odd", (list,), {"__iter__": lambda self: iter(model.listed)})(),
        "its own items": type("OddDict", (dict,), {"items": lambda self: model.config.value.items()})(a=1),
        "slots beside attributes": type("Both", (Plain,), {"__slots__": ("more",)})(1),
        "a subclass of C's": type("Queue", (collections.deque,), {})([1]),
        "a subclass of partial": type("Part", (functools.partial,), {})(max, 1),
    }


@pytest.mark.parametrize("name", opaque(Bare()))
@pytest.mark.parametrize("deep", [False, True])
def test_a_glance_does_not_stand_where_it_cannot_see(name: str, deep: bool) -> None:
    model = Bare()
    value = opaque(model)[name]
    model.odd = [Plain({"k": (value,)})] if deep else value
    glance = Glance(model, {})
    assert not glance.is_whole
    assert not glance.stands()


def test_a_configuration_from_elsewhere_is_not_relied_on() -> None:
    class Bearing(torch.nn.Module):
        @property
        def config(self) -> Any:
            return {"a": 1}

    assert not Reached(Bearing(), []).is_whole


def test_weights_changed_in_place_are_read_under_a_standing_glance() -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    first = watch.refresh()
    for _ in range(3):
        watch.refresh()
    model.weight.data[1, 2] += 1  # no counter moves
    second = watch.refresh()
    assert second != first
    for _ in range(3):
        assert watch.refresh() == second
    with torch.no_grad():
        model.weight[1, 2] -= 1
    assert watch.refresh() == first


def test_a_look_that_reads_no_weights_vouches_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a glance draws of weights counts once they were compared."""
    model = Bare()
    watch = ModelWatch(model, variant="test")
    first = watch.recognise()
    watch.recognise()
    monkeypatch.setattr(watch_module, "_SHARE", 1e-9)  # no whole look is due for years
    watch.recognise()
    watch._glance = None
    watch._descriptions = 5
    model.weight.data.mul_(2)
    watch.look()  # describes the model, and takes a glance
    assert watch._glance is not None
    assert watch.recognise() != first


def test_an_interrupted_recognition_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    monkeypatch.setattr(watch_module, "_SHARE", 1e-9)
    first = watch.recognise()
    assert watch.recognise() == first
    model.weight.data.mul_(2)

    def interrupted() -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(watch, "refresh", interrupted)
        with pytest.raises(KeyboardInterrupt):
            watch.recognise()
    assert watch.recognise() != first


def test_a_model_that_is_never_the_same_is_described_without_glances() -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    taken = []
    take = watch._take_glance
    watch._take_glance = lambda: taken.append(1) or take()  # type: ignore[method-assign]
    for number in range(30):
        model.name_or_path = str(number)  # means nothing, but is another value
        watch.refresh()
    assert len(taken) < 10


def test_a_glance_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")

    def failing(*_: Any) -> None:
        raise RuntimeError("no looking")

    monkeypatch.setattr("lmstash.identity.glance.Reached", failing)
    first = watch.recognise()
    for _ in range(5):
        assert watch.recognise() == first == watch.refresh()
    model.eps = 3.0
    assert watch.recognise() != first
