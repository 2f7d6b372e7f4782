"""What hangs on a harness's model object, as key components: tokenizers, modules, clients and plain things."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from lmstash.adapters.lm_eval.who.addresses import address_of_client, is_client, without_secrets
from lmstash.adapters.lm_eval.who.machinery import machinery_told
from lmstash.adapters.lm_eval.who.sessions import session_told
from lmstash.adapters.lmms_eval.who.noted import Noted
from lmstash.adapters.lmms_eval.who.pinned import harness_code
from lmstash.errors import UnsupportedModelError
from lmstash.identity.describe import IMMUTABLE, Describer
from lmstash.identity.encoding import Component, encode
from lmstash.identity.live_tokenizers import LiveTokenizers, is_tokenizer, rules_of
from lmstash.identity.models.generation import GenerationDefaults

_SMALL_BYTES = 2**20
"""Tensors up to this size are read at each look."""
_TOKENIZER_SETTINGS = (
    *("chat_template", "special_tokens_map", "added_tokens_decoder", "padding_side", "truncation_side"),
    *("clean_up_tokenization_spaces", "model_max_length"),
)

_LEFT_OUT = object()
_LEAVES = frozenset(
    {
        *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
        *(complex, Decimal, Fraction),
    }
)
_LAZY = {"jinja2.environment.Environment": "cache", "jinja2.environment.Template": "_module"}
"""By class, an attribute that is filled when it is first asked for, and says nothing that the others do not."""


class Walk:
    """One reading of a model object.

    Args:
        tokenizers: Of earlier readings.
        named: Whether its name and arguments are told beside it. Then what stands for something that computes
            elsewhere counts by its class and address, and what cannot be taken apart is left out.
    """

    def __init__(self, tokenizers: LiveTokenizers, named: bool) -> None:
        self.tokenizers = tokenizers
        self.named = named
        self.code: dict[str, bytes] = {}
        """Digests of the code that attributes lead to."""
        self.clients: dict[str, Component] = {}
        """Where what computes elsewhere is asked, by path."""
        self.opaque: dict[str, str] = {}
        """By path, what was left out: the name of its class."""
        self.modules: list[tuple[str, Any]] = []
        self.inside: dict[int, str] = {}
        """Modules by `id`: the path that each is read at."""
        self.graphs: list[Noted] = []
        self.globals: dict[str, Any] = {}
        """Objects that the class's code names, by place."""

    def read(self, value: Any, name: str) -> bytes | None:
        """Return a digest of an attribute, and of all code and tensors that it leads to; None where it is left out."""
        describer, graph = self._begin()
        first = self._value(describer, value, name)
        if first is _LEFT_OUT:
            return None
        told = [first]
        self._follow(graph, describer, lambda _, described: told.append(described))
        tensors = [[path, _tensor(tensor)] for path, tensor in sorted(describer.tensors.items())]
        code: list[Component] = [graph.components(), graph.packages()]
        self.code[name] = digest(code)
        return digest([told, *code, tensors])

    def read_class(self, kind: type) -> dict[str, bytes]:
        """Return digests of a class's code, and of the globals that this names, by name."""
        describer, graph = self._begin()
        parts = {"class": digest(graph.add(kind))}
        self._follow(graph, describer, lambda place, described: parts.update({f"global:{place}": digest(described)}))
        self.globals = {str(place): value for place, value in graph.objects.items()}
        parts |= {f"tensor:{path}": _tensor(tensor) for path, tensor in describer.tensors.items()}
        parts |= {f"code:{name}": digest(each) for name, each in graph.components().items()}
        return parts | {f"package:{name}": digest(version) for name, version in graph.packages().items()}

    def _begin(self) -> tuple[LmDescriber, Noted]:
        graph = harness_code()
        self.graphs.append(graph)
        return LmDescriber(graph, self), graph

    def _follow(self, graph: Noted, describer: LmDescriber, tell: Callable[[str, Component], None]) -> None:
        """Describe what code names as globals; that may lead to more code."""
        seen: set[str] = set()
        while left := sorted(graph.objects.keys() - seen):
            for place in left:
                told = self._value(describer, graph.objects[place], place)
                if told is not _LEFT_OUT:
                    tell(place, told)
            seen.update(left)

    def _value(self, describer: LmDescriber, value: Any, place: str) -> Any:
        try:
            return without_secrets(describer.value(value, place))
        except RecursionError:
            if not self.named:
                raise
            self.opaque[place] = _name_of(type(value))
            return _LEFT_OUT


class LmDescriber(Describer):
    """Describes what hangs on a model object: tokenizers by what they make of texts, modules by their weights.

    Without a walk, for comparing within one process: what is costly to read stands by its `id`.
    """

    def __init__(self, code: Noted, walk: Walk | None) -> None:
        super().__init__(code, lenient=walk is None, follow_code=walk is not None)
        self._walk = walk

    def value(self, value: Any, path: str) -> Component:
        """As `Describer.value`; where the name of the model counts, too, what cannot be told stands by its class."""
        try:
            return self._told(value, path)
        except UnsupportedModelError:
            if self._walk is None or not self._walk.named:
                raise
            self._walk.opaque[path] = _name_of(type(value))
            return ["not told", _name_of(type(value))]

    def _told(self, value: Any, path: str) -> Component:
        kind = type(value)
        if kind in IMMUTABLE:
            return value
        if kind in (list, tuple) and IMMUTABLE.issuperset(map(type, value)):  # many words, for instance
            return [kind.__name__, *value]
        if is_client(value):
            told = _client(value)
            if self._walk is not None and not self._walk.named:
                raise UnsupportedModelError(f"its {path} is a {told[1]}")
            if self._walk is not None:
                self._walk.clients[path] = told
            return told
        if isinstance(value, PurePath):  # it notes its parts when it is first asked for them
            return ["path", str(value)]
        if (running := machinery_told(value)) is not None:
            return ["running", *[super(LmDescriber, self).value(each, path) for each in running]]
        if is_number(value):
            return ["number", type(value).__qualname__, repr(value)]
        if is_tokenizer(value):
            return ["tokenizer", *(_glance(value) if self._walk is None else self._walk.tokenizers.told(value))]
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

    def _object(self, value: Any, kind: type, path: str) -> Component:
        lazy = _LAZY.get(_name_of(kind))
        if lazy is None:
            return super()._object(value, kind, path)
        fields = sorted(name for name in vars(value) if name != lazy)
        return [self.code(kind), *[[name, self.value(vars(value)[name], f"{path}.{name}")] for name in fields]]


def _client(client: Any) -> list[Component]:
    """Return what counts of what computes elsewhere: its class, where it asks, and what a session sends along."""
    where: Component = None
    with contextlib.suppress(Exception):  # whatever other people's objects do when they are asked
        where = address_of_client(client)
    said: list[Component] = ["client", _name_of(type(client)), where]
    sent = session_told(client)
    return said if sent is None else [*said, sent]


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def is_number(value: Any) -> bool:
    """Whether a value is a number that Python does not write down as such, or a time."""
    return type(value) in _LEAVES


def _glance(tokenizer: Any) -> list[Component]:
    """Return what changes to a tokenizer show in; it is read wholly from time to time, and before keeping."""
    told = [repr(getattr(tokenizer, name, None)) for name in _TOKENIZER_SETTINGS]
    return [id(tokenizer), hash(rules_of(tokenizer)), *told]


def _tensor(tensor: Any) -> bytes:
    from lmstash.identity.memory.weights import content_digest

    return digest([str(tensor.dtype), list(tensor.shape), content_digest(tensor)])


def digest(value: Component) -> bytes:
    """Return a digest, so that no part shows what a model holds."""
    return hashlib.sha256(encode(value)).digest()
