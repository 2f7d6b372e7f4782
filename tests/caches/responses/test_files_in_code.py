"""Files that a function opens by a name in its own code: they count by what they hold; those it writes do not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import Responses
from lmstash.identity.files_in_code import FilesInCode

IMPORTS = """
import json, logging, os
from pathlib import Path
"""
READ = {
    "a name": ("", "return open('p.txt').read()"),
    "a name, for reading": ("", "with open('p.txt', 'r', encoding='utf-8') as file: return file.read()"),
    "a global": ("NAME = 'p.txt'", "return open(NAME).read()"),
    "a default": ("", "return text(question)", "def text(question, name='p.txt'): return open(name).read()"),
    "a helper": ("", "return text()", "def text(): return Path('p.txt').read_text()"),
    "a list": ("NAMES = {'judge': ['p.txt']}", "return open(NAMES['judge'][0]).read()"),
    "an attribute of a class": ("", "return open(Config.NAME).read()", "class Config:\n NAME = 'p.txt'"),
    "a variable": ("", "name = 'p.txt'; return open(name).read()"),
    "no suffix": ("", "return open('README').read()"),
    "beside the code": ("", "return (Path(__file__).parent / 'p.txt').read_text()"),
    "beside the code, joined": ("", "return open(os.path.join(os.path.dirname(__file__), 'sub', 'p.txt')).read()"),
    "a folder beside the code": ("HERE = Path(__file__).parent", "return (HERE / 'sub' / 'p.txt').read_text()"),
    "a folder's name": ("HERE = Path(__file__).parent", "return open(f'{HERE}/sub/p.txt').read()"),
    "the folder above": ("HERE = Path(__file__).parent / 'sub'", "return (HERE.parent / 'p.txt').read_text()"),
    "one of a folder": ("", "return open(f'sub/{question}.txt').read()"),
    "one of a folder, joined": ("", "return (Path('sub') / f'{question}.txt').read_text()"),
    "one of a global folder": ("SUB = Path('sub')", "return (SUB / f'{question}.txt').read_text()"),
    "one of a listed folder": ("SUB = Path('sub')", "return ''.join(each.read_text() for each in SUB.glob('p*'))"),
    "one of a folder beside the folder": (
        "HERE = Path(__file__).parent / 'other'",
        "return (HERE.parent / 'sub' / f'{question}.txt').read_text()",
    ),
    "by its name": ("HERE = Path('sub/../p.txt')", "return open(HERE.name).read()"),
    "a folder's plain name": ("SUB = 'sub'", "return open(os.path.join(SUB, 'p.txt')).read()"),
    "a folder's plain name, in a text": ("SUB = 'sub'", "return open(f'{SUB}/{question}.txt').read()"),
    "a folder's plain name, handed": (
        "SUB = 'sub'",
        "return text('p')",
        "def text(name): return open(os.path.join(SUB, name + '.txt')).read()",
    ),
    "a folder's plain name, as a path": ("SUB = 'sub'", "return (Path(SUB) / 'p.txt').read_text()"),
    "a folder that is a default": (
        "",
        "return text()",
        "def text(folder='sub'): return (Path(folder) / 'p.txt').read_text()",
    ),
    "a folder of a class": (
        "",
        "return open(os.path.join(Config.SUB, 'p.txt')).read()",
        "class Config:\n SUB = 'sub'",
    ),
    "a folder of settings": (
        "from types import SimpleNamespace\nCFG = SimpleNamespace(sub='sub', name='p.txt')",
        "return open(os.path.join(CFG.sub, CFG.name)).read()",
    ),
    "a folder of a dict": (
        "CFG = {'sub': 'sub', 'name': 'p.txt'}",
        "return open(os.path.join(CFG['sub'], CFG['name'])).read()",
    ),
    "beside the code, by pieces": (
        "",
        "return open(os.path.join(os.path.dirname(__file__), 'sub', question + '.txt')).read()",
    ),
    "one of a folder in a folder": ("HERE = Path('.')", "return (HERE / 'sub' / f'{question}.txt').read_text()"),
    "one of a folder in a folder, by text": (
        "HERE = os.path.abspath('.')",
        "return open(f'{HERE}/sub/{question}.txt').read()",
    ),
    "both written and read": ("", "text = open('p.txt').read(); open('p.txt', 'a').close(); return text"),
}
WRITTEN = {
    "a name": ("", "open('log.txt', 'a').write(question)"),
    "a name, in a block": ("", "with open('log.txt', mode='a') as file: file.write(question)"),
    "a global": ("LOG = 'log.txt'", "open(LOG, 'a').write(question)"),
    "a variable": ("", "name = 'log.txt'; open(name, 'a').write(question)"),
    "a path": ("LOG = Path('log.txt')", "LOG.open('a').write(question)"),
    "a path, in a block": ("LOG = Path('log.txt')", "with open(LOG, 'a') as file: json.dump(question, file)"),
    "all of a path": ("OUT = Path('log.txt')", "OUT.write_text(str(CALLS))"),
    "a path made there": ("", "Path('log.txt').write_text(str(CALLS))"),
    "in a folder": ("HERE = Path(__file__).parent", "(HERE / 'log.txt').open('a').write(question)"),
    "one of a folder": ("OUT = Path('out')", "OUT.mkdir(exist_ok=True); (OUT / f'{question}.txt').write_text('')"),
    "one of a folder by text": ("", "os.makedirs('out/', exist_ok=True); open(f'out/{question}.txt', 'w').close()"),
    "in a folder of a folder": (
        "OUT = Path('.')",
        "(OUT / 'out').mkdir(exist_ok=True)\n (OUT / 'out' / f'{question}.txt').write_text(str(len(CALLS)))",
    ),
    "by a variable": (
        "OUT = Path('out')",
        "OUT.mkdir(exist_ok=True)\n path = OUT / f'{question}.txt'\n path.write_text(str(len(CALLS)))",
    ),
    "a folder that is not gone by": (
        "class Config:\n OUT = Path('.')\n WORD = 'a'",
        "open('log.txt', 'a').write(Config.WORD)",
    ),
    "a folder of a settings object that is not gone by": (
        "from types import SimpleNamespace\nCFG = SimpleNamespace(out=Path('.'), word='a')",
        "open('log.txt', 'a').write(CFG.word)",
    ),
    "a word that is a folder's name, too": (
        "SPLIT = 'out'",
        "OUT = Path('out'); OUT.mkdir(exist_ok=True); (OUT / question).write_text(SPLIT)",
    ),
    "a log": ("", "logging.basicConfig(level=logging.INFO, filename='log.txt'); logging.info('a line')"),
    "a handler": ("", "logging.getLogger('program').addHandler(logging.FileHandler('log.txt'))"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, which is worked in."""
    folder = tmp_path / "project"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def ask_twice(folder: Path, before: str, body: str, *more: str) -> tuple[str, str]:
    """Run a program twice: what it answered first, and what it computed the second time."""
    calls: list[str] = []
    source = "\n".join([IMPORTS, before, *more, f"def ask(question):\n CALLS.append(question)\n {body}"])
    answers: list[Any] = []
    for _ in range(2):
        calls.clear()
        namespace: dict[str, Any] = {"__name__": "program", "__file__": str(folder / "program.py"), "CALLS": calls}
        exec(compile(source, namespace["__file__"], "exec"), namespace)
        with lmstash.open(folder.parent / "stash", strict=True) as stash:
            answers += map(stash.responses(model="m").cached(harmless=["CALLS"])(namespace["ask"]), ("p", "p", "q"))
    return answers[0], "".join(calls)


def write(folder: Path, text: str) -> None:
    for name in ("p.txt", "README", "sub/p.txt", "sub/q.txt"):
        (folder / name).write_text(text)


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "moved"])
def test_a_file_that_the_code_names_counts_by_what_it_holds(
    how: str, elsewhere: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "one")
    assert ask_twice(folder, *READ[how]) == ("one", "")
    write(folder, "two")
    assert ask_twice(folder, *READ[how]) == ("two", "")
    write(folder, "one")
    if elsewhere and not any(
        each in "".join(READ[how]) for each in ("__file__", "abspath")
    ):  # its place, which says something
        shutil.move(folder, folder.with_name("other"))
        folder = folder.with_name("other")
        monkeypatch.chdir(folder)
    (folder / "notes").write_text("something else")
    assert ask_twice(folder, *READ[how]) == ("one", "")
    assert kept(folder) == 4


def kept(folder: Path) -> int:
    with lmstash.open(folder.parent / "stash") as stash:
        return sum(1 for _ in stash.responses(model="m").find())


@pytest.mark.parametrize("how", WRITTEN)
def test_a_file_that_the_code_only_writes_does_not_count(how: str, folder: Path) -> None:
    before, body = WRITTEN[how]
    assert ask_twice(folder, before, f"{body}\n return question") == ("p", "")
    assert ask_twice(folder, before, f"{body}\n return question") == ("p", "")


def test_of_a_large_folder_nothing_is_said_but_that_it_changed(folder: Path) -> None:
    for number in range(300):
        (folder / "sub" / f"{number}.txt").write_text("one")
    text = "return open(f'sub/{len(question)}.txt').read()"
    assert ask_twice(folder, "", text) == ("one", "")
    (folder / "sub" / "1.txt").unlink()
    (folder / "sub" / "1.txt").write_text("two")
    assert ask_twice(folder, "", text) == ("two", "")
    assert ask_twice(folder, "SUB = Path('sub')", "return (SUB / f'{question}.txt').exists()") == (False, "ppq")


def test_data_that_names_many_files_costs_no_look_at_each(folder: Path) -> None:
    write(folder, "one")
    files = FilesInCode()
    files.see_value("DATA", [{"file": "sub/p.txt", "number": f"{number}.png"} for number in range(5000)])
    assert files.say() == {}
    files.see_value("CONFIG", {"file": "sub/p.txt"})
    assert {*files.say()} == {"sub/p.txt"}


def test_the_folder_of_a_stash_says_nothing(folder: Path) -> None:
    before = "SUB = Path('..')"
    assert ask_twice(folder, before, "return (SUB / f'{question}.txt').exists()") == (False, "")


def test_a_file_that_is_said_to_be_harmless_does_not_count(responses: Responses, folder: Path) -> None:
    calls: list[str] = []

    @responses.cached(harmless=["calls", "usage.db"])
    def ask(question: str) -> str:
        calls.append(question)
        return Path("usage.db").read_text() + Path("p.txt").read_text()

    for number, (usage, text) in enumerate((("1", "one"), ("2", "one"), ("2", "two"))):
        (folder / "usage.db").write_text(usage)
        (folder / "p.txt").write_text(text)
        assert ask("q") == ("1one", "1one", "2two")[number]
    assert len(calls) == 2
