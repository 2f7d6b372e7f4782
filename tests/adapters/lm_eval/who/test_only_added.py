"""What a model of somebody's own only adds to, and what it makes anew in each process."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from functools import partial
from typing import Any

import pytest

import lmstash
from lmstash.adapters.lm_eval import CachedLM
from lmstash.adapters.lm_eval.who.identity import who_answers
from lmstash.adapters.lm_eval.who.own_names import Followed
from lmstash.identity.code.words import words_within

from ..conftest import generations, tiny_model

pytest.importorskip("tenacity")
from lm_eval.models.huggingface import HFLM

from .test_own_objects import Own


def _n_calls(self: Any) -> str:
    self.n_calls += 1
    return ""


def _n_calls_of_it(self: Any) -> int:
    self.n_calls += 1
    return self.n_calls


@pytest.mark.parametrize(("said", "kept"), [(_n_calls, True), (_n_calls_of_it, False)], ids=["counter", "more"])
def test_a_number_that_is_only_counted_up_changes_nothing(tmp_path, caplog, said, kept):
    kind = type("Mine", (Own,), {"said": said, "__module__": __name__})
    with lmstash.open(tmp_path / "s") as stash:
        for options, hits in (
            ({}, 0),
            ({}, 2 * kept),
            ({"harmless": ["n_calls"]}, 2 * kept),
            ({"harmless": ["n_calls"]}, 2),
        ):
            lm = CachedLM(kind(n_calls=0), stash, **options)
            lm.generate_until(generations(2))
            assert lm.counts.hits == hits
    said = [each.getMessage() for each in caplog.records if "model changed" in each.getMessage()]
    assert len(said) == (0 if kept else 1)
    assert kept or ("its attribute n_calls" in said[0] and "harmless=['n_calls']" in said[0])


def _usage(self: Any) -> str:
    self.stats["calls"] += 1
    self.usage.append(1)
    self.kinds.update("a")
    return ""


def test_containers_that_are_only_added_to_change_nothing(stash):
    kind = type("Mine", (Own,), {"said": _usage, "__module__": __name__})
    for hits in (0, 2):
        lm = CachedLM(kind(stats={"calls": 0}, usage=[], kinds=Counter()), stash)
        lm.generate_until(generations(2))
        assert lm.counts.hits == hits


def _named_as_in_the_answer(self: Any) -> str:
    answer = {"usage": {"total_tokens": 3}, "text": ""}
    self.total_tokens += answer["usage"]["total_tokens"]
    self.usage += 1
    return answer["text"]


def test_a_counter_may_go_by_the_name_of_a_field_of_the_answer(stash):
    kind = type("Mine", (Own,), {"said": _named_as_in_the_answer, "__module__": __name__})
    for hits in (0, 2):
        lm = CachedLM(kind(total_tokens=0, usage=0), stash)
        lm.generate_until(generations(2))
        assert lm.counts.hits == hits


READ: dict[str, Any] = {
    "by getattr": lambda self: self.usage.append(1) or str(getattr(self, "usage")),  # noqa: B009
    "by a template": lambda self: self.usage.append(1) or "{0.usage}".format(self),  # noqa: UP030, UP032
    "asked": lambda self: self.usage.append(len(self.usage)) or "",
    "shown": lambda self: self.usage.append(1) or str(self.usage),
    "passed on": lambda self: self.usage.append(1) or "".join(map(str, self.usage)),
    "by text": lambda self: self.usage.append(1) or f"{self.usage}",
    "by a short text": lambda self: self.usage.append(1) or f"a {self.usage[0]} b",
}


@pytest.mark.parametrize("said", READ.values(), ids=READ)
def test_containers_that_are_read_count(said):
    kind = type("Mine", (Own,), {"said": said, "__module__": __name__})
    one, other = (who_answers(kind(usage=[*range(n)])).look() for n in (1, 2))
    assert one != other


def _shown(self: Any) -> str:
    return f"call {self.n_calls}"


def test_a_number_that_a_text_names_within_braces_is_read():
    assert words_within(["a {self.n_calls} b", "{{ lm.prompt }}", "{0[k]!r:>3}", "{x}"]) == {"n_calls", "prompt", "k"}
    kind = type("Mine", (Own,), {"said": _shown, "more": _n_calls, "__module__": __name__})
    one, other = (who_answers(kind(n_calls=n)).look() for n in (1, 2))
    assert one != other


class Counting(HFLM):
    def tok_encode(self, string: str, **options: Any) -> Any:
        self.n += 1
        self.total += 1
        self.batch_sizes_seen += 1
        self._max_length += 1
        return super().tok_encode(string, **options)


def test_words_of_the_harness_s_that_are_no_attributes_do_not_hide_counters(tokenizer):
    lm: Any = Counting(pretrained=tiny_model(), tokenizer=tokenizer)
    lm.n = lm.total = lm.batch_sizes_seen = lm._max_length = 0
    code = Followed("lm_eval")
    code.note_class(Counting)
    assert code.counters(lm) == {"n", "total", "batch_sizes_seen"}  # the harness goes by the last one


class Limiter:
    def __init__(self) -> None:
        self.n_waited = 0

    def wait(self) -> str:
        self.n_waited += 1
        return ""


LIMITER = Limiter()


def test_an_object_among_globals_that_changes_is_named(tmp_path, caplog):
    kind = type("Mine", (Own,), {"said": lambda self: LIMITER.wait(), "__module__": __name__})
    with lmstash.open(tmp_path / "s") as stash:
        CachedLM(kind(), stash).generate_until(generations(2))
    said = [each.getMessage() for each in caplog.records if "model changed" in each.getMessage()]
    assert len(said) == 1
    assert said[0].count(":LIMITER") == 1
    assert "harmless=[...]" in said[0]


@pytest.mark.parametrize("options", [{}, {"model": "mine"}], ids=["seen", "declared"])
def test_times_and_ids_are_named_where_nothing_is_found(tmp_path, caplog, options):
    def make() -> Own:
        names = {"run": uuid.uuid4().hex, "named": time.strftime("run %Y-%m-%d %H:%M:%S")}
        return Own(started=time.time(), seed_=17, **names)

    with lmstash.open(tmp_path / "s") as stash:
        harmless = ["named", "run", "started"]
        for more in ({}, {"harmless": harmless}, {"harmless": harmless}):
            lm = CachedLM(make(), stash, **options, **more)
            lm.generate_until(generations(2))
        assert lm.counts.hits == 2
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert [f"harmless={harmless}" in each for each in said] == [True]


SECONDS: list[float] = []
N_ASKED = 0
LATELY: list[int] = []
ALIAS = LATELY


def _timed(function: Any) -> Any:
    def said(self: Any) -> str:
        started = time.perf_counter()
        try:
            return function(self)
        finally:
            SECONDS.append(time.perf_counter() - started)

    return said


def _totalled(function: Any) -> Any:
    total, each = 0.0, []

    def said(self: Any) -> str:
        nonlocal total
        total += 0.5
        each.append(total_of := 1)
        del total_of
        said.n_calls += 1
        return function(self)

    said.each = each
    said.n_calls = 0
    return said


def _counted(self: Any) -> str:
    global N_ASKED
    N_ASKED += 1
    return ""


ADDED: dict[str, Any] = {
    "a list of the module": lambda: _timed(lambda self: ""),
    "a sum closed over, a list of the function's, too": lambda: _totalled(lambda self: ""),
    "a number of the module": lambda: _counted,
}


@pytest.mark.parametrize("make", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("way", ["method", "attribute"])
def test_globals_that_are_only_added_to_change_nothing(stash, make, way):
    for hits in (0, 2):
        said = make()
        kind = type("Mine", (Own,), {"__module__": __name__, **({"said": said} if way == "method" else {})})
        inner = kind()
        if way == "attribute":
            inner.said = partial(said, inner) if said.__closure__ is None else said.__get__(inner)
        lm = CachedLM(inner, stash)
        lm.generate_until(generations(2))
        assert lm.counts.hits == hits


def _every_other(self: Any) -> str:
    global N_ASKED
    N_ASKED += 1
    return "a" if N_ASKED % 2 else "b"


def _by_the_table_of_globals(self: Any) -> str:
    _counted(self)
    return str(globals()["N_ASKED"])


def _remembered_by_another_name(self: Any) -> str:
    LATELY.append(1)
    return str(ALIAS[-1:])


def _of_its_function() -> Any:
    def said(self: Any) -> str:
        said.n_calls += 1
        return f"{said.n_calls}"

    said.n_calls = 0
    return said


NOT_ONLY: dict[str, Any] = {
    "a number": lambda: _every_other,
    "the table": lambda: _by_the_table_of_globals,
    "an alias": lambda: _remembered_by_another_name,
    "of its function": _of_its_function,
    "passed on": lambda: _timed(lambda self: str(sum(SECONDS))),
}


@pytest.mark.parametrize("make", NOT_ONLY.values(), ids=NOT_ONLY)
def test_globals_that_are_read_elsewhere_count(stash, make):
    kind = type("Mine", (Own,), {"__module__": __name__, "said": make()})
    for _ in range(2):
        lm = CachedLM(kind(), stash)
        lm.generate_until(generations(2))
        assert lm.counts.hits == 0


def test_code_that_is_reached_by_text_may_read_what_others_only_add_to(stash, tmp_path, monkeypatch):
    (tmp_path / "helper_by_text.py").write_text("N = 0\ndef said():\n    return str(N)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import helper_by_text  # pyright: ignore[reportMissingImports]

    def said(self: Any) -> str:
        helper_by_text.N += 1
        return getattr(helper_by_text, self.how)()

    kind = type("Mine", (Own,), {"__module__": __name__, "said": said})
    for _ in range(2):
        lm = CachedLM(kind(how="said"), stash)
        lm.generate_until(generations(2))
        assert lm.counts.hits == 0
