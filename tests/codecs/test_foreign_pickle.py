"""Foreign pickles are followed, never loaded: plain values come out, calls are only described, the rest is refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmstash.codecs.foreign_pickle import MAX_TEXT_BYTES, Made, Name, Referred, Span, follow
from lmstash.errors import CorruptEntryError

ORDERED = Name("collections", "OrderedDict")


def described(data: bytes, *names: Name, **options: Any) -> Any:
    return follow(io.BytesIO(data), len(data), names=names, **options)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: (
        st.tuples(inner)
        | st.lists(inner, max_size=4)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=30,
)


@given(PLAIN, st.sampled_from([2, 3, 4, 5]))
def test_plain_values_come_out_as_they_were(value: Any, protocol: int):
    assert described(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("n_bytes", [0, 3, 300, 70_000])
def test_bytes_are_passed_over(n_bytes: int, protocol: int):
    value = os.urandom(n_bytes)
    for kind in (bytes, bytearray) if protocol == 5 else (bytes,):
        data = pickle.dumps((kind(value), 7), protocol=protocol)
        span, seven = described(data)
        assert seven == 7
        assert isinstance(span, Span)
        assert data[span.start : span.start + span.n_bytes] == value


def test_bytes_that_are_passed_over_are_never_read():
    class Counting(io.BytesIO):
        n_read = 0

        def read(self, n_bytes: int | None = -1, /) -> bytes:
            data = super().read(n_bytes)
            self.n_read += len(data)
            return data

    data = pickle.dumps(("before", bytes(10_000_000), "after"), protocol=5)
    file = Counting(data)
    assert follow(file, len(data), names=())[2] == "after"
    assert file.n_read < 100


def test_calls_are_described_and_not_made():
    value = collections.OrderedDict()
    made = described(pickle.dumps(value, protocol=4), ORDERED)
    assert isinstance(made, Made)
    assert (made.function, made.arguments, made.state) == (ORDERED, (), None)


class Stated:
    def __init__(self) -> None:
        self.number = 5


def test_states_and_persistent_ids_are_described():
    module = Stated.__module__
    [made, again] = described(pickle.dumps((Stated(),) * 2, protocol=4), Name(module, "Stated"))
    assert made is again
    assert made.state == {"number": 5}

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", 3) if obj == "thing" else None

    Pickler(out := io.BytesIO(), protocol=2).dump("thing")
    assert described(out.getvalue()) == Referred(("storage", 3))


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_global_that_was_not_expected_is_refused_and_not_called(protocol: int, tmp_path: Path):
    marker = tmp_path / "was-run"
    for function, *arguments in (
        (os.system, f"touch {marker}"),
        (eval, f"open({str(marker)!r}, 'w')"),
        (subprocess.check_call, ["touch", str(marker)]),
        (Path.touch, marker),
    ):
        with pytest.raises(CorruptEntryError, match="which plain values do not need"):
            described(pickle.dumps(Call(function, *arguments), protocol=protocol), ORDERED)
    assert not marker.exists()


def test_a_global_below_an_expected_one_is_refused():
    for data in (b"\x80\x04\x8c\x0bcollections\x8c\x0fOrderedDict.mro\x93.", b"\x80\x02ccollections\nabc\n."):
        with pytest.raises(CorruptEntryError, match=r"mentions 'collections\."):
            described(data, ORDERED)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N.",
        b"\x80",
        b"\x80\x04",
        b"\x80\x04.",
        b"\x80\x00N.",
        b"\x80\x06N.",
        b"\x80\x04N",
        b"\x80\x04NN.",
        b"\x80\x04N.N",
        b"\x80\x04(.",
        b"\x80\x04((t",
        b"\x80\x04t.",
        b"\x80\x04(\x85.",
        b"\x80\x04\x94.",
        b"\x80\x04(\x94.",
        b"\x80\x04h\x00.",
        b"\x80\x04}K\x01K\x02s.",
        b"\x80\x04}N(u.",
        b"\x80\x04}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.",
        b"\x80\x04NNb.",
        b"\x80\x04N)R.",
        b"\x80\x04ccollections\nOrderedDict\nNR.",
        b"\x80\x04ccollections\nOrderedDict",
        b"\x80\x04X\x01\x00\x00\x00\xff.",
        b"\x80\x04NN\x93.",
        b"\x80\x04I1\n.",
        b"\x80\x04Na.",
        b"\x80\x04)Na.",
        b"\x80\x04}(Ne.",
        b"\x80\x04]G\x00.",
        b"\x80\x04V\n.",
        b"\x80\x04i\n\n.",
        b"\x80\x04\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x05N\x98.",
    ],
)
def test_pickles_that_make_no_sense_are_refused(data: bytes):
    with pytest.raises(CorruptEntryError):
        described(data, ORDERED)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05B" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x05\x8e" + struct.pack("<Q", 2**63) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**64 - 1) + b"x.",
        b"\x80\x05X" + struct.pack("<I", 2**31) + b"x.",
        b"\x80\x05\x8d" + struct.pack("<Q", 2**31) + b"x.",
        b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"\x80\x05\x8a\xff" + bytes(255) + b".",
        b"\x80\x05\x8b" + struct.pack("<i", 2**30) + bytes(8) + b".",
        b"\x80\x05X" + struct.pack("<I", MAX_TEXT_BYTES + 1) + bytes(MAX_TEXT_BYTES + 1) + b".",
        b"\x80\x05c" + b"m" * 10_000 + b"\nn\n.",
    ],
)
def test_lengths_beyond_the_end_or_the_limits_are_refused(data: bytes):
    with pytest.raises(CorruptEntryError):
        described(data)


def test_more_opcodes_than_allowed_are_refused():
    data = pickle.dumps(tuple(range(500)), protocol=4)
    assert len(described(data, max_opcodes=600)) == 500
    with pytest.raises(CorruptEntryError, match="more than 400 opcodes"):
        described(data, max_opcodes=400)


def test_a_memo_bomb_costs_its_opcodes_and_no_more():
    """Each step doubles the tree below it: 2**300 leaves in 1,500 bytes. It comes out as 300 tuples."""
    tree = described(b"\x80\x04Nq\x00" + b"h\x00\x86q\x00" * 300 + b".", max_opcodes=2000)
    depth = 0
    while tree is not None:
        assert tree[0] is tree[1]
        tree, depth = tree[0], depth + 1
    assert depth == 300


@given(st.binary(max_size=300))
def test_any_bytes_are_followed_or_refused(data: bytes):
    try:
        described(b"\x80\x05" + data, ORDERED)
    except CorruptEntryError:
        return


SAMPLE = pickle.dumps(
    (collections.OrderedDict(), {"a": (1, 2**40, None, True), "b": "text" * 20}, bytes(40), bytearray(3)), protocol=5
)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255), st.integers(0, 3))
def test_changed_and_cut_pickles_are_followed_or_refused(place: int, change: int, way: int):
    data = bytearray(SAMPLE)
    if way == 0:
        del data[place:]
    elif way == 1:
        data.insert(place, change)
    else:
        data[place] ^= change
    try:
        described(bytes(data), ORDERED)
    except CorruptEntryError:
        return
