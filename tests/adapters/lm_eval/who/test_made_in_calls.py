"""Attributes that a model makes when it first answers count as what was there before, as long as they follow."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

pytest.importorskip("tenacity")
from lmstash.adapters.lm_eval import CachedLM

from ..conftest import generations
from .test_own_objects import Own


class Client:
    """Somebody's own, made when it is first needed."""

    def __init__(self, system: str) -> None:
        self.system = system
        self.n_calls = 0
        self.seen: list[str] = []

    def ask(self, prompt: str) -> str:
        self.n_calls += 1
        return f"{self.system} {prompt}"

    def close(self) -> None:
        pass


class Remembering(Client):
    def ask(self, prompt: str) -> str:
        held = self.seen
        held.append(prompt)
        return " ".join(held)


class RememberingFirst(Client):
    def ask(self, prompt: str) -> str:
        self.system = self.system or prompt
        return self.system + prompt


SYSTEM = "sys"


class Asked(Own):
    def __init__(self, *, url: str = "a", file: str = "") -> None:
        super().__init__()
        self.url = url
        self.file = file
        self.begin()

    def begin(self) -> None:
        self._client: Any = None

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        return [self.answer(each.args[0]) for each in requests]

    def answer(self, prompt: str) -> str:
        return self.client().ask(prompt)

    def client(self) -> Any:
        raise NotImplementedError


class Lazy(Asked):
    def client(self) -> Any:
        if self._client is None:
            self._client = Client(SYSTEM)
        return self._client


class Inline(Asked):
    def answer(self, prompt: str) -> str:
        if not self._client:
            system = SYSTEM
            self._client = Client(system)
        return self._client.ask(prompt)


class SetUp(Asked):
    def set_up(self) -> None:
        self._client = Client(SYSTEM)

    def answer(self, prompt: str) -> str:
        if self._client is None:
            self.set_up()
        return self._client.ask(prompt)


class OfClass(Lazy):
    _client = None

    def begin(self) -> None:
        pass


class Session(Asked):
    def answer(self, prompt: str) -> str:
        if self._client is None:
            self._client = requests.Session()
            self._client.headers["x"] = "sys"
        return f"{self._client.headers['x']} {prompt}"


class Property(Lazy):
    @functools.cached_property
    def one(self) -> Client:
        return Client(SYSTEM)

    def client(self) -> Client:
        return self.one


class OfFirst(Asked):
    def answer(self, prompt: str) -> str:
        if self._client is None:
            self._client = Client(prompt)
        return self._client.ask(prompt)


class OfOptions(Asked):
    def answer(self, prompt: str) -> str:
        if self._client is None:
            self._client = {"first": prompt}
        return str(self._client)


class OfEither(Asked):
    def answer(self, prompt: str) -> str:
        if self._client is None:
            if "0" in prompt:
                self._client = Client("a")
            else:
                self._client = Client("b")
        return self._client.ask(prompt)


class Sticky(Lazy):
    def answer(self, prompt: str) -> str:
        if "1" in prompt and self._client is None:
            self.client()
        return prompt if self._client is None else self._client.ask(prompt)


class OfNoted(Lazy):
    def answer(self, prompt: str) -> str:
        self.prompt = prompt
        found = self.client().ask(prompt)
        self.prompt = ""
        return found

    def begin(self) -> None:
        super().begin()
        self.prompt = ""

    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.prompt)
        return self._client


class History(Lazy):
    def client(self) -> Client:
        if self._client is None:
            self._client = Remembering("")
        return self._client


class FirstOnly(Lazy):
    def client(self) -> Client:
        if self._client is None:
            self._client = RememberingFirst("")
        return self._client


class HistoryProperty(Lazy):
    @functools.cached_property
    def seen(self) -> list[str]:
        return []

    def answer(self, prompt: str) -> str:
        self.seen.append(prompt)
        return " ".join(self.seen)


class OfState(Asked):
    def begin(self) -> None:
        super().begin()
        self.state: dict[str, str] = {}

    def answer(self, prompt: str) -> str:
        self.state["q"] = prompt
        found = self.client().ask(prompt)
        self.state.pop("q")
        return found

    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.state["q"])
        return self._client


class OfStateInline(OfState):
    def answer(self, prompt: str) -> str:
        self.state.update(q=prompt)
        if self._client is None:
            self._client = Client(self.state["q"])
        self.state.clear()
        return self._client.ask(prompt)

    client = None  # type: ignore[assignment]


STACK: list[str] = []


class OfGlobal(Asked):
    def answer(self, prompt: str) -> str:
        STACK.append(prompt)
        found = self.client().ask(prompt)
        STACK.pop()
        return found

    def client(self) -> Client:
        if self._client is None:
            self._client = Client(STACK[-1])
        return self._client


class OfSet(OfNoted):
    def answer(self, prompt: str) -> str:
        setattr(self, "prompt", prompt)  # noqa: B010
        found = self.client().ask(prompt)
        setattr(self, "prompt", "")  # noqa: B010
        return found


class OfSeveral(Asked):
    def small(self) -> Client:
        if self._client is None:
            self._client = Client("small")
        return self._client

    def big(self) -> Client:
        if self._client is None:
            self._client = Client("big")
        return self._client

    def answer(self, prompt: str) -> str:
        return (self.big() if "0" in prompt else self.small()).ask(prompt)


class OfChance(Asked):
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(str(random.random()))
        return self._client


FOLLOWING = [Lazy, Inline, SetUp, OfClass, Session, Property]
NOTING = [
    *(OfFirst, OfOptions, OfEither, OfNoted, Sticky, History, FirstOnly, HistoryProperty),
    *(OfState, OfStateInline, OfGlobal, OfSet, OfSeveral),
]
DECLARED = [{}, {"model": "mine"}]


@pytest.mark.parametrize("options", DECLARED, ids=["seen", "declared"])
@pytest.mark.parametrize("kind", FOLLOWING)
def test_what_is_made_when_it_is_needed_changes_nothing(stash, kind, options):
    for hits in (0, 2):
        lm = CachedLM(kind(), stash, **options)
        for more in (0, 2):  # with what was made by then, too
            assert lm.generate_until(generations(2)) == ["sys prompt 0", "sys prompt 1"]
            assert lm.counts.hits == hits + more


@pytest.mark.parametrize("kind", NOTING)
@pytest.mark.parametrize("options", DECLARED, ids=["seen", "declared"])
def test_what_takes_note_of_questions_is_not_kept(tmp_path, kind, options):
    import lmstash

    with lmstash.open(tmp_path / "s") as stash:
        for _ in range(2):
            lm = CachedLM(kind(), stash, **options)
            assert lm.generate_until(generations(3)) == kind().generate_until(generations(3))
            asked = generations(3)[::-1]
            lm = CachedLM(kind(), stash, **options)
            assert lm.generate_until(asked) == kind().generate_until(asked)
            assert lm.counts.hits == 0


def test_what_is_made_by_chance_is_not_taken_for_what_was_there(stash):
    answers: list[list[str]] = []
    for seed in range(2):
        random.seed(seed)
        lm = CachedLM(OfChance(), stash)
        answers.append(lm.generate_until(generations(3)))
        assert lm.counts.hits == 0
    assert {*answers[0]}.isdisjoint(answers[1])


def _set(lm: Any) -> None:
    lm._client.system = "x"


def _replace(lm: Any) -> None:
    lm._client = Client("x")


@pytest.mark.parametrize("change", [_set, _replace])
@pytest.mark.parametrize("options", DECLARED, ids=["seen", "declared"])
def test_what_a_program_changes_between_calls_counts_by_what_it_is(stash, change: Callable[[Any], None], options):
    own = Lazy()
    lm = CachedLM(own, stash, **options)
    assert lm.generate_until(generations(2))[0] == "sys prompt 0"
    change(own)
    assert lm.generate_until(generations(2))[0] == "x prompt 0"
    own._client = None
    assert lm.generate_until(generations(2))[0] == "sys prompt 0"
    assert lm.counts.hits == 2


class OfUrl(Lazy):
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.url)
        return self._client


def test_what_was_made_of_what_has_changed_since_counts_by_what_it_is(stash):
    own = OfUrl()
    lm = CachedLM(own, stash)
    assert lm.generate_until(generations(2))[0] == "a prompt 0"
    own.url = "b"
    for hits in (0, 2):  # asked by what was made before
        assert lm.generate_until(generations(2))[0] == "a prompt 0"
        assert lm.counts.hits == hits
    assert CachedLM(OfUrl(url="b"), stash).generate_until(generations(2))[0] == "b prompt 0"


class Prompted(Lazy):
    @functools.cached_property
    def prompt(self) -> str:
        with open(self.file) as file:
            return file.read()

    def answer(self, prompt: str) -> str:
        return f"{self.prompt} {prompt}"


@pytest.mark.parametrize("options", DECLARED, ids=["seen", "declared"])
def test_a_file_that_a_property_of_ones_own_has_read_counts(stash, tmp_path, options):
    file = tmp_path / "prompt.txt"
    for text, hits in (("one", 0), ("one", 2), ("two", 0), ("one", 2)):
        file.write_text(text)
        lm = CachedLM(Prompted(file=str(file)), stash, **options)
        assert lm.generate_until(generations(2)) == [f"{text} prompt {i}" for i in range(2)]
        assert lm.counts.hits == hits
    own = Prompted(file=str(Path(file)))
    lm = CachedLM(own, stash, **options)
    asked = generations(3)
    assert lm.generate_until(asked)[2] == "one prompt 2"
    file.write_text("two")
    assert lm.generate_until(asked)[2] == "one prompt 2"  # as it is held
    vars(own)["prompt"] = "three"
    assert lm.generate_until(asked)[2] == "three prompt 2"
    assert CachedLM(Prompted(file=str(file)), stash, **options).generate_until(asked)[2] == "two prompt 2"
