"""`CodeGraph(installed_by_version=True)`: code of installed packages counts by their version, your own by bytecode."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest

from lmstash.identity.code.digests import CodeGraph


def graph_of(source: str, **given: Any) -> CodeGraph:
    namespace: dict[str, Any] = {"__name__": "program", **given}
    exec(source, namespace)
    graph = CodeGraph(installed_by_version=True)
    graph.add(namespace["ask"])
    return graph


def test_installed_code_is_not_followed_and_its_version_counts() -> None:
    graph = graph_of("def ask(): return hypothesis.given(None)", hypothesis=hypothesis)
    assert not [name for name in graph.components() if str(name).startswith("hypothesis.internal")]
    assert graph.packages()["hypothesis"] == hypothesis.__version__
    full = CodeGraph()
    full.add(hypothesis.given)
    assert len(full.components()) > 10 * len(graph.components())


def test_your_own_function_in_an_installed_package_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(source: str) -> dict[Any, Any]:
        namespace: dict[str, Any] = {"__name__": "program"}
        exec(source, namespace)
        monkeypatch.setattr(hypothesis, "note", namespace["note"])
        return graph_of("def ask(): return hypothesis.note(1)", hypothesis=hypothesis).components()

    assert of("def note(x): return x") != of("def note(x): return x + 1")


@pytest.mark.parametrize("attribute", ["__code__", "__defaults__", "__kwdefaults__"])
def test_swapped_code_is_a_change(attribute: str) -> None:
    def ask(x: int = 1, *, y: int = 2) -> int:
        return x + y

    graph = CodeGraph(installed_by_version=True)
    graph.add(ask)
    assert graph.unchanged()
    setattr(
        ask,
        attribute,
        {"__code__": (lambda x, y: x).__code__, "__defaults__": (2,), "__kwdefaults__": {"y": 3}}[attribute],
    )
    assert not graph.unchanged()


def test_what_is_closed_over_is_looked_at() -> None:
    n, words = 1, ["a"]

    def ask() -> Any:
        return n, words

    graph = CodeGraph(installed_by_version=True)
    graph.add(ask)
    assert graph.unchanged()
    words.append("b")
    assert not graph.unchanged()
    graph = CodeGraph(installed_by_version=True)
    graph.add(ask)
    n = 2
    assert not graph.unchanged()


def test_a_class_that_grows_while_it_is_read_is_read() -> None:
    class Growing(type):
        pass

    class Lazy:
        """Makes an attribute of its class when it is looked at."""

        @property
        def __wrapped__(self) -> Any:
            Host.made = 1
            return None

    class Host(metaclass=Growing):
        lazy = Lazy()

        def method(self) -> int:
            return 1

    CodeGraph().add(Host)
    assert Host.made == 1
