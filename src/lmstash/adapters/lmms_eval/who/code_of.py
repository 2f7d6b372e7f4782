"""Functions of a task, by the source that they run: the same body is the same, wherever and whenever it was loaded."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable
from typing import Any

from lmstash.adapters.lm_eval.who.own_names import variables
from lmstash.adapters.lmms_eval.who.pinned import harness_code
from lmstash.errors import UnsupportedModelError
from lmstash.identity.content.media import media_of
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component, encode

ROLES = ("doc_to_text", "doc_to_visual", "doc_to_messages", "doc_to_target", "doc_to_choice", "process_docs")
"""What a task's configuration may hold as functions that decide what a model is asked."""


def source_of(function: Callable[..., Any]) -> str:
    """Return 64 hex digits for what a callable does: its code, all that this leads to, and what it is bound to.

    A method of a harness's task counts with the functions of the task's configuration that it may call, and not with
    the rest of the task (its metrics, its data). Costs 1-100 ms, by how much code is reached.

    Raises:
        UnsupportedModelError: It is bound to something that cannot be taken apart, or to a torch module.
    """
    graph = harness_code()
    describer = Describer(graph, lenient=True)
    told: list[Component] = [_describe(function, describer)]
    seen: set[str] = set()
    while left := sorted(graph.objects.keys() - seen):  # describing one may lead to more code
        for place in left:
            told.append([place, describer.value(graph.objects[place], place)])  # noqa: PERF401 (it changes meanwhile)
        seen.update(left)
    if describer.modules:
        path, module = describer.modules[0]
        raise UnsupportedModelError(
            f"{path} is a torch module ({type(module).__qualname__}), whose weights nobody reads there: put "
            "lmstash.fingerprint(model) beside the function, and have that take the model as an argument"
        )
    for path, tensor in sorted(describer.tensors.items()):
        media = media_of(tensor)
        told.append([path, media.digest if media is not None else repr(tensor)])
    said = variables([graph], told)
    return hashlib.sha256(encode([told, graph.components(), graph.packages(), *([said] if said else [])])).hexdigest()


def is_of_task(function: Any) -> bool:
    """Whether a callable is a method of a harness's task."""
    owner = getattr(function, "__self__", None)
    return isinstance(function, types.MethodType) and hasattr(owner, "config") and hasattr(owner, "doc_to_text")


def _describe(function: Any, describer: Describer) -> Component:
    if isinstance(function, functools.partial):
        bound = describer.value([list(function.args), function.keywords], "partial")
        return ["partial", _describe(function.func, describer), bound]
    if is_of_task(function):
        return ["task", describer.code(function.__func__), task_functions(function.__self__, describer)]
    if isinstance(function, types.MethodType):
        return ["method", describer.code(function.__func__), describer.value(function.__self__, "self")]
    held = {name: each for name, each in getattr(function, "__dict__", {}).items() if name != "__wrapped__"}
    try:
        if held and isinstance(function, types.FunctionType):  # it may read its own attributes
            return ["with", describer.value(function, "function"), describer.value(held, "attributes")]
        return describer.value(function, "function")
    except RecursionError as error:
        raise UnsupportedModelError(f"{function!r:.200} holds itself") from error


def task_functions(task: Any, describer: Describer) -> Component:
    """Return what a task's configuration makes requests with."""
    config = task.config
    told: list[Component] = []
    for role in ROLES:
        value = getattr(config, role, None)
        told.append([role, _describe(value, describer) if callable(value) else describer.value(value, role)])
    told.append(describer.value(getattr(task, "lmms_eval_specific_kwargs", None), "lmms_eval_specific_kwargs"))
    return told
