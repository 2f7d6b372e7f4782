"""`Stash`: owns one store and hands out the caches over it."""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Mapping
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from lmstash.caches.tensors import Tensors
from lmstash.errors import InvalidArgumentError, LmstashError
from lmstash.events import EventLog, Stats, logger
from lmstash.settings import parse_age, resolve
from lmstash.store.base import EntryInfo, Removed, Store, StoreInfo, VerifyReport, default_ttl, is_interrupted
from lmstash.store.memory import MemoryStore
from lmstash.store.policies import policy_named
from lmstash.unset import UNSET

if TYPE_CHECKING:
    from lmstash.caches.activations.cache import Activations
    from lmstash.caches.kv.cache import KV
    from lmstash.caches.logprobs.cache import Logprobs
    from lmstash.caches.options import ActivationsOptions, KVOptions, LogprobsOptions, ResponsesOptions
    from lmstash.caches.responses.cache import Responses
    from lmstash.caches.writing import WriteBehind
    from lmstash.identity.tokens import TokenIds


class Stash:
    """One store, and the caches over it.

    Threads may share a stash, and any number of processes may open the same folder. Use it as a context manager, or
    call `close()`; a program that ends without doing so loses nothing that was put.

    Attributes:
        store: The byte level: values under 32-byte keys.
        tensors: Tensors under any JSON-able identity.
    """

    def __init__(
        self,
        store: Store,
        *,
        ttl_seconds: float | None = None,
        private: bool = False,
        compress: bool = False,
        salt: str | bytes | None = None,
    ) -> None:
        """Wrap `store`. Most callers use `lmstash.open()`."""
        self.store = store
        self.ttl_seconds = default_ttl(ttl_seconds)
        self.private = private
        self.compress = compress
        self.salt = salt
        self.tensors = Tensors(store, salt=salt, private=private, ttl_seconds=ttl_seconds)
        self._queue: WriteBehind | None = None
        self._holding: weakref.WeakSet[Any] = weakref.WeakSet()
        """Caches that hold back values for a while; `flush` asks them for these."""

    def activations(
        self, model: Any = None, tokenizer: Any = None, **options: Unpack[ActivationsOptions]
    ) -> Activations:
        """Return the activations cache of `model`.

        Args:
            model: A transformers model (or any module that names its blocks as they do).
            tokenizer: Turns prompts into token ids; not needed when prompts are lists of ids.
            **options: `extractor=`, `variant=`, `strict_numerics=`, `assume_frozen=`, `storage_dtype=`: see
                `lmstash.caches.activations.Activations`.
        """
        from lmstash.caches.activations.cache import Activations

        return Activations(self.store, model, tokenizer, **self._completed(options))

    def kv(self, model: Any, **options: Unpack[KVOptions]) -> KV:
        """Return the KV cache of `model`: its `generate(...)` feeds only what is not kept of a prompt.

        Args:
            model: A transformers model with `generate`, in evaluation mode.
            **options: `variant=`, `strict_numerics=`, `assume_frozen=`, `storage_dtype=`: see `lmstash.caches.kv.KV`.
        """
        from lmstash.caches.kv.cache import KV

        return KV(self.store, model, queue=self.writes, **self._completed(options))

    @property
    def writes(self) -> WriteBehind:
        """The queue through which caches write what is not waited for; `flush` and `close` empty it first."""
        if self._queue is None:
            from lmstash.caches.writing import WriteBehind

            self._queue = WriteBehind(self.store)
        return self._queue

    def logprobs(self, model: Any, **options: Unpack[LogprobsOptions]) -> Logprobs:
        """Return the cache of next-token log-probabilities of `model`, a causal language model of transformers.

        Args:
            model: The model, in evaluation mode.
            **options: `keep=`, `kv_bytes=`, `row_bytes=`, `answer_bytes=`, `variant=`, `strict_numerics=`,
                `assume_frozen=`: see `lmstash.caches.logprobs.Logprobs`.
        """
        from lmstash.caches.logprobs.cache import Logprobs

        off: dict[str, Any] = {}
        if getattr(self.store, "capacity_bytes", None) == 0:  # caching is switched off
            off = {"kv_bytes": 0, "row_bytes": 0, "answer_bytes": 0}
        cache = Logprobs(self.store, model, **(off | self._completed(options)))
        self._holding.add(cache)
        return cache

    def responses(self, model: Any, **options: Unpack[ResponsesOptions]) -> Responses:
        """Return the cache of what `model` answers to requests.

        Args:
            model: A name such as `provider/model`, the `lmstash.fingerprint` of a local model, or a torch module.
            **options: `base_url=`, `revision=`, `variant=`, `strict_numerics=`, `assume_frozen=`, `harmless=`,
                `sampled_by_default=`, `keep_sampled=`, `keep_if=`, `compress=`, `wait_seconds=`, `urls=`: see
                `lmstash.caches.responses.Responses`.
        """
        from lmstash.caches.responses.cache import Responses

        own: dict[str, Any] = {"compress": self.compress}
        return Responses(self.store, model, **(own | self._completed(options)))

    def _completed(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a cache's options, with the stash's own where none are given."""
        return {"salt": self.salt, "private": self.private, "ttl_seconds": self.ttl_seconds, **options}

    @property
    def stats(self) -> Stats:
        """Counters of this process since the stash was opened: hits, misses by reason, bytes, seconds saved."""
        return self.store.events.stats

    def info(self) -> StoreInfo:
        """Say what is held and how full the store is. Costs milliseconds, whatever the number of entries."""
        return self.store.info()

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read every entry and check every checksum; with `repair=True` drop what is damaged."""
        return self.store.verify(repair=repair)

    def prune(
        self,
        *,
        kind: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        older_than: float | str | None = None,
        dry_run: bool = False,
    ) -> Removed:
        """Remove the entries that meet every condition given.

        Args:
            kind: For instance `activations`.
            model: The model's name as kept, or at least 8 leading hex digits of its fingerprint.
            tag: A tag the entries were put with: a word, or `name=value` for a named one (`task=gsm8k`). May be a
                pattern (`task=gsm8k*`).
            older_than: How long the entry was not used: seconds, or `"30d"`, `"12h"`.
            dry_run: Only count.

        Raises:
            InvalidArgumentError: No condition was given (`clear()` removes everything), or one cannot be read.
            StoreError: It cannot be done: the stash is closed or read-only. So, too, `forget` and `clear`.
        """
        if kind is None and model is None and tag is None and older_than is None:
            raise InvalidArgumentError("prune() needs a condition: kind=, model=, tag= or older_than=; or call clear()")
        from lmstash.caches.models import ModelNames, names_model
        from lmstash.caches.tags import has_tag

        deadline = None if older_than is None else time.time() - parse_age(older_than)
        names = None if model is None else ModelNames(self.store)

        def chosen(entry: EntryInfo) -> bool:
            return (
                (model is None or names is None or names_model(entry, model, names))
                and (tag is None or has_tag(entry.meta, tag))
                and (deadline is None or entry.last_used < deadline)
            )

        self._settle(dry_run)
        select = None if model is None and tag is None and deadline is None else chosen
        return self.store.prune(select, namespace=None if kind is None else f"{kind}/", dry_run=dry_run)

    def forget(self, *, prompt: str | TokenIds, tokenizer: Any = None, dry_run: bool = False) -> Removed:
        """Remove every entry of one prompt, of every kind and model. Reads the facts of all entries.

        Of a text: activations asked for by it (a chat: by its rendered text), and responses to requests that hold it
        anywhere; a private stash keeps no requests to look at. What was computed from token ids (all KV, states and
        log-probabilities) is found by ids only: give them, or `tokenizer`, and every prompt that held the text. Blocks
        of 64 tokens that others share go too, and what goes on from its end in its last block: in a private stash, all
        that may do so. Answers that lie in later blocks stay, other processes keep what they have in RAM, and nothing
        must be computing it meanwhile. Kept lists of token ids go, since they spell out text.

        Args:
            prompt: A text or token ids.
            tokenizer: Of transformers, `llm.tokenize`, or any function from text to ids: asked for a text's ids with
                special tokens and without.
            dry_run: Only count.
        """
        from lmstash.caches.forgetting import forget

        self._settle(dry_run)
        return forget(self.store, prompt, tokenizer=tokenizer, salt=self.salt, dry_run=dry_run)

    def clear(self) -> Removed:
        """Remove every entry; touches no file that lmstash did not write."""
        self._settle()
        return self.store.clear()

    def _settle(self, dry_run: bool = False) -> None:
        """Have all that was computed in the store before something is removed, and nothing of it in RAM."""
        saved = self._save_held()
        for cache in list(self._holding) if saved and not dry_run else ():
            cache.clear()  # what is in RAM would be served on, and kept again

    def flush(self) -> None:
        """Return once everything put or computed so far would survive a power loss."""
        self._save_held()
        self.store.flush()

    def close(self) -> None:
        """Flush, and let go of files."""
        self._save_held()
        self.store.close()

    def _save_held(self) -> bool:
        """Have what waits and what caches hold back in the store; returns whether that was done.

        Not within a change that the caller has interrupted: who writes waits for that, and what is held would be lost.
        """
        if is_interrupted(self.store):
            return False
        if self._queue is not None:
            self._queue.flush()
        for cache in list(self._holding):
            cache.flush()
        return True

    def __enter__(self) -> Self:
        """Return the stash; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """One line with the fill."""
        return f"<Stash on {self.store!r}>"

    def _repr_html_(self) -> str:
        info = self.info()
        rows = "".join(
            f"<tr><td>{escape(each.namespace)}</td><td>{each.entries:,}</td><td>{each.nbytes:,}</td></tr>"
            for each in info.namespaces
        )
        limit = "unlimited" if info.capacity_bytes is None else f"{info.capacity_bytes:,}"
        return (
            f"<b>lmstash</b> {escape(info.location)}: {info.physical_bytes:,} of {limit} bytes"
            f"<table><tr><th>namespace</th><th>entries</th><th>bytes</th></tr>{rows}</table>"
        )


def open_stash(
    location: Any = UNSET,
    *,
    capacity_bytes: int | str | None = UNSET,
    memory_bytes: int | str | None = UNSET,
    ttl_seconds: float | None = None,
    strict: bool = UNSET,
    read_only: bool = UNSET,
    private: bool = UNSET,
    compress: bool = UNSET,
    salt: str | bytes | None = UNSET,
    policy: str = "lru",
    local: str | os.PathLike[str] | None = None,
    trust_env: bool = True,
) -> Stash:
    """Do what `lmstash.open` says."""
    is_strict = resolve("strict", strict, trust_env=trust_env).value
    options: dict[str, Any] = {
        "ttl_seconds": ttl_seconds,
        "private": resolve("private", private, trust_env=trust_env).value,
        "compress": resolve("compress", compress, trust_env=trust_env).value,
        "salt": salt if isinstance(salt, bytes) else resolve("salt", salt, trust_env=trust_env).value,
    }
    policy_named(policy)
    where = os.fspath(resolve("dir").value if location is UNSET and trust_env else _given(location))
    if resolve("disable", trust_env=trust_env).value:
        return Stash(MemoryStore(0), **options)
    if (scheme := _SCHEME.match(where)) and where != "memory://":
        if scheme[1] in _PLANNED:
            told = f"{scheme[1]}:// comes with a later release of lmstash. Open a folder or memory://."
            raise InvalidArgumentError(told)
        raise InvalidArgumentError(f"{where!r} is no place to open: give a folder's path, or 'memory://'.")
    if local is not None:
        raise InvalidArgumentError(
            f"local= goes with s3:// and valkey://, which come later. {where!r} is local: leave it out."
        )
    memory = resolve("memory", memory_bytes, trust_env=trust_env).value
    if where == "memory://":
        asked = capacity_bytes if memory_bytes is UNSET else memory_bytes
        limit = None if asked is UNSET else resolve("capacity", asked).value
        return Stash(MemoryStore(limit, strict=is_strict), **options)

    from lmstash.store.disk.store import DiskStore

    # The default limit belongs to the folder (it remembers the last one given): only a named limit is passed on.
    capacity = resolve("capacity", capacity_bytes, trust_env=trust_env)
    limit = UNSET if capacity.origin == "default" else capacity.value
    only_read = resolve("read_only", read_only, trust_env=trust_env).value
    try:
        store: Store = DiskStore(where, capacity_bytes=limit, read_only=only_read, strict=is_strict, policy=policy)
    except LmstashError as error:
        if is_strict:
            raise
        try:
            store = DiskStore(where, read_only=True, policy=policy)
        except LmstashError:
            logger.warning("lmstash: %s Nothing is cached in this run.", error)
            return Stash(MemoryStore(0), **options)
        logger.warning("lmstash: %s What it holds is served; nothing is added in this run.", error)
    if memory:
        from lmstash.store.tiered import TieredStore

        store = TieredStore(MemoryStore(memory, events=EventLog()), store)
    return Stash(store, **options)


_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/")  # two letters at least: C:/ is a folder
_PLANNED = ("s3", "gs", "gcs", "az", "valkey", "redis")


def _given(location: Any) -> Any:
    return resolve("dir", trust_env=False).value if location is UNSET else location


__all__ = ["Stash", "open_stash"]
