"""Reading the arguments of a `generate` call: what is asked, and whether a kept prefix may take part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from lmstash.caches.kv.families import Family

_OWN = {
    "attention_mask",
    "custom_generate",
    "assistant_model",
    "generation_config",
    "logits_processor",
    "negative_prompt_attention_mask",
    "negative_prompt_ids",
    "prefix_allowed_tokens_fn",
    "stopping_criteria",
    "streamer",
    "synced_gpus",
    "tokenizer",
}
"""Arguments of `generate` that are neither settings nor handed on to the model."""
_MUST_BE_OFF = (
    "assistant_model",
    "custom_generate",
    "synced_gpus",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
    "token_healing",
    "cache_implementation",
    "is_assistant",
    "output_attentions",  # of fed tokens only
    "output_hidden_states",
)
"""Settings under which a filled cache gives other results, or none."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a batch, as `generate` sees them."""

    rows: list[np.ndarray]
    """Token ids without padding, `[n_tokens]` uint32 each."""
    pads: list[int]
    """Slots before the first token of each."""
    width: int
    """Slots of every row."""

    def first(self, width: int) -> Prompts:
        """Return the prompts up to a slot; some may be empty then."""
        rows = [row[: max(0, width - pads)] for row, pads in zip(self.rows, self.pads, strict=True)]
        return Prompts(rows, self.pads, width)


@dataclass(frozen=True, slots=True)
class Call:
    """One `generate` call that a kept prefix may take part in."""

    ids: Tensor
    """`[batch, width]`."""
    prompts: Prompts
    repeats: int
    """Rows made of each prompt."""
    beams: bool
    streams: bool
    pad: int | None
    """The token that ends the rows that are done before others."""


def read_call(model: Any, family: Family, inputs: Any, arguments: Mapping[str, Any]) -> Call | str:
    """Return what is asked, or why the call is left to the model alone."""
    settings = _Settings(model, arguments)
    for name in _MUST_BE_OFF:
        if settings[name] not in (None, False) and not (name == "cache_implementation" and _is_unset(settings[name])):
            return f"{name} is set"
    if settings["use_cache"] is False:
        return "use_cache=False"
    if (settings["num_beam_groups"] or 1) > 1:
        return "num_beam_groups is set"
    for name, value in arguments.items():
        if name not in _OWN and name not in ("input_ids", "inputs") and value is not None and not settings.knows(name):
            return f"the model is given {name}"
    ids = inputs if inputs is not None else arguments.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
        return "the prompt is not a tensor [batch, n_tokens] of token ids"
    prompts = read_prompts(ids, arguments.get("attention_mask"), family, settings)
    if isinstance(prompts, str):
        return prompts
    beams = settings["num_beams"] or 1
    repeats = max(beams, settings["num_return_sequences"] or 1)
    ends = settings["eos_token_id"]
    pad = settings["pad_token_id"] if settings["pad_token_id"] is not None else ends
    pad = pad[0] if isinstance(pad, list | tuple) and pad else pad
    streams = arguments.get("streamer") is not None
    return Call(ids, prompts, repeats, beams > 1, streams, pad if isinstance(pad, int) else None)


def read_prompts(ids: Tensor, mask: Any, family: Family, settings: _Settings | None = None) -> Prompts | str:
    """Return the prompts of a batch without their padding, or why they cannot be told."""
    if mask is None:
        pad, ends = (None, None) if settings is None else (settings["pad_token_id"], settings["eos_token_id"])
        if pad is not None and _holds(ids, pad) and pad not in (ends if isinstance(ends, list | tuple) else [ends]):
            return "padding without an attention mask"
        pads = [0] * len(ids)
    elif not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return "the attention mask has another shape than the prompt"
    else:
        here = mask.cpu()
        if bool(((here != 0) & (here != 1)).any()):
            return "the attention mask is not of zeros and ones"
        pads = [ids.shape[1] - int(n) for n in here.sum(dim=1).tolist()]
        if any(bool((here[row, :n] != 0).any()) for row, n in enumerate(pads)):
            return "the attention mask hides tokens within or after a prompt"
        if any(pads) and "position_ids" not in family.takes:
            return "a padded batch for a model that takes no positions"
    array = ids.cpu().numpy()
    if array.min() < 0:
        return "token ids below zero"
    rows = [np.ascontiguousarray(array[row, n:], np.uint32) for row, n in enumerate(pads)]
    if not all(map(len, rows)):
        return "an empty prompt"
    return Prompts(rows, pads, ids.shape[1])


class _Settings:
    """What `generate` would go by: an argument, else the configuration passed, else the model's own."""

    def __init__(self, model: Any, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._passed = arguments.get("generation_config")
        self._own = getattr(model, "generation_config", None)

    def __getitem__(self, name: str) -> Any:
        for value in (
            self._arguments.get(name),
            getattr(self._passed, name, None),
            getattr(self._own, name, None),
        ):
            if value is not None:
                return value
        return None

    def knows(self, name: str) -> bool:
        """Whether `name` is a setting of generation."""
        return hasattr(self._own, name)


def _is_unset(cache: Any) -> bool:
    """Whether `generate` takes a cache to be the usual one: Gemma's files still ask for the static one of before."""
    return cache == "hybrid" and int(transformers.__version__.partition(".")[0]) >= 5


def _holds(ids: Tensor, pad: Any) -> bool:
    return bool((ids == int(pad)).any()) if isinstance(pad, int) else bool(torch.isin(ids, torch.as_tensor(pad)).any())
