"""A fingerprint: the key of a model or a tokenizer, and the facts recorded next to it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lmstash.identity.encoding import Component, encode, from_json, to_json
from lmstash.identity.keys import ABSENT, Absent, Difference, Key


class Fingerprint:
    """Who computed something. Immutable; threads may share it; equal when the digests are.

    Args:
        key: Everything that may change what is computed.
        recorded: Facts that are kept for people but are not in the digest (versions, device, name).
    """

    __slots__ = ("_key", "_recorded")

    def __init__(self, key: Key, recorded: Mapping[str, Component]) -> None:
        self._key = key
        self._recorded = MappingProxyType(dict(recorded))

    @property
    def digest(self) -> bytes:
        """The 32 bytes that stand for the model in keys."""
        return self._key.digest

    @property
    def hex(self) -> str:
        """The digest as 64 hexadecimal digits."""
        return self._key.hex

    @property
    def components(self) -> dict[str, Component]:
        """A fresh copy of what the digest was made of, by name."""
        return self._key.components

    @property
    def recorded(self) -> Mapping[str, Component]:
        """Facts that are not in the digest."""
        return self._recorded

    def explain(self, other: Fingerprint) -> list[Difference]:
        """Name what differs, down to the single field: `config.rope_theta`, `tensors.lm_head.weight`."""
        out: list[Difference] = []
        for each in self._key.explain(other._key):
            _descend(each.name, each.ours, each.theirs, out)
        return out

    def describe(self) -> dict[str, object]:
        """Return JSON-able data from which `from_description` makes an equal fingerprint."""
        return {**self._key.describe(), "recorded": to_json(dict(self._recorded))}

    @classmethod
    def from_description(cls, description: Mapping[str, object]) -> Fingerprint:
        """Make the fingerprint that `describe` described.

        Raises:
            CorruptEntryError, UnsupportedFormatError: As `Key.from_description`.
        """
        key = Key.from_description(description)
        try:
            recorded = from_json(description.get("recorded"))
        except (ValueError, TypeError, RecursionError):
            recorded = None  # not part of the identity
        return cls(key, {str(name): value for name, value in recorded.items()} if isinstance(recorded, dict) else {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Fingerprint {self.hex[:16]} of {self._recorded.get('name') or self._recorded.get('class') or '?'}>"


def _descend(name: str, ours: Component | Absent, theirs: Component | Absent, out: list[Difference]) -> None:
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        out.append(Difference(name, ours, theirs))
        return
    keys = {encode(key): key for key in (*ours, *theirs)}
    for _, key in sorted(keys.items()):
        left, right = ours.get(key, ABSENT), theirs.get(key, ABSENT)
        if isinstance(left, Absent) or isinstance(right, Absent) or encode(left) != encode(right):
            _descend(f"{name}.{key}" if name else str(key), left, right, out)
