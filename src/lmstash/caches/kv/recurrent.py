"""Models with recurrent layers: their state is of a whole prefix, so it is kept where prefixes are likely to be shared.

Keys and values of the attention layers are kept in blocks, as of any model. The state of the recurrent layers is kept
at two places of a prompt: at its last whole block, so that the prompt can be continued, and where it leaves what was
kept before, since others will leave there too (the idea of SGLang's branching points). Both cost a pause in computing
the prompt, and a state takes its room only there. A prefix is restored as far as there is a state, never in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmstash.caches.kv.finding import Finder, Match
from lmstash.caches.kv.layers import LinearAttentionLayer
from lmstash.caches.kv.naming import KIND, Path, state_key
from lmstash.codecs.tensors import decode_tensors, encode_tensors
from lmstash.errors import FormatError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.store.base import Entry, Write

_CHAIN = "chain"


def stops(n_tokens: int, match: Match, width: int) -> list[int]:
    """Return where to pause in a prompt, of which `width` tokens are restored, to keep the state."""
    last = (n_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    branch = match.n_blocks * BLOCK_TOKENS
    return sorted({stop for stop in (branch, last) if width < stop <= last})


def find_state(finder: Finder, match: Match, most_blocks: int) -> tuple[int, dict[str, Tensor]]:
    """Return the most blocks after which a state is kept, and that state; (0, {}) where there is none."""
    keys = {n: state_key(match.path.chain[n]) for n in range(1, min(match.n_blocks, most_blocks) + 1)}
    there = finder.there(list(keys.values()))
    for n in sorted(keys, reverse=True):
        if keys[n] in there:
            state = _decode(finder.fetch(keys[n]), match.path, n)
            if state is not None:
                return n, state
    return 0, {}


def snapshot(cache: Any, linear: Sequence[int]) -> dict[str, Tensor]:
    """Return copies of the states of some layers, on the CPU.

    Raises:
        ValueError: A layer holds none: the model keeps its state elsewhere.
    """
    out: dict[str, Tensor] = {}
    for number in linear:
        layer = cache.layers[number]
        for name, kind in (("c", layer.conv_states), ("r", layer.recurrent_states)):
            for index, state in kind.items():
                if state is not None:
                    out[f"{name}{number}.{index}"] = state.detach().to("cpu", copy=True)
        if not any(layer.has_previous_state.values()):
            raise ValueError(f"layer {number} keeps its state elsewhere")
    return out


def load(cache: Any, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Give the layers of a fresh cache their states; they are copied, since the model writes into them."""
    for name, kept in state.items():
        number, index = (int(each) for each in name[1:].split("."))
        layer: LinearAttentionLayer = cache.layers[number]
        if name[0] == "c":
            layer.update_conv_state(kept.to(device), state_idx=index)
        else:
            layer.update_recurrent_state(kept.to(device), state_idx=index)
            layer.has_previous_state[index] = True


def write_state(path: Path, n_blocks: int, state: Mapping[str, Tensor], ttl_seconds: float | None) -> Write:
    """Describe the entry that keeps a state."""
    chain_id = np.frombuffer(path.chain[n_blocks], np.uint8)
    return Write(
        state_key(path.chain[n_blocks]),
        encode_tensors({**state, _CHAIN: chain_id}),
        namespace=path.names.namespace,
        meta={"id": {"kind": KIND, "site": "state", "tokens": n_blocks * BLOCK_TOKENS}},
        parent=path.parent(n_blocks),
        ttl_seconds=ttl_seconds,
    )


def _decode(entry: Entry | None, path: Path, n_blocks: int) -> dict[str, Tensor] | None:
    if entry is None or entry.parent != path.parent(n_blocks):
        return None
    try:
        tensors = decode_tensors(entry.value, framework="torch", copy=entry.value.readonly)
    except FormatError:
        return None
    chain_id = tensors.pop(_CHAIN, None)
    if chain_id is None or chain_id.numpy().tobytes() != path.chain[n_blocks]:
        return None
    return tensors
