"""An HTTP client for `openai.OpenAI(http_client=...)` in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmstash.adapters.openai.transport import AsyncCachingTransport, CachingTransport
from lmstash.errors import MissingDependencyError

if TYPE_CHECKING:
    from lmstash.stash import Stash


def http_client(stash: Stash, **options: Any) -> Any:
    """Return a client with the defaults of `openai`, which answers from `stash`: `openai.OpenAI(http_client=...)`.

    Args:
        stash: The stash; it stays the caller's to close.
        **options: As `CachingTransport` takes.
    """
    openai, package = _packages()
    inner = options.pop("inner", None) or package.HTTPTransport(limits=openai.DEFAULT_CONNECTION_LIMITS)
    return openai.DefaultHttpxClient(transport=CachingTransport(stash, inner, **options))


def async_http_client(stash: Stash, **options: Any) -> Any:
    """As `http_client`, for `openai.AsyncOpenAI`."""
    openai, package = _packages()
    inner = options.pop("inner", None) or package.AsyncHTTPTransport(limits=openai.DEFAULT_CONNECTION_LIMITS)
    return openai.DefaultAsyncHttpxClient(transport=AsyncCachingTransport(stash, inner, **options))


def _packages() -> tuple[Any, Any]:
    """Return `openai` and the HTTP package that it is built on: `httpx`, or from version 3 on `httpx2`."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise MissingDependencyError("openai", "proxy") from error
    from importlib import import_module

    limits = type(openai.DEFAULT_CONNECTION_LIMITS)
    return openai, import_module(limits.__module__.partition(".")[0])
