"""What the objects of an evaluation are made of: classes by their code, settings by what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

from lm_eval.api.model import CacheHook

from lmstash.adapters.lm_eval.asking.partials import Hook
from lmstash.adapters.lm_eval.who.addresses import address_of_client, is_client, without_secrets
from lmstash.adapters.lm_eval.who.beside_classes import edited, put_into_modules
from lmstash.adapters.lm_eval.who.carriers import Carriers
from lmstash.adapters.lm_eval.who.machinery import machinery_told
from lmstash.adapters.lm_eval.who.own_names import SECRET_KINDS, Followed
from lmstash.adapters.lm_eval.who.sessions import session_told
from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.identity.code.bytecode import parts_of
from lmstash.identity.code.owners import BY_NAME, defined_in, is_installed
from lmstash.identity.code.templates import is_template, parts_of_template
from lmstash.identity.content.held_files import content_of
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.content.tables import table_told
from lmstash.identity.describe import Describer
from lmstash.identity.encoding import Component, encode

_BY_VERSION = frozenset(
    {
        *("lm_eval", "transformers", "torch", "accelerate", "tqdm", "jinja2", "packaging", "safetensors", "peft"),
        *("numpy", "datasets", "evaluate", "huggingface_hub", "tokenizers", "requests", "aiohttp", "tenacity"),
        *("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "anyio", "h11", "certifi"),  # they note what they meet
    }
)
"""Packages whose code does not count: lm_eval does by version and source, transformers with the module."""
_CARRIERS = _BY_VERSION - BY_NAME - {"lm_eval", "transformers", "datasets", "evaluate", "jinja2", "tokenizers"}
_ASKING = ("aiohttp", "requests")
"""By which the harness asks servers."""
_VARIABLE = re.compile(r"(?::|\.(?=\w+ alone))(\w+)(?: alone)?'*$")
"""Of a place, as `identity.code` and `identity.asked_by_text` write it."""
_FUNCTIONS = (FunctionType, staticmethod, classmethod, type)
_READ_BYTES = 64 << 20
"""Tensors beside a model are read at each look, up to so much of them."""


def class_of(lm: Any, *, vouched: bool, held: Mapping[str, Any] | None = None) -> tuple[Followed, Component]:
    """Return what an `LM`'s class is: by version and source within lm_eval, by its code elsewhere.

    What somebody has put into a class or module of lm_eval, or of what it asks servers by, counts by its code, too, and
    files of lm_eval that were edited.

    Args:
        lm: The harness's model.
        vouched: Whether somebody vouches for what cannot be read of that.
        held: Its attributes, where not all count as they are.

    Raises:
        UnsupportedModelError: Something put there cannot be read.
    """
    code = Followed("lm_eval", pin_of=_pin_of, carriers=Carriers(_CARRIERS))
    code.lm = lm
    code.note_class(type(lm))
    code.note_held(attributes_of(lm) if held is None else held)
    kind = type(lm)
    sources: dict[Component, Component] = {}
    foreign: dict[str, Any] = {}
    own = False
    for each in kind.__mro__:
        root = each.__module__.partition(".")[0]
        if root == "lm_eval":
            sources[each.__module__] = _source_digest(each.__module__)
            foreign.update(_put_into(each))
        elif root not in ("builtins", "abc"):
            own = True
    foreign.update(put_into_modules(kind, _BY_VERSION))
    about: dict[Component, Component] = {
        "name": f"{kind.__module__}.{kind.__qualname__}",
        "lm_eval": _version("lm_eval"),
        "sources": sources,
    }
    if edited():
        about["edited"] = edited()
    if own:
        try:
            code.add(kind)
        except Exception as error:  # of what stands in for a function
            code.unread[f"the code of {kind.__qualname__}"] = error
    if "lm_eval.models.api_models" in sources:
        code.look_into(_ASKING)
    if foreign:
        told = {place: described({place: part}, frozenset(), code, vouched=vouched) for place, part in foreign.items()}
        units = code.components()  # those under lm_eval's own names are not part of own_code
        about["put into lm_eval"] = {
            place: [told[place], units.get(code.add(part)) if isinstance(part, FunctionType | type) else None]
            for place, part in foreign.items()
        }
    return code, about


def code_of_model(lm: Any, *, pinned: bool = False) -> Followed:
    """Return the code of somebody's own that a model goes by, with that of functions which it calls.

    Args:
        lm: The harness's model.
        pinned: Whether packages that lead to much stand by their version.
    """
    code = Followed("lm_eval", pin_of=_pin_of if pinned else None, carriers=Carriers(_CARRIERS))
    held = attributes_of(lm)
    code.lm = lm
    code.note_class(type(lm))
    code.note_held(held)
    for each in type(lm).__mro__:
        if defined_in(each).partition(".")[0] != "lm_eval" and not is_installed(defined_in(each)):
            with contextlib.suppress(Exception):  # whatever other people's code does when it is looked at
                code.add(each)
    return code


def _pin_of(module: str) -> Component:
    """Return what stands for code that leads to much of other packages, some of it made anew in each process."""
    return ["datasets", _version("datasets")] if module.partition(".")[0] == "datasets" else None


def _put_into(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield what lies in a class of lm_eval and is not of its source file, by place: functions and other objects.

    Of itself, no class of lm_eval holds other objects than plain values, and classes of its own or of transformers.
    """
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    for name, member in list(vars(cls).items()):
        # An object may say that it wraps the harness's function, and do anything.
        is_wrapper = hasattr(member, "__wrapped__") and not isinstance(member, _FUNCTIONS)
        for number, part in enumerate((member,) if is_wrapper else parts_of(name, member)):
            if isinstance(part, FunctionType):
                own = defined_in(part) == cls.__module__ and file in (None, part.__code__.co_filename)
            else:
                own = isinstance(part, type) and defined_in(part).partition(".")[0] in _BY_VERSION
            if not own:
                yield f"{cls.__module__}.{cls.__qualname__}.{name} {number}", part


def own_code(code: Followed, *, vouched: bool) -> Component:
    """Return the code that was met, without that of packages which count by version, and the objects that it names.

    What it only adds to, and never reads, does not count.

    Args:
        code: Where it was read.
        vouched: Whether somebody vouches for what cannot be read.

    Raises:
        UnsupportedModelError: An object cannot be read.
    """
    for place, error in () if vouched else code.unread.items():
        raise UnsupportedModelError(f"{place} cannot be read ({error}): vouch for it with variant='...'") from error
    objects: dict[Component, Component] = {}
    while left := code.objects.keys() - objects.keys():  # describing one may lead to more code
        for place in sorted(left):
            # Of no module is what attrs and the like have written: it names objects of theirs.
            held = {} if place.startswith("None.") else {place: code.objects[place]}
            objects[place] = described(held, frozenset(), code, vouched=vouched)
    units = {name: each for name, each in code.components().items() if str(name).partition(".")[0] not in _BY_VERSION}
    added = code.only_added()
    found = {**units, **{place: each for place, each in objects.items() if each}}
    return {name: each for name, each in found.items() if _variable(str(name)) not in added}


def _variable(place: str) -> str | None:
    """Return what a place in code is called there: a global, a variable closed over, an attribute of a function."""
    found = _VARIABLE.search(place)
    return found and found[1]


_digests: dict[tuple[str, int], str] = {}


def _source_digest(module: str) -> Component:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return None
    try:
        name = (file, Path(file).stat().st_mtime_ns)
        if name not in _digests:
            _digests[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return _digests[name]
    except OSError:
        return None


def _version(package: str) -> Component:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class LmDescriber(Describer):
    """Describes what hangs on an `LM`: clients of servers by where they ask, the `LM` itself by nothing more."""

    def value(self, value: Any, path: str) -> Component:
        """Return a value as a component."""
        if value is not None and value is getattr(self._code, "lm", None):
            return "the LM"
        if isinstance(value, PurePath) and type(value).__module__.partition(".")[0] == "pathlib":
            return self._path(value, path)
        if isinstance(value, Hook | CacheHook):
            return "cache hook"
        machinery = machinery_told(value)
        if machinery is not None:
            return self.value(machinery, path)
        if is_template(value):
            with contextlib.suppress(InvalidArgumentError):  # it loads others from where nobody can look
                return ["template", _version("jinja2"), self.value(parts_of_template(value), path)]
        root, kind = str(type(value).__module__).partition(".")[0], type(value).__qualname__
        if root == "numpy" and kind == "Generator":
            generator: Any = value
            return ["numpy", kind, super().value(generator.bit_generator.state, path)]
        table = table_told(value, lambda each: super(LmDescriber, self).value(each, path))
        if table is not None:
            return table
        said = session_told(value)
        if said is not None:
            return ["session", f"{root}.{kind}", said]
        sends_by = getattr(value, "_client", None) if is_client(value) else None
        asks = None if sends_by is None else address_of_client(value)
        if asks is None:
            return super().value(value, path)
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        packages = {type(each).__module__.partition(".")[0] for each in (value, sends_by)}
        through = session_told(sends_by) if len(packages) > 1 else None
        if len(packages) > 1 and through is None and not self._lenient:
            raise UnsupportedModelError(
                f"{path} of the LM is a {kind} with somebody's own `http_client`, so that lmstash cannot tell whom it "
                "asks and how: vouch for it with variant='...'"
            )
        return ["client", kind, asks] if through is None else ["client", kind, asks, through]

    def code(self, code: Any, path: str = "") -> Component:
        """Return a class or function by name; `own_code` tells what one of somebody's own has closed over."""
        own = isinstance(code, FunctionType) and not is_installed(defined_in(code))
        return super().code(code, "" if own else path)

    def _path(self, value: PurePath, path: str) -> Component:
        """Return a path as text, since it notes in itself what it is asked; of one that lies deeper also its file.

        Files of the `LM`'s own attributes are read when it is known what its code does with them.
        """
        told: list[Component] = ["path", type(value).__name__, str(value)]
        name = path.replace(":", ".").rpartition(".")[2]
        if name == path or (isinstance(self._code, Followed) and self._code.only_writes(name)):
            return told
        content = content_of(str(value))
        return told if content is None else [*told, content]


def described(
    values: Mapping[str, Any],
    without: frozenset[str] | set[str],
    code: Followed,
    *,
    vouched: bool = False,
    named: Collection[str] = (),
    describer: LmDescriber | None = None,
) -> Component:
    """Return values by name, without secrets.

    Args:
        values: By name.
        without: Names that do not count.
        code: Takes the code that is met.
        vouched: Whether somebody vouches for what cannot be read.
        named: What somebody's own code asks for: it counts also under a secret's name, if it can be no secret.
        describer: Describes them; not `vouched` for, then.

    Raises:
        UnsupportedModelError: One of them cannot be read.
    """
    describer = LmDescriber(code, lenient=vouched) if describer is None else describer
    found: dict[Component, Component] = {}
    for name, value in values.items():
        secret = SECRETS.fullmatch(name) is not None
        if name in without or (secret and (name not in named or isinstance(value, SECRET_KINDS))):
            continue
        try:
            told = describer.value(value, name)
            found[name] = hashlib.sha256(encode(told)).hexdigest() if secret else without_secrets(told)
        except UnsupportedModelError:
            raise
        except Exception as error:  # whatever other people's objects do when they are looked at
            raise UnsupportedModelError(
                f"{name} of the LM cannot be looked into: {error!r}. If it changes no answer, say harmless=['{name}'] "
                "(`CachedLM`); else declare the model: model='name and version'."
            ) from error
    small = sum(each.nbytes for each in describer.tensors.values()) <= _READ_BYTES
    if not vouched and small and not describer.modules:
        from lmstash.identity.memory.weights import content_digest

        for name, each in _dense(describer):
            try:
                found[f"tensor at {name}"] = [str(each.dtype), [*each.shape], content_digest(each)]
            except Exception as error:  # a subclass of somebody's
                raise UnsupportedModelError(f"{name} of the LM cannot be read: {error!r}") from error
        return found
    if not vouched and (describer.tensors or describer.modules):
        places = ", ".join([*describer.tensors, *(name for name, _ in describer.modules)])
        raise UnsupportedModelError(f"{places} of the LM holds weights that lmstash does not read: use variant=")
    return found


def _dense(describer: Describer) -> Iterator[tuple[str, Any]]:
    import torch

    for name, tensor in sorted(describer.tensors.items()):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UnsupportedModelError(f"{name} of the LM is a tensor of a kind that lmstash does not read")
        yield name, tensor
