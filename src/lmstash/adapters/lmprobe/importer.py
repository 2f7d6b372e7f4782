"""Takes an lmprobe cache over into a stash, so that nobody loses what they have.

The folder is only read. What is taken is marked unverified, since lmprobe's files do not say which weights computed
them; `declare` and `verify_sample=` say when it may be served (see `lmstash.adapters.lmprobe.imported`).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmstash.adapters.lmprobe import config
from lmstash.adapters.lmprobe.catalog import Shape, register
from lmstash.adapters.lmprobe.counting import tensor_facts
from lmstash.adapters.lmprobe.identify import Identity, Teller, identify_model, is_local_lmprobe
from lmstash.adapters.lmprobe.imported import (
    ImportedPrompt,
    declaration,
    declare_identity,
    encode_value,
    imported_key,
    imported_namespace,
    index_write,
    read_imported,
    read_index,
    revoke,
    value_write,
)
from lmstash.adapters.lmprobe.layout import LayoutModel, LayoutPrompt, hash16, load_prompt, read_layout
from lmstash.adapters.lmprobe.sample import TOLERANCE, compare_sample
from lmstash.adapters.lmprobe.slots import note_written
from lmstash.errors import InvalidArgumentError
from lmstash.events import logger
from lmstash.stash import Stash
from lmstash.store.base import Store


@dataclass
class ImportedModel:
    """What was taken over for one model."""

    name: str | None
    """None where the folder does not say it: import again with `model=` to name it."""
    model_hash: str
    prompts: int = 0
    tensors: int = 0
    """Found usable."""
    added: int = 0
    """Of these, not kept before, or kept with other values."""
    dropped: int = 0
    """Of these, not kept now (no room, or the store is read-only)."""
    nbytes: int = 0
    left_padded: int = 0
    """Prompts computed under left padding; served only if a sample with one of them agreed."""
    status: str = "unverified"
    """`unverified`, `declared` (the owner's word), `verified` (a sample agreed), or `disagrees`."""
    sampled: int = 0
    """Prompts computed again."""
    largest_difference: float | None = None
    """In the sample, relative to the largest value of the tensor."""


@dataclass
class ImportReport:
    """What `import_cache` did."""

    folder: str
    models: list[ImportedModel] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each file or tensor that could not be taken, and why."""
    ignored: list[str] = field(default_factory=list)
    """What lies in the folder and is no per-prompt cache file."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data."""
        return asdict(self)

    def __str__(self) -> str:
        """A short report for people."""
        lines = [f"{self.folder}: {sum(each.prompts for each in self.models):,} prompts"]
        for each in self.models:
            name = each.name or f"(hash {each.model_hash}; name it with model=)"
            lines.append(
                f"  {name}: {each.prompts:,} prompts, {each.tensors:,} tensors, {each.nbytes:,} bytes, "
                f"{each.added:,} new, {each.status}"
            )
            if each.dropped:
                lines.append(f"    {each.dropped:,} tensors were not kept: raise the limit and import again")
            if each.left_padded:
                lines.append(
                    f"    {each.left_padded:,} prompts were padded on the left: served only if a sample agrees"
                )
            if each.status == "unverified":
                lines.append("    not served yet: declare the model, or let a sample be computed again")
        lines += [f"  left out: {each}" for each in self.problems]
        if self.ignored:
            lines.append(f"  not part of the cache: {', '.join(self.ignored)}")
        return "\n".join(lines)


def import_cache(
    folder: str | os.PathLike[str],
    stash: Any = None,
    *,
    model: Any = None,
    declare: bool = False,
    verify_sample: int = 0,
    tolerance: float | None = None,
) -> ImportReport:
    """Copy an lmprobe cache (layouts v1 and v2, sidecars included) into a stash.

    Importing again adds what is new and changes nothing else; what a sample verified before needs another sample once
    something was added. Damaged files and tensors that do not fit are reported and left out. Reads every file once, a
    prompt at a time.

    Args:
        folder: lmprobe's cache folder (`LMPROBE_CACHE_DIR`, or `~/.cache/lmprobe`). Only read.
        stash: Where to: what `set_cache_backend` takes; None is the backend in use.
        model: Take only this model: its name (also to name a folder that does not), or a live extractor of that name.
        declare: You vouch that `model` computed what is imported under its name. Given by name, the first extractor of
            that name takes the declaration, and no other.
        verify_sample: With a live extractor: how many prompts to compute again. If all agree, what was imported may be
            served to it; if one does not, nothing may.
        tolerance: Largest difference that still agrees, relative to the largest value of the tensor. By default 1e-3
            for tensors in float32 and float64, 5e-3 in float16, 2e-2 in bfloat16.

    Raises:
        InvalidArgumentError: `declare` or `verify_sample` without a model to declare or to compute with, or a model
            that is not in the folder.
        StoreUnavailableError: The folder cannot be read.
    """
    extractor = None if model is None or isinstance(model, str) else getattr(model, "extractor", model)
    name = model if isinstance(model, str) else None if extractor is None else str(extractor.model_name)
    if declare and name is None:
        raise InvalidArgumentError("declare=True needs model=: the name, or the extractor, that you vouch for")
    if verify_sample and extractor is None:
        raise InvalidArgumentError("verify_sample= needs model=: a live extractor to compute the sample with")
    target = config.current_stash() if stash is None else config.as_stash(stash)
    layout = read_layout(Path(folder).expanduser())
    chosen = [each for each in layout.models if name is None or each.model_hash == hash16(name)]
    if name is not None and not chosen:
        there = ", ".join(each.name or each.model_hash for each in layout.models) or "none"
        raise InvalidArgumentError(f"{folder} holds nothing of a model called {name!r}. It has: {there}.")
    report = ImportReport(str(folder), ignored=layout.ignored)
    for found in chosen:
        taken = _import_model(found, name or found.name, target, report.problems)
        report.models.append(taken)
        before = declaration(target.store, found.model_hash)
        if before is not None and before.how == "sample" and taken.added:
            revoke(target.store, found.model_hash)
        elif before is not None:
            taken.status = "verified" if before.how == "sample" else "declared"
    if name is None:
        return report
    [taken] = report.models
    if verify_sample:
        _verify(taken, chosen[0], target, extractor, verify_sample, tolerance)
    if declare and not (verify_sample and taken.status in ("verified", "disagrees")):
        declare_model(extractor or name, target)
        taken.status = "declared"
    return report


def declare_model(model: Any, stash: Any = None) -> None:
    """Vouch that what was imported under a model's name was computed by it, so that it may be served.

    Args:
        model: A live extractor: its weights as they are now. Or a name: the first extractor of that name that asks
            takes the declaration, and no other.
        stash: Where the import went; None is the backend in use.

    Raises:
        UnsupportedModelError: The extractor's model cannot be identified safely.
    """
    target = config.current_stash() if stash is None else config.as_stash(stash)
    if isinstance(model, str):
        before = declaration(target.store, hash16(model))
        if before is not None and before.how == "owner":
            return  # taken already, or waiting to be
        declare_identity(target.store, model, None, how="owner", left_padded=False)
        return
    extractor = getattr(model, "extractor", model)
    identity = _identity(extractor, Teller(target.store))
    declare_identity(target.store, str(extractor.model_name), identity.digest, how="owner", left_padded=False)


def load_imported(
    model_name: str, prompt: str, stash: Any = None, *, unverified: bool = False
) -> dict[str, Any] | None:
    """Return every tensor that was imported for a prompt, by lmprobe's names; None where nothing may be returned.

    This is how pooled values, logits, the top k of them, perplexity and router logits of an import are read:
    `CachedExtractor` serves its raw layers only. Layers are `[n_tokens, hidden]`, padding removed; everything else is
    as lmprobe kept it (`pooled_mean_layer_3` is `[1, hidden]`).

    Like all that was imported, they are returned on somebody's word only: once the owner declared the model
    (`declare_model`, or `declare=True` with the import), or a sample was computed again and agreed. What was computed
    under left padding needs such a sample. The word is about a name: that the model of this name is still the one
    which computed them is for you to know.

    Args:
        model_name: As lmprobe named it.
        prompt: The prompt's text.
        stash: Where the import went; None is the backend in use.
        unverified: Return them on nobody's word, as a look at what was imported: nobody knows which model computed
            them, nor, under left padding, whether they are right.
    """
    target = config.current_stash() if stash is None else config.as_stash(stash)
    store, model_hash, prompt_hash = target.store, hash16(model_name), hash16(prompt)
    imported = read_index(store, model_hash, prompt_hash)
    if imported is None or imported.text not in (None, prompt):
        return None
    declared = declaration(store, model_hash)
    if not unverified and (declared is None or (imported.left_padded and not declared.left_padded)):
        remedy = "declare_model() or import_cache(..., verify_sample=5)"
        if declared is not None:
            remedy = "as it was computed under left padding, a sample with such a prompt that agrees"
        store.events.warn_once(
            f"unverified import of {model_name}",
            "lmstash: what was imported for %s is unverified and not returned. It takes %s.",
            model_name,
            remedy,
        )
        return None
    return read_imported(store, model_hash, prompt_hash, imported.tensors) or None


def _import_model(found: LayoutModel, name: str | None, stash: Stash, problems: list[str]) -> ImportedModel:
    taken = ImportedModel(name, found.model_hash)
    layers: set[int] = set()
    kinds: set[str] = set()
    for prompt in found.prompts:
        more_layers, more_kinds = tensor_facts(_import_prompt(prompt, taken, stash, problems))
        if not (more_layers <= layers and more_kinds <= kinds):
            layers, kinds = layers | more_layers, kinds | more_kinds
            told = tuple(sorted(layers)), tuple(sorted(kinds))
            register(stash.store, Shape(name, found.model_hash, imported_namespace(found.model_hash), *told))
    if taken.added:
        note_written(stash.store, found.model_hash)
    logger.info("imported %d prompts of %s", taken.prompts, name or found.model_hash)
    return taken


def _import_prompt(prompt: LayoutPrompt, taken: ImportedModel, stash: Stash, problems: list[str]) -> Collection[str]:
    """Take one prompt over, and return the names of its usable tensors."""
    store, model_hash = stash.store, taken.model_hash
    loaded = load_prompt(prompt)
    problems.extend(f"{model_hash}/{prompt.prompt_hash}: {each}" for each in loaded.problems)
    if not loaded.tensors:
        return ()
    before = read_index(store, model_hash, prompt.prompt_hash)
    names = [*(before.tensors if before else ()), *loaded.tensors]
    values = loaded.tensors.get("logits_top_k_values")
    imported = ImportedPrompt(
        tensors=tuple(dict.fromkeys(names)),
        n_tokens=loaded.n_tokens,
        left_padded=loaded.left_padded,
        text=None if stash.private else prompt.text,
        top_k=None if values is None or values.dim() == 0 else int(values.shape[-1]),
    )
    keys = [imported_key(model_hash, prompt.prompt_hash, tensor) for tensor in loaded.tensors]
    there = store.contains_many(keys)
    kept = iter(store.get_many([key for key, known in zip(keys, there, strict=True) if known]))
    writes = []
    for (tensor, value), known in zip(loaded.tensors.items(), there, strict=True):
        data = encode_value(value)
        taken.nbytes += len(data)
        if known and (old := next(kept)) is not None and old == data:
            continue
        write = value_write(model_hash, prompt.prompt_hash, taken.name, tensor, imported)
        write.value = data
        writes.append(write)
    taken.prompts += 1
    taken.tensors += len(loaded.tensors)
    taken.left_padded += loaded.left_padded
    done = store.put_many(writes) if writes else 0
    taken.added += done
    taken.dropped += len(writes) - done
    if imported != before:
        store.put_many([index_write(model_hash, prompt.prompt_hash, taken.name, imported)])
    return loaded.tensors.keys()


def _verify(
    taken: ImportedModel, found: LayoutModel, stash: Stash, extractor: Any, n_prompts: int, tolerance: float | None
) -> None:
    teller = Teller(stash.store)
    identity = _identity(extractor, teller)
    chosen = _sample(found, stash.store, n_prompts)
    limits = TOLERANCE if tolerance is None else dict.fromkeys(TOLERANCE, tolerance)
    differences: list[float] = []
    agreed, left_padded = bool(chosen), False
    for text, imported in chosen:
        tensors = read_imported(stash.store, found.model_hash, hash16(text), imported.tensors)
        compared = compare_sample(extractor, text, tensors, limits)
        if compared is None:
            continue
        taken.sampled += 1
        differences.append(compared.difference)
        agreed &= compared.agrees
        left_padded |= imported.left_padded
    taken.largest_difference = max(differences, default=None)
    if not differences:
        logger.warning("lmstash: no prompt of %s could be computed again, so nothing is verified", taken.name)
        return
    taken.status = "verified" if agreed else "disagrees"
    if agreed:
        identity = teller.after_batch(extractor, identity, remote=False)
        name = str(extractor.model_name)
        declare_identity(stash.store, name, identity.digest, how="sample", left_padded=left_padded)
    else:
        revoke(stash.store, found.model_hash)
        logger.warning("lmstash: what was imported for %s does not agree with it; it is not served", taken.name)


def _sample(found: LayoutModel, store: Store, n_prompts: int) -> list[tuple[str, ImportedPrompt]]:
    """Choose prompts spread over the folder, one that was padded on the left among them if there is any."""
    known = [
        (prompt.text, imported)
        for prompt in found.prompts
        if prompt.text is not None and (imported := read_index(store, found.model_hash, prompt.prompt_hash)) is not None
    ]
    if len(known) <= n_prompts:
        return known
    places = [round(at * (len(known) - 1) / max(1, n_prompts - 1)) for at in range(n_prompts)]
    chosen = [known[place] for place in places[:1] + [b for a, b in pairwise(places) if a != b]]
    shifted = next((each for each in known if each[1].left_padded), None)
    if shifted is not None and not any(each[1].left_padded for each in chosen):
        chosen[-1] = shifted
    return chosen


def _identity(extractor: Any, teller: Teller) -> Identity:
    if is_local_lmprobe(extractor, remote=False):
        return identify_model(extractor)
    return teller.identify(extractor, remote=False)
