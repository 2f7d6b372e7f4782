"""What several ranks save comes back as the whole of one run, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmms_standins as standins
import pytest

import lmstash
from lmstash.adapters.lmms_eval import Request, load_from_cache, save_to_cache
from lmstash.adapters.lmms_eval.launching import RunCache
from lmstash.adapters.lmms_eval.saved_requests.parts import Run, parent_began, run_of_ranks
from lmstash.stash import Stash


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


@pytest.fixture
def save(stash: Stash) -> Any:
    """Saves the part of one rank of several; its answers say which run gave them."""

    def one(number: int, n_parts: int, word: str, **options: Any) -> None:
        docs = range(number, 8, n_parts)
        groups = [[Request((str(doc),), f"{word}{doc}", "t", doc)] for doc in docs]
        assert save_to_cache("m_t", groups, stash=stash, part=(number, n_parts), **options)

    return one


def said(stash: Stash, **options: Any) -> list[str] | None:
    groups = load_from_cache("m_t", stash=stash, **options)
    return None if groups is None else [group[0].response for group in groups]


def whole(word: str) -> list[str]:
    return [f"{word}{doc}" for doc in range(8)]


@pytest.mark.parametrize("n_parts", [1, 2, 4])
def test_a_new_run_is_served_when_all_of_its_parts_are_there(stash: Stash, save: Any, n_parts: int) -> None:
    for number in range(4):
        save(number, 4, "old ")
    assert said(stash) == whole("old ")
    for number in reversed(range(n_parts)):
        assert said(stash) != whole("new ")
        save(number, n_parts, "new ")
        assert said(stash) in (None, whole("old "), whole("new "))
    assert said(stash) == whole("new ")


def test_a_run_that_is_killed_while_its_ranks_save_is_not_mixed_with_the_one_before(stash: Stash, save: Any) -> None:
    for number in range(4):
        save(number, 4, "old ", run=Run("launcher", began=1.0))
    save(0, 4, "new ", run=Run("another", began=1.0))
    assert said(stash) is None
    save(0, 4, "old ", run=Run("launcher", began=2.0))
    assert said(stash) == whole("old ")
    began_later = Run("launcher", began=4e10)  # after the others were saved
    for number in range(4):
        save(number, 4, "new ", run=began_later)
        assert said(stash) is None


def test_missing_parts_are_a_miss_that_is_told(stash: Stash, save: Any, caplog: pytest.LogCaptureFixture) -> None:
    for number in (0, 2):
        save(number, 4, "x ")
    assert said(stash) is None
    assert "not all parts of one run" in caplog.text


def test_all_parts_have_one_fingerprint(stash: Stash, save: Any) -> None:
    save(0, 2, "a ", fingerprint={"v": 2})
    save(1, 2, "b ", fingerprint={"v": 1})
    for options in ({}, {"fingerprint": {"v": 1}}, {"fingerprint": {"v": 2}}):
        assert said(stash, **options) is None
    save(1, 2, "a ", fingerprint={"v": 2})
    save(0, 2, "a ", fingerprint={"v": 2})
    assert said(stash, fingerprint={"v": 2}) == whole("a ")
    assert said(stash, fingerprint={"v": 1}) is None


@pytest.mark.parametrize(("value", "part"), [({"a": 1}, (0, 2)), ([], (2, 2)), ([], (-1, 2))])
def test_what_is_no_part_of_a_list_is_refused(stash: Stash, value: Any, part: tuple[int, int]) -> None:
    with pytest.raises(lmstash.errors.InvalidArgumentError):
        save_to_cache("m_t", value, stash=stash, part=part)


def test_ranks_know_their_run_by_their_launcher_or_by_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    here = run_of_ranks(2, 1.0)
    assert str(os.getppid()) in here.name
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert run_of_ranks(2, 1.0) == here
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert run_of_ranks(2, 1.0) == here
    assert run_of_ranks(4, 1.0).name == "at node7:29500"


@pytest.mark.skipif(not Path("/proc/uptime").exists(), reason="needs /proc")
def test_the_launcher_began_before_its_ranks() -> None:
    import time

    assert 0 < parent_began() <= time.time()


# --- as the command line saves ------------------------------------------------------------------------------------


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluates `n_docs` documents on several ranks, one after the other; returns what is loaded then."""
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "saved"))

    def go(n_docs: int, world_size: int, lm: Any = None) -> Any:
        task = standins.Task(standins.questions(n_docs))
        for rank in range(world_size):
            model = lm or standins.Echo()
            model.task_dict["mini"] = {"test": task.docs}
            cache = RunCache.create(
                tmp_path / "answers", model="echo", task_dict={"mini": task}, world_size=world_size, global_rank=rank
            )
            success = False
            try:
                cache.execute(model, "generate_until", task.requests(rank, world_size))
                success = True
            finally:
                cache.finalize(success=success)
        return load_from_cache("echo_mini")

    return go


@pytest.mark.parametrize(("n_docs", "world_size"), [(5, 1), (5, 2), (1, 4), (7, 4)])
def test_all_documents_come_back_also_where_a_rank_has_none(ranks: Any, n_docs: int, world_size: int) -> None:
    assert [group[0].doc_id for group in ranks(n_docs, world_size)] == list(range(n_docs))


def test_what_a_model_answered_before_it_failed_is_not_saved_as_the_whole(ranks: Any) -> None:
    class Failing(standins.Echo):
        def generate_until(self, requests: Any) -> list[Any]:
            raise ConnectionError

    assert len(ranks(3, 1)) == 3
    with pytest.raises(ConnectionError):
        ranks(9, 1, Failing())
    assert len(load_from_cache("echo_mini")) == 3
