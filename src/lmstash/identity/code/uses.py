"""What code does with the names and texts in it: reads them, counts them up, writes to their files.

Told by the expressions that they are part of. What is not recognised is taken to be read.
"""

from __future__ import annotations

import functools
import re
from types import CodeType
from typing import NamedTuple

from lmstash.identity.code.named_modules import IMPORTS
from lmstash.identity.dataflow.expressions import (
    ATTRIBUTE,
    CALL,
    CONST,
    NAME,
    OPERATION,
    STORED,
    Node,
    code_within,
    expressions,
)
from lmstash.identity.dataflow.path_parts import METHODS, Hole, Parts, Paths, called, goes_on

READ, COUNTED, WRITTEN = "read", "counted", "written"
FILE, FOLDER, LOG, NAMED = "file", "folder", "log", "named"
_OF_PATHS = frozenset({"mkdir", "touch", "unlink", "write_text", "write_bytes", "rmdir"})
_OF_NAMES = frozenset({"suffix", "stem"})
"""Of a `Path`: what reads nothing of the file, and changes it or only goes by its name."""
_WRITERS = frozenset(
    {
        *("to_csv", "to_json", "to_parquet", "to_excel", "to_pickle", "savefig", "imwrite", "makedirs", "mkdir"),
        *("savez", "savez_compressed", "savetxt", "save_file", "save_pretrained", "imsave"),
        *("to_feather", "to_hdf", "to_html", "write_csv", "write_parquet", "write_json"),
    }
)
"""What only writes to the files that it is given."""
_LOGS = frozenset({"basicConfig", "FileHandler", "RotatingFileHandler", "TimedRotatingFileHandler"})
"""What only adds to them."""
_WRITERS_OF = {
    "save": frozenset({"np", "numpy", "torch"}),
    "remove": frozenset({"os"}),
    "unlink": frozenset({"os"}),
}
"""Such as only write in these modules: helpers of one's own have these names, too, and may read."""
_FILES = frozenset(
    {"open", "read_text", "read_bytes", "read_csv", "load", "fromfile", "genfromtxt", "loadtxt", "chdir"}
)
_FOLDERS = frozenset({"listdir", "scandir", "walk", "glob", "iglob", "rglob", "iterdir", "FileSystemLoader", "fwalk"})
"""What takes a text for the path of a file, or of a folder, whatever it looks like; also methods of a `Path`."""
_CHAINED, _MANY = 4, 200
_WRITE, _ADD = re.compile(r"[wax][bt]?|[bt][wax]"), re.compile(r"a[bt]?|[bt]a")


class PathUse(NamedTuple):
    """What code does with a path, or with a text that may be one."""

    parts: Parts
    use: str
    """`READ` or `WRITTEN`."""
    opens: str
    """`FILE` or `FOLDER` where it is taken for one, `LOG` for one that is only added to,
    `NAMED` for one of which only the name is gone by; else empty."""
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
    try:
        return frozenset(
            (node.name, COUNTED if _is_counted(node) else _use_of(inner, node))
            for inner in code_within(code)
            for node in expressions(inner)
            if node.kind == ATTRIBUTE or (node.kind == NAME and (of_locals or not node.is_local))
        )
    except Exception:  # bytecode of a kind that nobody has met: all of it is read
        return frozenset((name, READ) for inner in code_within(code) for name in _named_in(inner, of_locals))


@functools.lru_cache(maxsize=4096)
def paths_in(code: CodeType) -> tuple[PathUse, ...]:
    """Return all that may be paths in code and in functions within it: each text and name as part of the largest."""
    try:
        return _paths_in(code)
    except Exception:  # as above
        texts = [each for inner in code_within(code) for each in inner.co_consts if isinstance(each, str)]
        names = [Hole(name) for inner in code_within(code) for name in _named_in(inner, True)]
        return tuple(PathUse((each,), READ, kind, "") for each in (*texts, *names) for kind in (FILE, FOLDER))


@functools.lru_cache(maxsize=4096)
def replaced_in(code: CodeType) -> tuple[tuple[str, str], ...]:
    """Return what code, and functions within it, put in the place of what in texts: `p.replace("images", "labels")`."""
    found: dict[tuple[str, str], None] = {}
    try:
        for inner in code_within(code):
            for node in expressions(inner):
                given = node.arguments if node.kind == CALL and node.parts[0].name == "replace" else []
                if len(given) == 2 and all(each.kind == CONST and isinstance(each.value, str) for each in given):
                    found[given[0].value, given[1].value] = None
    except Exception:  # bytecode of a kind that nobody has met
        return ()
    return tuple(found)


def _named_in(code: CodeType, of_locals: bool) -> tuple[str, ...]:
    return (*code.co_names, *code.co_freevars, *(code.co_varnames if of_locals else ()))


def _paths_in(code: CodeType) -> tuple[PathUse, ...]:
    found: dict[PathUse, None] = {}
    for inner in code_within(code):
        arguments = frozenset(inner.co_varnames[: inner.co_argcount + inner.co_kwonlyargcount])
        read = Paths(arguments)
        for node in expressions(inner):
            if called(node) in IMPORTS and node.arguments:
                beside = node.argument("package") or (node.arguments[1:2] or [None])[0]
                package = beside.value if beside is not None and beside.kind == CONST else None
                for name in _said(inner, node.arguments[0]):
                    found |= {PathUse(parts, READ, FILE, ""): None for parts in read.of_modules(name, package)}
            if not _may_be_path(node):
                continue
            ends = [user for user in node.users if not goes_on(node, user)]
            for use, opens, stored_as in dict.fromkeys(_end(inner, node, user) for user in ends):
                for parts in read.of(node):
                    found[PathUse(parts, use, opens, stored_as)] = None
    return tuple(found)


def _said(code: CodeType, node: Node) -> list[Node]:
    """Return what a local variable may hold; of others themselves."""
    if node.kind != NAME or not node.is_local:
        return [node]
    stored = [each for each in expressions(code) if each.kind == STORED and each.value == node.value]
    return [part for each in stored for part in each.parts]


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


def _end(code: CodeType, node: Node, user: Node, within: frozenset[str] = frozenset()) -> tuple[str, str, str]:
    """Return what is done with a value where it is used: the use, what it is opened as, what it is stored as."""
    if user.kind == STORED:
        if user.is_local and len(within) < _CHAINED and _all_written(code, str(user.value), within):
            return WRITTEN, "", ""
        return READ, "", str(user.value)
    if user.kind == CALL and user.parts[0] is not node:
        name = user.parts[0].name
        if name == "open":
            return (WRITTEN, LOG if _is_mode(user, 1, _ADD) else FILE, "") if _is_mode(user, 1) else (READ, FILE, "")
        if name in _LOGS:
            return WRITTEN, LOG, ""
        if name in _WRITERS or _is_of_module(user.parts[0], _WRITERS_OF.get(name)):
            return WRITTEN, "", ""
        return READ, FILE if name in _FILES else FOLDER if name in _FOLDERS else "", ""
    if user.kind == ATTRIBUTE:
        calls = [each for each in user.users if each.kind == CALL and each.parts[0] is user]
        if user.name == "open" and calls and all(_is_mode(each, 0) for each in calls):
            return WRITTEN, LOG if all(_is_mode(each, 0, _ADD) for each in calls) else "", ""
        if user.name in _OF_PATHS | _OF_NAMES:
            return WRITTEN, NAMED if user.name in _OF_NAMES else "", ""
        return READ, FOLDER if user.name in _FOLDERS else FILE if user.name in _FILES else "", ""
    return READ, "", ""


def _is_of_module(function: Node, modules: frozenset[str] | None) -> bool:
    return modules is not None and function.kind == ATTRIBUTE and function.parts[0].name in modules


def _is_mode(call: Node, place: int, wanted: re.Pattern[str] = _WRITE) -> bool:
    """Whether a call of `open` only writes, or what else is wanted of its mode."""
    given = call.arguments
    mode = given[place] if len(given) > place else call.argument("mode")
    return (
        mode is not None and isinstance(mode.value, str) and mode.kind == CONST and bool(wanted.fullmatch(mode.value))
    )


def _use_of(code: CodeType, node: Node, within: frozenset[str] = frozenset()) -> str:
    """Return `WRITTEN` if all that is made of a value is only written to.

    Args:
        code: In which it is.
        node: The value.
        within: Local variables whose uses are being looked at: what goes back into one is nothing else.
    """
    if len(within) > 1 and len(expressions(code)) > _MANY:  # variables made of each other: each way would be gone
        return READ
    todo, seen, ends = [node], set[int](), 0
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        for user in each.users:
            if goes_on(each, user):
                calls = [call for call in user.users if call.kind == CALL and call.parts[0] is user]
                todo += calls if user.kind == ATTRIBUTE and user.name in METHODS else [user]
                continue
            ends += 1
            if not (user.kind == STORED and user.is_local and user.value in within):
                use, _, stored_as = _end(code, each, user, within)
                if use != WRITTEN or stored_as:
                    return READ
    return WRITTEN if ends else READ


def _all_written(code: CodeType, variable: str, within: frozenset[str]) -> bool:
    """Return whether all that a local variable holds is only written to."""
    uses = [node for node in expressions(code) if node.kind == NAME and node.is_local and node.value == variable]
    return bool(uses) and all(_use_of(code, node, within | {variable}) == WRITTEN for node in uses)
