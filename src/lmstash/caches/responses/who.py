"""Who answers: a model of this process, looked at before each answer is served, or a name that people declare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from lmstash.errors import InvalidArgumentError, UnsupportedModelError
from lmstash.identity.fingerprint import Fingerprint
from lmstash.identity.keys import Key

if TYPE_CHECKING:
    from lmstash.identity.encoding import Component
    from lmstash.identity.models.watch import ModelWatch


class Who(Protocol):
    """Says who would answer now. Threads may share it."""

    def look(self) -> Fingerprint:
        """Return who answers; raises `UnsupportedModelError` where that cannot be said safely."""
        ...

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether what was computed since then was computed by that model."""
        ...


class Declared:
    """A model that is what somebody says it is."""

    def __init__(self, fingerprint: Fingerprint) -> None:
        """Take what was said."""
        self._fingerprint = fingerprint

    def look(self) -> Fingerprint:
        """Return it."""
        return self._fingerprint

    def unchanged(self, since: Fingerprint) -> bool:
        """Whether it is the same."""
        return since == self._fingerprint


class Watched:
    """A torch model, which may change in place: its weights and code, and what it generates by.

    Attributes:
        model: It.
    """

    def __init__(self, model: Any, watch: ModelWatch) -> None:
        """Take the model and its watch."""
        from lmstash.identity.models.generation import GenerationDefaults

        self.model = model
        self._watch = watch
        self._defaults = GenerationDefaults(model)
        self._last: tuple[bytes, dict[Component, Component], Fingerprint] | None = None

    def look(self) -> Fingerprint:
        """Return its fingerprint, having looked (0.3 ms for most calls)."""
        return self._with_defaults(self._watch.recognise())

    def unchanged(self, since: Fingerprint) -> bool:
        """Read every weight and say whether it is still the same model."""
        try:
            return self._watch.unchanged() and self._with_defaults(self._watch.fingerprint) == since
        except UnsupportedModelError:
            return False

    @property
    def samples(self) -> bool:
        """Whether it samples where a request does not say."""
        return self._defaults.samples

    def _with_defaults(self, module: Fingerprint) -> Fingerprint:
        defaults = self._defaults.read()
        if not defaults:
            return module
        last = self._last
        if last is None or last[0] != module.digest or last[1] != defaults:
            key = Key({"kind": "generating model", "module": module.digest, "generation": defaults})
            last = self._last = module.digest, defaults, Fingerprint(key, module.recorded)
        return last[2]


def who_is(
    model: Any,
    *,
    base_url: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    strict_numerics: bool = False,
    assume_frozen: bool = False,
) -> Who:
    """Return who answers.

    Args:
        model: A name such as `provider/model`, the `lmstash.fingerprint` of a local model, a torch module (looked at
            before each use), or an object with `look()` and `unchanged(since)`.
        base_url: Where a named model is served; user names, passwords and queries in it do not count.
        revision: What is declared of a named model: a version, a date.
        variant: Your own name for a difference that lmstash cannot see.
        strict_numerics: For a module: torch's version and the device count, too.
        assume_frozen: For a module: it never changes, so it is not looked at again.

    Raises:
        InvalidArgumentError: Nothing that could answer.
        UnsupportedModelError: A module that cannot be identified safely.
    """
    if isinstance(model, str):
        if not model:
            raise InvalidArgumentError("model= takes a name such as 'provider/model', or a fingerprint")
        return Declared(named(model, base_url=base_url, revision=revision, variant=variant))
    if base_url is not None or revision is not None:
        raise InvalidArgumentError("base_url= and revision= belong to a model that is given by name")
    if isinstance(model, Fingerprint):
        return Declared(model if variant is None else _varied(model, variant))
    if hasattr(model, "look") and hasattr(model, "unchanged"):
        return model
    if hasattr(model, "named_parameters"):
        from lmstash.identity.models.watch import watch_model

        options: dict[str, Any] = {"strict_numerics": strict_numerics, "assume_frozen": assume_frozen}
        return Watched(model, watch_model(model, variant=variant, **options))
    raise InvalidArgumentError(f"model= takes a name, a fingerprint or a torch module, not a {type(model).__name__}")


def named(
    model: str, *, base_url: str | None = None, revision: str | None = None, variant: str | None = None
) -> Fingerprint:
    """Return the fingerprint of a model that is known by what people declare of it."""
    where = None if base_url is None else plain_url(base_url)
    parts = {"kind": "declared model", "name": model, "base_url": where, "revision": revision, "variant": variant}
    return Fingerprint(Key(parts), {"name": model, "base_url": where, "revision": revision})


def _varied(fingerprint: Fingerprint, variant: str) -> Fingerprint:
    parts = {"kind": "variant", "of": fingerprint.digest, "variant": variant}
    return Fingerprint(Key(parts), {**fingerprint.recorded, "variant": variant})


def plain_url(url: str) -> str:
    """Return a URL without user name, password, query and fragment, and without a slash at its end."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme.lower(), host, parts.path.rstrip("/"), "", ""))
