"""Settings of which one names a file: it counts where code asks for that one, or hands all of them on, and not else."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.caches.responses.conftest import library

import lmstash
from lmstash.caches.responses import Responses

START = """
import argparse, dataclasses, functools, json
from types import SimpleNamespace
from typing import NamedTuple
import lst_lib
"""
HOLDERS = {
    "a namespace": "cfg = SimpleNamespace(model='m', out='p.txt')",
    "arguments": "cfg = argparse.Namespace(model='m', out='sub/p.txt')",
    "a dict": "cfg = dict(model='m', out='p.txt')",
    "a dict of a library's": 'cfg = json.loads(\'{"model": "m", "out": "p.txt"}\')',
    "an object": "class Cfg:\n def __init__(self):\n  self.model = 'm'\n  self.out = 'p.txt'\ncfg = Cfg()",
    "an object, by defaults": (
        "class Cfg:\n def __init__(self, model='m', out='p.txt'):\n  self.model = model; self.out = out\ncfg = Cfg()"
    ),
    "a dataclass": "@dataclasses.dataclass\nclass Cfg:\n model: str = 'm'\n out: str = 'p.txt'\ncfg = Cfg()",
    "a dataclass, given": "@dataclasses.dataclass\nclass Cfg:\n model: str\n out: str\ncfg = Cfg('m', 'p.txt')",
    "a class": "class cfg:\n model = 'm'\n out = 'p.txt'",
    "an object of such a class": "class Cfg:\n model = 'm'\n out = 'p.txt'\ncfg = Cfg()",
    "a tuple": "class Cfg(NamedTuple):\n model: str = 'm'\n out: str = 'p.txt'\ncfg = Cfg()",
}
FIELD, ENTRY = (
    ("cfg.model", "cfg.out", "vars(cfg)", "c.out", "c.model"),
    (
        "cfg['model']",
        "cfg['out']",
        "cfg",
        "c['out']",
        "c['model']",
    ),
)
LEFT = {
    "asks for another one": "def ask(q): return {model}",
    "in a text": 'def ask(q): return f"{{model}}"',
    "in a helper": "def text(c): return {c_model}\ndef ask(q): return text(cfg)",
    "in a helper, by name": "def text(*, c): return {c_model}\ndef ask(q): return text(c=cfg)",
    "by another name": "def ask(q):\n c = cfg\n return {c_model}",
    "in a function within it": "def ask(q): return functools.partial(lambda: {model})()",
    "where there are some": "def ask(q): return {model} if cfg is not None else ''",
    "an object that holds them": (
        "class Run:\n def __init__(self): self.cfg = cfg\n def text(self): return self.{model}\nRUN = Run()\n"
        "def ask(q): return RUN.text()"
    ),
    "its method": (
        "class Run:\n def __init__(self): self.cfg = cfg\n def text(self): return self.also(self.cfg)\n"
        " def also(self, c): return {c_model}\nRUN = Run()\ndef ask(q): return RUN.text()"
    ),
    "a file of it is written": "def ask(q): return {model}\ndef save(text): open({out}, 'w').write(text)",
}
READ = {
    "asks for it": "def ask(q): return open({out}).read()",
    "in a helper": "def text(c): return open({c_out}).read()\ndef ask(q): return text(cfg)",
    "in a helper's": (
        "def text(c): return open({c_out}).read()\ndef also(x): return text(x)\ndef ask(q): return also(cfg)"
    ),
    "a library": "def ask(q): return lst_lib.read(cfg)",
    "a library, by a helper": "def text(c): return lst_lib.read(c)\ndef ask(q): return text(cfg)",
    "a library, by another name": "def ask(q):\n c = cfg\n return lst_lib.read(c)",
    "a library, by another global": "also = cfg\ndef ask(q): return {model}[:0] + lst_lib.read(also)",
    "a library, in a list": "def ask(q): return lst_lib.read([cfg][0])",
    "a library, by stars": "def ask(q): return lst_lib.read(*(cfg,))",
    "a library, one by one": "def ask(q): return lst_lib.take(**{all})",
    "a library, where there are some": "def ask(q): return lst_lib.read(cfg if q else None)",
    "a library, from a function": "def get(): return cfg\ndef ask(q): return lst_lib.read(get())",
    "a library, bound": "def ask(q): return functools.partial(lst_lib.read, cfg)()",
    "a library, in a lambda": "def ask(q): return (lambda: lst_lib.read(cfg))()",
    "a library, by a default": "def ask(q):\n def text(c=cfg): return lst_lib.read(c)\n return text()",
    "a library, in a dict": "def ask(q):\n d = {}\n d['c'] = cfg\n return lst_lib.read(d['c'])",
    "by any name": "def ask(q): return open({all}['o' + 'ut']).read()",
    "all of them": "def ask(q): return ''.join(open(each).read() for each in {all}.values() if each != 'm')",
    "all of them, in turn": (
        "def ask(q):\n for name, each in {all}.items():\n  if name != 'model': return open(each).read()"
    ),
    "an object that holds them": (
        "class Run:\n def __init__(self): self.cfg = cfg\n def text(self): return lst_lib.read(self.cfg)\nRUN = Run()\n"
        "def ask(q): return RUN.text()"
    ),
    "a library that has that": (
        "class Run:\n def __init__(self): self.cfg = cfg\nRUN = Run()\ndef ask(q): return lst_lib.read(RUN, 'cfg')"
    ),
    "its method": (
        "class Run:\n def __init__(self): self.cfg = cfg\n def text(self): return self.also(self.cfg)\n"
        " def also(self, c): return lst_lib.read(c)\nRUN = Run()\ndef ask(q): return RUN.text()"
    ),
    "a class of a library": (
        "class Run(lst_lib.Base):\n def text(self): return self.read(cfg)\ndef ask(q): return Run().text()"
    ),
}
ALSO = {
    "self": (
        "class Run:\n def __init__(self): self.model, self.out = 'm', 'p.txt'\n"
        " def text(self): return lst_lib.read(self)\nRUN = Run()\ndef ask(q): return RUN.text()"
    ),
    "self, in what it holds": (
        "class Part:\n def __init__(self): self.out = 'p.txt'\n def text(self): return lst_lib.read(self)\n"
        "class Run:\n def __init__(self): self.part = Part()\nRUN = Run()\ndef ask(q): return RUN.part.text()"
    ),
    "a partial": "def text(c): return lst_lib.read(c)\nRUN = functools.partial(text, cfg)\ndef ask(q): return RUN()",
    "a bound method": (
        "class Run:\n def __init__(self): self.cfg = cfg\n def text(self): return lst_lib.read(self.cfg)\n"
        "RUN = Run().text\ndef ask(q): return RUN()"
    ),
    "by stars": "def text(**given): return lst_lib.read(given['c'])\ndef ask(q): return text(c=cfg)",
    "an entry by a name": "KEY = 'ou' + 't'\ncfg = vars(cfg)\ndef ask(q): return open(cfg.get(KEY)).read()",
    "its locals": "def ask(q):\n c = cfg\n return lst_lib.read(locals()['c'])",
    "its module": "import sys\ndef ask(q): return lst_lib.read(sys.modules['program'], 'cfg')",
    "one object twice": (
        "class Run:\n def __init__(self, **held): vars(self).update(held)\nCFG = Run(out='p.txt', model='m')\n"
        "RUN = Run(cfg=CFG, part=Run(also=CFG))\ndef ask(q): return RUN.cfg.model[:0] + lst_lib.read(RUN.part, 'also')"
    ),
    "in a list": "LIST = [cfg, cfg]\ndef ask(q): return ''.join(lst_lib.read(c) for c in LIST)[:3]",
    "in a dict": "HELD = {'a': cfg}\ndef ask(q): return lst_lib.read(HELD['a'])",
    "in a dict, all": "HELD = {'a': cfg}\ndef ask(q): return [lst_lib.read(c) for c in HELD.values()][0]",
    "a property": (
        "class Run:\n def __init__(self): self.model, self.out = 'm', 'p.txt'\n @property\n def text(self):\n"
        "  return open(self.out).read()\nRUN = Run()\ndef ask(q): return RUN.text"
    ),
    "a base class": (
        "class Base:\n out = 'p.txt'\n def text(self): return lst_lib.read(self)\nclass Run(Base): model = 'm'\n"
        "RUN = Run()\ndef ask(q): return RUN.text()"
    ),
    "an object that its method makes": (
        "class Part:\n def __init__(self): self.out = 'p.txt'\nclass Run:\n def text(self): return lst_lib.read(Part())"
        "\nRUN = Run()\ndef ask(q): return RUN.text()"
    ),
    "an object of its base class that its method makes": (
        "class Base:\n def __init__(self): self.out = 'p.txt'\n def text(self): return lst_lib.read(Base())\n"
        "class Run(Base): pass\nRUN = Run()\nRUN.out = ''\ndef ask(q): return RUN.text()"
    ),
    "an object of a class that a dict holds": (
        "class Part:\n out = 'p.txt'\nclass Held: pass\nHELD = {'a': Part, 'b': Held()}\n"
        "def ask(q): return lst_lib.read(HELD['a']())"
    ),
    "an object of a class that is handed": (
        "class Part:\n def __init__(self): self.out = 'p.txt'\nclass Run:\n def __init__(self): self.make = Part\n"
        "RUN = Run()\ndef ask(q): return lst_lib.read(RUN.make())"
    ),
    "one object, in a partial, too": (
        "class Run:\n def __init__(self, **held): vars(self).update(held)\nCFG = Run(out='p.txt', model='m')\n"
        "RUN = Run(cfg=CFG, call=functools.partial(lst_lib.read, CFG))\n"
        "def ask(q): return RUN.cfg.model[:0] + RUN.call()"
    ),
    "a field whose name has a dot": (
        "cfg = SimpleNamespace(**{'v1.two': 'p.txt'})\ndef ask(q): return open(getattr(cfg, 'v1.two')).read()"
    ),
    "one of a queue": (
        "import collections\nQ = collections.deque([cfg])\n"
        "def ask(q):\n c = Q.popleft()\n Q.append(c)\n return lst_lib.read(c)"
    ),
    "an entry whose key has a dot": (
        "class Run:\n def __init__(self): self.names = {'v1.2': 'p.txt'}\n"
        " def text(self): return open(self.names['v1.2']).read()\nRUN = Run()\ndef ask(q): return RUN.text()"
    ),
    "a wrapper of a helper": (
        "def named(fn):\n @functools.wraps(fn)\n def called(c, q): return lst_lib.read(c) + fn(c, q)\n return called\n"
        "@named\ndef text(c, q): return c.model[:0]\ndef ask(q): return text(cfg, q)"
    ),
    "a static method": (
        "class Run:\n def __init__(self): self.cfg = cfg\n @staticmethod\n def read(c, q): return lst_lib.read(c)\n"
        " def text(self, q): return self.read(self.cfg, q)\nRUN = Run()\ndef ask(q): return RUN.text(q)"
    ),
    "a class that a helper makes one of": (
        "class Part:\n out = 'p.txt'\ndef made(kind): return kind()\ndef ask(q): return lst_lib.read(made(Part))"
    ),
    "a class by a longer name": "class Part:\n out = 'p.txt'\nMyPart = Part\ndef ask(q): return lst_lib.read(MyPart)",
    "a method of a class": (
        "class Part:\n out = 'p.txt'\n @classmethod\n def text(cls): return lst_lib.read(cls)\n"
        "def ask(q): return Part.text()"
    ),
    "another one of its class": (
        "class Run:\n def __init__(self, out='p.txt'): self.out = out\n"
        " def text(self): return lst_lib.read(self.__class__())\nRUN = Run('')\ndef ask(q): return RUN.text()"
    ),
    "a base class of a library": (
        "@dataclasses.dataclass\nclass Run(lst_lib.Settings):\n model: str = 'm'\n out: str = 'p.txt'\nRUN = Run()\n"
        "def ask(q): return lst_lib.take(**RUN.as_given())"
    ),
}
LIBRARY = """
def read(cfg, name=None):
    cfg = cfg if name is None else getattr(cfg, name)
    return open(cfg["out"] if isinstance(cfg, dict) else cfg.out).read()
def take(model, out): return open(out).read()
class Base:
    def read(self, cfg): return read(cfg)
class Settings:
    def as_given(self): return self.__dict__
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setitem(sys.modules, "program", ModuleType("program"))
    library(tmp_path, monkeypatch, "lst_lib", LIBRARY)


def program(holder: str, code: str) -> Any:
    """Return a program as a new module."""
    for name, each in zip(
        ("model", "out", "all", "c_out", "c_model"), ENTRY if "dict" in holder else FIELD, strict=True
    ):
        code = code.replace("{" + name + "}", each)
    module: Any = ModuleType("program")
    sys.modules["program"], module.__file__ = module, str(Path("program.py").resolve())
    exec(compile(f"{START}{HOLDERS[holder]}\n{code}", module.__file__, "exec"), vars(module))
    return module


def asked(folder: Path, holder: str, code: str) -> tuple[Any, int]:
    """Return what a program answers, as a new one, and how many answers were kept."""
    with lmstash.open(folder / "stash", strict=True) as stash:
        answer = stash.responses(model="m").cached(program(holder, code).ask)("q")
        return answer, stash.stats.hits


def write(text: str) -> None:
    for name in ("p.txt", "sub/p.txt"):
        Path(name).write_text(text)


@pytest.mark.parametrize("how", LEFT)
@pytest.mark.parametrize("holder", [each for each in HOLDERS if each != "a tuple"])
def test_a_file_that_nobody_asks_for_does_not_count(tmp_path: Path, holder: str, how: str) -> None:
    if holder == "a class" and "self" in LEFT[how]:
        pytest.skip("a class that an object holds counts whole")
    write("one")
    assert asked(tmp_path, holder, LEFT[how]) == ("m", 0)
    write("two")
    assert asked(tmp_path, holder, LEFT[how]) == ("m", 1)


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_file_counts_that_is_asked_for_or_may_be(tmp_path: Path, holder: str, how: str) -> None:
    if "{all}" in READ[how] and (holder == "a tuple" or holder.endswith(("a class", "such a class"))):
        pytest.skip("its `vars` are others")
    answer = functools.partial(asked, tmp_path, holder, READ[how])
    write("one")
    assert answer() == ("one", 0)
    write("two")
    assert answer() == ("two", 0)
    assert answer() == ("two", 1)


@pytest.mark.parametrize("how", ALSO)
def test_a_file_counts_wherever_its_name_may_be_asked_for(tmp_path: Path, how: str) -> None:
    answer = functools.partial(asked, tmp_path, "a namespace", ALSO[how])
    write("one")
    assert answer() == ("one", 0)
    write("two")
    assert answer() == ("two", 0)
    assert answer() == ("two", 1)


def test_a_constructor_that_reads_a_file_counts_wherever_it_was_written(responses: Responses) -> None:
    source = "class Text:\n def __init__(self): self.text = open('p.txt').read()\ndef ask(q): return Text().text"
    for text in ("one", "two"):
        write(text)
        made: dict[str, Any] = {"__name__": "program"}
        exec(source, made)  # in a file of the name that dataclasses give to what they write, as in `python -c`
        assert responses.cached(made["ask"])("q") == text


def test_files_count_that_are_in_arguments_by_stars(responses: Responses) -> None:
    for text in ("one", "two"):
        write(text)
        made = program("a namespace", "def ask(**given): return lst_lib.read(**given)")
        assert responses.cached(made.ask)(cfg=made.cfg) == text
        made = program(
            "a namespace",
            "def named(fn):\n @functools.wraps(fn)\n def called(*given): return lst_lib.read(given[0]) + fn(*given)\n"
            " return called\n@named\ndef ask(cfg): return ''",
        )
        assert responses.cached(made.ask)(made.cfg) == text


@pytest.mark.parametrize(
    ("holder", "harmless"),
    [
        *((each, name) for each in ("a namespace", "an object", "a dataclass") for name in ("cfg.out", "p.txt")),
        ("a dict", "p.txt"),
    ],
)
def test_a_field_or_its_file_may_be_said_to_be_harmless(responses: Responses, holder: str, harmless: str) -> None:
    for text in ("one", "two"):
        ask = responses.cached(program(holder, READ["a library"]).ask, harmless=[harmless])
        write(text)
        assert ask("q") == "one"
    assert responses.store.events.stats.hits == 1


def test_any_part_of_an_argument_may_be_said_to_be_harmless(responses: Responses) -> None:
    ask = responses.cached(lambda doc: doc["text"], harmless=["doc.id", "doc.about.seen"])
    assert [ask({"text": "a", "id": n, "about": {"seen": str(n), "by": 1}}) for n in range(2)] == ["a", "a"]
    assert responses.store.events.stats.hits == 1
    ask({"text": "a", "id": 0, "about": {"seen": "0", "by": 2}})
    assert responses.store.events.stats.hits == 1


@pytest.mark.parametrize("holder", ["a namespace", "a dict", "an object", "a dataclass"])
def test_arguments_count_likewise(responses: Responses, holder: str) -> None:
    def ask(code: str) -> Any:
        made = program(holder, code)
        return responses.cached(made.ask)(made.cfg)

    leaves, reads = "def ask(c): return {c_model}", "def ask(c): return lst_lib.read(c)"
    write("one")
    assert (ask(leaves), ask(reads)) == ("m", "one")
    write("two")
    assert (ask(leaves), ask(reads)) == ("m", "two")
    assert responses.store.events.stats.hits == 1
