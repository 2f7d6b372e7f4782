"""Who answers a harness: the model object that it calls, read before each use, or the name that it was made by.

An object whose attributes can be read is known by them: its class and code, its settings, the weights of its modules,
its tokenizers. Then it is the same whether the harness made it from a name or was handed it. One that stands for
something elsewhere (a client of a server) is known by the name and the arguments that the harness was given; handed in
as an object, nobody can say who it is, and nothing is kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lmstash.adapters.lm_eval.addresses import address_of_client, addresses_in_environment, is_client
from lmstash.adapters.lm_eval.own_names import variables
from lmstash.adapters.lmms_eval.declared import declared_arguments
from lmstash.adapters.lmms_eval.growth import bare, countable, globals_of, grew, same, values_of_classes
from lmstash.adapters.lmms_eval.noted import Noted
from lmstash.adapters.lmms_eval.pinned import harness_code
from lmstash.adapters.lmms_eval.reading import (
    GENERATION,
    RUNNING,
    Memory,
    Opaque,
    Parts,
    attributes_of,
    is_url,
    read_parts,
)
from lmstash.adapters.lmms_eval.reading import stamp as stamp_of
from lmstash.caches.responses.who import plain_url
from lmstash.errors import UnsupportedModelError
from lmstash.events import logger
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store

if TYPE_CHECKING:
    from lmstash.identity.encoding import Component
    from lmstash.identity.watch import ModelWatch

STATE = "lmms_eval/state"
"""Where it is kept which attributes of which class are counters and logs."""
DRIFTS = "*"
"""Stands among them for: it changes other attributes, too."""
_READ = "read "
"""Begins the names among them of what its own code changes and reads."""
_SHARE = 0.05
"""Of the time that goes into reading the object wholly."""
_CHANGING = ("attribute:", "global:", "code:", "tensor:")


class ModelObject:
    """Says who a harness's model object is now; what `lmstash.caches.responses` takes as `model=`.

    Args:
        lm: The object.
        store: Remembers which of its attributes are counters and logs.
        name: What the harness was given as the model's name, if it was given one.
        arguments: What it was made with.
        harmless: Names of attributes and arguments that change no answer, besides the known ones.
    """

    def __init__(
        self,
        lm: Any,
        store: Store,
        *,
        name: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        harmless: frozenset[str] = frozenset(),
    ) -> None:
        self._lm = lm
        self._store = store
        self._name = name
        self._arguments = arguments
        self._harmless = harmless
        self._lock = threading.RLock()
        self._read: Parts | None = None
        self._stamp = b""
        self._due = 0.0
        self._declared: dict[str, Component] | None = None
        """Of one that is known by its name and arguments: these, and its code."""
        self._code: Noted | None = None
        self._counts: dict[str, Any] = {}
        self._state: frozenset[str] | None = None
        self._refused = ""
        self._memory = Memory()
        self._known: dict[bytes, Parts] = {}
        """What fingerprints were made of."""

    @property
    def settled(self) -> bool:
        """Whether it is known which attributes are counters and logs: an object of this class has answered before.

        Ask after `look`.
        """
        if self._declared is not None or self._refused:
            return True
        return self._read is None or self._load_state(self._read) is not None

    def look(self) -> Fingerprint:
        """Return who it is now.

        Raises:
            UnsupportedModelError: Nobody can say.
        """
        with self._lock:
            if self._refused:
                raise UnsupportedModelError(self._refused)
            if self._declared is not None:
                return self._as_declared(self._declared)
            try:
                try:
                    return self._look()
                except Opaque as error:
                    return self._declare(str(error))
            except UnsupportedModelError:
                raise
            except Exception as error:
                why = f"its model object cannot be read: {type(error).__name__}: {error}"
                raise UnsupportedModelError(why) from error

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether it is still who it was, but for counters and logs. Reads every weight."""
        with self._lock:
            if self._declared is not None:
                return not self._has_history() and since == self._as_declared(self._declared)
            before = self._known.get(since.digest)
            if before is None or self._refused:
                return False
            known = len(self._state or ())
            # Named with what now turns out to be a counter, it would not be found again: another name is right.
            return self._learn(before) and len(self._state or ()) == known

    def settle(self, since: Fingerprint) -> bool:
        """Find out, after its first answers, what they changed; returns whether they may be kept.

        Call `look` afterwards: its name may be another one.
        """
        with self._lock:
            if self._declared is not None:
                return not self._has_history()
            before = self._known.get(since.digest)
            return before is not None and not self._refused and self._learn(before)

    def _look(self) -> Fingerprint:
        opaque = [
            name for name, each in attributes_of(self._lm, self._harmless, self._memory).items() if is_client(each)
        ]
        if opaque:
            raise Opaque(f"its {opaque[0]} stands for something that computes elsewhere")
        started = time.monotonic()
        read = self._read
        seen = b"" if read is None else self._stamp_now(read)
        fresh = read is not None and started < self._due and seen == self._stamp and read.same_code()
        if read is None or not fresh:
            read = self._read_all(lambda watch: watch.recognise())
            now = time.monotonic()
            self._due = now + (now - started) / _SHARE
            self._read, self._stamp = read, self._stamp_now(read)
        elif read.watches:
            fingerprints = [watch.recognise() for watch, _ in read.watches]
            if fingerprints != [each for _, each in read.watches]:
                self._read = None
                return self._look()
        state = self._load_state(read) or frozenset()
        own = [name[len(_READ) :] for name in state if name.startswith(_READ)]
        if not fresh:
            own += [name for name in state if name.startswith(_CHANGING) and read.reads(name)]
        if own:
            self._refuse(sorted(own))
            return self.look()
        if DRIFTS in state:
            self._drift(read.has_module, "itself")
            return self.look()
        if self._state and any(f"attribute:{name}" in read.parts for name in self._skipped()):
            self._read = None  # what is a counter was not known yet
            return self._look()
        fingerprint = self._name_it(read)
        self._known[fingerprint.digest] = read
        return fingerprint

    def _read_all(self, look: Callable[[ModelWatch], Fingerprint], also: frozenset[str] = frozenset()) -> Parts:
        return read_parts(self._lm, self._skipped() | also, self._memory, look)

    def _stamp_now(self, read: Parts) -> bytes:
        places = {name[7:] for name in self._state or () if name.startswith("global:")}
        if self._harmless:
            places |= {each for graph in read.graphs for each in graph.objects if bare(each) in self._harmless}
        return stamp_of(self._lm, self._skipped() | places, self._memory, read.graphs)

    def _skipped(self) -> frozenset[str]:
        """Return the names of attributes that change no answer."""
        return self._harmless | {name[10:] for name in self._state or () if name.startswith("attribute:")}

    def _name_it(self, read: Parts) -> Fingerprint:
        state = self._load_state(read) or frozenset()
        parts = {name: data for name, data in read.parts.items() if name not in state and not self._vouched(name)}
        kind = type(self._lm)
        recorded = {"name": self._called(), "class": f"{kind.__module__}.{kind.__qualname__}"}
        where = {} if read.has_module else addresses_in_environment()  # its code may read them
        told = {"kind": "lmms_eval model object", **parts, **({"asked at": where} if where else {})}
        return Fingerprint(Key(told), recorded)

    def _called(self) -> str:
        return self._name or type(self._lm).__name__

    def _declare(self, why: str) -> Fingerprint:
        if self._name is None:
            self._refused = (
                f"{why}, and the model was handed in as an object, so that nobody can say who answers. "
                "Give the harness its name and arguments instead."
            )
            raise UnsupportedModelError(self._refused)
        graph = harness_code()
        graph.note_class(type(self._lm))
        graph.add(type(self._lm))
        arguments = declared_arguments(graph, self._arguments or {}, self._harmless)
        code = Key({"code": graph.components(), "packages": graph.packages()}).digest
        parts = {"kind": "lmms_eval declared model", "name": self._name, "arguments": {**arguments}, "code": code}
        self._declared = {**parts}
        self._code = graph
        self._counts = countable(self._held(graph))
        return self._as_declared(self._declared)

    def _as_declared(self, parts: dict[str, Component]) -> Fingerprint:
        """Return the fingerprint of one that is known by these, asked where it is asked now."""
        live = [address_of_client(each) for each in getattr(self._lm, "__dict__", {}).values() if is_client(each)]
        known = [each for each in live if each is not None]
        said = [plain_url(each) for each in (self._arguments or {}).values() if is_url(each)]
        where = [each for each in known if each not in said] if known else addresses_in_environment()
        read = {} if self._code is None else variables([self._code], self._arguments)
        also = {**({"asked at": where} if where else {}), **({"variables": read} if read else {})}
        return Fingerprint(Key({**parts, **also}), {"name": self._name})

    def _learn(self, before: Parts) -> bool:
        """Remember the counters and logs among what changed; returns whether nothing else did."""
        held = getattr(self._lm, "__dict__", {})
        counted = {name for name in before.counts if name.startswith("attribute:")} - (self._state or frozenset())
        logs = {name for name in counted if grew(before.counts[name], held.get(name[10:]))}
        own = sorted(filter(before.reads, logs))
        if own:
            return self._refuse_for(own, before)
        try:  # logs may hold anything: they are not read
            now = self._read_all(lambda watch: watch.fingerprint, frozenset(name[10:] for name in logs))
        except Exception:  # then it cannot be what it was
            return False
        if not all(watch.unchanged(fingerprint) for watch, fingerprint in before.watches):
            return False
        changed = _changed(before, now) - logs - (self._state or frozenset())
        changed = {name for name in changed if not self._vouched(name)}
        own = before.histories(changed, now)
        if own:
            return self._refuse_for(own, now)
        logs |= {name for name in changed if grew(before.counts.get(name), now.counts.get(name))}
        others = sorted(name.partition(":")[2] for name in changed - logs)
        if others:
            self._save_state(now, (self._state or frozenset()) | {DRIFTS})
            return self._drift(now.has_module, f"its {', '.join(others[:5])}")
        if logs or self._state is None:
            self._save_state(now, (self._state or frozenset()) | logs)
            self._read = None
        if any(now.parts.get(name) != data for name, data in before.parts.items() if name.startswith(GENERATION)):
            self._read = None  # some models set what they generate by when they are first asked
            return False
        return True

    def _drift(self, has_module: bool, what: str) -> bool:
        """Know an object that changes itself by its name, if it has one; returns whether it has."""
        why = f"{type(self._lm).__name__} changes {what} while it answers"
        if self._name is not None and not has_module:
            logger.info("lmstash: %s: it is known by its name and arguments", why)
            self._declare(why)
            return True
        self._refused = f"{why}. If that changes no answer, say so: ResponseCache(..., harmless=[...])."
        return False

    def _vouched(self, name: str) -> bool:
        """Whether a global was said to be harmless."""
        return _is_global(name) and bare(name) in self._harmless

    def _has_history(self) -> bool:
        """Whether one that is known by its name has changed attributes meanwhile that its own code reads."""
        graph = self._code
        assert graph is not None
        now = self._held(graph)
        changed = [name for name, value in self._counts.items() if not same(value, now.get(name))]
        own = [each for each in sorted(changed) if graph.reads(bare(each), of_object=not each.startswith("code:"))]
        return bool(own) and not self._refuse(own)

    def _held(self, graph: Noted) -> dict[str, Any]:
        """Return the attributes of the object and its class, and globals that its code names, but for harmless ones."""
        skipped = RUNNING | self._harmless
        held = {f"attribute:{name}": value for name, value in getattr(self._lm, "__dict__", {}).items()}
        held |= {f"code:{name}": value for name, value in globals_of(type(self._lm), graph.own).items()}
        held |= {f"class:{name}": value for name, value in values_of_classes(type(self._lm)).items()}
        return {name: value for name, value in held.items() if bare(name) not in skipped}

    def _refuse_for(self, own: list[str], read: Parts) -> bool:
        self._save_state(read, (self._state or frozenset()) | {f"{_READ}{name}" for name in own})
        return self._refuse(own)

    def _refuse(self, own: list[str]) -> bool:
        """Keep nothing of a model whose own code reads what it changes; returns False."""
        names = sorted({bare(name) or name.partition(":")[2] for name in own})
        can_be_named = all(name.startswith("attribute:") or _is_global(name) for name in own)
        how = f"harmless={names}" if can_be_named else "declared='who it is'"
        self._declared = None
        self._refused = (
            f"{type(self._lm).__name__} changes its {', '.join(names[:5])} while it answers, and its code reads that, "
            f"so that answers may hang on what was asked before. If they do not, say so: ResponseCache(..., {how})."
        )
        told = f"model {self._refused}", "lmstash: nothing is cached for this model: %s", self._refused
        self._store.events.warn_once(*told)  # nobody may look again in this run
        return False

    def _state_key(self, read: Parts) -> bytes:
        kind = type(self._lm)  # and its code, without the globals that this names
        code = {name: data for name, data in read.parts.items() if name.startswith("code:") and ":" not in name[5:]}
        name = f"{kind.__module__}.{kind.__qualname__}"
        return Key({"what": f"{STATE} 2", "class": name, "code": {**code}, "harmless": sorted(self._harmless)}).digest

    def _load_state(self, read: Parts) -> frozenset[str] | None:
        if self._state is None:
            key = self._state_key(read)
            kept = self._store.get(key) if self._store.contains(key) else None
            try:
                self._state = None if kept is None else frozenset(map(str, json.loads(bytes(kept))))
            except (ValueError, TypeError):
                self._state = None
        return self._state

    def _save_state(self, read: Parts, state: frozenset[str]) -> None:
        self._state = state
        self._store.put(self._state_key(read), json.dumps(sorted(state)).encode(), namespace=STATE)


def _is_global(name: str) -> bool:
    """Whether a part is a global that code names, or a variable that it closed over, and nothing else."""
    return bool(bare(name)) and (name.startswith("global:") or (name.startswith("code:") and ":" in name[5:]))


def _changed(before: Parts, now: Parts) -> set[str]:
    names = {name for name in before.parts.keys() | now.parts.keys() if name.startswith(_CHANGING)}
    return {name for name in names if before.parts.get(name) != now.parts.get(name)}
