import gc
import itertools
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmstash.codecs.header import ITEM_BYTES, MAX_DIMENSIONS
from lmstash.codecs.tensors import decode_header, decode_tensors, encode_tensors, torch_dtype
from lmstash.errors import InvalidArgumentError

torch.set_num_threads(1)

TORCH_CODES = sorted(ITEM_BYTES)
NUMPY_CODES = ["BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "F32", "F64", "C64"]
NUMPY_TYPES = dict(zip(NUMPY_CODES, ["?", "B", "b", "h", "H", "i", "I", "q", "Q", "e", "f", "d", "F"], strict=True))
SHAPES = [(), (1,), (7,), (0,), (3, 0, 2), (2, 3, 5), (64, 9)]


def joined(tensors, **kw):
    return b"".join(encode_tensors(tensors, **kw))


def random_bytes(nbytes, boolean):
    bits = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    return bits & 1 if boolean else bits


def random_torch(code, shape):
    """Any bit pattern at all: NaN payloads, denormals and negative zeros come up by themselves."""
    dtype = torch_dtype(code)
    count = int(np.prod(shape))
    bits = random_bytes(count * ITEM_BYTES[code], code == "BOOL")
    return torch.frombuffer(bytearray(bits), dtype=dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def bits_of(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert bits_of(ours) == bits_of(theirs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("code", TORCH_CODES)
def test_torch_tensors_come_back_bit_for_bit(code, shape):
    tensor = random_torch(code, shape)
    encoded = joined({"x": tensor})
    for buffer, copy in itertools.product((bytearray(encoded), encoded), (False, True)):
        decoded = decode_tensors(buffer, framework="torch", copy=copy)
        assert list(decoded) == ["x"]
        assert_same(decoded["x"], tensor)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("code", NUMPY_CODES)
def test_numpy_arrays_come_back_bit_for_bit_in_either_framework(code, shape):
    dtype = np.dtype(NUMPY_TYPES[code])
    count = int(np.prod(shape))
    array = random_bytes(count * dtype.itemsize, code == "BOOL").view(dtype).reshape(shape)
    encoded = joined({"x": array})
    for copy in (False, True):
        decoded = decode_tensors(encoded, framework="numpy", copy=copy)["x"]
        assert decoded.dtype == dtype
        assert decoded.shape == shape
        assert decoded.tobytes() == array.tobytes()
    assert bits_of(decode_tensors(encoded, framework="torch")["x"]) == array.tobytes()


@pytest.mark.parametrize("bits", [0x7FA00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000])
def test_awkward_floats_keep_their_bits(bits):
    array = np.array([bits], np.uint32).view(np.float32)
    swapped = np.array([bits], ">u4").view(">f4")
    for value in (array, torch.from_numpy(array), swapped):
        assert decode_tensors(joined({"x": value}), framework="numpy")["x"].view(np.uint32)[0] == bits


def test_big_endian_arrays_are_converted():
    array = np.arange(12, dtype=">i2").reshape(3, 4)
    decoded = decode_tensors(joined({"x": array}), framework="numpy")["x"]
    assert decoded.dtype == np.int16
    assert decoded.dtype.isnative
    assert (decoded == array).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_views_of_larger_storages_keep_only_what_they_show(dtype):
    base = torch.randn(8, 10).to(dtype)
    views = {"t": base.t(), "rows": base[2:5], "columns": base[:, 3], "steps": base[::2, ::3], "one": base[1, 1]}
    views["expanded"] = base[:1].expand(4, 10)
    encoded = joined(views)
    assert (
        len(encoded) < decode_header(encoded).data_start + sum(v.numel() * v.element_size() for v in views.values()) + 1
    )
    decoded = decode_tensors(bytearray(encoded), framework="torch")
    for name, view in views.items():
        assert_same(decoded[name], view)


def test_numpy_views_come_back_as_shown():
    base = np.arange(60, dtype=np.float64).reshape(6, 10)
    for view in (
        base.T,
        base[::-1],
        base[:, ::-2],
        base[1:3, 4:],
        np.asfortranarray(base),
        np.broadcast_to(base[0], (3, 10)),
    ):
        assert (decode_tensors(joined({"x": view}), framework="numpy")["x"] == view).all()


def test_tensors_in_a_graph_lazy_views_and_parameters_are_taken_by_value():
    weight = torch.nn.Parameter(torch.randn(4))
    half = torch.randn(4, dtype=torch.bfloat16, requires_grad=True)
    complex_ = torch.randn(4, dtype=torch.complex64)
    values = {
        "parameter": weight,
        "graph": weight * 2,
        "half": half,
        "conj": complex_.conj(),
        "neg": complex_.conj().imag,
    }
    assert values["conj"].is_conj()
    assert values["neg"].is_neg()
    decoded = decode_tensors(bytearray(joined(values)), framework="torch")
    assert torch.equal(decoded["parameter"], weight.detach())
    assert torch.equal(decoded["graph"], (weight * 2).detach())
    assert torch.equal(decoded["half"], half.detach())
    assert torch.equal(decoded["conj"], complex_.conj().resolve_conj())
    assert torch.equal(decoded["neg"], -complex_.imag)
    with torch.inference_mode():
        inferred = torch.ones(3, dtype=torch.bfloat16)
        assert_same(decode_tensors(bytearray(joined({"x": inferred})), framework="torch")["x"], inferred)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_device_are_moved_to_the_host():
    tensor = torch.randn(5, 6, device="cuda").to(torch.bfloat16)
    assert_same(decode_tensors(bytearray(joined({"x": tensor.t()})), framework="torch")["x"], tensor.t().cpu())


def test_decoding_ignores_a_default_device():
    encoded = bytearray(joined({"x": torch.ones(3), "empty": torch.ones(0, 2)}))
    with torch.device("meta"):
        decoded = decode_tensors(encoded, framework="torch")
    assert {tensor.device.type for tensor in decoded.values()} == {"cpu"}
    assert decoded["x"].tolist() == [1, 1, 1]


def test_order_and_metadata_are_kept_and_each_tensor_is_aligned_to_its_elements():
    tensors = {
        "flag": np.ones(3, bool),
        "wide": np.ones(5),
        "odd": np.ones(1, np.uint8),
        "half": np.ones(3, np.float16),
    }
    encoded = joined(tensors, metadata={"model": "π", "n": "1"})
    layout = decode_header(encoded)
    assert list(layout.tensors) == list(tensors) == list(decode_tensors(encoded, framework="numpy"))
    assert dict(layout.metadata) == {"model": "π", "n": "1"}
    assert layout.data_start % 64 == 0
    assert layout.nbytes == len(encoded)
    assert all(spec.offset % ITEM_BYTES[spec.dtype] == 0 for spec in layout.tensors.values())


def test_the_same_tensors_give_the_same_bytes():
    assert joined({"a": np.arange(3), "b": np.ones(2)}) == joined({"a": np.arange(3), "b": np.ones(2)})
    assert joined({"a": np.arange(3)}) != joined({"b": np.arange(3)})


def test_no_tensors_at_all_come_back_as_none():
    assert decode_tensors(joined({}), framework="numpy") == {}
    assert decode_tensors(joined({}, metadata={"a": "b"}), framework="torch") == {}


def test_the_official_package_reads_what_we_write():
    tensors = {code: random_torch(code, (3, 5)) for code in TORCH_CODES} | {
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(2),
    }
    theirs = safetensors.torch.load(joined(tensors, metadata={"made": "here"}))
    assert theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert_same(theirs[name], tensor)


def test_the_official_package_opens_our_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(joined({"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.int8)}, metadata={"k": "v"}))
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"a", "b"}
        assert file.metadata() == {"k": "v"}
        assert file.get_tensor("b").tolist() == [1, 1]


def test_we_read_what_the_official_package_writes():
    tensors = {code: random_torch(code, (5, 3)) for code in TORCH_CODES} | {
        "empty": torch.ones(0, 3),
        "scalar": torch.tensor(2),
    }
    theirs = safetensors.torch.save(tensors, metadata={"made": "there"})
    for buffer in (theirs, bytearray(theirs)):
        ours = decode_tensors(buffer, framework="torch")
        assert ours.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert_same(ours[name], tensor)
    assert dict(decode_header(theirs).metadata) == {"made": "there"}
    arrays = decode_tensors(safetensors.numpy.save({"x": np.arange(7)}), framework="numpy")
    assert arrays["x"].tolist() == list(range(7))


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_tensors_at_odd_addresses_are_read_right(shift):
    encoded = joined({"x": torch.arange(9, dtype=torch.float64), "h": torch.arange(5, dtype=torch.float16)})
    buffer = memoryview(bytearray(shift) + bytearray(encoded))[shift:]
    decoded = decode_tensors(buffer, framework="torch")
    assert decoded["x"].tolist() == list(range(9))
    assert decoded["h"].tolist() == list(range(5))
    assert decoded["x"].data_ptr() % 8 == 0
    assert decode_tensors(buffer, framework="numpy")["x"].tolist() == list(range(9))


def test_decoding_gives_views_of_a_writable_buffer_and_copies_on_request():
    buffer = bytearray(joined({"x": torch.zeros(4)}))
    start = decode_header(buffer).data_start
    view = decode_tensors(buffer, framework="torch")["x"]
    array = decode_tensors(buffer, framework="numpy")["x"]
    owned = decode_tensors(buffer, framework="torch", copy=True)["x"]
    owned_array = decode_tensors(buffer, framework="numpy", copy=True)["x"]
    view[0] = 7
    assert array[0] == 7
    assert np.frombuffer(buffer, np.float32, 1, start)[0] == 7
    assert owned[0] == owned_array[0] == 0


def test_read_only_buffers_cannot_be_written_through():
    encoded = joined({"x": torch.zeros(4), "y": torch.zeros(4)})
    before = bytearray(encoded)
    array = decode_tensors(encoded, framework="numpy")["x"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    tensors = decode_tensors(memoryview(encoded), framework="torch")
    tensors["x"].fill_(1)
    assert tensors["y"].tolist() == [0] * 4
    assert encoded == before


@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_views_keep_the_buffer_alive_and_unresizable(framework):
    buffer = bytearray(joined({"x": np.arange(1000.0)}))
    view = decode_tensors(buffer, framework=framework)["x"]
    with pytest.raises(BufferError):
        buffer.extend(bytes(10_000_000))
    del buffer
    gc.collect()
    assert view.tolist() == list(range(1000))


@pytest.mark.parametrize(
    "tensor", [torch.randn(64), torch.randn(64).bfloat16(), np.ones(64)], ids=["f32", "bf16", "numpy"]
)
def test_encoding_contiguous_tensors_copies_nothing(tensor):
    header, payload = encode_tensors({"x": tensor})
    assert isinstance(header, bytes)
    tensor[0] = 42
    expected = tensor.tobytes() if isinstance(tensor, np.ndarray) else bits_of(tensor)
    assert bytes(payload) == expected


class Subclass(torch.Tensor):
    pass


REFUSED = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(3, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "subclass": lambda: torch.ones(3).as_subclass(Subclass),
    "lazy parameter": lambda: torch.nn.parameter.UninitializedParameter(),
    "complex128": lambda: torch.ones(3, dtype=torch.complex128),
    "too many dimensions": lambda: torch.ones([1] * (MAX_DIMENSIONS + 1)),
    "object": lambda: np.array([object()]),
    "text": lambda: np.array(["a"]),
    "time": lambda: np.array(["2020-01-01"], "M8[s]"),
    "structured": lambda: np.zeros(2, [("a", "f4")]),
    "long double": lambda: np.zeros(2, np.clongdouble),
    "masked": lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    "list": lambda: [1.0, 2.0],
    "number": lambda: 1.0,
    "none": lambda: None,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_exactly_is_refused_by_name(make):
    with pytest.raises(InvalidArgumentError, match="'some name'"):
        encode_tensors({"good": np.ones(1), "some name": make()})


@pytest.mark.parametrize("name", ["__metadata__", 1, None, b"x", "\ud800"])
def test_names_that_no_header_can_hold_are_refused(name):
    with pytest.raises(InvalidArgumentError):
        encode_tensors({name: np.ones(1)})


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": None}, {"a": "\udfff"}])
def test_metadata_is_text_to_text(metadata):
    with pytest.raises(InvalidArgumentError):
        encode_tensors({"x": np.ones(1)}, metadata=metadata)


def test_numpy_scalars_and_memory_maps_are_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(4,))
    mapped[:] = 3
    decoded = decode_tensors(joined({"map": mapped, "mean": mapped.mean()}), framework="numpy")
    assert decoded["map"].tolist() == [3] * 4
    assert decoded["mean"].shape == ()
    assert decoded["mean"] == 3


def test_numpy_without_bfloat16_says_what_to_do():
    encoded = joined({"x": torch.ones(2, dtype=torch.bfloat16)})
    try:
        import ml_dtypes
    except ImportError:
        with pytest.raises(InvalidArgumentError, match="framework='torch'"):
            decode_tensors(encoded, framework="numpy")
    else:
        array = decode_tensors(encoded, framework="numpy")["x"]
        assert array.dtype == ml_dtypes.bfloat16
        assert joined({"x": array}) == encoded


def test_unknown_frameworks_and_buffers_are_the_callers_fault():
    with pytest.raises(InvalidArgumentError, match="'jax'"):
        decode_tensors(joined({}), framework="jax")
    for buffer in ("text", 3, memoryview(bytes(200))[::2]):
        with pytest.raises(InvalidArgumentError, match="contiguous"):
            decode_header(buffer)


def test_numpy_users_never_load_torch():
    program = (
        "import sys, numpy as np; from lmstash.codecs import tensors as t, records, compression, dtypes;"
        "b = b''.join(t.encode_tensors({'x': np.ones(3)})); t.decode_tensors(b, framework='numpy');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


SHAPE_STRATEGY = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(TORCH_CODES), SHAPE_STRATEGY),
        max_size=5,
    )
)
def test_any_mixture_of_tensors_round_trips_and_satisfies_the_official_reader(kinds):
    tensors = {name: random_torch(code, shape) for name, (code, shape) in kinds.items()}
    encoded = joined(tensors)
    ours = decode_tensors(bytearray(encoded), framework="torch")
    theirs = safetensors.torch.load(encoded)
    assert list(ours) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(ours[name], tensor)
        assert_same(theirs[name], tensor)
