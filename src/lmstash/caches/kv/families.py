"""Which models can be served, and how: by what their own empty cache is made of, hardly by their name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

from lmstash.caches.kv.layers import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)
from lmstash.caches.torch_model import CHOOSING, configs_of, rope_limits, shares_among_tokens
from lmstash.identity.models.reached import config_of


@dataclass(frozen=True, slots=True)
class Family:
    """How the KV of a model is kept."""

    reason: str = ""
    """Why it is not; empty when it is."""
    kept: tuple[int, ...] = ()
    """Layers of its cache that keep keys and values."""
    sliding: tuple[int, ...] = ()
    """Those of them that forget what leaves their window, unless told to remember."""
    linear: tuple[int, ...] = ()
    """Layers with a recurrent state."""
    doubtful: bool = False
    """Whether the model must be seen to continue from its cache before anything is kept."""
    argument: str = "past_key_values"
    """What `generate` and `forward` call the cache."""
    takes: frozenset[str] = frozenset()
    """Arguments of `forward`, by name."""

    def empty(self, model: Any) -> Cache:
        """Return a fresh cache as `generate` itself would make it, except that sliding layers remember everything.

        They show the model the same window all the same.
        """
        cache = _empty_cache(model)
        for number in self.sliding:
            layer: Any = cache.layers[number]
            layer.activate_past_recording()
        return cache

    def forget(self, cache: Any) -> None:
        """Make sliding layers what `generate` would have left: the window, and nothing remembered."""
        for number in self.sliding:
            layer: Any = cache.layers[number]
            if type(layer) is DynamicSlidingWindowLayer and layer.record_past:
                layer.record_past = False
                if layer.keys is not None and layer.values is not None:
                    first = -layer.sliding_window + 1
                    layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]


def family_of(model: Any) -> Family:
    """Return how the KV of `model` is kept, or why not."""
    config = config_of(model)
    if config is None or not hasattr(model, "generate"):
        return Family("it has no generate()")
    if getattr(config, "is_encoder_decoder", False):
        return Family("an encoder-decoder: its KV depends on the encoder's input")
    if hasattr(config, "get_text_config") and config.get_text_config(decoder=True) is not config:
        return Family("a model of several modalities: its KV may depend on more than token ids")
    configs = configs_of(model, config)
    if any(True for _ in rope_limits(model, configs)):
        return Family("its rotary embedding depends on the length of the whole prompt")
    if any(getattr(each, name, None) for each in configs for name in CHOOSING):
        return Family("its attention chooses tokens by an index of its own")
    if not _is_causal(config):
        return Family("it is an encoder: tokens see what comes after them")
    if any(map(_turns_both_ways, configs)) or _sees_later(model):
        return Family("part of it says is_causal=False: tokens see what comes after them")
    if shares_among_tokens(model, config):
        return Family(
            "it shares something out among all tokens of a pass (experts' room, the scale of rounded numbers)"
        )
    supports = getattr(model, "_supports_default_dynamic_cache", None)
    if supports is not None and not supports():
        return Family("it has a cache of its own kind")
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, dict) and any(getattr(each, "is_prompt_learning", False) for each in adapters.values()):
        return Family("a prompt-learning adapter puts virtual tokens before the prompt")
    if isinstance(adapters, dict) and any(getattr(each, "alora_invocation_tokens", None) for each in adapters.values()):
        return Family("an activated LoRA begins where the prompt says so further on")
    try:
        layers = _empty_cache(model).layers
    except Exception as error:  # configurations that no DynamicCache understands
        return Family(f"no DynamicCache can be made for it ({error})")
    if not layers:
        return Family("its configuration does not say what its cache is made of")
    takes = _arguments(model)
    argument = next((name for name in ("cache", "past_key_values") if name in takes), None)
    if argument is None:
        return Family("its forward() takes no cache")
    family = _family_of_layers(layers, argument, takes)
    own = type(model).__module__.startswith("transformers.")
    return family if own or family.reason else replace(family, doubtful=True)


def _family_of_layers(layers: list[Any], argument: str, takes: frozenset[str]) -> Family:
    kept: list[int] = []
    sliding: list[int] = []
    linear: list[int] = []
    for number, layer in enumerate(layers):
        kind = type(layer)
        if kind is DummyLayer:
            continue
        states = isinstance(getattr(layer, "conv_states", None), dict)  # a plain tensor in older versions
        if states and kind in (LinearAttentionLayer, LinearAttentionAndFullAttentionLayer):
            linear.append(number)
            if kind is LinearAttentionLayer:
                continue
        elif kind is DynamicSlidingWindowLayer and hasattr(layer, "activate_past_recording"):
            sliding.append(number)
        elif kind is not DynamicLayer:
            return Family(f"its cache has layers of class {kind.__name__}")
        kept.append(number)
    if not kept:
        return Family("it keeps no keys and values, so that generate() cannot tell how far its state goes")
    doubtful = bool(sliding or linear)
    return Family("", tuple(kept), tuple(sliding), tuple(linear), doubtful, argument, takes)


def _empty_cache(model: Any) -> Cache:
    config = model.config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return DynamicCache(config=text)


def _is_causal(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = getattr(config, "model_type", "")
    if getattr(config, "is_causal", True) is False:
        return False
    return kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or bool(getattr(config, "is_decoder", False))


def _turns_both_ways(config: Any) -> bool:
    """Whether transformers would mask nothing of what comes after a token, by a configuration of any part."""
    both = getattr(config, "use_bidirectional_attention", None)
    return not getattr(config, "is_causal", True) or both is True or both == "all"


def _sees_later(model: Any) -> bool:
    """Whether attention says that it is not causal; what looks at another text, of which there is none, may say so."""
    of_class: dict[type, Any] = {}
    for path, module in model.named_modules():
        kind, held = type(module), vars(module)
        if kind not in of_class:
            of_class[kind] = inspect.getattr_static(kind, "is_causal", None)
        across = "cross" in path.lower() or held.get("is_cross_attention") is True
        if held.get("is_causal", of_class[kind]) is False and not across:
            return True
    return False


def _arguments(model: Any) -> frozenset[str]:
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)
