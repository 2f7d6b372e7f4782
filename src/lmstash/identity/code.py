"""The code that a model runs, as digests: what is loaded now, not what a file on disk says.

Followed from the modules' classes: their base classes, every function in them, and the functions, classes and plain
values that these functions name. Three kinds of owner:

* torch, numpy, huggingface_hub and the standard library: by name only (torch's version is recorded in fingerprints);
* transformers: by name and SHA-256 of the source file (its version is a component of its own), so that another minor
  version of Python shares; functions that another package has put into its classes or modules count as that package's;
* everything else (your classes, remote code, other packages): by bytecode, which is what really runs. Bytecode differs
  between minor versions of Python; the loss is a miss. Objects, tensors and modules that your own functions name as
  globals count, too; those of installed packages are taken to follow from the package's version.

Not seen: state that a function reaches neither through its arguments, its module's globals nor what it closed over
(files, environment variables), and C code that is replaced under the same version.
"""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from operator import is_, methodcaller
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.dict_stamps import Stamps
from lmstash.identity.encoding import Component, encode

_BY_NAME = {*sys.stdlib_module_names, "torch", "numpy", "huggingface_hub", "builtins"} - {"__main__"}
_PYTHON = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"
_PLAIN = (type(None), bool, int, float, str, bytes)


class CodeGraph:
    """Collects the code reachable from classes and functions. Not for several threads at once.

    Reading is done once per object; `unchanged` says whether anything that was read has been replaced since.
    """

    def __init__(self, *, installed_by_version: bool = False, pin_of: Callable[[str], Component] | None = None) -> None:
        """Begin with nothing.

        Args:
            installed_by_version: Follow no code of installed packages that say their version; that stands for it. Then
                `unchanged` also looks at what functions have closed over, and whether their code was swapped.
            pin_of: Given a module's name, what stands for all its code, which is not followed then; None to follow it.
        """
        self._by_version = installed_by_version
        self._pin_of = pin_of
        self._units: dict[str, str] = {}
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []  # what was read, so that its id stays its own
        self._places: list[tuple[Mapping[str, Any], str, Any, bytes | None]] = []
        self._classes: list[Mapping[str, Any]] = []
        self._members: list[Any] = []
        self._n_members: list[int] = []
        self._stamps: Stamps | None = None
        self._named: list[tuple[Mapping[str, Any], list[str], list[Any]]] = []
        self._tables: list[tuple[Mapping[str, Any], list[tuple[str, Any]]]] = []
        self.objects: dict[str, Any] = {}
        """Other things that your own code names as globals, by where; whoever asked for the code describes them."""

    def components(self) -> dict[Component, Component]:
        """Return {qualified name: hexadecimal digest} of everything read so far."""
        return {**self._units}

    def packages(self) -> dict[Component, Component]:
        """Return {package: version} of the packages that the code lies in."""
        roots = {name.partition(".")[0] for name in self._units} - _BY_NAME
        versions = {root: getattr(sys.modules.get(root), "__version__", None) for root in sorted(roots)}
        return {root: version for root, version in versions.items() if isinstance(version, str)}

    def unchanged(self) -> bool:
        """Return whether classes, functions and globals are still the objects that were read. Costs about 0.03 ms."""
        for namespace, name, value, data in self._places:
            if namespace.get(name) is not value or (data is not None and _encoded(value) != data):
                return False
        if any(list(table.items()) != entries for table, entries in self._tables):
            return False
        stamps = self._stamps
        if stamps is None:
            tables = [*self._classes, *(table for table, _, _ in self._named)]
            proxied = (each if isinstance(each, dict) else gc.get_referents(each)[0] for each in tables)
            stamps = self._stamps = Stamps(proxied)
        return stamps.hold(self._same_members)

    def _same_members(self) -> bool:
        members = chain.from_iterable(map(methodcaller("values"), self._classes))
        if list(map(len, self._classes)) != self._n_members or not all(map(is_, members, self._members)):
            return False
        return all(all(map(is_, map(table.get, names), values)) for table, names, values in self._named)

    def watch_table(self, table: Mapping[str, Any]) -> None:
        """Have `unchanged` say no once a dict of functions holds others than now."""
        self._tables.append((table, list(table.items())))

    def watch_names(self, table: Mapping[str, Any], names: list[str]) -> None:
        """Have `unchanged` say no once a module or class has others, or none any more, under these names than now."""
        self._named.append((table, names, [table.get(name) for name in names]))
        self._stamps = None

    def watch_class(self, cls: type) -> None:
        """Have `unchanged` say no once a class has other members than now."""
        self._classes.append(vars(cls))
        self._members += vars(cls).values()
        self._n_members.append(len(vars(cls)))
        self._stamps = None

    def add(self, code: Any) -> str:
        """Read a class, function or builtin and what it leads to; return its qualified name."""
        known = self._seen.get(id(code))
        if known is not None:
            return known
        pin = None if self._pin_of is None else self._pin_of(defined_in(code))
        if pin is not None:
            return self._note(code, f"{defined_in(code)}.{code.__qualname__}", "pinned", pin)
        if isinstance(code, type):
            return self._add_class(code)
        if isinstance(code, FunctionType):
            return self._add_function(code)
        name = f"{getattr(code, '__module__', None)}.{getattr(code, '__qualname__', type(code).__qualname__)}"
        return self._note(code, name, "builtin")

    def _note(self, code: Any, name: str, *what: Component) -> str:
        digest = hashlib.sha256(encode(what)).hexdigest()
        own = bool(getattr(code, "__closure__", None))  # what it has closed over hangs on its name
        while name in self._units if own else self._units.get(name, digest) != digest:
            name += "'"  # another one of the same name: decorators and notebooks make them
        self._units[name] = digest
        self._seen[id(code)] = name
        self._alive.append(code)
        return name

    def _add_class(self, cls: type) -> str:
        name = f"{cls.__module__}.{cls.__qualname__}"
        owner = owner_of(cls.__module__)
        if owner in _BY_NAME:
            return self._note(cls, name, "by name")
        if self._pinned(cls.__module__):
            return self._note(cls, name, "by version")
        bases = [f"{base.__module__}.{base.__qualname__}" for base in cls.__bases__]
        if owner == "transformers":
            name = self._note(cls, name, "file", _file_digest(cls.__module__), bases)
        else:
            plain = {key: value for key, value in vars(cls).items() if _is_plain(value) and key not in _CLASS_NOISE}
            name = self._note(cls, name, "class", bases, _plain_component(plain))
        self.watch_class(cls)
        for base in cls.__bases__:
            self.add(base)
        for key, member in list(vars(cls).items()):  # what is read first may be made only now
            if owner != "transformers" and isinstance(member, list | dict | set):
                self._place(vars(cls), key, member)
            for function in _functions(member):
                module = function.__globals__.get("__name__")
                if owner != "transformers" or module != cls.__module__ or _is_modeling(cls.__module__):
                    self._link(f"{name}.{key}", self.add(function))
        return name

    def _add_function(self, function: FunctionType) -> str:
        module = str(function.__globals__.get("__name__"))  # `__module__` is copied about by functools.wraps
        name = f"{module}.{function.__code__.co_qualname}"
        owner = owner_of(module)
        if owner in _BY_NAME:
            name = self._note(function, name, "by name")
        elif self._pinned(module):
            name = self._note(function, name, "by version")
        elif owner == "transformers":
            name = self._note(function, name, "file", _file_digest(module))
        else:
            defaults = _plain_component([function.__defaults__, function.__kwdefaults__])
            name = self._note(function, name, "bytecode", _PYTHON, _code_component(function.__code__), defaults)
            if self._by_version:
                for attribute in ("__code__", "__defaults__", "__kwdefaults__"):
                    self._place(_Attributes(function), attribute, getattr(function, attribute))
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                if self._by_version:
                    self._place(_Attributes(cell), "cell_contents", cell.cell_contents)
                self._follow(function, cell.cell_contents, f"{name}:{variable}")
            except ValueError:  # an empty cell
                continue
        if self._pinned(module):
            return name
        if owner not in _BY_NAME and (owner != "transformers" or _is_modeling(module)):
            self._add_globals(function, name, owner)
        return name

    def _add_globals(self, function: FunctionType, name: str, owner: str) -> None:
        names = set(_names(function.__code__))
        for each in sorted(names & function.__globals__.keys()):
            value = function.__globals__[each]
            if isinstance(value, ModuleType):
                foreign = owner_of(value.__name__) not in {*_BY_NAME, "transformers"}
                for attribute in sorted(names & vars(value).keys()):
                    inner = vars(value)[attribute]
                    patched = isinstance(inner, FunctionType | type) and defined_in(inner) != value.__name__
                    if self._pinned(value.__name__) and self._pinned(type(inner).__module__):
                        continue  # an object that the package has made
                    if patched or foreign:
                        self._place(vars(value), attribute, inner)
                        self._follow(function, inner, f"{name}:{attribute}")
                continue
            self._place(function.__globals__, each, value)
            if owner != "transformers" or isinstance(value, FunctionType | type):
                self._follow(function, value, f"{name}:{each}")

    def _pinned(self, module: str) -> bool:
        """Whether a module's code follows from the version of its package."""
        if not self._by_version or not is_installed(module):
            return False
        return isinstance(getattr(sys.modules.get(owner_of(module)), "__version__", None), str)

    def _link(self, place: str, name: str) -> None:
        """Note which code lies in a place, where the place's own name does not say it."""
        if place.replace(":", ".") != name:
            self._units[f"{place} is"] = name

    def _place(self, namespace: Mapping[str, Any], name: str, value: Any) -> None:
        data = _encoded(value) if isinstance(value, list | dict | set) else None
        self._places.append((namespace, name, value, data))

    def _follow(self, function: FunctionType, value: Any, name: str) -> None:
        if isinstance(value, FunctionType | type):
            target = defined_in(value)
            here = function.__globals__.get("__name__")
            if owner_of(target) == "transformers" and target != here and not isinstance(value, FunctionType):
                self._units.setdefault(f"{target}.{value.__qualname__}", "pinned by version")
            else:
                self._link(name, self.add(value))
        elif (data := _encoded(value)) is not None:
            self._units[name] = hashlib.sha256(data).hexdigest()
        elif not is_installed(str(function.__globals__.get("__name__"))):
            self.objects[name] = value


class _Attributes(dict[str, Any]):
    """Attributes of an object, looked up as in a dict."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self._owner = owner

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return getattr(self._owner, name)
        except (AttributeError, ValueError):  # an empty cell
            return default


_CLASS_NOISE = frozenset({"__module__", "__doc__", "__qualname__", "__firstlineno__"})


def owner_of(module: str | None) -> str:
    """Return the package that a module belongs to."""
    name = str(module)
    return "remote" if name.startswith("transformers_modules") else name.partition(".")[0]


def _is_modeling(module: str) -> bool:
    return module.startswith("transformers.models.")


def defined_in(code: Any) -> str:
    """Return the module whose code a function or class is."""
    if isinstance(code, FunctionType):
        return str(code.__globals__.get("__name__"))
    return str(getattr(code, "__module__", None))


def _functions(member: Any) -> Iterator[FunctionType]:
    """Yield the Python functions behind a class member."""
    if isinstance(member, FunctionType):
        yield member
    elif isinstance(member, staticmethod | classmethod):
        yield from _functions(member.__func__)
    elif isinstance(member, property):
        for each in (member.fget, member.fset):
            yield from _functions(each)
    elif hasattr(member, "__wrapped__"):
        yield from _functions(member.__wrapped__)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _code_component(code: CodeType) -> Component:
    consts = [
        _code_component(each) if isinstance(each, CodeType) else _plain_component(each) for each in code.co_consts
    ]
    names = [*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars, "|", *code.co_cellvars]
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    return [code.co_code, consts, names, counts, code.co_exceptiontable]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (*_PLAIN, tuple, list, dict, set, frozenset))


def _plain_component(value: Any) -> Component:
    """Return `value` with what no key can hold replaced by the name of its type."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(_plain_component, value)]
    if isinstance(value, set | frozenset):
        parts = [_plain_component(each) for each in value]
        return [type(value).__name__, *sorted(parts, key=encode)]
    if isinstance(value, dict):
        return {encode(_plain_component(key)): _plain_component(each) for key, each in value.items()}
    return ["type", f"{type(value).__module__}.{type(value).__qualname__}"]


def _encoded(value: Any) -> bytes | None:
    """Return the encoding of a plain value, or None where it holds anything else."""
    if not _is_plain(value):
        return None
    try:
        return encode(_plain_component(value) if isinstance(value, set | frozenset) else value)
    except InvalidArgumentError:
        return None


@lru_cache(maxsize=4096)
def is_installed(module: str) -> bool:
    """Return whether a module belongs to an installed package, whose version pins what its globals hold."""
    path = str(getattr(sys.modules.get(module), "__file__", ""))
    return owner_of(module) in {*_BY_NAME, "transformers"} or "site-packages" in path or "dist-packages" in path


@lru_cache(maxsize=4096)
def _file_digest(module: str) -> str:
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(str(path)).read_bytes()).hexdigest()
    except OSError:
        return "no file"
