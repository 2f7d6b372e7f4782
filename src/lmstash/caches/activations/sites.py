"""Where in a model values are read: its blocks, found by structure, and the submodules inside one block.

No table of families: the blocks are the `ModuleList` as long as the configuration says; inside a block only a few names
for "attention" and "MLP" are known. Values are read where the submodule's own contribution leaves, before it is added
to the residual stream; where the submodule adds the residual itself (Bloom, MPT, BERT) that is its last projection.
What is not known to be the whole contribution is refused: a block with a second MLP beside the first, for instance.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import nn

from lmstash.caches.places import SITES
from lmstash.errors import InvalidArgumentError, UnsupportedModelError

LAYERLESS_SITES = ("embed", "final")
"""Sites there is one of: `layers=` is ignored and results have one layer."""

_ATTENTION_NAMES = ("self_attn", "self_attention", "attn", "attention")
_MLP_NAMES = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "moe", "fc2", "output")
_INNER_NAMES = {"attn_out": ("SelfAttention",), "mlp_out": ("DenseReluDense",)}
"""Of what lies one step deeper, where a block is a list of parts (T5)."""
_ROUTER_NAMES = ("gate", "router")
_PROJECTION_NAMES = ("dense", "dense_4h_to_h", "down_proj", "out_proj", "o_proj")
_RESIDUAL_ARGUMENTS = {"residual", "input_tensor", "residual_tensor"}
_OWN_NORMS = ("LayerNorm", "layer_norm")
"""Of an attention or MLP that adds the residual and normalises their sum."""
_INNER_ATTENTION = ("attn",)
"""What computes within such an attention (MPNet)."""
_LIKE_AN_MLP = re.compile("mlp|expert|moe|ffn|feed_?forward|router", re.IGNORECASE)
_NO_MLP = re.compile("norm|ln_|_ln|drop|scale|gate|act|output|intermediate|_hc$", re.IGNORECASE)
"""Of `hc`, hyper-connections lead to an MLP and away from it."""
_OUTSIDE_BIAS = "dense_bias"
"""A parameter that is handed out beside the output, and added to it by the block (GPT-NeoX-Japanese)."""


def check_site(site: object) -> str:
    """Return `site`, or raise InvalidArgumentError naming the sites there are."""
    if isinstance(site, str) and site in SITES:
        return site
    raise InvalidArgumentError(f"site={site!r}: use one of {', '.join(map(repr, SITES))}.")


def find_blocks(base: nn.Module, n_layers: int) -> list[nn.Module]:
    """Return the transformer blocks of `base`: the outermost `ModuleList` of `n_layers` distinct modules.

    Raises:
        UnsupportedModelError: When there is none, or more than one.
    """
    found = [
        (path, module)
        for path, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and len(set(map(id, module))) == n_layers
    ]
    outermost = [
        (path, module)
        for path, module in found
        if not any(path.startswith(f"{other}.") for other, _ in found if other != path)
    ]
    alike = [(path, module) for path, module in outermost if len({type(block) for block in module}) == 1]
    chosen = alike or outermost
    if len(chosen) == 1:
        return list(chosen[0][1])
    what = "no" if not chosen else f"{len(chosen)} ({', '.join(path for path, _ in chosen)})"
    raise UnsupportedModelError(
        f"{type(base).__name__}: found {what} ModuleList of {n_layers} blocks, so which values are the blocks' is not "
        "known. Pass extractor=, an object that reads them (see lmstash.caches.activations.Extractor)."
    )


def find_submodule(block: nn.Module, site: str, layer: int, n_experts: int | None) -> nn.Module:
    """Return the module inside `block` whose output is `site`.

    Args:
        block: One transformer block.
        site: "attn_out", "mlp_out" or "router_logits".
        layer: Its number, for messages.
        n_experts: Experts per layer by the configuration, None when it names none.

    Raises:
        UnsupportedModelError: The block has no such module.
    """
    if site == "router_logits":
        router = None if n_experts is None else _find_router(block)
        if router is None:
            raise UnsupportedModelError(
                f"layer {layer} ({type(block).__name__}) has no router in a known form: site='router_logits' needs "
                "experts whose router says its logits. Read another site, or pass extractor=."
            )
        return router
    names = _ATTENTION_NAMES if site == "attn_out" else _MLP_NAMES
    module = _child(block, names)
    beside = [] if site == "attn_out" or module is None else _mlps_beside(block, module)
    if beside:
        raise UnsupportedModelError(
            f"site={site!r}: layer {layer} ({type(block).__name__}) has {', '.join(beside)} beside its MLP, so what "
            "they add to the residual together is no module's output. Read another site, or pass extractor=."
        )
    parts = getattr(block, "layer", None)
    if module is None and isinstance(parts, nn.ModuleList):
        module = next(filter(None, (_child(part, _INNER_NAMES[site]) for part in parts)), None)
    place = None if module is None else _before_residual(module)
    if place is None:
        children = ", ".join(name for name, _ in block.named_children())
        raise UnsupportedModelError(
            f"site={site!r}: layer {layer} ({type(block).__name__}) has none of {', '.join(names)} in a known form; "
            f"it has {children}. Read another site, or pass extractor=."
        )
    return place


def router_layers(blocks: Sequence[nn.Module]) -> list[int]:
    """Return the layers that have a router."""
    return [layer for layer, block in enumerate(blocks) if _find_router(block) is not None]


def logits_of(router: nn.Module, output: Any) -> Any:
    """Return the logits among what a router computed: the output, or the one of several that it names so."""
    if not isinstance(output, tuple | list):
        return output
    place = _place_of_logits(type(router))
    return output[place] if place is not None and 0 <= place < len(output) else None  # who wraps a router says nothing


@lru_cache(maxsize=64)
def _place_of_logits(kind: type[nn.Module]) -> int | None:
    """Return which of several outputs of a router are its logits, -1 where it has but one; None where none is said."""
    source = _source_of(kind)
    if source is None:
        return None
    returned = [each.value for each in ast.walk(source) if isinstance(each, ast.Return)]
    places = {
        next((at for at, one in enumerate(value.elts) if "logits" in ast.unparse(one)), None)
        if isinstance(value, ast.Tuple)
        else -1
        for value in returned
    }
    return places.pop() if len(places) == 1 else None


def first_tensor(output: Any) -> Any:
    """Return what a module computed: its output, or the first of several."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return getattr(output, "last_hidden_state", output)


def _child(parent: nn.Module, names: Sequence[str]) -> nn.Module | None:
    for name in names:
        child = getattr(parent, name, None)
        if isinstance(child, nn.Module):
            return child
    return None


def _find_router(block: nn.Module) -> nn.Module | None:
    mlp = _child(block, _MLP_NAMES)
    router = None if mlp is None else _child(mlp, _ROUTER_NAMES)
    return None if router is None or _place_of_logits(type(router)) is None else router


def _mlps_beside(block: nn.Module, chosen: nn.Module) -> list[str]:
    """Return the names of what else in a block may be an MLP, or a part of one."""
    return [
        name
        for name, child in block.named_children()
        if child is not chosen
        and _LIKE_AN_MLP.search(name)
        and not _NO_MLP.search(name)
        and next(child.parameters(), None) is not None
    ]


def _before_residual(module: nn.Module) -> nn.Module | None:
    """The module itself; its last projection when it adds the residual; None when that is not known."""
    if getattr(module, _OUTSIDE_BIAS, None) is not None:
        return None
    inner = getattr(module, "output", None)
    if isinstance(inner, nn.Module) and _adds_residual(inner):
        module = inner
    if _adds_residual(module):
        return _child(module, _PROJECTION_NAMES)
    return _child(module, _INNER_ATTENTION) if _normalises_a_sum(type(module)) else module


@lru_cache(maxsize=256)
def _normalises_a_sum(kind: type[nn.Module]) -> bool:
    """Whether a kind of module has a norm of its own to which its `forward` hands a sum."""
    source = _source_of(kind)
    calls = [] if source is None else [each for each in ast.walk(source) if isinstance(each, ast.Call)]
    return any(
        isinstance(call.func, ast.Attribute)
        and call.func.attr in _OWN_NORMS
        and any(isinstance(each, ast.BinOp) and isinstance(each.op, ast.Add) for each in ast.walk(call))
        for call in calls
    )


def _source_of(kind: type[nn.Module]) -> ast.Module | None:
    """Return what `forward` says, where that can be read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return None


def _adds_residual(module: nn.Module) -> bool:
    return not _RESIDUAL_ARGUMENTS.isdisjoint(inspect.signature(module.forward).parameters)
