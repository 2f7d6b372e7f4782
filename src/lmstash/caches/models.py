"""Descriptions of models beside what they computed, so that people can be told in what two models differ."""

from __future__ import annotations

import contextlib
from pathlib import PurePath

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import LmstashError
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import EntryInfo, Store, Write

MODELS = "models/all"
"""Where they are kept."""
_HEX = frozenset("0123456789abcdef")


def describe_model(store: Store, fingerprint: Fingerprint, name: str) -> None:
    """Keep what a model's fingerprint was made of, unless it is there. Costs a look-up then."""
    key = Key({"kind": "model", "fingerprint": fingerprint.digest}).digest
    if store.contains(key):
        return
    meta = {"model": fingerprint.hex[:16], "name": name}
    value = encode_record(fingerprint.describe())
    store.put_many([Write(key, value, namespace=MODELS, meta=meta)], replace=False)


class ModelNames:
    """Names of the models that a store holds values of, by the first 16 hex digits of their fingerprints."""

    def __init__(self, store: Store) -> None:
        """Read the descriptions that `store` keeps (a millisecond or so)."""
        kept = store.entries(MODELS)
        self._names = {str(each.meta.get("model", "")): str(each.meta.get("name") or "") for each in kept}

    def of(self, entry: EntryInfo) -> str:
        """Return the name of the model that an entry belongs to; "" where none is known."""
        return str(entry.meta.get("name") or self._names.get(fingerprint_of(entry), ""))

    def having(self, model: str) -> list[str]:
        """Return the first 16 hex digits of each fingerprint that has this name, or begins with these 8 or more."""
        return [hexed for hexed, name in self._names.items() if self.means(model, name) or _begins(hexed, model)]

    def means(self, model: str, name: str) -> bool:
        """Whether `model` is a name, or the last part of it unless that is the whole name of a model of the store."""
        return name == model or (model == last_part(name) and model not in self._names.values())


def fingerprint_of(entry: EntryInfo) -> str:
    """Return the first hex digits of the fingerprint of an entry's model: from its facts, else from its namespace."""
    if "model" in entry.meta:
        return str(entry.meta["model"])[:16]
    owner = entry.namespace.partition("/")[2]
    return owner if len(owner) == 16 and not set(owner) - _HEX else ""


def last_part(name: str) -> str:
    """Return what people call a model that is named by its folder or its place on a hub."""
    return PurePath(name).name


def names_model(entry: EntryInfo, model: str, names: ModelNames) -> bool:
    """Whether `entry` belongs to `model`: its name or the last part of it, or 8 or more digits of its fingerprint."""
    return bool(model) and (names.means(model, names.of(entry)) or _begins(fingerprint_of(entry), model))


def is_digits(model: str) -> bool:
    """Whether a model is asked for by digits of its fingerprint, and not by name."""
    return len(model) >= 8 and not set(model) - _HEX


def _begins(fingerprint: str, model: str) -> bool:
    return len(model) >= 8 and fingerprint.startswith(model[:16])


def read_models(store: Store) -> dict[str, Fingerprint]:
    """Return the fingerprints that are described in a store, by their first 16 hex digits; the newest of each."""
    found: dict[str, Fingerprint] = {}
    for entry in sorted(store.entries(MODELS), key=lambda each: each.created):
        value = store.peek_many([entry.key])[0]
        if value is None:
            continue
        with contextlib.suppress(LmstashError):  # an imported name without a description, or a damaged one
            fingerprint = Fingerprint.from_description(decode_record(value))
            found[str(entry.meta.get("model") or fingerprint.hex)[:16]] = fingerprint
    return found


def read_digests(store: Store) -> dict[str, bytes]:
    """Return the digests of the fingerprints that a store knows, by their first 16 hex digits."""
    found = {
        str(each.meta.get("model")): str(each.meta["digest"]) for each in store.entries(MODELS) if "digest" in each.meta
    }
    return {first: bytes.fromhex(digits) for first, digits in found.items()} | {
        first: each.digest for first, each in read_models(store).items()
    }


def name_model(store: Store, digest: bytes, name: str) -> None:
    """Keep the name of a model of which nothing else is known here."""
    key = Key({"kind": "model name", "fingerprint": digest}).digest
    meta = {"model": digest.hex()[:16], "name": name, "digest": digest.hex()}
    store.put_many([Write(key, b"null", MODELS, meta)], replace=False)
