"""The small functions that every store shares: keys, facts, buffers, namespaces."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.errors import InvalidArgumentError
from lmstash.store.base import (
    MAX_META_BYTES,
    MAX_NAMESPACE_BYTES,
    Write,
    byte_views,
    check_key,
    check_ttl,
    check_write,
    decode_meta,
    default_ttl,
    encode_meta,
    join,
    matches,
)

KEY = bytes(range(32))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_facts_come_back_as_they_were(meta: dict):
    encoded = encode_meta(meta)
    assert decode_meta(encoded) == meta
    assert encode_meta(encoded) == encoded
    assert bool(encoded) == bool(meta)


@given(st.binary(max_size=60))
def test_facts_that_cannot_be_read_are_none(junk: bytes):
    assert isinstance(decode_meta(junk), dict)


def test_facts_have_a_largest_size():
    meta = {"a": "x" * (MAX_META_BYTES - len('{"a":""}'))}
    assert len(encode_meta(meta)) == MAX_META_BYTES
    with pytest.raises(InvalidArgumentError, match="under 262,144"):
        encode_meta({"a": meta["a"] + "x"})


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytearray(32), "x" * 32, None])
def test_a_key_is_32_bytes(key: object):
    with pytest.raises(InvalidArgumentError, match="32 bytes"):
        check_key(key)  # pyright: ignore[reportArgumentType]
    check_key(KEY)


def test_a_namespace_has_a_largest_size_in_bytes():
    check_write(Write(KEY, b"", "n" * MAX_NAMESPACE_BYTES))
    check_write(Write(KEY, b"", "ü" * (MAX_NAMESPACE_BYTES // 2)))
    for namespace in ("n" * (MAX_NAMESPACE_BYTES + 1), "ü" * (MAX_NAMESPACE_BYTES // 2 + 1)):
        with pytest.raises(InvalidArgumentError, match="namespace"):
            check_write(Write(KEY, b"", namespace))


def test_a_lifetime_that_ends_in_no_one_s_lifetime_is_for_ever():
    assert check_write(Write(KEY, b"", ttl_seconds=None))[1] is None
    assert check_write(Write(KEY, b"", ttl_seconds=float("inf")))[1] is None
    assert check_write(Write(KEY, b"", ttl_seconds=1e300))[1] is None
    assert check_write(Write(KEY, b"", ttl_seconds=3600))[1] == 3600


@pytest.mark.parametrize("ttl_seconds", ["a", "30", b"1", [1], float("nan"), 1j])
def test_a_lifetime_is_a_number(ttl_seconds: Any):
    for check in (check_ttl, default_ttl, lambda given: check_write(Write(KEY, b"", ttl_seconds=given))):
        with pytest.raises(InvalidArgumentError, match="number of seconds"):
            check(ttl_seconds)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int32])
def test_a_lifetime_is_counted_in_python_s_own_numbers(kind: Any):
    """A Unix time in 32 bits is a minute off."""
    assert type(check_write(Write(KEY, b"", ttl_seconds=kind(60)))[1]) is float
    assert type(default_ttl(kind(60))) is float


def test_only_a_single_entry_may_have_a_lifetime_that_is_over():
    assert [default_ttl(each) for each in (None, 0.5, 3600)] == [None, 0.5, 3600]
    for over in (0, -1, -float("inf")):
        check_ttl(over)
        with pytest.raises(InvalidArgumentError, match="nothing would ever be served"):
            default_ttl(over)


@pytest.mark.parametrize(
    "wrong",
    [
        {"namespace": 3},
        {"namespace": ""},
        {"namespace": "\ud800"},
        {"parent": None},
        {"parent": "p" * 32},
        {"n_tokens": "1"},
        {"n_tokens": 1.5},
        {"n_tokens": -1},
        {"compute_seconds": "1"},
        {"compute_seconds": None},
        {"meta": 3},
        {"meta": [1]},
        {"meta": b"[1]"},
        {"meta": {"a": {1}}},
    ],
)
def test_a_field_that_is_not_what_a_store_takes_is_named(wrong: dict[str, Any]):
    (name,) = wrong
    with pytest.raises(InvalidArgumentError, match=name):
        check_write(Write(KEY, b"", **wrong))


@pytest.mark.parametrize("value", ["text", 3, ["text"], [b"good", 3], None])
def test_a_value_is_bytes(value: Any):
    with pytest.raises(InvalidArgumentError, match="a value is bytes"):
        byte_views(value)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_buffers_are_joined_in_order(parts: list[bytes]):
    assert join(parts) == b"".join(parts)
    assert join([memoryview(part) for part in parts]) == b"".join(parts)
    assert b"".join(byte_views([bytearray(part) for part in parts])) == b"".join(parts)


@pytest.mark.parametrize("code", ["b", "h", "i", "q", "f", "d"])
@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_numbers_of_any_size_and_step_are_taken_as_their_bytes(code: str, step: int):
    numbers = array.array(code, range(30))
    view = memoryview(numbers)[::step]
    assert join(view) == numbers[::step].tobytes()
    assert sum(len(each) for each in byte_views(view)) == view.nbytes


def test_flat_buffers_are_not_copied():
    value = bytearray(b"value")
    (view,) = byte_views(value)
    value[0] = ord("V")
    assert bytes(view) == b"Value"


@pytest.mark.parametrize(
    ("namespace", "asked", "expected"),
    [
        ("kind/a", None, True),
        ("kind/a", "kind/a", True),
        ("kind/a", "kind/", True),
        ("kind/a", "kind", False),
        ("kind/ab", "kind/a", False),
        ("kinds/a", "kind/", False),
        ("kind/a/b", "kind/a/", True),
        ("kind", "kind/", False),
        ("kind/a", "", False),
    ],
)
def test_a_namespace_is_asked_for_whole_or_up_to_a_slash(namespace: str, asked: str | None, expected: bool):
    assert matches(namespace, asked) is expected
