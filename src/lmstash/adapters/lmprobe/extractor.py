"""`CachedExtractor`: an lmprobe extractor whose answers are kept."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lmstash.adapters.lmprobe import config
from lmstash.adapters.lmprobe.catalog import Reading, read_records
from lmstash.adapters.lmprobe.identify import Identity, Teller, identify_model, is_local_lmprobe
from lmstash.adapters.lmprobe.imported import rebind, serve_imported
from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.recording import Recorder, record_keys_of
from lmstash.adapters.lmprobe.result import PaddedResult, first_places
from lmstash.adapters.lmprobe.source import ROUTER, SITE, ExtractBatchSource, right_padding, text_prompts
from lmstash.adapters.lmprobe.text_shelf import TextShelf
from lmstash.caches.activations.context import Context
from lmstash.caches.activations.extractor import ExtractionError
from lmstash.caches.activations.model_source import ModelSource
from lmstash.caches.activations.prompts import Prompts, read_prompts
from lmstash.caches.activations.publish import Publisher
from lmstash.caches.activations.raw import RawShelf
from lmstash.caches.activations.results import as_dtype
from lmstash.caches.activations.running import Runner
from lmstash.caches.activations.texts import TextIndex
from lmstash.caches.telling import tell_summary, told
from lmstash.errors import InvalidArgumentError, LmstashError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

_REMOTE_RETRIES = 3


class RemoteExtractionError(ExtractionError, RuntimeError):
    """Some prompts could not be computed remotely; the others are kept, so call again to go on."""


@dataclass
class _Call:
    """What one `extract` works with."""

    stash: Stash
    source: ExtractBatchSource
    live: ModelSource | None
    identity: Identity
    context: Context
    layers: list[int]
    prompts: Prompts
    """Distinct."""
    owners: list[int]
    """For each prompt asked for, which of them it is."""
    computed: bool = False
    """Whether anything was computed that may be kept."""


class CachedExtractor:
    """Wraps an extractor, and computes only what is not kept.

    Works with lmprobe's `ActivationExtractor` and with anything that has `model_name`, `layer_indices`, `batch_size`
    and `extract_batch(prompts, layer_indices, remote=)`, which returns values `[n, tokens, n_layers * hidden]` and a
    mask `[n, tokens]`. What is served was computed by the same model: `lmstash.adapters.lmprobe.identify` says what
    "same" means. Every batch is kept as it is done. Threads may share it as far as the extractor may be shared.
    """

    def __init__(self, extractor: Any) -> None:
        """Wrap `extractor`.

        Raises:
            InvalidArgumentError: It lacks `model_name`, `layer_indices` or `extract_batch`.
        """
        lacking = [name for name in ("model_name", "layer_indices", "extract_batch") if not _has(extractor, name)]
        if lacking:
            raise InvalidArgumentError(f"{type(extractor).__name__} is no extractor: it lacks {', '.join(lacking)}.")
        self.extractor = extractor
        self._teller: tuple[Stash, Teller] | None = None
        self._recorder = Recorder()
        self._source: tuple[object, ModelSource] | None = None

    def extract(
        self,
        prompts: list[str],
        remote: bool = False,
        invalidate_cache: bool = False,
        max_retries: int | None = None,
        cache_only: bool = False,
    ) -> tuple[Tensor, Tensor] | None:
        """Return activations, computing (and keeping) what is not kept yet.

        Equal prompts are computed once. Cost of a hit: reading it, once, into the result; a call in which everything
        is kept holds little beside its result. A local model is re-hashed first, so that weights changed in place are
        noticed (see `lmstash.identity.models.watch`).

        Args:
            prompts: Strings.
            remote: Passed on; a failing batch is tried again and, failing for good, leaves the others alone.
            invalidate_cache: Compute everything anew and replace what is kept.
            max_retries: Of a remote batch; 3 when None. Local batches are never tried again.
            cache_only: Fill the cache and return None.

        Returns:
            Activations `[n_prompts, n_tokens, n_layers * hidden]`, layers side by side in ascending order, zeros on the
            right of shorter prompts, in the dtype of `set_cache_dtype` if one is set; and the attention mask
            `[n_prompts, n_tokens]`. The caller owns both.

        Raises:
            InvalidArgumentError: `prompts` is not a list of strings, or a prompt has no tokens.
            RemoteExtractionError: Remote batches failed for good; also a RuntimeError, as in lmprobe.
            MismatchError: `extract_batch` answered in another shape than asked.
        """
        texts = _check(prompts)
        if remote:
            _configure_remote(self.extractor)
        local = is_local_lmprobe(self.extractor, remote)
        with right_padding(self.extractor.tokenizer) if local else nullcontext():
            retries = 0 if not remote else _REMOTE_RETRIES if max_retries is None else max_retries
            call = self._prepare(texts, remote, local, retries)
            with told(call.stash.store.events):
                try:
                    return self._run(call, invalidate_cache, cache_only)
                except ExtractionError as error:
                    raise RemoteExtractionError(str(error)) from error

    def _prepare(self, texts: list[str], remote: bool, local: bool, retries: int) -> _Call:
        """Say who computes what, and where it is kept: nowhere, when that cannot be told."""
        extractor, stash = self.extractor, config.current_stash()
        if self._teller is None or self._teller[0] is not stash:
            self._teller = stash, Teller(stash.store)
            self._recorder = Recorder()
        teller, live = self._teller[1], None
        try:
            if config.is_disabled():
                raise _CachingOff("the limit is 0")
            identity = identify_model(extractor) if local else teller.identify(extractor, remote)
            live = self._live(identity) if local else None
        except Exception as error:
            if not isinstance(error, _CachingOff):
                if stash.store.strict:
                    raise
                stash.store.events.warn_once(
                    f"identity of {extractor.model_name}",
                    "lmstash: %s is not cached in this run: %s",
                    extractor.model_name,
                    error if isinstance(error, LmstashError) else repr(error),
                )
            live, identity = None, Identity(bytes(32), lambda: True, {})
            stash = Stash(MemoryStore(0))

        def after_batch() -> None:
            before, call.identity = call.identity, teller.after_batch(extractor, call.identity, remote)
            if call.identity.digest != before.digest:
                rebind(call.stash.store, hash16(call.source.name), before.digest, call.identity.digest)
                call.context = replace(call.context, model=call.identity.digest)

        source = ExtractBatchSource(extractor, live, remote=remote, max_retries=retries, after_batch=after_batch)
        if live is None:
            asked = text_prompts(texts)
        else:
            index = None
            if not stash.private:  # ids spell out text
                index = TextIndex(stash.store, extractor.tokenizer, salt=stash.salt, ttl_seconds=stash.ttl_seconds)
            asked = read_prompts(texts, extractor.tokenizer, index)
        places: dict[bytes, int] = {}
        owners = [places.setdefault(name, len(places)) for name in asked.names]
        distinct = asked.pick(first_places(owners))
        context = Context(
            stash.store, source, identity.digest, config.storage_dtype(), stash.salt, stash.private, stash.ttl_seconds
        )
        layers = sorted({int(layer) for layer in extractor.layer_indices})
        call = _Call(stash, source, live, identity, context, layers, distinct, owners)
        return call

    def _live(self, identity: Identity) -> ModelSource:
        """Return the model as a source: the same one as long as it is the same, since whether it is causal is tried."""
        model = self.extractor.model
        told = id(model), identity.digest, identity.objects
        if self._source is None or self._source[0] != told:
            self._source = told, ModelSource(model, unknown_code=identity.unknown_code)
        return self._source[1]

    def _run(self, call: _Call, invalidate: bool, cache_only: bool) -> tuple[Tensor, Tensor] | None:
        n_tokens = self._lengths(call)
        known = [each for each in n_tokens if each is not None]
        longest = max(known, default=0) if len(known) == len(n_tokens) else None
        dtype = as_dtype(call.context.storage_dtype)
        result = None if cache_only else PaddedResult(call.owners, len(call.layers), longest, dtype)
        shelf: RawShelf | TextShelf
        if call.live is not None:
            shelf = RawShelf(call.context, call.prompts, call.layers, SITE, result)
        else:
            shelf = TextShelf(call.context, call.prompts, call.layers, result, n_tokens)
        if invalidate:
            shelf.refresh()
        elif cache_only:
            shelf.look()
        else:
            shelf.load()
        absent = shelf.absent()
        if absent and not invalidate:
            served = serve_imported(
                call.context, call.prompts, absent, call.layers, shelf, result, live=call.live is not None
            )
            absent = [index for index in absent if index not in served]
        tell_summary(call.source.name, n_absent=len(absent), n_prompts=len(call.prompts), layers=call.layers)
        try:
            # Twice at most: a batch may show that what was found for a prompt was not computed alike.
            for _ in range(2):
                if absent:
                    self._compute(call, shelf, absent, replace_kept=invalidate)
                    absent = [index for index in absent if shelf.missing(index)]
        finally:
            self._record(call, shelf)
        if result is None:
            return None
        return result.padded(call.source.width(SITE) or 0, call.source.dtype)

    def _compute(self, call: _Call, shelf: RawShelf | TextShelf, absent: list[int], *, replace_kept: bool) -> None:
        call.computed = True
        call.source.bind(call.prompts)
        publisher = Publisher(call.stash.store, lambda: call.identity.unchanged(), replace=replace_kept)
        following = _Following(call, shelf) if isinstance(shelf, TextShelf) else shelf
        runner = Runner(call.source, following, publisher, call.prompts, call.layers, SITE, None)
        batch_size = getattr(self.extractor, "batch_size", None)
        runner.run(absent, first_places(call.owners), batch_size=batch_size, progress=None, max_retries=None)

    def _lengths(self, call: _Call) -> list[int | None]:
        """Return the tokens of each prompt as far as they are known before anything is read or computed."""
        if call.live is not None:
            return list(call.prompts.lengths)
        kept = read_records(call.stash.store, record_keys_of(call.context, call.prompts))
        return [None if record is None else record.n_tokens for record in kept]

    def _record(self, call: _Call, shelf: RawShelf | TextShelf) -> None:
        """Index what is kept now by name and prompt."""
        live, context = call.live, call.context
        lengths = shelf.n_tokens if isinstance(shelf, TextShelf) else list(call.prompts.lengths)
        reading = Reading(
            name=call.source.name,
            model=context.model,
            storage_dtype=context.storage_dtype,
            by_tokens=live is not None,
            causal=live is not None and live.causal(),
            n_layers=None if live is None else len(live.layers(SITE)),
            width=None if live is None else live.width(SITE),
            n_experts=None if live is None else live.width(ROUTER),
            padded_tokens=None if live is None else live.padded_tokens(SITE),
        )
        told = context, reading, call.prompts, lengths, call.layers, shelf.missing
        self._recorder.record(*told, computed=call.computed)


class _Following:
    """A `TextShelf` that goes on under the identity of the call, which a first batch may correct."""

    def __init__(self, call: _Call, shelf: TextShelf) -> None:
        self._call = call
        self._shelf = shelf
        self._model = call.context.model

    def missing_of(self, prompts: Sequence[int]) -> list[tuple[int, ...]]:
        return self._shelf.missing_of(prompts)

    def keep(self, members: Sequence[int], positions: Sequence[int], values: Any, seconds: float) -> Any:
        if self._call.context.model != self._model:
            self._model = self._call.context.model
            self._shelf.rename(self._call.context)
        return self._shelf.keep(members, positions, values, seconds)


class _CachingOff(Exception):
    pass


def _check(prompts: Any) -> list[str]:
    if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__iter__"):
        raise InvalidArgumentError(f"prompts is a list of strings; got {type(prompts).__name__}")
    texts = list(prompts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidArgumentError(
                f"prompt {index} is a {type(text).__name__}; lmprobe's cache takes strings. For token ids and chat "
                "messages use lmstash's own stash.activations(model, tokenizer)."
            )
    return texts


def _has(extractor: Any, name: str) -> bool:
    """As `hasattr`, but without running the properties of the class: lmprobe's load the model."""
    return name in getattr(extractor, "__dict__", {}) or hasattr(type(extractor), name) or hasattr(extractor, name)


def _configure_remote(extractor: Any) -> None:
    """Let lmprobe set up remote execution, for its own extractors."""
    if type(extractor).__module__.partition(".")[0] == "lmprobe":
        importlib.import_module("lmprobe.extraction").configure_remote()
