"""A harness's request as what is asked of the model: arguments, document, and what functions make of it.

Models of lmms-eval get a task's name, a split, a document's number and functions, and read the document themselves:
most only through the functions, but some take fields of it (`whisper_vllm` its language, `cambrians_vsc_streaming` its
query times) or go by the task's name (`videochat2`, `oryx`, `phi4_multimodal`). So all of these count. Metrics do not:
they are not among what a model is given.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from marshal import dumps
from pathlib import Path
from typing import Any

from lmstash.adapters.lmms_eval.who.code_of import is_of_task, source_of
from lmstash.errors import InvalidArgumentError
from lmstash.identity.content.media import Media, bytes_media, media_of

SHOWN = frozenset({"generate_until", "loglikelihood"})
"""Methods that call a function once, with the document: what it returns says all. Elsewhere its code counts, too."""

_VISUAL = 2
"""Where `doc_to_visual` stands among the arguments, whatever the method."""
_NUMBERS = frozenset((type(None), bool, int, float))
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SAID, _NAMED, _SHOWN = "said", "named", "shown"
"""How a text that names a file is taken: as what it says, as the name of that file, as what is to be looked at."""
_LONG_BYTES = 4096
_MOST_FILES = 10_000
_MOST_OPTIONS = 64
"""So many different generation arguments are remembered."""


class Unnameable:
    """Stands for a request that cannot be named safely; it is computed and not kept."""

    def __init__(self, reason: str) -> None:
        """Say why."""
        self.reason = reason


class Reader:
    """Reads the requests of one call of the harness. For one thread.

    Args:
        lm: The model, whose `task_dict` the documents are in.
        method: What is asked of it, for instance `generate_until`.
    """

    def __init__(self, lm: Any, method: str) -> None:
        self._lm = lm
        self._method = method
        self._doc_name: Any = None
        self._doc: Any = None
        self._plain_doc: Any = None
        self._made: dict[Any, Any] = {}
        """What functions made of the document at hand; the choices of one question share it."""
        self._sources: dict[Any, tuple[Any, str]] = {}
        self._options: dict[bytes, Any] = {}

    def read(self, instance: Any, repeat: int) -> Any:
        """Return what a request asks, small: media stand in it as their digests. Changes nothing.

        Args:
            instance: A harness's `Instance`, or anything with `args`.
            repeat: The how-manieth time the same request is put in this call.

        Returns:
            A dict that `lmstash.caches.responses` takes, or `Unnameable`.
        """
        try:
            return self._read(tuple(instance.args), repeat)
        except Exception as error:  # a document that cannot be read, a function that fails: the model will find out
            return Unnameable(f"{type(error).__name__}: {error}")

    def forget(self) -> None:
        """Read the document anew, and have functions called anew, whichever is asked for next."""
        self._doc_name = None
        self._made.clear()

    def _read(self, args: tuple[Any, ...], repeat: int) -> dict[str, Any]:
        request: dict[str, Any] = {"host": "lmms_eval", "method": self._method}
        documented = self._open(args)
        arguments: list[Any] = []
        for place, value in enumerate(args):
            kind = type(value)
            if kind in _NUMBERS or (kind is str and value[:1] != "/"):
                arguments.append(value)
            elif kind is dict and "gen_kwargs" not in request:
                request["gen_kwargs"] = self._options_of(value)
                arguments.append(["gen_kwargs"])
            elif callable(value):
                if not documented:
                    raise InvalidArgumentError(f"argument {place} is a function, but there is no document to put in")
                arguments.append(self._call(place, value))
            else:
                arguments.append(plain(value))
        request["arguments"] = arguments
        if documented:
            request["doc"] = self._plain_doc
        if repeat:
            request["repeat"] = repeat
        return request

    def _options_of(self, given: dict[Any, Any]) -> Any:
        """Return generation arguments as `plain` does; the harness gives each request a copy of the same ones."""
        try:
            look = dumps(given, 2)  # never read back
        except ValueError:
            return plain(given)
        known = self._options.get(look)
        if known is None:
            known = plain(given)  # a copy: models take out of theirs what they use
            if b"/" in look or not _is_json(known):  # maybe a file, which changes; arrays look as their bytes do
                return known
            if len(self._options) >= _MOST_OPTIONS:
                self._options.clear()
            self._options[look] = known
        return known

    def _open(self, args: tuple[Any, ...]) -> bool:
        """Make the document that arguments name the one at hand; returns whether they name one."""
        if len(args) < 3:
            return False
        number, task, split = args[-3:]
        dataset = getattr(self._lm, "task_dict", {}).get(task) if isinstance(task, str) else None
        if dataset is None:
            return False
        name = (task, split, number)
        if name != self._doc_name:
            self._doc_name = None
            self._made.clear()
            self._doc = dataset[split][number]
            # What functions make of it in later rounds is not seen: it may be its paths.
            self._plain_doc = document(self._doc) if self._method in SHOWN else plain(self._doc)
            self._doc_name = name
        return True

    def _call(self, place: int, function: Any) -> list[Any]:
        name = (place, _name_of(function))
        if name not in self._made:
            made = function(self._doc)
            is_text = type(made) is str and place != _VISUAL
            told: list[Any] = ["function", plain(made) if is_text else media(made)]
            if self._method not in SHOWN:
                told.append(self._source(function))
            self._made[name] = (function, told)
        return self._made[name][1]

    def _source(self, function: Any) -> str:
        name = _name_of(function)
        if name not in self._sources:
            self._sources[name] = (function, source_of(function))  # the function is kept, so that its id stays its own
        return self._sources[name][1]


def _is_json(value: Any) -> bool:
    try:
        return bool(json.dumps(value))
    except (TypeError, ValueError):
        return False


def _name_of(function: Any) -> Any:
    """Return what is equal for the same function with the same bound arguments, in this process."""
    inner = getattr(function, "func", None)
    if inner is not None:
        bound = [*map(id, function.args), *((key, id(value)) for key, value in function.keywords.items())]
        return ("partial", _name_of(inner), *bound)
    if is_of_task(function):
        return ("method", id(function.__self__), id(function.__func__))
    return id(function)


def plain(value: Any) -> Any:
    """Return a value with media in it as digests, and files that it names by an absolute path with their content."""
    return _walk(value, _SAID)


def document(value: Any) -> Any:
    """As `plain`, but of the path of a file that a field names only the last part counts beside the content.

    Texts that the model is given are arguments, and count whole.
    """
    return _walk(value, _NAMED)


def media(value: Any) -> Any:
    """As `plain`, for what is given to a model to look at: a text that names a file stands for the file.

    Then only the last part of its path counts beside its content. A URL is named as one, so that the cache's rule for
    URLs decides: what lies there may change. Texts of chat messages stay texts.
    """
    return _walk(value, _SHOWN)


def _walk(value: Any, how: str) -> Any:
    kind = type(value)
    if kind in _NUMBERS:
        return value
    if kind is str:
        return _text(value, how)
    if kind is bytes:
        return bytes_media(value) if len(value) >= _LONG_BYTES else value
    if kind is list or kind is tuple:
        return kind([_walk(each, how) for each in value])
    if kind is dict and how != _SHOWN:
        return {
            name: each if type(each) in _NUMBERS or (type(each) is str and each[:1] != "/") else _walk(each, how)
            for name, each in value.items()
        }
    if kind is dict or isinstance(value, Mapping):
        is_text = how == _SHOWN and value.get("type") == "text"
        walked = {
            name: _walk(each, _SAID if is_text or (how == _SHOWN and name == "role") else how)
            for name, each in value.items()
        }
        return walked if kind is dict else [_name(kind), walked]
    found = value if isinstance(value, Media) else media_of(value)
    if found is not None:
        return found
    if isinstance(value, datetime.date | datetime.time | datetime.datetime | datetime.timedelta | decimal.Decimal):
        return [_name(kind), repr(value)]
    if dataclasses.is_dataclass(value):
        fields = {each.name: _walk(getattr(value, each.name), how) for each in dataclasses.fields(value)}
        return [_name(kind), fields]
    if hasattr(value, "model_dump"):
        return [_name(kind), _walk(value.model_dump(), how)]
    if isinstance(value, Sequence):
        return [_name(kind), *[_walk(each, how) for each in value]]
    raise InvalidArgumentError(f"it holds a {_name(kind)}, which has no content that lmstash knows how to read")


def _text(value: str, how: str) -> Any:
    looking = how == _SHOWN
    if not looking and value[:1] != "/":  # most texts
        return value
    is_url = looking and _URL.match(value) is not None
    if not is_url and (len(value) > _LONG_BYTES or "\n" in value or "\0" in value or not value):
        return value
    path = value
    if looking and value.startswith("file://"):
        path = urllib.parse.unquote(urllib.parse.urlsplit(value).path)
    try:
        if os.path.isfile(path):
            return ["file", value if how == _SAID else os.path.basename(path), media_of(Path(path))]
        if looking and os.path.isdir(path):
            return ["folder", os.path.basename(os.path.normpath(path)), _folder(path)]
    except ValueError:
        pass
    return {"type": "url", "url": value} if is_url else value


def _folder(path: str) -> list[Any]:
    """Return the files of a folder (a video as frames) by their names in it and their content."""
    found: list[Any] = []
    for here, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            found.append([os.path.relpath(os.path.join(here, file), path), media_of(Path(here, file))])
            if len(found) > _MOST_FILES:
                raise InvalidArgumentError(f"it names the folder {path}, which holds more than {_MOST_FILES:,} files")
    return found


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
