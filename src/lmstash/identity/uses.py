"""What code does with the names and texts in it: reads them, counts them up, writes to their files.

Told by the instructions around each place where one is loaded. What is not recognised is taken to be read.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

READ, COUNTED, WRITTEN = "read", "counted", "written"
STORED = "stored as "
"""Begins the use of a text that goes by a name from then on."""
_LOADS = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_VARIABLES = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_LOCALS = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_BORROW"})
_IDLE = frozenset({"EXTENDED_ARG", "CACHE", "PUSH_NULL", "PRECALL", "RESUME"})
_MODES = frozenset({"w", "a", "x", "wb", "ab", "xb", "wt", "at", "xt"})
_OF_PATHS = frozenset({"mkdir", "touch", "unlink", "write_text", "write_bytes", "parent", "suffix"})
"""Of a `Path`: what reads nothing of the file."""
_WRITERS = frozenset(
    {
        *("to_csv", "to_json", "to_parquet", "to_excel", "to_pickle", "savefig", "imwrite", "makedirs", "mkdir"),
        *(
            "save",
            "savez",
            "savez_compressed",
            "savetxt",
            "save_file",
            "save_pretrained",
            "imsave",
            "write_csv",
            "to_html",
        ),
        *("to_feather", "to_hdf", "write_parquet", "write_json"),
        *("basicConfig", "FileHandler", "RotatingFileHandler", "TimedRotatingFileHandler"),
    }
)
"""What only writes to the files that it is given."""
_OPENERS = frozenset(
    {
        *("open", "Path", "PurePath", "PosixPath", "join", "joinpath", "listdir", "scandir", "walk", "glob", "iglob"),
        *("read_text", "read_csv", "FileSystemLoader", "expanduser", "abspath"),
    }
)
"""What takes a text for a path, whatever it looks like."""
_JOINERS = frozenset({"join", "joinpath", "Path", "PurePath", "PosixPath"})
_LONGEST_RUN, _LONGEST_JOIN = 6, 24
_MAKE_TEXT = ("LOAD_", "FORMAT_", "CONVERT_", "BUILD_STRING")


def uses_of(code: CodeType, *, of_locals: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each attribute, global and variable from outside that code, or a function within it, loads, and its use.

    The use is `READ`, `COUNTED` or `WRITTEN`.

    Args:
        code: Of a function.
        of_locals: Whether its local variables are told, too.
    """
    done = _instructions(code)
    for at, each in enumerate(done):
        if each.opname in _LOADS:
            is_counted = at > 0 and done[at - 1].opname == "COPY"  # of the object that gets it back: `self.n += 1`
            yield str(each.argval), COUNTED if is_counted else _use(done[max(0, at - 2)], done[at + 1 : at + 4])
        elif each.opname in _VARIABLES or (of_locals and each.opname in _LOCALS):
            yield str(each.argval), _use(done[max(0, at - 1)], done[at + 1 : at + 4])
        elif of_locals and isinstance(each.argval, tuple) and each.opname.startswith("LOAD_FAST"):  # two at once
            yield from ((str(name), READ) for name in each.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from uses_of(inner, of_locals=of_locals)


def texts_used(code: CodeType) -> Iterator[tuple[str, str, bool]]:
    """Yield each text in code, or in a function within it, that may be a path.

    Those that are joined (`Path("a") / "b"`, `join("a", "b")`) come singly and together, with their use as in
    `uses_of`, or `STORED` and a name, and whether the code takes them for a path.
    """
    done, beside = _instructions(code), "__file__" in code.co_names  # which it may look beside
    for at, each in enumerate(done):
        if not _is_constant(each):
            continue
        if not isinstance(each.argval, str):
            yield from ((text, READ, False) for text in _texts_in(each.argval))
            continue
        before, joined = done[max(0, at - 1)], ""
        opens = beside or (before.argval in _OPENERS and before.opname in _LOADS | _VARIABLES)
        for text, end in _run(done, at):
            joined = f"{joined.rstrip('/')}/{text}" if joined else text
            use = WRITTEN if _writes(done, at) else _use(before, _behind(done, end)[:3])
            if _is_beginning(done, end):  # `HERE.parent / "prompts" / f"{name}.txt"`
                behind = _behind_join(done, end + 1)
                yield joined, _use(before, done[behind : behind + 3]), True
                continue
            made = opens and end < len(done) and done[end].opname.startswith("CALL") and done[end].argval == 1
            yield joined, _stored(done[end + made : end + made + 2]) or use, opens
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from texts_used(inner)


def tails_of(code: CodeType) -> Iterator[tuple[str, str | None, str]]:
    """Yield each name that code loads, the path that is joined behind it, and the use of both together.

    The path is that of `HERE / "prompts" / "a.txt"`, `join(HERE, "prompts", "a.txt")` or `f"{HERE}/prompts/a.txt"`; of
    what is put together while the code runs it is the beginning (`prompts` of `HERE / "prompts" / f"{name}.txt"`), or
    empty. None where nothing is joined.
    """
    done = _instructions(code)
    for at, each in enumerate(done):
        if each.opname not in _VARIABLES | _LOCALS and each.opname not in _LOADS:
            continue
        before = done[max(0, at - (2 if each.opname in _LOADS else 1))]
        tail, end = _tail(done, at + 1, _takes_paths(before))
        behind = _behind_join(done, end)
        if tail is None and behind != end:
            tail = ""
        stored = _stored(done[behind : behind + 2]) if tail else None
        if stored is not None and done[behind].opname != "STORE_FAST":
            use = stored
        elif behind < len(done) and done[behind].opname == "STORE_FAST":  # what is done with it is said by that name
            use = _of_local(done, str(done[behind].argval))
        else:
            use = _use(before, done[behind : behind + 3])
        yield str(each.argval), tail, use
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from tails_of(inner)


def _tail(done: list[dis.Instruction], at: int, is_argument: bool) -> tuple[str | None, int]:
    """Return the texts that are joined behind a name, as a path, and where what comes behind them begins."""
    texts: list[str] = []
    if is_argument:  # of `join(HERE, "a", name)`
        while at < len(done) and _is_constant(done[at]) and isinstance(done[at].argval, str):
            texts.append(done[at].argval)
            at += 1
        more = at < len(done) and not done[at].opname.startswith("CALL")
        return ("/".join(texts) if texts or more else None), at + (not more)
    while at + 1 < len(done) and _is_constant(done[at]) and _joins(done[at + 1]):
        if not isinstance(done[at].argval, str):
            break
        texts.append(done[at].argval)
        at += 2
    if not texts and at + 1 < len(done) and done[at].opname.startswith("FORMAT_") and _is_constant(done[at + 1]):
        written = done[at + 1].argval
        if isinstance(written, str) and written.startswith("/"):
            whole = at + 2 < len(done) and done[at + 2].opname == "BUILD_STRING"
            return (written if whole else written.rpartition("/")[0]).strip("/"), at + (3 if whole else 2)
    return ("/".join(texts) if texts else None), at


def _takes_paths(each: dis.Instruction) -> bool:
    """Whether a function that joins its arguments is called next."""
    return each.opname in _LOADS | _VARIABLES and each.argval in _JOINERS


def _of_local(done: list[dis.Instruction], name: str) -> str:
    """Return what is done with what lies in a local variable."""
    places = [at for at, each in enumerate(done) if each.opname in _LOCALS and each.argval == name]
    whole = all(_use(done[max(0, at - 1)], done[at + 1 : at + 4]) == WRITTEN for at in places)
    # of several at once, nothing is told
    at_once = any(isinstance(each.argval, tuple) and name in each.argval for each in done)
    return WRITTEN if places and whole and not at_once else READ


def _instructions(code: CodeType) -> list[dis.Instruction]:
    return [each for each in dis.get_instructions(code) if each.opname not in _IDLE]


def _is_constant(each: dis.Instruction) -> bool:
    return each.opname.startswith("LOAD_CONST")


def _joins(each: dis.Instruction) -> bool:
    return each.opname == "BINARY_OP" and each.argrepr == "/"


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | frozenset):
        for each in value:
            yield from _texts_in(each)


def _run(done: list[dis.Instruction], at: int) -> Iterator[tuple[str, int]]:
    """Yield texts that stand one behind the other, joined or not, and where what is behind each begins."""
    for _ in range(_LONGEST_RUN):
        yield str(done[at].argval), at + 1
        at += 1
        if at < len(done) and done[at].opname.startswith("CALL"):  # of `Path("a")`
            at += 1
        if at < len(done) and _joins(done[at]):
            at += 1
        if at >= len(done) or not _is_constant(done[at]) or not isinstance(done[at].argval, str):
            return


def _is_beginning(done: list[dis.Instruction], at: int) -> bool:
    """Whether a text that ends at `at` is joined to what is before it, and what is put together then to it."""
    return (
        at < len(done) and _joins(done[at]) and _behind_join(done, at + 1) > at + 1 and not _is_constant(done[at + 1])
    )


def _behind_join(done: list[dis.Instruction], at: int) -> int:
    """Return where what comes behind `/ f"{name}.txt"` begins, if that stands at `at`; else `at`."""
    for end in range(at, min(at + _LONGEST_JOIN, len(done))):
        if _joins(done[end]):
            return end + 1
        if not done[end].opname.startswith(_MAKE_TEXT):
            break
    return at


def _behind(done: list[dis.Instruction], at: int) -> list[dis.Instruction]:
    """Return what comes behind a path whose first text ends at `at`: `Path("a")`, `HERE / "a"`, `f"a/{name}"`."""
    for end in range(at, min(at + _LONGEST_JOIN, len(done))):
        if done[end].opname == "BUILD_STRING":
            return done[end + 1 :]
        if not done[end].opname.startswith(_MAKE_TEXT):
            break
    made = at + 1 < len(done) and done[at].opname.startswith("CALL") and done[at].argval == 1
    return (
        done[at + 1 :]
        if at < len(done) and ((made and done[at + 1].opname in _LOADS) or _joins(done[at]))
        else done[at:]
    )


def _is_writer(each: dis.Instruction) -> bool:
    return each.opname in _LOADS | _VARIABLES and each.argval in _WRITERS


def _writes(done: list[dis.Instruction], at: int) -> bool:
    """Whether a text is an argument, at any place, of what only writes: `basicConfig(level=INFO, filename="a.log")`."""
    for each in reversed(done[max(0, at - _LONGEST_JOIN) : at]):
        if _is_writer(each) or not each.opname.startswith("LOAD_"):
            return _is_writer(each)
    return False


def _stored(after: list[dis.Instruction]) -> str | None:
    """Return the use of a text that is put under a name: `name = "a"`, `self.name = "a"`; None for others."""
    if not after:
        return None
    if len(after) > 1 and after[1].opname == "STORE_ATTR" and after[0].opname in _LOCALS:
        return f"{STORED}{after[1].argval}"
    is_name = after[0].opname in ("STORE_FAST", "STORE_GLOBAL", "STORE_NAME", "STORE_DEREF")
    return f"{STORED}{after[0].argval}" if is_name else None


def _use(before: dis.Instruction, after: list[dis.Instruction]) -> str:
    if not after:
        return READ
    if after[0].opname in _LOADS:
        opened = after[0].argval == "open" and _is_mode(after[1:])
        return WRITTEN if opened or after[0].argval in _OF_PATHS else READ
    if _is_writer(before):
        return WRITTEN
    opens = before.opname in _VARIABLES and before.argval == "open"
    return WRITTEN if opens and _is_mode(after) else READ


def _is_mode(after: list[dis.Instruction]) -> bool:
    """Whether what comes next is a mode to write in, as an argument: it may be a key, or a text to be added."""
    if len(after) < 2 or not _is_constant(after[0]) or after[0].argval not in _MODES:
        return False
    return after[1].opname in ("LOAD_CONST", "KW_NAMES") or after[1].opname.startswith("CALL")
