"""What code does with the names and texts in it: reads them, counts them up, writes to their files.

Told by the expressions that they are part of. What is not recognised is taken to be read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from itertools import product
from types import CodeType
from typing import Any, NamedTuple

from lmstash.identity.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    EITHER,
    ITEM,
    NAME,
    OPERATION,
    OTHER,
    STORED,
    TEXT,
    Node,
    code_within,
    expressions,
)

READ, COUNTED, WRITTEN = "read", "counted", "written"
FILE, FOLDER = "file", "folder"
_OF_PATHS = frozenset({"mkdir", "touch", "unlink", "write_text", "write_bytes", "suffix", "stem", "rmdir"})
"""Of a `Path`: what reads nothing of the file."""
_WRITERS = frozenset(
    {
        *("to_csv", "to_json", "to_parquet", "to_excel", "to_pickle", "savefig", "imwrite", "makedirs", "mkdir"),
        *("save", "savez", "savez_compressed", "savetxt", "save_file", "save_pretrained", "imsave"),
        *("to_feather", "to_hdf", "to_html", "write_csv", "write_parquet", "write_json", "remove", "unlink"),
        *("basicConfig", "FileHandler", "RotatingFileHandler", "TimedRotatingFileHandler"),
    }
)
"""What only writes to the files that it is given."""
_FILES = frozenset({"open", "read_text", "read_bytes", "read_csv", "load", "fromfile", "genfromtxt", "loadtxt"})
_FOLDERS = frozenset(
    {"listdir", "scandir", "walk", "glob", "iglob", "rglob", "iterdir", "FileSystemLoader", "fwalk", "chdir"}
)
"""What takes a text for the path of a file, or of a folder, whatever it looks like; also methods of a `Path`."""
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
_OF_TEXTS = frozenset({"format", "replace"})
_NAMING = frozenset({"with_name", "with_suffix", "with_stem"})
_RESOURCES = frozenset({"read_text", "read_binary", "open_text", "open_binary", "path", "contents", "get_data"})
_METHODS = _SAME | _OF_TEXTS | _NAMING | {"joinpath"}
_FIELD = re.compile(r"\{([^{}!:.\[]*)[^{}]*\}")
_PLACE = re.compile(r"%(?:\((\w+)\))?[-+ #0-9.*]*[diouxXeEfFgGcrsa]")
_MOST, _DEEP = 16, 24
_WRITE = re.compile(r"[wax][bt]?|[bt][wax]")


class Hole(NamedTuple):
    """What stands in a path for something that its expression does not say."""

    name: str = ""
    """By which it is known there: of a variable or an attribute; empty for others."""
    is_open: bool = False
    """Whether it may be something else than what goes by the name elsewhere: an argument."""
    is_template: bool = False
    """Whether something is put into the places (`{}`, `%s`) of what goes by the name."""


Parts = tuple[str | Hole, ...]
"""A path, or a text that may be one, as far as an expression says it."""


class PathUse(NamedTuple):
    """What code does with a path, or with a text that may be one."""

    parts: Parts
    use: str
    """`READ` or `WRITTEN`."""
    opens: str
    """`FILE` or `FOLDER` where it is taken for one; else empty."""
    stored_as: str
    """By what it goes from then on; empty where it is used at once."""


@functools.lru_cache(maxsize=4096)
def uses_of(code: CodeType, *, of_locals: bool = False) -> frozenset[tuple[str, str]]:
    """Return each attribute, global and variable from outside that code, or a function within it, loads, and its use.

    The use is `READ`, `COUNTED` or `WRITTEN`.

    Args:
        code: Of a function.
        of_locals: Whether its local variables are told, too.
    """
    return frozenset(
        (node.name, COUNTED if _is_counted(node) else _use_of(inner, node))
        for inner in code_within(code)
        for node in expressions(inner)
        if node.kind == ATTRIBUTE or (node.kind == NAME and (of_locals or not node.is_local))
    )


@functools.lru_cache(maxsize=4096)
def paths_in(code: CodeType) -> tuple[PathUse, ...]:
    """Return all that may be paths in code and in functions within it: each text and name as part of the largest."""
    found: dict[PathUse, None] = {}
    for inner in code_within(code):
        arguments = frozenset(inner.co_varnames[: inner.co_argcount + inner.co_kwonlyargcount])
        for node in expressions(inner):
            if not _may_be_path(node):
                continue
            ends = [user for user in node.users if not _goes_on(node, user)]
            for use, opens, stored_as in dict.fromkeys(_end(inner, node, user) for user in ends):
                for parts in _parts(node, arguments, _DEEP):
                    found[PathUse(parts, use, opens, stored_as)] = None
    return tuple(found)


def _may_be_path(node: Node) -> bool:
    if node.kind == CONST:
        return isinstance(node.value, str | tuple | frozenset)
    return node.kind != STORED


# --- where a value goes ----------------------------------------------------------------------------------------------


def _is_counted(node: Node) -> bool:
    """Whether it is an attribute of the object that gets it back: `self.n += 1`."""
    sums = [user for user in node.users if user.kind == OPERATION and str(user.value).endswith("=")]
    back = [user for each in sums for user in each.users if user.kind == STORED and user.value == node.value]
    return node.kind == ATTRIBUTE and bool(back) and len(sums) == len(node.users)


def _called(node: Node) -> str:
    """Return what a call calls; empty for what is no call."""
    return node.parts[0].name if node.kind == CALL and node.parts else ""


def _is_made(node: Node) -> bool:
    """Whether a path may be made of its parts."""
    if node.kind in (OPERATION, TEXT, EITHER):
        return node.kind != OPERATION or str(node.value).strip("=") in ("/", "+", "%")
    if node.kind == ITEM:
        return node.parts[0].name == "parents"
    name = _called(node)
    if name == "join":  # of paths, not of a list
        return len(node.parts) > 2 or _listed(node) is not None
    if name in _RESOURCES:
        return len(node.arguments) > 1 and _package_of(node) is not None
    return name in _JOINERS | _SAME | _OF_TEXTS | _NAMING | {"dirname", "files"}


def _goes_on(node: Node, user: Node) -> bool:
    """Whether what uses a value only makes a longer path of it."""
    if user.kind == OTHER:  # a list
        return any(_called(each) == "join" and _listed(each) == user.parts for each in user.users)
    if user.kind == ATTRIBUTE:
        if user.name in ("parent", "parents"):
            return True
        return user.name in _METHODS and any(each.kind == CALL and each.parts[0] is user for each in user.users)
    return _is_made(user) and not (user.kind == CALL and user.parts[0] is node)


def _end(code: CodeType, node: Node, user: Node) -> tuple[str, str, str]:
    """Return what is done with a value where it is used: the use, what it is opened as, what it is stored as."""
    if user.kind == STORED:
        if user.is_local and _all_written(code, str(user.value)):
            return WRITTEN, "", ""
        return READ, "", str(user.value)
    if user.kind == CALL and user.parts[0] is not node:
        name = user.parts[0].name
        if name == "open":
            return (WRITTEN if _is_mode(user, 1) else READ), FILE, ""
        if name in _WRITERS:
            return WRITTEN, "", ""
        return READ, FILE if name in _FILES else FOLDER if name in _FOLDERS else "", ""
    if user.kind == ATTRIBUTE:
        calls = [each for each in user.users if each.kind == CALL and each.parts[0] is user]
        if user.name in _OF_PATHS or (user.name == "open" and calls and all(_is_mode(each, 0) for each in calls)):
            return WRITTEN, "", ""
        return READ, FOLDER if user.name in _FOLDERS else FILE if user.name in _FILES else "", ""
    return READ, "", ""


def _is_mode(call: Node, place: int) -> bool:
    """Whether a call of `open` only writes."""
    given = call.arguments
    mode = given[place] if len(given) > place else call.argument("mode")
    return mode is not None and isinstance(mode.value, str) and mode.kind == CONST and _is_write(mode.value)


def _is_write(mode: str) -> bool:
    return _WRITE.fullmatch(mode) is not None


def _use_of(code: CodeType, node: Node) -> str:
    """Return `WRITTEN` if all that is made of a value is only written to."""
    todo, seen, ends = [node], set[int](), 0
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        for user in each.users:
            if _goes_on(each, user):
                calls = [call for call in user.users if call.kind == CALL and call.parts[0] is user]
                todo += calls if user.kind == ATTRIBUTE and user.name in _METHODS else [user]
                continue
            ends += 1
            use, _, stored_as = _end(code, each, user)
            if use != WRITTEN or stored_as:
                return READ
    return WRITTEN if ends else READ


@functools.lru_cache(maxsize=4096)
def _all_written(code: CodeType, variable: str) -> bool:
    """Return whether all that a local variable holds is only written to."""
    uses = [node for node in expressions(code) if node.kind == NAME and node.is_local and node.value == variable]
    if not uses or any(user.kind == STORED for node in uses for user in node.users):
        return False
    return all(_use_of(code, node) == WRITTEN for node in uses)


# --- what a path is made of ------------------------------------------------------------------------------------------


def _parts(node: Node, arguments: frozenset[str], depth: int) -> list[Parts]:
    """Return what the path may be that a value is; several where code decides."""
    if depth <= 0:
        return [(Hole(),)]

    def of(each: Node) -> list[Parts]:
        return _parts(each, arguments, depth - 1)

    if node.kind == CONST:
        return [(text,) for text in _texts_in(node.value)] or [(Hole(),)]
    if node.kind == NAME:
        return [(Hole(node.name, is_open=node.is_local and node.name in arguments),)]
    if node.kind == ATTRIBUTE:
        if node.name == "sep":
            return [("/",)]
        return _with(of(node.parts[0]), "/..") if node.name == "parent" else [(Hole(node.name),)]
    if node.kind == EITHER:
        return [*dict.fromkeys([*of(node.parts[0]), *of(node.parts[1])])][:_MOST]
    if node.kind == TEXT:
        return _joined([of(each) for each in node.parts], "")
    if node.kind == ITEM and node.parts[0].name == "parents" and isinstance(node.parts[1].value, int):
        return _with(of(node.parts[0].parts[0]), "/.." * (node.parts[1].value + 1))
    if node.kind == OPERATION and _is_made(node):
        sign = str(node.value).strip("=")
        if sign == "%":
            return _filled(node.parts[0], _PLACE, [node.parts[1]], {}, of)
        return _joined([of(each) for each in node.parts[:2]], "/" if sign == "/" else "")
    return _of_call(node, of) if _is_made(node) else [(Hole(),)]


def _of_call(node: Node, of: Any) -> list[Parts]:
    function, name = node.parts[0], _called(node)
    base = [function.parts[0]] if function.kind == ATTRIBUTE and name in _METHODS and function.parts else []
    given = node.arguments
    if name == "join" and (listed := _listed(node)) is not None:
        return _joined([*map(of, listed)], "/")
    if (package := _package_of(node)) is not None:
        return _joined([[(Hole(f"{package}:package"),)], *map(of, given[1:])], "/")
    if name == "files":
        return [(Hole("__file__"), "/..")] if given and given[0].name in ("__package__", "__name__") else [(Hole(),)]
    if name == "dirname":
        return _with(of(given[0]), "/..") if given else [(Hole(),)]
    if name == "format" and base:
        named = dict(zip(node.value, node.parts[len(node.parts) - len(node.value) :], strict=True))
        return _filled(base[0], _FIELD, given, named, of)
    if name == "replace" and base:
        return [(*_begun(each), Hole()) for each in of(base[0])]
    if name in _NAMING and base:
        return _joined([_with(of(base[0]), "/.."), *(map(of, given) if name == "with_name" else [[(Hole(),)]])], "/")
    if name in _SAME:
        same = [*base, *given] if name in _OF_THEMSELVES else [*given, *base]
        return of(same[0]) if same else [(Hole(),)]
    return _joined([*map(of, base), *map(of, given)], "/")


def _listed(node: Node) -> list[Node] | None:
    """Return what `"/".join([...])` joins; None for other calls."""
    base = node.parts[0].parts[:1]
    is_sep = bool(base) and (base[0].value == "/" or base[0].name == "sep")
    return node.arguments[0].parts if is_sep and node.arguments and node.arguments[0].kind == OTHER else None


def _package_of(node: Node) -> str | None:
    """Return the package whose files a call of `importlib.resources` is for; None for others."""
    given = node.arguments
    if _called(node) not in _RESOURCES | {"files"} or not given or given[0].kind != CONST:
        return None
    name = given[0].value
    return name if isinstance(name, str) and all(map(str.isidentifier, name.split("."))) else None


def _filled(text: Node, places: re.Pattern[str], given: list[Node], named: dict[str, Node], of: Any) -> list[Parts]:
    """Return what a text with places in it (`"prompts/%s.txt"`, `"{}/a"`) becomes."""
    if len(given) == 1 and given[0].kind == OTHER:  # a tuple
        given = given[0].parts
    found: list[Parts] = []
    for parts in of(text):
        pieces: list[list[Parts]] = []
        number = 0
        for part in parts:
            if isinstance(part, Hole):
                pieces.append([(part._replace(is_template=True),)])
                continue
            end = 0
            for match in places.finditer(part):
                pieces.append([(part[end : match.start()],)])
                end, name = match.end(), match.group(1)
                put = named.get(name or "")
                if put is None and (not name or name.isdigit()):
                    at = int(name) if name else number
                    put, number = given[at] if at < len(given) else None, number + 1
                pieces.append([(Hole(),)] if put is None else of(put))
            pieces.append([(part[end:],)])
        found += _joined(pieces, "")
    return found[:_MOST]


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
