import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmstash.codecs.compression import compress, decompress
from lmstash.codecs.tensors import decode_tensors, encode_tensors
from lmstash.errors import CorruptEntryError, InvalidArgumentError, MissingDependencyError

zstandard = pytest.importorskip("zstandard")
torch.set_num_threads(1)


@given(st.binary(max_size=300), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 3, 19]))
def test_bytes_come_back_in_memory_of_their_own(data, element_size, level):
    packed = compress(data, level, element_size=element_size)
    for buffer in (packed, bytearray(packed), memoryview(packed)):
        plain = decompress(buffer, len(data))
        assert bytes(plain) == data
        assert not plain.readonly


def test_several_buffers_count_as_one():
    assert bytes(decompress(compress([b"ab", memoryview(b"cd"), bytearray(b"e")]), 5)) == b"abcde"


def test_shuffled_tensors_take_less_room_and_decode_without_a_copy():
    tensor = torch.randn(64, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    buffers = encode_tensors({"x": tensor})
    plain, shuffled = compress(buffers), compress(buffers, element_size=2)
    assert len(shuffled) < len(plain) < sum(map(len, buffers))
    whole = decompress(shuffled, 1 << 20)
    decoded = decode_tensors(whole, framework="torch")["x"]
    assert torch.equal(decoded, tensor)
    decoded.zero_()
    assert not any(whole[-tensor.numel() * 2 :])


def test_more_bytes_than_allowed_are_refused_before_they_are_made():
    bomb = compress(bytes(50_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(CorruptEntryError, match="claim"):
        decompress(bomb, 1_000_000)
    assert len(decompress(bomb, 50_000_000)) == 50_000_000


def frame(data, **options):
    return b"\x01" + zstandard.ZstdCompressor(**options).compress(data)


def lying_frame():
    """A frame whose stated size is smaller than what it holds."""
    honest = bytearray(frame(bytes(200)))
    position = honest.index(200, 6)
    honest[position] = 100
    return bytes(honest)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x00" + frame(b"a")[1:],
        b"\x03" + frame(b"a")[1:],
        b"\x01not zstd at all",
        frame(b"abc" * 50)[:-1],
        frame(b"abc" * 50)[:9],
        frame(b"abc") + b"x",
        frame(b"abc") + frame(b"def")[1:],
        frame(b"abc", write_content_size=False),
        lying_frame(),
    ],
    ids=["empty", "no frame", "size 0", "size 3", "other", "cut", "cut early", "more", "two", "unsized", "lying"],
)
def test_damaged_bytes_are_damage_and_nothing_else(data):
    with pytest.raises(CorruptEntryError):
        decompress(data, 1000)


@given(st.data())
def test_mutated_bytes_raise_nothing_but_damage(data):
    packed = bytearray(compress(bytes(range(100)) * 3, element_size=2))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        plain = decompress(packed, 1000)
    except CorruptEntryError:
        return
    assert len(plain) <= 1000


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 23}, {"element_size": 3}, {"element_size": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InvalidArgumentError):
        compress(b"a", **options)


def test_without_zstandard_the_message_names_the_extra(monkeypatch):
    packed = compress(b"a")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for call in (lambda: compress(b"a"), lambda: decompress(packed, 10)):
        with pytest.raises(MissingDependencyError, match=r"lmstash\[zstd\]"):
            call()
