"""OpenAI-compatible clients and servers over a stash: the same request is paid for once.

    from lmstash.adapters.openai import http_client

    client = openai.OpenAI(http_client=http_client(stash))         # or: httpx.Client(transport=CachingTransport(stash))

`lmstash proxy --upstream URL` does it for every program that can be told a base URL.

`endpoints.py` which requests are pure · `references.py` what a request only points at · `question.py` from a request to
what is looked up · `control.py` what its headers say of the cache · `recorded.py` an answer as it is kept ·
`judging.py` whether it is · `library.py` all of it over a stash · `transport.py`, `clients.py` inside a program ·
`proxy/` in front of a server.
"""

from lmstash.adapters.openai.clients import async_http_client, http_client
from lmstash.adapters.openai.transport import AsyncCachingTransport, CachingTransport

__all__ = ["AsyncCachingTransport", "CachingTransport", "async_http_client", "http_client"]
