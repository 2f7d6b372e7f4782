"""`Activations`: a model's hidden values, computed once for each prompt, site and layer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from typing import Any

from lmstash.caches.activations.batching import check_batch_size
from lmstash.caches.activations.context import Context, namespace_of
from lmstash.caches.activations.extractor import Extractor
from lmstash.caches.activations.model_source import ModelSource
from lmstash.caches.activations.pooled import PooledShelf
from lmstash.caches.activations.pooling import Pool, check_pool, check_token_index
from lmstash.caches.activations.prompts import Prompts, as_list, check_length, check_vocabulary, read_prompts
from lmstash.caches.activations.publish import Publisher
from lmstash.caches.activations.raw import RawShelf
from lmstash.caches.activations.results import PooledResult, RawResult, as_dtype
from lmstash.caches.activations.running import Runner
from lmstash.caches.activations.settling import settle
from lmstash.caches.activations.sites import LAYERLESS_SITES, check_site
from lmstash.caches.activations.source import ExtractorSource, Source, resolve_layers
from lmstash.caches.activations.texts import TextIndex
from lmstash.caches.models import describe_model
from lmstash.caches.tags import as_words
from lmstash.caches.telling import tell_summary, told
from lmstash.codecs.dtypes import check_storage_dtype
from lmstash.errors import InvalidArgumentError, NotFoundError
from lmstash.events import logger
from lmstash.identity.encoding import encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.store.base import Store, default_ttl

_PROMPTS_PER_YIELD = 256


class Activations:
    """Activations of one model over one store.

    Call it: `acts(prompts, layers=[3, 7], pool="last")`. Threads may share it; the model must not be edited while a
    call runs (what is computed then is not kept). Processes share what is kept, through the store.

    Values depend, in their last bits, on how prompts were batched when they were first computed; the first ones are
    kept, and from then on everybody gets these.
    """

    def __init__(
        self,
        store: Store,
        model: Any = None,
        tokenizer: Any = None,
        *,
        extractor: Extractor | None = None,
        variant: str | None = None,
        strict_numerics: bool = False,
        assume_frozen: bool = False,
        salt: bytes | str | None = None,
        private: bool = False,
        storage_dtype: str | None = None,
        ttl_seconds: float | None = None,
    ) -> None:
        """Fingerprint the model (reads every weight once) and find its blocks.

        Args:
            store: Where values are kept.
            model: A transformers model, in evaluation mode.
            tokenizer: For prompts that are strings or chat messages.
            extractor: Computes instead of `model`; see `Extractor`.
            variant: A name for what lmstash cannot see (patched forwards, hooks of your own); part of the identity.
            strict_numerics: Make the torch version and the device part of the identity.
            assume_frozen: Do not look for weights changed in place: you vouch for them. Autocast and torch's other
                settings are looked at all the same.
            salt: A tenant's secret; entries under different salts are invisible to each other.
            private: Keep no prompt text and no token ids, only digests.
            storage_dtype: "float16" or "bfloat16" to keep values rounded (None: exactly). Results have the model's
                dtype all the same; a value that overflows is kept in float32 and counted.
            ttl_seconds: How long new entries live.

        Raises:
            InvalidArgumentError: Neither or both of `model` and `extractor`, a tokenizer that cannot be called, or an
                unknown `storage_dtype`.
            UnsupportedModelError: The model cannot be fingerprinted or read safely; says why.
        """
        check_storage_dtype(storage_dtype)
        if (model is None) == (extractor is None):
            raise InvalidArgumentError("pass model= or extractor=, one of the two.")
        if not (tokenizer is None or callable(tokenizer)):
            raise InvalidArgumentError(f"tokenizer={tokenizer!r}: pass what AutoTokenizer.from_pretrained() returns.")
        self.store = store
        self.tokenizer = tokenizer
        self._private = private
        self._texts = None if private else TextIndex(store, tokenizer, salt=salt, ttl_seconds=ttl_seconds)
        self._salt = salt
        self._storage_dtype = storage_dtype
        self._ttl_seconds = default_ttl(ttl_seconds)
        self._lock = threading.RLock()  # a signal handler may call in the middle of it
        self._described: bytes | None = None
        """The last model whose description was kept."""
        self._model = model
        self._extractor = extractor
        self._variant = variant
        self._source: Source
        self._parts: tuple[int, ...] = ()
        """Of the model when the source was made, which holds some of them (see `ModelWatch.parts`)."""
        if extractor is not None:
            self._source = ExtractorSource(extractor)
            self._watch = None
            self._digest = _vouched(extractor, variant)
        else:
            from lmstash.identity.models.watch import watch_model

            source = ModelSource(model)
            if not assume_frozen:
                settle(source, variant=variant)
            self._watch = watch_model(
                model, variant=variant, strict_numerics=strict_numerics, assume_frozen=assume_frozen
            )
            self._source = ModelSource(model, unknown_code=self._watch.runs_unknown_code())
            self._digest, self._parts = self._watch.fingerprint.digest, self._watch.parts

    @property
    def fingerprint(self) -> str:
        """Who computes, as 64 hexadecimal digits; the first 16 name the namespace of the entries."""
        return self._digest.hex()

    @property
    def namespace(self) -> str:
        """Where the entries live in the store."""
        return namespace_of(self._digest)

    def __repr__(self) -> str:
        """One line."""
        return f"<Activations of {self._source.name} ({self.fingerprint[:16]}) on {self.store!r}>"

    def __call__(
        self,
        prompts: Sequence[Any],
        layers: Any = "all",
        pool: Pool = "last",
        *,
        site: str = "block_out",
        batch_size: int | None = None,
        dtype: Any = None,
        out: Any = None,
        progress: bool | None = None,
        refresh: bool = False,
        cache_only: bool = False,
        on_miss: str = "compute",
        tags: Sequence[str] | str | None = (),
        max_retries: int | None = None,
    ) -> Any:
        """Return activations, computing (and keeping) what is not kept yet.

        Every batch is saved as it is done: interrupt and call again to go on. A warm call holds little beside its
        result; `batches()` and `out=` are for results larger than memory.

        Args:
            prompts: Strings, lists of token ids, or lists of chat messages. Equal ones are computed once.
            layers: An int, a list of ints (negative from the end), or "all"; layer i is the output of block i.
            pool: "last", "first", "mean", "max" or a token index (negative from the end) for one vector per prompt;
                None for every token.
            site: One of `SITES`: "block_out", "embed", "attn_out", "mlp_out", "router_logits", "final".
            batch_size: Prompts per forward pass; by default as many as make 4,096 tokens (32,768 on an accelerator).
            dtype: Of the result; by default the one in which values were computed.
            out: An array, memory map or tensor `[n_prompts, n_layers, hidden]` to fill; returned. Pooled values only.
            progress: Show a progress bar of what is computed; None shows one on a terminal.
            refresh: Compute everything anew and replace what is kept; not with `on_miss="error"`.
            cache_only: Fill the store and return None; reads nothing.
            on_miss: "error" raises instead of computing.
            tags: Kept beside new entries; `prune(tag=)` selects by them.
            max_retries: How often a failed batch of an extractor is tried again (3, or what the extractor says).

        Returns:
            Pooled: a CPU tensor `[n_prompts, n_layers, hidden]`. Raw: a list of `[n_layers, n_tokens, hidden]`. The
            caller owns it. Sites without layers ("embed", "final") have n_layers = 1.

        Raises:
            InvalidArgumentError: A prompt is empty, too long or no prompt; a layer, site or pool does not exist.
            NotFoundError: With `on_miss="error"`, when a prompt is not kept.
            ExtractionError: An extractor failed on some prompts for good; the others are saved.
            UnsupportedModelError: The model has no such site, or became one that cannot be cached.
            MismatchError: The model changed during the call and the store is strict.
        """
        if on_miss not in ("compute", "error"):
            raise InvalidArgumentError(f"on_miss={on_miss!r}: use 'compute' or 'error'.")
        if refresh and on_miss == "error":
            raise InvalidArgumentError(
                "refresh=True computes everything anew and on_miss='error' computes nothing: drop one of them."
            )
        if cache_only and out is not None:
            raise InvalidArgumentError("cache_only=True returns nothing, so out= cannot be filled: drop one of them.")
        site, pool, wanted = check_site(site), check_pool(pool), as_dtype(dtype)
        check_batch_size(batch_size)
        if pool is None and out is not None:
            raise InvalidArgumentError("out= is for pooled values: raw ones differ in length. Use batches().")
        asked = read_prompts(prompts, self.tokenizer, self._texts)
        context, fingerprint = self._context(as_words(tags))
        source = context.source
        chosen = _choose_layers(layers, site, source)
        _check_prompts(asked, pool, source)
        distinct, owners = _distinct(asked)
        unique = asked.pick(distinct)
        result: PooledResult | RawResult | None = None
        if pool is None:
            raw = None if cache_only else RawResult(unique.lengths, len(chosen), wanted)
            shelf: PooledShelf | RawShelf = RawShelf(context, unique, chosen, site, raw)
            result = raw
        else:
            pooled = None if cache_only else PooledResult(len(asked), len(chosen), wanted, out)
            shelf = PooledShelf(context, unique, chosen, site, pool, pooled, distinct)
            result = pooled
        with told(self.store.events):
            if refresh:
                shelf.refresh()
            elif cache_only:
                shelf.look()
            else:
                shelf.load()
            absent = shelf.absent()
            tell_summary(source.name, n_absent=len(absent), n_prompts=len(unique), layers=chosen)
            if absent and on_miss == "error":
                raise NotFoundError(
                    f"{len(absent)} of {len(unique)} prompts are not kept (the first is prompt {distinct[absent[0]]}). "
                    "Call without on_miss='error' to compute them."
                )
            if absent:
                # What is kept was checked when it was computed.
                places = [distinct[index] for index in absent]
                _check_vocabulary(unique.pick(absent), places, source)
                publisher = Publisher(
                    self.store,
                    lambda: self._still(context.model, fingerprint),
                    replace=refresh,
                    on_saved=None if fingerprint is None else lambda: self._describe_model(fingerprint),
                    changes=None if fingerprint is None else lambda: self._changes(fingerprint),
                )
                runner = Runner(source, shelf, publisher, unique, chosen, site, pool)
                runner.run(absent, distinct, batch_size=batch_size, progress=progress, max_retries=max_retries)
        if isinstance(result, RawResult):
            return result.finish(owners)
        if isinstance(result, PooledResult):
            firsts = [distinct[each] for each in owners] if len(distinct) < len(owners) else ()
            return result.finish(source.width(site) or 0, source.dtype, firsts)
        return None

    def batches(
        self,
        prompts: Sequence[Any],
        layers: Any = "all",
        pool: Pool = "last",
        *,
        batch_size: int = _PROMPTS_PER_YIELD,
        **options: Any,
    ) -> Iterator[Any]:
        """Yield the results of `batch_size` prompts at a time, in the order given.

        Each is what calling with these prompts returns (`options` are that call's), so only one is held at a time.
        """
        if check_batch_size(batch_size) is None:
            raise InvalidArgumentError("batch_size is None: pass how many prompts to yield at a time.")
        if "out" in options or options.get("cache_only"):
            raise InvalidArgumentError("batches() yields results: out= and cache_only= are for a plain call.")
        asked = read_prompts(prompts, self.tokenizer, self._texts)
        _check_prompts(asked, check_pool(pool), self._source)

        def each() -> Iterator[Any]:
            for start in range(0, len(asked), batch_size):
                yield self(asked[start : start + batch_size], layers, pool, **options)

        return each()

    def missing(
        self, prompts: Sequence[Any], layers: Any = "all", pool: Pool = "last", *, site: str = "block_out"
    ) -> list[Any]:
        """Return the prompts that would have to be computed: as given, equal ones once.

        Entries that may hold several layers are read to see which they hold; larger ones are only asked for.
        """
        site, pool = check_site(site), check_pool(pool)
        prompts = as_list(prompts)
        asked = read_prompts(prompts, self.tokenizer, self._texts)
        context, _ = self._context(())
        chosen = _choose_layers(layers, site, context.source)
        _check_prompts(asked, pool, context.source)
        distinct, _ = _distinct(asked)
        unique = asked.pick(distinct)
        shelf: PooledShelf | RawShelf
        if pool is None:
            shelf = RawShelf(context, unique, chosen, site, None)
        else:
            shelf = PooledShelf(context, unique, chosen, site, pool, None, distinct)
        shelf.look()
        return [prompts[distinct[index]] for index in shelf.absent()]

    def _context(self, tags: tuple[str, ...]) -> tuple[Context, Fingerprint | None]:
        """Return the identity as of now: what changed since the last call, in place or by its own word, is another."""
        found: Fingerprint | None = None
        with self._at_rest(), self._lock:
            if self._watch is not None:
                found = self._watch.refresh()
                told = found.digest, self._watch.parts
                if told != (self._digest, self._parts):
                    self._source = ModelSource(self._model, unknown_code=self._watch.runs_unknown_code())
                    self._digest, self._parts = told
                elif isinstance(self._source, ModelSource):
                    self._source = self._source.renewed()
            elif self._extractor is not None:
                digest = _vouched(self._extractor, self._variant)
                if digest != self._digest:
                    self._source = ExtractorSource(self._extractor)
                    self._digest = digest
            who, settings = (self.store, self._source, self._digest), (self._salt, self._private, self._ttl_seconds)
            context = Context(*who, self._storage_dtype, *settings, tags)
        return context, found

    def _at_rest(self) -> AbstractContextManager[None]:
        source = self._source
        return source.at_rest() if isinstance(source, ModelSource) else nullcontext()

    def _describe_model(self, fingerprint: Fingerprint) -> None:
        """Keep what the model's fingerprint was made of, once, so that people can be told in what two models differ."""
        if self._described == fingerprint.digest:
            return
        self._described = fingerprint.digest
        describe_model(self.store, fingerprint, self._source.name)

    def _still(self, digest: bytes, fingerprint: Fingerprint | None) -> bool:
        """Whether the same one computes as when the call began."""
        if self._watch is not None:
            with self._at_rest():
                return self._watch.unchanged(fingerprint)
        try:
            return _vouched(self._extractor, self._variant) == digest
        except Exception as error:
            logger.debug("%s: its fingerprint cannot be read any more: %r", self._source.name, error)
            return False

    def _changes(self, fingerprint: Fingerprint) -> list[str]:
        if self._watch is None:
            return []
        with self._at_rest():
            return self._watch.changes(fingerprint)


def _choose_layers(layers: Any, site: str, source: Source) -> list[int]:
    if site in LAYERLESS_SITES:
        return [0]
    chosen = resolve_layers(layers, site, source.layers(site))
    if len(set(chosen)) != len(chosen):
        raise InvalidArgumentError(f"layers names one layer twice: {chosen}. Name each once.")
    return chosen


def _check_prompts(asked: Prompts, pool: Pool, source: Source) -> None:
    lengths = asked.lengths
    if source.max_tokens is not None and max(lengths, default=0) > source.max_tokens:
        for index, n_tokens in enumerate(lengths):
            check_length(n_tokens, index, source.name, source.max_tokens)
    check_token_index(pool, lengths)


def _check_vocabulary(prompts: Prompts, places: Sequence[int], source: Source) -> None:
    """Raise unless the model knows every id; `places` are the prompts' in the caller's list."""
    if source.vocabulary is not None and prompts.highest_id() >= source.vocabulary:
        for number, index in enumerate(places):
            check_vocabulary(prompts.ids(number), index, source.name, source.vocabulary)


def _distinct(prompts: Prompts) -> tuple[Sequence[int], Sequence[int]]:
    """Return the places of the first of equal prompts, and for each prompt which of those it equals."""
    names = prompts.names
    if len(set(names)) == len(names):
        return range(len(names)), range(len(names))
    seen: dict[bytes, int] = {}
    places: list[int] = []
    owners: list[int] = []
    for place, name in enumerate(names):
        index = seen.setdefault(name, len(places))
        if index == len(places):
            places.append(place)
        owners.append(index)
    return places, owners


def _vouched(extractor: Any, variant: str | None) -> bytes:
    """Return who an extractor says it is now."""
    fingerprint = extractor.fingerprint
    digest = getattr(fingerprint, "digest", fingerprint)
    if not isinstance(digest, bytes | str) or not digest:
        raise InvalidArgumentError(
            f"an extractor's fingerprint is bytes or a str that names model and revision; got {fingerprint!r}."
        )
    return sha256(b"lmstash extractor 1\0" + encode((digest, variant))).digest()
