"""What is another one in each run of a program, so that nothing that an earlier run kept is found: said, not guessed.

A time of start, a temporary folder or a random name among what counts makes each run miss all, and nothing else shows
it. So it is noted how the parts of what counts were in the last run, and which of them were never seen before, run
after run, while the code stayed as it was.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, Final

from lmstash.codecs.records import decode_record, encode_record
from lmstash.errors import LmstashError
from lmstash.identity.code.owners import is_installed_file
from lmstash.identity.content.held_files import content_of
from lmstash.identity.encoding import Component, encode
from lmstash.identity.keys import Key
from lmstash.store.base import Store, Write

RUNS: Final = "runs/all"
"""Where it is noted."""
_RUNS: Final = 3
"""So many runs with a new value each are no accident."""
_MOST_EARLIER, _MOST_PARTS = 16, 2000
_DIGEST_BYTES: Final = 8

_installed: dict[str, ModuleType] = {}
"""Modules of installed packages, by name: thousands, which are not looked at again."""

_noted: set[bytes] = set()
"""What this process has noted: it is one run, however often it makes something anew."""


def never_the_same(
    store: Store, of: Component, code: Component, values: Mapping[str, Component], salt: bytes | str | None = None
) -> list[str]:
    """Note how a run finds what counts; return the names of the values that were new in each of the last three.

    Only the first time in a process: it may make something anew, and set it otherwise, as often as it likes.

    A value that comes back within 16 runs is not new: whoever tries one setting and then another means it. Costs a
    look-up, some 20 us, where all is as in the last run; else a read and a write.

    Args:
        store: Where it is noted. It is only a note: what cannot be read or written is let be.
        of: What counts, or for whom: no other must have the same.
        code: What its owner edits; where this is another one, the count begins anew.
        values: The rest of what counts, by name.
        salt: A tenant's secret; other tenants' notes are invisible.
    """
    if len(values) > _MOST_PARTS or getattr(store, "read_only", False):
        return []
    key = Key({"kind": "runs", "of": of, "salt": salt}).digest
    if key in _noted:
        return []
    _noted.add(key)
    is_code, now = _digest(code), {name: _digest(each) for name, each in values.items()}
    all_of_it = _digest([is_code, {**now}]).hex()
    last = store.describe_many([key])[0]
    if last is not None and last.meta == {"all": all_of_it, "new": False}:
        return []
    before = None if last is None else _read(store, key)
    new_in: dict[str, int] = {}
    earlier: dict[str, list[bytes]] = {}
    if before is not None and before["code"] == is_code:
        new_in, earlier = _counted(before, now)
    record = {"code": is_code, "values": now, "new in": new_in, "earlier": earlier}
    store.put_many([Write(key, encode_record(record), namespace=RUNS, meta={"all": all_of_it, "new": bool(new_in)})])
    return sorted(name for name, times in new_in.items() if times >= _RUNS - 1)


def sources_of(is_own: Callable[[str], bool]) -> dict[Component, Component]:
    """Return what the files hold that the loaded modules of somebody's own lie in, by their names.

    Costs some us a module of somebody's own, and reading each file once.

    Args:
        is_own: Says of a module by its name whether its code is read.
    """
    found: dict[Component, Component] = {}
    for name, module in sys.modules.copy().items():
        if _installed.get(name) is module:
            continue
        path = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if not isinstance(path, str):
            continue
        if is_installed_file(path):
            _installed[name] = module
        elif is_own(name):
            found[name] = content_of(path)
    return found


def listed(names: Collection[str], most: int = 5) -> str:
    """Return some names as a message says them."""
    return ", ".join(f"`{each}`" for each in sorted(names)[:most])


def _counted(before: Any, now: Mapping[str, bytes]) -> tuple[dict[str, int], dict[str, list[bytes]]]:
    """Return in how many runs, one behind the other, each value was new, and which ones there were before."""
    new_in: dict[str, int] = {}
    earlier: dict[str, list[bytes]] = {}
    for name, value in now.items():
        then = before["values"].get(name)
        known = [*before["earlier"].get(name, []), *([] if then is None else [then])][-_MOST_EARLIER:]
        if then == value:
            if name in before["earlier"]:
                earlier[name] = before["earlier"][name]
            continue
        earlier[name] = known
        if then is not None and value not in known:
            new_in[name] = before["new in"].get(name, 0) + 1
    return new_in, earlier


def _read(store: Store, key: bytes) -> Any:
    value = store.peek_many([key])[0]
    try:
        record: Any = None if value is None else decode_record(value)
    except LmstashError:
        return None
    kinds = {"code": bytes, "values": dict, "new in": dict, "earlier": dict}
    if type(record) is not dict or any(type(record.get(name)) is not kind for name, kind in kinds.items()):
        return None
    sound = all(type(each) is int for each in record["new in"].values())
    return record if sound and all(type(each) is list for each in record["earlier"].values()) else None


def _digest(value: Component) -> bytes:
    return hashlib.sha256(encode(value)).digest()[:_DIGEST_BYTES]
