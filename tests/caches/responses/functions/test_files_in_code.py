"""Files that a function opens by a name in its own code: they count by what they hold; those it writes do not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.caches.responses import Responses
from lmstash.identity.code.files import FilesInCode
from lmstash.identity.content import held_files

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
    "a listed plain folder": ("SUB = 'sub'", "return ''.join(e.read_text() for e in sorted(Path(SUB).glob('p*')))"),
    "a plain folder, added to": ("SUB = 'sub'", "return open(SUB + '/p.txt').read()"),
    "a plain folder, added to by pieces": ("SUB = 'sub'", "return open(SUB + os.sep + question + '.txt').read()"),
    "a plain folder, joined by a method": ("SUB = 'sub'", "return Path(SUB).joinpath('p.txt').read_text()"),
    "a plain folder, kept meanwhile": ("SUB = 'sub'", "folder = Path(SUB); return (folder / 'p.txt').read_text()"),
    "a plain folder that is a default": (
        "",
        "return text(question)",
        "def text(name, folder='sub'): return open(folder + '/' + name + '.txt').read()",
    ),
    "a plain folder in a variable": ("", "d = 'sub'; return open(d + '/p.txt').read()"),
    "a plain folder of a namespace": (
        "from types import SimpleNamespace\nconf = SimpleNamespace(SUB='sub')",
        "return open(conf.SUB + '/p.txt').read()",
    ),
    "a plain folder, handed to a helper": (
        "SUB = 'sub'",
        "return text(SUB, 'p.txt')",
        "def text(d, name): return open(d + '/' + name).read()",
    ),
    "a plain folder, handed to a helper that joins": (
        "SUB = 'sub'",
        "return text(SUB, 'p.txt')",
        "def text(d, name): return (Path(d) / name).read_text()",
    ),
    "a plain folder, handed on twice": (
        "",
        "return text('p')",
        "def text(name): return text2('sub', name + '.txt')",
        "def text2(d, name): return open(os.path.join(d, name)).read()",
    ),
    "a plain folder, chosen": ("", "return open(('sub' if question else 'other') + '/p.txt').read()"),
    "filled in by %": ("", "return open('sub/%s.txt' % question).read()"),
    "filled in by % of several": ("", "return open('%s/%s.txt' % ('sub', question)).read()"),
    "filled in by format": ("", "return open('sub/{}.txt'.format(question)).read()"),
    "filled in by name": ("T = 'sub/{name}.txt'", "return open(T.format(name=question)).read()"),
    "filled in by name, a folder": ("D, T = 'sub', '{d}/{name}.txt'", "return open(T.format(d=D, name='p')).read()"),
    "a global filled in by %": ("T = 'sub/%s.txt'", "return open(T % question).read()"),
    "joined and filled in": ("", "return open(os.path.join('.', 'sub', '%s.txt' % question)).read()"),
    "replaced": ("", "return open('sub/NAME.txt'.replace('NAME', question)).read()"),
    "the beginning of a name": (
        "",
        "return open(f'{question[:0]}p.txt').read() + open(f'p{question[:0]}.txt').read()[:0]",
    ),
    "of a family of files": ("", "return open('p%s' % '.txt').read()"),
    "with another suffix": ("", "return Path('sub/p.md').with_suffix('.txt').read_text()"),
    "with another name": ("P = Path('sub/x.md')", "return P.with_name('p.txt').read_text()"),
    "a parent by its number": ("", "return (Path('sub/a/b').parents[1] / 'p.txt').read_text()"),
    "a folder that is changed to": (
        "",
        "here = os.getcwd(); os.chdir('sub'); text = open('p.txt').read(); os.chdir(here); return text",
    ),
    "nothing before the name": ("", "n = question.replace('q', 'p'); return open(f'{n}.txt').read()"),
    "nothing before the name, in a helper": (
        "",
        "return text('p')",
        "def text(name): return open(name + '.txt').read()",
    ),
    "within a folder's name": ("", "return open('{d}/p.txt'.replace('{d}', 'sub')).read()"),
    "by a helper that is called as a writer": (
        "",
        "return remove('sub/p.txt')",
        "def remove(path): return open(path).read()",
    ),
    "a folder handed to what remembers": (
        "import functools\n@functools.lru_cache\ndef env(d): return lambda n: open(os.path.join(d, n)).read()",
        "return env('sub')('p.txt')",
    ),
    "beside the program": (
        "import sys\nsys.argv[0] = os.path.abspath('main.py')",
        "return open(os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), 'sub', 'p.txt')).read()",
    ),
    "a pattern": ("import glob", "return ''.join(open(each).read() for each in sorted(glob.glob('sub/p*.txt')))"),
    "a pattern, joined": (
        "import glob\nD = 'sub'",
        "return ''.join(open(each).read() for each in glob.glob(os.path.join(D, 'p*')))",
    ),
    "of an object that is called": (
        "from functools import partial\ndef text(d, name): return open(os.path.join(d, name)).read()\n"
        "P = partial(text, 'sub')",
        "return P('p.txt')",
    ),
    "in the working folder, by name": ("", "return open(os.path.join(os.getcwd(), 'sub', question + '.txt')).read()"),
    "in the working folder, as a path": ("", "return (Path.cwd() / 'sub' / f'{question}.txt').read_text()"),
    "of a list of parts": ("PARTS = ['sub', 'p.txt']", "return open(os.path.join(*PARTS)).read()"),
    "of a variable of the environment": (
        "os.environ['LMSTASH_TEST_D'] = 'sub'",
        "return open(os.path.join(os.environ['LMSTASH_TEST_D'], 'p.txt')).read()",
    ),
    "in a class's folder": (
        "class S:\n def __init__(self, d): self.d = d\n def get(self, n): return open(f'{self.d}/{n}.txt').read()\n"
        "store = S('sub')",
        "return store.get('p')",
    ),
    "both written and read": ("", "text = open('p.txt').read(); open('p.txt', 'a').close(); return text"),
}
LOGGED = "def text(d, name): return open(os.path.join(d, name + '.txt')).read()"
"""A helper that is handed a folder; what is written there meanwhile takes nothing from that."""
READ |= {
    f"beside a file that is written, {name}": ("", f"{body}; return text('sub', 'p')", LOGGED)
    for name, body in {
        "a log": "open('sub/log', 'a').write(question)",
        "a log by a path": "Path('sub/log').open('a').write(question)",
        "a touched one": "Path('sub/done').touch()",
        "a folder": "os.makedirs('sub', exist_ok=True)",
        "a folder in it": "Path('sub/more/yet').mkdir(parents=True, exist_ok=True)",
        "a log of the program": "logging.basicConfig(level=logging.INFO, filename='sub/log'); logging.info('a line')",
    }.items()
} | {
    "one of a folder, beside a log": (
        "",
        "open('sub/usage.log', 'a').write(question); return open(f'sub/{question}.txt').read()",
    ),
    "one of a folder without a suffix, beside a log": (
        "",
        "open('sub/usage.log', 'a').write(question); return open(f'sub/{question + \".txt\"}').read()",
    ),
    "beside what is listed": (
        "import glob",
        "return ''.join(open(each[:-4] + '.txt').read() for each in glob.glob('sub/p.???')[:1])",
    ),
    "in another place of a variable": (
        "",
        "path = f'sub/{question}.md'; return open(path.replace('.md', '.txt')).read()",
    ),
    "that is written where there is none": (
        "",
        "path = f'sub/{question}.txt'\n if not os.path.exists(path): open('sub/p.txt', 'w').write('')\n"
        " return open(path).read()",
    ),
    "beside an output of another ending": (
        "",
        "os.makedirs('sub', exist_ok=True); open(f'sub/{len(CALLS)}.json', 'w').close()\n return text('sub', 'p')",
        LOGGED,
    ),
    "a variable whose name is handed on": (
        "",
        "return open(env('A_FILE')).read()",
        "def env(name): return os.environ.get(name)",
    ),
    "a variable whose name is a global": ("NAME = 'A_FILE'", "return open(os.environ[NAME]).read()"),
    "a variable whose name is put together": ("KIND = 'A'", "return open(os.environ[f'{KIND}_FILE']).read()"),
    "templates in a list": ("TS = ['{}/p.txt']", "return ''.join(open(each.format('sub')).read() for each in TS)"),
    "a template that is handed to a helper": (
        "",
        "return text('sub/{n}.txt', n='p')",
        "def text(template, **names): return open(template.format(**names)).read()",
    ),
    "a template of an object": (
        "class C:\n def __init__(self, path): self.path = path\nc = C('sub/{n}.txt')",
        "return open(c.path.format(n='p')).read()",
    ),
    "a file, beside a log that its object names": (
        "class C:\n def __init__(self): self.log = 'log.jsonl'\n def text(self, x):\n"
        "  with open(self.log, 'a') as file: file.write(x)\n  return open('sub/p.txt').read()\nc = C()",
        "return c.text(question)",
    ),
    "one of a folder, to which a helper adds": (
        "",
        "return text(f'sub/{question}')",
        "def text(name): return open(name + '.txt').read()",
    ),
    "a variable of the environment": ("", "return open(os.environ['A_FILE']).read()"),
    "a variable, handed to a helper": (
        "",
        "return text(os.getenv('A_FILE'))",
        "def text(name): return open(name).read()",
    ),
    "a folder in a variable": (
        "",
        "return text(os.environ.get('A_FOLDER') + '/p')",
        "def text(name): return open(name + '.txt').read()",
    ),
    "a variable in a path": ("", "return open(os.path.expandvars('$A_FOLDER/p.txt')).read()"),
    "what a variable is without": ("", "return open(os.environ.get('NO_FILE', 'p.txt')).read()"),
    "a global template": ("T = '{}/{}.txt'", "return open(T.format('sub', 'p')).read()"),
    "a global template with percents": ("T = '%s/%s'", "return open(T % ('sub', 'p.txt')).read()"),
    "a template in a dict": (
        "CFG = {'file': '{d}/{n}.txt', 'sub': 'sub'}",
        "return open(CFG['file'].format(d=CFG['sub'], n='p')).read()",
    ),
    "a template that is a default": (
        "",
        "return text('sub')",
        "def text(d, t='{}/p.txt'): return open(t.format(d)).read()",
    ),
    "a template filled from a dict": ("CFG = {'d': 'sub'}", "return open('{d}/p.txt'.format_map(CFG)).read()"),
    "another suffix": ("", "base, _ = os.path.splitext('sub/p.json'); return open(base + '.txt').read()"),
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
    "in a plain folder": (
        "",
        "os.makedirs('out', exist_ok=True)\n"
        " with open(os.path.join('out', f'{question}.json'), 'w') as file: json.dump(len(CALLS), file)",
    ),
    "in a global plain folder": (
        "OUT = 'out'",
        "os.makedirs(OUT, exist_ok=True); open(f'{OUT}/{question}.txt', 'w').write(str(len(CALLS)))",
    ),
    "in a global plain folder, joined": (
        "OUT = 'out'",
        "os.makedirs(OUT, exist_ok=True); open(os.path.join(OUT, question + '.txt'), 'w').write(str(len(CALLS)))",
    ),
    "in a plain folder by a path": (
        "",
        "Path('out').mkdir(exist_ok=True); (Path('out') / question).write_text(str(len(CALLS)))",
    ),
    "in a plain folder that is a default": (
        "",
        "save(question, str(len(CALLS)))",
        "def save(name, text, folder='out'):\n os.makedirs(folder, exist_ok=True)\n"
        " open(os.path.join(folder, name), 'w').write(text)",
    ),
    "in a plain folder, beside a helper that reads": (
        "OUT = 'out'",
        "os.makedirs(OUT, exist_ok=True); open(f'{OUT}/{question}.txt', 'w').write(str(len(CALLS))); text('p.txt')",
        "def text(path): return open(path).read() if os.path.exists(path) else ''",
    ),
    "by a variable of the environment": ("", "open(os.environ['A_LOG'], 'a').write(question)"),
    "a log": ("", "logging.basicConfig(level=logging.INFO, filename='log.txt'); logging.info('a line')"),
    "a handler": ("", "logging.getLogger('program').addHandler(logging.FileHandler('log.txt'))"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, which is worked in."""
    folder = tmp_path / "project"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name, path in {"A_FILE": "sub/p.txt", "A_FOLDER": "sub", "A_LOG": "log.txt"}.items():
        monkeypatch.setenv(name, path)
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


@pytest.mark.parametrize(
    "body",
    [
        "return open(os.path.join(given, 'p.txt')).read()",
        "return open(given + '/' + 'p' + '.txt').read()",
        "return (Path(given) / 'p.txt').read_text()",
        "return text(given, 'p.txt')\ndef text(d, name): return (Path(d) / name).read_text()",
    ],
)
def test_a_folder_that_is_an_argument_counts_by_what_the_code_reads_there(folder: Path, body: str) -> None:
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(f"{IMPORTS}\ndef ask(question, given): {body}", namespace)
    with lmstash.open(folder.parent / "stash", strict=True) as stash:
        ask = stash.responses(model="m").cached(namespace["ask"])
        for text in ("one", "two", "one"):
            write(folder, text)
            assert ask("q", "sub") == ask("q", given="sub") == text
        assert stash.stats.hits == 4


BESIDE = {
    "in its folder": "return (Path(p).parent / 'side.txt').read_text()",
    "in its folder, by functions": "return open(os.path.join(os.path.dirname(p), 'side.txt')).read()",
    "with another suffix": "return Path(p).with_suffix('.ann').read_text()",
    "with another suffix, split": "base, _ = os.path.splitext(p); return open(base + '.ann').read()",
    "with more behind": "return open(str(p) + '.meta').read()",
    "with less": "return open(str(p).removesuffix('.txt') + '.ann').read()",
}


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("how", BESIDE)
def test_a_file_beside_an_argument_counts(folder: Path, how: str, kind: Any) -> None:
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(f"{IMPORTS}\ndef ask(p): {BESIDE[how]}", namespace)
    (folder / "sub" / "a.txt").write_text("a")
    with lmstash.open(folder.parent / "stash", strict=True) as stash:
        ask = stash.responses(model="m").cached(namespace["ask"])
        for text in ("one", "two", "one"):
            for name in ("side.txt", "a.ann", "a.txt.meta"):
                (folder / "sub" / name).write_text(text)
            assert ask(kind("sub/a.txt")) == ask(kind("sub/a.txt")) == text
        assert stash.stats.hits == 4


@pytest.mark.parametrize(
    "body",
    [
        "return open(given.replace('images', 'labels').replace('.png', '.txt')).read()",
        "return Path(str(given).replace('images', 'labels')).with_suffix('.txt').read_text()",
    ],
)
def test_a_file_in_a_folder_beside_that_of_an_argument_counts(folder: Path, body: str) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "images" / "a.png").write_bytes(b"pixels")
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(f"{IMPORTS}\ndef ask(given): {body}", str(folder / "program.py"), "exec"), namespace)
    with lmstash.open(folder.parent / "stash", strict=True) as stash:
        ask = stash.responses(model="m").cached(namespace["ask"])
        for text, hits in (("cat", 0), ("dog", 1), ("cat", 2)):
            (folder / "labels" / "a.txt").write_text(text)
            assert ask("images/a.png") == ask("images/a.png") == text
            assert stash.stats.hits >= hits + 1


def test_files_above_the_working_folder_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"HERE = {str(folder)!r}"
    for text in ("one", "two"):
        write(folder, text)
        monkeypatch.chdir(folder / "sub")
        assert ask_twice(
            folder, source, "return open(f'{HERE}/{question}.txt').read() if question == 'p' else '-'"
        ) == (
            text,
            "",
        )


def test_what_one_reading_of_a_folder_leaves_out_counts_by_another(folder: Path) -> None:
    body = (
        "path = f'sub/{question}.md'\n if not os.path.exists(path): open(path, 'w').close()\n"
        " return open(f'sub/{question}.txt').read() + ''.join(map(text, sorted(glob.glob('sub/*.md'))))"
    )
    for text in ("one", "two"):
        write(folder, "p")
        for name in ("p.md", "q.md"):
            (folder / "sub" / name).write_text(text)
        helper = "def text(path): return open(path).read()"
        assert ask_twice(folder, "import glob", body, helper) == (f"p{text}{text}", "")


def test_a_folder_of_very_many_files_is_never_the_same_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held_files, "_MOST_STAMPS", 300)
    for number in range(400):
        (folder / "sub" / f"{number}.txt").write_text("one")
    for text in ("one", "two"):
        (folder / "sub" / "1.txt").write_text(text)
        assert ask_twice(folder, "", "return open(f'sub/{len(question)}.txt').read()")[0] == text
    assert "harmless=['sub']" in caplog.text


def test_an_edit_in_a_large_or_a_deep_folder_counts(folder: Path) -> None:
    for number in range(300):
        (folder / "sub" / f"{number}.txt").write_text("one")
    deep = folder / "sub" / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    for text, n_kept in (("one", 2), ("two!", 4)):
        (folder / "sub" / "1.txt").write_text(text)
        (deep / "x.txt").write_text(text)
        for _ in range(2):
            assert ask_twice(folder, "", "return open(f'sub/{len(question)}.txt').read()")[0] == text
        assert kept(folder) == n_kept


@pytest.mark.parametrize(
    "body",
    [
        "return resources.files('pk.sub').joinpath('p.txt').read_text()",
        "return (resources.files('pk') / 'sub' / 'p.txt').read_text()",
        "return (resources.files(pk) / 'sub' / 'p.txt').read_text()",
        "return resources.files('pk').joinpath('sub', f'{question}.txt').read_text()",
        "return resources.read_text('pk.sub', 'p.txt')",
        "import pkgutil; return pkgutil.get_data('pk', 'sub/p.txt').decode()",
    ],
)
def test_files_of_a_package_count(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lib" / "pk" / "sub").mkdir(parents=True)
    for each in ("__init__.py", "sub/__init__.py"):
        (folder / "lib" / "pk" / each).touch()
    monkeypatch.syspath_prepend(folder / "lib")
    for name in ("pk", "pk.sub"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for text, n_kept in (("one", 2), ("one", 2), ("two", 4), ("one", 4)):
        for name in ("p.txt", "q.txt"):
            (folder / "lib" / "pk" / "sub" / name).write_text(text)
        assert ask_twice(folder, "import pk\nfrom importlib import resources", body)[0] == text
        assert kept(folder) == n_kept


def kept(folder: Path) -> int:
    with lmstash.open(folder.parent / "stash") as stash:
        return sum(1 for _ in stash.responses(model="m").find())


@pytest.mark.parametrize("how", WRITTEN)
def test_a_file_that_the_code_only_writes_does_not_count(how: str, folder: Path) -> None:
    before, body, *more = WRITTEN[how]
    assert ask_twice(folder, before, f"{body}\n return question", *more) == ("p", "")
    assert ask_twice(folder, before, f"{body}\n return question", *more) == ("p", "")


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
    files.see_value("CONFIG", ["sub/p.txt"])
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
