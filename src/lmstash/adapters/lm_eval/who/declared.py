"""A model that its owner declares, with what can be told of the `LM` all the same."""

from __future__ import annotations

import contextlib
import enum
import inspect
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from lmstash.adapters.lm_eval.who.addresses import without_secrets
from lmstash.adapters.lm_eval.who.code_of import LmDescriber, code_of_model
from lmstash.adapters.lm_eval.who.made_in_calls import made_in_calls
from lmstash.adapters.lm_eval.who.named_files import files_named
from lmstash.adapters.lm_eval.who.own_names import Followed, variables
from lmstash.adapters.lm_eval.who.settings import DERIVED, RUNNING, header_of, how_sent, is_headers, left_out_of
from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.caches.responses.who import named
from lmstash.errors import InvalidArgumentError
from lmstash.identity.code.owners import defined_in, is_installed
from lmstash.identity.content.object_parts import attributes_of
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

_NEW = frozenset({"tokenizer", "_model", "_header"})
"""Attributes of most models, which say nothing where they are None."""
_CONTAINERS = frozenset(
    {"builtins", "collections", "types", "argparse", "datetime", "decimal", "functools", "numpy", "pathlib", "re"}
)
"""Packages whose objects are settings, and may be taken apart."""
_CODE = (FunctionType, BuiltinFunctionType, MethodType, type)
"""What says nothing of a declared model: its code is what its owner says."""


class DeclaredModel:
    """What somebody says, with plain attributes, own objects, files that they name and variables as they are now."""

    def __init__(
        self, lm: Any, model: str, *, revision: str | None, variant: str | None, without: Collection[str] = ()
    ) -> None:
        """Read the code by which it goes.

        Args:
            lm: The harness's model.
            model: Its declared name.
            revision: As `named` takes it.
            variant: As `named` takes it.
            without: Names of attributes that do not count.
        """
        self._lm = lm
        self._without = {*without}
        self.made = made_in_calls(lm)
        self._made: dict[str, Any] = {}
        self._none_first = {name for name, value in attributes_of(lm).items() if value is None}
        self._base = named(model, revision=revision, variant=variant)
        self._code = code_of_model(lm)
        self.look()

    def look(self) -> Fingerprint:
        """Return who answers. Costs some 0.02 ms an attribute, and 1 ms for 1,000 texts in one."""
        return self.made.told(self._told)

    def _told(self) -> Fingerprint:
        lm, code = self._lm, self._code
        held = self.made.before()
        is_remote = hasattr(type(lm), "header")
        settings: dict[Component, Component] = {}
        without = self._without
        n_met = -1
        while n_met != len(code.names | code.words):  # objects may lead to code that goes by further attributes
            n_met = len(code.names | code.words)
            without = self._without | left_out_of(lm, RUNNING | DERIVED | {"pretrained"}, code)
            without |= {name for name in _NEW if held.get(name) is None}
            if is_remote:
                without |= {name for name in ("_header", "header") if is_headers(lm, name)}
            settings = self._settings(held, without | self._made_before(held))
        kind = f"{type(lm).__module__}.{type(lm).__qualname__}"
        parts: dict[str, Component] = {"kind": "lm_eval", "of": self._base.digest, "class": kind, "settings": settings}
        more: dict[str, Component] = {
            "header": header_of(lm, ask=False) if is_remote else {},
            "variables": variables([code], settings),
            "files": files_named(held, without, code),
        }
        parts |= how_sent(lm) | {name: each for name, each in more.items() if each}
        return Fingerprint(Key(parts), {**self._base.recorded, "harness": "lm_eval"})

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether its attributes, and the files that these name, are still the same."""
        return self.look() == since

    def _settings(self, held: Mapping[str, Any], without: Collection[str]) -> dict[Component, Component]:
        """Return what can be told of attributes, by name."""
        describer = _Telling(self._code)
        told: dict[Component, Component] = {}
        for name, value in held.items():
            if name in without or SECRETS.fullmatch(name):
                continue
            value = str(value) if isinstance(value, PurePath) else value
            if _is_plain(value):
                told[name] = without_secrets(value)
            elif _is_told(value):
                with contextlib.suppress(Exception):  # whatever other people's objects do when they are looked at
                    told[name] = without_secrets(describer.value(value, name))
            elif name in self._none_first:  # a client that is made when it is needed, say
                told[name] = None
        return told

    def _made_before(self, held: Mapping[str, Any]) -> set[str]:
        """Return what properties of somebody's own have made that is not told, as long as it is what they made."""
        found = set[str]()
        for name, value in held.items():
            made = inspect.getattr_static(type(self._lm), name, None)
            is_own = isinstance(made, cached_property) and defined_in(made.func).partition(".")[0] != "lm_eval"
            if is_own and not (_is_plain(value) or _is_told(value)) and self._made.setdefault(name, value) is value:
                found.add(name)
        return found


class _Telling(LmDescriber):
    """Describes containers and objects of somebody's own classes; of a package's objects only the class."""

    def __init__(self, code: Followed) -> None:
        super().__init__(code, lenient=True)

    def value(self, value: Any, path: str) -> Component:
        """Return a value as a component, or its class."""
        return super().value(value, path) if _is_told(value) else _class_of(value)

    def _object(self, value: Any, kind: type, path: str) -> Component:
        with contextlib.suppress(Exception):  # as above
            return super()._object(value, kind, path)
        return _class_of(value)


def _class_of(value: Any) -> Component:
    return ["of", f"{type(value).__module__}.{type(value).__qualname__}"]


def _is_told(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, _CODE):
        return False
    if isinstance(value, enum.Enum):
        return True
    return str(kind.__module__).partition(".")[0] in _CONTAINERS or not is_installed(defined_in(kind))


def _is_plain(value: Any) -> bool:
    try:
        encode(value)
    except InvalidArgumentError:
        return False
    return True
