"""A transformers model as the caches see it: its base, its limits, and whether a token depends on later ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmstash.errors import MissingDependencyError, UnsupportedModelError

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "su")
"""Rotary embeddings whose early positions change with the length of the whole prompt."""


class TorchModel:
    """What a transformers model says of itself. Reads no weights; threads may share it.

    Attributes:
        model: As given.
        whole: The same without a peft wrapper around it.
        base: What turns token ids into hidden states.
        config: Of the text model.
        vocabulary: How many token ids there are; None when not known.
        max_tokens: Longest prompt; None when the configuration names no limit.
    """

    def __init__(self, model: Any) -> None:
        """Look at `model`.

        Raises:
            UnsupportedModelError: An encoder-decoder, a model on the meta device, or one with virtual tokens.
        """
        config = getattr(model, "config", None)
        if not isinstance(model, nn.Module) or config is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} is no transformers model (a module with a config). Pass the model itself "
                "(for a wrapper: its .module), or extractor=, an object that reads the values."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{type(model).__name__} is an encoder-decoder: its encoder and decoder see different tokens. "
                "Pass model.get_encoder(), or extractor=."
            )
        if any(each.is_meta for each in model.parameters()):
            raise UnsupportedModelError(
                f"{type(model).__name__} has weights on the meta device: there is nothing to compute with. "
                "Load them first (from_pretrained without device_map='meta')."
            )
        self.model = model
        self.name: str = getattr(config, "name_or_path", "") or type(model).__name__
        self._refuse_prompt_learning()
        whole: Any = model
        if hasattr(whole, "peft_config") and hasattr(whole, "get_base_model"):
            whole = whole.get_base_model()
        self.whole: Any = whole
        self.base: nn.Module = getattr(whole, "base_model", whole)
        self.config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._embeddings: Any = whole.get_input_embeddings()
        self.vocabulary: int | None = getattr(self._embeddings, "num_embeddings", None)
        self.max_tokens = self._find_max_tokens()

    @property
    def device(self) -> torch.device:
        """Where token ids go: a model may move between calls, and stays the same model."""
        return self._embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next((each.dtype for each in self.model.parameters() if each.is_floating_point()), torch.float32)

    def may_skip_head(self) -> bool:
        """Whether calling the base model alone is what the whole model would do on the way."""
        model = self.model
        plain = type(model).__module__.startswith("transformers.") and "forward" not in vars(model)
        return plain and not (model._forward_hooks or model._forward_pre_hooks)

    def declared_causal(self) -> bool:
        """Whether a token depends on nothing after it, not even on how much follows, by what the configuration says."""
        try:
            from transformers.models.auto.modeling_auto import (
                MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
                MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            )
        except ImportError:
            raise MissingDependencyError("transformers", "torch") from None
        config = self.config
        if not type(self.base).__module__.startswith("transformers."):
            return False  # code nobody here has seen
        kind = getattr(config, "model_type", "")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return False
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return False
        return not any(_depends_on_length(getattr(config, name, None)) for name in ("rope_scaling", "rope_parameters"))

    def _find_max_tokens(self) -> int | None:
        limit = first_number(self.config, "max_position_embeddings", "n_positions")
        if limit is None:
            return None
        for path, module in self.base.named_modules():
            start = module.padding_idx if isinstance(module, nn.Embedding) else None
            if start is not None and path.endswith("position_embeddings"):
                return limit - start - 1  # RoBERTa counts positions from there
        return limit

    def _refuse_prompt_learning(self) -> None:
        adapters = getattr(self.model, "peft_config", None)
        if isinstance(adapters, dict) and any(getattr(each, "is_prompt_learning", False) for each in adapters.values()):
            raise UnsupportedModelError(
                f"{self.name} has a prompt-learning adapter: it puts virtual tokens before the prompt, so values do "
                "not belong to the prompt's tokens. Unload the adapter, or pass extractor=."
            )
        if isinstance(adapters, dict) and any(
            getattr(each, "alora_invocation_tokens", None) for each in adapters.values()
        ):
            raise UnsupportedModelError(
                f"{self.name} has an activated LoRA, which begins where a later token says so. Unload the adapter."
            )


def first_number(config: Any, *names: str) -> int | None:
    """Return the first of these settings that is a number other than 0."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int) and value), None)


def _depends_on_length(rope: Any) -> bool:
    if not isinstance(rope, dict):
        return False
    kind = rope.get("rope_type", rope.get("type"))
    return kind in _LENGTH_DEPENDENT_ROPE or any(_depends_on_length(each) for each in rope.values())
