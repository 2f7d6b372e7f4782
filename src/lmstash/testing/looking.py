"""Promises about looking at what is kept, removing what was chosen, and counting what happens."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest

from lmstash.events import Drop, Event, EventLog, Evict, Hit, Miss, MissReason, Put
from lmstash.store.base import Removed, Store, Write
from lmstash.testing.samples import OpenStore, sample_bytes, sample_key

NAMESPACES = ["activations/aaaa", "activations/bbbb", "activationsx/aaaa", "prompts/aaaa"]


def fill_namespaces(store: Store) -> dict[str, list[bytes]]:
    """Put five entries into each namespace, tagged by their number; returns the keys."""
    keys = {space: [sample_key(10 * n + each) for each in range(5)] for n, space in enumerate(NAMESPACES)}
    for space, some in keys.items():
        for number, key in enumerate(some):
            store.put(key, sample_bytes(1000, number), namespace=space, meta={"tags": [f"t{number}"]}, n_tokens=number)
    return keys


def left(store: Store, keys: dict[str, list[bytes]]) -> dict[str, int]:
    """Return how many entries of each namespace are kept, by look-up."""
    return {space: sum(store.contains_many(some)) for space, some in keys.items()}


class LookingContract:
    """Entries, prune, clear, info, verify, counters, events."""

    notes_each_use: bool = True

    def test_entries_describe_what_is_kept(self, open_store: OpenStore) -> None:
        """Each entry once, with all that was put beside it."""
        store, before = open_store(), time.time()
        keys = [sample_key(number) for number in range(30)]
        store.put_many(
            [
                Write(
                    key,
                    bytes(number),
                    "kind/owner",
                    meta={"number": number},
                    parent=keys[number - 1] if number else b"",
                    compute_seconds=number / 4,
                    n_tokens=number,
                    ttl_seconds=1000 if number % 2 else None,
                )
                for number, key in enumerate(keys)
            ]
        )
        infos = {each.key: each for each in store.entries()}
        assert len(infos) == len(list(store.entries())) == 30
        for number, key in enumerate(keys):
            info = infos[key]
            assert (info.namespace, info.kind, info.nbytes, info.n_tokens) == ("kind/owner", "kind", number, number)
            assert (info.compute_seconds, info.meta, info.pinned) == (number / 4, {"number": number}, False)
            assert info.parent == (keys[number - 1] if number else b"")
            assert before - 1 <= info.created <= time.time() + 1
            assert (info.expires is not None) == bool(number % 2)

    def test_chosen_entries_are_described_as_in_the_list_of_all(self, open_store: OpenStore) -> None:
        """In the order asked for, None where nothing is; being described is no use and no hit."""
        store = open_store()
        keys = [key for some in fill_namespaces(store).values() for key in some]
        store.put(sample_key(99), b"gone soon", ttl_seconds=0.001)
        time.sleep(0.01)
        infos = {each.key: each for each in store.entries()}
        asked = [*keys[::3], sample_key(98), sample_key(99), keys[0]]
        counted = copy.deepcopy(store.events.stats)
        assert store.describe_many(asked) == [*[infos[key] for key in keys[::3]], None, None, infos[keys[0]]]
        assert store.describe_many([]) == []
        assert store.events.stats == counted
        assert {each.key: each for each in store.entries()} == infos

    def test_a_use_is_noted(self, open_store: OpenStore) -> None:
        """Times of use grow and hits are counted; putting is not a hit, asking whether it is there neither."""
        store, keys = open_store(), [sample_key(number) for number in range(6)]
        store.put_many([Write(key, b"value") for key in keys])
        put_at = {each.key: each.last_used for each in store.entries()}
        time.sleep(0.02)
        store.get(keys[0])
        store.get_many(keys[:4])
        store.contains_many(keys)
        infos = {each.key: each for each in store.entries()}
        if self.notes_each_use:
            assert [infos[key].hits for key in keys] == [2, 1, 1, 1, 0, 0]
        assert [infos[key].last_used > put_at[key] for key in keys] == [True] * 4 + [False] * 2

    def test_entries_of_one_namespace_or_kind(self, open_store: OpenStore) -> None:
        """A name asks for itself alone; with a slash at its end, for all that begin so."""
        store = open_store()
        keys = fill_namespaces(store)
        for asked, expected in {
            "activations/aaaa": ["activations/aaaa"],
            "activations/": ["activations/aaaa", "activations/bbbb"],
            "activations": [],
            "prompts/": ["prompts/aaaa"],
            "nothing/": [],
        }.items():
            found = {each.key for each in store.entries(asked)}
            assert found == {key for space in expected for key in keys[space]}, asked

    def test_entries_may_be_removed_while_they_are_listed(self, open_store: OpenStore) -> None:
        """What is removed before its turn may or may not be shown; nothing breaks."""
        store = open_store()
        keys = fill_namespaces(store)
        for info in store.entries():
            store.delete(info.key)
        assert sum(left(store, keys).values()) == 0

    def test_prune_removes_what_is_chosen(self, open_store: OpenStore) -> None:
        """And a dry run tells the same numbers without removing."""
        store = open_store()
        keys = fill_namespaces(store)
        chosen: Callable[..., bool] = lambda info: "t1" in info.meta["tags"]  # noqa: E731
        dry = store.prune(chosen, namespace="activations/", dry_run=True)
        assert dry.entries == 2
        assert dry.nbytes >= 2000
        assert left(store, keys) == dict.fromkeys(NAMESPACES, 5)
        assert store.prune(chosen, namespace="activations/") == dry
        assert left(store, keys) == dict(zip(NAMESPACES, [4, 4, 5, 5], strict=True))
        assert store.prune(chosen, namespace="activations/") == Removed(0, 0)

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [("activations/aaaa", [0, 5, 5, 5]), ("activations/", [0, 0, 5, 5]), ("no/such", [5, 5, 5, 5])],
    )
    def test_prune_without_a_choice_removes_the_namespace(
        self, open_store: OpenStore, asked: str, expected: list[int]
    ) -> None:
        """A whole namespace, or every one of a kind; pinned entries too."""
        store = open_store()
        keys = fill_namespaces(store)
        store.pin_many(keys["activations/aaaa"][:1])
        dry = store.prune(namespace=asked, dry_run=True)
        assert dry.entries == 20 - sum(expected)
        assert left(store, keys) == dict.fromkeys(NAMESPACES, 5)
        assert store.prune(namespace=asked) == dry
        assert left(store, keys) == dict(zip(NAMESPACES, expected, strict=True))
        assert {each.namespace: each.entries for each in store.info().namespaces} == {
            space: n for space, n in zip(NAMESPACES, expected, strict=True) if n
        }

    def test_clear_removes_everything(self, open_store: OpenStore) -> None:
        """And the store goes on."""
        store = open_store()
        keys = fill_namespaces(store)
        assert store.clear().entries == 20
        assert sum(left(store, keys).values()) == 0
        assert list(store.entries()) == []
        assert store.info().entries == 0
        assert store.put(sample_key(0), b"again") is True
        assert store.contains(sample_key(0))

    def test_info_says_what_is_held(self, open_store: OpenStore) -> None:
        """Entries by namespace, bytes, limit and times."""
        store, before = open_store(), time.time()
        assert store.info().entries == 0
        fill_namespaces(store)
        info = store.info()
        assert info.entries == 20
        assert {each.namespace: each.entries for each in info.namespaces} == dict.fromkeys(NAMESPACES, 5)
        assert all(each.nbytes >= 5000 for each in info.namespaces)
        assert info.physical_bytes >= 20_000
        assert info.capacity_bytes is None
        assert info.location
        assert info.oldest is not None
        assert info.newest is not None
        assert before - 1 <= info.oldest <= info.newest <= time.time() + 1

    def test_verify_reads_everything(self, open_store: OpenStore) -> None:
        """And finds nothing wrong where nothing is."""
        store = open_store()
        fill_namespaces(store)
        report = store.verify()
        assert (report.entries, report.nbytes, report.ok, report.damaged) == (20, 20_000, True, [])
        assert not store.verify(repair=True).damaged
        assert store.info().entries == 20

    def test_flush_may_be_called_at_any_time(self, open_store: OpenStore) -> None:
        """Before, between and after puts."""
        store = open_store()
        for number in range(3):
            store.flush()
            store.put(sample_key(number), b"value")
        store.flush()
        assert all(store.contains_many([sample_key(number) for number in range(3)]))

    # --- counting -------------------------------------------------------------------------------------------------

    def test_hits_and_misses_add_up_to_the_keys_asked(self, open_store: OpenStore) -> None:
        """Duplicates, expired ones and absent ones included; asking whether it is there does not count."""
        store = open_store()
        keys = [sample_key(number) for number in range(10)]
        store.put_many([Write(key, b"12345", compute_seconds=0.5) for key in keys[:6]])
        store.put(keys[6], b"expired", ttl_seconds=0)
        asked = 0
        for some in ([keys[0]], keys[:2], keys, [keys[0], keys[0], keys[9], keys[9], keys[6]], keys[::-1] * 3):
            store.get_many(some)
            store.fetch_many(some)
            asked += 2 * len(some)
        store.get(keys[0])
        store.get(keys[9])
        asked += 2
        store.contains_many(keys)
        stats = store.events.stats
        assert stats.hits + stats.partial_hits + sum(stats.misses.values()) == asked
        assert stats.hits == 2 * (1 + 2 + 6 + 2 + 18) + 1
        assert stats.misses == {MissReason.ABSENT: 2 * (3 + 2 + 9) + 1, MissReason.EXPIRED: 2 * (1 + 1 + 3)}
        assert stats.bytes_read == 5 * stats.hits
        assert stats.seconds_saved == pytest.approx(0.5 * stats.hits)

    def test_peeking_is_no_use(self, open_store: OpenStore) -> None:
        """What is there is read, and nothing else changes: neither recency, nor counts, nor what listeners hear."""
        log, heard = EventLog(), list[Event]()
        store = open_store(events=log)
        keys = [sample_key(number) for number in range(6)]
        values = [b"", b"small", sample_bytes(70_000, 2), sample_bytes((1 << 20) + 5, 3)]
        store.put_many([Write(key, value) for key, value in zip(keys, values, strict=False)])
        store.put(keys[4], b"expired", ttl_seconds=0)
        before, counted = {each.key: each for each in store.entries()}, copy.deepcopy(store.events.stats)
        log.listen(heard.append)
        time.sleep(0.01)
        found = store.peek_many([*keys, keys[1]])
        assert [each if each is None else bytes(each) for each in found] == [*values, None, None, b"small"]
        assert all(each is None or each.readonly for each in found)
        assert store.peek_many([]) == []
        assert not heard
        assert store.events.stats == counted
        assert {each.key: each for each in store.entries()} == before

    def test_puts_are_counted(self, open_store: OpenStore) -> None:
        """With their bytes and what they cost; what stays without `replace` is no put."""
        store = open_store()
        store.put_many([Write(sample_key(number), b"123", compute_seconds=2) for number in range(5)])
        store.put_many([Write(sample_key(number), b"123", compute_seconds=2) for number in range(7)], replace=False)
        stats = store.events.stats
        assert (stats.puts, stats.bytes_written, stats.seconds_computed) == (7, 21, 14.0)
        assert not stats.drops

    def test_listeners_hear_what_is_counted(self, open_store: OpenStore) -> None:
        """One event for each put, hit and miss, until they stop listening."""
        log, heard = EventLog(), list[Event]()
        store = open_store(events=log)
        assert store.events is log
        stop = log.listen(heard.append)
        keys = [sample_key(number) for number in range(6)]
        store.put_many([Write(key, b"value", "kind/a", compute_seconds=1.5) for key in keys[:5]])
        assert heard == [Put("kind/a", key, 5) for key in keys[:5]]
        heard.clear()
        store.get_many(keys)
        assert [each for each in heard if isinstance(each, Hit)] == [Hit("kind/a", key, 5, 1.5) for key in keys[:5]]
        missed = [each for each in heard if isinstance(each, Miss)]
        assert [(each.key, each.reason) for each in missed] == [(keys[5], MissReason.ABSENT)]
        heard.clear()
        store.evict(0)
        evicted = [each for each in heard if isinstance(each, Evict)]
        assert sum(each.entries for each in evicted) == 5
        assert {each.namespace for each in evicted} == {"kind/a"}
        stop()
        heard.clear()
        store.get(keys[0])
        assert not heard

    def test_a_listener_that_fails_breaks_nothing(self, open_store: OpenStore) -> None:
        """It is removed, and the others still hear."""
        store, heard = open_store(), list[Event]()

        def fail(event: Event) -> None:
            raise RuntimeError("a listener's own fault")

        store.events.listen(fail)
        store.events.listen(heard.append)
        assert store.put(sample_key(1), b"value") is True
        assert store.get(sample_key(1)) is not None
        assert not [each for each in heard if isinstance(each, Drop)]
        assert [type(each) for each in heard] == [Put, Hit]
