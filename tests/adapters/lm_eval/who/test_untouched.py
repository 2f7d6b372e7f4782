"""Packages whose code is not followed: whatever is put into them, or into what they go by, is another model."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("tenacity")

import accelerate
import aiohttp
import requests
import tenacity
import urllib3
import yarl
from lm_eval.models.openai_completions import LocalCompletionsAPI

from lmstash.adapters.lm_eval.who.code_of import class_of
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.adapters.lm_eval.who.untouched import Untouched
from lmstash.identity.fingerprint import Fingerprint

SEND, POST, URL_OPEN, JSON = (
    requests.Session.send,
    requests.post,
    urllib3.HTTPConnectionPool.urlopen,
    aiohttp.ClientResponse.json,
)
OF_ACCELERATE = accelerate.utils.send_to_device


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
    "function of a module": (requests, "post", lambda: other_send),
    "function behind a library's wrapper": (requests, "post", lambda: traced(other_send)),
    "method behind a library's wrapper": (requests.Session, "send", lambda: traced(other_send)),
    "class of a module": (requests.sessions, "Session", lambda: Session),
    "method of what it goes by": (urllib3.HTTPConnectionPool, "urlopen", lambda: other_send),
    "method of what that goes by": (yarl.URL, "join", lambda: other_send),
    "method of a class that runs at once": (aiohttp.ClientResponse, "json", lambda: other_send),
}  # fmt: skip


def remote() -> Any:
    return Own(model="m", base_url="http://127.0.0.1:9/v1/completions", tokenizer_backend=None)


def look() -> Fingerprint:
    return who_answers(remote()).look()


@pytest.mark.parametrize(("owner", "name", "make"), PUT.values(), ids=PUT)
def test_what_is_put_there_is_another_model(monkeypatch, owner, name, make):
    before = look()
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, make())
        assert look() != before
    assert look() == before


def test_what_is_put_there_counts_by_its_code(monkeypatch):
    found: list[Fingerprint] = []
    for each in (other_send, other_send_still, other_send):
        monkeypatch.setattr(requests.Session, "send", each)
        found.append(look())
    assert found[0] == found[2] != found[1]


def test_own_code_behind_a_wrapper_of_such_a_package_counts():
    def model(function: Callable[..., Any]) -> Any:
        kind = type("Own", (Own,), {"__module__": __name__, "send": traced(function)})
        return who_answers(kind(model="m", base_url="http://127.0.0.1:9/v1", tokenizer_backend=None)).look()

    assert model(other_send) == model(other_send) != model(other_send_still)


@pytest.mark.parametrize(
    "code", [requests.Session, aiohttp.ClientSession, tenacity.Retrying, OF_ACCELERATE, POST], ids=str
)
def test_a_package_as_it_was_installed_is_not_followed(code):
    assert Untouched({code.__module__.partition(".")[0]}).has(code)


def test_what_is_not_followed_is_most_of_it():
    code, _ = class_of(remote(), vouched=False)
    packages = {str(each).partition(".")[0] for each in code.components()}
    assert packages.isdisjoint({"urllib3", "yarl", "attr", "chardet"})
    assert len(code.components()) < 400


TOUCHED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "default": lambda patched: patched.setattr(POST, "__defaults__", (other_send, None)),
    "default by name": lambda patched: patched.setattr(URL_OPEN, "__kwdefaults__", {"each": other_send}),
    "code": lambda patched: patched.setattr(POST, "__code__", (lambda url, data=None, json=None, **more: url).__code__),
    "module": lambda patched: patched.setattr(requests.compat, "json", own_module()),
    "name that there was not": lambda patched: patched.setattr(requests.api, "open", other_send, raising=False),
}


@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED)
def test_a_package_in_which_anything_else_lies_is_followed(monkeypatch, touch):
    with monkeypatch.context() as patched:
        touch(patched)
        assert not Untouched({"requests"}).has(requests.Session)
    assert Untouched({"requests"}).has(requests.Session)


def test_a_package_with_a_base_class_of_ones_own_is_followed():
    plain = requests.Session.__bases__
    try:
        requests.Session.__bases__ = (type("Base", plain, {"__module__": __name__}),)
        assert not Untouched({"requests"}).has(requests.Session)
    finally:
        requests.Session.__bases__ = plain
    assert Untouched({"requests"}).has(requests.Session)


def test_code_that_says_it_lies_there_and_does_not_is_followed():
    class Pretending(requests.Session):
        __module__ = "requests.sessions"

    Pretending.__qualname__ = "Session"

    def made() -> None: ...

    pretending = types.FunctionType(made.__code__, vars(requests.sessions))
    look_at = Untouched({"requests"})
    assert look_at.has(requests.Session)
    assert not look_at.has(Pretending)
    assert not look_at.has(pretending)
    assert not look_at.has(traced(other_send))
