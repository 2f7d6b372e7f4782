"""What a class of somebody's own holds: files that it names, paths, counters, words with another meaning elsewhere."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import subprocess
import sys
import types
from os import getenv as of
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

import lmstash
from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.identity import who_answers

from ..conftest import Scripted, echo, generations

pytest.importorskip("tenacity")
from lm_eval.api.model import LM
from lm_eval.models.api_models import TemplateAPI

PROMPT, PROMPT_NAME = Path("prompt.txt"), "prompt.txt"


class Own(TemplateAPI):
    """A class of somebody's own, which answers by itself."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(model="m", base_url="http://x/v1", tokenizer_backend=None, tokenized_requests=False)
        vars(self).update(attributes)

    def _create_payload(self, messages: Any, **options: Any) -> Any:
        return {}

    @staticmethod
    def parse_logprobs(outputs: Any, **options: Any) -> Any:
        return []

    @staticmethod
    def parse_generations(outputs: Any, **options: Any) -> Any:
        return []

    def generate_until(self, requests: list[Any], **options: Any) -> list[str]:
        return [f"{self.said()} {each.args[0]}" for each in requests]

    def said(self) -> Any:
        return ""


def _open(self: Any) -> str:
    with open(self.file) as file:
        return file.read()


def _open_default(self: Any, name: str = "prompt.txt") -> str:
    return Path(name).read_text()


def _note(self: Any) -> None:
    with open(self.file, "a") as file:
        file.write("a line")


READS: dict[str, Any] = {
    "open": _open,
    "Path": lambda self: Path(self.file).read_text(),
    "getattr": lambda self: Path(getattr(self, "file")).read_text(),  # noqa: B009
    "a path": lambda self: self.path.read_text(),
    "a path in an object": lambda self: self.more.path.read_text(),
    "a path among globals": lambda self: PROMPT.read_text(),
    "a text among globals": lambda self: Path(PROMPT_NAME).read_text(),
    "a text in the code": lambda self: Path("prompt.txt").read_text(),
    "a default": _open_default,
    "a dataclass": lambda self: Path(self.settings.file).read_text(),
}


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text("one")
    return tmp_path / "prompt.txt"


def model(said: Any, file: Path) -> Own:
    kind = type("Mine", (Own,), {"said": said, "__module__": __name__})
    path = Path(str(file))
    more = types.SimpleNamespace(path=Path(str(file)))
    return kind(file=str(file), path=path, more=more, settings=Settings(str(file)))


@dataclasses.dataclass
class Settings:
    file: str


@pytest.mark.parametrize("said", READS.values(), ids=READS)
def test_a_file_that_is_named_counts_by_what_it_holds(stash, file, said):
    for text, hits in (("one", 0), ("one", 2), ("two", 0), ("one", 2)):
        file.write_text(text)
        lm = CachedLM(model(said, file), stash)
        assert lm.generate_until(generations(2)) == [f"{text} prompt {i}" for i in range(2)]
        assert lm.counts.hits == hits, text


def test_a_file_that_is_named_counts_of_a_declared_model(stash, file):
    for text, computed in (("one", 2), ("one", 0), ("two", 2)):
        file.write_text(text)
        lm = CachedLM(model(_open, file), stash, model="mine")
        lm.generate_until(generations(2))
        assert lm.counts.computed == computed


@pytest.mark.parametrize("said", [_note, lambda self: self.path.open("a").close()], ids=["open", "Path.open"])
@pytest.mark.parametrize("options", [{}, {"model": "mine"}], ids=["seen", "declared"])
def test_a_file_that_is_only_written_to_does_not_count(stash, file, said, options):
    for hits in (0, 2):
        own = model(said, file)
        del own.more, own.settings
        lm = CachedLM(own, stash, **options)
        lm.generate_until(generations(2))
        assert lm.counts.hits == hits
        file.write_text(file.read_text() + "more")


@pytest.mark.parametrize("options", [{}, {"model": "mine"}], ids=["seen", "declared"])
def test_a_file_that_the_class_names_counts(stash, file, options):
    for text, computed in (("one", 2), ("one", 0), ("two", 2)):
        file.write_text(text)
        own = type("Mine", (Own,), {"said": _open, "__module__": __name__, "file": "prompt.txt"})()
        lm = CachedLM(own, stash, **options)
        assert lm.generate_until(generations(2)) == [f"{text} prompt {i}" for i in range(2)]
        assert lm.counts.computed == computed


def _imported(self: Any) -> str:
    sys.modules.pop(self.prompts, None)
    return importlib.import_module(self.prompts).TEXT


def test_a_module_that_an_attribute_names_counts_by_its_file(stash, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for text, computed in (("one", 2), ("one", 0), ("two", 2)):
        (tmp_path / "prompts_of_mine.py").write_text(f"TEXT = {text!r}")
        importlib.invalidate_caches()
        lm = CachedLM(
            type("Mine", (Own,), {"said": _imported, "__module__": __name__})(prompts="prompts_of_mine"), stash
        )
        assert lm.generate_until(generations(2)) == [f"{text} prompt {i}" for i in range(2)]
        assert lm.counts.computed == computed
    monkeypatch.delitem(sys.modules, "prompts_of_mine")


def test_the_environment_counts_whatever_it_is_called(stash, monkeypatch):
    for text, computed in (("one", 2), ("one", 0), ("two", 2)):
        monkeypatch.setenv("WORD_OF_MINE", text)
        lm = CachedLM(type("Mine", (Own,), {"said": lambda self: of("WORD_OF_MINE"), "__module__": __name__})(), stash)
        assert lm.generate_until(generations(2)) == [f"{text} prompt {i}" for i in range(2)]
        assert lm.counts.computed == computed


@pytest.mark.parametrize("name", ["_model", "_header", "tokenizer"])
@pytest.mark.parametrize("options", [{}, {"model": "mine"}], ids=["seen", "declared"])
def test_words_that_others_use_for_something_else_count(name, options):
    def look(value: Any) -> Any:
        return who_answers(Own(**{name: value}), **options).look()

    assert look("one") == look("one") != look("two")


def test_headers_of_a_declared_model_count_and_do_not_show():
    said = [who_answers(Own(_header={"X-Version": each}), model="mine").look() for each in ("one-1", "one-1", "two-2")]
    assert said[0] == said[1] != said[2]
    assert "one-1" not in str(said[0].components)


class Unborn(Own):
    """Calls the wrong class to be made."""

    def __init__(self) -> None:
        LM.__init__(self)


def test_a_class_that_is_not_made_as_the_harnesss_are_is_answered_for_and_not_cached(tmp_path, caplog):
    with lmstash.open(tmp_path / "s") as stash:
        assert CachedLM(Unborn(), stash).generate_until(generations(1)) == [" prompt 0"]
    assert any("nothing is cached for this evaluation: Unborn" in each.getMessage() for each in caplog.records)


class Breaking(Own):
    """Cannot be looked at once it has answered."""

    def said(self) -> Any:
        vars(self).pop("_header", None)
        vars(self).pop("base_url", None)
        return ""


def test_a_model_that_cannot_be_looked_at_any_more_answers_all_the_same(tmp_path):
    with lmstash.open(tmp_path / "s") as stash:
        lm = CachedLM(Breaking(), stash)
        for _ in range(2):
            assert lm.generate_until(generations(1)) == [" prompt 0"]
        assert lm.counts.hits == 0


def test_what_wraps_a_method_of_the_model_itself_is_read(stash):
    def make(more: int) -> Own:
        lm = Own()
        plain = lm._create_payload
        lm._create_payload = lambda *arguments, **options: {**plain(*arguments, **options), "more": more}
        return lm

    for more, hits in ((1, 0), (1, 2), (2, 0)):
        lm = CachedLM(make(more), stash)
        lm.generate_until(generations(2))
        assert lm.counts.hits == hits


class Templated(Own):
    def said(self) -> Any:
        return self.env.get_template("p").render()


def test_templates_that_were_made_so_far_do_not_count(stash, file):
    for text, hits in (("one", 0), ("one", 2), ("two", 0)):
        lm = CachedLM(Templated(env=jinja2.Environment(loader=jinja2.DictLoader({"p": text}))), stash)
        assert lm.generate_until(generations(2))[0] == f"{text} prompt 0"
        assert lm.counts.hits == hits
    file.with_name("p").write_text("one")
    for text in ("one", "two"):
        file.with_name("p").write_text(text)
        lm = CachedLM(Templated(env=jinja2.Environment(loader=jinja2.FileSystemLoader("."))), stash)
        assert lm.generate_until(generations(2))[0] == f"{text} prompt 0"


def test_a_generator_of_numpys_counts_by_its_state(tmp_path, caplog):
    seen = [who_answers(Own(rng=np.random.default_rng(seed))).look() for seed in (1, 1, 2)]
    assert seen[0] == seen[1] != seen[2]
    kind = type("Mine", (Own,), {"said": lambda self: self.rng.integers(9), "__module__": __name__})
    with lmstash.open(tmp_path / "s") as stash:
        CachedLM(kind(rng=np.random.default_rng(1)), stash).generate_until(generations(2))
    assert any("its attribute rng" in each.getMessage() for each in caplog.records if each.levelno == logging.WARNING)


def test_harmless_attributes_of_a_declared_model_do_not_count():
    def look(value: int) -> Any:
        lm = Scripted(echo)
        vars(lm)["run"] = value
        return who_answers(lm, model="m", harmless=["run"]).look()

    assert look(1) == look(2)


SEEDED = """
import sys
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.openai_completions import LocalChatCompletion
from lmstash.adapters.lm_eval.who.identity import who_answers

class Mine(TemplateAPI):
    def _create_payload(self, messages, **options): return {}
    @staticmethod
    def parse_logprobs(outputs, **options): return []
    @staticmethod
    def parse_generations(outputs, **options): return []

class Chat(LocalChatCompletion):
    def generate_until(self, requests, **options): return []

mine = Mine(model="m", base_url="http://x/v1", tokenizer_backend=None, tokenized_requests=False)
chat = Chat(base_url="http://x/v1/chat/completions", model="m")
print(who_answers(mine).look().hex, who_answers(chat).look().hex)
"""


def test_every_process_finds_a_class_of_ones_own_the_same(tmp_path):
    """Whatever order its sets have, and whatever others have generated code with hashes in it for."""
    said = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OPENAI_API_KEY": "x"}
        ran = subprocess.run(
            [sys.executable, "-c", SEEDED], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        said.add(ran.stdout.split("\n")[-2])
    assert len(said) == 1
