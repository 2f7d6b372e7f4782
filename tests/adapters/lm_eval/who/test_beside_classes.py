"""Code of the harness beside its models' classes: what is edited or put there is seen, and a release is its version."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import lm_eval
import lm_eval.models.huggingface as harness
import lm_eval.models.utils as helpers
import pytest

from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.beside_classes import edited
from lmstash.adapters.lm_eval.who.code_of import class_of
from lmstash.adapters.lm_eval.who.identity import who_answers

from ..conftest import generations

PLAIN = harness.postprocess_generated_text


def mine(generation: str, *arguments: Any, word: str = "mine", **options: Any) -> str:
    return word


class Mine:
    """An object that is called in the place of a function."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, *arguments: Any, **options: Any) -> str:
        return self.word


REPLACED: dict[str, Callable[[], Any]] = {
    "function": lambda: mine,
    "closure": lambda: (lambda word: lambda *arguments, **options: word)("closure"),
    "partial": lambda: functools.partial(mine, word="partial"),
    "object": lambda: Mine("object"),
    "wrapper": lambda: functools.wraps(PLAIN)(lambda *arguments, **options: PLAIN(*arguments, **options) + "!"),
}


@pytest.mark.parametrize("make", REPLACED.values(), ids=REPLACED)
def test_a_function_that_is_put_into_a_module_of_the_harness_is_another_model(stash, hflm, monkeypatch, make):
    lm = CachedLM(hflm(), stash)
    plain = lm.generate_until(generations(2))
    monkeypatch.setattr(harness, "postprocess_generated_text", make())
    changed = lm.generate_until(generations(2))
    assert lm.counts.hits == 0
    assert changed != plain
    assert CachedLM(hflm(), stash).generate_until(generations(2)) == changed
    monkeypatch.undo()
    assert lm.generate_until(generations(2)) == plain
    assert (lm.counts.hits, lm.counts.computed) == (2, 4)


PAIRS: dict[str, Callable[[str], Any]] = {
    "closure": lambda word: lambda *arguments, **options: word,
    "partial": lambda word: functools.partial(mine, word=word),
    "object": Mine,
    "class": lambda word: type("Collator", (), {"word": word}),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_what_is_put_there_counts_with_all_that_it_holds(hflm, monkeypatch, make):
    who = who_answers(hflm())
    seen = []
    for word in ("a", "a", "b"):
        monkeypatch.setattr(harness, "Collator", make(word))
        seen.append(who.look())
    assert seen[0] == seen[1] != seen[2]


def test_a_helper_module_and_code_that_is_swapped_within_a_function_count(hflm, monkeypatch):
    who = who_answers(hflm())
    first = who.look()
    monkeypatch.setattr(helpers, "configure_pad_token", mine)
    assert who.look() != first
    monkeypatch.undo()
    assert who.look() == first
    function = FunctionType(PLAIN.__code__, PLAIN.__globals__, "postprocess_generated_text", PLAIN.__defaults__)
    monkeypatch.setattr(harness, "postprocess_generated_text", function)
    assert who.look() == first
    function.__code__ = mine.__code__
    assert who.look() != first


def test_a_release_as_it_was_published_is_its_version_alone(hflm):
    assert edited() == {}
    assert class_of(hflm(), vouched=False)[1].keys() == {"name", "lm_eval", "sources"}  # pyright: ignore[reportAttributeAccessIssue]


def test_an_edited_file_of_a_working_copy_counts_and_only_that(tmp_path):
    source = Path(str(lm_eval.__file__)).parent
    copy = tmp_path / "lm_eval"
    for name in ("models", "api", "tasks"):
        (copy / name).mkdir(parents=True)
    for name in ("*.py", "models/*.py", "api/*.py", "tasks/*.py"):
        for file in source.glob(name):
            shutil.copy(file, copy / file.relative_to(source))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import types; sys.modules['lm_eval'] = module = types.ModuleType('lm_eval')\n"
        f"module.__file__ = {str(copy / '__init__.py')!r}\n"
        "from lmstash.adapters.lm_eval.who.beside_classes import edited\n"
        "print(sorted(edited()))"
    )

    def run() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert run() == "[]"
    with (copy / "models/utils.py").open("a") as file:
        file.write("\n# edited\n")
    assert run() == "['models/utils.py']"
