"""A function that asks for sampling itself, `create(temperature=0.8)`, draws anew each time, as one that is told to."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest
from tests.caches.responses.conftest import made_program

import lmstash
from lmstash.caches.responses import Responses

START = """
N = []
def create(**given):
    N.append(given)
    return len(N)
"""
SAMPLED = {
    "a keyword": "def ask(q): return create(temperature=0.8, prompt=q)",
    "a whole number": "def ask(q): return create(temperature=1)",
    "a global": "T = 0.5\ndef ask(q): return create(temperature=T)",
    "a dict": "def ask(q): return create(**{'temperature': 0.8, 'prompt': q})",
    "a dict of one": "def ask(q):\n given = {'temperature': 0.8}\n return create(**given)",
    "another word for it": "def ask(q): return create(do_sample=True)",
    "a helper": "def draw(q): return create(temperature=0.8, prompt=q)\ndef ask(q): return draw(q)",
    "within it": "def ask(q): return (lambda: create(temperature=0.8))()",
    "beside another": "def ask(q, temperature=0): return create(temperature=0.8)",
    "a global dict": "GIVEN = {'temperature': 0.8}\ndef ask(q): return create(prompt=q, **GIVEN)",
    "a dict in a global": "ALL = {'gen': {'temperature': 0.8}}\ndef ask(q): return create(prompt=q, **ALL['gen'])",
    "a dict that goes on": "GIVEN = {'temperature': 0.8}\ndef ask(q): return create(body={**GIVEN, 'prompt': q})",
    "a body": "BODY = {'options': {'temperature': 0.8}}\ndef ask(q): return create(json=BODY)",
    "an entry": "GIVEN = {'temperature': 0.8}\ndef ask(q): return create(temperature=GIVEN['temperature'])",
    "an entry that is got": "GIVEN = {'t': 0.8}\ndef ask(q): return create(temperature=GIVEN.get('t', 0))",
    "a default that is got": "GIVEN = {'u': 1}\ndef ask(q): return create(temperature=GIVEN.get('t', 0.8))",
    "arguments of a program": (
        "import argparse\nargs = argparse.Namespace(temperature=0.8)\n"
        "def ask(q): return create(temperature=args.temperature)"
    ),
    "a setting of a class": "class C:\n HOT = 0.8\ndef ask(q): return create(temperature=C.HOT)",
    "settings": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n temperature: float = 0.8\nCFG = C()\n"
        "def ask(q): return create(temperature=CFG.temperature)"
    ),
    "parameters that are handed on": (
        "class Parameters:\n __slots__ = ('temperature',)\n def __init__(self, hot): self.temperature = hot\n"
        "P = Parameters(0.8)\ndef ask(q): return create(sampling=P)"
    ),
    "parameters made there, by place": (
        "class Parameters:\n def __init__(self, temperature): self.temperature = temperature\n"
        "def ask(q): return create(sampling=Parameters(0.8))"
    ),
    "a partial": (
        "import functools\ndraw = functools.partial(create, temperature=0.8)\ndef ask(q): return draw(prompt=q)"
    ),
    "a closure": (
        "def made(t):\n def draw(q): return create(temperature=t)\n return draw\ndraw = made(0.8)\n"
        "def ask(q): return draw(q)"
    ),
    "a variable": "def ask(q):\n t = 0.8\n return create(temperature=t)",
    "one of two": "HOT = True\ndef ask(q): return create(temperature=0.8 if HOT else 0)",
    "more each time": "def ask(q):\n for i in range(1): said = create(temperature=0.7 + 0.1 * i)\n return said",
    "text": "def ask(q): return create(temperature=float('0.8'))",
    "the environment": "import os\ndef ask(q): return create(temperature=float(os.getenv('HEAT', '0.8')))",
    "an argument": "def ask(q, t=0.8): return create(temperature=t)",
    "arguments of a program, handed": (
        "import argparse\ndef ask(q, args=argparse.Namespace(hot=0.8)): return create(temperature=args.hot)"
    ),
    "another name, by place": "def draw(q, t): return create(temperature=t)\ndef ask(q): return draw(q, 0.8)",
    "another name": "def draw(q, t=0): return create(temperature=t)\ndef ask(q): return draw(q, t=0.8)",
    "another name, twice": (
        "def draw(q, t): return create(temperature=t)\ndef pick(q, hot): return draw(q, hot)\n"
        "def ask(q): return pick(q, 0.8)"
    ),
    "a default by another name": "def draw(q, t=0.8): return create(temperature=t)\ndef ask(q): return draw(q)",
    "a copy": "GIVEN = {'temperature': 0.8}\ndef ask(q):\n given = GIVEN.copy()\n return create(**given)",
    "a dict and more": "GIVEN = {'temperature': 0.8}\ndef ask(q): return create(**dict(GIVEN, prompt=q))",
    "two dicts in one": "GIVEN = {'temperature': 0.8}\ndef ask(q): return create(**({'prompt': q} | GIVEN))",
    "an ordered dict": (
        "import collections\nGIVEN = collections.OrderedDict(temperature=0.8)\ndef ask(q): return create(**GIVEN)"
    ),
    "an attribute that is set": "class G: pass\ndef ask(q):\n g = G()\n g.temperature = 0.9\n return create(config=g)",
    "a tuple with names": (
        "import typing\nclass S(typing.NamedTuple):\n temperature: float = 0.8\nS = S()\n"
        "def ask(q): return create(temperature=S.temperature)"
    ),
    "getattr": (
        "import argparse\nargs = argparse.Namespace(temperature=0.8)\n"
        "def ask(q): return create(temperature=getattr(args, 'temperature', 0))"
    ),
    "a loop": "def ask(q):\n for t in (0.8,): said = create(temperature=t)\n return said",
    "a list of them": "HOT = [0.9]\ndef ask(q): return [create(temperature=t) for t in HOT][-1]",
    "a number of numpy": "import numpy\nT = numpy.float32(0.8)\ndef ask(q): return create(temperature=T)",
    "a thread": (
        "from concurrent.futures import ThreadPoolExecutor\ndef draw(q, t): return create(temperature=t)\n"
        "def ask(q):\n with ThreadPoolExecutor(1) as pool: return pool.submit(draw, q, 0.8).result()"
    ),
    "an object that is made there": (
        "class M:\n def __init__(self, temperature=0.8): self.temperature = temperature\n"
        " def draw(self): return create(temperature=self.temperature)\ndef ask(q): return M().draw()"
    ),
    "a default once": (
        "def draw(q, temperature=0.8): return create(temperature=temperature)\n"
        "def ask(q): return draw(q) if q else draw(q, temperature=0)"
    ),
    "a drawn seed": "import random\ndef ask(q): return create(temperature=0.8, seed=random.randint(0, 9))",
    "the time as a seed": "import time\ndef ask(q): return create(temperature=0.8, seed=int(time.time() * 1e6))",
    "an entry that is set": "def ask(q):\n given = {}\n given['temperature'] = 0.8\n return create(**given)",
    "a default": "def draw(q, temperature=0.8): return create(temperature=temperature)\ndef ask(q): return draw(q)",
    "by place": "def draw(q, temperature): return create(temperature=temperature)\ndef ask(q): return draw(q, 0.8)",
    "a method": "class M:\n def draw(self): return create(temperature=0.8)\nM = M()\ndef ask(q): return M.draw()",
    "an object that is called": (
        "class M:\n def __call__(self): return create(temperature=0.8)\nM = M()\ndef ask(q): return M()"
    ),
    "what an object holds": (
        "class M:\n def __init__(self): self.hot = 0.8\n def draw(self): return create(temperature=self.hot)\n"
        "M = M()\ndef ask(q): return M.draw()"
    ),
    "what an object was given": (
        "class M:\n def __init__(self, **given): self.given = given\n def draw(self): return create(**self.given)\n"
        "M = M(temperature=0.8)\ndef ask(q): return M.draw()"
    ),
    "an object in another": (
        "class M:\n def __init__(self, hot): self.hot = hot\n def draw(self): return create(temperature=self.hot)\n"
        "class Line:\n def __init__(self): self.llm = M(0.8)\n def go(self): return self.llm.draw()\n"
        "LINE = Line()\ndef ask(q): return LINE.go()"
    ),
    "a method's default": (
        "class M:\n def draw(self, q, temperature=0.8): return create(temperature=temperature)\n"
        "M = M()\ndef ask(q): return M.draw(q)"
    ),
    "no seed": "def ask(q): return create(temperature=0.8, seed=None)",
    "a dict behind two keywords": (
        "def ask(q):\n gen = {'temperature': 0.8}\n return create(prompt=q, model='m', **gen)"
    ),
    "a dict behind three keywords": (
        "class C:\n def __init__(self): self.opts = {'a': 1}\n"
        " def draw(self, q): return create(model='m', temperature=0.8, prompt=q, **self.opts)\n"
        "C = C()\ndef ask(q): return C.draw(q)"
    ),
    "a display around a dict": "gen = {'temperature': 0.8}\ndef ask(q): return create(json={'a': 1, 'b': q, **gen})",
    "what an object is made with there": (
        "class M:\n def __init__(self): self.given = dict(model='m', temperature=0.8)\n"
        " def draw(self): return create(**self.given)\ndef ask(q): return M().draw()"
    ),
    "an attribute that is made there": (
        "class M:\n def __init__(self): self.hot = 0.8\n def draw(self): return create(temperature=self.hot)\n"
        "def ask(q):\n m = M()\n return m.draw()"
    ),
    "the class above": (
        "class Top:\n def __init__(self, hot): self.hot = hot\n def draw(self): return create(temperature=self.hot)\n"
        "class M(Top):\n def __init__(self): super().__init__(0.8)\ndef ask(q): return M().draw()"
    ),
    "what is entered": (
        "class M:\n def __enter__(self):\n  self.said = create(temperature=0.8)\n  return self\n"
        " def __exit__(self, *_): pass\ndef ask(q):\n with M() as m: return m.said"
    ),
    "settings made there": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n model: str = 'm'\n temperature: float = 0.8\n"
        "def ask(q):\n c = C()\n return create(temperature=c.temperature)"
    ),
    "settings of pydantic made there": (
        "import pydantic\nclass C(pydantic.BaseModel):\n prompt: str = ''\n temperature: float = 0.8\n"
        "def ask(q): return create(json=C(prompt=q).model_dump())"
    ),
    "changed settings": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n model: str = 'm'\n hot: float = 0.8\nC = C()\n"
        "def ask(q): return create(temperature=dataclasses.replace(C, model='n').hot)"
    ),
    "what a function gives": "def chosen(): return 0.8\ndef ask(q): return create(temperature=chosen())",
    "a dict that a function gives": (
        "def given(hot): return {'temperature': hot}\ndef ask(q): return create(prompt=q, **given(0.8))"
    ),
    "what a property gives": (
        "class M:\n def __init__(self): self._hot = 0.8\n @property\n def hot(self): return self._hot\n"
        " def draw(self): return create(temperature=self.hot)\nM = M()\ndef ask(q): return M.draw()"
    ),
    "a dict that a property gives": (
        "class M:\n def __init__(self): self.hot = 0.8\n @property\n"
        " def given(self): return {'temperature': self.hot}\n"
        " def draw(self): return create(**self.given)\nM = M()\ndef ask(q): return M.draw()"
    ),
    "a loop over pairs": (
        "BY = {'m': 0.8}\ndef ask(q): return [create(model=m, temperature=t) for m, t in BY.items()][0]"
    ),
    "a loop over values": (
        "BY = {'m': 0.8}\ndef ask(q):\n for t in BY.values(): said = create(temperature=t)\n return said"
    ),
    "a numbered loop": (
        "HOT = [0.8]\ndef ask(q):\n for i, t in enumerate(HOT): said = create(temperature=t)\n return said"
    ),
    "a loop over two": (
        "HOT = [0.8]\ndef ask(q):\n for m, t in zip([q], HOT): said = create(temperature=t)\n return said"
    ),
    "each with each": (
        "import itertools\nHOT = [0.8]\n"
        "def ask(q):\n for m, t in itertools.product([q], HOT): said = create(temperature=t)\n return said"
    ),
    "what is unpacked": (
        "PAIR = ('m', 0.8)\ndef ask(q):\n model, hot = PAIR\n return create(model=model, temperature=hot)"
    ),
    "threads that map": (
        "from concurrent.futures import ThreadPoolExecutor\nHOT = [0.8]\n"
        "def ask(q):\n with ThreadPoolExecutor(1) as pool:\n"
        "  return [*pool.map(lambda t: create(temperature=t), HOT)][0]"
    ),
    "a text of it that is sent": (
        "import json\nBASE = {'temperature': 0.8}\n"
        "def ask(q):\n body = dict(BASE)\n body['prompt'] = q\n return create(data=json.dumps(body).encode())"
    ),
    "what is not None of it": (
        "GIVEN = {'temperature': 0.8, 'top_p': None}\n"
        "def ask(q): return create(**{k: v for k, v in GIVEN.items() if v is not None})"
    ),
    "a dict and what is given": (
        "GIVEN = {'temperature': 0.8}\ndef ask(q, **more): return create(prompt=q, **(GIVEN | more))"
    ),
    "what is set if nothing is": (
        "def ask(q, **given):\n given.setdefault('temperature', 0.8)\n return create(prompt=q, **given)"
    ),
    "hotter when it fails": (
        "def ask(q):\n for i in range(1, 2):\n  t = 0.0 if q else 0.3 * i\n  said = create(temperature=t)\n return said"
    ),
    "a default within it": "def ask(q):\n def draw(t=0.8): return create(temperature=t)\n return draw()",
    "an argument within it": "def ask(q):\n draw = lambda t: create(temperature=t)\n return draw(0.8)",
    "a variable around it": "def ask(q):\n t = 0.8\n def draw(): return create(temperature=t)\n return draw()",
    "the larger one": "T = 0.8\ndef ask(q): return create(temperature=max(T, 0.1))",
    "rounded": "T = 0.81\ndef ask(q): return create(temperature=round(T, 1))",
    "whether it is hot": "T = 0.8\ndef ask(q): return create(do_sample=T > 0)",
    "a text with spaces": "T = ' 0.8 '\ndef ask(q): return create(temperature=float(T.strip()))",
    "one of a class's words": (
        "import enum\nclass Heat(enum.Enum):\n HOT = 0.8\ndef ask(q): return create(temperature=Heat.HOT.value)"
    ),
    "some of a pydantic model": (
        "import pydantic\nclass C(pydantic.BaseModel):\n temperature: float = 0.8\nC = C()\n"
        "def ask(q): return create(**C.model_dump(exclude_none=True))"
    ),
    "what is taken out, or else": (
        "def draw(q, **given):\n t = given.pop('temperature', 0.8)\n return create(prompt=q, temperature=t, **given)\n"
        "def ask(q): return draw(q)"
    ),
    "pairs": "KEYS = ('temperature',)\ndef ask(q): return create(**dict(zip(KEYS, (0.8,))))",
    "a grid": (
        "import itertools\nGRID = {'temperature': [0.8], 'top_p': [1]}\n"
        "def ask(q): return [create(**dict(zip(GRID, c))) for c in itertools.product(*GRID.values())][0]"
    ),
    "a dict that is filled": (
        "CFG = {'temperature': 0.8}\ndef ask(q):\n p = {}\n for k, v in CFG.items():\n  if v is not None: p[k] = v\n"
        " return create(**p)"
    ),
    "a dict that is given back": (
        "def given(**over):\n p = dict(model='m', temperature=0.7)\n p.update(over)\n return p\n"
        "def ask(q): return create(json=given(top_p=1))"
    ),
    "a dict that a thread gives back": (
        "from concurrent.futures import ThreadPoolExecutor\ndef given():\n p = {'temperature': 0.8}\n return p\n"
        "def ask(q):\n with ThreadPoolExecutor(1) as pool: return create(**pool.submit(given).result())"
    ),
    "a dict that is awaited": (
        "import asyncio\nasync def given():\n p = {'temperature': 0.8}\n return p\n"
        "async def draw(): return create(**(await given()))\ndef ask(q): return asyncio.run(draw())"
    ),
    "a dict of a register": (
        "BY = {}\ndef add(f):\n BY[f.__name__] = f\n return f\n@add\ndef hot():\n p = {'temperature': 0.8}\n return p\n"
        "def ask(q, name='hot'): return create(**BY[name]())"
    ),
    "a dict that a property gives once": (
        "import functools\nclass M:\n @functools.cached_property\n def given(self):\n"
        "  p = {'temperature': 0.8}\n  return p\n"
        " def draw(self): return create(**self.given)\ndef ask(q): return M().draw()"
    ),
    "a dict in a list": "def ask(q):\n all = []\n p = {'temperature': 0.8}\n all.append(p)\n return create(**all[0])",
    "a text of it, later": (
        "import json\ndef ask(q):\n p = {'temperature': 0.8}\n body = json.dumps(p)\n return create(data=body)"
    ),
    "a method by its name": (
        "class M:\n def hot(self): return create(temperature=0.8)\nM = M()\ndef ask(q): return getattr(M, 'hot')()"
    ),
    "a dict that is made hot": "def ask(q):\n p = {'temperature': 0}\n p.update(temperature=0.8)\n return create(**p)",
    "a thread of its own": (
        "import threading\ndef draw(q, t, out): out.append(create(temperature=t))\n"
        "def ask(q):\n out = []\n one = threading.Thread(target=draw, args=(q, 0.8, out))\n one.start()\n one.join()\n"
        " return out[0]"
    ),
    "threads that map pairs": (
        "from multiprocessing.pool import ThreadPool\ndef draw(q, t): return create(temperature=t)\n"
        "def ask(q):\n with ThreadPool(1) as pool: return pool.starmap(draw, [(q, 0.8)])[0]"
    ),
    "a field by its factory": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n"
        " given: dict = dataclasses.field(default_factory=lambda: {'temperature': 0.8})\n"
        "def ask(q): return create(**C().given)"
    ),
    "a range": "def ask(q): return [create(temperature=i / 10) for i in range(1, 2)][0]",
    "from far": "".join(f"def f{i}(q, t): return f{i + 1}(q, t)\n" for i in range(40))
    + "def f40(q, t): return create(temperature=t)\ndef ask(q): return f0(q, 0.8)",
    "in a circle": (
        "def a(q, t, n=0): return b(q, t, n)\ndef b(q, t, n):\n said = create(temperature=t)\n"
        " return a(q, t, n + 1) if n > 9 else said\ndef ask(q): return a(q, 0.8)"
    ),
    "a key by name": "KEY = 'temperature'\ndef ask(q): return create(json={KEY: 0.8, 'prompt': q})",
    "a dict with defaults": (
        "import collections\nGIVEN = collections.defaultdict(int, temperature=0.8)\ndef ask(q): return create(**GIVEN)"
    ),
    "a generator": (
        "def heats():\n yield 0.8\ndef ask(q):\n for t in heats(): said = create(temperature=t)\n return said"
    ),
    "a generator of another's": (
        "def heats():\n yield from (0.8,)\ndef ask(q): return [create(temperature=t) for t in heats()][0]"
    ),
    "a generator that is one expression": (
        "def ask(q): return [create(temperature=t) for t in (n / 10 for n in (8,))][0]"
    ),
    "the next": "def ask(q): return create(temperature=next(t for t in (0.8, 0.9) if t))",
    "one of several": "import random\ndef ask(q): return create(temperature=random.choice([0.7, 0.8]))",
    "a part of several": (
        "T = (0, 0.8)\ndef ask(q):\n first, *rest = T\n return [create(temperature=t) for t in rest][0]"
    ),
    "the last of several": "T = (0, 0, 0.8)\ndef ask(q):\n *rest, last = T\n return create(temperature=last)",
    "an array": (
        "import numpy as np\nT = np.linspace(0.8, 0.8, 1)\ndef ask(q): return [create(temperature=t) for t in T][0]"
    ),
    "an entry of an array": (
        "import numpy as np\nT = np.arange(0, 1, 0.1)\ndef ask(q): return create(temperature=float(T[8]))"
    ),
    "an array that is handed": (
        "import numpy as np\ndef draw(q, ts): return [create(temperature=float(t)) for t in ts][0]\n"
        "T = np.array([0.8])\ndef ask(q): return draw(q, T)"
    ),
    "a list of an array": (
        "import numpy as np\nT = np.array([0.8])\ndef ask(q): return [create(temperature=t) for t in T.tolist()][0]"
    ),
    "a column": ("import pandas as pd\nT = pd.Series([0.8])\ndef ask(q): return [create(temperature=t) for t in T][0]"),
    "numbers in between": (
        "import numpy as np\ndef ask(q): return [create(temperature=t) for t in np.linspace(0.5, 1, num=1)][0]"
    ),
    "numbers in steps": (
        "import numpy as np\ndef ask(q): return [create(temperature=t) for t in np.arange(0.8, 1, 0.3)][0]"
    ),
    "a column of a table": (
        "import pandas as pd\nT = pd.DataFrame({'n': ['a'], 'hot': [0.8]})\n"
        "def ask(q): return [create(temperature=t) for t in T['hot']][0]"
    ),
    "rows of a table": (
        "import pandas as pd\nT = pd.DataFrame({'n': ['a'], 'hot': [0.8]})\n"
        "def ask(q): return [create(temperature=t.hot) for t in T.itertuples()][0]"
    ),
    "rows of a table, and where": (
        "import pandas as pd\nT = pd.DataFrame({'n': ['a'], 'hot': [0.8]})\n"
        "def ask(q): return [create(temperature=t['hot']) for _, t in T.iterrows()][0]"
    ),
    "rows of a table, as dicts": (
        "import pandas as pd\nT = pd.DataFrame({'n': ['a'], 'hot': [0.8]})\n"
        "def ask(q): return [create(temperature=t['hot']) for t in T.to_dict('records')][0]"
    ),
}
NOT = {
    "a dict that is made greedy": (
        "OVER = {'temperature': 0}\ndef ask(q):\n p = dict(model='m', temperature=0.7)\n p.update(OVER)\n"
        " return create(**p)"
    ),
    "a dict that is made greedy and given back": (
        "def given(**over):\n p = dict(model='m', temperature=0.7)\n p.update(over)\n return p\n"
        "def ask(q): return create(**given(temperature=0))"
    ),
    "a display that is made greedy": (
        "def ask(q):\n p = {'temperature': 0.7}\n p.update(temperature=0)\n return create(json=p)"
    ),
    "what is set if nothing is, greedily given": (
        "def draw(q, **given):\n given.setdefault('temperature', 0.7)\n return create(prompt=q, **given)\n"
        "def ask(q): return draw(q, temperature=0)"
    ),
    "another object's method of that name": (
        "class A:\n def draw(self, t=0.9): return create(temperature=t)\n"
        "class B:\n def draw(self, t=0): return create(temperature=t)\n"
        "class App:\n def __init__(self): self.a, self.b = A(), B()\n def judge(self): return self.b.draw()\n"
        " def write(self): return self.a.draw()\nAPP = App()\ndef ask(q): return APP.judge()"
    ),
    "a dict behind keywords": "def ask(q, **more): return create(temperature=0, prompt=q, **more)",
    "a helper that hands on": (
        "def draw(q, model='m', **more): return create(model=model, temperature=0, prompt=q, **more)\n"
        "def ask(q): return draw(q)"
    ),
    "a helper with defaults": (
        "GIVEN = {'temperature': 0.8}\ndef draw(q, **more): return create(prompt=q, **{**GIVEN, **more})\n"
        "def ask(q): return draw(q, temperature=0)"
    ),
    "an object that is made greedy": (
        "class M:\n def __init__(self, temperature=0.8): self.temperature = temperature\n"
        " def draw(self): return create(temperature=self.temperature)\ndef ask(q): return M(temperature=0).draw()"
    ),
    "a class that is only looked at": (
        "class M:\n def __init__(self, hot=0.8): self.said = create(temperature=hot)\n"
        "def ask(q): return create(temperature=0) if not isinstance(q, M) else 0"
    ),
    "what is logged": (
        "import json\nCFG = {'temperature': 0.8}\n"
        "def ask(q):\n name = json.dumps(CFG, sort_keys=True)\n return create(temperature=0, prompt=name)"
    ),
    "a loop over cold ones": "BY = {'m': 0}\ndef ask(q): return [create(temperature=t) for m, t in BY.items()][0]",
    "whether it is cold": "T = 0\ndef ask(q): return create(do_sample=T > 0)",
    "what a greedy function gives": "def chosen(): return 0\ndef ask(q): return create(temperature=chosen())",
    "greedy": "def ask(q): return create(temperature=0)",
    "greedy, by a global": "T = 0.0\ndef ask(q): return create(temperature=T)",
    "a seed": "def ask(q): return create(temperature=0.8, seed=3)",
    "a seed that is an argument": "def ask(q, number=1): return create(temperature=0.8, seed=number)",
    "the weather": "def ask(q): return create(temperature=21.5)",
    "another word": "def ask(q): return create(do_sample=False, n=3)",
    "nobody knows": "import random\ndef ask(q): return create(temperature=random.choice([0, 0]))",
    "zero under another name": "def draw(q, t): return create(temperature=t)\ndef ask(q, t=0): return draw(q, t)",
    "zero from the environment": "import os\ndef ask(q): return create(temperature=float(os.getenv('HEAT', '0')))",
    "another dict": (
        "ALL = {'gen': {'temperature': 0.8}, 'judge': {'temperature': 0}}\ndef ask(q): return create(**ALL['judge'])"
    ),
    "another setting": (
        "import argparse\nargs = argparse.Namespace(temperature=0.8, judge='m')\n"
        "def ask(q): return create(model=args.judge, temperature=0)"
    ),
    "a default that is not taken": (
        "def draw(q, temperature=0.8): return create(temperature=temperature)\n"
        "def ask(q): return draw(q, temperature=0)"
    ),
    "a default that is not taken, by place": (
        "def draw(q, temperature=0.8): return create(temperature=temperature)\ndef ask(q): return draw(q, 0)"
    ),
    "a default that is not taken, by an argument": (
        "def draw(q, temperature=0.8): return create(temperature=temperature)\n"
        "def ask(q, temperature=0.0): return draw(q, temperature=temperature)"
    ),
    "a seed beside": "GIVEN = {'temperature': 0.8, 'seed': 1}\ndef ask(q): return create(**GIVEN)",
    "another object": (
        "class M:\n def __init__(self, hot): self.hot = hot\n def draw(self): return create(temperature=self.hot)\n"
        "class Line:\n def __init__(self): self.vote, self.cold = M(0.8), M(0)\n"
        " def go(self): return self.cold.draw()\n"
        "LINE = Line()\ndef ask(q): return LINE.go()"
    ),
    "what is handed to one's own code": (
        "import argparse\nargs = argparse.Namespace(temperature=0.8, judge_temperature=0)\n"
        "def judge(q, args): return create(temperature=args.judge_temperature)\ndef ask(q): return judge(q, args)"
    ),
    "what is printed": (
        "import json, logging\nCFG = {'temperature': 0.8}\n"
        "def ask(q):\n json.dumps(CFG)\n logging.info('%s', CFG)\n return create(temperature=0)"
    ),
    "a partial that is greedy": (
        "import functools\ndef draw(q, temperature=0.8): return create(temperature=temperature)\n"
        "greedy = functools.partial(draw, temperature=0)\ndef ask(q): return greedy(q)"
    ),
    "what is said otherwise in the call": (
        "BASE = {'temperature': 0.8}\ndef ask(q): return create(**{**BASE, 'temperature': 0})"
    ),
    "an entry that is set otherwise": (
        "BASE = {'temperature': 0.8}\n"
        "def ask(q):\n given = dict(BASE)\n given['temperature'] = 0\n return create(**given)"
    ),
    "what stands for None": (
        "class M:\n temperature = 0.8\n def draw(self, q, temperature=None):\n"
        "  t = self.temperature if temperature is None else temperature\n  return create(temperature=t)\n"
        "M = M()\ndef ask(q): return M.draw(q, temperature=0)"
    ),
    "one of two models": (
        "class M:\n def __init__(self, hot): self.hot = hot\n def draw(self): return create(temperature=self.hot)\n"
        "MODELS = {'writer': M(0.8), 'judge': M(0)}\ndef ask(q): return MODELS['judge'].draw()"
    ),
    "greedy in transformers": "def ask(q): return create(do_sample=False, temperature=0.7)",
    "what scales scores": (
        "def scaled(x, temperature=1.5): return x / temperature\ndef ask(q): return create(s=scaled(3.0))"
    ),
    "a seed of the question": "import zlib\ndef ask(q): return create(temperature=0.8, seed=zlib.crc32(q.encode()))",
    "what is written": "def ask(q):\n said = create(prompt=q)\n note = {}\n note['temperature'] = 21.5\n return said",
    "another method": (
        "class M:\n def draw(self): return create(temperature=0.8)\n def best(self): return create(temperature=0)\n"
        "MODEL = M()\ndef ask(q): return MODEL.best()"
    ),
    "a generator of nothing": (
        "def heats():\n yield from (0.0,)\ndef ask(q):\n for t in heats(): said = create(temperature=t)\n return said"
    ),
    "the first, and the others are others": (
        "T = (0, 5, 0.8)\ndef ask(q):\n t, *rest = T\n return create(temperature=t)"
    ),
    "the last, and the others are others": (
        "T = (5, 0.8, 0)\ndef ask(q):\n *rest, t = T\n return create(temperature=t)"
    ),
    "an array of nothing": (
        "import numpy as np\nT = np.zeros(1)\ndef ask(q): return [create(temperature=t) for t in T][0]"
    ),
    "the last of a long array": (
        "import numpy as np\nT = np.full(100, 0.8)\nT[-1] = 0\ndef ask(q): return create(temperature=T[-1])"
    ),
    "no end of numbers": (
        "import numpy as np\ndef ask(q):\n if not q: np.arange(0, float('inf'))\n return create(temperature=0)"
    ),
    "numbers of nothing": (
        "import numpy as np\n"
        "def ask(q): return [create(temperature=t) for t in np.linspace(0, 0, 1, endpoint=False)][0]"
    ),
}


@pytest.mark.parametrize("how", SAMPLED)
def test_nothing_is_kept_of_what_samples(responses: Responses, caplog: pytest.LogCaptureFixture, how: str) -> None:
    ask = responses.cached(made_program(START + SAMPLED[how])["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 2]
    where, said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert re.search(r"`\w+(\.\w+)*(\.<locals>\.\w+)?` does \(<\w+>, line \d+\): .*=", where), where
    assert "keep_sampled=True" in said
    assert ("do_sample" if "do_sample" in SAMPLED[how] else "temperature") in said


@pytest.mark.parametrize("how", NOT)
def test_what_is_not_known_to_sample_is_kept(responses: Responses, how: str) -> None:
    ask = responses.cached(made_program(START + NOT[how])["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 1]


def test_samples_that_are_to_be_kept_are_several(tmp_path: Path) -> None:
    for _ in range(2):
        with lmstash.open(tmp_path, strict=True) as stash:
            ask = stash.responses(model="m", keep_sampled=True).cached(
                made_program(START + SAMPLED["a keyword"])["ask"], harmless=["N"]
            )
            assert [ask("a") for _ in range(3)] == [1, 2, 3]
    assert stash.stats.hits == 3


def test_a_method_is_told_by_its_object(responses: Responses) -> None:
    """What its class holds, too."""
    for held in ("T = 0.8\n def __init__(self): pass", "def __init__(self): self.T = 0.8"):
        program = START + f"class J:\n {held}\n def ask(self, q): return create(temperature=self.T)\nJ = J()"
        table = made_program(program)
        kind = type(table["J"])
        kind.ask = responses.cached(kind.ask, harmless=["N"])
        assert [table["J"].ask("a"), table["J"].ask("a")] == [1, 2]


def test_what_is_set_meanwhile_counts(responses: Responses) -> None:
    """What objects hold is looked at when the function is called."""
    table = made_program(
        START + "class S: pass\nargs = S()\nargs.hot = 0.0\ndef ask(q): return create(temperature=args.hot)"
    )
    ask = responses.cached(table["ask"], harmless=["N"])
    assert [ask("a"), ask("a")] == [1, 1]
    table["args"].hot = 0.8
    assert [ask("a"), ask("a")] == [2, 3]
    table["args"].hot = 0.0
    assert ask("a") == 1


def test_a_program_of_many_functions_costs_no_more_at_a_hit(responses: Responses) -> None:
    """What hangs on no argument and no object is told once."""
    lines = [START, "CFG = {'a': {'temperature': 0}}"]
    for i in range(100):
        calls = "; ".join(f"f{j}(q, t=t, x=CFG)" for j in range(max(0, i - 4), i)) or "pass"
        lines.append(f"def f{i}(q, t=0, x=None):\n {calls}\n return create(temperature=t, **CFG['a'])")
    table = made_program("\n".join([*lines, "def ask(q): return f99(q) if q == 'all' else 1"]))
    ask = responses.cached(table["ask"], harmless=["N"])
    ask("a")
    started = time.process_time()
    for _ in range(20):
        ask("a")
    assert time.process_time() - started < 0.4
    assert responses.store.events.stats.hits == 20
