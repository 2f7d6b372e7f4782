"""The small protocol that every store keeps: bytes under 32-byte keys, many at once, within a byte limit.

A store knows nothing of models. Faults are misses or drops, counted with a reason in `events`; with `strict=True` they
raise instead. Any number of threads may share a store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol

from lmstash.errors import InvalidArgumentError
from lmstash.events import EventLog

KEY_BYTES = 32
Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class Write:
    """One value to keep, with what is kept beside it."""

    key: bytes
    """32 bytes."""
    value: Buffer | Sequence[Buffer]
    """The bytes, or several buffers that are written one after another."""
    namespace: str = "user"
    """`<kind>/<owner>`, for instance `activations/<first 16 hex digits of the model fingerprint>`."""
    meta: Mapping[str, Any] | bytes | None = None
    """Small JSON-able facts: what `ls` and `show` print, what `prune` selects by (`tags`, `model`, ...).

    Bytes are taken as JSON that is encoded already (cheaper for thousands of entries that share most of it).
    """
    parent: bytes = b""
    """The key this entry extends (32 bytes), or nothing."""
    compute_seconds: float = 0.0
    """What it cost to compute."""
    n_tokens: int = 0
    """Tokens the value covers."""
    ttl_seconds: float | None = None
    """Seconds until it expires; None for never."""


@dataclass(slots=True)
class Entry:
    """One value served. `value` is memory of its own: the receiver may write into it."""

    key: bytes
    value: memoryview
    namespace: str
    parent: bytes
    compute_seconds: float
    n_tokens: int
    created: float
    """Unix seconds."""
    expires: float | None
    """Unix seconds, or None."""
    meta_bytes: bytes
    """`meta` as stored (JSON, or empty)."""

    @property
    def meta(self) -> dict[str, Any]:
        """The facts kept beside the value."""
        return decode_meta(self.meta_bytes)


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """One kept entry, described without its value."""

    key: bytes
    namespace: str
    nbytes: int
    """Bytes of the value."""
    n_tokens: int
    compute_seconds: float
    created: float
    last_used: float
    hits: int
    expires: float | None
    pinned: bool
    parent: bytes
    meta: dict[str, Any]

    @property
    def kind(self) -> str:
        """The part of the namespace before the first slash."""
        return self.namespace.partition("/")[0]


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """What one namespace holds."""

    namespace: str
    entries: int
    nbytes: int
    """Bytes the entries take, headers included."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds and how full it is."""

    location: str
    entries: int
    physical_bytes: int
    """What the store takes in its medium, index and logs included."""
    capacity_bytes: int | None
    """The limit; None is unlimited."""
    namespaces: list[NamespaceInfo]
    oldest: float | None = None
    newest: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a full check found."""

    entries: int
    nbytes: int
    damaged: list[str]
    """One line for each damaged entry or file."""
    repaired: bool
    """Whether what was damaged has been dropped."""

    @property
    def ok(self) -> bool:
        """Whether nothing was damaged."""
        return not self.damaged


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal took away (or would take away)."""

    entries: int
    nbytes: int
    """Bytes the entries took; a store may count headers or not."""


Selector = Callable[[EntryInfo], bool]


class Store(Protocol):
    """Bytes under keys. Every method may be called from any thread."""

    events: EventLog
    strict: bool

    def get(self, key: bytes) -> memoryview | None:
        """Return the value as a read-only view, or None."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the values as read-only views, None where there is none."""
        ...

    def fetch_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Return whole entries whose `value` the caller owns and may write into."""
        ...

    def peek_many(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """As `get_many`, to look without using (no recency, not counted); None for what is damaged, too."""
        ...

    def contains(self, key: bytes) -> bool:
        """Whether a get would look for bytes (no recency, not counted as a hit or a miss)."""
        ...

    def contains_many(self, keys: Sequence[bytes]) -> list[bool]:
        """As `contains`, for many keys at once."""
        ...

    def describe_many(self, keys: Sequence[bytes]) -> list[EntryInfo | None]:
        """Describe entries without reading their values, None where there is none (no recency, not counted)."""
        ...

    def put(self, key: bytes, value: Buffer | Sequence[Buffer], **fields: Any) -> bool:
        """Keep one value (`fields`: as in `Write`). Returns whether it was kept."""
        ...

    def put_many(self, writes: Iterable[Write], *, replace: bool = True) -> int:
        """Keep many values; with `replace=False` what is kept already stays. Returns how many are kept now."""
        ...

    def delete(self, key: bytes) -> bool:
        """Remove one entry; returns whether one was removed: a store that is closed or read-only removes none."""
        ...

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove entries; returns how many were removed."""
        ...

    def pin_many(self, keys: Sequence[bytes], pinned: bool = True) -> int:
        """Protect entries from eviction, or stop doing so; returns how many are kept."""
        ...

    def entries(self, namespace: str | None = None) -> Iterator[EntryInfo]:
        """Describe every entry (of one namespace, or of one kind when given `"kind/"`)."""
        ...

    def prune(self, select: Selector | None = None, *, namespace: str | None = None, dry_run: bool = False) -> Removed:
        """Remove the entries that `select` is true for (all, when None); `namespace` as in `entries`.

        Raises:
            StoreError: It could not be done (closed, read-only): strict or not, what its owner wants gone would stay.
        """
        ...

    def evict(self, to_bytes: int) -> Removed:
        """Remove the least valuable entries until at most `to_bytes` are taken."""
        ...

    def set_capacity(self, capacity_bytes: int | None) -> None:
        """Change the limit and enforce it at once."""
        ...

    def info(self) -> StoreInfo:
        """Say what is held. Does not read entries."""
        ...

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Read everything and check every checksum."""
        ...

    def clear(self) -> Removed:
        """Remove every entry; raises as `prune` does."""
        ...

    def flush(self) -> None:
        """Return once everything put so far would survive a power loss."""
        ...

    def close(self) -> None:
        """Flush and let go of files. A closed store misses, drops, and cannot be pruned."""
        ...


MAX_META_BYTES = 256 << 10
MAX_NAMESPACE_BYTES = 256
_FOREVER_SECONDS = 100 * 365 * 86400.0


def check_key(key: bytes) -> None:
    """Raise unless `key` is 32 bytes."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise InvalidArgumentError(f"a key is {KEY_BYTES} bytes; got {key!r}. Use lmstash.identity to make one.")


def check_ttl(ttl_seconds: object) -> None:
    """Refuse a time to live that is no number of seconds. One of 0 or less is over at once.

    Raises:
        InvalidArgumentError: It is none.
    """
    if ttl_seconds is not None and (not isinstance(ttl_seconds, Real) or ttl_seconds != ttl_seconds):
        raise InvalidArgumentError(f"ttl_seconds= is a number of seconds, or None for ever; got {ttl_seconds!r}")


def default_ttl(ttl_seconds: float | None) -> float | None:
    """Return the time to live that all entries of a cache shall have, checked when the cache is made.

    Raises:
        InvalidArgumentError: It is no number of seconds, or none above 0: nothing would ever be served.
    """
    check_ttl(ttl_seconds)
    if ttl_seconds is not None and ttl_seconds <= 0:
        raise InvalidArgumentError(
            f"ttl_seconds={ttl_seconds!r}: nothing would ever be served. Give seconds above 0, or None for ever."
        )
    return None if ttl_seconds is None else float(ttl_seconds)


def check_write(write: Write) -> tuple[bytes, float | None]:
    """Return the facts of `write` as JSON bytes and its lifetime in seconds (None: for ever), checked.

    Raises:
        InvalidArgumentError: A field is not what a store takes.
    """
    if not isinstance(write, Write):
        raise InvalidArgumentError(
            f"put_many() takes lmstash.store.base.Write(key, value, ...), not {type(write).__name__}"
        )
    check_key(write.key)
    try:
        named = 0 < len(write.namespace.encode()) <= MAX_NAMESPACE_BYTES
    except (UnicodeEncodeError, AttributeError, TypeError):
        named = False
    if not named:
        raise InvalidArgumentError(f"a namespace has 1 to {MAX_NAMESPACE_BYTES} bytes of UTF-8: {write.namespace!r}")
    if not isinstance(write.parent, bytes) or len(write.parent) not in (0, KEY_BYTES):
        raise InvalidArgumentError(f"parent= takes a key of {KEY_BYTES} bytes, or none")
    if not isinstance(write.n_tokens, Integral) or not 0 <= write.n_tokens < 2**32:
        raise InvalidArgumentError(f"n_tokens= takes 0 to 2**32 - 1; got {write.n_tokens!r}")
    if not isinstance(write.compute_seconds, Real):
        raise InvalidArgumentError(f"compute_seconds= is a number of seconds; got {write.compute_seconds!r}")
    lifetime = write.ttl_seconds
    check_ttl(lifetime)
    if lifetime is not None:  # as Python's own number: to one of numpy's 32 bits a Unix time is a minute off
        lifetime = float(lifetime)
        lifetime = None if lifetime >= _FOREVER_SECONDS else lifetime
    return encode_meta(write.meta), lifetime


def encode_meta(meta: Mapping[str, Any] | bytes | None) -> bytes:
    """Return `meta` as the JSON that is stored.

    Raises:
        InvalidArgumentError: It is no JSON, or takes more than 256 KiB.
    """
    if not meta:
        return b""
    try:
        encoded = meta if isinstance(meta, bytes) else json.dumps(meta, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"meta= takes what JSON can say: {error}") from None
    if not (encoded.startswith(b"{") and encoded.endswith(b"}")):
        raise InvalidArgumentError("meta= takes a dict, or one JSON object as bytes")
    if len(encoded) > MAX_META_BYTES:
        raise InvalidArgumentError(f"meta= takes {len(encoded):,} bytes; keep it under {MAX_META_BYTES:,}")
    return encoded


def decode_meta(encoded: bytes) -> dict[str, Any]:
    """Return stored facts; what cannot be read is as if there were none."""
    if not encoded:
        return {}
    try:
        meta = json.loads(encoded)
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def byte_views(value: Buffer | Sequence[Buffer]) -> list[Buffer]:
    """Return `value` as flat buffers of bytes, copying only what is not contiguous.

    Raises:
        InvalidArgumentError: It is neither a buffer nor several.
    """
    parts = [value] if isinstance(value, (bytes, bytearray, memoryview)) else value
    try:
        return [each if isinstance(each, bytes) else _flat(memoryview(each)) for each in parts]
    except TypeError as error:
        raise InvalidArgumentError(f"a value is bytes, or a list of buffers: {error}") from None


def _flat(view: memoryview) -> Buffer:
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def join(value: Buffer | Sequence[Buffer]) -> bytes:
    """Return `value` as one bytes object."""
    return bytes(value) if isinstance(value, bytes) else b"".join(byte_views(value))


def is_interrupted(store: Store) -> bool:
    """Whether the caller has interrupted a change of the store that its own thread makes, which then refuses changes.

    Only a signal handler or a finalizer can. A store that minds has a method of this name.
    """
    asked: Callable[[], bool] | None = getattr(store, "is_interrupted", None)
    return asked is not None and asked()


def matches(namespace: str, asked: str | None) -> bool:
    """Whether `namespace` is the one asked for; `"kind/"` asks for every namespace of a kind."""
    return asked is None or (namespace.startswith(asked) if asked.endswith("/") else namespace == asked)
