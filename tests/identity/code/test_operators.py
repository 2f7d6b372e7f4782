"""Operators of torch's dispatcher: by name where they are torch's, by function where it can be had, else not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import lmstash
from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.operators import (
    is_all_spaces,
    is_space,
    is_unreadable,
    made_of,
    operator_name,
    operators_named,
)

MUL, MUL_TENSOR = torch.ops.aten.mul, torch.ops.aten.mul.Tensor
factor = 2.0


class ByTensor(nn.Module):
    def forward(self, x):
        return MUL_TENSOR(x, factor)


class ByPacket(nn.Module):
    def forward(self, x):
        return MUL(x, factor)


class ByName(nn.Module):
    def forward(self, x):
        return torch.ops.lmstash_test.scaled(x)


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.operator = torch.ops.lmstash_test.scaled

    def forward(self, x):
        return self.operator(x)


def model_with(activation):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
    model.model.layers[0].mlp.act_fn = activation
    return model


@pytest.fixture
def scaled():
    """An operator computed by a function that `Library.impl` has taken."""
    with torch.library._scoped_library("lmstash_test", "DEF") as library:
        library.define("scaled(Tensor x) -> Tensor")
        library.impl("scaled", lambda x: x * factor, "CPU")
        yield


@pytest.fixture(autouse=True)
def forgotten():
    """Whatever a test has made of functions is gone behind it."""
    from torch._library import custom_ops

    yield
    for name in [each for each in custom_ops.OPDEF_TO_LIB if each.startswith("lmstash_test")]:
        custom_ops.OPDEF_TO_LIB.pop(name)._destroy()
        custom_ops.OPDEFS.pop(name, None)


def test_operators_are_told_by_their_names():
    assert [operator_name(each) for each in (MUL, MUL_TENSOR, 3, torch.mul)] == [
        "aten::mul",
        "aten::mul.Tensor",
        None,
        None,
    ]
    assert not is_unreadable("aten::mul.Tensor")


@pytest.mark.parametrize("kind", [ByTensor, ByPacket])
def test_torch_s_own_operators_hinder_nobody(kind):
    assert lmstash.fingerprint(model_with(kind())).hex == lmstash.fingerprint(model_with(kind())).hex


def test_another_operator_is_another_model(monkeypatch):
    before = lmstash.fingerprint(model_with(ByTensor())).hex
    monkeypatch.setitem(globals(), "MUL_TENSOR", torch.ops.aten.add.Tensor)
    assert lmstash.fingerprint(model_with(ByTensor())).hex != before


@pytest.mark.parametrize("kind", [ByName, ByValue])
def test_an_operator_whose_function_nobody_can_read_is_refused_unless_somebody_vouches(scaled, kind):
    model = model_with(kind())
    with pytest.raises(UnsupportedModelError, match=r"lmstash_test::scaled.*custom_op"):
        lmstash.fingerprint(model)
    assert lmstash.fingerprint(model, variant="by two").hex


def test_one_that_comes_while_a_cache_is_open_is_noticed():
    model = model_with(ByName())
    scope = torch.library._scoped_library("lmstash_test", "DEF")
    with lmstash.open("memory://", strict=True) as stash, scope as library:
        library.define("scaled(Tensor x) -> Tensor")
        acts = stash.activations(model)
        library.impl("scaled", lambda x: x * factor, "CPU")
        with pytest.raises(UnsupportedModelError, match="lmstash_test::scaled"):
            acts([[1, 2, 3]], 0, "last")


def test_only_what_code_names_is_looked_for(scaled):
    defined("other", "x")
    assert operators_named({"lmstash_test", "scaled"}) == {}
    assert [*operators_named({"ops", "lmstash_test", "scaled", "more"})] == ["lmstash_test::scaled"]
    assert operators_named({"ops", "aten", "mul"}) == {}
    assert operators_named({"ops", "aten", "getattr"}) == {}


@pytest.mark.parametrize(
    ("words", "reaching"),
    [
        ({"ops", "lmstash_test"}, {}),
        ({"ops", "lmstash_test", "scaled", "getattr"}, {}),
        ({"ops", "vars"}, {"in_any_space": True}),
        (set(), {"held": {"lmstash_test"}}),
    ],
)
def test_all_of_a_space_is_what_code_may_call_that_does_not_say_which(scaled, words, reaching):
    defined("other", "x")
    assert {"lmstash_test::other", "lmstash_test::scaled"} <= {*operators_named(words, **reaching)}


def test_spaces_are_told_from_those_of_torch_and_of_other_modules():
    ops = torch.ops
    assert [*map(is_space, (ops.lmstash_test, ops.aten, ops.higher_order, ops, torch))] == [True, *[False] * 4]
    assert [*map(is_all_spaces, (ops, ops.lmstash_test, torch))] == [True, False, False]


def defined(name, body, space="lmstash_test"):
    """Have torch know an operator of this body, as a notebook's cell does."""
    scope = {"torch": torch}
    source = f"""
@torch.library.custom_op("{space}::{name}", mutates_args=())
def {name}(x: torch.Tensor) -> torch.Tensor:
    return {body}
"""
    exec(compile(source, "<ipython-input-1>", "exec"), scope)
    return scope[name]


space = torch.ops.lmstash_test
everything = torch.ops


class ByAlias(nn.Module):
    def forward(self, x):
        return space.made(x)


class ByTwoAliases(nn.Module):
    def forward(self, x):
        return everything.lmstash_test.made(x)


class ByHeldSpace(nn.Module):
    def __init__(self):
        super().__init__()
        self.space = torch.ops.lmstash_test

    def forward(self, x):
        return self.space.made(x)


class ByHeldSpaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.all, self.where = torch.ops, "lmstash_test"

    def forward(self, x):
        return getattr(self.all, self.where).made(x)


class ByClosure(nn.Module):
    def __init__(self):
        super().__init__()
        held = torch.ops.lmstash_test
        self.call = lambda x: held.made(x)

    def forward(self, x):
        return self.call(x)


class ByHeldName(nn.Module):
    def __init__(self):
        super().__init__()
        self.kind = "made"

    def forward(self, x):
        return getattr(torch.ops.lmstash_test, self.kind)(x)


class ByHeldNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.where, self.kind = "lmstash_test", "made"

    def forward(self, x):
        return getattr(getattr(torch.ops, self.where), self.kind)(x)


class ByText(nn.Module):
    def forward(self, x):
        return getattr(torch, "ops").lmstash_test.made(x)  # noqa: B009


def made_in(held, x):
    return held.made(x)


class ByHandingOn(nn.Module):
    def forward(self, x):
        return made_in(torch.ops.lmstash_test, x)


class ByMade(nn.Module):
    def forward(self, x):
        return torch.ops.lmstash_test.made(x)


KINDS = [
    *(ByAlias, ByTwoAliases, ByHeldSpace, ByHeldSpaces, ByClosure, ByHeldName, ByHeldNames, ByText, ByHandingOn),
    ByMade,
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_defined_anew_is_another_model_however_it_is_reached(kind):
    defined("made", "x * 2")
    model, ids = model_with(kind()), [[1, 2, 3]]
    before = lmstash.fingerprint(model).hex
    with lmstash.open("memory://", strict=True) as stash:
        acts = stash.activations(model)
        first = acts(ids, 0, None)[0][0]
        defined("made", "x * 3")
        again, new = acts(ids, 0, None)[0][0], stash.activations(model)(ids, 0, None)[0][0]
    assert lmstash.fingerprint(model).hex != before
    assert not torch.equal(first, again)
    assert torch.equal(again, new)
    defined("made", "x * 2")
    assert lmstash.fingerprint(model).hex == before


class ByCall(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def test_what_holds_an_older_definition_counts_as_the_one_that_its_name_has_now():
    model = model_with(ByCall(defined("over", "x * 2")))
    before = lmstash.fingerprint(model).hex
    defined("over", "x * 3")  # which torch calls now, if it calls anything: the older operator is freed
    assert lmstash.fingerprint(model).hex != before


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_cannot_be_read_is_refused_however_it_is_reached(kind):
    with torch.library._scoped_library("lmstash_test", "FRAGMENT") as library:
        library.define("made(Tensor x) -> Tensor")
        library.impl("made", lambda x: x * factor, "CPU")
        with pytest.raises(UnsupportedModelError, match="lmstash_test::made"):
            lmstash.fingerprint(model_with(kind()))


@pytest.mark.parametrize("key", ["CPU", "CompositeExplicitAutograd"])
def test_a_kernel_over_somebody_s_function_is_refused(key):
    made = defined("over", "x * 2")
    x = torch.ones(2)
    assert not is_unreadable("lmstash_test::over")
    with torch.library._scoped_library("lmstash_test", "IMPL") as library:
        library.impl("over", lambda x: x * 5, key)
        assert torch.equal(made(x), x * 5)
        assert is_unreadable("lmstash_test::over")
        for activation in (ByOver(), ByOver(made)):
            with pytest.raises(UnsupportedModelError, match="lmstash_test::over"):
                lmstash.fingerprint(model_with(activation))
    assert not is_unreadable("lmstash_test::over")


@pytest.mark.parametrize("key", ["CPU", "CompositeExplicitAutograd"])
def test_one_that_is_put_over_it_while_a_cache_is_open_is_noticed(key):
    defined("over", "x * 2")
    model = model_with(ByOver())
    scope = torch.library._scoped_library("lmstash_test", "IMPL")
    with lmstash.open("memory://", strict=True) as stash, scope as library:
        acts = stash.activations(model)
        acts([[1, 2, 3]], 0, "last")
        library.impl("over", lambda x: x * 5, key)
        with pytest.raises(UnsupportedModelError, match="lmstash_test::over"):
            acts([[1, 2, 3]], 0, "last")


class ByOver(nn.Module):
    def __init__(self, call=None):
        super().__init__()
        self.call = call

    def forward(self, x):
        return torch.ops.lmstash_test.over(x) if self.call is None else self.call(x)


def test_kernels_that_are_off_are_another_model_while_they_are():
    made = defined("over", "x * 2")
    made.register_kernel("cpu")(lambda x: x * 3)
    model, ids = model_with(ByOver()), [[1, 2, 3]]
    with lmstash.open("memory://", strict=True) as stash:
        acts = stash.activations(model)
        on = acts(ids, 0, None)[0][0]
        with made.set_kernel_enabled("cpu", enabled=False):
            assert not torch.equal(acts(ids, 0, None)[0][0], on)
        assert torch.equal(acts(ids, 0, None)[0][0], on)


def test_what_autocast_hands_an_operator_counts():
    made = defined("over", "x * 2")
    before = lmstash.fingerprint(model_with(ByOver())).hex
    made.register_autocast("cpu", torch.bfloat16)
    assert lmstash.fingerprint(model_with(ByOver())).hex != before


def test_kernels_for_other_devices_and_shapes_leave_a_function_readable():
    made = defined("everywhere", "x * 2")
    made.register_kernel("cuda")(lambda x: x * 2)
    made.register_fake(torch.empty_like)
    assert not is_unreadable("lmstash_test::everywhere")

    @torch.library.custom_op("lmstash_test::in_place", mutates_args=("x",))
    def in_place(x: torch.Tensor) -> None:
        x.mul_(2)

    assert not is_unreadable("lmstash_test::in_place")
    assert made_of("lmstash_test::in_place") is in_place


def test_shapes_for_an_operator_of_c_make_it_no_less_readable():
    with torch.library._scoped_library("lmstash_shapes", "DEF") as library:
        library.define("act(Tensor x) -> Tensor")
        library.impl("act", torch.empty_like, "Meta")
        assert not is_unreadable("lmstash_shapes::act")


class BySignal(nn.Module):
    def forward(self, x):
        return torch.ops.signal.act(x)


def test_a_space_that_is_called_like_a_module_of_python_s_is_somebody_s():
    with torch.library._scoped_library("signal", "DEF") as library:
        library.define("act(Tensor x) -> Tensor")
        library.impl("act", lambda x: x * factor, "CPU")
        with pytest.raises(UnsupportedModelError, match="signal::act"):
            lmstash.fingerprint(model_with(BySignal()))


class ByTwoSpaces(nn.Module):
    def forward(self, x):
        return space.made(x) - second.made(x)


second = torch.ops.lmstash_test2


def test_aliases_that_change_places_are_another_model(monkeypatch):
    defined("made", "x * 2")
    defined("made", "x * 3", space="lmstash_test2")
    model, ids = model_with(ByTwoSpaces()), [[1, 2, 3]]
    before = lmstash.fingerprint(model).hex
    with lmstash.open("memory://", strict=True) as stash:
        acts = stash.activations(model)
        first = acts(ids, 0, None)[0][0]
        monkeypatch.setitem(globals(), "space", second)
        monkeypatch.setitem(globals(), "second", torch.ops.lmstash_test)
        assert lmstash.fingerprint(model).hex != before
        assert not torch.equal(first, acts(ids, 0, None)[0][0])


def test_an_operator_that_comes_as_another_goes_is_noticed():
    defined("other", "x * 2")
    with lmstash.open("memory://", strict=True) as stash:
        with torch.library._scoped_library("lmstash_gone", "DEF") as library:
            library.define("act(Tensor x) -> Tensor")
            library.impl("act", lambda x: x * factor, "CPU")
            acts = stash.activations(model_with(ByHeldNameOr()))
        with torch.library._scoped_library("lmstash_test", "FRAGMENT") as library:
            library.define("made(Tensor x) -> Tensor")
            library.impl("made", lambda x: x * factor, "CPU")
            with pytest.raises(UnsupportedModelError, match="lmstash_test::made"):
                acts([[1, 2, 3]], 0, "last")


class ByHeldNameOr(nn.Module):
    def forward(self, x):
        return space.made(x) if hasattr(space, "made") else space.other(x)


class ByTorchsAlias(nn.Module):
    def forward(self, x):
        return getattr(ATEN, "silu")(everything.aten.mul(x, factor))  # noqa: B009


ATEN = torch.ops.aten


def test_spaces_of_torch_s_own_lead_to_nobody_s_operators(scaled):
    assert lmstash.fingerprint(model_with(ByTorchsAlias())).hex
