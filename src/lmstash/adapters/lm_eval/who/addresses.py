"""Where a model that computes elsewhere is asked: by a URL, by a live client, or by what the environment says.

Harnesses and clients read an address that nobody gives them from variables such as `OPENAI_API_BASE`, so that two
servers can go by one name and one set of arguments.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from lmstash.caches.responses.requests.hiding import SECRETS
from lmstash.caches.responses.who import plain_url
from lmstash.identity.encoding import Component, encode

_CLIENTS = frozenset(
    {
        *("openai", "anthropic", "google", "httpx", "requests", "aiohttp", "litellm", "vllm", "sglang", "ray", "boto3"),
        *("botocore", "urllib3", "grpc", "dashscope", "reka", "zhipuai", "mistralai", "cohere", "together"),
    }
)
"""Packages whose objects stand for something that computes elsewhere."""
OF_ITS_KIND = frozenset({"accept", "accept-encoding", "connection", "user-agent"})
"""Headers that every client sends."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_VARIABLE = re.compile(r"(.+_)?(API_BASE|API_URL|BASE_URL)|AZURE_.*(ENDPOINT|BASE|VERSION)|OLLAMA_HOST")
"""Names of variables that say a server's address, or the version of its interface."""


def address_of(url: str) -> Component:
    """Return a server's URL as it may be stored: of user name and password nothing, of its query a digest.

    What names a secret in the query does not count; values under other names do, but may be secrets all the same.
    """
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    query = urlencode([pair for pair in pairs if not SECRETS.fullmatch(pair[0])])
    return [plain_url(url), hashlib.sha256(query.encode()).hexdigest()] if query else plain_url(url)


def is_client(value: Any) -> bool:
    """Whether an object stands for something that computes elsewhere."""
    return str(type(value).__module__).partition(".")[0] in _CLIENTS


def address_of_client(client: Any) -> Component:
    """Return where a live client (openai's, anthropic's) asks, and what it sends along; None where it does not say.

    That is the version of an interface (Azure's), and a digest of headers and parameters that are no secrets.
    """
    url = getattr(client, "base_url", None)
    if url is None:
        return None
    version = getattr(client, "_api_version", None)
    headers = pairs_of(getattr(client, "_custom_headers", None) or getattr(client, "headers", None), OF_ITS_KIND)
    query = pairs_of(getattr(client, "_custom_query", None), {"api-version"} if isinstance(version, str) else ())
    told: list[Component] = [address_of(str(url)), *([version] if isinstance(version, str) else [])]
    if headers or query:
        told.append(hashlib.sha256(encode([headers, query])).hexdigest())
    return told if len(told) > 1 else told[0]


def pairs_of(given: Any, without: Collection[str]) -> list[Component]:
    """Return what is sent by name, in order, but for some names and secrets."""
    items = ((str(name).lower(), str(value)) for name, value in given.items()) if isinstance(given, Mapping) else ()
    return [[name, value] for name, value in sorted(items) if name not in without and not SECRETS.fullmatch(name)]


def addresses_in_environment() -> dict[Component, Component]:
    """Return what the variables say that clients read an address from; never keys."""
    found = {name: value for name, value in os.environ.items() if _VARIABLE.fullmatch(name) and value}
    return {name: address_of(found[name]) for name in sorted(found) if not SECRETS.fullmatch(name)}


def without_secrets(value: Component) -> Component:
    """Return a value without fields that are named as secrets, and with URLs that may hold some as digests."""
    if isinstance(value, dict):
        return {
            name: without_secrets(each)
            for name, each in value.items()
            if not (isinstance(name, str) and SECRETS.fullmatch(name))
        }
    if isinstance(value, str) and _URL.match(value) and (urlsplit(value).query or "@" in urlsplit(value).netloc):
        return [plain_url(value), hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()]
    return [without_secrets(each) for each in value] if isinstance(value, list) else value
