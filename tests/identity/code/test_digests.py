"""Code that is pinned is not followed; what stands for it counts."""

from __future__ import annotations

from typing import Any

from lmstash.identity.code.digests import CodeGraph


def compiled(module: str, source: str, name: str, **given: Any) -> Any:
    scope: dict[str, Any] = {"__name__": module, **given}
    exec(source, scope)
    return scope[name]


def read(helper_body: str, version: str | None) -> dict[Any, Any]:
    helper = compiled("library.helpers", f"def helper():\n    return {helper_body}", "helper")
    function = compiled("mine", "def function():\n    return helper()", "function", helper=helper)
    graph = CodeGraph(pin_of=lambda module: ["library", version] if version and module.startswith("library.") else None)
    graph.add(function)
    return graph.components()


def test_pinned_code_counts_by_its_pin_alone() -> None:
    assert read("1", "1.0") == read("2", "1.0")
    assert read("1", "1.0") != read("1", "1.1")
    assert read("1", None) != read("2", None)
