"""Models of somebody's own: what their code goes by counts, wherever it lies and whenever it changes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lmstash.adapters.lmms_eval import ResponseCache

_spec = importlib.util.spec_from_file_location("lmms_standins", Path(__file__).with_name("standins.py"))
assert _spec is not None
assert _spec.loader is not None
standins = sys.modules.setdefault("lmms_standins", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(standins)
Echo, Task, evaluate, questions = standins.Echo, standins.Task, standins.evaluate, standins.questions


class Asked(Echo):
    """Has each question answered by `one`; its code adds to nothing that it reads."""

    def answer(self, request: Any) -> Any:
        return str(self.one(request.args[0]))

    def one(self, question: str) -> Any:
        raise NotImplementedError


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "answers")


def program(body: str, before: str = "", begins: str = "pass") -> dict[str, Any]:
    """Return the globals of a program with a model class `Own`, whose `one` has this body."""
    sys.modules.setdefault("a_program", ModuleType("a_program"))  # dataclasses look there
    made: dict[str, Any] = {"__name__": "a_program", "Asked": Asked}
    code = f"{before}\nclass Own(Asked):\n def __init__(self):\n  super().__init__()\n  {begins}\n"
    exec(f"{code} def one(self, question):\n  {body}", made)
    return made


def ask(place: str, made: dict[str, Any], docs: list[Any] | None = None, **options: Any) -> tuple[list[Any], int]:
    return evaluate(place, made["Own"](), Task(docs or questions()), **options)


# --- what changes between two calls ---------------------------------------------------------------------------------

SWEPT = {
    "a namespace": ("from types import *\nC = SimpleNamespace(p='A')", "question + C.p", "C.p = {!r}"),
    "arguments": ("from argparse import *\nC = Namespace(p='A')", "question + C.p", "C.p = {!r}"),
    "a dataclass": (
        "from dataclasses import *\n@dataclass\nclass T:\n p: str = 'A'\nC = T()",
        "question + C.p",
        "C.p = {!r}",
    ),
    "deeper": ("class T: p = 'A'\nC = dict(a=[T()])", "question + C['a'][0].p", "C['a'][0].p = {!r}"),
    "an array": ("import numpy\nC = numpy.array([65])", "question + chr(C[0])", "C[0] = ord({!r})"),
    "a tensor": ("import torch\nC = torch.tensor([65])", "question + chr(C[0])", "C.data[0] = ord({!r})"),
}


@pytest.mark.parametrize("how", SWEPT)
def test_what_a_sweep_changes_among_the_globals_of_a_model_counts_at_once(how: str, place: str) -> None:
    before, said, change = SWEPT[how]
    if "torch" in before:
        pytest.importorskip("torch")
    made = program(f"return {said}", before)
    lm, task = made["Own"](), Task(questions())
    lm.task_dict["mini"] = {"test": task.docs}
    cache = ResponseCache(place, model="echo")
    for round_, value in enumerate("ABCABC"):
        exec(change.format(value), made)
        assert cache.execute(lm, "generate_until", task.requests()) == [f"Q{k}{value}" for k in range(10)]
        assert lm.n_asked == 10 * min(round_ + 1, 3)
