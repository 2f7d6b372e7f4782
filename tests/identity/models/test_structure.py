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
