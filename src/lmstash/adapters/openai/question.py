"""From an HTTP request to what is looked up: the model's server, the whole body, and what else may change an answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

from lmstash.adapters.openai.endpoints import Endpoint, endpoint_of
from lmstash.adapters.openai.references import depends_on_state, points_at_uploads, said
from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.caches.responses.requests.sampling import is_sampled, seed_of
from lmstash.caches.responses.requests.urls import points_at_urls

RESERVED = "lmstash"
"""Our own field beside those of the body; a body that has it is not cached."""

_HARMLESS_HEADER = re.compile(
    r"connection|keep-alive|proxy-connection|transfer-encoding|te|trailer|upgrade|expect|host|date|via|forwarded"
    r"|content-length|content-type|accept-encoding|user-agent|cache-control|pragma|referer|dnt|priority"
    r"|idempotency-key|x-request-id|request-id|x-correlation-id|(x|x-ms)-client-request-id|x-request-start"
    r"|x-forwarded-(for|by|port|proto|scheme|server|ssl)|x-real-ip|true-client-ip|x-client-ip"
    r"|cf-connecting-ip|x-stainless-.*|x-lmstash-.*|sec-.*"
    # those of tracing: W3C, Sentry, Datadog, AWS, Zipkin, Google, New Relic, Elastic, Jaeger, Cloudflare, LangSmith
    r"|traceparent|tracestate|baggage|sentry-trace|x-datadog-.*|x-amzn-(trace-id|requestid)|b3|x-b3-.*"
    r"|x-cloud-trace-context|newrelic|elastic-apm-traceparent|uber-trace-id|x-trace-id|cf-ray|langsmith-trace"
    # of Envoy's these only: others of them choose the server, or how a server is asked
    r"|x-envoy-(attempt-count|internal|external-address|expected-rq-timeout-ms|peer-metadata|peer-metadata-id"
    r"|decorator-operation)"
)
"""Headers that change no answer. (`origin` is none: a server says in each answer which page may read it.)"""

_READ_BY_ALL = ("temperature", "seed", "n", "best_of")
"""Fields of a body that say how it is answered. Others of other hosts (`do_sample`, `options`) many servers ignore."""

_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"})
_PLAIN_ACCEPTS = frozenset({"*/*", "application/json", "text/event-stream", "application/json, text/event-stream"})


class Bypass(StrEnum):
    """Why a request is passed on as if there were no cache."""

    ENDPOINT = "endpoint"
    """It is no request to an endpoint that is known to be pure."""
    BODY = "body"
    """Its body is not one unambiguous JSON object."""
    URL = "url"
    """It points at something by URL, which may be another thing tomorrow."""
    STATE = "state"
    """Its answer depends on what the server remembers, was sent before, or looks up."""
    SAMPLED = "sampled"
    """It is answered by chance, has no seed, and nobody asked to keep it."""
    NO_STORE = "no_store"
    """It says `Cache-Control: no-store`."""
    UNSUPPORTED = "unsupported"
    """It cannot be named safely."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, of whom.

    Attributes:
        endpoint: Which interface.
        base_url: Where the model is served, without the endpoint.
        model: As the body names it.
        request: The body, and under `lmstash` what else counts: path, query, headers; the caller if asked, or
            if the server holds the answer for them.
        streamed: Whether the answer is to come as a stream.
        drawn: Whether it is answered by chance, from no seed.
        held_seconds: How long the server holds the answer for this caller, by its id: nobody else may have it, nor
            anybody later. None if it does not.
    """

    endpoint: Endpoint
    base_url: str
    model: str
    request: dict[str, Any]
    streamed: bool
    drawn: bool
    held_seconds: float | None


def read_question(
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    *,
    trust_urls: bool = False,
    by_token: bool = False,
) -> Question | Bypass:
    """Return what an HTTP request asks, or why it is not to be cached. Costs about 30 us for a short one.

    Args:
        method: `POST`, ...
        url: In full.
        headers: Names in lower case, and values.
        body: As it was sent.
        trust_urls: What URLs point at never changes.
        by_token: Callers with different credentials get different answers.
    """
    where = _split(url)
    endpoint = endpoint_of(where.path) if method == "POST" else None
    if endpoint is None:
        return Bypass.ENDPOINT
    by_name = dict(headers)
    kind = by_name.get("content-type", "").lower()
    if (
        kind.partition(";")[0].strip() != "application/json"
        or by_name.get("content-encoding", "identity") != "identity"
    ):
        return Bypass.BODY
    read = _read_json(body)
    if read is None or RESERVED in read:
        return Bypass.BODY
    if depends_on_state(read) or points_at_uploads(said(read)):
        return Bypass.STATE
    if not trust_urls and points_at_urls({name: read[name] for name in read if name not in endpoint.harmless}):
        return Bypass.URL
    streamed, model = read.get("stream"), read.get("model")
    if streamed not in (None, False, True) or type(streamed) is int or not isinstance(model, str | None):
        return Bypass.BODY
    if not streamed:
        read.pop("stream", None)
    drawn = endpoint.samples and _is_drawn(read)
    held_seconds = None if read.get("store") is False else endpoint.held_seconds
    caller = None
    if by_token:
        caller = credentials_digest(headers)
    elif held_seconds is not None:
        caller = _owner_digest(headers)
    read[RESERVED] = _beside(endpoint, where.query, headers, caller)
    if not _is_note(read.get("metadata")):  # a gateway may choose a model by it (LiteLLM by its `tags`)
        read[RESERVED]["metadata"] = _digest([json.dumps(read["metadata"], sort_keys=True)])
    base_url = f"{where.scheme}://{where.netloc}{where.path.removesuffix(endpoint.path)}"
    return Question(endpoint, base_url, model or "(unnamed)", read, bool(streamed), drawn, held_seconds)


def _is_note(metadata: Any) -> bool:
    """Whether the metadata of a request are what OpenAI takes there: a few words under names, kept and not read."""
    return metadata is None or (isinstance(metadata, dict) and all(isinstance(each, str) for each in metadata.values()))


def _is_drawn(body: dict[str, Any]) -> bool:
    """Whether a server that samples by default answers by chance, from no seed: told by what all of them read."""
    said = {name: body[name] for name in _READ_BY_ALL if name in body}
    return is_sampled(said, True) and seed_of(said) is None


@lru_cache(maxsize=1024)
def _split(url: str) -> SplitResult:
    return urlsplit(url)


def _beside(endpoint: Endpoint, query: str, headers: Sequence[tuple[str, str]], caller: str | None) -> dict[str, str]:
    """Return what counts besides the body. What may hold a secret is in it as a digest."""
    out = {"path": endpoint.path}
    if query:
        out["query"] = _digest([query])
    unknown = sorted(f"{name}: {value}" for name, value in headers if _counts(name, value))
    if unknown:
        out["headers"] = _digest(unknown)
    if caller is not None:
        out["caller"] = caller
    return out


def credentials_digest(headers: Iterable[tuple[str, str]]) -> str:
    """Return what tells callers apart: a digest of their credentials."""
    return _digest(sorted(f"{name}: {value}" for name, value in headers if _is_credential(name)))


def _owner_digest(headers: Iterable[tuple[str, str]]) -> str:
    """Return what tells apart for whom a server holds answers: their key; their cookies, which change, only without."""
    named = [each for each in headers if _is_credential(each[0])]
    return credentials_digest([each for each in named if each[0] != "cookie"] or named)


@lru_cache(maxsize=4096)
def _counts(name: str, value: str) -> bool:
    if name == "accept":
        return value.strip().lower() not in _PLAIN_ACCEPTS
    return not _HARMLESS_HEADER.fullmatch(name) and not _is_credential(name)


def _is_credential(name: str) -> bool:
    return name in _CREDENTIALS or SECRETS.fullmatch(name) is not None


def _digest(parts: Iterable[str]) -> str:
    state = hashlib.sha256(b"lmstash http\0")
    for each in parts:
        data = each.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()[:32]


def _read_json(body: bytes) -> dict[str, Any] | None:
    """Return a JSON object that every reader reads alike; None for anything else."""
    try:
        read = _decoder.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")  # some servers take the first, some the last
    return found


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)


def lower(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return headers with their names in lower case."""
    return [(name.lower(), value) for name, value in headers]
