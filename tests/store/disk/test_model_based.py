"""The disk store against a plain dict, through whatever order of calls Hypothesis thinks of.

Two handles on one folder take turns. At any time the folder may be closed and opened, copied as a killed process would
leave it, or lose its index. A value read is the value last put, or none; none is right only for what was removed,
expired, or dropped or evicted with a count.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmstash.events import Drop, Event, EventLog
from lmstash.store.base import Write
from lmstash.store.disk.store import DiskStore
from lmstash.store.sheets import Sheet, fetch_sheets, put_sheets
from lmstash.testing import sample_bytes, sample_key

SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""In RAM where there is one: thousands of folders are opened and flushed, on a disk that others may keep busy."""
N_KEYS = 14
NAMESPACES = ["kind/a", "kind/b", "other/a"]
SIZES = [0, 1, 100, 5_000, 70_000, 400_000, (1 << 20) + 3]
keys = st.integers(0, N_KEYS - 1)
some_keys = st.lists(keys, max_size=8)
sizes = st.sampled_from(SIZES)
handles = st.integers(0, 1)
spaces = st.sampled_from(NAMESPACES)


@dataclass
class Kept:
    value: bytes
    namespace: str
    meta: dict[str, Any]


class DiskStoreMachine(RuleBasedStateMachine):
    capacity_bytes: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="lmstash-model-", dir=SCRATCH))
        self.folder = self.home / "0"
        self.log = EventLog()
        self.dropped: list[bytes] = []
        self.log.listen(self.hear)
        self.model: dict[bytes, Kept] = {}
        self.pins: set[bytes] = set()
        self.version = 0
        self.opened: list[DiskStore] = []
        self.evicted = 0
        self.may_evict = False

    def hear(self, event: Event) -> None:
        if isinstance(event, Drop):
            self.dropped.append(event.key)

    def teardown(self) -> None:
        try:
            if self.opened and sys.exc_info()[0] is None:
                self.check_values(range(N_KEYS), 0)
                self.look(1)
                assert self.opened[0].verify().damaged == []
                assert self.log.stats.damaged == 0
                assert set(self.log.stats.misses) <= {"absent", "expired"}
                self.opened[0].clear()
                assert self.opened[1].info().entries == 0
                self.close()
                assert list((self.folder / "segments").iterdir()) == []
        finally:
            self.close()
            shutil.rmtree(self.home)

    # --- the model ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.opened = [DiskStore(self.folder, capacity_bytes=self.capacity_bytes, events=self.log) for _ in range(2)]

    def close(self) -> None:
        for store in self.opened:
            store.close()
        self.opened = []

    def settle(self) -> None:
        """Take out of the model what was evicted, after checking that it may have been."""
        evicted, self.evicted = self.log.stats.evicted_entries - self.evicted, self.log.stats.evicted_entries
        present = self.opened[0].contains_many([sample_key(number) for number in range(N_KEYS)])
        missing = {sample_key(n) for n, each in enumerate(present) if not each} & self.model.keys()
        assert len(missing) <= evicted, "an entry is gone that nobody removed"
        assert not missing & self.pins, "a pinned entry was evicted"
        for key in missing:
            del self.model[key]

    def fresh(self, size: int) -> bytes:
        self.version += 1
        return (b"%d " % self.version + sample_bytes(size, self.version))[:size]

    def writes(self, numbers: list[int], size: int, namespace: str) -> list[Write]:
        return [
            Write(sample_key(number), self.fresh(size // (each + 1)), namespace, {"version": self.version})
            for each, number in enumerate(numbers)
        ]

    def note(self, writes: list[Write], *, replace: bool = True) -> None:
        for write in writes:
            if write.key in self.dropped:
                self.dropped.remove(write.key)
            elif replace or write.key not in self.model:
                assert isinstance(write.value, bytes)
                self.model[write.key] = Kept(write.value, write.namespace, dict(write.meta or {}))
        assert not self.dropped

    def expected(self, number: int) -> bytes | None:
        kept = self.model.get(sample_key(number))
        return None if kept is None else kept.value

    # --- rules ----------------------------------------------------------------------------------------------------

    @initialize(size=st.sampled_from(SIZES[1:6]), pinned=st.lists(keys, max_size=4))
    def begin(self, size: int, pinned: list[int]) -> None:
        """Start with something to lose."""
        self.open()
        for number, namespace in enumerate(NAMESPACES):
            self.put_many(0, list(range(4 * number, 4 * number + 4)), size, namespace, True)
        self.settle()
        self.pin(0, pinned, True)

    @rule(handle=handles, number=keys, size=sizes, namespace=spaces)
    def put(self, handle: int, number: int, size: int, namespace: str) -> None:
        [write] = self.writes([number], size, namespace)
        kept = self.opened[handle].put(write.key, write.value, namespace=namespace, meta=write.meta)
        assert kept == (write.key not in self.dropped)
        self.note([write])

    @rule(handle=handles, numbers=some_keys, size=sizes, namespace=spaces, replace=st.booleans())
    def put_many(self, handle: int, numbers: list[int], size: int, namespace: str, replace: bool) -> None:
        numbers = list(dict.fromkeys(numbers))
        writes = self.writes(numbers, size, namespace)
        kept = self.opened[handle].put_many(writes, replace=replace)
        assert kept == len(writes) - len(self.dropped)
        evicted = self.log.stats.evicted_entries > self.evicted
        if evicted and not replace:
            # What was kept may have been evicted by the same call, after it was counted as kept.
            self.settle()
            self.dropped.clear()
            for write in writes:
                found = self.opened[handle].get(write.key)
                if found is not None and bytes(found) == write.value:
                    self.note([write])
            return
        self.note(writes, replace=replace)

    @rule(handle=handles, numbers=some_keys, size=sizes, namespace=spaces)
    def put_sheet(self, handle: int, numbers: list[int], size: int, namespace: str) -> None:
        numbers = list(dict.fromkeys(numbers))
        writes = [self.writes([number], size, namespace)[0] for number in numbers]
        rows = [np.frombuffer(write.value, np.uint8) for write in writes]
        values = np.stack(rows) if rows else np.empty((0, size), np.uint8)
        metas = [json.dumps(write.meta).encode() for write in writes]
        kept = put_sheets(self.opened[handle], [Sheet([write.key for write in writes], values, namespace, metas)])
        assert kept == len(writes) - len(self.dropped)
        self.note(writes)

    @rule(handle=handles, numbers=some_keys, apart=st.booleans())
    def fetch_sheet(self, handle: int, numbers: list[int], apart: bool) -> None:
        numbers = list(dict.fromkeys(numbers))
        there = {}
        for found in fetch_sheets(self.opened[handle], [sample_key(number) for number in numbers], apart=apart):
            rows = zip(found.places.tolist(), found.values, strict=True)
            there |= {numbers[place]: value.tobytes() for place, value in rows}
        assert there == {number: value for number in numbers if (value := self.expected(number)) is not None}

    @precondition(lambda self: self.capacity_bytes is not None)
    @rule(handle=handles, numbers=st.lists(keys, min_size=3, unique=True), size=st.sampled_from([30_000, 150_000]))
    def put_much(self, handle: int, numbers: list[int], size: int) -> None:
        """Several of one size, so that the limit is met."""
        for each, number in enumerate(numbers):
            self.put(handle, number, size, NAMESPACES[each % 2])
            self.settle()
            self.the_limit_holds()

    @rule(handle=handles, number=keys, size=st.sampled_from(SIZES[:4]))
    def put_expired(self, handle: int, number: int, size: int) -> None:
        key = sample_key(number)
        if key in self.pins:
            return
        self.opened[handle].put(key, self.fresh(size), ttl_seconds=0)
        if key in self.dropped:
            self.dropped.clear()
        else:
            self.model.pop(key, None)

    @rule(handle=handles, number=keys)
    def get(self, handle: int, number: int) -> None:
        found = self.opened[handle].get(sample_key(number))
        assert (None if found is None else bytes(found)) == self.expected(number)

    @rule(handle=handles, numbers=st.lists(keys, min_size=4, max_size=20))
    def get_many(self, handle: int, numbers: list[int]) -> None:
        self.check_values(numbers, handle)

    def check_values(self, numbers: Any, handle: int) -> None:
        found = self.opened[handle].fetch_many([sample_key(number) for number in numbers])
        assert [None if each is None else bytes(each.value) for each in found] == [self.expected(n) for n in numbers]
        for each in found:
            assert each is None or each.meta == self.model[each.key].meta

    @rule(handle=handles, numbers=some_keys)
    def delete_many(self, handle: int, numbers: list[int]) -> None:
        asked = [sample_key(number) for number in numbers]
        there = self.model.keys() & set(asked)
        # Expired entries may or may not be there still.
        assert len(there) <= self.opened[handle].delete_many(asked) <= len(set(asked))
        for key in asked:
            self.model.pop(key, None)
            self.pins.discard(key)

    @rule(handle=handles, numbers=some_keys, pinned=st.booleans())
    def pin(self, handle: int, numbers: list[int], pinned: bool) -> None:
        asked = list({sample_key(number) for number in numbers} & self.model.keys())
        assert self.opened[handle].pin_many(asked, pinned) == len(asked)
        self.pins = self.pins | set(asked) if pinned else self.pins - set(asked)

    @rule(handle=handles, share=st.sampled_from([0.0, 0.0, 0.3, 0.8]))
    def evict(self, handle: int, share: float) -> None:
        store = self.opened[handle]
        store.evict(int(store.info().physical_bytes * share))

    @rule(handle=handles, asked=st.sampled_from(["kind/a", "kind/", "other/a", "none/"]))
    def prune_namespace(self, handle: int, asked: str) -> None:
        self.opened[handle].prune(namespace=asked)
        self.remove([key for key, kept in self.model.items() if kept.namespace.startswith(asked)])

    @rule(handle=handles, odd=st.booleans(), asked=st.sampled_from([None, "kind/"]))
    def prune_some(self, handle: int, odd: bool, asked: str | None) -> None:
        self.opened[handle].prune(lambda info: bool(info.meta.get("version", 0) % 2) == odd, namespace=asked)
        self.remove(
            [
                key
                for key, kept in self.model.items()
                if bool(kept.meta["version"] % 2) == odd and kept.namespace.startswith(asked or "")
            ]
        )

    def remove(self, gone: list[bytes]) -> None:
        for key in gone:
            del self.model[key]
            self.pins.discard(key)

    @rule(handle=handles)
    def flush(self, handle: int) -> None:
        self.opened[handle].flush()

    @rule(handle=handles)
    def reopen_one(self, handle: int) -> None:
        self.opened[handle].close()
        self.opened[handle] = DiskStore(self.folder, events=self.log)

    @rule()
    def lose_index(self) -> None:
        self.close()
        self.drop_index()
        self.open()

    @rule(index=st.booleans())
    def be_killed(self, index: bool) -> None:
        """Go on with what is on the disk now: open segments, no lock, the log not merged, or no index at all."""
        old, self.folder = self.folder, self.home / str(int(self.folder.name) + 1)
        shutil.copytree(old, self.folder)
        if not index:
            self.drop_index()
        self.close()
        shutil.rmtree(old)
        self.open()

    def drop_index(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            (self.folder / f"index.db{suffix}").unlink(missing_ok=True)

    @rule(handle=handles)
    def look(self, handle: int) -> None:
        infos = [info for info in self.opened[handle].entries() if info.expires is None]
        described = {info.key: (info.namespace, info.nbytes, info.meta, info.pinned) for info in infos}
        assert len(described) == len(infos)
        assert described == {
            key: (kept.namespace, len(kept.value), kept.meta, key in self.pins) for key, kept in self.model.items()
        }
        info = self.opened[handle].info()
        assert info.entries == len(list(self.opened[handle].entries()))

    @invariant()
    def nothing_is_lost(self) -> None:
        if self.opened:
            self.settle()

    @precondition(lambda self: self.capacity_bytes is not None)
    @invariant()
    def the_limit_holds(self) -> None:
        if self.opened:
            paths = [self.folder, *self.folder.rglob("*")]
            assert sum(path.lstat().st_blocks * 512 for path in paths) <= (self.capacity_bytes or 0)


class BoundedMachine(DiskStoreMachine):
    capacity_bytes = 3 << 20


SETTINGS = settings(
    max_examples=30 if settings().max_examples <= 30 else 60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestUnlimited = DiskStoreMachine.TestCase
TestUnlimited.settings = SETTINGS
TestBounded = BoundedMachine.TestCase
TestBounded.settings = SETTINGS


# --- orders of calls that once went wrong -------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_evicting_ends_where_a_tombstone_is_all_that_a_segment_holds(tmp_path: Path):
    store = DiskStore(tmp_path / "stash", capacity_bytes=None)
    for number in range(12):
        store.put(sample_key(number), b"value", namespace=NAMESPACES[number // 4])
    store.pin_many([sample_key(0)])
    store.close()
    (tmp_path / "stash" / "index.db").unlink()
    store = DiskStore(tmp_path / "stash")
    store.put(sample_key(0), b"again", namespace=NAMESPACES[0])
    store.evict(0)
    assert store.contains_many([sample_key(number) for number in range(12)]) == [True] + [False] * 11
    store.close()
