"""Templates of jinja2 that code names: what they render by, and the files of those that they lead to."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from types import CodeType
from typing import Any

from lmstash.errors import InvalidArgumentError
from lmstash.identity.code.bytecode import code_component, names_in, texts_in
from lmstash.identity.content.held_files import files_within
from lmstash.identity.encoding import Component, encode

_SYNTAX = (
    *("block_start_string", "block_end_string", "variable_start_string", "variable_end_string"),
    *("comment_start_string", "comment_end_string", "line_statement_prefix", "line_comment_prefix", "trim_blocks"),
    *("lstrip_blocks", "newline_sequence", "keep_trailing_newline", "optimized", "auto_reload"),
)
_WHEN_RENDERING = ("undefined", "finalize", "autoescape", "is_async", "extensions", "policies")
_DEFAULTS = {"filters": "DEFAULT_FILTERS", "tests": "DEFAULT_TESTS", "globals": "DEFAULT_NAMESPACE"}
_KINDS = frozenset(
    {
        *("jinja2.environment.Template", "jinja2.environment.Environment"),
        *("jinja2.sandbox.SandboxedEnvironment", "jinja2.sandbox.ImmutableSandboxedEnvironment"),
    }
)
_GETS = frozenset({"get_template", "select_template", "get_or_select_template"})
"""By which compiled templates load others."""


def is_template(value: Any) -> bool:
    """Whether a value is a template of jinja2's, or what makes them."""
    return f"{type(value).__module__}.{type(value).__qualname__}" in _KINDS


def code_of_template(template: Any) -> Iterator[CodeType]:
    """Yield what a template was compiled to; nothing of an environment."""
    if hasattr(template, "root_render_func"):
        yield from (each.__code__ for each in (template.root_render_func, *template.blocks.values()))


def parts_of_template(value: Any) -> list[Any]:
    """Return what a template, or an environment, renders by: its code, what was given to it, and files that it loads.

    Costs some 0.1 ms, and reading the files of the folders that it loads from.

    Raises:
        InvalidArgumentError: It loads others from where nobody can look.
    """
    if not hasattr(value, "root_render_func"):
        syntax = {name: getattr(value, name) for name in _SYNTAX}
        return [type(value).__qualname__, *_environment(value), syntax, _loader(value.loader)]
    codes = [*code_of_template(value)]
    digest = hashlib.sha256(encode([code_component(each) for each in codes])).hexdigest()
    given = {name: each for name, each in value.globals.items() if value.environment.globals.get(name) is not each}
    loads = any(not _GETS.isdisjoint(names_in(each)) for each in codes)
    others = _loader(value.environment.loader) if loads else None
    return [digest, given, type(value.environment).__qualname__, *_environment(value.environment), others]


def _environment(environment: Any) -> list[Any]:
    """Return what is asked of an environment while a template renders."""
    defaults: Any = sys.modules["jinja2.defaults"]
    held: list[Any] = []
    for name, default in _DEFAULTS.items():
        ours, theirs = getattr(environment, name), getattr(defaults, default)
        held.append({key: each for key, each in ours.items() if theirs.get(key) is not each})
        held.append([key for key in theirs if key not in ours])
    said = {name: getattr(environment, name) for name in _WHEN_RENDERING}
    said["extensions"] = {name: type(each) for name, each in environment.extensions.items()}
    said["policies"] = {name: each for name, each in said["policies"].items() if _is_set(defaults, name, each)}
    return [*held, said]


def _is_set(defaults: Any, name: str, value: Any) -> bool:
    theirs = defaults.DEFAULT_POLICIES
    return name not in theirs or (value is not theirs[name] and value != theirs[name])


def _loader(loader: Any) -> Any:
    """Return what a loader may load: files by what they hold."""
    jinja: Any = sys.modules["jinja2"]
    kind = type(loader)
    if loader is None:
        return None
    if kind is jinja.DictLoader:
        return ["texts", loader.mapping]
    if kind is jinja.FileSystemLoader:
        return ["folders", loader.encoding, [_files(folder) for folder in loader.searchpath]]
    if kind is jinja.PackageLoader:
        return ["package", loader.encoding, _files(loader._template_root)]
    if kind is jinja.ChoiceLoader:
        return ["first of", [_loader(each) for each in loader.loaders]]
    if kind is jinja.PrefixLoader:
        return ["by beginnings", loader.delimiter, {name: _loader(each) for name, each in loader.mapping.items()}]
    if kind is jinja.FunctionLoader:
        return ["function", loader.load_func]
    raise InvalidArgumentError(
        f"it loads templates by a {kind.__module__}.{kind.__qualname__}, and nobody can tell what these say. Give the "
        "text of the template, or one without others in it"
    )


def _files(folder: Any) -> Mapping[Component, Component]:
    found = files_within(str(folder))
    if found is None:
        raise InvalidArgumentError(
            f"it loads templates from {folder}, which cannot be read or holds more than 256 files. Keep the templates "
            "in a folder of their own"
        )
    return found


def texts_of_template(value: Any) -> list[str]:
    """Return the texts in a template's code, words that it asks its arguments for among them."""
    found = chain.from_iterable(map(texts_in, code_of_template(value)))
    return [each for each in found if isinstance(each, str)]
