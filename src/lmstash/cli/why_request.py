"""Say why the answer to a request is found or not, and in which field the nearest kept request differs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lmstash.adapters.openai.endpoints import ENDPOINTS
from lmstash.adapters.openai.question import RESERVED
from lmstash.caches.models import ModelNames, fingerprint_of, read_digests
from lmstash.caches.responses.answers.finding import Conditions, occurrence_of, scan
from lmstash.caches.responses.answers.records import decode_record
from lmstash.caches.responses.requests.asking import KIND, Namer
from lmstash.caches.responses.requests.encoding import read_request
from lmstash.cli.models import explain_models
from lmstash.cli.place import model_of, models_alike
from lmstash.cli.why import miss
from lmstash.errors import FormatError, InvalidArgumentError, LmstashError
from lmstash.identity.content.media import Media
from lmstash.store.base import EntryInfo, Store

_MOST_NAMED = 12


def by_request(store: Store, request: str, model: str | None, occurrence: int) -> dict[str, Any]:
    """Find the kept request nearest to one, and what differs.

    Args:
        store: Where answers are kept, without a salt.
        request: JSON, a record as `lmstash export responses` writes it, or `@FILE` that holds it.
        model: A model's name, or digits of its fingerprint; not compared if it is None.
        occurrence: Which of several answers to a sampled request.

    Raises:
        InvalidArgumentError: The request cannot be read.
    """
    text = _canonical(request)
    asked = decode_record(text, _media)
    names, models = ModelNames(store), read_digests(store)
    digits = list(models) if model is None else names.having(model)
    namers = [Namer(models[each], None) for each in digits if each in models]
    keys = {namer.name(each, occurrence) for each in (text, *_as_bodies(asked)) for namer in namers}
    expired: list[EntryInfo] = []
    total = 0

    def count(entry: EntryInfo) -> bool:
        nonlocal total
        total += 1
        if entry.key in keys and entry.expires is not None and entry.expires <= time.time():
            expired.append(entry)
        return True

    best: tuple[tuple[int, int], EntryInfo, list[tuple[str, Any, Any]]] | None = None
    silent = 0
    for kept in scan(store, Conditions(), also=count):
        entry = kept.entry
        if entry.key in keys:
            about = model_of(entry, names)
            return {"hit": True, "answer": f"kept, from {about}", "nearest": entry.key.hex(), "differences": []}
        if not kept.request:
            silent += 1
            continue
        differing: list[tuple[str, Any, Any]] = []
        if model is not None and fingerprint_of(entry) not in digits:
            differing.append(("model", *models_alike(model, entry, names)))
        if occurrence != occurrence_of(entry):
            differing.append(("occurrence", occurrence, occurrence_of(entry)))
        if kept.request != text:
            try:
                theirs = decode_record(kept.request, _media)
                _compare("", _asked_like(asked, theirs), theirs, differing)
            except FormatError:
                continue
        distance = (len(differing), -_shared(text, kept.request))
        if best is None or distance < best[0]:
            best = (distance, entry, differing)
    if expired:
        return miss("miss (expired): kept, but older than its ttl_seconds", expired[0])
    if best is None:
        hidden = f"; {silent:,} entries keep no request (a private stash)" if silent else ""
        return miss(f"miss (absent): none of {total:,} responses keeps a request{hidden}")
    _distance, entry, differing = best
    if not differing:
        return miss(
            "miss (absent): the nearest kept request is the same, but its key is another one: it was kept under a "
            "salt, or its model is not described here",
            entry,
        )
    named = ", ".join(dict.fromkeys(name for name, _, _ in differing[:_MOST_NAMED]))
    if model is not None and differing[0][0] == "model":
        differing[1:1] = explain_models(store, model, fingerprint_of(entry))
    return miss(f"miss (absent): {named} not as kept", entry, differing[:_MOST_NAMED])


def _as_bodies(asked: Any) -> list[bytes]:
    """Return what a request is kept as if it was the body of one to a server: beside the path that it was sent to."""
    if type(asked) is not dict or RESERVED in asked:
        return []
    sent = {name: each for name, each in asked.items() if name != "stream" or each is True}
    bodies = [
        {name: each for name, each in sent.items() if name not in endpoint.harmless}
        | {RESERVED: {"path": endpoint.path}}
        for endpoint in ENDPOINTS
    ]
    return [read_request(each).text for each in bodies]


def _asked_like(asked: Any, theirs: Any) -> Any:
    """Return a request as a body sent to where the other one was sent, if it does not say where itself."""
    if not (type(asked) is type(theirs) is dict) or RESERVED in asked or type(theirs.get(RESERVED)) is not dict:
        return asked
    return {**asked, RESERVED: {"path": theirs[RESERVED].get("path")}}


def _canonical(request: str) -> bytes:
    try:
        text = Path(request[1:]).read_text(encoding="utf-8") if request.startswith("@") else request
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{request[1:]} cannot be read: {error}") from error
    try:
        return read_request(decode_record(text.encode(), _media)).text
    except (LmstashError, UnicodeEncodeError) as error:
        raise InvalidArgumentError(f"--request is no JSON of a request: {error}") from error


def _media(name: str, plain: Any) -> Any:
    if name == "media" and isinstance(plain, list) and len(plain) == 2 and all(isinstance(each, str) for each in plain):
        return Media(plain[0], plain[1], ())
    raise FormatError(f"a request holds no {name}")


def _compare(path: str, ours: Any, theirs: Any, out: list[tuple[str, Any, Any]]) -> None:
    """Add (path, ours, theirs) for every innermost place in which two requests differ."""
    if type(ours) is not type(theirs):
        out.append((path or KIND.removesuffix("s"), _shown(ours, theirs), _shown(theirs, ours)))
    elif isinstance(ours, dict):
        for name in dict.fromkeys([*ours, *theirs]):
            inner = f"{path}.{name}" if path else str(name)
            if name not in ours or name not in theirs:
                out.append((inner, ours.get(name, "absent"), theirs.get(name, "absent")))
            else:
                _compare(inner, ours[name], theirs[name], out)
        if list(ours) != list(theirs) and set(ours) == set(theirs):
            out.append((f"order of {path}", ", ".join(map(str, ours)), ", ".join(map(str, theirs))))
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            out.append((f"length of {path}", len(ours), len(theirs)))
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            _compare(f"{path}[{number}]", one, other, out)
    elif repr(ours) != repr(theirs):  # tells -0.0 from 0.0
        out.append((path or "request", ours, theirs))


def _shared(ours: bytes, theirs: bytes) -> int:
    """Return how many bytes two texts begin with alike."""
    return next(
        (n for n, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )


def _shown(value: Any, other: Any) -> Any:
    """Return a value, with its type where that is the only difference."""
    return f"{value!r} ({type(value).__name__})" if value == other else value
