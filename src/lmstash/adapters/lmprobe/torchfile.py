"""Reads a single plain tensor out of a `.pt` file without unpickling anything.

A `.pt` file of torch >= 1.6 is a zip archive: `data.pkl` describes the tensor, `data/<n>` holds the storage's bytes.
`pickletools.genops` only splits `data.pkl` into opcodes; the few that `torch.save(tensor)` writes are followed here by
hand, and everything else is refused. No name in the file is ever imported or called; torch's own loader is not used.
"""

from __future__ import annotations

import errno
import pickletools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED_DICT = ("collections", "OrderedDict")
_CONSTANTS: dict[str, Any] = {"NEWFALSE": False, "NEWTRUE": True, "NONE": None}


class _Name(NamedTuple):
    """A global that the description mentions; never imported."""

    module: str
    name: str


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
            plan = _follow(_read(archive, members, "data.pkl", MAX_DESCRIPTION_BYTES))
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
        raise CorruptEntryError(f"{path}: {error}") from error
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


def _follow(description: bytes) -> _Plan:
    """Return what the opcodes of `description` describe, or refuse."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(description):
            name = opcode.name
            if name in ("PROTO", "FRAME"):
                continue
            if name == "STOP":
                break
            if name == "GLOBAL":
                stack.append(_Name(*str(argument).split(" ", 1)))
            elif name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                start = marks.pop() if name == "TUPLE" else len(stack) - int(name[-1])
                if start < 0:
                    raise CorruptEntryError("its description takes more than it gave")
                stack[start:] = [tuple(stack[start:])]
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                arguments = stack.pop()
                stack.append(_reduce(stack.pop(), arguments))
            else:
                raise CorruptEntryError(f"its description uses {name}, which a plain tensor does not need")
    except (IndexError, KeyError, TypeError) as error:
        raise CorruptEntryError(f"its description makes no sense: {error!r}") from error
    if len(stack) != 1 or not isinstance(stack[0], _Plan):
        raise CorruptEntryError("it holds something other than one plain tensor")
    return stack[0]


def _storage(described: Any) -> _Storage:
    match described:
        case ("storage", _Name("torch", kind), str(member), str(), int(n_items)) if kind in _DTYPES and n_items >= 0:
            return _Storage(_DTYPES[kind], member, n_items)
    raise CorruptEntryError(f"it refers to an unknown storage {described!r}")


def _reduce(function: Any, arguments: Any) -> Any:
    if function == _ORDERED_DICT and arguments == ():
        return ()
    if function == _REBUILD and isinstance(arguments, tuple) and len(arguments) == 6:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple):
            numbers = (offset, *shape, *strides)
            if len(shape) == len(strides) and all(isinstance(n, int) and 0 <= n < 2**48 for n in numbers):
                return _Plan(storage, offset, shape, strides)
    raise CorruptEntryError(f"it would call {function!r}, which a plain tensor does not need")
