"""A glance at a model sees what a whole description would, but for what it names."""

from __future__ import annotations

import collections
import contextlib
import copy
import enum
import types
from typing import Any, NamedTuple

import pytest
import torch

from lmstash.errors import UnsupportedModelError
from lmstash.identity.memory import dict_stamps, object_words
from lmstash.identity.models import watch as watch_module
from lmstash.identity.models.glance import Glance
from lmstash.identity.models.reached import Reached
from lmstash.identity.models.sighting import addresses_of
from lmstash.identity.models.structure import stamp
from lmstash.identity.models.watch import ModelWatch


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


class Named(str):
    pass


class SubList(list):  # type: ignore[type-arg]
    pass


class OtherList(list):  # type: ignore[type-arg]
    pass


class NoState:
    __slots__ = ()


class OtherBare:
    __slots__ = ()


def renamed(held: dict[str, Any], names: dict[str, str]) -> None:
    """Give entries other names in the same places."""
    entries = [(names.get(name, name), value) for name, value in held.items()]
    held.clear()
    held.update(entries)


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
        self.other = torch.nn.Parameter(torch.ones(4, 4))
        self.register_buffer("hidden_mask", torch.zeros(4))
        self.inner = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.two = {"on": {"x": 1, "y": 2}, "off": {"z": 3}}
        self.bare = NoState()
        self.sublist = SubList([1])
        self.complex = torch.ones(3, dtype=torch.complex64)
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
    "attributes' names": lambda m: renamed(m.__dict__, {"eps": "zero", "zero": "eps"}),
    "the last attribute's name": lambda m: setattr(m, "renamed", vars(m).pop("empty")),
    "children's names": lambda m: renamed(m._modules, {"inner": "second", "second": "inner"}),
    "parameters' names": lambda m: renamed(m._parameters, {"weight": "other", "other": "weight"}),
    "buffers' names": lambda m: renamed(m._buffers, {"mask": "hidden_mask", "hidden_mask": "mask"}),
    "an entry moved to the next dict": lambda m: m.two["off"].update(x=m.two["on"].pop("x")),
    "the class of what has no attributes": lambda m: setattr(m.bare, "__class__", OtherBare),
    "the class of a list": lambda m: setattr(m.sublist, "__class__", OtherList),
    "conjugated on its memory": lambda m: setattr(m.complex, "data", m.complex.data.conj()),
    "mode": lambda m: m.eval(),
    "a forward": lambda m: setattr(m, "forward", lambda x: x),
}


LATER = {
    "another type of the same memory",
    "conjugated on its memory",
    "all attributes at once",
    "all of an object's attributes",
}
"""What a glance does not see, and a whole look does."""


@pytest.fixture(params=["all that is read", "no stamps", "by hand"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this Python offers, and what others do."""
    if request.param != "all that is read":
        monkeypatch.setattr(dict_stamps, "_are_kept", lambda: False)
    if request.param == "by hand":
        monkeypatch.setattr(object_words, "_are_readable", lambda: False)


def described(model: torch.nn.Module) -> Any:
    found, live = stamp(model)
    return found, addresses_of(live)


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_description_sees_a_glance_sees(name: str) -> None:
    model = Bare()
    before, glance = described(model), Glance(model, {})
    assert glance.holds()
    CHANGES[name](model)
    assert described(model) != before, "or it is no change"
    if name not in LATER:
        assert not glance.holds()
        assert not glance.holds(), "nor the second time"


@pytest.mark.parametrize("name", CHANGES)
def test_a_watch_sees_it(name: str) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    first = watch.recognise()
    assert watch.recognise() == first == watch.refresh()
    reading = watch._reading
    CHANGES[name](model)
    if name in LATER:
        watch.refresh()
    else:
        watch.recognise()
    assert watch._reading is not reading


def test_a_copy_put_in_place_during_the_walk_is_not_taken_for_what_was_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bare()
    take = Reached._take

    def taking(self: Reached, value: Any) -> None:
        take(self, value)
        if value is listed:
            model.listed = copy.deepcopy(listed)

    listed = model.listed
    monkeypatch.setattr(Reached, "_take", taking)
    glance = Glance(model, {})
    model.listed[1].append(5)
    assert not glance.holds()


def test_hooks_of_all_modules_put_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    glance = Glance(Bare(), {})
    monkeypatch.setattr(torch.nn.modules.module, "_global_forward_hooks", {1: lambda *_: None})
    assert not glance.holds()


class Hook:
    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self, module: Any, inputs: Any, output: Any) -> Any:
        return output * self.scale


@pytest.mark.parametrize("everywhere", [False, True])
def test_what_a_hook_bears_counts(everywhere: bool) -> None:
    model, hook = Bare(), Hook()
    register = torch.nn.modules.module.register_module_forward_hook if everywhere else model.inner.register_forward_hook
    handle = register(hook)
    try:
        watch = ModelWatch(model, variant="test")
        first = watch.refresh()
        hook.scale = 2.0
        assert watch.refresh() != first
    finally:
        handle.remove()


@pytest.mark.parametrize("ask", ["recognise", "refresh", "look", "unchanged"])
def test_memory_that_was_freed_is_never_read(ask: str) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    watch.recognise()
    watch.recognise()
    model.weight.untyped_storage().resize_(0)
    for _ in range(3):
        with contextlib.suppress(UnsupportedModelError):
            getattr(watch, ask)()
    assert Glance(model, {}) is not None


def test_a_storage_cut_behind_a_tensor_is_never_read() -> None:
    model = Bare()
    model.weight.untyped_storage().resize_(16)
    assert Glance(model, {})._read() is not None


def test_a_tensor_without_memory_of_its_own_is_never_read() -> None:
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> Any:
            made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
            made.inner = inner
            return made

        @classmethod
        def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    model = Bare()
    model.attached = Wrapper(torch.ones(3))
    assert not Glance(model, {}).holds()


def test_a_reading_by_another_call_ends_a_glance() -> None:
    """From A to B, read there, and back to A: the glance at A must not vouch for B's fingerprint."""
    model = Bare()
    watch = ModelWatch(model, variant="test")
    first = watch.recognise()
    assert watch.recognise() == first
    model.text = "B"
    second = watch.refresh()
    assert second != first
    model.text = "name"
    model.text = Named("name")
    assert watch.recognise() == first


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


def test_a_look_that_reads_no_weights_vouches_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")
    monkeypatch.setattr(watch_module, "_SHARE", 1e-9)  # no whole look is due for years
    first = watch.recognise()
    watch.recognise()
    model.weight.data.mul_(2)
    watch.look()
    assert watch.recognise() != first


def test_the_next_glance_draws_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmstash.identity.models.glance.WHOLE_BYTES", 0)
    model = Bare()
    watch = ModelWatch(model, variant="test")
    monkeypatch.setattr(watch_module, "_SHARE", 1e9)  # each look is a whole one
    watch.recognise()
    glance = watch._glance
    assert glance is not None
    places = [[each.obj for each in glance._words]]
    for _ in range(20):
        watch.recognise()
        assert watch._glance is glance
        places.append([bytes(each) for each in glance._words])
    assert len({str(each) for each in places}) > 1


def test_a_glance_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bare()
    watch = ModelWatch(model, variant="test")

    def failing(*_: Any) -> None:
        raise RuntimeError("no looking")

    monkeypatch.setattr("lmstash.identity.models.glance.Reached", failing)
    first = watch.recognise()
    for _ in range(5):
        assert watch.recognise() == first == watch.refresh()
    model.eps = 3.0
    assert watch.recognise() != first
