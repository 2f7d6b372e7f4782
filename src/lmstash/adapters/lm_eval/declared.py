"""A model that its owner declares, with what can be told of the `LM` all the same."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePath
from typing import Any

from lmstash.adapters.lm_eval.code_of import without_secrets
from lmstash.adapters.lm_eval.named_files import files_named
from lmstash.adapters.lm_eval.own_names import Followed
from lmstash.adapters.lm_eval.settings import DERIVED, RUNNING, header_of, how_sent, is_headers, left_out_of
from lmstash.caches.responses.hiding import SECRETS
from lmstash.caches.responses.who import named
from lmstash.errors import InvalidArgumentError
from lmstash.identity.encoding import Component, encode
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

_NEW = frozenset({"tokenizer", "_model", "_header"})
"""Attributes of most models, which say nothing where they are None."""


class DeclaredModel:
    """What somebody says, the plain attributes as they were, and the files that these name as they are now."""

    def __init__(
        self, lm: Any, model: str, *, revision: str | None, variant: str | None, without: Collection[str] = ()
    ) -> None:
        """Read the attributes.

        Args:
            lm: The harness's model.
            model: Its declared name.
            revision: As `named` takes it.
            variant: As `named` takes it.
            without: Names of attributes that do not count.
        """
        self._lm = lm
        self._code = Followed("lm_eval")
        self._code.note_class(type(lm))
        self._code.note_held(vars(lm))
        self._without = {*without}
        self._base = named(model, revision=revision, variant=variant)
        self._parts = self._read()
        self.look()

    def look(self) -> Fingerprint:
        """Return who answers."""
        files = files_named(vars(self._lm), self._without, self._code)
        parts = self._parts | ({"files": files} if files else {})
        return Fingerprint(Key(parts), {**self._base.recorded, "harness": "lm_eval"})

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether the files that its attributes name are still the same."""
        return self.look() == since

    def _read(self) -> dict[str, Component]:
        lm = self._lm
        held = vars(lm)
        is_remote = hasattr(type(lm), "header")
        self._without |= left_out_of(lm, RUNNING | DERIVED | {"pretrained"}, self._code)
        self._without |= {name for name in _NEW if held.get(name) is None}
        if is_remote:
            self._without |= {name for name in ("_header", "header") if is_headers(lm, name)}
        values = {name: str(value) if isinstance(value, PurePath) else value for name, value in held.items()}
        plain: dict[Component, Component] = {
            name: without_secrets(value)
            for name, value in values.items()
            if name not in self._without and not SECRETS.fullmatch(name) and _is_plain(value)
        }
        kind = f"{type(lm).__module__}.{type(lm).__qualname__}"
        parts: dict[str, Component] = {"kind": "lm_eval", "of": self._base.digest, "class": kind, "settings": plain}
        header = header_of(lm, ask=False) if is_remote else {}
        return parts | how_sent(lm) | ({"header": header} if header else {})


def _is_plain(value: Any) -> bool:
    try:
        encode(value)
    except InvalidArgumentError:
        return False
    return True
