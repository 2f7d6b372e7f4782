"""Whether functions ask a model for sampling by what they say themselves: `create(temperature=0.8, ...)`.

Told by keywords of calls, and keys of dicts, whose values are constants, or globals that hold a number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from lmstash.caches.responses.sampling import HOTTEST, is_sampled, seed_of
from lmstash.identity.expressions import CALL, CONST, NAME, OTHER, Node, code_within, expressions

_NAMES = frozenset({"temperature", "do_sample", "doSample", "seed", "random_seed"})
"""Of those of requests; `n=3` may count anything in code."""
_UNKNOWN = object()


def sampling_in(functions: Iterable[FunctionType]) -> dict[str, Any]:
    """Return the arguments by which functions ask for answers by chance, from no seed; empty where none does."""
    for function in functions:
        for said in _said_in(function.__code__):
            told = {name: _value(each, function.__globals__) for name, each in said.items()}
            seed = seed_of(told)
            known = {name: each for name, each in told.items() if each is not _UNKNOWN and _may_be(each)}
            if seed is None and is_sampled(known):
                return known
    return {}


def _may_be(value: Any) -> bool:
    """Whether a model could be asked for it: a temperature of 20 is the weather's."""
    return type(value) is bool or not isinstance(value, int | float) or 0 <= value <= HOTTEST


def _value(node: Node, table: Mapping[str, Any]) -> Any:
    value = node.value if node.kind == CONST else table.get(node.name, _UNKNOWN) if _is_global(node) else _UNKNOWN
    return value if isinstance(value, bool | int | float | None) else _UNKNOWN


def _is_global(node: Node) -> bool:
    return node.kind == NAME and not node.is_local


@functools.lru_cache(maxsize=4096)
def _said_in(code: CodeType) -> tuple[dict[str, Node], ...]:
    """Return what each call and each dict in code says of sampling."""
    found: list[dict[str, Node]] = []
    try:
        for inner in code_within(code):
            for node in expressions(inner):
                said = {name: each for name, each in _named(node) if name in _NAMES}
                found += [said] if said else []
    except Exception:  # bytecode of a kind that nobody has met
        return ()
    return tuple(found)


def _named(node: Node) -> Iterator[tuple[Any, Node]]:
    """Yield the keywords of a call, or the keys of a dict, and what is given under them."""
    if node.kind == CALL:
        yield from zip(node.value, node.parts[len(node.parts) - len(node.value) :], strict=True)
    elif node.kind == OTHER and node.value == "BUILD_MAP":
        yield from (
            (key.value, each) for key, each in zip(node.parts[::2], node.parts[1::2], strict=False) if key.kind == CONST
        )
    elif node.kind == OTHER and node.value == "BUILD_CONST_KEY_MAP":
        yield from zip(node.parts[-1].value, node.parts[:-1], strict=True)
