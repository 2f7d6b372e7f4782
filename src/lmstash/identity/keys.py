"""Keys: SHA-256 over named, type-tagged components, and what tells two of them apart.

A key's digest is seedless and the same in every process and on every machine. What it was made of can be kept next
to the value (`describe`), compared before the value is used, and named when a look-up misses (`explain`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lmstash.errors import CorruptEntryError, InvalidArgumentError, UnsupportedFormatError
from lmstash.identity.encoding import Component, decode, encode, from_json, to_json

SCHEMA_VERSION: Final = 1
"""Goes into every digest. Raised whenever the encoding or the order rule changes."""

_PREFIX = b"lmstash key\0" + struct.pack(">I", SCHEMA_VERSION)
_pack_length = struct.Struct(">Q").pack
_BYTES_HEAD = struct.Struct(">QcQ")
"""The length of an encoded value, and the beginning of one that is bytes: as `identity.encoding` writes it."""


class Absent:
    """The place of a component that one of two keys does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One component in which two keys differ. `ours` or `theirs` is `ABSENT` where a key lacks it."""

    name: str
    ours: Component | Absent
    theirs: Component | Absent

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.name}: {_short(self.ours)} here, {_short(self.theirs)} there"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


class Key:
    """What a kept value is the answer to. Immutable; threads may share it.

    Args:
        components: Name to value. Values are None, bool, int, float, str, bytes, or tuples, lists and dicts of these.

    The digest is SHA-256 over: the schema version, the number of components, then, in the order of the names'
    UTF-8 bytes, each encoded name and each encoded value with its length. Costs 5-10 us for ten short components.

    Raises:
        InvalidArgumentError: A name is not a non-empty str, or a value cannot be part of a key.
    """

    __slots__ = ("_digest", "_encoded")

    def __init__(self, components: Mapping[str, Component]) -> None:
        encoded = {name: encode(value) for name, value in components.items()}
        self._encoded: dict[str, bytes] = {name: encoded[name] for name in sorted(encoded, key=_order)}
        self._digest = hashlib.sha256(
            _PREFIX + _pack_length(len(encoded)) + b"".join([_unit(*item) for item in self._encoded.items()])
        ).digest()

    @property
    def digest(self) -> bytes:
        """The 32 bytes that name the value in a store."""
        return self._digest

    @property
    def hex(self) -> str:
        """The digest as 64 hexadecimal digits."""
        return self._digest.hex()

    @property
    def components(self) -> dict[str, Component]:
        """A fresh copy of what the key was made of; changing it does not change the key."""
        return {name: decode(data) for name, data in self._encoded.items()}

    def explain(self, other: Key) -> list[Difference]:
        """Name the components in which this key and `other` differ, in the order of their names."""
        names = sorted(self._encoded.keys() | other._encoded.keys(), key=_order)
        return [
            Difference(name, self._value(name), other._value(name))
            for name in names
            if self._encoded.get(name) != other._encoded.get(name)
        ]

    def describe(self) -> dict[str, object]:
        """Return JSON-able data from which `from_description` makes an equal key."""
        return {
            "schema": SCHEMA_VERSION,
            "components": {name: to_json(decode(data)) for name, data in self._encoded.items()},
        }

    @classmethod
    def from_description(cls, description: Mapping[str, object]) -> Key:
        """Make the key that `describe` described.

        Raises:
            UnsupportedFormatError: It was described by a schema that this version does not know.
            CorruptEntryError: It is not such a description.
        """
        if not isinstance(description, Mapping):
            raise CorruptEntryError("a key's description is not a mapping")
        if description.get("schema") != SCHEMA_VERSION:
            raise UnsupportedFormatError(
                f"the key was described by schema {description.get('schema')!r}, this version knows {SCHEMA_VERSION}. "
                "Upgrade lmstash to read it."
            )
        try:
            described: Any = description["components"]
            return cls({name: from_json(each) for name, each in described.items()})
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
            raise CorruptEntryError(f"a key's description cannot be read: {error}") from error

    def _value(self, name: str) -> Component | Absent:
        return decode(self._encoded[name]) if name in self._encoded else ABSENT

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"<Key {self.hex[:16]} of {', '.join(self._encoded)}>"


class KeyFamily:
    """Digests of many keys that share most of their components, at about 1 us each. Threads may share it.

    `digest(*values)` equals `Key({**common, **dict(zip(varying, values))}).digest`. What sorts before the first varying
    name is hashed once; the rest of `common` is hashed again each time, so keep large components out of it.

    Args:
        common: Components that every key has.
        varying: Names of the components that `digest` takes, in the order it takes them.

    Raises:
        InvalidArgumentError: A name is given twice, or is not a non-empty str, or a common value cannot be in a key.
    """

    __slots__ = ("_holes", "_pieces", "_start", "_varying")

    def __init__(self, common: Mapping[str, Component], varying: Sequence[str]) -> None:
        self._varying = tuple(varying)
        names = [*common, *self._varying]
        if len(set(names)) != len(names):
            raise InvalidArgumentError("a key component is named twice, in `common` or `varying`. Name each once.")
        argument = {name: index for index, name in enumerate(self._varying)}
        start = hashlib.sha256(_PREFIX + _pack_length(len(names)))
        self._pieces: list[bytes] = []  # what follows `start`, with a hole for each value
        self._holes: list[tuple[int, int]] = []  # which argument goes into which hole
        fixed = b""
        for name in sorted(names, key=_order):
            if name not in argument:
                fixed += _unit(name, encode(common[name]))
                continue
            fixed += encode(name)
            if self._holes:
                self._pieces.append(fixed)
            else:
                start.update(fixed)
            self._holes.append((argument[name], len(self._pieces)))
            self._pieces.append(b"")
            fixed = b""
        if self._holes:
            self._pieces.append(fixed)
        else:
            start.update(fixed)
        self._start: Callable[[], hashlib._Hash] = start.copy

    def digest(self, *values: Component) -> bytes:
        """Return the 32-byte digest of the key in which the varying components have these `values`.

        Raises:
            InvalidArgumentError: Not one value per varying name, or a value that cannot be part of a key.
        """
        if len(values) != len(self._varying):
            raise InvalidArgumentError(f"expected {len(self._varying)} values ({', '.join(self._varying)})")
        pieces = self._pieces.copy()
        for argument, hole in self._holes:
            data = encode(values[argument])
            pieces[hole] = _pack_length(len(data)) + data
        state = self._start()
        state.update(b"".join(pieces))
        return state.digest()

    def digest_of_bytes(self) -> Callable[[bytes], bytes]:
        """Return `digest` of a family with one varying component, for values that are bytes, in half its time.

        Raises:
            InvalidArgumentError: Another number of components varies.
        """
        if len(self._holes) != 1:
            raise InvalidArgumentError(f"{len(self._varying)} components vary, not one")
        start, tail, pack, extra = self._start, self._pieces[1], _BYTES_HEAD.pack, _BYTES_HEAD.size - 8

        def digest(value: bytes) -> bytes:
            state, size = start(), len(value)
            state.update(pack(size + extra, b"b", size) + value + tail)
            return state.digest()

        return digest


def _unit(name: str, data: bytes) -> bytes:
    return encode(name) + _pack_length(len(data)) + data


def _order(name: object) -> bytes:
    if type(name) is not str or not name:
        raise InvalidArgumentError(f"a key component needs a name, a non-empty str, not {name!r:.80}")
    return name.encode("utf-8", "surrogatepass")
