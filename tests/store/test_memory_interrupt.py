"""Interrupts within the RAM tier: what is held and the count of its bytes stay one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from tests.at_lines import at_line

from lmstash.store.memory import MemoryStore


def key(number: int) -> bytes:
    return bytes([number]) * 32


def work(store: MemoryStore) -> None:
    for number in range(8):
        store.put(key(number), b"v" * 100 * number)
    store.put(key(3), b"longer" * 100)
    store.delete(key(7))
    store.get_many([key(number) for number in range(8)])
    store.evict(2500)
    store.prune(lambda entry: entry.key == key(6))


def interrupt(_store: MemoryStore) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("come_between", [interrupt, work])
def test_bytes_are_those_of_what_is_held_whatever_comes_between(come_between: Callable[[MemoryStore], None]) -> None:
    capacity = 4000
    total = at_line(0, lambda: work(MemoryStore(capacity)), lambda: None, "/store/memory.py")
    assert total > 100
    for line in range(1, total):
        store = MemoryStore(capacity)
        with contextlib.suppress(KeyboardInterrupt):
            at_line(
                line,
                lambda store=store: work(store),
                lambda store=store: come_between(store),
                "/store/memory.py",
            )
        info = store.info()
        assert info.physical_bytes == sum(each.nbytes for each in info.namespaces) <= capacity
        work(store)
        assert store.put(key(1), b"value")
