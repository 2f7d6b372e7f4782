"""Python values that hang on a model, as key components.

What is plain is taken as it is; containers and objects are taken apart; functions and classes stand by their code;
tensors and modules are handed to whoever reads those. What cannot be taken apart is refused, unless the owner of the
model vouches for it with `variant=`.
"""

from __future__ import annotations

import collections
import enum
import functools
import io
import logging
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lmstash.errors import UnsupportedModelError
from lmstash.identity.code.asked_by_text import CodeByText
from lmstash.identity.code.memos import Memo, memos_among
from lmstash.identity.code.operators import made_of, operator_name, refuse_unreadable, said_of
from lmstash.identity.code.owners import is_of_lmstash, owner_of, version_of
from lmstash.identity.content.media import media_of
from lmstash.identity.encoding import Component, encode, snapshot
from lmstash.identity.instances import fields_of, is_transparent

IMMUTABLE = frozenset({type(None), bool, int, float, str, bytes})

_CONTAINERS = frozenset({tuple, list, dict})
_HARMLESS_CONFIG = frozenset(
    {
        "_name_or_path", "name_or_path", "base_model_name_or_path", "_commit_hash", "transformers_version",
        "torch_dtype", "dtype", "architectures", "tokenizer_class", "_auto_class", "auto_map", "id2label", "label2id",
        "finetuning_task", "task_specific_params", "_output_attentions", "output_hidden_states",
    }
)  # fmt: skip
"""Fields of a configuration that name things, for those who know which are; dtype and architecture are read off the
model itself."""

_HARMLESS_FIELDS = {
    "peft.tuners.lora.config.LoraConfig": frozenset(
        {"inference_mode", "auto_mapping", "base_model_name_or_path", "revision"}
    ),
}
"""The same by class. What a LoRA adapter was saved with and loaded for; only for others is it how they compute."""
_LEFT_BEHIND = {"bitsandbytes.autograd._functions.MatmulLtState": ("idx", "subB")}
"""By class, a field that each pass writes before it reads it, unless the other one says that an older version does."""

_SALTED = "_original_object_hash"
"""In a `GenerationConfig`, what Python's `hash` said of it: another number in each process."""

WITHOUT_MEANING = (logging.Logger, type(threading.Lock()), type(threading.RLock()))
"""What says how a program runs, not what it computes: how much is logged, who else is at it."""
_LOGURU = "loguru._logger"
_EXACT: dict[type, Callable[[Any], Component]] = {
    str: lambda value: str.__getitem__(value, slice(None)),
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    int: int.__index__,
    float: float.__float__,
}
_OF_MEMBERS = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"})
"""What each member of an enum bears."""
_ORDER, _BESIDE = ("order",), ("beside",)
"""Beside the fields of what is described; none of them goes by it."""
TENSOR_MARKS = frozenset({"_is_hf_initialized", "_is_buffer", "persistent"})
"""What loading and registering leave on a tensor, without meaning."""
_TORCH_NAMES = frozenset({"dtype", "layout", "memory_format", "qscheme"})


class Describer:
    """Describes values, each object once. For one thread and one walk.

    Args:
        code: Where functions and classes are read.
        lenient: Describe what cannot be taken apart by its type instead of refusing it.
        follow_code: Read code; without, functions and classes are described by their identity in this process.
        whole_configs: Whether all fields of a configuration count: somebody's code may read any.
        of_model: Whether lmstash's own objects are not taken apart, and refused where somebody's code may ask them.
    """

    def __init__(
        self,
        code: CodeByText,
        *,
        lenient: bool,
        follow_code: bool = True,
        whole_configs: bool = False,
        of_model: bool = False,
    ) -> None:
        self._code = code
        self._lenient = lenient
        self._follow_code = follow_code
        self._whole_configs = whole_configs
        self._of_model = of_model
        self._seen: dict[int, str] = {}
        self._taken: dict[str, int] = {}
        """Paths that something goes by, each with how many marks the next thing there bears at least."""
        self._alive: list[object] = []  # so that no id is given twice during the walk
        self.seen_modules: dict[int, str] = {}
        self.modules: list[tuple[str, Any]] = []
        """Modules met and not yet walked, by path."""
        self.tensors: dict[str, Any] = {}
        """Tensors met, by path."""
        self.memos: list[Memo[Any]] = []
        """Functions met that remember their results."""
        self.own: frozenset[int] = frozenset()
        """Modules and tensors that are met in their own places, by `id`: a weak reference to one says nothing new."""
        self.in_order = False
        """Whether the order of dicts counts: code that holds them, or has made them, may go through them."""
        self._torch = sys.modules.get("torch")

    def value(self, value: Any, path: str) -> Component:
        """Return `value` as a component.

        Raises:
            UnsupportedModelError: It can neither be taken apart nor is it known to be harmless.
        """
        kind = type(value)
        if kind in IMMUTABLE:
            return value
        if id(value) in self._seen:
            return ["seen", self._seen[id(value)]]
        if isinstance(value, enum.Enum):
            held = sorted(each for each in vars(value).items() if each[0] not in _OF_MEMBERS)
            if held:  # one may be another member
                self._see(value, path)
            told = [[name, self.value(each, f"{path}.{name}")] for name, each in held]
            return ["enum", self.code(kind), value.name, self.value(value.value, f"{path}.value"), told]
        if not self._follow_code and kind in _CONTAINERS and (told := snapshot(value)) is not None:
            if kind is dict:
                self._see(value, path)
            return ["plain", told]
        if kind is tuple or kind is list:
            return [kind.__name__, *[self.value(each, f"{path}[{index}]") for index, each in enumerate(value)]]
        if kind is set or kind is frozenset:
            return [kind.__name__, *sorted((self.value(each, path) for each in value), key=encode)]
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
            owner = bound_to(value)
            told = self.code(value, path)
            return told if owner is None else ["method", told, self.value(owner, f"{path}.__self__")]
        torch = self._torch
        if torch is not None:
            if isinstance(value, torch.Tensor):
                return self.tensor(value, path)
            if isinstance(value, torch.nn.Module):
                return self.module(value, path)
            if kind is torch.device:
                return "device"
            if kind is torch.Generator:
                return ["generator", value.device.type, bytes(value.get_state().numpy())]
            if kind.__module__ == "torch" and kind.__name__ in _TORCH_NAMES:
                return ["torch", str(value)]
        if isinstance(value, WITHOUT_MEANING) or kind.__module__ == _LOGURU:
            return kind.__qualname__
        if kind is re.Pattern:
            return ["pattern", value.pattern, value.flags]
        if kind in (io.StringIO, io.BytesIO):
            return ["buffer", value.getvalue(), value.tell()]
        if kind is threading.Event:
            return ["Event", True] if value.is_set() else "Event"
        if isinstance(value, weakref.ref):
            return self._referent(value, path)
        if (operator := operator_name(value)) is not None:
            return self._operator(operator, path)
        if self._of_model and is_of_lmstash(value):
            return self._of_lmstash(value, path)
        if isinstance(value, types.ModuleType):
            return ["module", self._code.add_module(value) if self._follow_code else value.__name__]
        self._see(value, path)
        try:
            return self._object(value, kind, path)
        except (UnsupportedModelError, RecursionError):
            raise
        except Exception as error:  # whatever other people's objects do when they are looked at
            if self._lenient:
                return None
            raise UnsupportedModelError(
                f"{path} is a {kind.__module__}.{kind.__qualname__}, into which lmstash cannot look ({error!r}). "
                "Replace it, or vouch for it: variant='...' (a new name whenever it changes)."
            ) from error

    def passes_over(self, value: Any) -> bool:
        """Return whether a value is an object of lmstash's own, and no code runs that may ask it."""
        return self._of_model and not self._whole_configs and is_of_lmstash(value)

    def _of_lmstash(self, value: Any, path: str) -> Component:
        # Not looked into, which takes seconds: its counters move with each call, and it leads to all that it has seen.
        if self._whole_configs and not self._lenient:
            raise UnsupportedModelError(
                f"{path} is lmstash's own ({type(value).__qualname__}), and the model runs code that may ask it: yours "
                "or that of a package unknown here. Keep it off the model and away from such code, or vouch for it: "
                "variant='...' (a new name whenever it changes)."
            )
        return ["of lmstash", type(value).__qualname__]

    def _operator(self, name: str, path: str) -> Component:
        return ["operator", name, self.value(made_of(self._readable(name, path)), path)]

    def _readable(self, name: str, path: str) -> str:
        if self._follow_code:
            self._code.watch_operator(name)
        if not self._lenient:
            refuse_unreadable(name, path)
        return name

    def code(self, code: Any, path: str = "") -> Component:
        """Return a class or function by name, after reading its code, and what a function has closed over."""
        name: Component = self._code.add(code) if self._follow_code else id(code)
        closure: list[Component] = []
        if path and isinstance(code, types.FunctionType) and code.__closure__:
            self._see(code, path)
            for variable, cell in zip(code.__code__.co_freevars, code.__closure__, strict=True):
                try:
                    closure.append([variable, self.value(cell.cell_contents, f"{path}<{variable}>")])
                except ValueError:  # an empty cell
                    closure.append([variable])
        return ["code", name, *closure]

    def module(self, module: Any, path: str) -> Component:
        """Return a module by the path it was first met at; it is walked later."""
        known = self.seen_modules.get(id(module))
        if known is None:
            self.seen_modules[id(module)] = known = self._place(path)
            self.modules.append((known, module))
        return ["module at", known]

    def tensor(self, tensor: Any, path: str) -> Component:
        """Return a tensor by the path it was met at, and what hangs on it; its bytes are read later."""
        while self.tensors.get(path, tensor) is not tensor:
            path += "'"
        self.tensors[path] = tensor
        kind = type(tensor)
        told: list[Component] = ["tensor at", path]
        if kind.__module__ != "torch" and not kind.__module__.startswith("torch."):  # it computes in its own way
            told.append(
                self.code(kind) if self.is_yours(kind) else [kind.__qualname__, version_of(owner_of(kind.__module__))]
            )
        extra = {name: each for name, each in vars(tensor).items() if name not in TENSOR_MARKS}
        if extra and id(tensor) not in self._seen:
            self._see(tensor, path)
            told.append(self.value(extra, path))
        return told

    def _referent(self, reference: weakref.ref[Any], path: str) -> Component:
        """Return where it is told what a weak reference leads to: with the objects that the code names."""
        held = reference()
        if not self._follow_code:
            return ["reference", id(held)]
        if held is None or id(held) in self.own:
            return type(reference).__qualname__
        place = f"{path} refers to"
        while self._code.objects.get(place, held) is not held:
            place += "'"
        self._code.objects[place] = held
        return ["reference", place]

    def _see(self, value: Any, path: str) -> None:
        self._seen[id(value)] = self._place(path)
        self._alive.append(value)

    def _place(self, path: str) -> str:
        """Return `path`, marked where something else already goes by it."""
        place, n_marks = path, self._taken.get(path, 0)
        while place in self._taken:
            place = path + "'" * n_marks
            n_marks += 1
        self._taken[path] = n_marks
        self._taken.setdefault(place, 0)
        return place

    def _object(self, value: Any, kind: type, path: str) -> Component:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(value, functools.partial):
            beside = self._beside(value, kind, path)
            return ["partial", self.value(value.func, path), self.value([value.args, value.keywords], path), *beside]
        if isinstance(value, Memo):
            self.memos.append(value)
            return ["cached", self.value(value.__wrapped__, path)]
        if kind in (staticmethod, classmethod):
            return [name, self.value(value.__func__, path)]
        if isinstance(value, types.MethodType):
            self.memos += memos_among([value])
            return ["method", self.code(value.__func__, path), self.value(value.__self__, f"{path}.__self__")]
        if isinstance(value, Mapping):
            items = [(self.value(key, path), self.value(each, f"{path}.{key}")) for key, each in value.items()]
            plain = {key: each for key, each in items if type(key) is str}
            beside = self._beside(value, kind, path)
            if len(plain) == len(items):
                told = {"": name, **plain} if kind is not dict else plain
                return {**told, **self._order(plain), **({_BESIDE: beside} if beside else {})}
            pairs = [[key, each] for key, each in items]
            return [name, *beside, *(pairs if self.in_order else sorted(pairs, key=encode))]
        if kind.__module__.startswith("torch.") and kind.__name__ == "CustomOpDef":  # the rest is made of these
            made = made_of(self._readable(value._qualname, path)) or value  # what is called now goes by its name
            return ["op", *said_of(made), self.code(made._init_fn, path), self.value(made._backend_fns, path)]
        item = getattr(value, "item", None)
        if kind.__module__ == "numpy" and item is not None and getattr(value, "shape", None) == ():
            return ["numpy", str(value.dtype), self.value(item(), path)]
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and value.dtype.kind in "biufc":
            return ["numpy", str(value.dtype), list(value.shape), value.tobytes()]
        pil = sys.modules.get("PIL.Image")
        if pil is not None and isinstance(value, pil.Image) and (seen := media_of(value)) is not None:
            return [name, seen.digest, list(seen.facts), value.format, self.value(value.info, f"{path}.info")]
        if isinstance(value, tuple | list):
            held = [self.value(each, f"{path}[{index}]") for index, each in enumerate(value)]
            return [name, *self._beside(value, kind, path), *held]
        for base, exact in _EXACT.items():
            if isinstance(value, base):
                return [name, exact(value), *self._beside(value, kind, path)]
        if not is_transparent(kind):
            return [name, self._reduced(value, name, path), *self._beside(value, kind, path)]
        fields = fields_of(value, kind)
        if hasattr(kind, "model_type") and hasattr(kind, "to_dict"):
            if not self._whole_configs:
                fields = {key: each for key, each in fields.items() if key not in _HARMLESS_CONFIG}
            fields["model_type"] = value.model_type
        if name in _HARMLESS_FIELDS and not self._whole_configs:
            fields = {key: each for key, each in fields.items() if key not in _HARMLESS_FIELDS[name]}
        if hasattr(kind, "from_model_config"):
            fields.pop(_SALTED, None)
        field, unless = _LEFT_BEHIND.get(name, ("", ""))
        if field in fields and fields.get(unless) is None:  # the outliers of the last batch, for its way back
            del fields[field]
        out: dict[Component, Component] = {"": self.code(kind)}
        with self.ordered(self.in_order and self.is_yours(kind)):
            for field, each in fields.items():
                out[str(field)] = self.value(each, f"{path}.{field}")
            return {**out, **self._order(fields)}

    def _beside(self, value: Any, kind: type, path: str) -> list[Component]:
        """Return what an instance of a class made from one of Python's bears beside what that one holds."""
        made: list[Component] = []
        if isinstance(value, collections.defaultdict):
            made.append(["default", self.value(value.default_factory, f"{path}.default_factory")])
        is_yours, fields = self.is_yours(kind), fields_of(value, kind)
        if not (is_yours or fields):
            return made
        lenient, self._lenient = self._lenient, self._lenient or not is_yours  # a library's may hold anything
        try:
            told = {str(name): self.value(each, f"{path}.{name}") for name, each in fields.items()}
        finally:
            self._lenient = lenient
        return [*made, ["beside", self.code(kind) if is_yours else None, told]]

    def _order(self, fields: Mapping[Any, Any]) -> dict[Component, Component]:
        return {_ORDER: [*map(str, fields)]} if self.in_order and len(fields) > 1 else {}

    def is_yours(self, kind: type) -> bool:
        """Return whether a class is somebody's own code."""
        return self._code.is_yours(kind.__module__)

    @contextmanager
    def ordered(self, in_order: bool) -> Iterator[None]:
        """Have the order of dicts count, or not, for as long as this is entered."""
        before, self.in_order = self.in_order, in_order
        try:
            yield
        finally:
            self.in_order = before

    def _reduced(self, value: Any, name: str, path: str) -> Component:
        """Return what an object that Python cannot look into would be copied from."""
        try:
            parts = value.__reduce_ex__(2)
            if isinstance(parts, str):
                return parts
            parts = [*parts[:3], *[each and list(each) for each in parts[3:5]]]
        except Exception:
            if self._lenient:
                return None
            raise UnsupportedModelError(
                f"{path} is a {name}, which lmstash cannot take apart to tell whether it changes. "
                "Replace it, or vouch for it: variant='...' (a new name whenever it changes)."
            ) from None
        return self.value(parts, path)


_WRITES = frozenset({"write", "writelines", "flush"})
"""Of a file: `sys.stdout.write` says nothing."""


def bound_to(value: Any) -> Any:
    """Return the object that a method of Python's own, or of a library in C, is bound to; None for other code.

    What lies in a module by its own name is a function of that, `random.random` too, which counts by that name.
    """
    owner = value.__self__ if isinstance(value, types.BuiltinFunctionType) else None
    if owner is None or isinstance(owner, types.ModuleType | type):
        return None
    if isinstance(owner, io.IOBase) and value.__name__ in _WRITES:
        return None
    module = sys.modules.get(type(owner).__module__)
    named = getattr(module, value.__name__, None)
    return None if type(named) is type(value) and named == value else owner
