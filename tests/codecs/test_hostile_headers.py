import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmstash.codecs.tensors import decode_header, decode_tensors, encode_tensors
from lmstash.errors import CorruptEntryError


def buffer_with(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FOUR = bytes(4)
HOSTILE = {
    "nothing": b"",
    "short": b"1234567",
    "huge header length": b"\xff" * 8 + b"{}",
    "header beyond the buffer": (3).to_bytes(8, "little") + b"{}",
    "empty header": buffer_with(b""),
    "not JSON": buffer_with(b"{x}"),
    "not an object": buffer_with(b"[]"),
    "number": buffer_with(b"1"),
    "not UTF-8": buffer_with(b'{"\xff": 1}'),
    "UTF-16": buffer_with("{}".encode("utf-16")),
    "byte order mark": buffer_with("\ufeff{}".encode()),
    "lone surrogate": buffer_with(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "deep": buffer_with(b'{"a":' + b"[" * 500_000, FOUR),
    "long number": buffer_with(b'{"a":' + b"9" * 10_000 + b"}", FOUR),
    "two objects": buffer_with(b"{}{}"),
    "duplicate tensor": buffer_with(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        FOUR,
    ),
    "duplicate field": buffer_with(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "entry is a list": buffer_with({"a": []}),
    "entry is null": buffer_with({"a": None}),
    "field missing": buffer_with({"a": {"dtype": "F32", "shape": [1]}}, FOUR),
    "field too many": buffer_with({"a": {**entry(), "more": 1}}, FOUR),
    "unknown dtype": buffer_with({"a": entry("F31")}, FOUR),
    "dtype is a list": buffer_with({"a": entry(["F32"])}, FOUR),
    "shape is text": buffer_with({"a": {**entry(), "shape": "1"}}, FOUR),
    "shape of floats": buffer_with({"a": entry(shape=(1.0,))}, FOUR),
    "shape of bools": buffer_with({"a": entry(shape=(True,))}, FOUR),
    "negative shape": buffer_with({"a": entry(shape=(-1, -1))}, FOUR),
    "huge shape": buffer_with({"a": entry(shape=(2**62, 2**62, 4))}, FOUR),
    "shape that wraps to the right size": buffer_with({"a": entry(shape=(2**62 + 1,), offsets=(0, 4))}, FOUR),
    "huge beside zero": buffer_with({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}),
    "too many dimensions": buffer_with({"a": entry(shape=[1] * 1000)}, FOUR),
    "negative offsets": buffer_with({"a": entry(offsets=(-4, 0))}, FOUR),
    "reversed offsets": buffer_with({"a": entry(offsets=(4, 0))}, FOUR),
    "three offsets": buffer_with({"a": entry(offsets=(0, 4, 8))}, FOUR),
    "float offsets": buffer_with({"a": entry(offsets=(0.0, 4.0))}, FOUR),
    "offsets do not fit the shape": buffer_with({"a": entry(offsets=(0, 3))}, bytes(3)),
    "data missing": buffer_with({"a": entry()}, bytes(3)),
    "data too long": buffer_with({"a": entry()}, bytes(5)),
    "data without tensors": buffer_with({}, bytes(1)),
    "hole": buffer_with({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
    "hole at the start": buffer_with({"a": entry(offsets=(4, 8))}, bytes(8)),
    "overlap": buffer_with({"a": entry(), "b": entry(offsets=(0, 4))}, FOUR),
    "overlap and bytes nobody owns": buffer_with({"a": entry(), "b": entry(offsets=(0, 4))}, bytes(8)),
    "half overlap": buffer_with({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)),
    "metadata is a list": buffer_with({"__metadata__": []}),
    "metadata of numbers": buffer_with({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("buffer", [pytest.param(b, id=name) for name, b in HOSTILE.items()])
def test_hostile_headers_are_damage_and_nothing_else(buffer):
    for framework in ("torch", "numpy"):
        with pytest.raises(CorruptEntryError):
            decode_tensors(buffer, framework=framework)
    with pytest.raises(CorruptEntryError):
        decode_header(bytearray(buffer))


VALID = b"".join(
    encode_tensors(
        {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.ones(2), "c": np.ones((0, 2))}, metadata={"k": "v"}
    )
)


def read_everything(buffer):
    """What a reader does with bytes that it cannot trust: damage is the only error there may be."""
    try:
        decoded = decode_tensors(buffer, framework="numpy")
        layout = decode_header(buffer)
    except CorruptEntryError:
        return False
    assert sum(array.nbytes for array in decoded.values()) == len(buffer) - layout.data_start
    assert all(array.tobytes() is not None for array in decoded.values())
    return True


def test_the_fuzzed_encoding_is_valid_to_begin_with():
    assert read_everything(VALID)


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_damage(data):
    read_everything(data)
    read_everything(buffer_with(data))


@settings(max_examples=400)
@given(st.data())
def test_mutated_encodings_raise_nothing_but_damage(data):
    mutated = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "insert", "delete", "cut"]))
        at = data.draw(st.integers(0, max(len(mutated) - 1, 0)))
        if kind == "flip" and mutated:
            mutated[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            mutated[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        elif kind == "delete":
            del mutated[at : at + 2]
        else:
            del mutated[at:]
    read_everything(bytes(mutated))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "BF16", "U8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.dictionaries(
    st.text(max_size=4) | st.just("__metadata__"),
    JSON
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["BOOL", "I8", "F16", "F32", "I64", "C64", "X"]) | JSON,
            "shape": st.lists(st.integers(-1, 2**64) | st.sampled_from([0, 1, 2]), max_size=5) | JSON,
            "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
        }
    ),
    max_size=3,
)


@settings(max_examples=400)
@given(ENTRIES, st.integers(0, 64))
def test_well_formed_json_that_lies_raises_nothing_but_damage(entries, n_data):
    read_everything(buffer_with(entries, bytes(n_data)))
