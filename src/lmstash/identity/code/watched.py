"""What was read of code, and whether all of it is still what it was: functions, classes, globals, closures."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from itertools import chain
from operator import attrgetter, is_, methodcaller
from types import CellType, CodeType, FunctionType
from typing import Any

from lmstash.identity.code.bytecode import encoded
from lmstash.identity.memory.dict_stamps import Stamps

_code_of = attrgetter("__code__")


class Watched:
    """Notes what was read, and says later whether any of it has been replaced. Not for several threads at once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._places: list[tuple[Mapping[str, Any], str, Any, bytes | None]] = []
        self._classes: list[Mapping[str, Any]] = []
        self._members: list[Any] = []
        self._n_members: list[int] = []
        self._stamps: Stamps | None = None
        self._named: list[tuple[Mapping[str, Any], list[str], list[Any]]] = []
        self._functions: list[tuple[FunctionType, Any, Any, Any]] = []
        self._by_file: list[FunctionType] = []
        self._codes: list[CodeType] = []
        self._cells: list[tuple[CellType, Any, bytes | None]] = []
        self._looks: list[tuple[Callable[[], Any], Any]] = []

    def unchanged(self) -> bool:
        """Return whether classes, functions and globals are still the objects that were read. Costs about 0.03 ms."""
        for namespace, name, value, data in self._places:
            if namespace.get(name) is not value or (data is not None and self._mutable(value) != data):
                return False
        for function, code, defaults, named in self._functions:  # as autoreloaders swap them
            if function.__code__ is not code or function.__defaults__ is not defaults:
                return False
            if function.__kwdefaults__ is not named:
                return False
        if not all(map(is_, map(_code_of, self._by_file), self._codes)):
            return False
        if not all(self._holds(*each) for each in self._cells) or any(look() != seen for look, seen in self._looks):
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

    def watch(self, look: Callable[[], Any]) -> None:
        """Have `unchanged` say no once `look` returns something else than now. It is called at each look."""
        self._looks.append((look, look()))

    def watch_code(self, functions: list[FunctionType]) -> None:
        """Have `unchanged` say no once one of these functions has other code than now."""
        self._by_file += functions
        self._codes += map(_code_of, functions)

    def watch_names(self, table: Mapping[str, Any], names: list[str]) -> None:
        """Have `unchanged` say no once a module or class has others, or none any more, under these names than now."""
        self._named.append((table, names, [table.get(name) for name in names]))
        self._stamps = None

    def watch_class(self, cls: type) -> None:
        """Have `unchanged` say no once a class has other members than now."""
        self._watch_table(vars(cls))

    def _watch_table(self, table: Mapping[str, Any]) -> None:
        self._classes.append(table)
        self._members += table.values()
        self._n_members.append(len(table))
        self._stamps = None

    def _encoded(self, value: Any) -> bytes | None:
        """Return what tells a plain value from others; None where it holds anything else."""
        return encoded(value)

    def _mutable(self, value: Any) -> bytes | None:
        """Return what tells a value that may change in place from what it comes to be; None for others."""
        return self._encoded(value) if isinstance(value, list | dict | set) else None

    def _holds(self, cell: CellType, held: Any, data: bytes | None) -> bool:
        """Whether a cell holds what it held."""
        try:
            return cell.cell_contents is held and (data is None or self._mutable(held) == data)
        except ValueError:  # an empty cell
            return False

    def _place(self, namespace: Mapping[str, Any], name: str, value: Any) -> None:
        self._places.append((namespace, name, value, self._mutable(value)))
