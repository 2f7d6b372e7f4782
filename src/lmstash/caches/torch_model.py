"""A transformers model as the caches see it: its base, its limits, and whether a token depends on later ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import nn

from lmstash.errors import MissingDependencyError, UnsupportedModelError
from lmstash.identity.models.hooks import has_own_forward
from lmstash.identity.models.reached import config_of

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "su")
"""Rotary embeddings whose early positions change with the length of the whole prompt."""
CHOOSING = ("index_topk", "keep_window_size")
"""Settings of how many tokens attention chooses (DeepSeek's, Doge's): whom it takes of more hangs on all of them."""
_NESTED = 16
"""Wrappers around a function that are looked into; there may be a circle of them."""
TRIED_TOKENS = 24
"""How long prompts are with which a model is tried."""


class TorchModel:
    """What a transformers model says of itself. Reads no weights; threads may share it.

    Attributes:
        model: As given.
        whole: The same without a peft wrapper around it.
        base: What turns token ids into hidden states.
        config: Of the text model.
        vocabulary: How many token ids there are; None when not known.
        max_tokens: Longest prompt; None when the configuration names no limit.
        unknown_code: As given.
    """

    def __init__(self, model: Any, *, unknown_code: bool = False) -> None:
        """Look at `model`.

        Args:
            model: A transformers model, with peft's wrapper or without.
            unknown_code: Whether it runs code that may do what its configuration does not say
                (`ModelWatch.runs_unknown_code`).

        Raises:
            UnsupportedModelError: No transformers model, an encoder-decoder (not its encoder), a model on the meta
                device, or one with virtual tokens.
        """
        config = config_of(model)
        if not isinstance(model, nn.Module) or config is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} is no transformers model (a module with a config). Pass the model itself "
                "(for a wrapper: its .module), or extractor=, an object that reads the values."
            )
        if getattr(config, "is_encoder_decoder", False) and not _is_encoder(model):
            _refuse_two_streams(model)
        if any(each.is_meta for each in model.parameters()):
            raise UnsupportedModelError(
                f"{type(model).__name__} has weights on the meta device: there is nothing to compute with. "
                "Load them first (from_pretrained without device_map='meta')."
            )
        self.model = model
        self.unknown_code = unknown_code
        self.name: str = getattr(config, "name_or_path", "") or type(model).__name__
        self._refuse_prompt_learning()
        whole: Any = model
        if hasattr(whole, "peft_config") and hasattr(whole, "get_base_model"):
            whole = whole.get_base_model()
        self.whole: Any = whole
        self.base: nn.Module = getattr(whole, "base_model", whole)
        self.config = config.get_text_config() if hasattr(config, "get_text_config") else config
        if not hasattr(whole, "get_input_embeddings"):
            raise UnsupportedModelError(
                f"{type(model).__name__} has a config but no get_input_embeddings(), as transformers models have. Pass "
                "the model inside, if it only wraps one and changes nothing; else give it that method, or pass "
                "extractor=, an object that reads the values."
            )
        try:
            self._embeddings: Any = whole.get_input_embeddings()
        except NotImplementedError as error:  # of models that have none, such as CANINE
            raise UnsupportedModelError(f"{type(model).__name__}: {error} Pass extractor=.") from None
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
        plain = type(model).__module__.startswith("transformers.") and not has_own_forward(model)
        return plain and not (model._forward_hooks or model._forward_pre_hooks) and _is_of_transformers(type(model))

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
        if getattr(self.model.config, "is_encoder_decoder", False):
            return False  # the encoder of one: what the configuration says is about the whole
        if not type(self.base).__module__.startswith("transformers."):
            return False  # code nobody here has seen
        kind = getattr(config, "model_type", "")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return False
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return False
        return self.alike_tokens() is None and not self.shares_among_tokens

    def alike_tokens(self) -> int | None:
        """Return how long a batch may be to be computed as any shorter one is; None for any length, 0 for none.

        By what the configuration says, and those that parts may have of their own: some rotary embeddings turn
        otherwise in longer batches, for every prompt in them, BigBird's attention is whole in short ones, and attention
        that picks the best tokens picks others in longer batches. What code may do that nobody knows shows in trials,
        up to their length.
        """
        if getattr(self.base, "attention_type", None) == "block_sparse":
            return 0
        configs = configs_of(self.base, self.config)
        limits = [*rope_limits(self.base, configs)]
        limits += [chosen for each in configs for name in CHOOSING if (chosen := first_number(each, name)) is not None]
        if self.unknown_code:
            limits.append(TRIED_TOKENS)
        return min(limits, default=None)

    @cached_property
    def shares_among_tokens(self) -> bool:
        """Whether something is shared out among all tokens of a pass, so that each prompt must run alone."""
        return shares_among_tokens(self.base, self.config)

    def _find_max_tokens(self) -> int | None:
        limit = first_number(self.config, "max_position_embeddings", "n_positions", "max_seq_len")
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


def shares_among_tokens(base: nn.Module, config: Any) -> bool:
    """Return whether something is shared out among all tokens of a pass.

    Something that names a capacity, as experts do that take so many tokens and no more, or numbers rounded on the way
    by a scale for all tokens, or as outliers of any of them have it. A trial would have to fill the one, and go beyond
    the others' thresholds, so they are believed.
    """
    parts = [*base.modules(), config]
    of_kind = {kind: _capacities(*map(vars, reversed(kind.__mro__))) for kind in set(map(type, parts))}
    for part in parts:
        rooms = of_kind[type(part)] | _capacities(vars(part))
        # NLLB's experts have, by a fraction of the tokens. With all of them for each nothing is dropped.
        if rooms and rooms.get("moe_eval_capacity_token_fraction", 0) < 1:
            return True
        # bitsandbytes: columns in which any token goes beyond it are computed otherwise, for all tokens (LLM.int8).
        if type(part).__name__ == "Linear8bitLt" and getattr(getattr(part, "state", None), "threshold", 0) > 0:
            return True
    return any(map(_is_rounded_by_all, base.parameters()))


def _is_rounded_by_all(weight: Any) -> bool:
    """Whether what a weight of torchao's is multiplied with is rounded by one scale for all tokens."""
    granularity = getattr(getattr(weight, "act_quant_kwargs", None), "granularity", None)
    return type(granularity).__name__ == "PerTensor"


def configs_of(base: nn.Module, config: Any) -> list[Any]:
    """Return a configuration and all others that parts of a model have: they may have been put in from elsewhere."""
    held = (vars(module).get("config") for module in base.modules())
    theirs = [each for each in held if hasattr(type(each), "model_type")]  # as all of transformers' have
    return list({id(each): each for each in (config, *theirs)}.values())


def rope_limits(base: nn.Module, configs: Sequence[Any]) -> Iterator[int]:
    """Yield the lengths up to which rotary embeddings are the same that depend on the length of the whole prompt."""
    for config in configs:
        before = first_number(config, "original_max_position_embeddings", "max_position_embeddings") or 0
        for name in ("rope_scaling", "rope_parameters"):
            yield from _alike_tokens(getattr(config, name, None), before)
    for module in base.modules():
        kinds = vars(module).get("rope_type")
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            # One that its own configuration does not speak of was set by hand.
            if kind in LENGTH_DEPENDENT_ROPE and not [*rope_limits(nn.Module(), [vars(module).get("config")])]:
                yield 0


def _capacities(*tables: Mapping[str, Any]) -> dict[str, float]:
    held = ((name, each) for table in tables for name, each in table.items() if "capacity" in name)
    return {name: each for name, each in held if isinstance(each, int | float) and not isinstance(each, bool)}


def _is_of_transformers(kind: type) -> bool:
    """Whether a class's passes run no function that somebody has put there, in however many wrappers."""
    for name in ("forward", "__call__"):
        function = getattr(kind, name)
        for _ in range(_NESTED):
            home = getattr(function, "__globals__", {}).get("__name__", "")
            if home.partition(".")[0] not in ("transformers", "torch"):
                return False
            function = getattr(function, "__wrapped__", None)
            if function is None:
                break
        else:
            return False
    return True


def _is_encoder(module: Any) -> bool:
    """Whether part of an encoder-decoder turns token ids into states by itself, waiting for nobody else's."""
    takes = inspect.signature(module.forward).parameters
    if "input_ids" not in takes or "decoder_input_ids" in takes:
        return False
    # T5 builds both ends of one class.
    return "encoder_hidden_states" not in takes or getattr(module, "is_decoder", None) is False


def _refuse_two_streams(model: Any) -> NoReturn:
    name = type(model).__name__
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else None
    if encoder is model:
        raise UnsupportedModelError(
            f"{name} is the decoder of an encoder-decoder: its values depend on what the encoder read, too. "
            "Pass extractor=, an object that knows both."
        )
    way_out = "model.get_encoder(), or " if isinstance(encoder, nn.Module) and _is_encoder(encoder) else ""
    raise UnsupportedModelError(
        f"{name} is an encoder-decoder: its encoder and decoder see different inputs. Pass {way_out}extractor=, an "
        "object that reads the values."
    )


def first_number(config: Any, *names: str) -> int | None:
    """Return the first of these settings that is a number above 0: some say -1 where there is no limit."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0), None)


def _alike_tokens(rope: Any, otherwise: int) -> Iterator[int]:
    """Yield the lengths up to which rotary embeddings that depend on the length are the same."""
    if not isinstance(rope, dict):
        return
    if rope.get("rope_type", rope.get("type")) in LENGTH_DEPENDENT_ROPE:
        yield first_number(SimpleNamespace(**rope), "original_max_position_embeddings") or otherwise
    for each in rope.values():
        yield from _alike_tokens(each, otherwise)
