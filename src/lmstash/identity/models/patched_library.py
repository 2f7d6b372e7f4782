"""What others have put into those parts of transformers that its models run through: caches, masks, attention, experts.

What defines a model is read as code (see `code`). Of what lies below nobody follows each call, so all of it is looked
at: a function, class or member of a class that is not transformers' own counts by its code, wherever it lies. What
transformers imports from other packages is its own, and so is what others do to it when they are imported and that any
model has to do with (accelerate). Functions of transformers that are put in each other's places are known by their
names; those that have the place's own name are noticed after a process has looked at its first model, not before.
"""

from __future__ import annotations

import ast
import gc
import inspect
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from itertools import chain
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from lmstash.identity.code.digests import owner_of
from lmstash.identity.code.owners import BY_NAME, defined_in, is_of_its_file
from lmstash.identity.encoding import Component
from lmstash.identity.memory.dict_stamps import Stamps

if TYPE_CHECKING:
    from lmstash.identity.code.digests import CodeGraph

_MODULES = frozenset(
    f"transformers.{name}"
    for name in (
        "activations", "cache_utils", "configuration_utils", "masking_utils", "modeling_attn_mask_utils",
        "modeling_flash_attention_utils", "modeling_layers", "modeling_outputs", "modeling_rope_utils",
        "modeling_utils", "pytorch_utils", "utils.generic", "utils.import_utils", "utils.output_capturing",
    )
)  # fmt: skip
_PACKAGES = ("transformers.integrations.", "transformers.integrations")
_OWN = frozenset({*BY_NAME, "transformers", "tokenizers", "typing_extensions"})
_BESIDE = frozenset({"accelerate", "safetensors"})
"""What lies in its modules by itself; what else does is looked up where they import it."""
_NATIVE = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
_CODE = (*_NATIVE, FunctionType, type)
"""What is read as code; the rest is described by what it holds."""
_SCRIPTED = frozenset({"ScriptFunction", "ScriptMethod"})
"""torch's classes of what it makes of somebody's function."""
_ALIASES = frozenset({"transformers.pytorch_utils.compile_compatible_method_lru_cache"})
"""Places whose functions have other names, as transformers is made."""
_READ_ELSEWHERE = frozenset({"ROPE_INIT_FUNCTIONS", "LOSS_MAPPING", "__builtins__"})
"""Dicts of functions that `registered` reads, or that no forward pass calls."""
_PLAIN = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict, set, frozenset, ModuleType})
_COMPILED = ("__compiled_fn_", "__resume_at_")
"""Begins names by which only what `torch.compile` has made of a function finds its parts, in the function's module."""
_NESTED = 6


def patched_library(code: CodeGraph) -> dict[Component, Component]:
    """Return what lies in transformers' modules and is not its own; reads it into `code`, which watches the rest.

    Costs 3 to 20 ms when it is first asked and after a change, else 2 us; so does each later look (0.3 ms from Python
    3.13 on).
    """
    code.watch(_parts.look)
    found: dict[Component, Component] = {}
    for place, held_there in _parts.found:
        if isinstance(held_there, str):
            found[place] = held_there
            continue
        what = [each for each in map(_given, held_there) if each is not None]
        found[place] = [code.add(each if isinstance(each, _CODE) else type(each)) for each in what]
        held = [each for each in what if not isinstance(each, _CODE)]
        code.objects.update({f"{place} {number}": each for number, each in enumerate(held)})
    return found


class LibraryParts:
    """Modules of transformers and their classes, as they were when they were last looked at. Threads may share it."""

    def __init__(self, modules: Collection[str], packages: tuple[str, ...] = ()) -> None:
        """Look at nothing yet.

        Args:
            modules: Names of modules.
            packages: How the names of others begin.
        """
        self._names, self._packages = modules, packages
        self.found: list[tuple[str, list[_Held] | str]] = []
        """What is not transformers' own, by place: code and objects, or the name of what was moved. Not kept alive:
        somebody's function may hold a model."""
        self._number = 0
        self._n_modules = 0
        self._modules: list[ModuleType] = []
        self._stamps: Stamps | None = None
        self._held: tuple[list[dict[str, Any]], list[int], list[Any]] = [], [], []
        self._foreign: dict[int, _Held] = {}
        """By its place among the values that are held."""
        self._first: dict[str, Any] = {}

    def look(self) -> int:
        """Return a number that is another one as soon as something else is found."""
        n_modules = len(sys.modules)
        if n_modules != self._n_modules:
            self._n_modules = n_modules
            loaded = [name for name in list(sys.modules) if name in self._names or name.startswith(self._packages)]
            modules = [each for each in map(sys.modules.get, loaded) if isinstance(each, ModuleType)]
            if modules != self._modules:
                self._modules, self._stamps = modules, None
        stamps = self._stamps
        if stamps is None or not stamps.hold(self._same):
            self._read()
        return self._number

    def _read(self) -> None:
        tables = list(self._all_tables())
        held = [table for _, table, _ in tables]
        stamps = Stamps(held)
        stamps.hold(lambda: True)  # from here on: what changes meanwhile is read the next time
        values = list(chain.from_iterable(map(dict.values, held)))
        found: list[tuple[str, list[_Held] | str]] = []
        foreign: dict[int, _Held] = {}
        for place, table, of in tables:
            for name, value in list(table.items()):
                if type(value) in _PLAIN or str(name).startswith(_COMPILED):
                    continue
                where = f"{place}.{name}"
                what = [*_foreign(value, name, of if isinstance(of, ModuleType) else None)]
                if what:
                    found.append((where, [*map(_hold, what)]))
                    foreign[id(value)] = _hold(value)
                    continue
                is_first = not _counts(value) or value is self._first.setdefault(where, value)
                if not is_first or (_moved(value, name, of) and where not in _ALIASES):
                    found.append((where, f"{defined_in(value)}.{getattr(value, '__qualname__', None)}"))
        self._foreign = {n: foreign[id(value)] for n, value in enumerate(values) if id(value) in foreign}
        self._held = held, [*map(len, held)], [None if n in self._foreign else each for n, each in enumerate(values)]
        self._stamps = stamps
        if [(where, _ids(what)) for where, what in found] != [(where, _ids(what)) for where, what in self.found]:
            self.found = found
            self._number += 1

    def _same(self) -> bool:
        tables, lengths, values = self._held
        now = list(chain.from_iterable(map(dict.values, tables)))
        if list(map(len, tables)) != lengths or len(now) != len(values):
            return False
        for number, held in self._foreign.items():
            if now[number] is None or now[number] is not _given(held):
                return False
            now[number] = None
        return all(map(is_, now, values))

    def _all_tables(self) -> Iterator[tuple[str, dict[str, Any], ModuleType | type | None]]:
        """Yield place, table and owner of all that code lies in: modules, their classes, and registries in them."""
        for module in self._modules:
            yield module.__name__, vars(module), module
            for name, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == module.__name__:
                    (table,) = (each for each in gc.get_referents(vars(value)) if type(each) is dict)
                    yield f"{module.__name__}.{value.__qualname__}", table, value
                elif type(value) is dict and name not in _READ_ELSEWHERE and any(map(callable, value.values())):
                    yield f"{module.__name__}.{name}", value, None


_Held = weakref.ref[Any] | tuple[Any]


def _hold(value: Any) -> _Held:
    """Return a weak reference, the same one for as long as the value lives; where there can be none, the value kept."""
    try:
        return weakref.ref(value)
    except TypeError:
        return (value,)


def _given(held: _Held) -> Any:
    return held[0] if isinstance(held, tuple) else held()


def _ids(what: list[_Held] | str) -> object:
    return what if isinstance(what, str) else [id(each[0]) if isinstance(each, tuple) else id(each) for each in what]


def _counts(value: Any) -> bool:
    """Whether it decides what is computed: code, or one of transformers' own objects."""
    is_code = callable(value) or isinstance(value, staticmethod | classmethod | property)
    return is_code or owner_of(type(value).__module__) == "transformers"


def _moved(value: Any, name: Any, of: ModuleType | type | None) -> bool:
    """Whether a function of transformers goes by another name than its place."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if of is None or not isinstance(value, FunctionType) or value.__name__ in (name, "<lambda>"):
        return False
    home = defined_in(value)
    return owner_of(home) == "transformers" if isinstance(of, type) else home == of.__name__


def _foreign(value: Any, name: Any, module: ModuleType | None, depth: int = 0) -> Iterator[Any]:
    """Yield what is not transformers' own of what lies under a name: code, and objects that decide what a call gives.

    Args:
        value: What lies there.
        name: Its name.
        module: Where, in a module.
        depth: How far into decorators.
    """
    if depth > _NESTED:
        yield value
        return
    into = partial(_foreign, name=name, module=module, depth=depth + 1)
    if isinstance(value, _INNER):
        yield from chain.from_iterable(map(into, _inner(value)))
    elif isinstance(value, FunctionType):
        if not (_is_own(value, name, module) and is_of_its_file(value)):
            yield value
            return
        for cell in value.__closure__ or ():  # decorators hold what they decorate
            try:
                held = cell.cell_contents
            except ValueError:  # an empty cell
                continue
            if isinstance(held, FunctionType | MethodType | partial):
                yield from into(held)
    elif isinstance(value, type):
        yield from () if _is_own(value, name, module) else (value,)
    elif isinstance(value, _NATIVE):
        holder = getattr(value, "__self__", None)
        if not isinstance(holder, ModuleType | type | None):  # a method of an object
            yield from (value, *into(holder))
        elif getattr(value, "__module__", None) is not None and not _is_own(value, name, module):
            yield value
    elif hasattr(value, "__wrapped__"):
        yield from into(value.__wrapped__)
    elif type(value).__name__ == "CustomOpDef":
        yield from into(getattr(value, "_init_fn", None))
    elif owner_of(type(value).__module__) not in _OWN or type(value).__name__ in _SCRIPTED:
        yield value


_INNER = (staticmethod, classmethod, property, cached_property, MethodType, partial)


def _inner(value: Any) -> Iterator[Any]:
    """Yield what such an object calls, and what it calls it with."""
    if isinstance(value, property):
        yield from (each for each in (value.fget, value.fset, value.fdel) if each is not None)
    elif isinstance(value, cached_property):
        yield value.func
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    else:
        yield value.__func__


def _is_own(code: Any, name: Any, module: ModuleType | None) -> bool:
    home = defined_in(code)
    owner = owner_of(home)
    if owner in _OWN or home.startswith("namedtuple_"):
        return True
    if module is None:
        return False
    return owner in _BESIDE or _imports(module.__name__).get(str(name)) == owner


@lru_cache(maxsize=256)
def _imports(module: str) -> Mapping[str, str]:
    """Return which names a module's source imports, and from which packages. Costs up to 0.1 s, once a module."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError, SyntaxError):
        return {}
    found: dict[str, str] = {}
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and each.level == 0:
            found |= {alias.asname or alias.name: owner_of(each.module) for alias in each.names}
    return found


_parts = LibraryParts(_MODULES, _PACKAGES)
