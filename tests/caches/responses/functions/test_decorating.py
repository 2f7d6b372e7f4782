"""`@responses.cached`: a call is named by function, code and arguments; nothing else answers for it."""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmstash
from lmstash.caches.responses import Responses
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash

from ..conftest import made_program

CALLS: list[Any] = []


def made(source: str, **given: Any) -> Any:
    """Return the function `ask` of a program."""
    namespace: dict[str, Any] = {"__name__": "program", "CALLS": CALLS, **given}
    exec(source, namespace)
    return namespace["ask"]


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_a_call_is_computed_once_however_its_arguments_are_written(responses: Responses, stash: Stash) -> None:
    calls = Calls()

    @responses.cached(harmless=["calls"], tags=lambda prompt, n=1, **rest: {"task": f"t{n}"})
    def ask(prompt: str, n: int = 1, **rest: Any) -> str:
        calls.note(prompt)
        return f"{prompt} {n} {sorted(rest)}"

    assert ask("a") == ask("a", 1) == ask(prompt="a") == ask(n=1, prompt="a") == "a 1 []"
    assert ask("a", b=1, a=2) == ask("a", b=1, a=2)
    assert calls.said == ["a", "a"]
    assert ask.__name__ == "ask"
    assert {each.tags["task"] for each in responses.find()} == {"t1"}
    assert stash.stats.misses["unsupported"] == 0


class Calls:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def note(self, what: Any) -> None:
        self.said.append(what)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1, 1.0), (1, True), ("1", 1), ([1], (1,)), (b"1", "1"), ({"a": 1}, {"a": 2}), (None, ())]
)
def test_arguments_that_differ_are_other_calls(responses: Responses, ours: Any, theirs: Any) -> None:
    ask = responses.cached(made("def ask(x): return repr(x)"))
    assert ask(ours) == repr(ours)
    assert ask(theirs) == repr(theirs)
    assert ask(ours) == repr(ours)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("def ask(x): return x + 1", "def ask(x): return x + 2"),
        ("def ask(x, n=1): return x + n", "def ask(x, n=2): return x + n"),
        ("N = 1\ndef ask(x): return x + N", "N = 2\ndef ask(x): return x + N"),
        ("def f(x): return 1\ndef ask(x): return x + f(x)", "def f(x): return 2\ndef ask(x): return x + f(x)"),
        ("def outer(n):\n def ask(x): return x + n\n return ask\nask = outer(1)",) * 1
        + ("def outer(n):\n def ask(x): return x + n\n return ask\nask = outer(2)",),
    ],
)
def test_changed_code_is_another_function(responses: Responses, first: str, second: str) -> None:
    assert responses.cached(made(first))(10) == 11
    assert responses.cached(made(second))(10) == 12
    assert responses.cached(made(first))(10) == 11


def test_code_that_changes_under_a_running_program_is_seen(responses: Responses) -> None:
    plain = made("N = 1\ndef ask(x): return x + N")
    ask = responses.cached(plain)
    assert ask(10) == 11
    plain.__globals__["N"] = 2
    assert ask(10) == 12


def test_a_variable_that_a_function_has_closed_over_is_looked_at_each_time(responses: Responses) -> None:
    n = 1

    @responses.cached
    def ask(x: int) -> int:
        return x + n

    assert ask(10) == 11
    n = 2
    assert ask(10) == 12


def test_code_that_is_swapped_in_place_is_seen(responses: Responses) -> None:
    plain = made("def f(x, n=1): return x + n\ndef ask(x): return f(x)")
    inner = plain.__globals__["f"]
    ask = responses.cached(plain)
    assert ask(10) == 11
    inner.__defaults__ = (2,)
    assert ask(10) == 12
    inner.__code__ = made("def ask(x, n=1): return x - n").__code__
    assert ask(10) == 8


def test_an_object_that_code_names_counts_by_what_it_holds_now(responses: Responses) -> None:
    @dataclass
    class Config:
        n: int

    config = Config(1)
    ask = responses.cached(made("def ask(x): return x + config.n", config=config))
    assert ask(10) == 11
    config.n = 2
    assert ask(10) == 12
    array = np.array([1])
    ask = responses.cached(made("def ask(x): return x + int(array[0])", array=array))
    assert ask(10) == 11
    array[0] = 2
    assert ask(10) == 12


def test_the_code_of_a_cached_function_within_counts(responses: Responses) -> None:
    answers = []
    for n in (1, 2):
        inner = responses.cached(made(f"def ask(x): return x + {n}"))
        outer = responses.cached(made("def ask(x): return inner(x)", inner=inner))
        answers.append(outer(10))
    assert answers == [11, 12]
    assert responses.store.events.stats.misses["unsupported"] == 0


def test_async_functions(responses: Responses) -> None:
    ask = responses.cached(harmless=["CALLS"])(made("async def ask(x):\n CALLS.append(x)\n return [x]"))

    async def all_of_it() -> list[Any]:
        return await asyncio.gather(*[ask(n % 3) for n in range(30)])

    assert asyncio.run(all_of_it()) == [[n % 3] for n in range(30)]
    assert sorted(CALLS) == [0, 1, 2]


@dataclass(frozen=True)
class Settings:
    system: str
    limit: int = 3


class Mode(enum.Enum):
    SHORT = 1
    LONG = 2


def test_a_method_of_a_dataclass_is_named_by_its_fields(responses: Responses, stash: Stash) -> None:
    said: list[str] = []

    @dataclass
    class Asker:
        system: str
        settings: Settings

        @responses.cached(harmless=["said"])
        def ask(self, prompt: str, mode: Mode = Mode.SHORT) -> str:
            said.append(prompt)
            return f"{self.system} {self.settings.limit} {prompt} {mode.name}"

    for _ in range(2):
        assert Asker("a", Settings("s")).ask("p") == "a 3 p SHORT"
        assert Asker("b", Settings("s")).ask("p") == "b 3 p SHORT"
        assert Asker("a", Settings("s", 4)).ask("p") == "a 4 p SHORT"
        assert Asker("a", Settings("s")).ask("p", Mode.LONG) == "a 3 p LONG"
    assert len(said) == 4
    changed = Asker("a", Settings("s"))
    changed.hidden = 1  # type: ignore[attr-defined]
    changed.ask("p")
    assert len(said) == 5
    assert stash.stats.misses["unsupported"] == 0


def test_self_without_content_is_refused_in_words_unless_it_is_harmless(
    responses: Responses, stash: Stash, caplog: pytest.LogCaptureFixture
) -> None:
    class Plain:
        calls = 0

        def __init__(self) -> None:
            self.client = iter(())

        @responses.cached
        def ask(self, x: int) -> int:
            type(self).calls += 1
            return x

        @responses.cached(harmless=["self"])
        def same(self, x: int) -> int:
            return self.ask(x)

        @responses.cached(harmless=["self.client"])
        def like(self, x: int) -> int:
            return self.ask(x)

    with caplog.at_level(logging.WARNING):
        assert [Plain().ask(1), Plain().ask(1)] == [1, 1]
    assert Plain.calls == 2
    assert stash.stats.misses["unsupported"] == 2
    assert len(caplog.records) == 1
    assert "argument self: `self.client`: an object of builtins.tuple_iterator has no content" in caplog.text
    assert "harmless=['self.client']" in caplog.text
    assert [Plain().same(2), Plain().same(2)] == [2, 2]
    assert Plain.calls == 3
    assert [Plain().like(3), Plain().like(3)] == [3, 3]
    assert Plain.calls == 4


def test_an_object_that_code_names_is_refused_unless_it_is_harmless(responses: Responses) -> None:
    source = "def ask(x):\n client.note(x)\n return x"
    for harmless, n_calls in (((), 2), (("client",), 1)):
        client = Calls()
        client.connection = iter(())  # type: ignore[attr-defined]
        ask = responses.cached(harmless=harmless)(made(source, client=client))
        assert [ask(1), ask(1)] == [1, 1]
        assert len(client.said) == n_calls


def test_pydantic_models_enums_classes_and_functions_are_arguments(responses: Responses, stash: Stash) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Options(pydantic.BaseModel):
        n: int
        words: list[str] = pydantic.Field(default_factory=list)

    class Flags(enum.Flag):
        A = 1
        B = 2

    def plus(x: int) -> int:
        return x + 1

    class Namer:
        @classmethod
        @responses.cached(harmless=["CALLS"])
        def ask(cls, what: Any) -> str:
            CALLS.append(what)
            return repr(what)

    arguments = [Options(n=1), Options(n=2), Options(n=1, words=["a"]), Flags.A, Flags.A | Flags.B, plus, len, Options]
    for _ in range(2):
        assert [Namer.ask(each) for each in arguments] == [repr(each) for each in arguments]
    assert len(CALLS) == len(arguments)
    assert stash.stats.misses["unsupported"] == 0


@pytest.mark.parametrize(
    "source",
    [
        "import httpx\ndef ask(x):\n if x < 0: httpx.post('http://host', json={})\n return x",
        "import re\nP = re.compile('a')\ndef ask(x): return [x, P.findall('aa')]",
        "import logging, json\nlog = logging.getLogger('x')\ndef ask(x):\n log.debug('x')\n return json.dumps(x)",
        "import openai\ndef ask(x):\n if x < 0: openai.OpenAI().chat.completions.create(model='m')\n return x",
        "import functools\n@functools.lru_cache\ndef f(x): return x\ndef ask(x): return [f(x), len('x')]",
    ],
)
def test_everyday_code_is_named(responses: Responses, source: str) -> None:
    for package in ("httpx", "openai"):
        if f"import {package}" in source:
            pytest.importorskip(package)
    ask = responses.cached(made(source))
    for _ in range(2):
        ask(1)
    stats = responses.store.events.stats
    assert (stats.hits, dict(stats.misses)) == (1, {"absent": 1})


def test_a_call_that_samples_is_known_for_one(responses: Responses) -> None:
    ask = responses.cached(harmless=["CALLS"])(
        made("def ask(p, temperature=0.0, seed=None):\n CALLS.append(p)\n return len(CALLS)")
    )
    assert [ask("a"), ask("a"), ask("a", 0.5), ask("a", 0.5), ask("a", 0.5, 1), ask("a", 0.5, 1)] == [1, 1, 2, 3, 4, 4]


def test_a_secret_argument_counts_and_is_not_stored(tmp_path: Path) -> None:
    with lmstash.open(tmp_path) as stash:
        ask = stash.responses(model="m").cached(made("def ask(password): return len(password)"))
        assert [ask("hunter2"), ask("hunter22"), ask("hunter2")] == [7, 8, 7]
    assert b"hunter2" not in b"".join(each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())


def test_a_call_that_is_wrong_raises_what_the_function_raises(responses: Responses) -> None:
    with pytest.raises(TypeError, match="missing 1 required"):
        responses.cached(made("def ask(x): return x"))()


@pytest.mark.parametrize("wrong", [staticmethod(len), print, made("def ask():\n yield 1")])
def test_what_cannot_be_kept_is_refused_at_once(responses: Responses, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        responses.cached(wrong)


def test_a_class_that_holds_an_instance_of_itself_is_an_argument_and_what_it_holds_counts(stash: Any) -> None:
    @dataclass(frozen=True)
    class Style:
        words: int

    Style.default = Style(1)  # pyright: ignore[reportAttributeAccessIssue]
    asked: list[Any] = []

    @stash.responses(model="m").cached(harmless=["asked"])
    def ask(style: Any) -> int:
        asked.append(style)
        return len(asked)

    assert ask(Style(2)) == ask(Style(2)) == 1
    Style.default = Style(3)  # pyright: ignore[reportAttributeAccessIssue]
    assert ask(Style(2)) == 2


def test_a_wrapper_that_holds_more_than_its_function_is_not_taken_for_it(responses: Responses) -> None:
    class Times:
        def __init__(self, by: int) -> None:
            self.by = by
            self.__wrapped__ = made("def ask():\n return 1")

    def asks(times: Any) -> Any:
        return responses.cached(made("def ask():\n return times.by", times=times))

    assert [asks(Times(by))() for by in (2, 3)] == [2, 3]


def test_environment_variables_that_its_own_code_names_count_and_secrets_among_them_do_not(
    responses: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def setting() -> str:
        for name in ("LMSTASH_TEST_FIRST", "LMSTASH_TEST_MODEL"):
            if name in os.environ:
                return os.environ[name]
        return "none"

    @responses.cached(harmless=["calls"])
    def ask(prompt: str) -> str:
        calls.append(os.environ.get("LMSTASH_TEST_API_KEY", ""))
        return f"{setting()} says {prompt}"

    assert ask("a") == ask("a") == "none says a"
    monkeypatch.setenv("LMSTASH_TEST_MODEL", "one")
    assert ask("a") == ask("a") == "one says a"
    monkeypatch.setenv("LMSTASH_TEST_API_KEY", "another")
    monkeypatch.setenv("LMSTASH_TEST_OTHER", "whatever")
    assert ask("a") == "one says a"
    monkeypatch.delenv("LMSTASH_TEST_MODEL")
    assert ask("a") == "none says a"
    monkeypatch.setenv("LMSTASH_TEST_FIRST", "first")
    assert ask("a") == "first says a"
    assert len(calls) == 3


def test_keywords_count_in_their_order_and_numbers_for_sampling_by_what_they_are(responses: Responses) -> None:
    ask = responses.cached(made("def ask(**rest): return [*rest]"))
    assert [ask(a=1, b=2), ask(b=2, a=1)] == [["a", "b"], ["b", "a"]]
    ask = responses.cached(harmless=["CALLS"])(made("def ask(temperature):\n CALLS.append(1)\n return len(CALLS)"))
    assert [ask(0), ask(0.0), ask(temperature=-0), ask(temperature=False)] == [1, 1, 1, 2]


WRAP = """
import functools
def wrap(fn):
    @functools.wraps(fn)
    def call(*a, **k): return [len(a), [*k], fn(*a, **{n: k[n] for n in k if n != "more"})]
    return call
@wrap
def ask(x, y="b"): return x + y
"""


def test_how_a_call_is_written_counts_where_a_wrapper_sees_it(responses: Responses, stash: Stash) -> None:
    ask = responses.cached(made(WRAP))
    for _ in range(2):
        assert [ask("a"), ask("a", "b"), ask(x="a"), ask(y="b", x="a"), ask("a", more=1)] == [
            *([1, [], "ab"], [2, [], "ab"], [0, ["x"], "ab"], [0, ["y", "x"], "ab"], [1, ["more"], "ab"])
        ]
    assert (stash.stats.hits, dict(stash.stats.misses)) == (5, {"absent": 5})


def test_a_method_of_an_object_and_a_partial_may_be_cached(responses: Responses, stash: Stash) -> None:
    source = (
        "class C:\n def __init__(self, p):\n  self.p = p\n  self.say = cached(self.ask)\n"
        " def ask(self, x): return self.p + x\n def __call__(self, x): return x + self.p\n"
        "def of(p, x, *, y=''): return p + x + y"
    )

    def program() -> list[str]:
        namespace = made_program(source)
        namespace["cached"] = responses.cached
        c, kind = namespace["C"]("1"), namespace["C"]
        partial = responses.cached(functools.partial(namespace["of"], "p", y="y"))
        return [c.say("x"), kind("2").say("x"), responses.cached(c.__call__)("x"), partial("x"), partial(x="z")]

    assert program() == program() == ["1x", "2x", "x1", "pxy", "pzy"]
    assert (stash.stats.hits, stash.stats.misses["absent"]) == (5, 5)
