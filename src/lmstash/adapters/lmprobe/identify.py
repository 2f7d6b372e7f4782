"""Who an extractor is, so that nobody is served what another one computed.

* lmprobe's own extractor on its local backend: the fingerprint of the live model, as everywhere in lmstash. Its entries
  are those of `stash.activations(model, tokenizer)`.
* An extractor with an attribute `fingerprint` (bytes, str, or a `lmstash.fingerprint(model)`): that, as vouched for.
* Any other: what can be read off it: `model_name`, its class and code, its attributes taken apart, torch modules by
  their weights, tensors by their bytes, tokenizers by their rules, and the files of a `model_name` that is a folder.
  What runs elsewhere (a remote model, a server) is known by name only: give such an extractor a `fingerprint` with the
  revision, or pass `invalidate_cache=True` after a change.

Attributes that `extract_batch` itself changes (counters, logs) are state, not identity. They are noticed when that
happens, and remembered for the class.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lmstash.errors import LmstashError
from lmstash.identity.code import CodeGraph
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store

if TYPE_CHECKING:
    from lmstash.identity.watch import ModelWatch

NAMESPACE = "lmprobe/extractors"
HARMLESS = frozenset({"batch_size", "layer_indices", "_layer_indices", "layers_spec", "auto_candidates", "model_name"})
"""Attributes that choose what is read and how much at once; layers are part of every key."""

_LMPROBE = "lmprobe.extraction.ActivationExtractor"
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


def is_local_lmprobe(extractor: Any, remote: bool) -> bool:
    """Whether this is lmprobe's own extractor, running a torch model in this process with lmprobe's own code."""
    backend = getattr(extractor, "_backend", None)
    own = _name(type(extractor)) == _LMPROBE and "extract_batch" not in vars(extractor)
    return own and not remote and _name(type(backend)) == "lmprobe.backends.LocalBackend"


def watch(owner: Any, model: Any) -> ModelWatch:
    """Return the watch of a torch module that an extractor holds: the same one as long as it holds that module.

    The extractor keeps the watch alive, and the watch the module, so that both go when the extractor goes.

    Raises:
        UnsupportedModelError: The model cannot be cached safely.
    """
    from lmstash.identity.watch import ModelWatch

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
    return Identity(fingerprint.digest, lambda: watched.unchanged(fingerprint), {})


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
        state = self._state(extractor)
        identity: dict[str, Component] = {name: data for name, data in parts.items() if name not in state}
        key = Key({"what": "lmprobe extractor", **identity})
        return Identity(key.digest, lambda: all(each.unchanged(since) for each, since in watched), parts)

    def note_state(self, extractor: Any, before: Identity, remote: bool) -> bool:
        """Compare `extractor` with how it was before a batch; remember as state what the batch changed.

        Weights are not state: whoever changes them is another model. Returns whether anything new was noted.
        """
        if not before.parts:
            return False
        now, _ = _read(extractor, remote, weights=False)
        changed = {
            name
            for name in before.parts.keys() | now.keys()
            if name.startswith(("attribute:", "global:", "code:"))
            and now.get(name) != before.parts.get(name)
            and now.get(name) != b""
        }
        fresh = changed - self._state(extractor)
        if fresh:
            key = _class_key(extractor)
            self._state_of[key] = self._state(extractor) | fresh
            self._store.put(key, json.dumps(sorted(self._state_of[key])).encode(), namespace=NAMESPACE)
        return bool(fresh)

    def _state(self, extractor: Any) -> frozenset[str]:
        key = _class_key(extractor)
        if key not in self._state_of:
            kept = self._store.get(key) if self._store.contains(key) else None
            try:
                self._state_of[key] = frozenset(map(str, json.loads(bytes(kept)))) if kept is not None else frozenset()
            except (ValueError, TypeError):
                self._state_of[key] = frozenset()
        return self._state_of[key]


def _class_key(extractor: Any) -> bytes:
    return Key({"what": "lmprobe extractor state", "class": _name(type(extractor))}).digest


def _read(extractor: Any, remote: bool, weights: bool = True) -> tuple[dict[str, bytes], list[tuple[Any, Fingerprint]]]:
    """Return what can be told of an extractor, by name, and the watches of the modules it holds."""
    code = CodeGraph()
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


def _forget_others(owner: Any, models: list[Any]) -> None:
    """Let go of modules that an extractor no longer holds."""
    with contextlib.suppress(TypeError):
        held = _watches.get(owner, {})
        for known in held.keys() - {id(model) for model in models}:
            del held[known]


def _attributes(extractor: Any, code: CodeGraph) -> dict[str, Any]:
    """Return what is read of an extractor's own attributes."""
    attributes = getattr(extractor, "__dict__", {})
    if _name(type(extractor)) != _LMPROBE:
        return {name: value for name, value in attributes.items() if name not in HARMLESS}
    # lmprobe's other backends stream weights from files, or run elsewhere: there is no model here to take apart.
    backend = attributes.get("_backend")
    code.add(type(backend))
    told = {name: attributes.get(name) for name in ("backend_name", "device", "remote")}
    return {**told, "backend": _name(type(backend)), "dtype": str(getattr(backend, "dtype", None))}


def _tokenizer(tokenizer: Any) -> bytes:
    from lmstash.identity.tokenizer import fingerprint_tokenizer

    try:
        return fingerprint_tokenizer(tokenizer).digest
    except LmstashError:
        return encode(_name(type(tokenizer)))


def _content(tensor: Any) -> bytes:
    from lmstash.identity.weights import content_digest

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
