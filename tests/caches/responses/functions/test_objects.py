"""Objects that a cached function is handed, or names, count by all that it sees of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmstash.caches.responses import Responses
from lmstash.stash import Stash

from ..conftest import made_program


def answered(responses: Responses, source: str, expressions: list[str]) -> list[Any]:
    """Return what a program's function answers to each value, twice, as it would say itself."""
    program = made_program(source)
    direct = program["ask"]
    ask = responses.cached(direct)
    said: list[Any] = []
    for expression in expressions:
        for _ in range(2):
            value = eval(expression, program)
            said.append(ask(value))
            assert said[-1] == direct(eval(expression, program)), expression
    return said


PYDANTIC = (
    "import pydantic\nclass A(pydantic.BaseModel):\n n: str = '1'\n stop: str | None = None\n"
    " @functools.cached_property\n def said(self): return self.n\ndef stale():\n a = A(n='1')\n a.said\n a.n = '2'\n"
    " return a\n"
)
APART = {
    "which fields of a pydantic model were given": (
        PYDANTIC + "def ask(x): return str(x.model_dump(exclude_unset=True))",
        ["A()", "A(n='1')", "A(n='1', stop=None)"],
    ),
    "of one within others": (
        PYDANTIC + "def ask(x): return str([each.model_dump(exclude_unset=True) for each in x['a']])",
        ["{'a': [A()]}", "{'a': [A(n='1')]}"],
    ),
    "what a pydantic model remembers": (PYDANTIC + "def ask(x): return x.said", ["A(n='2')", "stale()"]),
}

MEDIA = """
import io
import numpy as np
from PIL import Image, PngImagePlugin
def picture(kind='PNG', note='1', name=''):
    notes = PngImagePlugin.PngInfo()
    notes.add_text('parameters', note)
    notes.add_itxt('more', note)
    file = io.BytesIO()
    Image.new('RGB', (4, 4), 'red').save(file, kind, pnginfo=notes)
    image = Image.open(file)
    image.filename = name
    return image
"""
SEEN = {
    "a number of numpy's": ("def ask(x): return repr(x)", ["np.float64(1.5)", "np.array(1.5)", "1.5"]),
    "long bytes": ("def ask(x): return type(x).__name__", ["b'a' * 5000", "bytearray(b'a' * 5000)"]),
    "within others": ("def ask(x): return type(x['a'][0]).__name__", ["{'a': [np.int64(1)]}", "{'a': [np.array(1)]}"]),
    "the format of an image": (
        "def ask(x): return str(x.format)",
        ["picture()", "picture('BMP')", "picture().copy()", "Image.new('RGB', (4, 4), 'red')"],
    ),
    "the notes of an image": ("def ask(x): return x.info['parameters']", ["picture()", "picture(note='2')"]),
    "notes of another kind": (
        "def ask(x): return str.__str__(x.info['more']) + '.'",
        ["picture()", "picture(note='2')"],
    ),
    "the name of an image": ("def ask(x): return x.filename + '.'", ["picture(name='a')", "picture(name='b')"]),
    "what looks like one": (
        "def ask(x): return type(x).__name__",
        ["np.array(1)", "{'is': ['numpy.ndarray', np.array(1), None]}"],
    ),
}


@pytest.mark.parametrize("about", SEEN)
def test_media_count_by_their_class_and_by_what_lies_beside_the_pixels(
    responses: Responses, stash: Stash, about: str
) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    source, expressions = SEEN[about]
    answered(responses, MEDIA + source, expressions)
    assert stash.stats.hits >= len(expressions)
    assert sum(stash.stats.misses.values()) == stash.stats.misses["absent"]


PATHS = {
    "its name": ("def ask(x): return x.stem + x.read_text()", ["'a.txt'", "'b.txt'", "'other/a.txt'"]),
    "what lies beside it": ("def ask(x): return (x.parent / 'b.txt').read_text()", ["'a.txt'", "'other/a.txt'"]),
    "of a dataclass": (
        "@dataclasses.dataclass\nclass D:\n p: pathlib.Path\ndef ask(x): return x.p.name",
        ["'a.txt'", "'b.txt'"],
    ),
    "its class": ("def ask(x): return type(x).__name__", ["'a.txt'", "pathlib.PurePath('a.txt')"]),
    "one of a folder that is listed": (
        "def ask(x): return x.name",
        ["next(e for e in os.scandir('.') if e.name == n)".replace("n)", "'a.txt')"), "'a.txt'"],
    ),
    "that nothing is there": ("def ask(x): return str(x.exists())", ["'c.txt'", "'a.txt'"]),
    "an attribute of one of your own": (
        "class P(type(pathlib.Path())):\n pass\ndef p(n):\n p = P('a.txt')\n p.n = n\n return p\n"
        "def ask(x): return x.n",
        ["p('1')", "p('2')"],
    ),
}


@pytest.mark.parametrize("about", PATHS)
def test_a_path_counts_as_it_is_written_and_by_what_lies_there(
    responses: Responses, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.txt", "1"), ("b.txt", "1"), ("other/a.txt", "1"), ("other/b.txt", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    source, expressions = PATHS[about]
    wrap = "D(pathlib.Path({}))" if "class D" in source else "pathlib.Path({})"
    made = [wrap.format(each) if each.startswith("'") else each for each in expressions]
    answered(responses, "import pathlib\n" + source, made)
    assert (stash.stats.hits, dict(stash.stats.misses)) == (len(made), {"absent": len(made)})


def test_what_a_path_s_file_holds_counts(responses: Responses, tmp_path: Path) -> None:
    ask = responses.cached(made_program("def ask(x): return x.read_text()")["ask"])
    for text in ("one", "two"):
        (tmp_path / "a.txt").write_text(text)
        assert ask(tmp_path / "a.txt") == text


def test_of_a_folder_all_files_count_and_the_call_is_passed_on_where_they_are_too_many(
    responses: Responses, stash: Stash, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask = responses.cached(made_program("def ask(x): return (x / 'a.txt').read_text()")["ask"])
    for text in ("one", "two"):
        (tmp_path / "a.txt").write_text(text)
        assert ask(tmp_path) == ask(tmp_path) == text
    assert (stash.stats.hits, dict(stash.stats.misses)) == (2, {"absent": 2})
    for number in range(300):
        (tmp_path / f"{number}.txt").touch()
    assert ask(tmp_path) == ask(tmp_path) == "two"
    assert stash.stats.misses["unsupported"] == 2
    assert "is a folder of too many files" in caplog.text


@pytest.mark.parametrize("about", APART)
def test_objects_that_look_alike_are_told_apart(responses: Responses, stash: Stash, about: str) -> None:
    source, expressions = APART[about]
    answered(responses, source, expressions)
    assert (stash.stats.hits, dict(stash.stats.misses)) == (len(expressions), {"absent": len(expressions)})


def test_which_fields_of_a_global_were_given_counts(responses: Responses) -> None:
    program = made_program(PYDANTIC + "a = A()\ndef ask(x): return str(a.model_dump(exclude_unset=True))")
    ask = responses.cached(program["ask"])
    assert ask("x") == "{}"
    program["a"].n = "1"
    assert ask("x") == "{'n': '1'}"


def test_a_logger_of_loguru_says_nothing(responses: Responses, stash: Stash) -> None:
    loguru = pytest.importorskip("loguru")
    program = made_program("def ask(x):\n logger.debug('hi')\n return x")
    program["logger"] = loguru.logger
    ask = responses.cached(program["ask"])
    assert ask("x") == ask("x") == "x"
    assert stash.stats.hits == 1


KNOWN = {
    "methods": ("", "def ask(x): return x(' A ')", ["str.strip", "str.lower", "len", "'-'.join", "'+'.join"]),
    "functions of packages": (
        "import math\nimport numpy as np\n",
        "def ask(x): return float(x(4))",
        ["math.sqrt", "math.sin", "np.mean", "np.negative"],
    ),
    "a view of a dict": ("import types\n", "def ask(x): return x['a']", ["types.MappingProxyType({'a': n})"]),
    "types": (
        "from typing import *\nclass A: pass\nclass B: pass\n",
        "def ask(x): return str(x)",
        [
            *("list[int]", "List[int]", "Optional[int]", "int | None", "Literal['a']", "list[A]", "list[B]"),
            *("Annotated[int, 'a']", "Annotated[int, 'b']", "Callable[..., int]"),
        ],
    ),
    "times of pandas": (
        "import pandas as pd\n",
        "def ask(x): return str(x)",
        ["pd.Timestamp('2024-01-01')", "pd.Timestamp('2024-01-02')", "pd.Timestamp('2024-01-01', tz='UTC')"],
    ),
    "objects of attrs": (
        "import attrs\n@attrs.frozen\nclass A:\n a: int = 1\n@attrs.define\nclass B:\n a: int = 1\n",
        "def ask(x): return str(x)",
        ["A()", "A(2)", "B()", "B(2)"],
    ),
    "adapters of pydantic": (
        "import pydantic\n",
        "def ask(x): return x.validate_json('[1]')",
        ["pydantic.TypeAdapter(list[int])", "pydantic.TypeAdapter(list[float])"],
    ),
    "rows of datasets": (
        "import datasets\ndef row(n):\n kept = []\n data = datasets.Dataset.from_dict({'q': [n]})\n"
        " data.map(lambda each: kept.append(each))\n return kept[0]\n",
        "def ask(x): return x['q']",
        ["row('a')", "row('b')"],
    ),
}


@pytest.mark.parametrize("about", KNOWN)
def test_objects_that_go_by_a_name_or_say_what_they_are_made_of_are_told_apart(
    responses: Responses, stash: Stash, about: str
) -> None:
    imports, source, expressions = KNOWN[about]
    for package in ("numpy", "pandas", "attrs", "pydantic", "datasets"):
        if package in imports:
            pytest.importorskip(package)
    made = [each.replace("n}", f"{n}}}") for each in expressions for n in ("12" if "n}" in each else "1")]
    answered(responses, imports + source, made)
    assert (stash.stats.hits, dict(stash.stats.misses)) == (len(made), {"absent": len(made)})


def test_a_type_that_names_another_in_a_text_is_passed_on(responses: Responses, stash: Stash) -> None:
    ask = responses.cached(made_program("def ask(x): return str(x)")["ask"])
    ask(list["Item"])  # pyright: ignore[reportUndefinedVariable]  # noqa: F821
    assert stash.stats.misses["unsupported"] == 1


def test_methods_that_code_names_as_a_global_are_read(responses: Responses, stash: Stash) -> None:
    for steps, said in (("str.strip, str.lower", "a"), ("str.strip, str.upper", "A")):
        source = f"STEPS = [{steps}]\ndef ask(x):\n for each in STEPS: x = each(x)\n return x"
        ask = responses.cached(made_program(source)["ask"])
        assert ask(" a ") == ask(" a ") == said
    assert (stash.stats.hits, dict(stash.stats.misses)) == (2, {"absent": 2})


def test_the_model_whose_answers_are_kept_is_known_already(stash: Stash) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2).eval()
    program = made_program("import torch\ndef ask(x): return model(torch.tensor([1.0, x])).tolist()")
    program["model"] = model
    ask = stash.responses(model=model).cached(program["ask"])
    before = [ask(1.0), ask(1.0)]
    model.weight.data.mul_(2)
    assert ask(1.0) != before[0] == before[1]
    assert (stash.stats.hits, dict(stash.stats.misses)) == (1, {"absent": 2})


def test_secrets_of_pydantic_count_and_do_not_show(responses: Responses, stash: Stash, tmp_path: Path) -> None:
    source = "import pydantic\nclass S(pydantic.BaseModel):\n word: pydantic.SecretStr\n"
    program = made_program(f"{source}def ask(x): return str(len(x.word.get_secret_value()))")
    ask = responses.cached(program["ask"])
    for word in ("swordfish", "sesame", "swordfish"):
        assert ask(program["S"](word=word)) == str(len(word))
    stash.flush()
    assert stash.stats.hits == 1
    files = [each for each in (tmp_path / "stash").rglob("*") if each.is_file()]
    assert not any(b"swordfish" in each.read_bytes() for each in files)
