"""Keys and values that tests can tell apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from lmstash.store.base import Store

OpenStore = Callable[..., Store]
"""`open_store(capacity_bytes=None, *, strict=False, events=None)`: see `StoreContract`."""


def sample_key(number: int) -> bytes:
    """Return the 32 bytes that stand for `number`; as evenly spread as real keys are."""
    return hashlib.sha256(b"sample %d" % number).digest()


def sample_bytes(n_bytes: int, seed: int = 0) -> bytes:
    """Return bytes that differ from seed to seed and from one another's parts; about 1 GB/s."""
    return random.Random(seed * 1_000_003 + n_bytes).randbytes(n_bytes)
