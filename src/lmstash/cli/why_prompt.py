"""Say whether activations of a prompt would be found, and in what the nearest kept entry differs.

Prompts are compared by the digests kept beside every entry: of the text, or of the token ids. Raw values of a longer
prompt lie in blocks that prompts share, so there every block is asked for by its own key, as a look-up would.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmstash.caches.models import ModelNames, fingerprint_of, is_digits, names_model, read_digests
from lmstash.caches.places import POOLS, SITES
from lmstash.cli.models import explain_models
from lmstash.cli.place import components, models_alike
from lmstash.cli.why import miss
from lmstash.errors import InvalidArgumentError, MissingDependencyError
from lmstash.identity.chain import BLOCK_TOKENS
from lmstash.identity.tokens import digest_text, digest_token_bytes, token_bytes
from lmstash.store.base import EntryInfo, Store

TEXT_CHARACTERS = 200
"""How much of a prompt an entry keeps for people to read."""
PARTS = ("model", "layer", "site", "pool", "storage")
_WORDS = {"site": SITES, "pool": POOLS, "storage": ("exact", "float16", "bfloat16", "float32")}
"""What there is to ask for in activations; of poolings also a token index, and none."""
_ABSENT = "absent"
_SHARED = (
    f"blocks of {BLOCK_TOKENS} tokens are shared by all prompts that begin with the same tokens: a hit if this one is "
    "nothing but such blocks. Ask with --tokens"
)
_IMPORTED = re.compile(r"(?:(router)_|pooled_(.+)_)?layer_(\d+)")
"""lmprobe's names of tensors that have a layer."""
_POOLS = {"last_token": "last", "first_token": "first"}
"""lmprobe's names of poolings that lmstash calls otherwise."""


@dataclass(slots=True)
class _Question:
    """What was looked up: a prompt as text or as token ids, and the parts that were named."""

    text: str | None
    tokens: bytes | None
    """Token ids as bytes."""
    parts: dict[str, Any]
    text_id: str = ""
    text_hash: str = ""
    """As lmprobe names a prompt."""

    def __post_init__(self) -> None:
        if self.text is not None:
            self.text_id = digest_text(self.text)
            self.text_hash = hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def is_of(self, entry: EntryInfo, parts: dict[str, Any]) -> bool | None:
        """Whether an entry is over the prompt, or over a part of it; None where it does not say what it is over."""
        if self.tokens is not None:
            digest, start = parts.get("tokens"), parts.get("start")
            if not isinstance(digest, bytes):
                return None
            if start is None:
                return digest == digest_token_bytes(self.tokens)
            end = 4 * (start + entry.n_tokens)
            inside = end == len(self.tokens) or (end < len(self.tokens) and entry.n_tokens == BLOCK_TOKENS)
            return inside and digest == digest_token_bytes(self.tokens[4 * start : end])
        if entry.meta.get("unverified"):
            return entry.meta.get("prompt") == self.text_hash
        if "text_id" in entry.meta:
            return entry.meta["text_id"] == self.text_id
        text = entry.meta.get("text")
        return text == (self.text or "")[:TEXT_CHARACTERS] if isinstance(text, str) else None

    def is_whole(self, entry: EntryInfo, parts: dict[str, Any]) -> bool:
        """Whether an entry that is of the prompt is over all of it."""
        start = parts.get("start")
        if start is None or self.tokens is not None:
            return start is None or 4 * entry.n_tokens == len(self.tokens or b"")
        return start == 0 and entry.n_tokens != BLOCK_TOKENS

    def begins(self, entry: EntryInfo, parts: dict[str, Any]) -> bool | None:
        """Whether an entry holds raw values of another prompt that begins with this one, as far as its text is kept.

        None where no text is kept, as in a private stash, and its tokens are a whole block, which prompts share.
        """
        if self.text is None or "start" not in parts:
            return False
        text = entry.meta.get("text")
        if isinstance(text, str):
            return text.startswith(self.text[:TEXT_CHARACTERS])
        return None if parts["start"] == 0 and entry.n_tokens == BLOCK_TOKENS else False

    def difference(self, entry: EntryInfo, parts: dict[str, Any]) -> tuple[str, Any, Any]:
        """Return (name, asked, kept) of the prompt, for an entry that is not of it."""
        if self.tokens is not None:
            digest = parts.get("tokens")
            kept = f"{entry.n_tokens} others" if isinstance(digest, bytes) else _ABSENT
            return "tokens", f"{len(self.tokens) // 4} tokens", kept
        asked, text = self.text or "", entry.meta.get("text")
        if isinstance(text, str) and text[:80] != asked[:80]:
            return "prompt", asked, text
        kept = entry.meta.get("text_id") or entry.meta.get("prompt") or _ABSENT
        return "prompt", f"text {self.text_id} ({len(asked):,} characters)", f"text {kept}"

    def likeness(self, entry: EntryInfo) -> float:
        """How much the text kept beside an entry is like the prompt, from 0 to 1."""
        text = entry.meta.get("text")
        if self.text is None or not isinstance(text, str):
            return 0.0
        return difflib.SequenceMatcher(None, self.text[:TEXT_CHARACTERS], text).quick_ratio()


@dataclass(slots=True)
class _Found:
    """What was found among the entries of a kind."""

    same: list[tuple[EntryInfo, dict[str, Any]]] = field(default_factory=list)
    """Entries of the prompt in which nothing differs that was named."""
    longer: EntryInfo | None = None
    """Raw values of a longer prompt, in which nothing else differs."""
    veiled: EntryInfo | None = None
    """A block of raw values that may be so: no text says of which prompt."""
    nearest: EntryInfo | None = None
    differing: list[tuple[str, Any, Any]] = field(default_factory=list)
    silent: int = 0
    """Entries that do not say what they are over."""
    total: int = 0


def by_prompt(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find the entry nearest to what was looked up, and what differs.

    Raises:
        InvalidArgumentError: `--tokens` holds no token ids, or there is no such site, pooling or storage.
    """
    parts = {name: getattr(arguments, name) for name in PARTS if getattr(arguments, name) is not None}
    if "pool" in parts:
        parts["pool"] = _read_pool(parts["pool"])
    if arguments.kind == "activations":
        _check_words(parts)
    tokens = None if arguments.tokens is None else _read_tokens(arguments.tokens)
    question = _Question(arguments.prompt, tokens, parts)
    imports = _Imports(store)
    found = _search(store, question, arguments.kind, imports)
    rest = [name for name in PARTS if name not in parts]
    uncompared = f" ({', '.join(rest)} not compared)" if rest else ""
    if found.same:
        return _served(store, question, found, imports, uncompared)
    if found.longer is not None:
        return _untold(f"a prompt that begins alike is kept, and {_SHARED}", found.longer)
    if found.veiled is not None:
        return _untold(
            f"raw values are kept of prompts without their text (a private stash), and {_SHARED}", found.veiled
        )
    if found.nearest is None:
        hidden = f"; {found.silent:,} do not say what they were computed over" if found.silent else ""
        return miss(f"miss (absent): none of {found.total:,} entries of kind {arguments.kind} keeps a prompt{hidden}")
    differing = found.differing
    names = ", ".join(name for name, _, _ in differing)
    if any(name == "model" for name, _, _ in differing):
        differing += explain_models(store, parts["model"], str(found.nearest.meta.get("model", "")))
    return miss(f"miss (absent): {names} not as kept", found.nearest, differing)


def _search(store: Store, question: _Question, kind: str, imports: _Imports) -> _Found:
    names, found = ModelNames(store), _Found()
    best: tuple[int, float] | None = None
    for entry in store.entries(f"{kind}/"):
        parts = _parts_of(entry)
        if parts.get("layers") == []:
            continue  # refresh=True has put its layers into another entry
        found.total += 1
        same = question.is_of(entry, parts)
        if same is None:
            found.silent += 1
            continue
        differing = _differing(question, entry, parts, names, imports)
        if not differing and same:
            found.same.append((entry, parts))
            continue
        begins = not differing and question.begins(entry, parts)
        if begins and found.longer is None:
            found.longer = entry
        if begins is None and found.veiled is None:
            found.veiled = entry
        if not same:
            differing = sorted([*differing, question.difference(entry, parts)], key=lambda each: each[0])
        distance = (len(differing), -1.0 if same else -question.likeness(entry))
        if best is None or distance < best:
            best, found.nearest, found.differing = distance, entry, differing
    return found


def _differing(
    question: _Question, entry: EntryInfo, parts: dict[str, Any], names: ModelNames, imports: _Imports
) -> list[tuple[str, Any, Any]]:
    """Return (name, asked, kept) of every part that was named and is not so in an entry, by name."""
    asked, kept = dict(question.parts), dict(parts)
    if "layers" in kept:  # an entry holds several: the one asked for, if it is among them
        kept["layer"] = asked.get("layer") if asked.get("layer") in kept["layers"] else kept["layers"]
    if entry.meta.get("unverified"):
        kept["storage"] = asked.get("storage")  # served whatever is asked for
    if "model" in asked:
        same = names_model(entry, asked["model"], names) or imports.declared_for(entry, asked["model"])
        asked["model"], kept["model"] = (None, None) if same else models_alike(asked["model"], entry, names)
    compared = ((name, asked[name], kept.get(name, _ABSENT)) for name in sorted(asked))
    return [each for each in compared if each[1] != each[2]]


def _served(store: Store, question: _Question, found: _Found, imports: _Imports, uncompared: str) -> dict[str, Any]:
    """Say whether the entries in which nothing differs would be served."""
    now = time.time()
    alive = [(entry, parts) for entry, parts in found.same if entry.expires is None or entry.expires > now]
    if not alive:
        return miss("miss (expired): kept, but older than its ttl_seconds", found.same[0][0])
    computed = [(entry, parts) for entry, parts in alive if not entry.meta.get("unverified")]
    wholes = [entry for entry, parts in computed if question.is_whole(entry, parts)]
    if wholes:
        whole = wholes[0]
        if "text_id" not in whole.meta and question.text is not None and len(question.text) >= TEXT_CHARACTERS:
            return _untold(f"of its text only the first {TEXT_CHARACTERS} characters are kept, which agree", whole)
        return _hit(f"kept{uncompared}", whole) | _whose(question, wholes)
    if computed:
        return _blocks(store, question, [entry for entry, _parts in computed], uncompared)
    reasons = [(entry, imports.refusal(entry)) for entry, _parts in alive]
    served = next((entry for entry, reason in reasons if reason is None), None)
    if served is not None:
        return _hit(f"kept: {imports.word(served)}{uncompared}", served)
    return miss(f"miss (imported): {reasons[0][1]}", reasons[0][0])


def _blocks(store: Store, question: _Question, pieces: Sequence[EntryInfo], uncompared: str) -> dict[str, Any]:
    """Say whether every token of a prompt is kept of which raw values are found in pieces."""
    try:
        from lmstash.caches.activations.unloaded import known_tokens, raw_layers
    except ImportError:
        return _untold("it is kept in blocks, which cannot be named without torch: install lmstash[torch]", pieces[0])
    groups: defaultdict[tuple[str, ...], list[EntryInfo]] = defaultdict(list)
    for piece in pieces:
        parts = components(piece)
        groups[fingerprint_of(piece), str(parts.get("site")), str(parts.get("storage"))].append(piece)
    digests, untold, kept = read_digests(store), "", list[EntryInfo]()
    for (model, _site, _storage), members in groups.items():
        tokens = question.tokens if question.tokens is not None else known_tokens(store, members)
        if tokens is None or model not in digests:
            lacking = "its tokens are not all known" if tokens is None else f"model {model} is not described"
            untold = f"blocks of its raw values are kept; whether all are cannot be told, as {lacking} here"
            continue
        held = sorted({layer for each in members for layer in components(each).get("layers", ())})
        layers = [question.parts["layer"]] if "layer" in question.parts else held
        if raw_layers(store, digests[model], members[0], layers, tokens, salt=None):
            kept.append(members[0])
    if kept:
        return _hit(f"kept{uncompared}", kept[0]) | _whose(question, kept)
    if untold:
        return _untold(f"{untold}. Ask with --tokens" if question.tokens is None else untold, pieces[0])
    return miss(
        "miss (absent): of its raw values only some blocks are kept, or they follow other tokens, or were kept under a "
        "salt",
        pieces[0],
    )


class _Imports:
    """Whether what was imported from lmprobe is served, and to whom."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._declared: dict[str, Any] = {}

    def declared_for(self, entry: EntryInfo, model: str) -> bool:
        """Whether an imported entry was declared to be what the model with this fingerprint computed."""
        declared = self._declaration(entry)
        return declared is not None and len(model) >= 8 and declared.model.hex()[:16].startswith(model[:16])

    def refusal(self, entry: EntryInfo) -> str | None:
        """Return why an imported entry is not served; None when it is."""
        declared = self._declaration(entry)
        if declared is None:
            return (
                "unverified, not declared. Run `lmstash import lmprobe FOLDER --model NAME --declare`, or let a sample "
                "be computed again (import_cache(..., verify_sample=5))"
            )
        from lmstash.adapters.lmprobe.imported import read_index

        listed = read_index(self._store, str(entry.meta.get("model_hash")), str(entry.meta.get("prompt")))
        if listed is None:
            return "the list of what was imported for this prompt is not kept any more. Import it again"
        if listed.left_padded and not declared.left_padded:
            return "computed under left padding: served once a sample with such a prompt agreed"
        if not str(entry.meta.get("tensor", "")).startswith("layer_"):
            return "what is no raw layer is returned by `load_imported` only, and served to no model"
        return None

    def word(self, entry: EntryInfo) -> str:
        """Say on whose word an imported entry is served."""
        declared = self._declaration(entry)
        how = "a sample of it agreed" if declared.how == "sample" else "declared by its owner"
        whom = f"model {declared.model.hex()[:16]}" if declared.model else "the first extractor of that name"
        return f"imported from lmprobe, {how}; served by CachedExtractor to {whom}"

    def _declaration(self, entry: EntryInfo) -> Any:
        model_hash = entry.meta.get("model_hash") if entry.meta.get("unverified") else None
        if not isinstance(model_hash, str):
            return None
        if model_hash not in self._declared:
            try:
                from lmstash.adapters.lmprobe.imported import declaration
            except ImportError:
                raise MissingDependencyError("torch", "torch") from None
            self._declared[model_hash] = declaration(self._store, model_hash)
        return self._declared[model_hash]


def _parts_of(entry: EntryInfo) -> dict[str, Any]:
    """Return the parts of an entry's identity; those of an imported one are in lmprobe's name of it."""
    tensor = entry.meta.get("tensor") if entry.meta.get("unverified") else None
    if not isinstance(tensor, str):
        return components(entry)
    match = _IMPORTED.fullmatch(tensor)
    if match is None:
        return {}
    pool = None if match[2] is None else _POOLS.get(match[2], match[2])
    return {"layer": int(match[3]), "site": "router_logits" if match[1] else "block_out", "pool": pool}


def _hit(answer: str, entry: EntryInfo) -> dict[str, Any]:
    return {"hit": True, "answer": answer, "nearest": entry.key.hex(), "differences": []}


def _whose(question: _Question, kept: Sequence[EntryInfo]) -> dict[str, Any]:
    """Return the fingerprints behind a hit, unless they were asked for: a name stays when a model is changed."""
    if is_digits(question.parts.get("model", "")):
        return {}
    return {"models": list(dict.fromkeys(filter(None, map(fingerprint_of, kept))))}


def _untold(why: str, entry: EntryInfo) -> dict[str, Any]:
    """Return the answer to a look-up of which it cannot be said whether it hits."""
    return {**miss(f"cannot be told: {why}", entry), "hit": None}


def _read_tokens(text: str) -> bytes:
    try:
        ids = [int(each) for each in re.split(r"[\s,]+", text.strip("[] \n,"))]
    except ValueError:
        raise InvalidArgumentError(f"--tokens takes token ids, for instance 1,2,3; not {text!r:.80}") from None
    return token_bytes(ids)


def _check_words(parts: dict[str, Any]) -> None:
    for name, words in _WORDS.items():
        asked = parts.get(name)
        if isinstance(asked, str) and asked not in words:
            more = ", a token index, or none for raw" if name == "pool" else ""
            raise InvalidArgumentError(f"there is no {name} {asked!r}: --{name} takes {', '.join(words)}{more}")


def _read_pool(text: str) -> str | int | None:
    if text.lower() in ("none", "raw"):
        return None
    return {"-1": "last", "0": "first"}.get(text, int(text) if text.removeprefix("-").isdigit() else text)
