"""Whether dicts changed is told by CPython's own number where there is one, by comparing what they hold elsewhere."""

import sys
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.identity.memory import dict_stamps
from lmstash.identity.memory.dict_stamps import Stamps

KEYS = st.sampled_from(["a", "b", "c", 1])
STEPS = st.lists(st.tuples(st.sampled_from(["set", "pop", "update", "clear", "popitem", "default"]), KEYS), max_size=20)


def act(held, step, key, value):
    if step == "set":
        held[key] = value
    elif step == "pop":
        held.pop(key, None)
    elif step == "update":
        held.update({key: value, "z": value})
    elif step == "clear":
        held.clear()
    elif step == "popitem":
        if held:
            held.popitem()
    else:
        held.setdefault(key, value)


@given(st.lists(st.dictionaries(KEYS, st.integers()), min_size=1, max_size=5), STEPS)
def test_no_change_is_missed(dicts, steps):
    before = [dict(each) for each in dicts]
    stamps = Stamps(dicts)
    assert stamps.hold(lambda: dicts == before)
    for number, (step, key) in enumerate(steps):
        act(dicts[number % len(dicts)], step, key, object())
        assert stamps.hold(lambda: dicts == before) == (dicts == before)


@pytest.mark.skipif(not (3, 11) <= sys.version_info < (3, 13), reason="keeps no such numbers")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's")
def test_nothing_is_compared_while_nothing_is_touched():
    asked = []
    dicts = [{"a": 1}, {}]
    stamps = Stamps(dicts)
    assert stamps.kept
    for _ in range(3):
        assert stamps.hold(lambda: not asked.append(1))
    assert len(asked) == 1
    dicts[1]["b"] = 2
    assert stamps.hold(lambda: not asked.append(1))
    assert stamps.hold(lambda: not asked.append(1))
    assert len(asked) == 2


def test_what_is_no_plain_dict_is_asked_for_each_time():
    stamps = Stamps([OrderedDict(a=1, b=2)])
    assert not stamps.kept
    assert stamps.hold(lambda: True)
    assert not stamps.hold(lambda: False)


def test_a_python_that_keeps_no_numbers_compares(monkeypatch):
    monkeypatch.setattr(dict_stamps.sys, "version_info", (3, 13, 0))
    dict_stamps._are_kept.cache_clear()
    try:
        stamps = Stamps([{"a": 1}])
        assert not stamps.kept
        assert not stamps.hold(lambda: False)
    finally:
        monkeypatch.undo()
        dict_stamps._are_kept.cache_clear()
