"""Sessions by which HTTP is spoken (requests', httpx's, aiohttp's), by what they plainly say.

Connections, time limits, certificates, authorisation, and cookies (which servers set meanwhile) say nothing of what is
answered. A session that does anything of somebody's own (another transport, a hook, a method put into it) is not told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from lmstash.adapters.lm_eval.who.addresses import OF_ITS_KIND, address_of, pairs_of
from lmstash.identity.encoding import Component, encode

_REQUESTS = frozenset(
    {
        *("headers", "auth", "proxies", "hooks", "params", "stream", "verify", "cert", "max_redirects", "trust_env"),
        *("cookies", "adapters"),
    }
)
_HTTPX = frozenset(
    {
        *("_base_url", "_auth", "_params", "_headers", "_cookies", "_timeout", "follow_redirects", "max_redirects"),
        *("_event_hooks", "_trust_env", "_default_encoding", "_state", "_transport", "_mounts"),
    }
)
_TRANSPORTS = frozenset({"HTTPTransport", "AsyncHTTPTransport"})
_POOLS = frozenset({"ConnectionPool", "AsyncConnectionPool"})
_CONNECTORS = frozenset({"TCPConnector"})


def session_told(session: Any) -> Component:
    """Return where a session asks, and a digest of what it sends along; None where it is no such, or does more."""
    kind = type(session)
    name = (str(kind.__module__).partition(".")[0], kind.__qualname__)
    try:
        if name == ("requests", "Session"):
            return _of_requests(vars(session))
        if name[0] in ("httpx", "httpx2") and name[1] in ("Client", "AsyncClient"):
            return _of_httpx(vars(session))
        if name == ("aiohttp", "ClientSession"):
            return _of_aiohttp(session)
    except Exception:  # of another version, which is made otherwise
        return None
    return None


def _of_requests(held: Mapping[str, Any]) -> Component:
    plain = held.keys() <= _REQUESTS and not any(held["hooks"].values()) and _is_login(held["auth"])
    plain = plain and all(_is_of(each, "requests", {"HTTPAdapter"}) for each in held["adapters"].values())
    return _told(None, held["headers"], held["params"], held["proxies"]) if plain else None


def _of_httpx(held: Mapping[str, Any]) -> Component:
    plain = held.keys() <= _HTTPX and not any(held["_event_hooks"].values()) and _is_login(held["_auth"])
    sent_by = [each for each in (held["_transport"], *held["_mounts"].values()) if each is not None]
    plain = plain and all(_is_of(each, "httpx", _TRANSPORTS) and vars(each).keys() == {"_pool"} for each in sent_by)
    pools = [each._pool for each in sent_by] if plain else []
    plain = plain and all(_is_of(each, "httpcore", _POOLS) and each._uds is None for each in pools)
    return _told(str(held["_base_url"]), held["_headers"], held["_params"], {}) if plain else None


def _of_aiohttp(session: Any) -> Component:
    plain = not session._middlewares and not session._trace_configs and _is_login(session._default_auth)
    plain = plain and session._json_serialize.__module__ == "json" and not session._default_proxy
    kinds = (session._request_class, session._response_class)
    plain = plain and all(each.__module__.startswith("aiohttp.") for each in kinds)
    if not plain or not (session._connector is None or _is_of(session._connector, "aiohttp", _CONNECTORS)):
        return None
    return _told(str(session._base_url or ""), session._default_headers, {}, {})


def _told(url: str | None, headers: Any, params: Any, proxies: Any) -> Component:
    if not all(isinstance(each, Mapping) for each in (headers, params, proxies)):
        return None  # parameters as a text or as pairs
    sent = [pairs_of(headers, OF_ITS_KIND), pairs_of(params, ()), pairs_of(proxies, ())]
    return [address_of(url) if url else "", hashlib.sha256(encode(sent)).hexdigest() if any(sent) else ""]


def _is_login(given: Any) -> bool:
    """Whether this is nothing, or a name and a password."""
    return given is None or type(given) is tuple or type(given).__qualname__ in ("BasicAuth", "HTTPBasicAuth")


def _is_of(value: Any, package: str, kinds: frozenset[str] | set[str]) -> bool:
    kind = type(value)
    return str(kind.__module__).startswith(package) and kind.__qualname__ in kinds
