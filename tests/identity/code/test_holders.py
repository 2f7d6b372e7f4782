"""What code asks objects for, and which of them it hands to code that nobody reads; on the bytecode of each Python."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest

from lmstash.identity.code.holders import Holders

KEPT = {
    "an attribute": "def ask(): return cfg.model",
    "an entry": "def ask(): return cfg['model']",
    "an entry, if it is there": "def ask(): return cfg.get('model') or cfg.get('also', 1)",
    "an attribute, if it is there": "def ask(): return getattr(cfg, 'model', None)",
    "in a text": "def ask(): return f'{cfg.model!r:>8} {cfg.also}'",
    "a helper": "def helper(a, b): return b.model\ndef ask(): return helper(1, cfg)",
    "a helper, by name": "def helper(a, *, b=None): return b.model\ndef ask(): return helper(1, b=cfg)",
    "another name": "def ask():\n also = cfg\n return also.model",
    "a function within it": "def ask(cfg):\n def inner(): return cfg.model\n return inner()",
    "a lambda": "def ask(cfg): return run(lambda: cfg.model)",
    "in a loop": "def ask(cfg): return [cfg.model for _ in range(3)]",
    "a test": "def ask(): return cfg.model if cfg is not None and isinstance(cfg, dict) else None",
    "set": "def ask(cfg):\n cfg.n = 1\n cfg['n'] = 2",
    "a method": "def helper(self, c): return c.model\ndef ask(self, cfg): return self.helper(cfg)",
}
HANDED = {
    "to a library": "def ask(): return library(cfg)",
    "by name": "def ask(): return library(config=cfg)",
    "to a method": "def ask(): return client.run(cfg)",
    "to a method of its own that nobody knows": "def ask(self, cfg): return self.run(cfg)",
    "by a helper": "def helper(a): return library(a)\ndef ask(): return helper(cfg)",
    "by a helper's helper": "def one(a): return two(a)\ndef two(b): return library(b)\ndef ask(): return one(cfg)",
    "by another name": "def ask():\n also = cfg\n return library(also)",
    "in a list": "def ask(): return library([cfg])",
    "in a dict": "def ask(): return library({'cfg': cfg})",
    "by stars": "def ask(): return library(*cfg)",
    "by two stars": "def ask(): return library(**cfg)",
    "to a helper's rest": "def helper(*rest): return library(rest)\ndef ask(): return helper(cfg)",
    "back": "def ask(): return cfg",
    "one by one": "def ask():\n for each in cfg: pass",
    "all of it": "def ask(): return cfg.items()",
    "an entry that nobody knows": "def ask(key): return cfg[key]",
    "one of two": "def ask(q): return library(cfg if q else None)",
    "by a default": "def ask(cfg):\n def inner(c=cfg): return c.model\n return inner",
    "within a function": "def ask(cfg): return run(lambda: library(cfg))",
    "in a text": "def ask(): return f'{cfg}'",
    "into another's entry": "def ask():\n kept = {}\n kept['c'] = cfg",
    "by unpacking": "def ask():\n a, b = cfg",
    "joined": "def ask(): return cfg | {}",
    "from an object": "def ask(self): return library(self.cfg)",
    "from a dict": "def ask(): return library(all['cfg'])",
    "if it is there": "def ask(): return library(all.get('cfg'), getattr(all, 'cfg'))",
    "while it waits": "async def ask(): return await library(cfg)",
}


def holders_of(source: str) -> Holders:
    table: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "<program>", "exec"), table)
    holders = Holders()
    for each in [*table.values()]:
        if isinstance(each, FunctionType):
            holders.see(each)
    return holders


@pytest.mark.parametrize("how", KEPT)
def test_what_is_only_asked_is_not_handed_on(how: str) -> None:
    holders = holders_of(KEPT[how])
    assert not holders.hands_on("cfg")
    assert holders.asks("model") or how == "set"


@pytest.mark.parametrize("how", HANDED)
def test_what_others_may_read_is_handed_on(how: str) -> None:
    assert holders_of(HANDED[how]).hands_on("cfg")


def test_a_helper_that_is_not_read_is_a_library() -> None:
    table: dict[str, Any] = {"__name__": "program"}
    exec(compile(KEPT["a helper"], "<program>", "exec"), table)
    holders = Holders()
    holders.see(table["ask"])
    assert holders.hands_on("cfg")
    holders.see(table["helper"])
    assert not holders.hands_on("cfg")


def test_classes_are_called_and_constructors_name_nothing() -> None:
    holders = holders_of("def __init__(self): self.out = Named\ndef ask(): return Made().text")
    assert [holders.calls("Made"), holders.calls("Named")] == [True, False]
    assert [holders.names("Made"), holders.names("Named")] == [True, False]
