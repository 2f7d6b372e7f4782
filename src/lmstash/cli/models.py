"""Reads the model descriptions kept in a stash, and says in what two models differ.

See `lmstash.caches.models` for how they are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmstash.store.base import Store

if TYPE_CHECKING:
    from lmstash.identity.fingerprint import Fingerprint


def find_model(store: Store, asked: str) -> Fingerprint | None:
    """Return the newest kept description of a model, by its name or by 8 or more digits of its fingerprint."""
    from lmstash.caches.models import ModelNames, read_models

    digits = ModelNames(store).having(asked)
    found = [each for first, each in read_models(store).items() if first in digits]
    return found[-1] if found else None


def explain_models(store: Store, ours: str, theirs: str) -> list[tuple[str, object, object]]:
    """Return (field, ours, theirs) for everything in which two models differ; nothing where one is not described."""
    first, second = find_model(store, ours), find_model(store, theirs)
    if first is None or second is None:
        return []
    return [(f"model.{each.name}", each.ours, each.theirs) for each in first.explain(second)]
