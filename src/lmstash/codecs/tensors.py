"""Tensors of torch and numpy as bytes and back, bit for bit, in the safetensors layout (see `header.py`).

Encoding copies nothing that lies contiguous in host memory; decoding gives views onto the caller's buffer. Nothing is
ever unpickled. All functions may be called from any thread. torch is imported only when torch tensors are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np

from lmstash.codecs.header import ITEM_BYTES, MAX_DIMENSIONS, Buffer, Layout, build_header, data_order, read_layout
from lmstash.codecs.header import view_of as _view_of
from lmstash.errors import InvalidArgumentError, UnsupportedFormatError

if TYPE_CHECKING:
    import torch

_UINT8 = np.dtype(np.uint8)

_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": _UINT8,
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
_NUMPY_CODES = {dtype: code for code, dtype in _NUMPY_DTYPES.items()}

# Types that numpy itself has not; the package ml_dtypes gives numpy arrays of them, under these names.
_EXTENDED_NAMES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_EXTENDED_CODES = {name: code for code, name in _EXTENDED_NAMES.items()}

_TORCH_NAMES = {
    **_EXTENDED_NAMES,
    **{code: dtype.name for code, dtype in _NUMPY_DTYPES.items()},
}


def encode_tensors(
    tensors: Mapping[str, torch.Tensor | np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> list[Buffer]:
    """Return buffers that, written one after another, are one safetensors encoding of `tensors`.

    Contiguous tensors in host memory are not copied: the buffers show their memory (and keep it alive), so write them
    before the tensors change. Others are copied once, tensors on a device to the host. A small tensor costs about 4 us.

    Args:
        tensors: by name; the order is kept.
        metadata: text kept in the header.

    Raises:
        InvalidArgumentError: a value is no plain dense tensor (sparse, quantised, nested, masked, meta, object arrays
            and subclasses are refused), its dtype is not one of `header.ITEM_BYTES`, or a name is not valid.
    """
    specs: list[tuple[str, str, tuple[int, ...]]] = []
    payloads: list[memoryview] = []
    if not isinstance(tensors, Mapping):
        raise InvalidArgumentError(f"tensors come by name, as {{'values': tensor}}; got {type(tensors).__name__}")
    for name, value in tensors.items():
        module = type(value).__module__
        if module == "torch" or module == "torch.nn.parameter":
            dtype, array = _from_torch(name, cast("torch.Tensor", value))
        else:
            dtype, array = _from_numpy(name, cast("np.ndarray", value))
        shape = tuple(value.shape)
        if len(shape) > MAX_DIMENSIONS:
            raise _refusal(name, value, f"reshape it to at most {MAX_DIMENSIONS} dimensions")
        specs.append((name, dtype, shape))
        payloads.append(array.reshape(-1).view(_UINT8).data)
    header = build_header(specs, metadata)
    if len(payloads) > 1:
        payloads = [payloads[position] for position in data_order([dtype for _, dtype, _ in specs])]
    return [header, *(payload for payload in payloads if payload.nbytes)]


def decode_header(buffer: Buffer) -> Layout:
    """Return names, dtypes, shapes and offsets of what `buffer` holds, without reading the tensors.

    Raises:
        CorruptEntryError: the bytes are not one whole, gapless safetensors encoding.
    """
    return read_layout(_view_of(buffer))


@overload
def decode_tensors(buffer: Buffer, *, framework: Literal["torch"], copy: bool = False) -> dict[str, torch.Tensor]: ...
@overload
def decode_tensors(buffer: Buffer, *, framework: Literal["numpy"], copy: bool = False) -> dict[str, np.ndarray]: ...
def decode_tensors(buffer: Buffer, *, framework: str, copy: bool = False) -> Any:
    """Return the tensors in `buffer` by name, in the order in which they were given to `encode_tensors`.

    Without `copy` they are views: they share (and keep alive) the memory of `buffer`, and writing into one writes into
    it. From a read-only buffer numpy arrays are read-only views and torch tensors copies, since torch cannot protect
    memory. Tensors that are not aligned to their elements are copied for torch. A small tensor costs 2-4 us.

    Args:
        buffer: exactly one encoding.
        framework: "torch" (on the CPU) or "numpy".
        copy: give each tensor writable memory of its own.

    Raises:
        CorruptEntryError: the bytes are not one whole, gapless safetensors encoding.
        InvalidArgumentError: `framework` is neither of the two, or numpy has no such dtype and ml_dtypes is missing.
        UnsupportedFormatError: the installed torch has no such dtype.
    """
    view = _view_of(buffer)
    layout = read_layout(view)
    if framework == "torch":
        return _to_torch(view, layout, copy or view.readonly)
    if framework == "numpy":
        return _to_numpy(view, layout, copy)
    raise InvalidArgumentError(f"framework is 'torch' or 'numpy'; got {framework!r}.")


def numpy_dtype(code: str) -> np.dtype[Any]:
    """Return the numpy dtype for a safetensors dtype name.

    Raises:
        InvalidArgumentError: numpy has none, and the package ml_dtypes that would bring it is not installed.
    """
    known = _NUMPY_DTYPES.get(code)
    return known if known is not None else _extended_dtype(code)


def torch_dtype(code: str) -> torch.dtype:
    """Return the torch dtype for a safetensors dtype name.

    Raises:
        UnsupportedFormatError: the installed torch has none.
    """
    try:
        return _torch_dtypes()[code]
    except KeyError:
        raise UnsupportedFormatError(
            f"The installed torch has no dtype {_TORCH_NAMES[code]}: upgrade torch to read this tensor."
        ) from None


@cache
def _torch_dtypes() -> dict[str, torch.dtype]:
    import torch

    return {code: getattr(torch, name) for code, name in _TORCH_NAMES.items() if hasattr(torch, name)}


@cache
def _torch_codes() -> dict[torch.dtype, tuple[str, torch.dtype | None]]:
    """For each torch dtype its safetensors name, and the dtype of the same width to view it as if numpy lacks it."""
    import torch

    wide, narrow = torch.int16, torch.uint8
    return {
        dtype: (code, None if code in _NUMPY_DTYPES else wide if ITEM_BYTES[code] == 2 else narrow)
        for code, dtype in _torch_dtypes().items()
    }


@cache
def _extended_dtype(code: str) -> np.dtype[Any]:
    name = _EXTENDED_NAMES[code]
    try:
        import ml_dtypes  # pyright: ignore[reportMissingImports]

        return np.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError):
        raise InvalidArgumentError(
            f"numpy has no dtype {name}: read with framework='torch', or install ml_dtypes."
        ) from None


def _from_torch(name: str, tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    """Return the dtype name and a contiguous array over the memory of `tensor` (or of a copy)."""
    if type(tensor).__name__ not in ("Tensor", "Parameter"):
        raise _refusal(name, tensor, "pass a plain torch.Tensor")
    known = _torch_codes().get(tensor.dtype)
    if known is None:
        raise _refusal(name, tensor, f"convert it from {tensor.dtype} to a dtype that safetensors has")
    code, stand_in = known
    try:
        array = (tensor if stand_in is None else tensor.view(stand_in)).numpy()
    except (RuntimeError, TypeError):
        # Needs work: gradients, another device, a lazy conjugate or negation, or it cannot be stored at all.
        array = _dense(name, tensor, stand_in)
    return code, array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _dense(name: str, tensor: torch.Tensor, stand_in: torch.dtype | None) -> np.ndarray:
    import torch

    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type == "meta":
        raise _refusal(name, tensor, "make it a dense tensor with values first (for instance .to_dense())")
    try:
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        return (tensor if stand_in is None else tensor.view(stand_in)).numpy()
    except (RuntimeError, TypeError) as error:
        raise _refusal(name, tensor, f"its values cannot be read ({error})") from error


def _from_numpy(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the dtype name and a contiguous little-endian array over the memory of `array` (or of a copy)."""
    if type(array) is not np.ndarray:
        if not isinstance(array, np.memmap | np.generic):
            raise _refusal(name, array, "pass a plain torch.Tensor or numpy.ndarray")
        array = np.asarray(array)
    dtype = array.dtype
    if not dtype.isnative:
        dtype = dtype.newbyteorder("=")
        array = array.byteswap().view(dtype)
    code = _NUMPY_CODES.get(dtype)
    if code is None and dtype.type.__module__ == "ml_dtypes":
        code = _EXTENDED_CODES.get(dtype.name)
    if code is None:
        raise _refusal(name, array, f"convert it from {dtype} to a dtype that safetensors has")
    return code, array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _refusal(name: str, value: object, advice: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"Tensor {name!r} ({type(value).__module__}.{type(value).__qualname__}): {advice}.")


def _to_torch(view: memoryview, layout: Layout, copy: bool) -> dict[str, torch.Tensor]:
    import torch

    frombuffer = torch.frombuffer
    tensors: dict[str, torch.Tensor] = {}
    for name, spec in layout.tensors.items():
        dtype = torch_dtype(spec.dtype)
        if not spec.count:
            tensors[name] = torch.empty(spec.shape, dtype=dtype, device="cpu")
            continue
        if copy:
            tensor = frombuffer(bytearray(view[spec.offset : spec.offset + spec.nbytes]), dtype=dtype)
        else:
            tensor = frombuffer(view, dtype=dtype, count=spec.count, offset=spec.offset)
            if tensor.data_ptr() % ITEM_BYTES[spec.dtype]:
                tensor = frombuffer(bytearray(view[spec.offset : spec.offset + spec.nbytes]), dtype=dtype)
        tensors[name] = tensor if len(spec.shape) == 1 else tensor.view(spec.shape)
    return tensors


def _to_numpy(view: memoryview, layout: Layout, copy: bool) -> dict[str, np.ndarray]:
    # Over an array that frombuffer made: np.ndarray alone would let go of the view, and a bytearray could be resized.
    whole = np.frombuffer(view, _UINT8)
    arrays: dict[str, np.ndarray] = {}
    for name, spec in layout.tensors.items():
        array = np.ndarray(spec.shape, numpy_dtype(spec.dtype), whole, spec.offset)
        arrays[name] = array.copy() if copy else array
    return arrays
