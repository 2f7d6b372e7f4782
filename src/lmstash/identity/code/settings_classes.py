"""Classes of `pydantic_settings`: which variables of the environment their objects are filled from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmstash.identity.code.owners import owner_of

_ALIASES = ("alias", "validation_alias")


def variables_of_settings(cls: type) -> set[str] | None:
    """Return the names of variables that such a class reads, in upper and lower case; None for any other class."""
    if not any(owner_of(base.__module__) == "pydantic_settings" for base in cls.__mro__[1:]):
        return None
    config: Any = getattr(cls, "model_config", None) or {}
    prefix, between = str(config.get("env_prefix") or ""), str(config.get("env_nested_delimiter") or "")
    names = set[str]()
    for name, field in dict(getattr(cls, "model_fields", None) or {}).items():
        called = {name, *(each for alias in _ALIASES for each in _texts_of(getattr(field, alias, None)))}
        for each in called | {prefix + each for each in called}:
            names |= {each} | ({each + between} if between.endswith("_") else set())
    return {form for each in names for form in (each, each.upper(), each.lower())}


def _texts_of(alias: Any) -> Iterator[str]:
    """Yield what an alias may be called: a text, one of several, or the first step of a path."""
    if isinstance(alias, str):
        yield alias
    for each in getattr(alias, "choices", None) or (getattr(alias, "path", None) or ())[:1]:
        yield from _texts_of(each)
