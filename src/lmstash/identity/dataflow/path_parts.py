"""What a path is made of, as far as an expression says it: `HERE / "prompts" / f"{name}.txt"`, `"%s/a" % folder`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    EITHER,
    ITEM,
    NAME,
    OPERATION,
    OTHER,
    STARRED,
    TEXT,
    Node,
)

_JOINERS = frozenset({"join", "joinpath", "Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath"})
_SAME = frozenset(
    {
        *("abspath", "realpath", "expanduser", "expandvars", "normpath", "fspath", "str", "resolve", "absolute"),
        *("as_posix", "strip", "rstrip", "__fspath__"),
    }
)
"""What gives the same path, written in another way."""
_OF_THEMSELVES = frozenset({"strip", "rstrip", "resolve"})
"""Methods that are never functions which are given a path."""
_OF_TEXTS = frozenset({"format", "format_map", "replace"})
_PLACES = {"getcwd": ".", "cwd": ".", "home": "~"}
"""Of functions of the system: where they lead."""
_NAMING = frozenset({"with_name", "with_suffix", "with_stem"})
_RESOURCES = frozenset({"read_text", "read_binary", "open_text", "open_binary", "path", "contents", "get_data"})
METHODS = _SAME | _OF_TEXTS | _NAMING | {"joinpath"}
_FIELD = re.compile(r"\{([^{}!:.\[]*)[^{}]*\}")
_PLACE = re.compile(r"%(?:\((\w+)\))?[-+ #0-9.*]*[diouxXeEfFgGcrsa]")
_MOST, _DEEP = 16, 24


class Hole(NamedTuple):
    """What stands in a path for something that its expression does not say."""

    name: str = ""
    """By which it is known there: of a variable or an attribute; empty for others."""
    is_open: bool = False
    """Whether it may be something else than what goes by the name elsewhere: an argument."""
    is_template: bool = False
    """Whether something is put into the places (`{}`, `%s`) of what goes by the name."""
    put: tuple[str, ...] = ()
    """Texts that are."""


Parts = tuple[str | Hole, ...]
"""A path, or a text that may be one, as far as an expression says it."""


VARIABLE = "$"
"""The name of a hole begins with it that a variable of the environment stands in."""
_UNKNOWN: list[Parts] = [(Hole(),)]


def called(node: Node) -> str:
    """Return what a call calls; empty for what is no call."""
    return node.parts[0].name if node.kind == CALL and node.parts else ""


def is_made(node: Node) -> bool:
    """Whether a path may be made of its parts."""
    if node.kind in (OPERATION, TEXT, EITHER):
        return node.kind != OPERATION or str(node.value).strip("=") in ("/", "+", "%")
    if node.kind == ITEM:
        return node.parts[0].kind == ATTRIBUTE and node.parts[0].name in ("parents", "argv")
    name = called(node)
    if name == "join":  # of paths, not of a list
        return len(node.parts) > 2 or _listed(node) is not None or _is_starred(node.parts[-1])
    if name in _RESOURCES:
        return len(node.arguments) > 1 and _package_of(node) is not None
    return name in _JOINERS | _SAME | _OF_TEXTS | _NAMING | _PLACES.keys() | {"dirname", "files"}


def goes_on(node: Node, user: Node) -> bool:
    """Whether what uses a value only makes a longer path of it."""
    if user.kind == OTHER:  # a list
        return any(called(each) == "join" and _listed(each) == user.parts for each in user.users)
    if user.kind == ATTRIBUTE:
        if user.name in ("parent", "parents"):
            return True
        return user.name in METHODS and any(each.kind == CALL and each.parts[0] is user for each in user.users)
    return is_made(user) and not (user.kind == CALL and user.parts[0] is node)


class Paths:
    """What the values of one function may be as paths.

    Args:
        arguments: The names of its arguments.
    """

    def __init__(self, arguments: frozenset[str]) -> None:
        self._arguments = arguments
        self._known: dict[Node, list[Parts]] = {}
        self._depth = 0

    def of(self, node: Node) -> list[Parts]:
        """Return what the path may be that a value is; several where code decides."""
        known = self._known.get(node)
        if known is None:
            self._depth += 1
            known = self._known[node] = self._read(node) if self._depth < _DEEP else _UNKNOWN
            self._depth -= 1
        return known

    def of_modules(self, node: Node, package: object = None) -> list[Parts]:
        """Return the folders of modules of whose name a value is only the beginning: `f"tasks.{name}"`.

        Args:
            node: The value.
            package: Where relative names begin, if the code says that; else that of its own file.
        """
        return [found for parts in self.of(node) if (found := _folder_of_modules(parts, package))]

    def _read(self, node: Node) -> list[Parts]:
        of = self.of
        if node.kind == CONST:
            return [(text,) for text in _texts_in(node.value)] or _UNKNOWN
        if node.kind == NAME:
            return [(Hole(node.name, is_open=node.is_local and node.name in self._arguments),)]
        if node.kind == ATTRIBUTE:
            if node.name == "sep":
                return [("/",)]
            return _with(of(node.parts[0]), "/..") if node.name == "parent" else [(Hole(node.name),)]
        if _is_starred(node):
            return [(Hole(), "/", Hole())]
        if (variable := _variable(node)) is not None:
            default = node.arguments[1:2] if node.kind == CALL else []
            return [(Hole(VARIABLE + variable),), *(each for value in default for each in of(value))]
        if not is_made(node):
            return _UNKNOWN
        if node.kind == EITHER:
            return [*dict.fromkeys([*of(node.parts[0]), *of(node.parts[1])])][:_MOST]
        if node.kind == TEXT:
            return _joined([of(each) for each in node.parts], "")
        if node.kind == ITEM and node.parts[0].name == "argv":
            return [(Hole("__file__"),)] if node.parts[1].value == 0 else _UNKNOWN
        if node.kind == ITEM:
            above = node.parts[1].value
            return _with(of(node.parts[0].parts[0]), "/.." * (above + 1)) if isinstance(above, int) else _UNKNOWN
        if node.kind == OPERATION:
            sign = str(node.value).strip("=")
            if sign == "%":
                return self._filled(node.parts[0], _PLACE, [node.parts[1]], {})
            return _joined([of(each) for each in node.parts[:2]], "/" if sign == "/" else "")
        return self._of_call(node)

    def _of_call(self, node: Node) -> list[Parts]:
        of, function, name, given = self.of, node.parts[0], called(node), node.arguments
        base = [function.parts[0]] if function.kind == ATTRIBUTE and name in METHODS and function.parts else []
        if name == "join" and (listed := _listed(node)) is not None:
            return _joined([*map(of, listed)], "/")
        if (package := _package_of(node)) is not None:
            return _joined([[(Hole(f"{package}:package"),)], *map(of, given[1:])], "/")
        if name == "files":
            of_name = given[0].name if given else ""
            is_here = of_name in ("__package__", "__name__")
            return [(Hole("__file__"), "/..")] if is_here else [(Hole(f"{of_name}:module"),)]
        if name in _PLACES:
            return [(_PLACES[name],)]
        if name == "dirname":
            return _with(of(given[0]), "/..") if given else _UNKNOWN
        if name == "format_map" and base:
            return self._filled(base[0], _FIELD, [], {})
        if name == "format" and base:
            named = dict(zip(node.value, node.parts[len(node.parts) - len(node.value) :], strict=True))
            return self._filled(base[0], _FIELD, given, named)
        if name == "replace" and base:
            return self._replaced(of(base[0]), given)
        if name in _NAMING and base:
            named_anew = map(of, given) if name == "with_name" else [_UNKNOWN]
            return _joined([_with(of(base[0]), "/.."), *named_anew], "/")
        if name in _SAME:
            same = [*base, *given] if name in _OF_THEMSELVES else [*given, *base]
            return of(same[0]) if same else _UNKNOWN
        return _joined([*map(of, base), *map(of, given)], "/")

    def _replaced(self, texts: list[Parts], given: list[Node]) -> list[Parts]:
        """Return what `"prompts/NAME.txt".replace("NAME", name)` becomes; begun, where that is not known."""
        old = given[0].value if len(given) > 1 and given[0].kind == CONST else None
        found: list[Parts] = []
        for parts in texts:
            if isinstance(old, str) and old and any(isinstance(each, str) and old in each for each in parts):
                pieces: list[list[Parts]] = []
                for part in parts:
                    split = part.split(old) if isinstance(part, str) else [part]
                    for number, each in enumerate(split):
                        pieces += [self.of(given[1])] if number else []
                        pieces.append([(each,)])
                found += _joined(pieces, "")
            else:
                found.append((*_begun(parts), Hole()))
                found += [parts] if isinstance(parts[-1], Hole) else []  # which may go by a path: one beside that
        return found[:_MOST]

    def _filled(self, text: Node, places: re.Pattern[str], given: list[Node], named: dict[str, Node]) -> list[Parts]:
        """Return what a text with places in it (`"prompts/%s.txt"`, `"{}/a"`) becomes."""
        if len(given) == 1 and given[0].kind == OTHER:  # a tuple
            given = given[0].parts
        of, found = self.of, list[Parts]()
        for begun in of(text):
            pieces: list[list[Parts]] = []
            number = 0
            for part in begun:
                if isinstance(part, Hole):
                    texts = [piece for each in (*given, *named.values()) for parts in of(each) for piece in parts]
                    put = tuple(dict.fromkeys(each for each in texts if isinstance(each, str)))
                    pieces.append([(part._replace(is_template=True, put=put),)])
                    continue
                end = 0
                for match in places.finditer(part):
                    pieces.append([(part[end : match.start()],)])
                    end, name = match.end(), match.group(1)
                    value = named.get(name or "")
                    if value is None and (not name or name.isdigit()):
                        at = int(name) if name else number
                        value, number = given[at] if at < len(given) else None, number + 1
                    pieces.append(_UNKNOWN if value is None else of(value))
                pieces.append([(part[end:],)])
            found += _joined(pieces, "")
        return found[:_MOST]


def _variable(node: Node) -> str | None:
    """Return the variable of the environment that a value is, `os.environ["A"]` or `getenv("A")`; None for others."""
    name: Node | None = None
    if node.kind == ITEM and node.parts[0].name == "environ":
        name = node.parts[1]
    elif (called(node) == "getenv" or _is_get(node)) and node.arguments:
        name = node.arguments[0]
    return name.value if name is not None and name.kind == CONST and isinstance(name.value, str) else None


def _is_get(node: Node) -> bool:
    return called(node) == "get" and node.parts[0].kind == ATTRIBUTE and node.parts[0].parts[0].name == "environ"


def _is_starred(node: Node) -> bool:
    return node.kind == OTHER and node.value == STARRED


def _listed(node: Node) -> list[Node] | None:
    """Return what `"/".join([...])` joins; None for other calls."""
    base = node.parts[0].parts[:1]
    is_sep = bool(base) and (base[0].value == "/" or base[0].name == "sep")
    return node.arguments[0].parts if is_sep and node.arguments and node.arguments[0].kind == OTHER else None


def _package_of(node: Node) -> str | None:
    """Return the package whose files a call of `importlib.resources` is for; None for others."""
    given = node.arguments
    if called(node) not in _RESOURCES | {"files"} or not given or given[0].kind != CONST:
        return None
    name = given[0].value
    return name if isinstance(name, str) and all(map(str.isidentifier, name.split("."))) else None


def _folder_of_modules(parts: Parts, beside: object) -> Parts | None:
    """Return the files of the package that the name of a module begins with, if it goes on with something unknown."""
    begins = parts[0]
    if len(parts) < 2 or not isinstance(begins, str) or "." not in begins:
        return None
    level = len(begins) - len(begins.lstrip("."))
    package = begins[level:].rpartition(".")[0]
    if level and isinstance(beside, str):
        above = beside.split(".")[: 1 - level or None]
        package, level = ".".join([*above, *filter(None, [package])]), 0
    if not level:
        return (Hole(f"{package}:modules"), "/", Hole(), ".py")
    within = f"/{package.replace('.', '/')}" if package else ""
    return (Hole("__file__"), "/.." * level + within + "/", Hole(), ".py")


def _begun(parts: Parts) -> Parts:
    """Return a path up to its last folder."""
    *before, last = parts
    return (*before, last.rpartition("/")[0] + "/") if isinstance(last, str) and "/" in last else ()


def _with(paths: list[Parts], behind: str) -> list[Parts]:
    return [(*parts, behind) for parts in paths]


def _joined(pieces: list[list[Parts]], between: str) -> list[Parts]:
    """Return all that paths joined one behind the other may be."""
    found: list[Parts] = []
    for chosen in product(*(each[:_MOST] for each in pieces)):
        parts: list[str | Hole] = []
        for piece in chosen:
            parts += [between] if between and parts else []
            parts += piece
        found.append(_run_together(parts))
        if len(found) >= _MOST:
            break
    return [*dict.fromkeys(found)]


def _run_together(parts: list[str | Hole]) -> Parts:
    out: list[str | Hole] = []
    for each in parts:
        if isinstance(each, str) and out and isinstance(out[-1], str):
            out[-1] += each
        elif each != "":
            out.append(each)
    return tuple(out) or ("",)


def without_places(text: str, put: str) -> str:
    """Return a template with something in all its places: what it becomes."""
    return _FIELD.sub(put, _PLACE.sub(put, text))


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | frozenset):
        for each in value:
            yield from _texts_in(each)
