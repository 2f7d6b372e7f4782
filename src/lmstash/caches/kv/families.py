"""Which models can be served, and how: by what their own empty cache is made of, never by their name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "su")


@dataclass(frozen=True, slots=True)
class Family:
    """How the KV of a model is kept."""

    reason: str = ""
    """Why it is not; empty when it is."""
    kept: tuple[int, ...] = ()
    """Layers of its cache that keep keys and values."""
    argument: str = "past_key_values"
    """What `generate` and `forward` call the cache."""

    @property
    def served(self) -> bool:
        """Whether anything is kept for it."""
        return not self.reason


def empty_cache(model: Any) -> Cache:
    """Return a fresh cache as `generate` itself would make it."""
    config = model.config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return DynamicCache(config=text)


def family_of(model: Any) -> Family:
    """Return how the KV of `model` is kept, or why not."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "generate"):
        return Family("it has no generate()")
    if getattr(config, "is_encoder_decoder", False):
        return Family("an encoder-decoder: its KV depends on the encoder's input")
    if hasattr(config, "get_text_config") and config.get_text_config(decoder=True) is not config:
        return Family("a model of several modalities: its KV may depend on more than token ids")
    if any(_depends_on_length(getattr(config, name, None)) for name in ("rope_scaling", "rope_parameters")):
        return Family("its rotary embedding depends on the length of the whole prompt")
    if getattr(model, "_is_stateful", False):
        return Family("its state is recurrent")
    try:
        layers = empty_cache(model).layers
    except Exception as error:  # configurations that no DynamicCache understands
        return Family(f"no DynamicCache can be made for it ({error})")
    if not layers:
        return Family("its configuration does not say what its cache is made of")
    if any(type(layer) is not DynamicLayer for layer in layers):
        odd = next(type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer)
        return Family(f"its cache has layers of class {odd}")
    return Family(kept=tuple(range(len(layers))), argument=_cache_argument(model))


def _cache_argument(model: Any) -> str:
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    names = inspect.signature(prepare).parameters if prepare is not None else {}
    return "cache" if "cache" in names else "past_key_values"


def _depends_on_length(rope: Any) -> bool:
    if not isinstance(rope, dict):
        return False
    kind = rope.get("rope_type", rope.get("type"))
    return kind in _LENGTH_DEPENDENT_ROPE or any(_depends_on_length(each) for each in rope.values())
