"""An HTTP client for `openai.OpenAI(http_client=...)` in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmstash.adapters.openai.transport import AsyncCachingTransport, CachingTransport
from lmstash.errors import MissingDependencyError

if TYPE_CHECKING:
    from lmstash.stash import Stash


def http_client(stash: Stash, *, inner: Any = None, trust_env: bool = True, **options: Any) -> Any:
    """Return a client with the defaults of `openai`, which answers from `stash`: `openai.OpenAI(http_client=...)`.

    Args:
        stash: The stash; it stays the caller's to close.
        inner: The transport that sends; default: as `openai` sends, by the proxies that the environment names
            (`HTTPS_PROXY`, `NO_PROXY`).
        trust_env: Whether the environment counts (it says where certificates are, too).
        **options: As `CachingTransport` takes.
    """
    made = _openai().DefaultHttpxClient(transport=inner, trust_env=trust_env)
    return _caching(made, lambda sender: CachingTransport(stash, sender, **options))


def async_http_client(stash: Stash, *, inner: Any = None, trust_env: bool = True, **options: Any) -> Any:
    """As `http_client`, for `openai.AsyncOpenAI`."""
    made = _openai().DefaultAsyncHttpxClient(transport=inner, trust_env=trust_env)
    return _caching(made, lambda sender: AsyncCachingTransport(stash, sender, **options))


def _caching(client: Any, around: Callable[[Any], Any]) -> Any:
    """Put our transports around those that a client made, one for each proxy: only the client itself knows which.

    A client that is given a transport makes none for proxies, and there is no public way to say both.
    """
    client._transport = around(client._transport)
    client._mounts = {where: None if each is None else around(each) for where, each in client._mounts.items()}
    return client


def _openai() -> Any:
    try:
        import openai
    except ModuleNotFoundError as error:
        raise MissingDependencyError("openai", "openai") from error
    return openai
