"""What can be told of a model that its owner declares."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.model import LM

import lmstash
from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.identity import who_answers

from ..conftest import generations


class Mine(LM):
    """A class of somebody's own, of which lmstash knows nothing."""

    def __init__(self, said: Any = None, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)
        if said is not None:
            self.__class__ = type("Mine", (type(self),), {"said": said, "__module__": __name__})

    def said(self, prompt: str) -> str:
        return prompt

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        return [self.said(each.args[0]) for each in requests]

    def loglikelihood(self, requests: list[Any], **options: Any) -> list[Any]:
        return []

    def loglikelihood_rolling(self, requests: list[Any], **options: Any) -> list[Any]:
        return []


@dataclasses.dataclass
class Settings:
    text: str = "one"


class Memory:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def add(self, prompt: str) -> str:
        self.seen.append(prompt)
        return " ".join(self.seen)


def _in_memory(self: Any, prompt: str) -> str:
    return self.memory.add(prompt)


def _in_list(self: Any, prompt: str) -> str:
    self.seen.append(prompt)
    return " ".join(self.seen)


def _noted_only(self: Any, prompt: str) -> str:
    self.n += 1
    self.stats["calls"] += 1
    self.seen.append(prompt)
    return prompt


def held_in(lm: Any) -> str:
    return Path(lm.prompt_file).read_text()


def _by_helper(self: Any, prompt: str) -> str:
    return held_in(self) + prompt


def _by_variable(self: Any, prompt: str) -> str:
    return os.environ["LM_SCALE"] + prompt


LIVE: dict[str, tuple[Any, Any, Any]] = {
    "text": (lambda: "one", lambda lm: setattr(lm, "held", "two"), lambda lm: lm.held),
    "dict": (lambda: {"t": "one"}, lambda lm: lm.held.update(t="two"), lambda lm: lm.held["t"]),
    "mixed": (lambda: {"t": "one", "f": len}, lambda lm: lm.held.update(t="two"), lambda lm: lm.held["t"]),
    "object": (Settings, lambda lm: setattr(lm.held, "text", "two"), lambda lm: lm.held.text),
    "set": (lambda: {"one"}, lambda lm: (lm.held.clear(), lm.held.add("two")), lambda lm: next(iter(lm.held))),
}


@pytest.mark.parametrize(("make", "change", "read"), LIVE.values(), ids=LIVE)
def test_what_an_attribute_holds_counts_as_it_is_now(stash, make, change, read):
    for hits in (0, 2):
        own = Mine(lambda self, prompt: read(self) + prompt, held=make())
        lm = CachedLM(own, stash, model="mine")
        assert lm.generate_until(generations(2)) == ["oneprompt 0", "oneprompt 1"]
        assert lm.counts.hits == hits
    change(own)
    assert lm.generate_until(generations(2)) == ["twoprompt 0", "twoprompt 1"]


@pytest.mark.parametrize(
    ("said", "attributes", "name"),
    [
        (_in_memory, lambda: {"memory": Memory()}, "memory"),
        (_in_list, lambda: {"seen": []}, "seen"),
        (_noted_only, lambda: {"n": 0, "stats": {"calls": 0}, "seen": []}, None),
    ],
    ids=["object", "list", "only noted"],
)
def test_a_history_is_not_kept_where_it_is_read(tmp_path, caplog, said, attributes, name):
    with lmstash.open(tmp_path / "s") as stash:
        for n in (2, 3):
            lm = CachedLM(Mine(said, **attributes()), stash, model="mine")
            assert lm.generate_until(generations(n)) == Mine(said, **attributes()).generate_until(generations(n))
        assert lm.counts.hits == (0 if name else 2)
    warned = [each.getMessage() for each in caplog.records if "model changed" in each.getMessage()]
    assert [f"harmless=['{name}']" in each for each in warned] == [True] * (name is not None)


def test_files_that_a_helper_reads_count(tmp_path, stash):
    for text, hits in (("one", 0), ("one", 2), ("two", 0)):
        (tmp_path / "prompt").write_text(text)
        lm = CachedLM(Mine(_by_helper, prompt_file=str(tmp_path / "prompt")), stash, model="mine")
        assert lm.generate_until(generations(2)) == [f"{text}prompt 0", f"{text}prompt 1"]
        assert lm.counts.hits == hits


def test_variables_that_its_code_reads_count(stash, monkeypatch):
    for text, hits in (("one", 0), ("one", 2), ("two", 0)):
        monkeypatch.setenv("LM_SCALE", text)
        lm = CachedLM(Mine(_by_variable), stash, model="mine")
        assert lm.generate_until(generations(2)) == [f"{text}prompt 0", f"{text}prompt 1"]
        assert lm.counts.hits == hits


def test_what_is_made_when_it_is_needed_changes_nothing(tmp_path):
    class Lazy(Mine):
        lock: Any

        @functools.cached_property
        def text(self) -> str:
            return "one"

        def said(self, prompt: str) -> str:
            self.lock = self.lock or threading.Barrier(1)
            return self.text + prompt

    with lmstash.open(tmp_path / "s") as stash:
        for hits in (0, 2):
            lm = CachedLM(Lazy(lock=None, client=functools.lru_cache(len)), stash, model="mine")
            lm.generate_until(generations(2))
            assert lm.counts.hits == hits


def test_attributes_in_slots_count():
    class Slotted(Mine):
        __slots__ = ("text",)

    def look(text: str) -> Any:
        lm: Any = Slotted()
        lm.text = text
        return who_answers(lm, model="mine").look()

    assert look("one") == look("one") != look("two")


def test_objects_of_packages_stand_by_their_class():
    one, other = (who_answers(Mine(held=["a", threading.Barrier(n)]), model="mine").look() for n in (1, 2))
    assert one == other != who_answers(Mine(held=["a", threading.Event()]), model="mine").look()
