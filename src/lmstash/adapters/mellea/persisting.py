"""Values of mellea's cache on disk: the tensors of a value, and its shape as a record. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import FormatError, LmstashError
from lmstash.identity.models.watch import watch_model
from lmstash.stash import Stash

_FORM = 1
_RECORD = "record"
_PLAIN = (type(None), bool, int, float, str, bytes)
_FIELDS = ("kv_cache", "merged_token_ids", "merged_attention", "q_end", "scores")
"""Of `HFAloraCacheInfo`, as of mellea 0.8."""


class NotKept(Exception):
    """The value holds something that is not kept on disk; the text says what."""


class Shelf:
    """Values of one model in a stash, by text keys. Threads may share it; faults are misses, and logged once."""

    def __init__(self, stash: Stash, model: Any) -> None:
        """Fingerprint `model`, which is looked at again at each call: what another model left is never served."""
        self._stash = stash
        self._model = model
        self._watch = watch_model(model)
        self._undropped: set[str] = set()
        """Of what is kept of these nothing is right."""

    def put(self, key: str, value: Any) -> None:
        """Keep `value`, if it is of a kind that can be restored as it was; `drop` what was kept before."""
        try:
            tensors: list[Any] = []
            record = {"form": _FORM, "value": _take_apart(value, tensors)}
            named = {str(index): tensor for index, tensor in enumerate(tensors)}
            named[_RECORD] = torch.frombuffer(bytearray(encode_record(record)), dtype=torch.uint8)
            if self._stash.tensors.put(self._identity(key), named, tags=("mellea",)):
                self._undropped.discard(key)
        except NotKept as error:
            self._say("kept in memory only", error)
        except (LmstashError, RuntimeError) as error:
            self._fault("was not written", error)

    def drop(self, key: str) -> None:
        """Forget what is kept."""
        self._undropped.add(key)
        try:
            identity = self._identity(key)
            if self._stash.tensors.delete(identity) or self._stash.tensors.get(identity) is None:
                self._undropped.discard(key)
        except (LmstashError, RuntimeError) as error:
            self._fault("was not dropped", error)

    def get(self, key: str) -> Any:
        """Return the value, its tensors on the model's device, or None."""
        if key in self._undropped:
            return None
        try:
            named = self._stash.tensors.get(self._identity(key))
            if named is None:
                return None
            record = decode_record(named[_RECORD].numpy().tobytes())
            if record["form"] != _FORM:
                return None
            return _put_together(record["value"], lambda index: named[str(index)], self._model.device)
        except (LmstashError, RuntimeError, KeyError, TypeError, ValueError, ImportError) as error:
            self._fault("was not read", error)
            return None

    def _identity(self, key: str) -> dict[str, Any]:
        return {"mellea cache": key, "model": self._watch.refresh().hex}

    def _say(self, what: str, error: Exception) -> None:
        self._stash.store.events.warn_once(
            f"mellea {what}: {error}", "lmstash: a value of mellea's cache %s: %s", what, error
        )

    def _fault(self, what: str, error: Exception) -> None:
        self._say(what, error)
        if self._stash.store.strict:
            if isinstance(error, LmstashError):
                raise error
            raise FormatError(f"a value of mellea's cache {what}: {error!r}") from error


def _take_apart(value: Any, tensors: list[Any]) -> Any:
    """Return a record of `value` in which tensors are numbers, and append these to `tensors`."""
    kind = type(value)
    if kind in _PLAIN:
        return ["plain", value]
    if kind is torch.Tensor:
        tensors.append(value.detach())
        return ["tensor", len(tensors) - 1, value.device.type]
    if kind in (list, tuple):
        return ["list" if kind is list else "tuple", [_take_apart(each, tensors) for each in value]]
    if kind is dict:
        return ["dict", [[_take_apart(part, tensors) for part in item] for item in value.items()]]
    if kind.__module__ == "transformers.cache_utils" and kind.__name__ == "DynamicCache":
        return ["kv", [_take_apart(_full_attention(layer), tensors) for layer in value.layers]]
    if kind.__module__ == "mellea.backends.huggingface" and kind.__name__ == "HFAloraCacheInfo":
        if set(vars(value)) != set(_FIELDS):
            raise NotKept("an HFAloraCacheInfo with other fields than mellea 0.8's")
        return ["mellea", [_take_apart(getattr(value, name), tensors) for name in _FIELDS]]
    raise NotKept(f"{kind.__module__}.{kind.__qualname__}")


def _full_attention(layer: Any) -> tuple[Any, Any]:
    if type(layer).__name__ != "DynamicLayer" or not torch.is_tensor(layer.keys):
        raise NotKept(f"KV of a {type(layer).__name__}")
    return layer.keys, layer.values


def _put_together(record: Any, tensor: Callable[[int], Any], device: Any) -> Any:
    """Return the value that `record` was made from; tensors that were not on the CPU go to `device`."""
    kind, content = record[0], record[1]
    if kind == "plain":
        return content
    if kind == "tensor":
        found = tensor(content)
        return found if record[2] == "cpu" else found.to(device)
    if kind == "dict":
        return {_put_together(key, tensor, device): _put_together(each, tensor, device) for key, each in content}
    parts = [_put_together(each, tensor, device) for each in content]
    if kind == "list":
        return parts
    if kind == "tuple":
        return tuple(parts)
    if kind == "kv":
        from transformers import DynamicCache

        return DynamicCache(parts)
    if kind == "mellea":
        from mellea.backends.huggingface import HFAloraCacheInfo

        return HFAloraCacheInfo(**dict(zip(_FIELDS, parts, strict=True)))
    raise FormatError(f"unknown kind {kind!r}")
