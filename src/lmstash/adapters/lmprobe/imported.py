"""Values that came out of an lmprobe folder: kept under their names, and served only on somebody's word.

lmprobe's files say neither which weights computed them nor over which tokens. They are kept apart from what lmstash
saw computed, marked `unverified`, and served to an extractor only when a *declaration* binds their model name to the
identity of that extractor: the owner's word, or a sample that was computed again and agreed. What was computed under
left padding is served only when a left-padded prompt was in such a sample: models without position ids go wrong there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.result import PaddedResult
from lmstash.adapters.lmprobe.text_shelf import TextShelf
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.prompts import Prompts
from lmstash.caches.activations.raw import RawShelf
from lmstash.codecs.records import decode_record, encode_record
from lmstash.codecs.tensors import decode_tensors
from lmstash.errors import FormatError
from lmstash.events import MissReason
from lmstash.identity.keys import Key
from lmstash.store.base import Store, Write

_INDEX = "lmprobe/imports"
_VALUES = "activations/lmprobe-"
DECLARATIONS = "lmprobe/declarations"
_VALUE = "value"
_OPEN = b""
"""The identity in a declaration by name only: the first extractor of that name takes it."""


@dataclass(frozen=True)
class ImportedPrompt:
    """What was imported for one prompt."""

    tensors: tuple[str, ...]
    """By lmprobe's names."""
    n_tokens: int | None
    left_padded: bool
    text: str | None
    top_k: int | None = None
    """Of `logits_top_k_values`."""


@dataclass(frozen=True)
class Declaration:
    """The word that imported values of a name were computed by one identity."""

    model: bytes
    """Digest; empty while no extractor has taken it."""
    how: str
    """"owner" or "sample"."""
    left_padded: bool
    """Whether it covers values computed under left padding."""


def imported_namespace(model_hash: str) -> str:
    """Where the values of one model name are kept."""
    return _VALUES + model_hash


def imported_hash(namespace: str) -> str | None:
    """Return the hash of the model name whose values are kept in a namespace, None when it is not one for imports."""
    return namespace.removeprefix(_VALUES) if namespace.startswith(_VALUES) else None


def index_namespace(model_hash: str) -> str:
    """Where the lists of what was imported for the prompts of one model name are kept, one for each prompt."""
    return f"{_INDEX}/{model_hash}"


def imported_key(model_hash: str, prompt_hash: str, tensor: str) -> bytes:
    """Return the key of one imported tensor."""
    return Key({"what": "lmprobe import", "of": (model_hash, prompt_hash, tensor)}).digest


def index_key(model_hash: str, prompt_hash: str) -> bytes:
    """Return the key of the list of a prompt's imported tensors."""
    return Key({"what": "lmprobe import index", "of": (model_hash, prompt_hash)}).digest


def read_index(store: Store, model_hash: str, prompt_hash: str) -> ImportedPrompt | None:
    """Return what was imported for a prompt, whether or not all of it is still kept."""
    said = _record(store, index_key(model_hash, prompt_hash))
    if said is None:
        return None
    try:
        return ImportedPrompt(
            tuple(said["tensors"]), said["n_tokens"], bool(said["left_padded"]), said["text"], said["top_k"]
        )
    except (KeyError, TypeError):
        return None


def index_write(model_hash: str, prompt_hash: str, name: str | None, imported: ImportedPrompt) -> Write:
    """Return the entry that lists a prompt's imported tensors."""
    value = encode_record(
        {
            "tensors": list(imported.tensors),
            "n_tokens": imported.n_tokens,
            "left_padded": imported.left_padded,
            "text": imported.text,
            "top_k": imported.top_k,
        }
    )
    meta: dict[str, Any] = {"name": name, "model_hash": model_hash, "prompt": prompt_hash, "tensors": imported.tensors}
    if imported.text is not None:
        meta["text"] = imported.text[:200]
    return Write(index_key(model_hash, prompt_hash), value, namespace=index_namespace(model_hash), meta=meta)


def read_imported(store: Store, model_hash: str, prompt_hash: str, tensors: Sequence[str]) -> dict[str, Tensor]:
    """Return imported tensors by name, each in memory of its own; without those that are gone or damaged.

    They are unverified: ask `declaration` before serving them to anybody.
    """
    keys = [imported_key(model_hash, prompt_hash, tensor) for tensor in tensors]
    out: dict[str, Tensor] = {}
    for tensor, key, entry in zip(tensors, keys, store.fetch_many(keys), strict=True):
        if entry is None:
            continue
        try:
            out[tensor] = decode_tensors(entry.value, framework="torch")[_VALUE]
        except (FormatError, KeyError):
            store.events.miss(imported_namespace(model_hash), key, MissReason.MISMATCH)
    return out


def declare_identity(store: Store, name: str, model: bytes | None, *, how: str, left_padded: bool) -> None:
    """Keep the word that what was imported under `name` was computed by `model` (None: by the first of that name)."""
    value = encode_record({"model": model or _OPEN, "how": how, "left_padded": left_padded})
    meta = {"name": name, "model": (model or _OPEN).hex()[:16], "how": how}
    store.put(_declaration_key(hash16(name)), value, namespace=DECLARATIONS, meta=meta)


def revoke(store: Store, model_hash: str) -> None:
    """Take the declaration for a model name back: what was imported under it is served to nobody."""
    store.delete(_declaration_key(model_hash))


def rebind(store: Store, model_hash: str, before: bytes, after: bytes) -> None:
    """Let a declaration follow an extractor whose identity is now known better."""
    declared = declaration(store, model_hash)
    key = _declaration_key(model_hash)
    if declared is not None and declared.model == before:
        value = encode_record({"model": after, "how": declared.how, "left_padded": declared.left_padded})
        store.put(key, value, namespace=DECLARATIONS, meta={"model": after.hex()[:16], "how": declared.how})


def declaration(store: Store, model_hash: str) -> Declaration | None:
    """Return the declaration for a model name, if there is one."""
    key = _declaration_key(model_hash)
    said = _record(store, key)
    if said is None or not isinstance(said.get("model"), bytes):
        return None
    return Declaration(said["model"], str(said.get("how")), bool(said.get("left_padded")))


def serve_imported(
    context: Context,
    prompts: Prompts,
    absent: Sequence[int],
    layers: Sequence[int],
    shelf: RawShelf | TextShelf,
    result: PaddedResult | None,
    *,
    live: bool,
) -> set[int]:
    """Put imported values into `result` for prompts of which something is missing, as far as a declaration allows.

    Args:
        context: Who asks.
        prompts: Distinct prompts.
        absent: Those of which something is missing.
        layers: What is asked for.
        shelf: Says which layers are missing.
        result: Receives values; None when only asked whether they are there.
        live: Whether `prompts` hold the model's token ids, so that the number of tokens can be compared.

    Returns:
        The prompts that were served in full.
    """
    store, name = context.store, context.source.name
    model_hash = hash16(name)
    declared = declaration(store, model_hash)
    if declared is None or declared.model not in (_OPEN, context.model):
        return set()
    width = context.source.width("block_out")
    served: set[int] = set()
    for index in absent:
        text = prompts.text(index) or ""
        kept = read_index(store, model_hash, hash16(text))
        if kept is None or kept.text not in (None, text) or (kept.left_padded and not declared.left_padded):
            continue
        n_tokens = prompts.lengths[index] if live else shelf.n_tokens[index] if isinstance(shelf, TextShelf) else None
        if n_tokens not in (None, kept.n_tokens):
            continue
        positions = shelf.missing(index)
        names = [f"layer_{layers[position]}" for position in positions]
        if not set(names) <= set(kept.tensors):
            continue
        values = read_imported(store, model_hash, hash16(text), names)
        wanted = width if width is not None or result is None else result.width
        fits = all(value.shape[0] == kept.n_tokens and wanted in (None, value.shape[1]) for value in values.values())
        if len(values) < len(names) or not fits or len({value.shape for value in values.values()}) > 1:
            continue
        if isinstance(shelf, TextShelf):
            shelf.n_tokens[index] = kept.n_tokens
        for position, tensor in zip(positions, names, strict=True):
            if result is not None:
                result.place(index, position, 0, values[tensor])
        served.add(index)
    if served and declared.model == _OPEN:
        declare_identity(store, name, context.model, how=declared.how, left_padded=declared.left_padded)
    return served


def value_write(model_hash: str, prompt_hash: str, name: str | None, tensor: str, imported: ImportedPrompt) -> Write:
    """Return an entry for one imported tensor, its value still empty."""
    meta: dict[str, Any] = {"name": name, "prompt": prompt_hash, "tensor": tensor, "unverified": True}
    meta |= {"tags": ["lmprobe-import"], "model_hash": model_hash}
    if imported.text is not None:
        meta["text"] = imported.text[:200]
    key = imported_key(model_hash, prompt_hash, tensor)
    return Write(key, b"", namespace=imported_namespace(model_hash), meta=meta, n_tokens=imported.n_tokens or 0)


def encode_value(tensor: Tensor) -> bytes:
    """Return the bytes kept for one imported tensor."""
    from lmstash.codecs.tensors import encode_tensors

    return b"".join(encode_tensors({_VALUE: tensor}))


def _declaration_key(model_hash: str) -> bytes:
    return Key({"what": "lmprobe declaration", "model": model_hash}).digest


def _record(store: Store, key: bytes) -> dict[str, Any] | None:
    value = store.get(key) if store.contains(key) else None
    try:
        said = None if value is None else decode_record(bytes(value))
    except FormatError:
        return None
    return said if isinstance(said, dict) else None
