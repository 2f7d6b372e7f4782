"""Requests read quickly: those of texts, numbers, lists and dicts alone are written in one pass.

`RequestReader.write` gives the text that `requests.read_request` gives, at a third of its cost: what can be said of a
dict by its names alone (their order, which do not count, which may hold a URL or a secret) is found once for each set
of names. Whatever is not usual is left to `read_request`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import chain
from json.encoder import encode_basestring
from marshal import dumps
from math import isfinite
from typing import Any, Final, NamedTuple

from lmstash.caches.responses.requests.encoding import (
    EXACT,
    HARMLESS,
    NUMBERS,
    SAMPLING,
    SECRET,
    URL,
    Request,
    may_hold,
    read_request,
)
from lmstash.caches.responses.requests.hiding import LONG, is_credential, is_secret, may_show_url
from lmstash.caches.responses.requests.places import may_name_file
from lmstash.caches.responses.requests.sampling import ARGUMENTS, MAY_HOLD_ARGUMENTS, NAMES, telling

_MOST_LAYOUTS = 1024
_MOST_NAMES = 64
_MOST_NESTED = 16
_TEXT, _INT, _FLOAT = frozenset((str,)), frozenset((int,)), frozenset((float,))
_CHANGING: Final = frozenset((list, dict))

_VALUE, _NUMBER, _OPTIONS, _EITHER = range(4)
"""What a field holds: anything; a number that is the same as int and as float; generation arguments; maybe these."""


class _UnusualError(Exception):
    """The general way has to be gone."""


class _Layout(NamedTuple):
    """How a dict of certain names is written."""

    template: str
    fields: tuple[tuple[str, int], ...]
    """Names in the order of the template's holes, and what they hold."""
    telling: tuple[str, ...]
    """The names among them that may say sampling."""


_Layouts = dict[tuple[str, ...], _Layout | None]
"""By the names of a dict, in their order; None where how it is written depends on its values."""


class RequestReader:
    """Reads requests under one set of rules. Threads may share it."""

    def __init__(self, harmless: frozenset[str] = HARMLESS, urls: str = "refuse") -> None:
        """Take the rules, as `read_request` does."""
        self._harmless = harmless
        self._urls = urls
        self._of_requests: _Layouts = {}
        self._of_options: _Layouts = {}
        self._of_dicts: _Layouts = {}
        self._written: dict[bytes, tuple[str, dict[str, Any]]] = {}

    def write(self, request: Any, arguments: dict[str, Any]) -> bytes | None:
        """Return the text of a usual request, None for others; adds to `arguments` what says sampling.

        Never raises. Costs about 4 us for a short request, and 7 us per kilobyte of text.
        """
        if type(request) is not dict:
            return None
        try:
            text = self._keywords(request, self._of_requests, arguments, _MOST_NESTED)
            return text.encode() if _is_text(text) else None
        except Exception:  # other people's objects are looked at; whoever reads it the general way finds out why
            return None

    def write_alike(self, requests: Sequence[Any]) -> tuple[list[bytes], dict[str, Any]] | None:
        """As `write`, for requests of the same names that say the same of sampling, at half its cost each.

        Returns their texts, and what each of them says of sampling; None where one is not usual or not like the others.
        """
        try:
            return self._columns(requests)
        except Exception:  # other people's objects are looked at; each may still be written by itself
            return None

    def read(self, request: Any) -> Request:
        """As `read_request`, under these rules: the general way."""
        return read_request(request, self._harmless, self._urls)

    def _keywords(self, given: dict[Any, Any], layouts: _Layouts, arguments: dict[str, Any], depth: int) -> str:
        """Write keyword arguments; adds to `arguments` what may say sampling."""
        if not _TEXT.issuperset(map(type, given)):  # before it is looked for: others may equal a text
            raise _UnusualError
        template, fields, telling = layouts.get(tuple(given)) or self._layout(given, layouts)
        pieces: list[str] = []
        for name, holds in fields:
            value = given[name]
            kind = type(value)
            if kind is str and len(value) < LONG:
                pieces.append(encode_basestring(value))
            elif kind is int and -EXACT < value < EXACT:
                pieces.append(repr(float(value) if holds == _NUMBER else value))
            elif kind is float and isfinite(value):
                pieces.append(repr(value))
            elif holds >= _OPTIONS and kind is dict:
                if holds != _OPTIONS or depth <= 0:
                    raise _UnusualError
                pieces.append(self._options(value, dumps(value, 2), arguments, depth - 1))
            else:
                pieces.append(self._write(value, depth))
        for name in telling:
            value = given[name]
            if isinstance(value, (list, dict)) or name in arguments:  # may change; two may say something else
                raise _UnusualError
            arguments[name] = value
        return template % tuple(pieces)

    def _columns(self, requests: Sequence[dict[Any, Any]]) -> tuple[list[bytes], dict[str, Any]]:
        """Do what `_keywords` does, field by field for all requests."""
        if {*map(type, requests)} != {dict}:
            raise _UnusualError
        # Of a copy, which is made at once: others may change a request, and a name would get another's value.
        rows = [(tuple(each), tuple(each.values())) for each in map(dict, requests)]
        if not _TEXT.issuperset(map(type, chain.from_iterable(names for names, _ in rows))):
            raise _UnusualError
        (names,) = {names for names, _ in rows}
        layout = self._layout_of(names, self._of_requests)
        if not layout.fields:
            raise _UnusualError
        given = dict(zip(names, zip(*(values for _, values in rows), strict=True), strict=True))
        arguments: dict[str, Any] = {}
        own: dict[str, Any] = {}
        columns: list[Iterable[str]] = []
        for name, holds in layout.fields:
            values = given[name]
            kinds = {*map(type, values)}
            if kinds == _TEXT and max(map(len, values)) < LONG:
                columns.append(map(encode_basestring, values))
            elif kinds == _FLOAT and all(map(isfinite, values)):
                columns.append(map(repr, values))
            elif kinds == _INT and min(values) > -EXACT and max(values) < EXACT:
                columns.append(map(repr, map(float, values) if holds == _NUMBER else values))
            elif holds >= _OPTIONS and dict in kinds:
                if holds != _OPTIONS or len(kinds) > 1:
                    raise _UnusualError
                (look,) = {dumps(value, 2) for value in values}
                columns.append([self._options(values[0], look, arguments, _MOST_NESTED - 1)] * len(values))
            elif holds == _NUMBER and int in kinds:
                raise _UnusualError
            else:
                columns.append([self._write(value, _MOST_NESTED) for value in values])
            if name in layout.telling:
                if kinds & _CHANGING or len(kinds) > 1 or len({*values}) > 1:
                    raise _UnusualError
                own[name] = values[0]
        if not own.keys().isdisjoint(arguments):
            raise _UnusualError
        texts = list(map(layout.template.__mod__, zip(*columns, strict=True)))
        if not all(map(_is_text, texts)):
            raise _UnusualError
        return list(map(str.encode, texts)), arguments | own

    def _options(self, given: dict[Any, Any], look: bytes, arguments: dict[str, Any], depth: int) -> str:
        """Write generation arguments: the same ones with many requests, so what was written once is remembered.

        Args:
            given: The arguments.
            look: What `marshal` made of them: it tells all types apart that are written here. Never read back.
            arguments: As in `_keywords`.
            depth: The same.
        """
        known = self._written.get(look)
        if known is None:
            said: dict[str, Any] = {}
            given = deepcopy(given)
            if dumps(given, 2) != look:  # others change it
                raise _UnusualError
            known = self._keywords(given, self._of_options, said, depth), said
            if len(look) < LONG:
                if len(self._written) >= _MOST_LAYOUTS:
                    self._written.clear()
                self._written[look] = known
        if arguments and not arguments.keys().isdisjoint(known[1]):
            raise _UnusualError
        arguments.update(known[1])
        return known[0]

    def _write(self, value: Any, depth: int) -> str:
        kind = type(value)
        if kind is dict and depth > 0:
            value = dict(value)  # as in `_columns`
            return self._layout(value, self._of_dicts).template % tuple(self._pieces(value.values(), depth - 1))
        if kind is list and depth > 0:
            if len(value) == 2 and type(value[0]) is str is type(value[1]) and is_secret(value[0]):
                raise _UnusualError
            return "[" + ",".join(self._pieces(value, depth - 1)) + "]"
        return self._pieces((value,), depth)[0]

    def _pieces(self, values: Iterable[Any], depth: int) -> list[str]:
        """Write each value."""
        out: list[str] = []
        for value in values:
            kind = type(value)
            if kind is str:
                if len(value) >= LONG and value.startswith("data:"):
                    raise _UnusualError
                out.append(encode_basestring(value))
            elif (kind is int and value.bit_length() <= 64) or (kind is float and isfinite(value)):
                out.append(repr(value))
            elif value is None:
                out.append("null")
            elif kind is bool:
                out.append("true" if value else "false")
            elif (kind is dict or kind is list) and depth > 0:
                out.append(self._write(value, depth))
            else:
                raise _UnusualError
        return out

    def _layout(self, given: dict[Any, Any], layouts: _Layouts) -> _Layout:
        if not _TEXT.issuperset(map(type, given)):  # before it is looked for: others may equal a text
            raise _UnusualError
        return self._layout_of(tuple(given), layouts)

    def _layout_of(self, names: tuple[str, ...], layouts: _Layouts) -> _Layout:
        layout = layouts.get(names)
        if layout is None and names not in layouts:
            if len(names) > _MOST_NAMES or sum(map(len, names)) > LONG:  # they are remembered
                raise _UnusualError
            if len(layouts) >= _MOST_LAYOUTS:
                layouts.clear()
            layout = layouts[names] = self._lay_out(names, layouts)
        if layout is None:
            raise _UnusualError
        return layout

    def _lay_out(self, names: tuple[str, ...], layouts: _Layouts) -> _Layout | None:
        """Say how a dict of these names is written; None where it depends on its values."""
        kept = list(names)
        if layouts is not self._of_dicts:
            harmless = self._harmless if layouts is self._of_requests else frozenset()
            kept = [name for name in sorted(names) if name not in harmless and not is_credential(name)]
            if NAMES & (set(names) - set(kept)):
                return None
        worrying = SECRET | URL | (SAMPLING if layouts is self._of_dicts else 0)
        for name in kept:
            try:
                encoded = name.encode()
            except UnicodeEncodeError:
                return None
            if name[:1] == "$" or may_hold(encoded) & worrying:
                return None
        holes = [encode_basestring(name).replace("%", "%%") + ":%s" for name in kept]
        fields = tuple((name, _holds(name)) for name in kept)
        return _Layout("{" + ",".join(holes) + "}", fields, tuple(telling(kept, layouts is self._of_options)))


def _is_text(record: str) -> bool:
    """Whether what a record holds is text and no more: no secret in a URL, no name of a file."""
    return not (("://" in record and may_show_url(record)) or may_name_file(record))


def _holds(name: str) -> int:
    if name in NUMBERS:
        return _NUMBER
    if name in ARGUMENTS:
        return _OPTIONS
    return _EITHER if name in MAY_HOLD_ARGUMENTS else _VALUE
