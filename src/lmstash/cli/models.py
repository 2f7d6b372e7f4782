"""Reads the model descriptions kept in a stash, and says in what two models differ.

A description is an entry of the namespace `models/all`: its meta names the model (`model`: 16 hex digits of the
fingerprint, `name`), its value is the record of `Fingerprint.describe()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmstash.errors import LmstashError
from lmstash.store.base import Store

if TYPE_CHECKING:
    from lmstash.identity.fingerprint import Fingerprint

NAMESPACE = "models/all"


def find_model(store: Store, asked: str) -> Fingerprint | None:
    """Return the newest kept description of a model, by its name or by 8 or more digits of its fingerprint."""
    from lmstash.codecs.records import decode_record
    from lmstash.identity.fingerprint import Fingerprint
    from lmstash.stash import names_model

    entries = [entry for entry in store.entries(NAMESPACE) if names_model(entry, asked)]
    value = store.get(max(entries, key=lambda entry: entry.created).key) if entries else None
    if value is None:
        return None
    try:
        return Fingerprint.from_description(decode_record(value))
    except LmstashError:
        return None


def explain_models(store: Store, ours: str, theirs: str) -> list[tuple[str, object, object]]:
    """Return (field, ours, theirs) for everything in which two models differ; nothing where one is not described."""
    first, second = find_model(store, ours), find_model(store, theirs)
    if first is None or second is None:
        return []
    return [(f"model.{each.name}", each.ours, each.theirs) for each in first.explain(second)]
