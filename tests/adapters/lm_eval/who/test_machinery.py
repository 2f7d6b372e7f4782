"""Pools, threads, loops and queues among a model's attributes say nothing; templates count by what they render."""

from __future__ import annotations

import asyncio
import multiprocessing.pool
import queue
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import jinja2
import pytest

pytest.importorskip("tenacity")
from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.errors import UnsupportedModelError

from ..conftest import generations
from .test_own_objects import Own

MACHINERY: dict[str, Any] = {
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": lambda: ProcessPoolExecutor(1),
    "pool": lambda: multiprocessing.pool.ThreadPool(1),
    "thread": lambda: threading.Thread(target=len),
    "condition": threading.Condition,
    "semaphore": lambda: threading.Semaphore(2),
    "asynchronous semaphore": lambda: asyncio.Semaphore(2),
    "loop": asyncio.new_event_loop,
    "queue": queue.Queue,
    "simple queue": queue.SimpleQueue,
    "asynchronous queue": asyncio.Queue,
}


class Working(Own):
    def said(self) -> str:
        if isinstance(self.by, ThreadPoolExecutor):
            return self.by.submit(str, "one").result()
        return "one"


@pytest.mark.parametrize("make", MACHINERY.values(), ids=MACHINERY)
def test_machinery_says_nothing(stash, make):
    for hits in (0, 2):
        by = make()
        lm = CachedLM(Working(by=by), stash)
        assert lm.generate_until(generations(2)) == ["one prompt 0", "one prompt 1"]
        assert lm.counts.hits == hits
        for close in ("shutdown", "close"):
            getattr(by, close, lambda: None)()


def _begin(word: str) -> None: ...


def test_what_a_pool_begins_its_threads_with_counts():
    pools = [ThreadPoolExecutor(1, initializer=_begin, initargs=(word,)) for word in ("a", "a", "b")]
    seen = [who_answers(Own(pool=each)).look() for each in pools]
    assert seen[0] == seen[1] != seen[2]


def test_what_lies_in_a_queue_counts_or_is_refused():
    full = queue.SimpleQueue[str]()
    full.put("a")
    with pytest.raises(UnsupportedModelError):
        who_answers(Own(by=full))


def _environment() -> Any:
    return jinja2.Environment(loader=jinja2.FileSystemLoader("."))


TEMPLATES: dict[str, Any] = {
    "environment": (_environment, lambda self: self.by.get_template("p").render()),
    "template": (lambda: _environment().get_template("p"), lambda self: self.by.render()),
    "one that includes": (
        lambda: _environment().from_string("{% include 'p' %}"),
        lambda self: self.by.render(),
    ),
}


@pytest.mark.parametrize(("make", "said"), TEMPLATES.values(), ids=TEMPLATES)
def test_files_of_templates_count(stash, tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(tmp_path)
    kind = type("Mine", (Own,), {"said": said, "__module__": __name__})
    for text, hits in (("one", 0), ("one", 2), ("two", 0), ("one", 2)):
        (tmp_path / "p").write_text(text)
        lm = CachedLM(kind(by=make()), stash)
        assert lm.generate_until(generations(2)) == [f"{text} prompt {i}" for i in range(2)]
        assert lm.counts.hits == hits


def test_what_a_template_is_given_counts_as_it_is_now(stash):
    own = type("Mine", (Own,), {"said": lambda self: self.by.render(), "__module__": __name__})(
        by=jinja2.Environment().from_string("{{ word }}", {"word": "one"})
    )
    lm = CachedLM(own, stash)
    assert lm.generate_until(generations(1)) == ["one prompt 0"]
    own.by.globals["word"] = "two"
    assert lm.generate_until(generations(1)) == ["two prompt 0"]


def test_templates_from_elsewhere_are_answered_for(tmp_path):
    import lmstash

    loader = type("Mine", (jinja2.DictLoader,), {"__module__": __name__})({"p": "one"})
    kind = type("Mine", (Own,), {"said": TEMPLATES["environment"][1], "__module__": __name__})
    with lmstash.open(tmp_path / "s") as stash:
        for _ in range(2):
            lm = CachedLM(kind(by=jinja2.Environment(loader=loader)), stash)
            assert lm.generate_until(generations(2)) == ["one prompt 0", "one prompt 1"]
