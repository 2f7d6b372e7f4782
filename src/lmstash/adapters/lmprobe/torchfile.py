"""Reads a single plain tensor out of a `.pt` file without unpickling anything.

A `.pt` file of torch >= 1.6 is a zip archive: `data.pkl` describes the tensor, `data/<n>` holds the storage's bytes.
`lmstash.codecs.foreign_pickle` follows the opcodes of `data.pkl`; whatever does not describe one plain tensor is
refused. No name in the file is ever imported or called; torch's own loader is not used.
"""

from __future__ import annotations

import errno
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lmstash.codecs.foreign_pickle import Made, Name, Referred, follow
from lmstash.errors import CorruptEntryError

if TYPE_CHECKING:
    from torch import Tensor

MAX_DESCRIPTION_BYTES = 64 * 1024
"""`data.pkl` of one tensor takes a few hundred bytes."""

_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
_NAMES = frozenset({_REBUILD, Name("collections", "OrderedDict"), *(Name("torch", kind) for kind in _DTYPES)})


class _Storage(NamedTuple):
    dtype: str
    member: str
    n_items: int


class _Plan(NamedTuple):
    """What `_rebuild_tensor_v2` would have been called with."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_tensor(path: Path) -> Tensor:
    """Return the tensor that `torch.save(tensor, path)` wrote, contiguous, in memory of its own.

    Cost: one read of the file (a view drags its whole storage along, as torch wrote it).

    Raises:
        CorruptEntryError: The file is damaged, of the format before torch 1.6, or holds more than one plain tensor.
        OSError: The file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            plan = _describe(_read(archive, members, "data.pkl", MAX_DESCRIPTION_BYTES))
            if "byteorder" in members and _read(archive, members, "byteorder", 16) != b"little":
                raise CorruptEntryError("its numbers are big-endian; convert it with torch.load and torch.save")
            raw = _read(archive, members, f"data/{plan.storage.member}", None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a directory that points before the file's beginning makes of a seek
            raise
        raise CorruptEntryError(f"{path} is damaged: {error}") from error
    except zipfile.BadZipFile as error:
        raise CorruptEntryError(f"{path} is damaged, or older than torch 1.6: {error}") from error
    except CorruptEntryError as error:
        raise CorruptEntryError(f"{path} is not a plain tensor file: {error}") from error
    except (ValueError, OverflowError, NotImplementedError, RuntimeError, EOFError) as error:
        raise CorruptEntryError(f"{path} is not a plain tensor file: {error}") from error
    return _build(path, plan, bytearray(raw))


def _read(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, limit: int | None) -> bytes:
    info = members.get(name)
    if info is None:
        raise CorruptEntryError(f"has no member {name!r}")
    if info.compress_type != zipfile.ZIP_STORED or (limit is not None and info.file_size > limit):
        raise CorruptEntryError(f"member {name!r} is compressed or too large ({info.file_size:,} bytes)")
    return archive.read(info)


def _build(path: Path, plan: _Plan, raw: bytearray) -> Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, plan.storage.dtype)
    if len(raw) != plan.storage.n_items * dtype.itemsize:
        raise CorruptEntryError(f"{path}: {len(raw):,} bytes where {plan.storage.n_items:,} x {dtype} were announced")
    if 0 in plan.shape:
        return torch.empty(plan.shape, dtype=dtype)
    last = plan.offset + sum((size - 1) * stride for size, stride in zip(plan.shape, plan.strides, strict=True))
    if last >= plan.storage.n_items:
        raise CorruptEntryError(f"{path}: the tensor reaches past the end of its storage")
    flat = torch.frombuffer(raw, dtype=dtype)
    return flat.as_strided(plan.shape, plan.strides, plan.offset).clone(memory_format=torch.contiguous_format)


def _describe(description: bytes) -> _Plan:
    """Return what `data.pkl` describes, if it is one plain tensor."""
    match follow(BytesIO(description), len(description), names=_NAMES):
        case Made(function, (Referred() as stored, offset, tuple() as shape, tuple() as strides, _, _), None) if (
            function == _REBUILD and len(shape) == len(strides)
        ):
            numbers = (offset, *shape, *strides)
            if all(type(number) is int and 0 <= number < 2**48 for number in numbers):
                return _Plan(_storage(stored), offset, shape, strides)
    raise CorruptEntryError("it holds something other than one plain tensor")


def _storage(stored: Referred) -> _Storage:
    match stored.id:
        case ("storage", Name("torch", kind), str(member), str(), int(n_items)) if kind in _DTYPES and n_items >= 0:
            return _Storage(_DTYPES[kind], member, n_items)
    raise CorruptEntryError("it refers to an unknown kind of storage")
