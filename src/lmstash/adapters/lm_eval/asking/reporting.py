"""Whose reports may be kept before the call returns: those of the harness's own code, which returns what it reports.

A class of somebody's own may call the harness's method and make something else of its results: what that method
reports meanwhile is not what the call will return, and a program that is killed in between would leave it behind.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

from lmstash.identity.code.bytecode import names_in, parts_of
from lmstash.identity.code.digests import defined_in

_REPORTING = ("lm_eval.models.huggingface", "HFLM"), ("lm_eval.models.api_models", "TemplateAPI")
"""Whose methods report each item with the arguments that it came with."""
_REPORT = "add_partial"
_BUILT_IN = frozenset({"builtins", "abc", "typing"})


def returns_what_it_reports(lm: Any, method: str) -> bool:
    """Whether only the harness's own code lies between what a backend reports and what a call of it returns.

    Every function on that way, by whatever class or object it is brought, has to be the harness's. Costs 1 ms.
    """
    try:
        ways, foreign = _named_by(type(lm))
    except Exception:  # whatever other people's members do when they are looked at
        return False
    if method not in ways:
        return False
    asked, todo = set[str](), {method}
    while todo:
        asked |= todo
        todo = {each for name in todo for each in ways[name] & ways.keys()} - asked
    leading = {_REPORT, method}
    while more := {name for name in asked - leading if ways[name] & leading}:
        leading |= more
    brought = foreign | getattr(lm, "__dict__", {}).keys()
    return brought.isdisjoint(leading | {"__getattribute__"})


def reports(lm: Any, method: str) -> bool:
    """Whether it is known that a backend reports items of this method as they are done, and returns these."""
    for module, name in _REPORTING:
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(lm, known):
            # A class of the harness that brings a method of its own, or the tokens of one, may report otherwise.
            inner = "_loglikelihood_tokens" if method == "loglikelihood" else method
            return all(getattr(type(lm), each) is getattr(known, each) for each in (method, inner))
    return False


def _named_by(kind: type) -> tuple[dict[str, set[str]], set[str]]:
    """Return what the code of each member names, in all classes together; and which are not the harness's."""
    named: dict[str, set[str]] = {}
    foreign: set[str] = set()
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] in _BUILT_IN:
            continue
        for name, member in list(vars(each).items()):
            for part in parts_of(name, member):
                said = named.setdefault(name, set())
                if isinstance(part, FunctionType):
                    said.update(names_in(part.__code__))
                if not isinstance(part, FunctionType) or defined_in(part).partition(".")[0] != "lm_eval":
                    foreign.add(name)
    return named, foreign
