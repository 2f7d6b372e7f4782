"""Descriptions of models beside what they computed, so that people can be told in what two models differ."""

from __future__ import annotations

from lmstash.codecs.records import encode_record
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store, Write

MODELS = "models/all"
"""Where they are kept."""


def describe_model(store: Store, fingerprint: Fingerprint, name: str) -> None:
    """Keep what a model's fingerprint was made of, unless it is there. Costs a look-up then."""
    key = Key({"kind": "model", "fingerprint": fingerprint.digest}).digest
    if store.contains(key):
        return
    meta = {"model": fingerprint.hex[:16], "name": name}
    value = encode_record(fingerprint.describe())
    store.put_many([Write(key, value, namespace=MODELS, meta=meta)], replace=False)
