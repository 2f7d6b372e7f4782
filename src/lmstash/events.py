"""What happened: events, why a look-up missed, counters, and whoever listens.

A store owns one `EventLog`. Counting is always on and cheap; event objects are built only while somebody listens.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

logger = logging.getLogger("lmstash")

_MAX_TOPICS = 1000
"""Warned of once each; nobody reads more, and topics may name what is new each time."""


class MissReason(StrEnum):
    """Why a look-up gave nothing. Codes are append-only."""

    ABSENT = "absent"
    """Never kept, or evicted since."""
    EXPIRED = "expired"
    """Older than its `ttl_seconds`."""
    DAMAGED = "damaged"
    """Kept, but a checksum or a header did not agree."""
    MISMATCH = "mismatch"
    """Kept under this key, but its stored identity is not the one asked for."""
    GONE = "gone"
    """The file that held it disappeared."""
    UNAVAILABLE = "unavailable"
    """The store could not be asked (permission, lock, server, full disk)."""
    DISABLED = "disabled"
    """Caching is switched off."""
    REFRESH = "refresh"
    """The caller asked to compute anew."""
    SAMPLED = "sampled"
    """It is answered by chance, and neither a seed nor the caller says that one answer may stand for all."""
    UNSUPPORTED = "unsupported"
    """What was asked cannot be named safely; a log line says why."""


class DropReason(StrEnum):
    """Why a value offered to a store was not kept. Codes are append-only."""

    TOO_LARGE = "too_large"
    """Larger than the whole limit allows."""
    NO_ROOM = "no_room"
    """Nothing could be evicted to make room (pinned, or held by other writers)."""
    DISK_FULL = "disk_full"
    """The file system refused the bytes."""
    READ_ONLY = "read_only"
    """The store was opened for reading."""
    UNAVAILABLE = "unavailable"
    """The store could not be asked."""
    DISABLED = "disabled"
    """Caching is switched off, or the limit is 0."""
    MODEL_CHANGED = "model_changed"
    """The model changed while the value was computed."""
    BUSY = "busy"
    """More was computed than could be written meanwhile."""
    UNSUPPORTED = "unsupported"
    """It is in a form that cannot be kept safely; a log line says why."""
    EMPTY = "empty"
    """An empty answer, or one that says that something failed."""
    INPUT_CHANGED = "input_changed"
    """What it was computed from changed while it was computed."""
    RANDOM = "random"
    """The model drew random numbers while it computed the value, which is another one each time."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A kept value was served."""

    namespace: str
    key: bytes
    nbytes: int
    seconds_saved: float = 0.0


@dataclass(frozen=True, slots=True)
class PartialHit:
    """A shorter prefix than the one asked for was served."""

    namespace: str
    key: bytes
    n_tokens: int
    n_tokens_asked: int


@dataclass(frozen=True, slots=True)
class Miss:
    """Nothing was served, and why."""

    namespace: str
    key: bytes
    reason: MissReason


@dataclass(frozen=True, slots=True)
class Put:
    """A value was kept."""

    namespace: str
    key: bytes
    nbytes: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A value was offered and not kept."""

    namespace: str
    key: bytes
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Evict:
    """Entries made room for others."""

    namespace: str
    entries: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Stored bytes were found unusable and are no longer served."""

    namespace: str
    key: bytes | None
    detail: str


Event = Hit | PartialHit | Miss | Put | Drop | Evict | Damage
Listener = Callable[[Event], None]


@dataclass(slots=True)
class Stats:
    """Counters since the store was opened in this process.

    hits + partial_hits + sum(misses.values()) equals the number of keys asked for.
    """

    hits: int = 0
    partial_hits: int = 0
    misses: Counter[str] = field(default_factory=Counter[str])
    puts: int = 0
    drops: Counter[str] = field(default_factory=Counter[str])
    evicted_entries: int = 0
    evicted_bytes: int = 0
    damaged: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds_saved: float = 0.0
    seconds_computed: float = 0.0
    overflows: int = 0
    """Tensors kept in float32 because the storage dtype could not hold them."""

    def as_dict(self) -> dict[str, object]:
        """Return plain JSON-able numbers."""
        out: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        out["misses"] = dict(self.misses)
        out["drops"] = dict(self.drops)
        return out


class EventLog:
    """Counts what happens and tells listeners.

    Threads may share it. A listener that raises is removed and the fault logged: telling never breaks the host.
    """

    def __init__(self) -> None:
        """Start with zero counters and nobody listening."""
        self.stats = Stats()
        self._listeners: list[Listener] = []
        self._lock = threading.RLock()  # a finalizer may save, and count, in the middle of counting
        self._warned: set[str] = set()

    def after_fork(self) -> None:
        """In a forked child: take a fresh lock, since another thread of the parent may have held the old one."""
        self._lock = threading.RLock()  # a finalizer may save, and count, in the middle of counting

    @property
    def listening(self) -> bool:
        """Whether anybody listens (so that callers may skip building events)."""
        return bool(self._listeners)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` for each later event; returns a function that stops it.

        It is called by the thread that does what is told, of an eviction in the midst of it: there a folder's store can
        be looked up in, and refuses to be changed.
        """
        with self._lock:
            self._listeners = [*self._listeners, listener]

        def stop() -> None:
            with self._lock:
                self._listeners = [each for each in self._listeners if each is not listener]

        return stop

    def tell(self, event: Event) -> None:
        """Hand `event` to every listener."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("lmstash: an event listener failed and was removed")
                with self._lock:
                    self._listeners = [each for each in self._listeners if each is not listener]

    def hit(self, namespace: str, key: bytes, nbytes: int, seconds_saved: float = 0.0) -> None:
        """Count one served value."""
        with self._lock:
            stats = self.stats
            stats.hits += 1
            stats.bytes_read += nbytes
            stats.seconds_saved += seconds_saved
        if self._listeners:
            self.tell(Hit(namespace, key, nbytes, seconds_saved))

    def hits(self, entries: int, nbytes: int, seconds_saved: float) -> None:
        """Count many served values at once; for callers that checked that nobody is `listening`."""
        with self._lock:
            stats = self.stats
            stats.hits += entries
            stats.bytes_read += nbytes
            stats.seconds_saved += seconds_saved

    def partial_hit(self, namespace: str, key: bytes, n_tokens: int, n_tokens_asked: int) -> None:
        """Count a prompt of which the beginning was served."""
        with self._lock:
            self.stats.partial_hits += 1
        if self._listeners:
            self.tell(PartialHit(namespace, key, n_tokens, n_tokens_asked))

    def miss(self, namespace: str, key: bytes, reason: MissReason) -> None:
        """Count one look-up that gave nothing."""
        with self._lock:
            self.stats.misses[reason.value] += 1
        if self._listeners:
            self.tell(Miss(namespace, key, reason))

    def misses(self, keys: Sequence[bytes], reason: MissReason) -> None:
        """Count many look-ups that gave nothing, all for one reason."""
        if not keys:
            return
        with self._lock:
            self.stats.misses[reason.value] += len(keys)
        if self._listeners:
            for key in keys:
                self.tell(Miss("", key, reason))

    def put(self, namespace: str, key: bytes, nbytes: int, compute_seconds: float = 0.0) -> None:
        """Count one kept value."""
        with self._lock:
            stats = self.stats
            stats.puts += 1
            stats.bytes_written += nbytes
            stats.seconds_computed += compute_seconds
        if self._listeners:
            self.tell(Put(namespace, key, nbytes))

    def puts(self, entries: int, nbytes: int, compute_seconds: float) -> None:
        """Count many kept values at once; for callers that checked that nobody is `listening`."""
        with self._lock:
            stats = self.stats
            stats.puts += entries
            stats.bytes_written += nbytes
            stats.seconds_computed += compute_seconds

    def drop(self, namespace: str, key: bytes, reason: DropReason) -> None:
        """Count one value that was not kept."""
        with self._lock:
            self.stats.drops[reason.value] += 1
        if self._listeners:
            self.tell(Drop(namespace, key, reason))

    def evict(self, namespace: str, entries: int, nbytes: int) -> None:
        """Count entries that made room."""
        with self._lock:
            self.stats.evicted_entries += entries
            self.stats.evicted_bytes += nbytes
        if self._listeners:
            self.tell(Evict(namespace, entries, nbytes))

    def damage(self, namespace: str, key: bytes | None, detail: str) -> None:
        """Count unusable bytes; the first of each kind is logged."""
        with self._lock:
            self.stats.damaged += 1
        self.warn_once("damage", "lmstash: stored bytes are damaged and are treated as a miss: %s", detail)
        if self._listeners:
            self.tell(Damage(namespace, key, detail))

    def overflow(self, count: int = 1) -> None:
        """Count tensors kept in float32 because the storage dtype could not hold them."""
        with self._lock:
            self.stats.overflows += count

    def warn_once(self, topic: str, message: str, *arguments: object) -> None:
        """Log a warning the first time `topic` comes up."""
        with self._lock:
            if topic in self._warned or len(self._warned) >= _MAX_TOPICS:
                return
            self._warned.add(topic)
        logger.warning(message, *arguments)
