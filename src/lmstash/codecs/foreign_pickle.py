"""Follows a pickle that another tool wrote, opcode by opcode, without unpickling it.

What comes out is a description in plain data: numbers, texts, tuples, lists, dicts with texts for keys, and, in place
of everything that unpickling would make, what was written about it: a `Name` for a global, a `Made` for a call, a
`Span` for bytes (where they lie; they are not read), a `Referred` for a persistent id. Nothing is imported, called or
looked up, whatever the file names. The caller compares the description with the one layout that it knows, by `match`,
and must not print, hash or walk what it does not know: a memo can make a short pickle describe a tree of any size.

Source of the opcodes' meaning: the docstrings of Python's `pickletools`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from lmstash.errors import CorruptEntryError

MAX_TEXT_BYTES: Final = 1024
"""Longest text that is read by default; names and dtypes are far shorter."""
MAX_NUMBER_BYTES: Final = 16
MAX_OPCODES: Final = 1000
"""By default; one tensor or one state takes less than two hundred."""


class Seekable(Protocol):
    """What is read from: an open file, `io.BytesIO`, a blob of SQLite."""

    def read(self, n_bytes: int, /) -> bytes:
        """Return the next `n_bytes`, fewer at the end."""
        ...

    def seek(self, place: int, /) -> Any:
        """Go to `place`, counted from the beginning."""
        ...


class Name(NamedTuple):
    """A global that the pickle mentions; never imported."""

    module: str
    name: str


class Span(NamedTuple):
    """Bytes in the pickle that were passed over."""

    start: int
    n_bytes: int


class Referred(NamedTuple):
    """What a persistent id stands for, unresolved."""

    id: Any


@dataclass(eq=False)
class Made:
    """What unpickling would make by calling `function` with `arguments`, then giving it `state`."""

    function: Name
    arguments: tuple[Any, ...]
    state: Any = None


_MARK = object()
_INTS = {ord("K"): struct.Struct("<B"), ord("M"): struct.Struct("<H"), ord("J"): struct.Struct("<i")}
_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_TEXT_LENGTHS = {0x8C: struct.Struct("<B"), ord("X"): struct.Struct("<I")}
_BYTES_LENGTHS = {
    ord("C"): struct.Struct("<B"),
    ord("B"): struct.Struct("<I"),
    0x8E: struct.Struct("<Q"),
    0x96: struct.Struct("<Q"),
}
_MEMO_PUTS = {ord("q"): struct.Struct("<B"), ord("r"): struct.Struct("<I")}
_MEMO_GETS = {ord("h"): struct.Struct("<B"), ord("j"): struct.Struct("<I")}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_PROTO, _FRAME, _MEMOIZE, _STOP = 0x80, 0x95, 0x94, ord(".")
_FRAME_LENGTH = struct.Struct("<Q")
_FLOAT = struct.Struct(">d")


def follow(
    file: Seekable,
    n_bytes: int,
    *,
    names: Collection[Name],
    max_opcodes: int = MAX_OPCODES,
    max_text_bytes: int = MAX_TEXT_BYTES,
) -> Any:
    """Return what the pickle in the first `n_bytes` of `file` describes.

    Cost: about 0.4 us an opcode; memory for `max_opcodes` objects at most; bytes are passed over, not read.

    Args:
        file: Read from its beginning.
        n_bytes: The pickle ends exactly here.
        names: The globals that the pickle may mention.
        max_opcodes: More are refused.
        max_text_bytes: Longer texts are refused.

    Raises:
        CorruptEntryError: The pickle is damaged, or uses what a plain value does not need: any opcode but those that
            pickle protocols 2 to 5 use for the plain data above, or a global that is not in `names`.
        OSError: From `file`.
    """
    return _Follower(file, n_bytes, frozenset(names), max_text_bytes).run(max_opcodes)


class _Follower:
    def __init__(self, file: Seekable, n_bytes: int, names: frozenset[Name], max_text_bytes: int) -> None:
        self.file = file
        self.end = n_bytes
        self.at = 0
        self.names = names
        self.max_text_bytes = max_text_bytes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, max_opcodes: int) -> Any:
        self.file.seek(0)
        if self.take(1)[0] != _PROTO or not 2 <= self.take(1)[0] <= 5:
            raise CorruptEntryError("it is not a pickle of protocol 2 to 5")
        try:
            for _ in range(max_opcodes):
                opcode = self.take(1)[0]
                if opcode == _STOP:
                    break
                self.step(opcode)
            else:
                raise CorruptEntryError(f"it has more than {max_opcodes:,} opcodes")
        except (IndexError, KeyError) as error:  # from an empty stack or memo
            raise CorruptEntryError("it takes more than it gave") from error
        except (TypeError, ValueError) as error:
            raise CorruptEntryError(f"it makes no sense: {error}") from error
        if self.at != self.end:
            raise CorruptEntryError(f"{self.end - self.at:,} bytes follow its end")
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise CorruptEntryError("it describes more or less than one value")
        return self.stack[0]

    def take(self, n_bytes: int) -> bytes:
        data = self.file.read(n_bytes) if n_bytes <= self.end - self.at else b""
        if len(data) != n_bytes:
            raise CorruptEntryError("it ends early")
        self.at += n_bytes
        return data

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def step(self, opcode: int) -> None:
        stack = self.stack
        if form := _INTS.get(opcode):
            stack.append(self.number(form))
        elif opcode == _MEMOIZE:
            self.memo[len(self.memo)] = self.top()
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif form := _TEXT_LENGTHS.get(opcode):
            stack.append(self.text(self.number(form)))
        elif form := _BYTES_LENGTHS.get(opcode):
            stack.append(self.pass_over(self.number(form)))
        elif form := _MEMO_PUTS.get(opcode):
            self.memo[self.number(form)] = self.top()
        elif form := _MEMO_GETS.get(opcode):
            stack.append(self.memo[self.number(form)])
        elif opcode in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[opcode])]
            stack.append(tuple(reversed(items)))
        elif opcode == _FRAME:
            if self.number(_FRAME_LENGTH) > self.end - self.at:
                raise CorruptEntryError("it ends early")
        else:
            self.rarer(opcode)

    def rarer(self, opcode: int) -> None:
        match chr(opcode):
            case "(":
                self.stack.append(_MARK)
            case "t":
                items = self.pop_to_mark()
                self.stack.append(tuple(items))
            case "}":
                self.stack.append({})
            case "s":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "u":
                self.set_items(self.pop_to_mark())
            case "]":
                self.stack.append([])
            case "a":
                self.extend([self.pop()])
            case "e":
                self.extend(self.pop_to_mark())
            case "G":
                self.stack.append(self.number(_FLOAT))
            case "\x8a":  # LONG1
                self.stack.append(int.from_bytes(self.take(self.limited(self.take(1)[0])), "little", signed=True))
            case "c":  # GLOBAL
                self.stack.append(self.name(self.line(), self.line()))
            case "\x93":  # STACK_GLOBAL
                name, module = self.pop(), self.pop()
                self.stack.append(self.name(module, name))
            case "R" | "\x81":  # REDUCE, NEWOBJ
                arguments, function = self.pop(), self.pop()
                if not isinstance(function, Name) or type(arguments) is not tuple:
                    raise CorruptEntryError("it calls something that is no plain global")
                self.stack.append(Made(function, arguments))
            case "b":  # BUILD
                state, made = self.pop(), self.top()
                if not isinstance(made, Made) or made.state is not None or state is None:
                    raise CorruptEntryError("it gives a state to something that takes none")
                made.state = state
            case "Q":  # BINPERSID
                self.stack.append(Referred(self.pop()))
            case _:
                raise CorruptEntryError(f"it uses opcode 0x{opcode:02x}, which plain values do not need")

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise CorruptEntryError("it takes more than it gave")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise CorruptEntryError("it takes more than it gave")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise CorruptEntryError("it adds to something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            raise CorruptEntryError("it sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str or key in target:
                raise CorruptEntryError("it sets an item whose key is no text, or set already")
            target[key] = value

    def limited(self, n_bytes: int) -> int:
        if n_bytes > MAX_NUMBER_BYTES:
            raise CorruptEntryError(f"it has a number of {n_bytes} bytes")
        return n_bytes

    def text(self, n_bytes: int) -> str:
        if n_bytes > self.max_text_bytes:
            raise CorruptEntryError(f"it has a text of {n_bytes:,} bytes")
        return self.take(n_bytes).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        data = bytearray()
        while (byte := self.take(1)) != b"\n":
            data += byte
            if len(data) > MAX_TEXT_BYTES:
                raise CorruptEntryError("it has a name without an end")
        return data.decode("utf-8")

    def name(self, module: Any, name: Any) -> Name:
        if type(module) is not str or type(name) is not str:
            raise CorruptEntryError("it mentions a global whose name is no text")
        if (found := Name(module, name)) not in self.names:
            raise CorruptEntryError(f"it mentions {'.'.join(found)!a}, which plain values do not need")
        return found

    def pass_over(self, n_bytes: int) -> Span:
        if n_bytes > self.end - self.at:
            raise CorruptEntryError("it ends early")
        span = Span(self.at, n_bytes)
        self.at += n_bytes
        self.file.seek(self.at)
        return span
