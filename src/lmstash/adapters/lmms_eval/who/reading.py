"""What can be told of a harness's model object: its class, its attributes, its modules, its tokenizers."""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from lmstash.adapters.lm_eval.who.addresses import is_client
from lmstash.adapters.lm_eval.who.own_names import SECRET_KINDS, variables
from lmstash.adapters.lm_eval.who.own_names import harmless as harmless_of
from lmstash.adapters.lmms_eval.who.describing import LmDescriber, Walk, digest
from lmstash.adapters.lmms_eval.who.files_beside import files_of
from lmstash.adapters.lmms_eval.who.growth import bare, countable, globals_of, same, values_of_classes
from lmstash.adapters.lmms_eval.who.noted import Noted, name_of
from lmstash.adapters.lmms_eval.who.pinned import harness_code
from lmstash.adapters.lmms_eval.who.remembering import Remembered, holds_objects, is_among, remembered
from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.errors import UnsupportedModelError
from lmstash.events import logger
from lmstash.identity.code.words import words_within
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.live_tokenizers import LiveTokenizers
from lmstash.identity.models.generation import GenerationDefaults

if TYPE_CHECKING:
    from lmstash.identity.models.watch import ModelWatch

RUNNING = frozenset(
    {
        *("task_dict", "cache_hook", "accelerator", "pbar", "_rank", "_world_size", "rank", "world_size"),
        *("device", "_device", "device_map", "batch_size", "_batch_size", "batch_size_per_gpu", "max_batch_size"),
        *("batch_sizes", "num_concurrent"),
    }
)
"""Attributes and model arguments that say where and how many at once it is computed, whatever code goes by them."""
PATIENCE = frozenset({"verbosity", "timeout", "request_timeout", "max_retries", "retry_backoff_s"})
"""And those that say how patiently; in somebody's own class they may say anything."""

TOKENS = frozenset({"token", "hf_token", "huggingface_hub_token", "huggingfacehub_api_token"})
_PLACES = frozenset(
    {"pretrained", "model_path", "model_name_or_path", "name_or_path", "tokenizer_path", "processor_path"}
)
"""Attributes that say where a module was loaded from: its weights and its tokenizer are read instead."""


@dataclass(frozen=True)
class Parts:
    """A model object as it was at one moment."""

    parts: Mapping[str, bytes]
    """Digests of what was read, by name: `attribute:...`, `code:...`, `module:...`."""
    watches: tuple[tuple[ModelWatch, Fingerprint], ...]
    graphs: tuple[Noted, ...]
    words: frozenset[str]
    """Among the attributes, that may name variables of the environment."""
    variables: Mapping[Any, Any]
    """What its code may read of the environment."""
    counts: Mapping[str, Any]
    """Copies of numbers, texts and containers among the attributes, globals and what lies in classes."""

    remembered: Mapping[str, Remembered]
    """What objects among these hold."""
    code: Mapping[str, bytes]
    """Digests of the code that attributes lead to."""
    clients: Mapping[str, Component]
    """Where what computes elsewhere is asked, by path."""
    opaque: frozenset[str]
    """Attributes and places of globals that were left out."""

    def without_numbers(self, name: str, places: Collection[str]) -> bytes:
        """Return a digest of an object but for some of its numbers, and of the code that it leads to."""
        held = self.remembered.get(name)
        return digest([None if held is None else held.without(places), self.code.get(name)])

    def began(self, name: str, places: Collection[str]) -> Component:
        """Return the numbers at some places of an object that may be settings: what changes counts as it first was."""
        held = self.remembered.get(name)
        return None if held is None else {at: each for at, each in held.settings.items() if is_among(at, places)}

    @property
    def has_module(self) -> bool:
        """Whether a torch module computes the answers."""
        return bool(self.watches)

    def same_code(self) -> bool:
        """Whether the code that was read has not been replaced since, nor what it reads of the environment."""
        if variables(self.graphs, self.words) != self.variables:
            return False
        return all(graph.unchanged() for graph in self.graphs)

    def reads(self, name: str) -> bool:
        """Whether somebody's own code reads what a part is called by: answers may hang on it."""
        called, of_object = bare(name), name.startswith(("attribute:", "class:"))
        return not called or any(graph.reads(called, of_object=of_object) for graph in self.graphs)

    def takes(self, name: str) -> bool:
        """Whether somebody's own code goes by what a part is called by, whatever for: it may be an object."""
        called = bare(name)
        return not called or any(graph.takes(called) for graph in self.graphs)

    def histories(self, changed: Iterable[str], now: Parts) -> list[str]:
        """Return those of the changed parts that somebody's own code reads.

        An object whose numbers only changed is none: it says how fast one may ask, or how much was asked.
        """
        found, nothing = list[str](), remembered(None)
        for name in sorted(changed):
            known = name in self.counts or name in now.counts
            was, is_now = self.remembered.get(name), now.remembered.get(name)
            if was is not None and is_now is not None:  # a container as such may be what it was
                known = known and not same(self.counts.get(name), now.counts.get(name))
            if name.startswith("code:") and ":" not in name[5:]:
                inside = f"class:{name[5:]}."
                held = {each for each in self.counts.keys() | now.counts.keys() if each.startswith(inside)}
                held = {each for each in held if not same(self.counts.get(each), now.counts.get(each))}
                found += sorted(filter(self.reads, held))
                found += [name] if any(name[5:] == name_of(each) for graph in self.graphs for each in graph.own) else []
            elif known:
                found += [name] if self.reads(name) else []
            elif name.partition(":")[2] in now.opaque:
                continue
            elif not name.startswith(_OBJECTS) or (was or nothing).texts != (is_now or nothing).texts:
                found += [name] if self.takes(name) else []
            elif is_now is not None and self.takes(name):  # tokens of a conversation, say
                grown = is_now.lists_grown_since(was or nothing)
                found += [name] if any(self.reads(f"attribute:{each}") for each in grown) else []
        return found


_OBJECTS = ("attribute:", "global:", "code:")
GENERATION = "generation:"
"""Begins the names of what modules generate by."""


class Opaque(UnsupportedModelError):
    """A model object holds something that nobody can take apart."""


def is_secret(name: str) -> bool:
    """Whether a name is that of something that is neither kept nor counts: a key, a token, a password."""
    return SECRETS.fullmatch(name) is not None or name.lower() in TOKENS or name.lower().endswith("api_key")


class Memory:
    """What need not be read anew of one model object.

    Attributes:
        tokenizers: Those that were read.
        watches: Of modules, by `id`; a watch keeps its module, so that no other one gets its id.
        asked: What somebody's own code was seen to ask for by name.
        opaque: Attributes and places of globals of which it was said that they do not count.
    """

    def __init__(self) -> None:
        """Remember nothing."""
        self.tokenizers = LiveTokenizers()
        self.watches: dict[int, ModelWatch] = {}
        self.asked: set[str] = set()
        self.opaque: set[str] = set()
        self._own: tuple[type, Noted] | None = None

    def own_code(self, lm: Any) -> Noted:
        """Return the code of a model object's class, with the functions that lie in the object noted."""
        kind = type(lm)
        if self._own is None or self._own[0] is not kind or not self._own[1].unchanged():
            self._own = kind, harness_code()
            self._own[1].note_class(kind)
            self._own[1].add(kind)
        self._own[1].note_held(getattr(lm, "__dict__", {}))
        return self._own[1]


def read_parts(
    lm: Any, skipped: frozenset[str], memory: Memory, look: Callable[[ModelWatch], Fingerprint], *, named: bool = False
) -> Parts:
    """Read a model object. Costs milliseconds to a second the first time, and reading the weights of modules.

    Args:
        lm: The object.
        skipped: Names of further attributes that change no answer.
        memory: Of what was read before of this object.
        look: Says of a watched module who it is.
        named: Whether it is known by its name and arguments, too: what cannot be taken apart is left out.

    Raises:
        Opaque: It holds something that stands for a server, or that cannot be taken apart, and no module.
        UnsupportedModelError: It holds a module that cannot be identified safely.
    """
    walk = Walk(memory.tokenizers, named)
    attributes = attributes_of(lm, skipped, memory)
    holds_module = any(_is_module(value) for value in attributes.values())
    own = memory.own_code(lm)
    parts = {f"file:{name}": digest(held) for name, held in files_of(attributes, skipped, own).items()}
    try:
        for name in sorted(attributes):
            if named and _is_of_this_run(attributes[name]) and name not in own.read_of(attributes):
                continue  # what it was told are its arguments
            is_place = holds_module and name in _PLACES and isinstance(attributes[name], str | None)
            if not is_place or name in own.read_of(attributes):
                told = walk.read(attributes[name], name)
                if told is not None:
                    parts[f"attribute:{name}"] = told
        parts |= walk.read_class(type(lm))
    except UnsupportedModelError as error:
        if holds_module and not any(map(is_client, attributes.values())):
            raise
        raise Opaque(str(error)) from None
    memory.asked.update(*[graph.names | graph.words for graph in walk.graphs])
    if attributes_of(lm, skipped, memory).keys() - attributes:  # which code that was met goes by
        return read_parts(lm, skipped, memory, look, named=named)
    graphs, words = (*walk.graphs, own), frozenset(words_within(attributes))
    said = variables(graphs, words)
    if said:
        parts["variables"] = digest(said)
    watches: list[tuple[ModelWatch, Fingerprint]] = []
    for path, module in walk.modules:
        watch = memory.watches.get(id(module))
        if watch is None:
            from lmstash.identity.models.watch import watch_model

            watch = memory.watches[id(module)] = watch_model(module)
        fingerprint = look(watch)
        watches.append((watch, fingerprint))
        parts[f"module:{path}"] = fingerprint.digest
        parts[f"{GENERATION}{path}"] = digest(GenerationDefaults(module).read())
    for name in sorted(walk.opaque.keys() - memory.opaque):
        logger.warning(
            "lmstash: %s of %s is a %s, into which lmstash cannot look, so it does not count. If answers hang on what "
            "it holds, give that as an argument of the model, too",
            *(name, type(lm).__name__, walk.opaque[name]),
        )
    memory.opaque |= walk.opaque.keys()
    counts = {f"attribute:{name}": value for name, value in attributes.items()}
    functions = [each for graph in graphs for each in graph.own]
    counts |= {f"code:{name}": value for name, value in globals_of(type(lm), functions).items()}
    counts |= {f"class:{name}": value for name, value in values_of_classes(type(lm)).items()}
    counts |= {f"global:{place}": value for place, value in walk.globals.items()}
    held = {name: remembered(value) for name, value in counts.items() if name in parts and holds_objects(value)}
    counts, opaque = countable(counts), frozenset(walk.opaque)
    code = {f"attribute:{name}": each for name, each in walk.code.items()}
    return Parts(parts, tuple(watches), graphs, words, said, counts, held, code, walk.clients, opaque)


def attributes_of(lm: Any, harmless: frozenset[str], memory: Memory) -> dict[str, Any]:
    """Return the attributes of a model object that may change what it answers."""
    found = getattr(lm, "__dict__", {})
    named = memory.own_code(lm).asked(found) | memory.asked
    skipped = RUNNING | harmless_of(PATIENCE, named, found) | harmless
    return {
        name: value
        for name, value in found.items()
        if name not in skipped and not (is_secret(name) and (name not in named or isinstance(value, SECRET_KINDS)))
    }


def is_url(value: Any) -> TypeGuard[str]:
    """Whether a model's argument is a server's address."""
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def stamp(
    lm: Any, skipped: frozenset[str], memory: Memory, read: Parts, numbers: Mapping[str, Collection[str]] | None = None
) -> bytes:
    """Return what is equal as long as attributes, taken apart as far as they can be, are. Costs about 20 us each.

    Args:
        lm: The object.
        skipped: As `read_parts` takes it; places of globals in it are left out, too.
        memory: As `read_parts` takes it.
        read: What was read; the objects that its code names as globals count, too.
        numbers: By attributes and places of globals: where in them numbers do not count.
    """
    describer = LmDescriber(harness_code(), None)
    attributes = attributes_of(lm, skipped, memory)

    def value(value: Any, place: str) -> Component:
        if place in read.opaque:  # nobody looks into it
            return [type(value).__qualname__, id(value)]
        if place in (numbers or ()):
            return remembered(value).without((numbers or {})[place])
        return describer.value(value, place)

    told: list[Component] = [[name, value(attributes[name], name)] for name in sorted(attributes)]
    seen = {id(each) for each in attributes.values()}
    for graph in read.graphs:
        for place, each in graph.objects.items():
            if place not in skipped and id(each) not in seen:
                seen.add(id(each))
                told.append([place, value(each, place)])
    return encode([*told, files_of(attributes, skipped, memory.own_code(lm))])


def _is_of_this_run(value: Any) -> bool:
    """Whether a value may say when a model object was made, or where it puts what it needs meanwhile."""
    if isinstance(value, str | PurePath):
        return str(value).startswith(os.path.join(tempfile.gettempdir(), ""))
    return isinstance(value, float | datetime.datetime)


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)
