"""Who answers a harness: the model object that it calls, read before each use, or the name that it was made by.

An object whose attributes can be read is known by them: its class and code, its settings, the weights of its modules,
its tokenizers. Then it is the same whether the harness made it from a name or was handed it. One that stands for
something elsewhere (a client of a server) is known by the name and the arguments that the harness was given, too, and
one that changes itself while it answers by these in the place of what changes; handed in as objects, nobody can say who
they are, and nothing is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lmstash.adapters.lm_eval.who.addresses import address_of_client, addresses_in_environment, is_client
from lmstash.adapters.lm_eval.who.own_names import variables
from lmstash.adapters.lmms_eval.who.declared import declared_arguments
from lmstash.adapters.lmms_eval.who.describing import digest
from lmstash.adapters.lmms_eval.who.growth import bare, grew
from lmstash.adapters.lmms_eval.who.kept_changes import kept_changes, save_changes, tell_what_never_stays
from lmstash.adapters.lmms_eval.who.reading import (
    GENERATION,
    Memory,
    Opaque,
    Parts,
    attributes_of,
    is_url,
    read_parts,
)
from lmstash.adapters.lmms_eval.who.reading import stamp as stamp_of
from lmstash.adapters.lmms_eval.who.remembering import is_among
from lmstash.caches.responses.who import plain_url
from lmstash.errors import UnsupportedModelError
from lmstash.events import logger
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key
from lmstash.store.base import Store

if TYPE_CHECKING:
    from lmstash.identity.encoding import Component
    from lmstash.identity.models.watch import ModelWatch

_BY_NAME = "by its name"
"""Stands among them for: it comes to hold what nobody can take apart."""
_READ, _DRIFTS, _NUMBERS, _CODE = "read ", "drifts ", "numbers ", "code "
"""Begin the names among them of what its own code changes and reads; of what changes otherwise; of numbers that change
in objects; of code in whose classes values do, which counts as it was at first."""
_AT = "\t"
"""Between an object and the place of a number in it."""
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
        self._first: Parts | None = None
        self._elsewhere = False
        """Whether it stands for a server, or holds what nobody can take apart: its name and arguments count, too."""
        self._folders: dict[str, list[Component]] = {}
        self._state: frozenset[str] | None = None
        self._refused = ""
        self._has_noted = False
        self._memory = Memory()
        self._known: dict[bytes, Parts] = {}
        """What fingerprints were made of."""

    @property
    def settled(self) -> bool:
        """Whether it is known which attributes are counters and logs: an object of this class has answered before.

        Ask after `look`.
        """
        return bool(self._refused) or self._read is None or self._load_state(self._read) is not None

    def look(self) -> Fingerprint:
        """Return who it is now.

        Raises:
            UnsupportedModelError: Nobody can say.
        """
        with self._lock:
            if self._refused:
                raise UnsupportedModelError(self._refused)
            try:
                try:
                    return self._look()
                except Opaque as error:
                    self._go_by_name(str(error))
                    return self._look()
            except UnsupportedModelError:
                raise
            except Exception as error:
                why = f"its model object cannot be read: {type(error).__name__}: {error}"
                raise UnsupportedModelError(why) from error

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether it is still who it was, but for counters and logs. Reads every weight."""
        with self._lock:
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
            before = self._known.get(since.digest)
            return before is not None and not self._refused and self._learn(before)

    def _look(self) -> Fingerprint:
        if not self._elsewhere:
            attributes = attributes_of(self._lm, self._harmless, self._memory)
            clients = [name for name, each in attributes.items() if is_client(each)]
            if clients:
                raise Opaque(f"its {clients[0]} stands for something that computes elsewhere")
        started = time.monotonic()
        read = self._read
        seen = b"" if read is None else self._stamp_now(read)
        fresh = read is not None and started < self._due and seen == self._stamp and read.same_code()
        if read is None or not fresh:
            read = self._read_all(lambda watch: watch.recognise())
            now = time.monotonic()
            self._due = now + (now - started) / _SHARE
            self._read, self._stamp = read, self._stamp_now(read)
            self._first = self._first or read
        elif read.watches:
            fingerprints = [watch.recognise() for watch, _ in read.watches]
            if fingerprints != [each for _, each in read.watches]:
                self._read = None
                return self._look()
        state = self._load_state(read) or frozenset()
        own = self._among_state(_READ)
        if not fresh:
            own |= {name for name in state if name.startswith(_CHANGING) and read.reads(name)}
        if own:
            self._refuse(sorted(own))
            return self.look()
        if _BY_NAME in state and self._name is not None and not self._elsewhere:
            raise Opaque("it comes to hold what nobody can take apart")
        drifting = self._drifting()
        if drifting and not self._may_drift(read):
            self._refuse_drift(drifting)
            return self.look()
        if self._state and any(f"attribute:{name}" in read.parts for name in self._skipped()):
            self._read = None  # what is a counter was not known yet
            return self._look()
        fingerprint = self._name_it(read)
        self._known[fingerprint.digest] = read
        return fingerprint

    def _read_all(self, look: Callable[[ModelWatch], Fingerprint], also: frozenset[str] = frozenset()) -> Parts:
        return read_parts(self._lm, self._skipped() | also, self._memory, look, named=self._elsewhere)

    def _stamp_now(self, read: Parts) -> bytes:
        places = {name[7:] for name in self._left_out() if name.startswith("global:")}
        if self._harmless:
            places |= {each for graph in read.graphs for each in graph.objects if bare(each) in self._harmless}
        numbers = {name.partition(":")[2]: places for name, places in self._numbers().items()}
        return stamp_of(self._lm, self._skipped() | places, self._memory, read, numbers)

    def _among_state(self, begins: str) -> set[str]:
        return {name[len(begins) :] for name in self._state or () if name.startswith(begins)}

    def _left_out(self) -> set[str]:
        """Return the names of parts that change while it answers, and do not count."""
        return {name for name in self._state or () if name.startswith(_CHANGING)} | self._among_state(_DRIFTS)

    def _skipped(self) -> frozenset[str]:
        """Return the names of attributes that change no answer."""
        return self._harmless | {name[10:] for name in self._left_out() if name.startswith("attribute:")}

    def _drifting(self) -> set[str]:
        return self._among_state(_DRIFTS) | self._numbers().keys() | self._among_state(_CODE)

    def _numbers(self) -> dict[str, set[str]]:
        """Return where in which parts numbers change, and do not count."""
        found: dict[str, set[str]] = {}
        for each in self._among_state(_NUMBERS):
            name, _, place = each.partition(_AT)
            found.setdefault(name, set()).add(place)
        return found

    def _may_drift(self, read: Parts) -> bool:
        """Whether its name and arguments say enough of it for what changes about it to be left out."""
        return self._name is not None and (self._elsewhere or not read.has_module)

    def _name_it(self, read: Parts) -> Fingerprint:
        self._load_state(read)
        without, code = self._left_out(), self._among_state(_CODE)
        parts = {name: data for name, data in read.parts.items() if name not in without and not self._vouched(name)}
        numbers = {name: places for name, places in self._numbers().items() if name in parts}
        first = self._first or read
        for name, places in numbers.items():
            parts[name] = digest([read.without_numbers(name, places), first.began(name, places)])
        parts |= {name: first.parts[name] for name in code & first.parts.keys()}
        self._note_run(parts)
        kind = type(self._lm)
        recorded = {"name": self._called(), "class": f"{kind.__module__}.{kind.__qualname__}"}
        where = {} if read.has_module else addresses_in_environment()  # its code may read them
        told: dict[str, Component] = {"kind": "lmms_eval model object", **parts}
        if self._elsewhere or self._drifting():
            arguments = declared_arguments(
                self._memory.own_code(self._lm), self._arguments or {}, self._harmless, self._folders
            )
            told |= {"name": self._name, "arguments": {**arguments}}
            said = variables(read.graphs, self._arguments)
            told |= {"variables of arguments": said} if said else {}
            clients = {place: each for place, each in read.clients.items() if place in first.clients}
            told |= {"clients": {**clients}} if clients else {}
        asked = self._asked_at(first) if self._elsewhere else where
        told |= {"asked at": asked} if asked else {}
        return Fingerprint(Key(told), recorded)

    def _note_run(self, parts: Mapping[str, bytes]) -> None:
        """Say, when this process first names it, what was another one in each of the last runs."""
        if not self._has_noted and self._state is not None:  # else it is not known yet what counts
            self._has_noted = True
            values = {name: data for name, data in parts.items() if name.startswith("attribute:") or _is_global(name)}
            tell_what_never_stays(self._store, self._lm, self._name, parts, values)

    def _asked_at(self, first: Parts) -> Component:
        """Return where one that computes elsewhere is asked now: where its clients say, or the environment does.

        Not where clients say that it did not hold at `first`: it makes them when the first question comes.
        """
        held = list(getattr(self._lm, "__dict__", {}).items())
        live = [address_of_client(each) for name, each in held if name in first.clients and is_client(each)]
        known = [each for each in live if each is not None]
        said = [plain_url(each) for each in (self._arguments or {}).values() if is_url(each)]
        return [each for each in known if each not in said] if known else addresses_in_environment()

    def _called(self) -> str:
        return self._name or type(self._lm).__name__

    def _go_by_name(self, why: str) -> None:
        """Know it by its name and arguments, too, from now on."""
        if self._name is None:
            self._refused = (
                f"{why.partition(' Replace it')[0]}, and the model was handed in as an object, so that nobody can say "
                "who answers. Give the harness its name and arguments instead, or say ResponseCache(declared='...')."
            )
            raise UnsupportedModelError(self._refused)
        self._elsewhere, self._read, self._first = True, None, None

    def _learn(self, before: Parts) -> bool:
        """Remember the counters and logs among what changed; returns whether nothing else did."""
        held = getattr(self._lm, "__dict__", {})
        counted = {name for name in before.counts if name.startswith("attribute:")} - (self._state or frozenset())
        logs = {name for name in counted if grew(before.counts[name], held.get(name[10:]))}
        own = sorted(filter(before.reads, logs))
        if own:
            return self._refuse_for(own, before)
        also = frozenset(name[10:] for name in logs)  # logs may hold anything: they are not read
        mark = frozenset[str]()
        try:
            try:
                now = self._read_all(lambda watch: watch.fingerprint, also)
            except Opaque:
                if self._name is None:
                    return False
                self._elsewhere, mark = True, frozenset({_BY_NAME})
                now = self._read_all(lambda watch: watch.fingerprint, also)
        except Exception:  # then it cannot be what it was
            return False
        if any(now.clients.get(place, each) != each for place, each in before.clients.items()):
            return False  # another one is asked
        if not all(watch.unchanged(fingerprint) for watch, fingerprint in before.watches):
            return False
        changed = _changed(before, now) - logs - self._left_out() - self._among_state(_CODE)
        numbers = self._numbers()
        for name, places in numbers.items():
            only = _numbers_changed(name, before, now)
            changed -= {name} if only and all(is_among(each, places) for each in only) else set()
        changed = {name for name in changed if not self._vouched(name)}
        own = before.histories(changed, now)
        if own:
            return self._refuse_for(own, now)
        logs |= {name for name in changed if grew(before.counts.get(name), now.counts.get(name))}
        others = {each for name in changed - logs for each in _drift(name, before, now)}
        if logs or others or mark or self._state is None:
            self._save_state(before, (self._state or frozenset()) | logs | others | mark)
            self._read = None
        if others:
            if not self._may_drift(now):
                return self._refuse_drift({name.partition(" ")[2] for name in others})
            names = ", ".join(sorted(name.partition(":")[2].replace(_AT, "") for name in others))
            logger.info(
                "lmstash: %s changes %s while it answers: its name and arguments count in the place of what changes",
                type(self._lm).__name__,
                names,
            )
        if any(now.parts.get(name) != data for name, data in before.parts.items() if name.startswith(GENERATION)):
            self._read = None  # some models set what they generate by when they are first asked
            return False
        return True

    def _refuse_drift(self, names: set[str]) -> bool:
        """Keep nothing of a model that changes itself, and has no name that says who it is; returns False."""
        what = ", ".join(sorted({name.partition(":")[2].partition(_AT)[0] for name in names})[:5])
        self._refused = (
            f"{type(self._lm).__name__} changes its {what} while it answers. "
            "If that changes no answer, say so: ResponseCache(..., harmless=[...])."
        )
        return False

    def _vouched(self, name: str) -> bool:
        """Whether a global was said to be harmless."""
        return _is_global(name) and bare(name) in self._harmless

    def _refuse_for(self, own: list[str], read: Parts) -> bool:
        self._save_state(read, (self._state or frozenset()) | {f"{_READ}{name}" for name in own})
        return self._refuse(own)

    def _refuse(self, own: list[str]) -> bool:
        """Keep nothing of a model whose own code reads what it changes; returns False."""
        names = sorted({bare(name) or name.partition(":")[2] for name in own})
        can_be_named = all(name.startswith("attribute:") or _is_global(name) for name in own)
        how = f"harmless={names}" if can_be_named else "declared='who it is'"
        self._refused = (
            f"{type(self._lm).__name__} changes its {', '.join(names[:5])} while it answers, and its code reads that, "
            f"so that answers may hang on what was asked before. If they do not, say so: ResponseCache(..., {how})."
        )
        told = f"model {self._refused}", "lmstash: nothing is cached for this model: %s", self._refused
        self._store.events.warn_once(*told)  # nobody may look again in this run
        return False

    def _load_state(self, read: Parts) -> frozenset[str] | None:
        if self._state is None:
            self._state = kept_changes(self._store, self._lm, read.parts, self._harmless)
            if self._state is None and self._harmless:  # what it changes besides is the same
                known = kept_changes(self._store, self._lm, read.parts, frozenset())
                if known is not None and not any(name.startswith(_READ) for name in known):
                    self._state = frozenset(name for name in known if bare(name) not in self._harmless)
        return self._state

    def _save_state(self, read: Parts, state: frozenset[str]) -> None:
        self._state = state
        save_changes(self._store, self._lm, read.parts, self._harmless, state)


def _is_global(name: str) -> bool:
    """Whether a part is a global that code names, or a variable that it closed over, and nothing else."""
    return bool(bare(name)) and (name.startswith("global:") or (name.startswith("code:") and ":" in name[5:]))


def _changed(before: Parts, now: Parts) -> set[str]:
    names = {name for name in before.parts.keys() | now.parts.keys() if name.startswith(_CHANGING)}
    return {name for name in names if before.parts.get(name) != now.parts.get(name)}


def _drift(name: str, before: Parts, now: Parts) -> set[str]:
    """Return how it is remembered of a part that it changes while a model answers."""
    if name.startswith("code:") and ":" not in name[5:]:
        return {f"{_CODE}{name}"}
    places = _numbers_changed(name, before, now)
    return {f"{_NUMBERS}{name}{_AT}{place}" for place in places} if places else {f"{_DRIFTS}{name}"}


def _numbers_changed(name: str, before: Parts, now: Parts) -> set[str]:
    """Return where in an object numbers changed; none if something else did, too."""
    was, is_now = before.remembered.get(name), now.remembered.get(name)
    if was is None or is_now is None or was.texts != is_now.texts:
        return set()
    return is_now.changed_since(was)
