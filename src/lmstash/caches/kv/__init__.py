"""KV prefixes: what a decoder keeps of the tokens it has seen, kept across calls and processes.

`cache` has the public class; `calls` reads the arguments of a `generate` call; `families` says which models can be
served; `naming` and `blocks` say under which key what bytes lie; `finding` looks for the longest kept prefix;
`loading` turns it into a transformers cache; `harvest` cuts a cache into new entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmstash.caches.kv.cache import KV

__all__ = ["KV"]


def __getattr__(name: str) -> Any:
    if name == "KV":
        from lmstash.caches.kv.cache import KV

        return KV
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
