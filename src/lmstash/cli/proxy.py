"""Serve a caching reverse proxy in front of an OpenAI-compatible server: every request is paid for once.

Point programs at it as their base URL, with the API key they use anyway: keys pass through and are never stored.
Chat, completions, embeddings and responses are answered from the stash where they were answered before, streams as
streams; everything else passes through. An answer says where it comes from: `x-lmstash: hit`, `miss` or `bypass`.

Requests that are answered by chance (temperature not 0, which is OpenAI's default, and no seed) are not cached unless
--keep-sampled, or the request's header `x-lmstash-keep-sampled: 1`, says so; `x-lmstash-occurrence: N` then names which
answer is meant. `Cache-Control` of a request: no-store, no-cache, max-age=SECONDS, only-if-cached.
GET /health and /metrics (Prometheus) are the proxy's own. SIGTERM and Ctrl-C let the answers under way finish.
"""

from __future__ import annotations

import argparse
import json

import lmstash
from lmstash.cli.output import say
from lmstash.cli.place import location
from lmstash.errors import InvalidArgumentError, MissingDependencyError
from lmstash.settings import parse_age


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to listen, whom to ask, and what may be kept."""
    parser.add_argument("--upstream", metavar="URL", required=True, help="for instance https://api.openai.com/v1")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8710, help="port to listen at; 0 for a free one (default: 8710)")
    parser.add_argument("--keep-sampled", action="store_true", help="keep sampled answers without a seed, too")
    parser.add_argument("--trust-urls", action="store_true", help="what URLs in requests point at never changes")
    parser.add_argument("--by-token", action="store_true", help="callers with different keys share no answers")
    parser.add_argument("--revision", metavar="TEXT", help="what you declare of the models; another one shares nothing")
    parser.add_argument("--ttl", metavar="AGE", help="how long new answers are served: 12h, 7d (default: for ever)")
    parser.add_argument("--timeout", metavar="AGE", default="10m", help="longest silence of upstream (default: 10m)")
    parser.add_argument("--retries", type=int, default=2, help="before the first byte of an answer (default: 2)")
    parser.add_argument("--grace", metavar="AGE", default="30s", help="how long the end waits (default: 30s)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end."""
    try:
        from lmstash.adapters.openai.proxy.serving import is_loopback, serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lmstash"):
            raise
        raise MissingDependencyError(error.name or "uvicorn", "proxy") from error
    if arguments.retries < 0:
        raise InvalidArgumentError("--retries takes a number from 0")
    if not is_loopback(arguments.host):
        say(f"warning: whoever reaches {arguments.host}:{arguments.port} reads every answer kept, without any key")

    def ready(url: str) -> None:
        if arguments.json:
            print(json.dumps({"schema": 1, "command": "proxy", "url": url, "upstream": arguments.upstream}), flush=True)
        else:
            say(f"{url} answers for {arguments.upstream}; Ctrl-C ends it")

    # As a program opens it, not as a command that looks at it: settings count, and a fault is a miss.
    with lmstash.open(location(arguments)) as stash:
        serve(
            stash,
            arguments.upstream,
            host=arguments.host,
            port=arguments.port,
            ready=ready,
            grace_seconds=parse_age(arguments.grace),
            timeout_seconds=parse_age(arguments.timeout),
            retries=arguments.retries,
            keep_sampled=arguments.keep_sampled,
            trust_urls=arguments.trust_urls,
            by_token=arguments.by_token,
            revision=arguments.revision,
            ttl_seconds=None if arguments.ttl is None else parse_age(arguments.ttl),
        )
    return 0
