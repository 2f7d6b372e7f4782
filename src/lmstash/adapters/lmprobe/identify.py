"""Who an extractor is, so that nobody is served what another one computed.

* lmprobe's own extractor on its local backend: the fingerprint of the live model, as everywhere in lmstash. Its entries
  are those of `stash.activations(model, tokenizer)`. With methods of others put into it, it is an extractor like any.
* An extractor with an attribute `fingerprint` (bytes, str, or a `lmstash.fingerprint(model)`): that, as vouched for.
* Any other: what can be read off it: `model_name`, its class and code, its attributes taken apart, torch modules by
  their weights, tensors by their bytes, tokenizers by their rules, and the files of a `model_name` that is a folder.
  What runs elsewhere (a remote model, a server) is known by name only: give such an extractor a `fingerprint` with the
  revision, or pass `invalidate_cache=True` after a change.

Counters and logs are state, not identity: whole numbers that `extract_batch` itself counted up, and lists, sets and
dicts that it only added to. They are noticed when that happens, and remembered for the class and its code. When it
changes anything else, nobody can say what it computed with, and nothing of that call is kept.
"""

from __future__ import annotations

import contextlib
import json
import operator
import types
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lmstash.errors import LmstashError
from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.code.bytecode import names_in
from lmstash.identity.code.owners import defined_in, owner_of
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store

if TYPE_CHECKING:
    from lmstash.identity.models.watch import ModelWatch

NAMESPACE = "lmprobe/extractors"
_COMPARED = ("attribute:", "global:", "code:")
HARMLESS = frozenset({"batch_size", "layer_indices", "_layer_indices", "layers_spec", "auto_candidates", "model_name"})
"""Attributes that choose what is read and how much at once; layers are part of every key."""

_LMPROBE = "lmprobe.extraction.ActivationExtractor"
_LOCAL_BACKEND = "lmprobe.backends.LocalBackend"
_watches: WeakKeyDictionary[Any, dict[int, tuple[Any, ModelWatch]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Identity:
    """Who computes, for the length of one call."""

    digest: bytes
    """32 bytes that enter every key."""
    unchanged: Callable[[], bool]
    """Whether every model it runs is still the same; reads the weights."""
    parts: Mapping[str, bytes]
    """What it was read off, by name; empty where a fingerprint stands for all."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Copies of the numbers and containers among the parts: what may turn out to be counters and logs."""
    objects: tuple[int, ...] = ()
    """What a watched model consists of (see `ModelWatch.parts`)."""
    unknown_code: bool = False
    """Whether it runs code that nobody here knows (see `ModelWatch.runs_unknown_code`)."""


def is_local_lmprobe(extractor: Any, remote: bool) -> bool:
    """Whether this is lmprobe's own extractor, running a torch model in this process with lmprobe's own code."""
    backend = getattr(extractor, "_backend", None)
    local = _name(type(extractor)) == _LMPROBE and _name(type(backend)) == _LOCAL_BACKEND
    return local and not remote and _is_untouched(extractor) and _is_untouched(backend)


def watch(owner: Any, model: Any) -> ModelWatch:
    """Return the watch of a torch module that an extractor holds: the same one as long as it holds that module.

    The extractor keeps the watch alive, and the watch the module, so that both go when the extractor goes.

    Raises:
        UnsupportedModelError: The model cannot be cached safely.
    """
    from lmstash.identity.models.watch import ModelWatch

    try:
        held = _watches.setdefault(owner, {})
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return ModelWatch(model)
    found = held.get(id(model))
    if found is None or found[0] is not model:
        found = held[id(model)] = (model, ModelWatch(model))
    return found[1]


def identify_model(extractor: Any) -> Identity:
    """Return the identity of the live model of lmprobe's own extractor. Costs what `ModelWatch.refresh` costs.

    Raises:
        UnsupportedModelError: The model cannot be cached safely.
    """
    model = extractor.model
    watched = watch(extractor, model)
    _forget_others(extractor, [model])
    fingerprint: Fingerprint = watched.refresh()
    unchanged = partial(watched.unchanged, fingerprint)
    unknown = watched.runs_unknown_code()
    return Identity(fingerprint.digest, unchanged, {}, objects=watched.parts, unknown_code=unknown)


class Teller:
    """Reads the identity of extractors of one store. Threads may share it."""

    def __init__(self, store: Store) -> None:
        """Remember in `store` which attributes of which class are mere state."""
        self._store = store
        self._state_of: dict[bytes, frozenset[str]] = {}

    def identify(self, extractor: Any, remote: bool) -> Identity:
        """Return who `extractor` is now. Costs about a millisecond, and reading the weights of modules it holds.

        Raises:
            UnsupportedModelError: It holds a model that cannot be cached safely.
        """
        vouched = getattr(extractor, "fingerprint", None)
        vouched = vouched() if callable(vouched) else vouched
        if vouched is not None:
            named: Any = vouched.digest if isinstance(vouched, Fingerprint) else vouched
            key = Key({"what": "lmprobe extractor, vouched for", "fingerprint": named, "remote": remote})
            return Identity(key.digest, lambda: True, {})
        parts, watched = _read(extractor, remote)
        found = Identity(b"", partial(_all_unchanged, watched), parts, _counts(extractor))
        return replace(found, digest=self._digest(extractor, found))

    def after_batch(self, extractor: Any, before: Identity, remote: bool) -> Identity:
        """Compare `extractor` with how it was before a batch, and return who it was, told better.

        Counters and logs among what changed are remembered as state. When anything else changed, nobody can say what
        the batch was computed with: the identity returned then claims to have changed, so that nothing is kept.
        """
        if not before.parts:
            return before
        now, _ = _read(extractor, remote, weights=False)
        counts = _counts(extractor)
        compared = {name for name in before.parts.keys() | now.keys() if name.startswith(_COMPARED)}
        changed = {name for name in compared if now.get(name) != before.parts.get(name) and now.get(name) != b""}
        changed -= self._state(extractor, before)
        if not changed:
            return before
        logs = {name for name in changed if _grew(before.counts.get(name), counts.get(name))}
        if logs:
            key = _class_key(extractor, before.parts, before.counts)
            self._state_of[key] = self._state(extractor, before) | logs
            self._store.put(key, json.dumps(sorted(self._state_of[key])).encode(), namespace=NAMESPACE)
        if changed - logs:
            self._store.events.warn_once(
                f"drift of {_name(type(extractor))}",
                "lmstash: %s changes its %s while it runs, so what it computes is not kept. Give it a `fingerprint`.",
                _name(type(extractor)),
                ", ".join(sorted(name.partition(":")[2] for name in changed - logs)),
            )
        unchanged = before.unchanged if changed == logs else _never
        return replace(before, digest=self._digest(extractor, before), unchanged=unchanged)

    def _digest(self, extractor: Any, found: Identity) -> bytes:
        state = self._state(extractor, found)
        identity: dict[str, Component] = {name: data for name, data in found.parts.items() if name not in state}
        return Key({"what": "lmprobe extractor", **identity}).digest

    def _state(self, extractor: Any, found: Identity) -> frozenset[str]:
        key = _class_key(extractor, found.parts, found.counts)
        if key not in self._state_of:
            kept = self._store.get(key) if self._store.contains(key) else None
            try:
                self._state_of[key] = frozenset(map(str, json.loads(bytes(kept)))) if kept is not None else frozenset()
            except (ValueError, TypeError):
                self._state_of[key] = frozenset()
        return self._state_of[key]


def _class_key(extractor: Any, parts: Mapping[str, bytes], counts: Mapping[str, Any]) -> bytes:
    """Return where it is kept what is mere state of a class: of this code alone, whatever others have by its name."""
    code: dict[Component, Component] = {
        name: data for name, data in parts.items() if name.startswith("code:") and name not in counts
    }
    return Key({"what": "lmprobe extractor state", "class": _name(type(extractor)), "code": code}).digest


def _is_untouched(part: Any) -> bool:
    """Whether an object of lmprobe's runs nothing but lmprobe's own methods, and these what lmprobe wrote for them."""
    if any(hasattr(type(part), name) for name in vars(part)):
        return False
    for base in type(part).__mro__:
        if owner_of(base.__module__) != "lmprobe":
            continue
        for member in vars(base).values():
            parts = (member.fget, member.fset, member.fdel) if isinstance(member, property) else (member,)
            if not all(_is_method_of(base, each) for each in parts if callable(each)):
                return False
    run: Any = type(part).extract_batch
    named = (run.__globals__.get(name) for name in names_in(run.__code__))
    return all(owner_of(defined_in(each)) == "lmprobe" for each in named if isinstance(each, types.FunctionType))


def _is_method_of(base: type, member: Any) -> bool:
    code = getattr(member, "__code__", None)
    written = isinstance(member, types.FunctionType) and owner_of(defined_in(member)) == "lmprobe"
    return written and code is not None and code.co_qualname.startswith(f"{base.__qualname__}.")


def _read(extractor: Any, remote: bool, weights: bool = True) -> tuple[dict[str, bytes], list[tuple[Any, Fingerprint]]]:
    """Return what can be told of an extractor, by name, and the watches of the modules it holds."""
    code = CodeByText()
    describer = Describer(code, lenient=True)
    parts: dict[str, bytes] = {
        "model_name": encode(str(extractor.model_name)),
        "remote": encode(remote),
        "class": encode(code.add(type(extractor))),
    }
    pending = [(f"attribute:{name}", value) for name, value in sorted(_attributes(extractor, code).items())]
    while pending:
        for place, value in pending:
            if callable(getattr(value, "get_vocab", None)):
                parts[place] = _tokenizer(value) if weights else b""
                continue
            described = encode(describer.value(value, place))
            parts[place] = described + b"".join(map(_content, describer.tensors.values()))
            describer.tensors.clear()
        # What its code names as globals or has closed over; describing that may lead to more code.
        named = {f"global:{name}": value for name, value in code.objects.items()}
        pending = [(place, value) for place, value in named.items() if place not in parts]
    watched: list[tuple[Any, Fingerprint]] = []
    if weights:
        for path, module in sorted(describer.modules):
            each = watch(extractor, module)
            fingerprint = each.refresh()
            watched.append((each, fingerprint))
            parts[f"module:{path}"] = fingerprint.digest
        _forget_others(extractor, [module for _, module in describer.modules])
        if not watched:
            parts["files"] = encode(_files(str(extractor.model_name)))
    parts |= {f"code:{name}": encode(digests) for name, digests in code.components().items()}
    return parts, watched


def _never() -> bool:
    return False


def _all_unchanged(watched: list[tuple[ModelWatch, Fingerprint]]) -> bool:
    return all(each.unchanged(since) for each, since in watched)


def _counts(extractor: Any) -> dict[str, Any]:
    """Return copies of numbers and containers that an extractor's attributes, or the globals it names, hold."""
    named = {f"attribute:{name}": value for name, value in getattr(extractor, "__dict__", {}).items()}
    for base in type(extractor).__mro__:
        for function in vars(base).values():
            if isinstance(function, types.FunctionType):
                code, module = function.__code__, function.__globals__.get("__name__")
                for name in set(code.co_names) & function.__globals__.keys():
                    named[f"code:{module}.{code.co_qualname}:{name}"] = function.__globals__[name]
    kinds = (int, list, dict, set)
    return {name: copy(value) for name, value in named.items() if type(value) in kinds or isinstance(value, Counter)}


def _grew(before: Any, now: Any) -> bool:
    """Whether `now` is `before` counted up or added to, and nothing else."""
    if type(before) is not type(now):
        return False
    if isinstance(before, int):
        return now > before
    if isinstance(before, list):
        return len(now) > len(before) and all(map(operator.is_, before, now))
    if isinstance(before, dict):
        kept = (name in now and (now[name] is value or _grew(value, now[name])) for name, value in before.items())
        return all(kept)
    return isinstance(before, set) and before <= now


def _forget_others(owner: Any, models: list[Any]) -> None:
    """Let go of modules that an extractor no longer holds."""
    with contextlib.suppress(TypeError):
        held = _watches.get(owner, {})
        for known in held.keys() - {id(model) for model in models}:
            del held[known]


def _attributes(extractor: Any, code: CodeByText) -> dict[str, Any]:
    """Return what is read of an extractor's own attributes."""
    attributes = getattr(extractor, "__dict__", {})
    backend = attributes.get("_backend")
    theirs = _name(type(extractor)) == _LMPROBE
    if not theirs or _name(type(backend)) == _LOCAL_BACKEND:
        for lazy in ("model", "tokenizer"):  # properties may load these at their first use
            getattr(extractor, lazy, None)
    told = {name: value for name, value in attributes.items() if name not in HARMLESS}
    if not theirs:
        return told
    code.add(type(backend))
    inner = getattr(backend, "__dict__", {})
    if _name(type(backend)) == _LOCAL_BACKEND:  # with somebody's methods, else it would not be asked for
        del told["_backend"]
        return told | {f"_backend.{name}": value for name, value in inner.items() if name not in HARMLESS}
    # lmprobe's other backends stream weights from files, or run elsewhere: there is no model here to take apart.
    put = {name: value for name, value in attributes.items() if hasattr(type(extractor), name)}
    put |= {f"_backend.{name}": value for name, value in inner.items() if hasattr(type(backend), name)}
    told = {name: attributes.get(name) for name in ("backend_name", "device", "remote")}
    return {**told, "backend": _name(type(backend)), "dtype": str(getattr(backend, "dtype", None)), **put}


def _tokenizer(tokenizer: Any) -> bytes:
    from lmstash.identity.tokenizer import fingerprint_tokenizer

    try:
        return fingerprint_tokenizer(tokenizer).digest
    except LmstashError:
        return encode(_name(type(tokenizer)))


def _content(tensor: Any) -> bytes:
    from lmstash.identity.memory.weights import content_digest

    return encode((str(tensor.dtype), list(tensor.shape), content_digest(tensor)))


def _files(model_name: str) -> Component:
    """Return the files of a model folder as they are now, so that other weights at one path are another model."""
    folder = Path(model_name)
    try:
        if not model_name or not folder.is_dir():
            return None
        stats = sorted((str(each.relative_to(folder)), each.stat()) for each in folder.rglob("*") if each.is_file())
    except (OSError, ValueError):
        return None
    return [str(folder.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
