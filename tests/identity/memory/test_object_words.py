"""Words of memory read at once say what Python itself says of types and lengths."""

from __future__ import annotations

import copy
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest

from lmstash.identity.memory import object_words
from lmstash.identity.memory.object_words import Kinds, Words


class One:
    pass


class Two:
    pass


@pytest.fixture(params=[True, False], ids=["words", "by hand"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not object_words._are_readable():
        pytest.skip("this Python lays its objects out otherwise")
    monkeypatch.setattr(object_words, "_are_readable", lambda: request.param)


@pytest.fixture
def _fresh_trial() -> Iterator[None]:
    object_words._are_readable.cache_clear()
    yield
    object_words._are_readable.cache_clear()


def test_words_are_read_where_they_lie_and_as_they_are_now() -> None:
    near, far = np.arange(100, dtype=np.int64), np.arange(10_000_000, dtype=np.int64)  # one from the heap, one mapped
    words = Words([near.ctypes.data + 8 * 7, far.ctypes.data + 8 * 9_999_999, near.ctypes.data])
    assert np.frombuffer(words.read(), np.int64).tolist() == [7, 9_999_999, 0]
    near[7], far[-1] = -1, 5
    assert np.frombuffer(words.read(), np.int64).tolist() == [-1, 5, 0]


def test_no_words_at_all() -> None:
    assert Words([]).read() == b""
    assert Kinds([], []).hold()


def test_nothing_that_is_held_can_be_copied_into_a_fault() -> None:
    near, far = np.arange(2), np.arange(10_000_000)
    words = Words([near.ctypes.data, far.ctypes.data])
    held = [each for each in vars(words).values() if isinstance(each, np.ndarray)]
    assert [each.size for each in held] == [2]  # and no array over all that lies between
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="another's"):
            copied(words)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="elsewhere nothing is read")
def test_this_python_is_read() -> None:
    assert object_words._are_readable() or not getattr(sys, "_is_gil_enabled", lambda: True)()


@pytest.mark.usefixtures("_way")
def test_a_type_that_changes_is_seen() -> None:
    things = [One() for _ in range(50)]
    kinds = Kinds(things, [])
    assert kinds.hold()
    things[17].__class__ = Two  # pyright: ignore[reportAttributeAccessIssue]
    assert not kinds.hold()
    things[17].__class__ = One
    assert kinds.hold()


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_what_was_empty_and_is_filled_is_seen(kind: type[dict[str, int]]) -> None:
    dicts = [kind() for _ in range(50)]
    kinds = Kinds([], dicts)
    assert kinds.hold()
    dicts[49]["hook"] = 1
    assert not kinds.hold()
    del dicts[49]["hook"]
    assert kinds.hold()


@pytest.mark.usefixtures("_way")
def test_containers_of_other_kinds_are_asked() -> None:
    class Odd(dict[str, int]):
        def __len__(self) -> int:
            return self.n

        n = 0

    odd, listed = Odd(), list[int]()
    kinds = Kinds([], [odd, listed])
    assert kinds.hold()
    odd.n = 1
    assert not kinds.hold()
    odd.n = 0
    listed.append(1)
    assert not kinds.hold()


def test_what_is_read_is_kept_alive() -> None:
    kinds = Kinds([One() for _ in range(1000)], [{} for _ in range(1000)])
    others = [{"a": number} for number in range(5000)]  # would take their memory
    assert kinds.hold()
    assert len(others) == 5000


@pytest.mark.usefixtures("_fresh_trial")
def test_other_pythons_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_words, "TYPE_PLACE", 24)
    assert not object_words._are_readable(), "a layout that the trial finds to be another"


@pytest.mark.usefixtures("_fresh_trial")
def test_threads_without_a_lock_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_words.sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not object_words._are_readable()
