"""`use_cache=` with ours in place, the launcher, and the harness's databases."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lmstash
from lmstash.adapters.lm_eval import CachedLM, CachingLM, import_caching_db, install, launching, uninstall
from lmstash.adapters.lm_eval.dropin import close_all, stash_at
from lmstash.adapters.lm_eval.importing import read_plain
from lmstash.cli.main import main
from lmstash.errors import CorruptEntryError, InvalidArgumentError

from .conftest import Scripted, answers_of, echo, evaluate, generations, instance, write_tasks


@pytest.fixture
def installed():
    install(model="m")
    yield
    uninstall()
    close_all()
    CachingLM.made.clear()


def test_use_cache_drives_ours(installed, tasks, tmp_path):
    prefix = str(tmp_path / "cache" / "run")
    first = answers_of(evaluate(Scripted(echo), tasks, ["t_gen", "t_mc"], use_cache=prefix))
    lm = Scripted(echo)
    assert answers_of(evaluate(lm, tasks, ["t_gen", "t_mc"], use_cache=prefix)) == first
    assert not lm.seen
    assert [type(each) for each in CachingLM.made] == [CachingLM] * 2
    assert sorted(each.name for each in (tmp_path / "cache").iterdir()) == ["run"]


def test_all_ranks_share_one_folder(tmp_path):
    lms = [CachingLM(Scripted(echo), str(tmp_path / f"run_rank{rank}.db"), model="m") for rank in (0, 11)]
    assert lms[0].stash is lms[1].stash
    lms[0].generate_until(generations(2))
    lms[1].generate_until(generations(2))
    assert lms[1].counts.hits == 2
    close_all()


def test_the_harness_gets_its_own_class_back():
    import lm_eval.api.model

    theirs = lm_eval.api.model.CachingLM
    install()
    assert lm_eval.api.model.CachingLM is CachingLM
    uninstall()
    assert lm_eval.api.model.CachingLM is theirs


def test_a_uri_names_a_stash_too():
    assert stash_at("memory://").store is not None
    close_all()


# --- the launcher -------------------------------------------------------------------------------------------------


WITHOUT_ITS_TASKS = """
import functools, lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
from lmstash.cli.main import script
script()
"""
"""The harness reads 14,000 files of its own tasks otherwise, for 15 seconds."""


def lmstash_eval(folder: Path, *arguments: str, by: tuple[str, ...] = ("-m", "lmstash")) -> Any:
    command = [sys.executable, *by, "eval", *arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LMSTASH_")}
    extra = {"HF_DATASETS_CACHE": str(folder / "datasets"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=plain | extra)


@pytest.mark.model
@pytest.mark.slow
def test_the_harness_is_launched_with_its_own_arguments(tmp_path, tasks, smollm2_folder):
    line = ["lm_eval", "--model", "hf", "--model_args", f"pretrained={smollm2_folder}", "--device", "cpu"]
    line += ["--batch_size", "4", "--include_path", str(tasks), "--tasks", "t_mc", "--limit", "3"]
    first = lmstash_eval(tmp_path, "--dir", str(tmp_path / "s"), *line)
    assert first.returncode == 0, first.stderr
    assert "|t_mc |" in first.stdout
    assert first.stderr.rstrip().endswith("lmstash: 6 requests, 6 computed")
    again = lmstash_eval(tmp_path, "--json", "--dir", str(tmp_path / "s"), *line, by=("-c", WITHOUT_ITS_TASKS))
    said = json.loads(again.stdout)
    assert said["requests"]["hits"] == 6
    assert said["requests"]["computed"] == 0
    assert "|t_mc |" in again.stderr


def test_a_harness_that_is_not_known_or_fails_is_told(tmp_path, capsys):
    assert main(["eval", "helm", "--tasks", "x"]) == 2
    assert "lm_eval" in capsys.readouterr().err
    assert main(["eval", "--dir", str(tmp_path), "lm_eval", "run", "--no-such-argument"]) == 2
    assert "no requests were made" in capsys.readouterr().err


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launch the harness here, with its dummy model under a declared name; returns what became of the requests."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))

    def go(folder: Path, *flags: str, **options: Any) -> dict[str, int]:
        line = ["--model", "dummy", "--tasks", "t_gen", "--include_path", str(folder), *flags]
        code, counts = launching.run(line, str(tmp_path / "s"), **{"model": "dummy 1", **options})
        assert code == 0
        return counts

    return go


def test_questions_are_built_anew_and_no_pickle_of_them_is_read_or_written(tmp_path, launch, monkeypatch, caplog):
    from lm_eval.caching import cache

    monkeypatch.setattr(cache, "PATH", str(tmp_path / "pickles"))
    cache.save_to_cache("requests-t_gen-0shot-rank0-world_size1-tokenizer", [[Evil()]])
    (kept,) = (tmp_path / "pickles").iterdir()
    before = kept.read_bytes()
    for flags in (["--cache_requests"], ["--cache_requests", "refresh"]):
        caplog.clear()
        launch(write_tasks(tmp_path / "tasks", prompt=f"{flags}: {{{{q}}}}"), *flags)
        assert caplog.text.count("--cache_requests: questions are built anew") == 1
        assert [(each, each.read_bytes()) for each in kept.parent.iterdir()] == [(kept, before)]
    assert not Evil.ran
    assert launch(tmp_path / "tasks", "--cache_requests", "--gen_kwargs", "max_gen_toks=7")["computed"] == 8
    launch(tmp_path / "tasks", "--cache_requests", "delete")
    assert not kept.exists()


def test_the_advice_for_a_model_that_nobody_knows_can_be_followed(tmp_path, tasks, launch, caplog):
    assert launch(tasks, model=None)["hits"] == launch(tasks, model=None)["hits"] == 0
    advice = next(each for each in caplog.text.split("`") if each.startswith("lmstash eval "))
    start, end = advice.split("...")
    line = [*shlex.split(start.replace("NAME", "'dummy 1'")), *shlex.split(end)]
    line[2:2] = ["--dir", str(tmp_path / "s"), "--json"]
    line += ["--model", "dummy", "--tasks", "t_gen", "--include_path", str(tasks)]
    assert main(line[1:]) == 0
    assert launch(tasks)["hits"] == 8


def test_a_launch_can_be_told_to_compute_anew(tmp_path, tasks, launch, capsys):
    assert launch(tasks)["computed"] == launch(tasks, refresh=True)["computed"] == 8
    line = ["--model", "dummy", "--tasks", "t_gen", "--include_path", str(tasks)]
    for flags, computed in ([], 0), (["--refresh"], 8):
        capsys.readouterr()
        place = ["--dir", str(tmp_path / "s"), "--model-is", "dummy 1"]
        assert main(["eval", *place, "--json", *flags, "lm_eval", *line]) == 0
        assert json.loads(capsys.readouterr().out)["requests"]["computed"] == computed
    assert launch(tasks)["hits"] == 8


# --- databases of the harness -------------------------------------------------------------------------------------


def their_database(file: Path, lm: Any, requests: list[Any]) -> list[Any]:
    """Have the harness's own class keep what a model answers."""
    from lm_eval.api import model

    cached = model.CachingLM(lm, str(file))
    said = cached.generate_until(requests)
    cached.dbdict.close()
    return said


def test_answers_of_the_harness_are_found_by_the_model_that_is_declared(stash, tmp_path):
    said = their_database(tmp_path / "c_rank0.db", Scripted(echo), generations(5))
    report = import_caching_db(tmp_path / "c_rank0.db", stash, model="mine 1")
    assert (report.entries, report.taken) == (5, 5)
    lm = Scripted(echo)
    cached = CachedLM(lm, stash, model="mine 1")
    assert cached.generate_until(generations(6))[:5] == said
    assert (cached.counts.imported, len(lm.seen)) == (5, 1)
    for options in ({"model": "mine 2"}, {"model": "mine 2", "imported": "other"}):
        lm = Scripted(echo)
        CachedLM(lm, stash, **options).generate_until(generations(3, top_p=len(options)))
        assert len(lm.seen) == 3
    lm = Scripted(echo)
    CachedLM(lm, stash, model="mine 3", imported="mine 1").generate_until(generations(5))
    assert not lm.seen
    assert import_caching_db(tmp_path / "c_rank0.db", stash, model="mine 1").known == 5


def test_what_is_computed_anew_replaces_what_is_kept_and_what_was_imported(stash, tmp_path):
    their_database(tmp_path / "c_rank0.db", Scripted(lambda *asked: "imported"), generations(2))
    import_caching_db(tmp_path / "c_rank0.db", stash, model="m")
    for word, refresh, computed in (("old", True, 2), ("new", True, 2), ("not asked", False, 0)):
        lm = Scripted(lambda *asked, word=word: word)
        said = CachedLM(lm, stash, model="m", refresh=refresh).generate_until(generations(2))
        assert said == ["new" if word == "not asked" else word] * 2
        assert len(lm.seen) == computed


def test_samples_of_the_harness_are_not_found(stash, tmp_path):
    sampled = generations(2, temperature=1.0, seed=1)
    their_database(tmp_path / "c_rank0.db", Scripted(echo), sampled)
    repeated = [instance("generate_until", "p", {"until": []}, repeats=3)] * 3
    their_database(tmp_path / "c_rank0.db", Scripted(echo), repeated)
    assert import_caching_db(tmp_path / "c_rank0.db", stash, model="m").taken == 3
    lm = Scripted(echo)
    CachedLM(lm, stash, model="m").generate_until([*sampled, *repeated])
    assert len(lm.seen) == 5


def test_likelihoods_come_back_as_they_were(stash, tmp_path):
    from lm_eval.api import model

    theirs = model.CachingLM(Scripted(echo), str(tmp_path / "c_rank0.db"))
    requests = [instance("loglikelihood", "a", f" {word}") for word in "bcd"]
    said = theirs.loglikelihood(requests)
    theirs.dbdict.close()
    import_caching_db(tmp_path / "c_rank0.db", stash, model="m")
    lm = Scripted(echo)
    assert CachedLM(lm, stash, model="m").loglikelihood(requests) == said
    assert not lm.seen


class Evil:
    ran = False

    def __reduce__(self) -> Any:
        return (exec, ("import tests; Evil.ran = True",))


def test_a_crafted_row_runs_nothing_and_damaged_ones_are_told(stash, tmp_path):
    import pickle

    file = tmp_path / "c_rank0.db"
    their_database(file, Scripted(echo), generations(2))
    with sqlite3.connect(file) as database:
        rows = [("0" * 64, pickle.dumps(Evil())), ("1" * 64, b"\x80\x04"), ("short", pickle.dumps("x"))]
        rows += [("2" * 64, pickle.dumps({"a": 1})), ("3" * 64, pickle.dumps("")), ("4" * 64, pickle.dumps(None))]
        database.executemany("INSERT INTO unnamed VALUES (?, ?)", rows)
    database.close()
    report = import_caching_db(file, stash, model="m")
    assert (report.entries, report.taken, report.refused, report.empty) == (8, 2, 4, 2)
    assert len(report.problems) == 4
    assert not Evil.ran


def test_what_is_no_such_database_is_told(stash, tmp_path):
    (tmp_path / "a.db").write_bytes(b"no database at all" * 100)
    sqlite3.connect(tmp_path / "b.db").execute("CREATE TABLE other (x)").connection.close()
    for name in ("a.db", "b.db"):
        with pytest.raises(InvalidArgumentError, match="CachingLM"):
            import_caching_db(tmp_path / name, stash, model="m")
    with pytest.raises(InvalidArgumentError, match="which model"):
        import_caching_db(tmp_path / "a.db", stash, model="")


def test_the_command_line_imports(tmp_path, capsys):
    their_database(tmp_path / "c_rank0.db", Scripted(echo), generations(3))
    place = ["--dir", str(tmp_path / "s"), "--json"]
    assert main(["import", "lm-eval", str(tmp_path / "c_rank0.db"), *place]) == 2
    capsys.readouterr()
    assert main(["import", "lm-eval", str(tmp_path / "c_rank0.db"), "--model", "m", *place]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["taken"] == 3
    with lmstash.open(tmp_path / "s") as stash:
        lm = Scripted(echo)
        CachedLM(lm, stash, model="m").generate_until(generations(3))
        assert not lm.seen


@pytest.mark.parametrize("value", [1.5, -2, True, "text" * 1000, (-1.5, False), [1, "b"], float("-inf"), 10**12])
def test_plain_pickles_are_read(value):
    import pickle

    for protocol in range(2, 6):
        found = read_plain(pickle.dumps(value, protocol))
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", [{"a": 1}, [[1]], b"bytes", {1}])
def test_other_pickles_are_refused(value):
    import pickle

    with pytest.raises(CorruptEntryError):
        read_plain(pickle.dumps(value))


@pytest.mark.parametrize(("flag", "instead"), [("--no-cache", "run lm_eval itself"), ("--clear-cache", "--refresh")])
def test_a_flag_of_the_other_harness_is_told_what_to_do_instead(tmp_path, flag, instead):
    with pytest.raises(InvalidArgumentError, match=instead):
        launching.run(["--tasks", "t_gen", flag], str(tmp_path))
