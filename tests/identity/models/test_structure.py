"""What a model is apart from its tensors' bytes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import parametrize

from lmstash.errors import UnsupportedModelError
from lmstash.identity.models.fingerprinting import fingerprint_model
from lmstash.identity.models.watch import watch_model


def test_a_parametrized_model_is_refused_while_torch_keeps_its_weights(build_llama: Any) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    plain, model = build_llama(), build_llama()
    parametrize.register_parametrization(model.lm_head, "weight", Scaled())
    watch = watch_model(model)
    first, other = watch.recognise().hex, fingerprint_model(plain).hex
    with parametrize.cached():
        with pytest.raises(UnsupportedModelError, match="parametrized model"):
            watch.recognise()
        assert not watch.unchanged()
        with pytest.raises(UnsupportedModelError, match="parametrized model"):
            fingerprint_model(model, variant="anything")
        assert fingerprint_model(plain).hex == other
    assert watch.recognise().hex == first == fingerprint_model(model).hex


def nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nested(torch.strided), "nested"),
        (lambda: nested(torch.jagged), "nested"),
        (torch.nn.UninitializedBuffer, "not initialised"),
    ],
    ids=["nested", "jagged", "not initialised"],
)
@pytest.mark.parametrize("variant", [None, "mine"])
def test_a_tensor_without_a_shape_is_refused_in_clear_words(
    build_llama: Any, make: Any, reason: str, variant: str | None
) -> None:
    model = build_llama()
    watch = watch_model(model, variant=variant)
    first = watch.refresh()
    model.model.register_buffer("extra", make())
    for look in (watch.refresh, watch.look, watch.recognise, lambda: fingerprint_model(model, variant=variant)):
        with pytest.raises(UnsupportedModelError, match=reason):
            look()
    assert not watch.unchanged()
    del model.model.extra
    assert watch.refresh() == first


class Unwilling(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def config(self) -> Any:
        raise RuntimeError("not now")

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.inner(*given, **named)


def test_a_configuration_that_is_not_given_breaks_nothing(build_llama: Any) -> None:
    model = build_llama()
    plain = fingerprint_model(model)
    model.lm_head = Unwilling(model.lm_head)
    within = watch_model(model).refresh()
    assert plain != within == fingerprint_model(model)
    whole = Unwilling(build_llama())
    assert watch_model(whole).refresh() == fingerprint_model(whole)


def test_a_kernel_of_attention_that_is_switched_off_counts_on_the_cpu(build_llama: Any) -> None:
    model = build_llama()
    watch = watch_model(model)
    usual = watch.refresh()
    assert usual.components["numerics"] == {}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert [each.name for each in usual.explain(watch.refresh())] == ["numerics.cuda.flash_sdp_enabled"]
    assert watch.refresh() == usual
