"""What was asked of llama.cpp that its own interface does not tell again: files, settings, adapters, edits of memory.

Which adapters a context uses, with which settings it was made and from which file its model came cannot be read from
llama.cpp. So the functions of `llama_cpp.llama_cpp` that say so are replaced by ones that note their arguments and
call the original; llama-cpp-python itself calls them by these names. A model or context that was made before is
unknown, and nothing is kept for it. A program that took such a function out of the module before this file was
imported, and calls it later, is not noticed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as _c

from lmstash.identity.content.files import Stamp, stamp_of

_ROTATION = "LLAMA_ATTN_ROT_DISABLE"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_Native = type(_c.llama_free)


@dataclass(slots=True)
class SeenFile:
    """A file that llama.cpp read."""

    path: str
    stamp: Stamp | None
    """As it was before it was read, and after; None when that is not known."""


@dataclass(slots=True)
class SeenModel:
    """A model that was loaded."""

    files: tuple[SeenFile, ...]
    """More than one when the model is split."""
    settings: dict[str, Any]
    """Fields of `llama_model_params`, pointers left out."""
    overrides: dict[str, Any]
    pointers: frozenset[str]
    """Pointer fields that were set."""


@dataclass(slots=True)
class SeenContext:
    """A context that was made, and what was done to it."""

    settings: dict[str, Any]
    """Fields of `llama_context_params`, pointers left out."""
    pointers: frozenset[str]
    rotation: str | None
    """`LLAMA_ATTN_ROT_DISABLE` when the context was made."""
    adapters: tuple[tuple[int, float], ...] = ()
    """Address and scale of each."""
    control: bytes = b""
    """Digest of the control vector, or nothing."""
    oddities: set[str] = field(default_factory=set)
    """What was done that makes its values other than the model's own."""
    version: int = 0
    """Counts what changes the values of tokens evaluated later."""
    edits: int = 0
    """Counts what changes the values of tokens evaluated before."""


models: dict[int, SeenModel] = {}
contexts: dict[int, SeenContext] = {}
adapters: dict[int, SeenFile] = {}
_owners: dict[int, int] = {}
"""Context of each memory."""

originals: dict[str, Callable[..., Any]] = {}
"""The functions of llama.cpp that are watched, as they were."""

_PLAIN = (bool, int, float)


def _fields(struct: ctypes.Structure) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the numbers of a struct, and the names of the pointers in it that are set."""
    numbers: dict[str, Any] = {}
    pointers: set[str] = set()
    for name, *_ in struct._fields_:
        value = getattr(struct, name)
        if isinstance(value, _PLAIN) and name not in _POINTERS:
            numbers[name] = value
        elif value:
            pointers.add(name)
    return numbers, frozenset(pointers)


# c_void_p fields read as int or None.
_POINTERS = {
    "devices", "tensor_buft_overrides", "progress_callback_user_data", "cb_eval_user_data", "abort_callback_data",
    "ctx_other",
}  # fmt: skip


def _overrides(params: Any) -> dict[str, Any]:
    """Return the metadata that a caller overrides."""
    out: dict[str, Any] = {}
    array = params.kv_overrides
    number = 0
    while array and array[number].key not in (b"", b"\0"):
        each = array[number]
        key = each.key.decode("utf-8", "surrogateescape")
        if each.tag == _c.LLAMA_KV_OVERRIDE_TYPE_BOOL:
            out[key] = bool(each.value.val_bool)
        elif each.tag == _c.LLAMA_KV_OVERRIDE_TYPE_INT:
            out[key] = int(each.value.val_i64)
        elif each.tag == _c.LLAMA_KV_OVERRIDE_TYPE_FLOAT:
            out[key] = float(each.value.val_f64)
        else:
            out[key] = bytes(each.value.val_str)
        number += 1
    return out


def address(handle: Any) -> int:
    """Return where something of llama.cpp lies; it comes as a number or as a pointer, and may be none."""
    if isinstance(handle, int) or handle is None:
        return handle or 0
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _watch(name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace a function of llama.cpp by one that is given the original and its arguments."""

    def put(seeing: Callable[..., Any]) -> None:
        original: Any = getattr(_c, name, None)
        if not isinstance(original, _Native) or name in originals:  # one in Python calls one that is watched
            return
        originals[name] = original

        @wraps(original)
        def watched(*arguments: Any, **named: Any) -> Any:
            return seeing(original, *arguments, **named)

        for module in (_c, llama_cpp):
            if getattr(module, name, None) is original:
                setattr(module, name, watched)

    return put


def _read_by(path: Any, read: Callable[[], Any]) -> tuple[Any, tuple[SeenFile, ...]]:
    """Return what reading a file gave, and which files were read; llama.cpp finds the others of a split model."""
    text = os.path.abspath(os.fsdecode(path))
    paths = [text]
    split = _SPLIT.search(text)
    if split is not None:
        paths = [f"{text[: split.start()]}-{n:05d}-of-{split[2]}.gguf" for n in range(1, int(split[2]) + 1)]
    before = [stamp_of(each) for each in paths]
    out = read()
    after = [stamp_of(each) for each in paths]
    seen = zip(paths, before, after, strict=True)
    return out, tuple(SeenFile(each, one if one == other else None) for each, one, other in seen)


def _load(original: Callable[..., Any], path: Any, params: Any) -> Any:
    (settings, pointers), overrides = _fields(params), _overrides(params)
    model, files = _read_by(path, lambda: original(path, params))
    if model:
        models[address(model)] = SeenModel(files, settings, overrides, pointers)
    return model


def _make(original: Callable[..., Any], model: Any, params: Any) -> Any:
    settings, pointers = _fields(params)
    rotation = os.environ.get(_ROTATION)
    context = original(model, params)
    if context:
        contexts[address(context)] = SeenContext(settings, pointers, rotation)
        memory = _c.llama_get_memory(context)
        if memory:
            _owners[address(memory)] = address(context)
    return context


for _name in ("llama_model_load_from_file", "llama_load_model_from_file"):
    _watch(_name)(_load)
for _name in ("llama_init_from_model", "llama_new_context_with_model"):
    _watch(_name)(_make)


def _forget(table: dict[int, Any]) -> Callable[..., Any]:
    def forget(original: Callable[..., Any], handle: Any) -> Any:
        table.pop(address(handle), None)
        return original(handle)

    return forget


# Addresses are used again: what is freed must not be taken for what comes to lie there.
_watch("llama_free")(_forget(contexts))
_watch("llama_model_free")(_forget(models))
_watch("llama_free_model")(_forget(models))
_watch("llama_adapter_lora_free")(_forget(adapters))


@_watch("llama_adapter_lora_init")
def _adapter(original: Callable[..., Any], model: Any, path: Any) -> Any:
    adapter, files = _read_by(path, lambda: original(model, path))
    if adapter:
        adapters[address(adapter)] = files[0]
    return adapter


@_watch("llama_set_adapters_lora")
def _set_adapters(original: Callable[..., Any], context: Any, handles: Any, count: Any, scales: Any) -> Any:
    wanted = tuple((address(handles[n]), float(scales[n])) for n in range(int(count))) if count else ()
    out = original(context, handles, count, scales)
    seen = contexts.get(address(context))
    if seen is not None:
        if out:
            seen.oddities.add("its adapters could not be set")
        if seen.adapters != wanted:
            seen.adapters = wanted
            _changed(seen)
    return out


@_watch("llama_set_adapter_cvec")
def _set_control(original: Callable[..., Any], context: Any, data: Any, length: Any, *where: Any) -> Any:
    control = b""
    if data:
        content = ctypes.string_at(address(data), 4 * int(length))
        control = hashlib.sha256(repr([int(each) for each in where]).encode() + content).digest()
    seen = contexts.get(address(context))
    out = original(context, data, length, *where)
    if seen is not None:
        if out:
            seen.oddities.add("its control vector could not be set")
        seen.control = control
        _changed(seen)
    return out


def _changed(seen: SeenContext) -> None:
    seen.version += 1
    seen.edits += 1


def _odd(why: str, when: Callable[..., bool]) -> Callable[..., Any]:
    def note(original: Callable[..., Any], context: Any, *arguments: Any) -> Any:
        seen = contexts.get(address(context))
        if seen is not None and when(*arguments):
            seen.oddities.add(why)
            _changed(seen)
        return original(context, *arguments)

    return note


_always: Callable[..., bool] = lambda *arguments: True  # noqa: E731
for _name in ("llama_set_adapter_lora", "llama_apply_adapter_cvec"):  # of older versions
    _watch(_name)(_odd("an adapter was set by a function that is not known", _always))
_watch("llama_set_causal_attn")(_odd("its attention is not causal", lambda causal: not causal))
_watch("llama_set_warmup")(_odd("it was set to warm up", bool))
_watch("llama_set_sampler")(_odd("a sampler in its context may change its scores", _always))


def _edit(original: Callable[..., Any], memory: Any, *arguments: Any) -> Any:
    seen = contexts.get(_owners.get(address(memory), 0))
    if seen is not None:
        seen.edits += 1
    return original(memory, *arguments)


for _name in ("llama_memory_seq_add", "llama_memory_seq_div", "llama_memory_seq_cp"):
    _watch(_name)(_edit)


def _set_state(original: Callable[..., Any], context: Any, *arguments: Any) -> Any:
    seen = contexts.get(address(context))
    if seen is not None:
        seen.edits += 1
    return original(context, *arguments)


for _name in (
    "llama_state_set_data", "llama_set_state_data", "llama_state_load_file", "llama_load_session_file",
    "llama_state_seq_set_data", "llama_state_seq_set_data_ext", "llama_state_seq_load_file",
):  # fmt: skip
    _watch(_name)(_set_state)
