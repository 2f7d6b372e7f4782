"""Packages whose code is not followed: whatever is put into them, or into what they go by, is another model."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("tenacity")

import aiohttp
import requests
import tenacity
import urllib3
import yarl
from lm_eval.models.openai_completions import LocalCompletionsAPI

from lmstash.adapters.lm_eval.who.carriers import Carriers
from lmstash.adapters.lm_eval.who.code_of import class_of
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.errors import UnsupportedModelError
from lmstash.identity.fingerprint import Fingerprint

SEND, POST = requests.Session.send, requests.post
PLAIN_BASES = requests.Session.__bases__


class Own(LocalCompletionsAPI):
    """Somebody's own: all that it goes by is read."""

    def model_call(self, *arguments: Any, **options: Any) -> Any:
        return super().model_call(*arguments, **options)


def other_send(self: Any, *arguments: Any, **options: Any) -> Any:
    return SEND(self, *arguments, **options)


def other_send_still(self: Any, *arguments: Any, **options: Any) -> Any:
    answer = SEND(self, *arguments, **options)
    answer.headers["X-Seen"] = "yes"
    return answer


class Session(requests.Session):
    """Somebody's own under the package's name."""


class Sender:
    """Called as a function would be."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.factor


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap as a library would, whose own function stands in the place then."""
    return tenacity.retry(stop=tenacity.stop_after_attempt(2))(function)


def own_module() -> types.ModuleType:
    made = types.ModuleType("own_json_of_a_test")
    made.loads = lambda text: {"text": text}
    return made


PUT: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "method": (requests.Session, "send", lambda: other_send),
    "static method": (requests.Session, "send", lambda: staticmethod(other_send)),
    "property": (requests.Session, "send", lambda: property(lambda self: functools.partial(other_send, self))),
    "cached property": (requests.Session, "send", lambda: functools.cached_property(other_send)),
    "partial method": (requests.Session, "send", lambda: functools.partialmethod(other_send, timeout=1)),
    "object for a method": (requests.Session, "send", lambda: Sender(2)),
    "function of a module": (requests, "post", lambda: other_send),
    "function behind a library's wrapper": (requests, "post", lambda: traced(other_send)),
    "method behind a library's wrapper": (requests.Session, "send", lambda: traced(other_send)),
    "partial": (requests, "post", lambda: functools.partial(other_send, None)),
    "bound method": (requests, "post", lambda: types.MethodType(other_send, 3)),
    "object for a function": (requests, "post", lambda: Sender(2)),
    "class of a module": (requests.sessions, "Session", lambda: Session),
    "module": (requests.compat, "json", own_module),
    "method of what it goes by": (urllib3.HTTPConnectionPool, "urlopen", lambda: other_send),
    "method of what that goes by": (yarl.URL, "join", lambda: other_send),
    "method of a class that runs at once": (aiohttp.ClientResponse, "json", lambda: other_send),
    "name that there was not": (requests.api, "open", lambda: other_send),
    "default": (POST, "__defaults__", lambda: (other_send, None)),
    "code": (POST, "__code__", lambda: (lambda url, data=None, json=None, **more: url).__code__),
}


def remote(kind: Any = Own) -> Any:
    return kind(model="m", base_url="http://127.0.0.1:9/v1/completions", tokenizer_backend=None)


def look(kind: Any = Own) -> Fingerprint:
    return who_answers(remote(kind)).look()


KINDS = pytest.mark.parametrize("kind", [Own, LocalCompletionsAPI], ids=["own", "the harness's"])


@KINDS
@pytest.mark.parametrize(("owner", "name", "make"), PUT.values(), ids=PUT)
def test_what_is_put_there_is_another_model(monkeypatch, kind, owner, name, make):
    before = look(kind)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, make(), raising=False)
        assert look(kind) != before
    assert look(kind) == before


@KINDS
def test_a_base_class_that_is_put_there_is_another_model(kind):
    before = look(kind)
    try:
        requests.Session.__bases__ = (type("Base", PLAIN_BASES, {"__module__": __name__}),)
        assert look(kind) != before
    finally:
        requests.Session.__bases__ = PLAIN_BASES
    assert look(kind) == before


@pytest.mark.parametrize(
    ("one", "other"), [(other_send, other_send_still), (Sender(2), Sender(3))], ids=["code", "object"]
)
def test_what_is_put_there_counts_by_what_it_is(monkeypatch, one, other):
    found: list[Fingerprint] = []
    for each in (one, other, one):
        monkeypatch.setattr(requests.Session, "send", each)
        found.append(look())
    assert found[0] == found[2] != found[1]


DOUBLES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "mock": lambda: mock.patch("requests.post"),
    "mock of a method": lambda: mock.patch.object(aiohttp.ClientSession, "_request"),
    "mock with a signature": lambda: mock.patch("requests.post", autospec=True),
}


@KINDS
@pytest.mark.parametrize("double", DOUBLES.values(), ids=DOUBLES)
def test_what_stands_in_for_a_function_in_a_test_is_refused(kind, double):
    before = look(kind)
    with double(), pytest.raises(UnsupportedModelError, match=r"cannot be read .*variant="):
        look(kind)
    assert look(kind) == before


def test_what_stands_in_for_a_function_may_be_vouched_for():
    real = who_answers(remote(), variant="real").look()
    with DOUBLES["mock"]():
        assert who_answers(remote(), variant="mocked").look() != real


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A library that answers in a server's place, installed as any other."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "answering_for_a_test.py").write_text("def send(self, request, **more):\n    return 'canned'\n")
    monkeypatch.syspath_prepend(str(folder))
    import answering_for_a_test

    yield answering_for_a_test
    del sys.modules["answering_for_a_test"]


@KINDS
@pytest.mark.parametrize(
    ("owner", "name"), [(requests.Session, "send"), (requests.sessions, "Session")], ids=["method", "class"]
)
def test_a_library_that_answers_in_a_servers_place_is_another_model(monkeypatch, installed, kind, owner, name):
    put = installed.send if owner is requests.Session else type("Session", (), {"__module__": installed.__name__})
    before = look(kind)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, put)
        assert look(kind) != before
    assert look(kind) == before


def test_own_code_behind_a_wrapper_of_such_a_package_counts():
    def model(function: Callable[..., Any]) -> Any:
        return look(type("Own", (Own,), {"__module__": __name__, "send": traced(function)}))

    assert model(other_send) == model(other_send) != model(other_send_still)


@pytest.mark.parametrize("package", ["accelerate", "aiohttp", "httpx", "requests", "tenacity", "urllib3"])
def test_nothing_is_found_in_a_package_as_it_was_installed(package):
    pytest.importorskip(package)
    carriers = Carriers({package})
    carriers.look_into(package)
    assert carriers.put == {}


def test_what_is_not_followed_is_most_of_it():
    code, _ = class_of(remote(), vouched=False)
    packages = {str(each).partition(".")[0] for each in code.components()}
    assert packages.isdisjoint({"urllib3", "yarl", "attr", "chardet"})
    assert len(code.components()) < 400


def test_code_that_says_it_lies_there_and_does_not_is_followed():
    class Pretending(requests.Session):
        __module__ = "requests.sessions"

    Pretending.__qualname__ = "Session"

    def made() -> None: ...

    pretending = types.FunctionType(made.__code__, vars(requests.sessions))
    carriers = Carriers({"requests", "tenacity"})
    assert carriers.has(requests.Session)
    assert carriers.has(SEND)
    assert not carriers.has(Pretending)
    assert not carriers.has(pretending)
    assert not carriers.has(traced(other_send))
