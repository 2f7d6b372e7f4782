"""Looking up thousands of keys at once: one statement, and arrays from there on."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from lmstash.events import EventLog, MissReason
from lmstash.store.base import KEY_BYTES
from lmstash.store.disk.files.format import xxh3
from lmstash.store.disk.files.rows import ABSENT, EXPIRED
from lmstash.store.disk.indexing.index import Index
from lmstash.store.disk.indexing.tables import HEAD, OFF, SEG, must_be_sane, table_of

_ABSENT, _EXPIRED = (int(table_of(each)[0, HEAD]) for each in (ABSENT, EXPIRED))


def located(
    index: Index, events: EventLog, keys: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Ask where distinct keys are; counts those that are nowhere as misses. Costs 0.3 us a key.

    Returns:
        Rows of `tables.table_of`, sorted by segment and offset; for each its key's place in `keys`; all keys as
        `[n, 32]`; and the places of keys to be asked for one by one, whose entries have expired or that are no keys.

    Raises:
        IndexDamagedError: Places cannot be what they are said to be.
    """
    table = np.empty((len(keys), 5), np.int64)
    joined = b"".join(keys)
    if not joined or len(joined) != KEY_BYTES * len(keys):
        return table[:0], table[:0, SEG], np.empty((0, KEY_BYTES), np.uint8), list(range(len(keys)))
    ids = (np.fromiter(map(xxh3, keys), np.uint64, len(keys)) ^ np.uint64(1 << 63)).view(np.int64)
    order = ids.argsort()  # neighbours in the index are found faster one after another
    table[order] = table_of(index.places(ids[order], int(time.time() * 1e6)))
    heads = table[:, HEAD]
    absent, expired = heads == _ABSENT, heads == _EXPIRED
    there = ~(absent | expired)
    places = there.nonzero()[0]
    if len(places) < len(keys):
        table = table[there]
    must_be_sane(table)
    if absent.any():
        events.misses([keys[each] for each in absent.nonzero()[0].tolist()], MissReason.ABSENT)
    further = (table[1:, SEG] == table[:-1, SEG]) & (table[1:, OFF] > table[:-1, OFF])
    if not (further | (table[1:, SEG] > table[:-1, SEG])).all():  # they are not asked for as they were put
        order = np.lexsort((table[:, OFF], table[:, SEG]))
        table, places = table[order], places[order]
    return table, places, np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES), expired.nonzero()[0].tolist()
