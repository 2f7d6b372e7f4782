import enum
import json
import math
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.codecs.records import MAX_DEPTH, decode_record, decode_records, encode_record
from lmstash.errors import CorruptEntryError, InvalidArgumentError


def same(left, right):
    """Equality of values, types, float bits and the order of dicts."""
    if type(left) is not type(right):
        return False
    if type(left) is float:
        return struct.pack(">d", left) == struct.pack(">d", right)
    if type(left) in (list, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is dict:
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    return left == right


ANY_TEXT = st.text(st.characters())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | ANY_TEXT
    | st.binary(max_size=20)
)
KEYS = st.recursive(SCALARS | st.sampled_from(["$", "$tuple", "$dict"]), lambda k: st.lists(k, max_size=3).map(tuple))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(st.sampled_from(["$", "$tuple", "$bytes", "$dict", "a"]), inner, max_size=3)
    ),
    max_leaves=15,
)


@given(VALUES)
def test_every_value_comes_back_with_its_types(value):
    encoded = encode_record(value)
    assert same(decode_record(encoded), value)
    assert encode_record(decode_record(encoded)) == encoded
    json.loads(encoded, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": [1, 2.5, None, True, "π", -0.0]}, "": [], "x$": {}},
        [2**63, -(2**64) + 1, 1e308, 5e-324],
        "plain",
        None,
    ],
)
def test_what_json_can_say_stays_plain_json(value):
    assert encode_record(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert same(json.loads(encode_record(value)), value)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (True, 1),
        (1, 1.0),
        (0.0, -0.0),
        ((1,), [1]),
        ({1: 2}, {"1": 2}),
        ({True: 2}, {1: 2}),
        (b"a", "a"),
        (None, "null"),
        ("nan", math.nan),
        ((1,), {"$tuple": [1]}),
        (b"a", {"$bytes": "YQ=="}),
        (math.inf, {"$float": "inf"}),
    ],
)
def test_values_that_look_alike_are_told_apart(left, right):
    assert encode_record(left) != encode_record(right)
    assert same(decode_record(encode_record(left)), left)
    assert same(decode_record(encode_record(right)), right)


def test_unusual_floats_keep_their_bits():
    for bits in (0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000123, 0x7FF0000000000000, 0xFFF0000000000000, 1):
        value = struct.unpack(">d", struct.pack(">Q", bits))[0]
        assert struct.pack(">d", decode_record(encode_record(value))) == struct.pack(">d", value)


def test_numbers_of_any_length_and_lone_surrogates_survive():
    for value in (10**6000, -(10**6000), "\ud800", "\ud83d\ude00", {"\udfff": 1}):
        assert decode_record(encode_record(value)) == value


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [{1}, frozenset(), object(), 1j, np.float64(1), np.int64(1), Colour.RED, Text("a"), bytearray(b"a"), range(3)],
)
def test_other_types_are_refused_wherever_they_are(value):
    for holder in (value, [value], {"a": (value,)}):
        with pytest.raises(InvalidArgumentError, match="convert it first"):
            encode_record(holder)


def nested(depth, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}],
    ids=["list", "tuple", "object", "dict"],
)
def test_nesting_is_kept_up_to_the_limit_and_refused_beyond(wrap):
    value = nested(MAX_DEPTH, wrap)
    assert same(decode_record(encode_record(value)), value)
    for depth in (MAX_DEPTH + 1, 5_000):
        with pytest.raises(InvalidArgumentError, match="nest"):
            encode_record(nested(depth, wrap))


def test_a_value_that_holds_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError, match="hold itself"):
        encode_record(loop)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b"\xff",
        b'"\xff"',
        b"1 2",
        b"NaN",
        b"[Infinity]",
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b'{"a":1,"a":2}',
        b'{"$what":1}',
        b'{"$tuple":1}',
        b'{"$tuple":{"a":1}}',
        b'{"$tuple":[1],"a":2}',
        b'{"a":2,"$tuple":[1]}',
        b'{"$bytes":1}',
        b'{"$bytes":"?"}',
        b'{"$bytes":"\xc3\xa9"}',
        b'{"$int":"xyz"}',
        b'{"$int":["1"]}',
        b'{"$float":"00"}',
        b'{"$float":"zz"}',
        b'{"$float":null}',
        b'{"$str":"/w=="}',
        b'{"$dict":[1]}',
        b'{"$dict":[[1]]}',
        b'{"$dict":[[1,2,3]]}',
        b'{"$dict":[[[],1]]}',
        b'{"$dict":[[1,2],[1,3]]}',
        b'{"$dict":{"a":1}}',
        b'{"$dict":[[{"$tuple":[[]]},1]]}',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_hostile_records_are_damage_and_nothing_else(data):
    for kind in (bytes, bytearray, memoryview):
        with pytest.raises(CorruptEntryError):
            decode_record(kind(data))


@given(st.binary(max_size=60) | st.text('{}[]",:$tuplebdic0123456789e.-\\ ', max_size=60).map(str.encode))
def test_random_bytes_raise_nothing_but_damage(data):
    try:
        value = decode_record(data)
    except CorruptEntryError:
        return
    assert same(decode_record(encode_record(value)), value)


@given(st.lists(VALUES, max_size=6))
def test_many_records_come_back_as_each_by_itself(values):
    assert same(decode_records([encode_record(value) for value in values]), values)


def test_many_and_long_records_are_read_by_parts():
    values = [f"number {number}" for number in range(1500)] + ["😀", *["x" * 2**20] * 32] + ["after"] * 100
    tracemalloc.start()
    try:
        records = [encode_record(value) for value in values]
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert decode_records(records) == values
        assert tracemalloc.get_traced_memory()[1] - before < 1.3 * sum(map(len, records))
    finally:
        tracemalloc.stop()


def test_many_records_may_nest_as_deep_as_one():
    deep = nested(MAX_DEPTH, lambda v: [v])
    assert same(
        decode_records([encode_record(value) for value in (deep, "[{" * MAX_DEPTH, deep)]), [deep, "[{" * 200, deep]
    )
    with pytest.raises(CorruptEntryError):
        decode_records([b"1", b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)])


@given(
    st.lists(VALUES, max_size=3),
    st.binary(max_size=20) | st.text('{}[]",:$tuplebdic0123456789e.-\\ ', max_size=20).map(str.encode),
    st.lists(VALUES, max_size=3),
)
def test_one_that_is_no_record_never_lends_another_its_value(before, data, after):
    records = [*map(encode_record, before), data, *map(encode_record, after)]
    try:
        values = decode_records(records)
    except CorruptEntryError:
        return
    assert same(values, [decode_record(each) for each in records])


@pytest.mark.parametrize("data", [b"", b"1,2", b"1],[2", b'"', b'",', b"[", b"]", b"\xff", b"NaN", b'{"$what":1}'])
def test_one_that_is_no_record_shows_among_many(data):
    for kind in (bytes, memoryview):
        for records in ([data], [b"1", data], [data, b'"a"'], [b'"a"', data, b"[3]"]):
            with pytest.raises(CorruptEntryError):
                decode_records([kind(each) for each in records])


def test_deep_values_on_a_nearly_full_stack_are_refused_in_words():
    value = nested(MAX_DEPTH, lambda v: (v,))
    encoded = encode_record(value)

    def at_the_end_of_the_stack(depth):
        if depth:
            return at_the_end_of_the_stack(depth - 1)
        with pytest.raises(InvalidArgumentError, match="stack"):
            encode_record(value)
        with pytest.raises(CorruptEntryError):
            decode_record(encoded)
        return True

    used = len(__import__("inspect").stack())
    assert at_the_end_of_the_stack(sys.getrecursionlimit() - used - 150)
