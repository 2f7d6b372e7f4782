"""`fingerprint=`: what a saved value hangs on, so that it is not served once that has changed."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Mapping
from typing import Any

from lmstash.adapters.lm_eval.who.own_names import variables
from lmstash.adapters.lmms_eval.answering.asking import plain
from lmstash.adapters.lmms_eval.who.code_of import source_of, task_functions
from lmstash.adapters.lmms_eval.who.pinned import harness_code
from lmstash.caches.responses.functions.everyday import NAMESPACES
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.errors import InvalidArgumentError
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

METRICS = frozenset(
    {
        *("process_results", "process_results_use_image", "filter_list", "task_alias", "group_alias", "tag", "group"),
        *("score_key", "cluster_key", "should_decontaminate", "doc_to_decontamination_query", "reasoning_tags"),
        "auto_strip_thinking",
    }
)
"""Fields of a task's configuration that requests do not hang on (of the metrics, one asks for requests of its own)."""


def fingerprint_of(value: Any) -> str:
    """Return 64 hex digits for what a value hangs on.

    Args:
        value: A `lmstash.fingerprint`, a torch model (by that), a function (by its source), a task of the harness (by
            all that its requests are made of), or any value that JSON can say, with media and with these in it.

    Raises:
        InvalidArgumentError: Nobody knows how to tell it from another one of its kind.
    """
    try:
        told = _told(value)
    except RecursionError:
        raise InvalidArgumentError("fingerprint= holds itself: name what counts of it") from None
    if type(told) is dict:  # in a list no field is taken for one of a request, of which some say nothing of the answer
        in_order = all(type(name) is str for name in told)  # settings, say: their order says nothing
        told = ["of", dict(sorted(told.items())) if in_order else told]
    return Key({"what": "lmms_eval fingerprint", "of": read_request(told).text}).hex


def _told(value: Any) -> Any:
    if isinstance(value, Fingerprint):
        return ["fingerprint", value.hex]
    if hasattr(value, "config") and hasattr(value, "build_all_requests"):
        return ["task", task_fingerprint(value)]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        from lmstash.identity.models.fingerprinting import fingerprint_model

        return ["fingerprint", fingerprint_model(value).hex]
    if callable(value):
        return ["function", source_of(value)]
    kind = type(value)
    if kind in (list, tuple):
        return kind(_told(each) for each in value)
    if kind is dict:
        return {name: _told(each) for name, each in value.items()}
    if isinstance(value, set | frozenset):
        return [kind.__name__, sorted(read_request([_told(each)]).text for each in value), _beside(value)]
    if isinstance(value, enum.Enum):
        return ["enum", f"{kind.__module__}.{kind.__qualname__}", value.name, _told(value.value)]
    if kind is complex:
        return ["complex", repr(value)]
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Mapping):
        factory = getattr(value, "default_factory", None)
        made = factory.__qualname__ if isinstance(factory, type) else factory and _told(factory)
        return [name, [[_told(key), _told(each)] for key, each in value.items()], made, _beside(value)]
    if isinstance(value, list | tuple):  # one with names, say
        return [name, [_told(each) for each in value], _beside(value)]
    if kind is not str and isinstance(value, str):
        return [name, plain(str.__getitem__(value, slice(None))), _beside(value)]
    if dataclasses.is_dataclass(value):
        fields = {each.name: _told(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return [name, fields, {key: each for key, each in _beside(value).items() if key not in fields}]
    if kind in NAMESPACES:
        return [name, _beside(value)]
    return plain(value)


def _beside(value: Any) -> dict[str, Any]:
    """Return the attributes of an instance of a class made from one of Python's."""
    return {name: _told(each) for name, each in getattr(value, "__dict__", {}).items()}


def task_fingerprint(task: Any, **told: Any) -> str:
    """Return 64 hex digits for all that a task's requests are made of.

    Its configuration without what only metrics use, its functions' source, its dataset as `datasets` fingerprints it,
    the state of its few-shot sampler, its code; and what else is `told`.
    """
    graph = harness_code()
    describer = Describer(graph, lenient=True)
    config = {name: value for name, value in vars(task.config).items() if name not in METRICS}
    parts: dict[Any, Any] = {
        "class": describer.code(type(task)),
        "config": {name: describer.value(value, name) for name, value in sorted(config.items())},
        "functions": task_functions(task, describer),
        "dataset": _dataset(task),
        "few shots": repr(getattr(getattr(task, "fewshot_rnd", None), "getstate", lambda: None)()),
        "told": describer.value(told, "told"),
    }
    parts["code"] = graph.components()
    if said := variables([graph], parts["config"]):
        parts["variables"] = said
    return Key({"what": "lmms_eval task", "parts": encode(parts)}).hex


def _dataset(task: Any) -> Any:
    splits = getattr(task, "dataset", None)
    if not isinstance(splits, Mapping):
        return None
    return {str(name): str(getattr(split, "_fingerprint", None)) for name, split in splits.items()}
