"""What can be told of a harness's model object: its class, its attributes, its modules, its tokenizers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from lmstash.adapters.lm_eval.addresses import is_client
from lmstash.adapters.lm_eval.named_files import files_named
from lmstash.adapters.lm_eval.own_names import SECRET_KINDS, variables
from lmstash.adapters.lm_eval.own_names import harmless as harmless_of
from lmstash.adapters.lm_eval.tokenizing import cleans_up, rules_of
from lmstash.adapters.lmms_eval.growth import bare, countable, globals_of, same, values_of_classes
from lmstash.adapters.lmms_eval.noted import Noted, name_of
from lmstash.adapters.lmms_eval.pinned import harness_code
from lmstash.caches.responses.hiding import SECRETS
from lmstash.errors import UnsupportedModelError
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.generation import GenerationDefaults
from lmstash.identity.words import words_within

if TYPE_CHECKING:
    from lmstash.identity.watch import ModelWatch

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

_SMALL_BYTES = 2**20
"""Tensors up to this size are read at each look."""
_PADDING = "left"
"""Where batches are filled up by models that generate; only another side is named."""
_TOKENIZER_SETTINGS = (
    *("chat_template", "special_tokens_map", "added_tokens_decoder", "padding_side", "truncation_side"),
    *("clean_up_tokenization_spaces", "model_max_length"),
)


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

    def histories(self, changed: Iterable[str], now: Parts) -> list[str]:
        """Return those of the changed parts that somebody's own code reads: plain values, not objects with state."""
        found: list[str] = []
        for name in sorted(changed):
            known = name in self.counts or name in now.counts
            if name.startswith("code:") and ":" not in name[5:]:
                inside = f"class:{name[5:]}."
                held = {each for each in self.counts.keys() | now.counts.keys() if each.startswith(inside)}
                found += [each for each in sorted(held) if not same(self.counts.get(each), now.counts.get(each))]
                found += [name] if any(name[5:] == name_of(each) for graph in self.graphs for each in graph.own) else []
            elif known:
                found.append(name)
        return [name for name in found if (name.startswith("code:") and ":" not in name[5:]) or self.reads(name)]


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
        tokenizers: By `id`: each, how it looked, and its fingerprint then.
        watches: Of modules, by `id`; a watch keeps its module, so that no other one gets its id.
        asked: What somebody's own code was seen to ask for by name.
    """

    def __init__(self) -> None:
        """Remember nothing."""
        self.tokenizers: dict[int, tuple[Any, bytes, bytes]] = {}
        self.watches: dict[int, ModelWatch] = {}
        self.asked: set[str] = set()
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


def read_parts(lm: Any, skipped: frozenset[str], memory: Memory, look: Callable[[ModelWatch], Fingerprint]) -> Parts:
    """Read a model object. Costs milliseconds to a second the first time, and reading the weights of modules.

    Args:
        lm: The object.
        skipped: Names of further attributes that change no answer.
        memory: Of what was read before of this object.
        look: Says of a watched module who it is.

    Raises:
        Opaque: It holds something that cannot be taken apart, and no module.
        UnsupportedModelError: It holds a module that cannot be identified safely.
    """
    walk = _Walk(memory)
    attributes = attributes_of(lm, skipped, memory)
    holds_module = any(_is_module(value) for value in attributes.values())
    own = memory.own_code(lm)
    parts = {f"file:{name}": _digest(held) for name, held in files_named(attributes, (), own).items()}
    try:
        for name in sorted(attributes):
            is_place = holds_module and name in _PLACES and isinstance(attributes[name], str | None)
            if not is_place or name in own.read_of(attributes):
                parts[f"attribute:{name}"] = walk.read(attributes[name], name)
        parts |= walk.read_class(type(lm))
    except UnsupportedModelError as error:
        if holds_module:
            raise
        raise Opaque(str(error)) from None
    memory.asked.update(*[graph.names | graph.words for graph in walk.graphs])
    if attributes_of(lm, skipped, memory).keys() - attributes:  # which code that was met goes by
        return read_parts(lm, skipped, memory, look)
    graphs, words = (*walk.graphs, own), frozenset(words_within(attributes))
    said = variables(graphs, words)
    if said:
        parts["variables"] = _digest(said)
    watches: list[tuple[ModelWatch, Fingerprint]] = []
    for path, module in walk.modules:
        watch = memory.watches.get(id(module))
        if watch is None:
            from lmstash.identity.watch import watch_model

            watch = memory.watches[id(module)] = watch_model(module)
        fingerprint = look(watch)
        watches.append((watch, fingerprint))
        parts[f"module:{path}"] = fingerprint.digest
        parts[f"{GENERATION}{path}"] = _digest(GenerationDefaults(module).read())
    counts = {f"attribute:{name}": value for name, value in attributes.items()}
    functions = [each for graph in graphs for each in graph.own]
    counts |= {f"code:{name}": value for name, value in globals_of(type(lm), functions).items()}
    counts |= {f"class:{name}": value for name, value in values_of_classes(type(lm)).items()}
    counts |= {f"global:{place}": value for place, value in walk.globals.items()}
    return Parts(parts, tuple(watches), graphs, words, said, countable(counts))


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


def stamp(lm: Any, skipped: frozenset[str], memory: Memory, graphs: Iterable[Noted] = ()) -> bytes:
    """Return what is equal as long as attributes, taken apart as far as they can be, are. Costs about 20 us each.

    Args:
        lm: The object.
        skipped: As `read_parts` takes it; places of globals in it are left out, too.
        memory: As `read_parts` takes it.
        graphs: Its code, as it was read; the objects that this names as globals count, too.
    """
    describer = _LmDescriber(harness_code(), None)
    attributes = attributes_of(lm, skipped, memory)
    told: list[Component] = [[name, describer.value(attributes[name], name)] for name in sorted(attributes)]
    seen = {id(each) for each in attributes.values()}
    for graph in graphs:
        for place, each in graph.objects.items():
            if place not in skipped and id(each) not in seen:
                seen.add(id(each))
                told.append([place, describer.value(each, place)])
    return encode([*told, files_named(attributes, skipped, memory.own_code(lm))])


class _Walk:
    """One reading of a model object."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.modules: list[tuple[str, Any]] = []
        self.inside: dict[int, str] = {}
        """Modules by `id`: the path that each is read at."""
        self.graphs: list[Noted] = []
        self.globals: dict[str, Any] = {}
        """Objects that the class's code names, by place."""

    def read(self, value: Any, name: str) -> bytes:
        """Return a digest of an attribute, and of all code and tensors that it leads to."""
        describer, graph = self._begin()
        told = [describer.value(value, name)]
        _follow(graph, describer, lambda _, described: told.append(described))
        tensors = [[path, _tensor(tensor)] for path, tensor in sorted(describer.tensors.items())]
        return _digest([told, graph.components(), graph.packages(), tensors])

    def read_class(self, kind: type) -> dict[str, bytes]:
        """Return digests of a class's code, and of the globals that this names, by name."""
        describer, graph = self._begin()
        parts = {"class": _digest(graph.add(kind))}
        _follow(graph, describer, lambda place, described: parts.update({f"global:{place}": _digest(described)}))
        self.globals = {str(place): value for place, value in graph.objects.items()}
        parts |= {f"tensor:{path}": _tensor(tensor) for path, tensor in describer.tensors.items()}
        parts |= {f"code:{name}": _digest(digest) for name, digest in graph.components().items()}
        return parts | {f"package:{name}": _digest(version) for name, version in graph.packages().items()}

    def _begin(self) -> tuple[Describer, Noted]:
        graph = harness_code()
        self.graphs.append(graph)
        return _LmDescriber(graph, self), graph


def _follow(graph: Noted, describer: Describer, tell: Callable[[str, Component], None]) -> None:
    """Describe what code names as globals; that may lead to more code."""
    seen: set[str] = set()
    while left := sorted(graph.objects.keys() - seen):
        for place in left:
            tell(place, describer.value(graph.objects[place], place))
        seen.update(left)


class _LmDescriber(Describer):
    """Describes what hangs on a model object: tokenizers by what they make of texts, modules by their weights.

    Without a walk, for comparing within one process: what is costly to read stands by its `id`.
    """

    def __init__(self, code: Noted, walk: _Walk | None) -> None:
        super().__init__(code, lenient=walk is None, follow_code=walk is not None)
        self._walk = walk

    def value(self, value: Any, path: str) -> Component:
        if is_client(value):
            if self._walk is None:
                return ["client", id(value)]
            raise UnsupportedModelError(f"its {path} is a {type(value).__module__}.{type(value).__qualname__}")
        if _is_tokenizer(value):
            known = None if self._walk is None else self._walk.memory.tokenizers
            return ["tokenizer", *(_glance(value) if known is None else _read(value, known))]
        if type(value).__module__.partition(".")[0] == "accelerate":
            return "accelerate"
        return super().value(value, path)

    def module(self, module: Any, path: str) -> Component:
        """Return a module by where it was met; a part of one that was met before is read with that."""
        inner = module.module if type(module).__name__ in ("DistributedDataParallel", "DataParallel") else module
        walk = self._walk
        if walk is None:
            return ["module", id(inner), GenerationDefaults(inner).read()]
        if id(inner) not in walk.inside:
            walk.modules.append((path, inner))
            for name, each in inner.named_modules():
                walk.inside.setdefault(id(each), f"{path}.{name}")
        return ["module at", walk.inside[id(inner)]]

    def tensor(self, tensor: Any, path: str) -> Component:
        """Return a tensor by its place; without a walk, which reads it, by what tells that it changed."""
        told = super().tensor(tensor, path)
        if self._walk is not None:
            return told
        version = 0 if tensor.is_inference() else tensor._version
        content = _tensor(tensor) if tensor.device.type == "cpu" and tensor.nbytes <= _SMALL_BYTES else b""
        return ["tensor", told, id(tensor), version, content]


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_tokenizer(value: Any) -> bool:
    return callable(getattr(type(value), "get_vocab", None)) and hasattr(value, "encode")


def _read(tokenizer: Any, known: dict[int, tuple[Any, bytes, bytes]]) -> list[Component]:
    """Return a tokenizer's fingerprint, and what else of it counts where texts are generated.

    Of one that looks as it did to the last rule and word, the fingerprint that it had.
    """
    from lmstash.identity.tokenizer import fingerprint_tokenizer

    looks = hashlib.sha256(f"{rules_of(tokenizer)}\0{vars(tokenizer)!r}".encode("utf-8", "surrogatepass")).digest()
    before = known.get(id(tokenizer))
    if before is None or before[0] is not tokenizer or before[1] != looks:
        before = known[id(tokenizer)] = (tokenizer, looks, fingerprint_tokenizer(tokenizer).digest)
    side = getattr(tokenizer, "padding_side", _PADDING)
    others: list[Component] = [["padding side", str(side)]] if side != _PADDING else []
    return [before[2], *others, *(["cleans up"] if cleans_up(tokenizer) else [])]


def _glance(tokenizer: Any) -> list[Component]:
    """Return what changes to a tokenizer show in; it is read wholly from time to time, and before keeping."""
    told = [repr(getattr(tokenizer, name, None)) for name in _TOKENIZER_SETTINGS]
    return [id(tokenizer), hash(rules_of(tokenizer)), *told]


def _tensor(tensor: Any) -> bytes:
    from lmstash.identity.weights import content_digest

    return _digest([str(tensor.dtype), list(tensor.shape), content_digest(tensor)])


def _digest(value: Component) -> bytes:
    """Return a digest, so that no part shows what a model holds."""
    return hashlib.sha256(encode(value)).digest()
