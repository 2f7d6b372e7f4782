"""Functions that a configuration names by a word: transformers' attention, masks, experts, rotary embeddings.

Anybody may register others under the same words. What is not transformers' own counts whatever its name, and so does
what the model's words stand for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from lmstash.identity.encoding import Component
from lmstash.identity.models.reached import config_of

if TYPE_CHECKING:
    from lmstash.identity.code.digests import CodeGraph

_REGISTRIES = (
    ("transformers.modeling_utils", "ALL_ATTENTION_FUNCTIONS", "_attn_implementation"),
    ("transformers.masking_utils", "ALL_MASK_ATTENTION_FUNCTIONS", "_attn_implementation"),
    ("transformers.integrations.moe", "ALL_EXPERTS_FUNCTIONS", "_experts_implementation"),
    ("transformers.modeling_rope_utils", "ROPE_INIT_FUNCTIONS", ""),
)
"""Module, registry, and the setting that has the word."""
_CODE = (FunctionType, BuiltinFunctionType, type)
"""What is read as code; the rest is described by what it holds."""


def registered(model: Any, code: CodeGraph) -> dict[Component, Component]:
    """Return which functions the model's words stand for; reads them, and others' in the registries, into `code`."""
    found: dict[Component, Component] = {}
    config = config_of(model)
    for module, attribute, setting in _REGISTRIES:
        registry = getattr(sys.modules.get(module), attribute, None)
        if registry is None:
            continue
        for table in _tables(registry):
            code.watch(partial(_entries, table))
        word = getattr(config, setting, None) if setting else None
        for key, function in list(registry.items()):
            if isinstance(key, str) and (key == word or not _is_own(function)) and isinstance(function, Callable):
                place = f"{attribute}[{key}]"
                found[place] = code.add(function if isinstance(function, _CODE) else type(function))
                if not isinstance(function, _CODE):
                    code.objects[place] = function
    return found


def _entries(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(table.items())


def _tables(registry: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the dicts behind a registry."""
    if isinstance(registry, dict):
        yield registry
        return
    for name in ("_global_mapping", "_local_mapping"):
        table = getattr(registry, name, None)
        if isinstance(table, dict):
            yield table


def _is_own(function: Any) -> bool:
    module = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", "")
    return str(module).partition(".")[0] in ("transformers", "torch")
