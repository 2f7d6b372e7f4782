"""Bytecode put together again as expressions: what code does with each name, text and call in it.

The instructions are followed once, from the first to the last, with what would lie on Python's stack; at the target of
a jump what lay there when it was met first. What is not understood takes what it pops and gives something unknown: so a
reader who goes from a name to what uses it finds no less than there is. Works on the bytecode of Python 3.11 and later.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

CONST, NAME, ATTRIBUTE, CALL, OPERATION, TEXT, ITEM, EITHER, STORED, OTHER = (
    *("const", "name", "attribute", "call", "operation", "text", "item", "either", "stored", "other"),
)
STARRED = "*"
"""The value of what stands for the arguments that a container holds: `f(*names)`."""
MERGED, ENTRY, RETURNED, COMPARED = "**", ":", "return", "COMPARE_OP "
"""The values of what stands in a dict display for another dict, of a key and what a comprehension puts under it, and of
what takes a result; how that of a comparison begins."""
_METHODS_LAST = sys.version_info < (3, 13)
"""Whether what a call is bound to lies below the function, and not above it."""
_IDLE = frozenset(
    {
        *("CACHE", "COPY_FREE_VARS", "DELETE_DEREF", "DELETE_FAST", "DELETE_GLOBAL", "DELETE_NAME", "EXTENDED_ARG"),
        *("MAKE_CELL", "NOP", "NOT_TAKEN", "PRECALL", "RESUME", "SETUP_ANNOTATIONS", "JUMP_FORWARD", "JUMP_BACKWARD"),
        *("JUMP_BACKWARD_NO_INTERRUPT", "GEN_START", "TO_BOOL"),
    }
)
_ENDS = frozenset(
    {
        *("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD"),
        "JUMP_BACKWARD_NO_INTERRUPT",
    }
)
"""Behind which code goes on only by a jump."""
_POPPING = ("POP_", "JUMP_IF_", "DELETE_", "STORE_SUBSCR", "STORE_SLICE", "END_", "CLEANUP_THROW", "RAISE_", "RERAISE")
"""Begin what only takes."""
_VARIABLES = frozenset({"LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE", "LOAD_FROM_DICT_OR_DEREF"})
_FIXED_SIZES = {"BUILD_TUPLE": 1, "BUILD_LIST": 1, "BUILD_SET": 1, "BUILD_MAP": 2}
_ADDED_TO = {"LIST_EXTEND": 1, "LIST_APPEND": 1, "SET_ADD": 1, "SET_UPDATE": 1, "DICT_UPDATE": 1, "DICT_MERGE": 1}


class Node:
    """One value that code handles.

    Attributes:
        kind: What it is, one of the kinds above.
        value: Of a constant itself; of a name, an attribute or a place to store in what it is called; of an operation
            its sign; of a call the names of its last arguments; of others the instruction.
        parts: What it is made of; of a call the function and then its arguments.
        users: What is made of it.
        is_local: Whether a name is one of the code's own variables.
    """

    __slots__ = ("is_local", "kind", "parts", "users", "value")

    def __init__(
        self, kind: str, value: Any = None, parts: list[Node] | None = None, *, is_local: bool = False
    ) -> None:
        """Note in its parts that it is made of them."""
        self.kind, self.value, self.parts, self.users, self.is_local = kind, value, parts or [], list[Node](), is_local
        for each in self.parts:
            each.users.append(self)

    @property
    def name(self) -> str:
        """What a name, an attribute or a called function goes by; empty for others."""
        return str(self.value) if self.kind in (NAME, ATTRIBUTE, STORED) else ""

    @property
    def arguments(self) -> list[Node]:
        """Those of a call that are given by their place."""
        return self.parts[1 : len(self.parts) - len(self.value)]

    def argument(self, name: str) -> Node | None:
        """Return the argument of a call that is given by a name."""
        named = dict(zip(self.value, self.parts[len(self.parts) - len(self.value) :], strict=True))
        return named.get(name)


_NULL = Node("null")


@functools.lru_cache(maxsize=512)
def expressions(code: CodeType) -> tuple[Node, ...]:
    """Return all values that code handles, in the order in which they are made; not those of functions within it."""
    return tuple(_Reading(code).made)


def code_within(code: CodeType) -> Iterator[CodeType]:
    """Yield code, and that of functions within it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from code_within(each)


def given_in(node: Node) -> tuple[list[Node], dict[str, Node], list[Node], bool]:
    """Return what a call gives by place, by name and by two stars, and whether it may give more by place."""
    stars = [each.parts[0] for each in node.parts[1:] if each.kind == OTHER and each.value == STARRED]
    named = {name: each for name in node.value if (each := node.argument(name)) is not None}
    if not stars:
        return [*node.arguments], named, [], False
    first, spread = stars[0], stars[1:]
    if first.kind == CONST and type(first.value) is tuple:
        return [Node(CONST, each) for each in first.value], named, spread, False
    is_known = first.kind == OTHER and first.value in ("BUILD_TUPLE", "BUILD_LIST")
    return ([*first.parts] if is_known else []), named, spread, not is_known


class _Reading:
    """One way through a function's instructions."""

    def __init__(self, code: CodeType) -> None:
        self.made: list[Node] = []
        self._stack: list[Node] = []
        self._at_targets: dict[int, list[Node]] = {}
        self._constants = code.co_consts
        self._names: tuple[str, ...] = ()
        has_ended = False
        for step in dis.get_instructions(code):
            kept = self._at_targets.get(step.offset)
            if has_ended:
                self._stack = [] if kept is None else [*kept]
            elif kept is not None and len(kept) == len(self._stack):
                self._stack = [
                    one if one is other else self._either(one, other)
                    for one, other in zip(kept, self._stack, strict=True)
                ]
            has_ended = step.opname in _ENDS
            if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
                self._note_jump(step)
            self._take(step)

    def _take(self, step: dis.Instruction) -> None:
        known = _STEPS.get(step.opname)
        if known is not None:
            known(self, step)
        elif step.opname.startswith(("LOAD_FAST", "STORE_FAST")):
            self._local(step)
        elif step.opname in _VARIABLES:
            self._push(NAME, step.argval)
        elif step.opname.startswith("STORE_") and step.opname in _STORES:
            self._push_stored(step.argval, [self._pop()])
        elif step.opname in _FIXED_SIZES:
            self._push(OTHER, step.opname, self._pop_many(_FIXED_SIZES[step.opname] * (step.arg or 0)))
        elif step.opname in _ADDED_TO:
            added = self._pop()
            self._add(Node(OTHER, MERGED, [added]) if step.opname.startswith("DICT_") else added, step)
        elif step.opname.startswith(_POPPING):
            Node(OTHER, step.opname, self._pop_many(max(0, -_effect(step, jumps=False))))
        elif step.opname not in _IDLE:
            self._unknown(step)

    def _add(self, added: Node, step: dis.Instruction) -> None:
        """Put something into a container that lies below."""
        place = step.arg or 1
        if len(self._stack) >= place:
            self._stack[-place].parts.append(added)
            added.users.append(self._stack[-place])

    def _unknown(self, step: dis.Instruction) -> None:
        effect = _effect(step, jumps=False)
        if effect > 0:
            below = [self._stack[-1]] if step.opname.startswith(("FOR_ITER", "MATCH_")) and self._stack else []
            if below and step.opname != "FOR_ITER":
                Node(OTHER, step.opname, [*below])  # what lies in it goes on under names that are not followed
            for _ in range(effect):
                self._push(OTHER, step.opname, [*below])
        else:
            taken = self._pop_many(-effect)
            self._push(OTHER, step.opname, [self._pop(), *taken])

    def _note_jump(self, step: dis.Instruction) -> None:
        stack, effect = [*self._stack], _effect(step, jumps=True)
        stack = stack[: max(0, len(stack) + effect)] if effect < 0 else [*stack, *(Node(OTHER) for _ in range(effect))]
        self._at_targets.setdefault(step.argval, stack)

    def _either(self, one: Node, other: Node) -> Node:
        if _NULL in (one, other):
            return Node(OTHER)
        node = Node(EITHER, None, [one, other])
        self.made.append(node)
        return node

    # --- the stack ---------------------------------------------------------------------------------------------------

    def _pop(self) -> Node:
        return self._stack.pop() if self._stack else Node(OTHER)

    def _pop_many(self, number: int) -> list[Node]:
        return [self._pop() for _ in range(number)][::-1]

    def _push(self, kind: str, value: Any = None, parts: list[Node] | None = None, *, is_local: bool = False) -> None:
        node = Node(kind, value, [each for each in parts or [] if each is not _NULL], is_local=is_local)
        self.made.append(node)
        self._stack.append(node)

    def _push_stored(self, name: Any, parts: list[Node], *, is_local: bool = False) -> None:
        self.made.append(Node(STORED, name, [each for each in parts if each is not _NULL], is_local=is_local))

    # --- instructions ------------------------------------------------------------------------------------------------

    def _local(self, step: dis.Instruction) -> None:
        """Load or store local variables: one, or two at once."""
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        kinds = step.opname.replace("_AND_CLEAR", "").replace("_CHECK", "").replace("_BORROW", "").split("_FAST")
        for kind, name in zip(kinds, names, strict=False):
            if kind.strip("_") == "STORE":
                self._push_stored(name, [self._pop()], is_local=True)
            else:
                self._push(NAME, name, is_local=True)

    def _constant(self, step: dis.Instruction) -> None:
        self._push(CONST, step.argval)

    def _global(self, step: dis.Instruction) -> None:
        self._bound(NAME, step.argval, [], has_null=bool((step.arg or 0) & 1))

    def _attribute(self, step: dis.Instruction) -> None:
        is_method = step.opname == "LOAD_METHOD" or (sys.version_info >= (3, 12) and bool((step.arg or 0) & 1))
        self._bound(ATTRIBUTE, step.argval, [self._pop()], has_null=is_method)

    def _of_super(self, step: dis.Instruction) -> None:
        self._bound(ATTRIBUTE, step.argval, self._pop_many(3), has_null=bool((step.arg or 0) & 1))

    def _bound(self, kind: str, value: Any, parts: list[Node], *, has_null: bool) -> None:
        if has_null and _METHODS_LAST:
            self._stack.append(_NULL)
        self._push(kind, value, parts)
        if has_null and not _METHODS_LAST:
            self._stack.append(_NULL)

    def _null(self, step: dis.Instruction) -> None:
        self._stack.append(_NULL)

    def _name_arguments(self, step: dis.Instruction) -> None:
        self._names = self._constants[step.arg or 0]

    def _call(self, step: dis.Instruction) -> None:
        if step.opname == "CALL_KW":
            named = self._pop()
            self._names = named.value if named.kind == CONST else ()
        given = self._pop_many(step.arg or 0)
        names, self._names = self._names, ()
        above, below = self._pop(), self._pop()
        if below is _NULL:
            function = above
        else:
            function, given = below, [*([] if above is _NULL else [above]), *given]
        self._push(CALL, tuple(names), [function, *given])

    def _call_with_all(self, step: dis.Instruction) -> None:
        given = self._pop_many(1 + ((step.arg or 0) & 1))
        function = self._pop()
        if function is _NULL:
            function = self._pop()
        elif self._stack and self._stack[-1] is _NULL:
            self._pop()
        self._push(CALL, (), [function, *(Node(OTHER, STARRED, [each]) for each in given)])

    def _operate(self, step: dis.Instruction) -> None:
        right, left = self._pop(), self._pop()
        sign = step.argrepr
        self._push(ITEM if sign == "[]" else OPERATION, sign, [left, right])

    def _compare(self, step: dis.Instruction) -> None:
        self._push(OTHER, COMPARED + step.argrepr, self._pop_many(2))

    def _item(self, step: dis.Instruction) -> None:
        self._push(ITEM, "[]", self._pop_many(2))

    def _text(self, step: dis.Instruction) -> None:
        self._push(TEXT, None, self._pop_many(step.arg or 0))

    def _format(self, step: dis.Instruction) -> None:
        if step.opname == "FORMAT_WITH_SPEC" or (step.opname == "FORMAT_VALUE" and (step.arg or 0) & 4):
            self._pop()  # how it is written
        self._push(TEXT, None, [self._pop()])

    def _converted(self, step: dis.Instruction) -> None:
        """`!r` and such: what is put into the text is still made of it."""

    def _map(self, step: dis.Instruction) -> None:
        """A dict display of which all keys are constants: they lie in a tuple, above the values."""
        keys, values = self._pop(), self._pop_many(step.arg or 0)
        names = keys.value if keys.kind == CONST else [None] * len(values)
        parts = [part for name, each in zip(names, values, strict=True) for part in (Node(CONST, name), each)]
        self._push(OTHER, "BUILD_MAP", parts)
        keys.users.append(self._stack[-1])

    def _entry(self, step: dis.Instruction) -> None:
        """One entry of a dict that a comprehension makes."""
        self._add(Node(OTHER, ENTRY, self._pop_many(2)), step)

    def _unpack(self, step: dis.Instruction) -> None:
        """Each variable gets an item of what is unpacked."""
        held = self._pop()
        for place in reversed(range(step.arg or 0)):
            self._push(ITEM, "[]", [held, Node(CONST, place)])

    def _unpack_rest(self, step: dis.Instruction) -> None:
        """As before, but one variable gets what the others leave: a part of what is unpacked."""
        held, before, after = self._pop(), (step.arg or 0) & 0xFF, (step.arg or 0) >> 8
        for place in reversed(range(after)):
            self._push(ITEM, "[]", [held, Node(CONST, place - after)])
        self._push(OTHER, step.opname, [held, Node(CONST, before), Node(CONST, after)])
        for place in reversed(range(before)):
            self._push(ITEM, "[]", [held, Node(CONST, place)])

    def _copy(self, step: dis.Instruction) -> None:
        place = step.arg or 1
        self._stack.append(self._stack[-place] if len(self._stack) >= place else Node(OTHER))

    def _swap(self, step: dis.Instruction) -> None:
        place = step.arg or 1
        if len(self._stack) >= place:
            self._stack[-1], self._stack[-place] = self._stack[-place], self._stack[-1]

    def _store_attribute(self, step: dis.Instruction) -> None:
        owner, value = self._pop(), self._pop()
        self._push_stored(step.argval, [value])
        Node(OTHER, step.opname, [owner])

    def _drop(self, step: dis.Instruction) -> None:
        self._pop()

    def _return(self, step: dis.Instruction) -> None:
        Node(OTHER, RETURNED, [self._pop()])

    def _return_constant(self, step: dis.Instruction) -> None:
        self._push(CONST, step.argval)
        self._return(step)


def _effect(step: dis.Instruction, *, jumps: bool) -> int:
    return dis.stack_effect(step.opcode, step.arg if step.opcode >= dis.HAVE_ARGUMENT else None, jump=jumps)


_STORES = frozenset({"STORE_GLOBAL", "STORE_NAME", "STORE_DEREF"})
_STEPS: dict[str, Callable[[_Reading, dis.Instruction], None]] = {
    "LOAD_CONST": _Reading._constant,
    "LOAD_CONST_IMMORTAL": _Reading._constant,
    "LOAD_SMALL_INT": _Reading._constant,
    "LOAD_GLOBAL": _Reading._global,
    "LOAD_ATTR": _Reading._attribute,
    "LOAD_METHOD": _Reading._attribute,
    "LOAD_SUPER_ATTR": _Reading._of_super,
    "PUSH_NULL": _Reading._null,
    "KW_NAMES": _Reading._name_arguments,
    "CALL": _Reading._call,
    "CALL_KW": _Reading._call,
    "CALL_FUNCTION_EX": _Reading._call_with_all,
    "BINARY_OP": _Reading._operate,
    "COMPARE_OP": _Reading._compare,
    "BINARY_SUBSCR": _Reading._item,
    "BUILD_STRING": _Reading._text,
    "FORMAT_VALUE": _Reading._format,
    "FORMAT_SIMPLE": _Reading._format,
    "FORMAT_WITH_SPEC": _Reading._format,
    "CONVERT_VALUE": _Reading._converted,
    "BUILD_CONST_KEY_MAP": _Reading._map,
    "MAP_ADD": _Reading._entry,
    "UNPACK_SEQUENCE": _Reading._unpack,
    "UNPACK_EX": _Reading._unpack_rest,
    "COPY": _Reading._copy,
    "SWAP": _Reading._swap,
    "STORE_ATTR": _Reading._store_attribute,
    "POP_TOP": _Reading._drop,
    "RETURN_VALUE": _Reading._return,
    "RETURN_CONST": _Reading._return_constant,
}
"""By instruction."""
