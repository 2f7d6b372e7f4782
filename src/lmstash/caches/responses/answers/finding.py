"""Looking through kept answers: by what people call them, by text in request and answer, by age."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lmstash.caches.responses.answers.records import UnknownTypeError, decode_answer, read_back, unpack
from lmstash.caches.responses.answers.squeezing import Squeezer
from lmstash.caches.responses.requests.asking import KIND, Namer
from lmstash.caches.tags import NAMED, has_tag, is_like
from lmstash.codecs.records import decode_record
from lmstash.errors import FormatError, InvalidArgumentError
from lmstash.store.base import Buffer, EntryInfo, Removed, Store

_AT_ONCE = 256
"""So many values are read together."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept answer, with the bytes of it."""

    entry: EntryInfo
    answer: bytes
    request: bytes
    """Empty in a private stash."""


@dataclass(frozen=True, slots=True)
class Found:
    """One kept answer, for people."""

    key: bytes
    request: Any
    """As it was asked; media as `{"media": kind, "sha256": digest}`. None in a private stash."""
    answer: Any
    """As it was answered; what is of a type that is not registered here as `{"type": name, "value": plain}`."""
    tags: dict[str, Any]
    """As they were given."""
    occurrence: int
    created: float
    """Unix seconds."""
    last_used: float
    """Unix seconds."""
    expires: float | None
    compute_seconds: float
    hits: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which answers are meant: those that meet everything given here.

    Attributes:
        tag: A word, or `name=value`. This and the named facts may be patterns (`gsm8k*`).
        task: Of this task.
        doc: Of this document.
        split: Of this split.
        run: Of this run.
        user: Of this user.
        text: Text in the request or the answer; case counts.
        older_than: Seconds since they were last used.
    """

    tag: str | None = None
    task: str | None = None
    doc: str | int | None = None
    split: str | None = None
    run: str | None = None
    user: str | None = None
    text: str | None = None
    older_than: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self != Conditions()

    def selector(self) -> Callable[[EntryInfo], bool]:
        """Return what tells of an entry whether it meets them, but for the text."""
        named = [(name, value) for name in NAMED if (value := getattr(self, name)) is not None]
        deadline = None if self.older_than is None else time.time() - self.older_than

        def chosen(entry: EntryInfo) -> bool:
            return (
                all(is_like(entry.meta.get(name), value) for name, value in named)
                and (self.tag is None or has_tag(entry.meta, self.tag))
                and (deadline is None or entry.last_used < deadline)
            )

        return chosen


def scan(
    store: Store,
    conditions: Conditions,
    *,
    namespace: str = f"{KIND}/",
    namer: Namer | None = None,
    salt: str | bytes | None = None,
    also: Callable[[EntryInfo], bool] | None = None,
) -> Iterator[Kept]:
    """Yield the kept answers that meet the conditions; skips what is damaged or has expired.

    Reads the facts of every entry of the namespace (about 10 us each), and the values of those that may be meant. To
    the store that is no use of them.

    Args:
        store: Where they are kept.
        conditions: Which.
        namespace: Of one model, or every model's.
        namer: Makes the keys of whom may see them; others, and those without a request, are left out.
        salt: What compressed values were kept under.
        also: A further condition.
    """
    squeezers: dict[str, Squeezer] = {}
    chosen, holds = conditions.selector(), None if conditions.text is None else Needle(conditions.text)
    entries = (each for each in store.entries(namespace) if chosen(each) and (also is None or also(each)))
    while part := list(islice(entries, _AT_ONCE)):
        for entry, value in zip(part, store.peek_many([each.key for each in part]), strict=True):
            place = entry.namespace
            squeezer = squeezers.get(place) or squeezers.setdefault(place, Squeezer(store, place, salt))
            kept = None if value is None else _open(entry, value, squeezer)
            if kept is None or (namer is not None and not _makes(namer, kept)):
                continue
            if holds is None or holds.within(kept.request) or holds.within(kept.answer):
                yield kept


def find(store: Store, conditions: Conditions, **options: Any) -> Iterator[Found]:
    """As `scan`, decoded."""
    for kept in scan(store, conditions, **options):
        try:
            yield read(kept)
        except FormatError as error:
            store.events.damage(kept.entry.namespace, kept.entry.key, str(error))


def read(kept: Kept) -> Found:
    """Return a kept answer for people.

    Raises:
        CorruptEntryError: It is no record.
    """
    entry = kept.entry
    try:
        answer = decode_answer(kept.answer)
    except UnknownTypeError:
        answer = read_back(kept.answer)
    return Found(
        key=entry.key,
        request=read_back(kept.request) if kept.request else None,
        answer=answer,
        tags={name: value for name, value in entry.meta.items() if name != "occurrence"},
        occurrence=occurrence_of(entry),
        created=entry.created,
        last_used=entry.last_used,
        expires=entry.expires,
        compute_seconds=entry.compute_seconds,
        hits=entry.hits,
    )


def prune(
    store: Store,
    conditions: Conditions,
    *,
    namespace: str,
    namer: Namer | None = None,
    salt: str | bytes | None = None,
    dry_run: bool = False,
) -> Removed:
    """Remove the answers that meet the conditions.

    Raises:
        InvalidArgumentError: There is no condition.
    """
    if not conditions:
        raise InvalidArgumentError(
            "prune() of responses needs a condition: tag=, task=, doc=, split=, run=, user=, text= or older_than="
        )
    if conditions.text is None and namer is None:
        return store.prune(conditions.selector(), namespace=namespace, dry_run=dry_run)
    found = [kept.entry for kept in scan(store, conditions, namespace=namespace, namer=namer, salt=salt)]
    return remove(store, found, dry_run=dry_run)


def forget(store: Store, text: str, *, salt: str | bytes | None = None, dry_run: bool = False) -> Removed:
    """Remove the answers, of every model, to requests that hold a text. Reads every kept request."""
    holds = Needle(text)
    found = [kept.entry for kept in scan(store, Conditions(), salt=salt) if holds.within(kept.request)]
    return remove(store, found, dry_run=dry_run)


def remove(store: Store, entries: list[EntryInfo], *, dry_run: bool) -> Removed:
    """Remove these entries, so that nothing of them is left in the files either; raises as `Store.prune` does."""
    if not dry_run:  # nor if there are none: the store may be closed
        keys = {entry.key for entry in entries}
        store.prune(lambda entry: entry.key in keys, namespace=f"{KIND}/")
    return Removed(len(entries), sum(entry.nbytes for entry in entries))


def occurrence_of(entry: EntryInfo) -> int:
    """Return which of several answers to one sampled request an entry is."""
    number = entry.meta.get("occurrence", 0)
    return number if isinstance(number, int) else 0


class Needle:
    """Text to look for in records, without decoding those that cannot hold it."""

    def __init__(self, text: str) -> None:
        """Look for `text`.

        Raises:
            InvalidArgumentError: It is empty.
        """
        if not text:
            raise InvalidArgumentError("there is nothing to look for in an empty text")
        self._text = text
        try:
            self._written: bytes | None = json.dumps(text, ensure_ascii=False)[1:-1].encode()
        except UnicodeEncodeError:
            self._written = None

    def within(self, record: bytes) -> bool:
        """Whether a text (or bytes) in the record holds it."""
        if self._written is not None and self._written in record:
            return True
        # Odd text and bytes are written in base64.
        return (b'"$str"' in record or b'"$bytes"' in record) and self._in_value(_plain(record))

    def _in_value(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._text in value
        if isinstance(value, bytes):
            return self._text.encode("utf-8", "surrogatepass") in value
        if isinstance(value, dict):
            return any(self._in_value(name) or self._in_value(each) for name, each in value.items())
        return isinstance(value, list | tuple) and any(map(self._in_value, value))


def _plain(record: bytes) -> Any:
    try:
        return decode_record(record, lambda _name, plain: plain)
    except FormatError:
        return None


def open_value(store: Store, entry: EntryInfo, salt: str | bytes | None = None) -> Kept | None:
    """Return one kept answer with the bytes of it; None if it is gone or damaged."""
    value = store.peek_many([entry.key])[0]
    return None if value is None else _open(entry, value, Squeezer(store, entry.namespace, salt))


def _open(entry: EntryInfo, value: Buffer, squeezer: Squeezer) -> Kept | None:
    try:
        answer, request = unpack(squeezer.expand(value))
    except FormatError:
        return None  # counted by whoever asks for it
    return Kept(entry, bytes(answer), bytes(request))


def _makes(namer: Namer, kept: Kept) -> bool:
    return bool(kept.request) and namer.name(kept.request, occurrence_of(kept.entry)) == kept.entry.key
