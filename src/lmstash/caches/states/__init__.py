"""States of llama.cpp: kept in 64-token blocks, shared between prompts, rebuilt for any kept prefix.

`cache` has the public class; `layout` and `blob` know the bytes of llama.cpp; `pieces` those of an entry; `naming` says
under which key what lies; `finding` looks for the longest kept prefix; `keeping` cuts a state into new entries.
Knows nothing of llama-cpp-python: that is `lmstash.adapters.llama_cpp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmstash.caches.states.cache import States

__all__ = ["States"]


def __getattr__(name: str) -> Any:
    if name == "States":
        from lmstash.caches.states.cache import States

        return States
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
