"""What a request only points at: its content can change while the request stays the same, so it cannot be a key."""

from __future__ import annotations

import re
from typing import Any

_STATE = frozenset(
    {
        *("previous_response_id", "conversation", "background", "container", "thread_id", "assistant_id", "session_id"),
        *("web_search_options", "web_search", "enable_search", "search_parameters", "plugins", "connectors"),
        *("data_sources", "tool_resources", "files", "agent_id"),
    }
)
"""Fields of a request that make an answer depend on what the server remembers, or on the world."""

_LOOKS_AROUND = re.compile(r".*:online|.*-search-(preview|api).*|(.*/)?(sonar|compound)(-.*)?")
"""Models that search the web before they answer."""

_IDS = frozenset({"file_id", "file_ids", "vector_store_ids"})
"""Fields that name what was uploaded."""

_OWN_TOOLS = frozenset({"function", "custom"})
"""Tools that the caller runs; every other one is run by the server, with what it finds then."""


def depends_on_state(body: dict[str, Any]) -> bool:
    """Whether an answer depends on what a server remembers or finds, not on the request alone."""
    if any(body.get(name) not in (None, False) for name in _STATE) or isinstance(body.get("prompt"), dict):
        return True
    model = body.get("model")
    if isinstance(model, str) and _LOOKS_AROUND.fullmatch(model):
        return True
    tools = body.get("tools")
    if not isinstance(tools, list):
        return False
    return any(not isinstance(each, dict) or _runs_there(each) for each in tools)


def _runs_there(tool: dict[str, Any]) -> bool:
    """Whether the server runs a tool itself."""
    kind, function = tool.get("type", "function"), tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return not isinstance(kind, str) or kind not in _OWN_TOOLS or (isinstance(name, str) and name.startswith("$"))


def said(body: dict[str, Any]) -> list[Any]:
    """Return what of a request is said to the model."""
    return [body.get(name) for name in ("messages", "input", "prompt")]


def points_at_uploads(messages: Any) -> bool:
    """Whether messages name files, items or sounds that the server keeps."""
    todo = [messages]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if any(_is_upload(name, inner) for name, inner in each.items()):
                return True
            todo.extend(inner for inner in each.values() if isinstance(inner, dict | list))
        elif isinstance(each, list):
            todo.extend(inner for inner in each if isinstance(inner, dict | list))
    return False


def _is_upload(name: str, value: Any) -> bool:
    if name == "type":
        return value == "item_reference"
    if name == "audio":
        return isinstance(value, dict) and "id" in value
    return name in _IDS and bool(value)
