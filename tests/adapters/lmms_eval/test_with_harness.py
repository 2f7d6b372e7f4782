"""The caches inside lmms-eval itself: `ResponseCache`, saved requests, and the command line."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="needs lmms-eval: make env")

import lmms_eval.__main__ as command_line
import lmms_eval.evaluator as evaluator
import lmms_harness_models as models
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.tasks import TaskManager
from lmms_harness_tasks import write_task

import lmstash
from lmstash.adapters.lmms_eval import Request, ResponseCache, delete_cache, launching, load_from_cache, save_to_cache
from lmstash.adapters.lmms_eval.installing import installed

for _name, _simple, _chat in (("seeing", "Seeing", None), ("talking", None, "Talking"), ("smollm", "SmolLM", None)):
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest(
            _name,
            simple_class_path=None if _simple is None else f"lmms_harness_models.{_simple}",
            chat_class_path=None if _chat is None else f"lmms_harness_models.{_chat}",
        ),
        overwrite=True,
    )
SMOLLM2 = Path(__file__).parents[3] / ".cache/models/smollm2"


@pytest.fixture(autouse=True)
def _own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "requests"))
    monkeypatch.setattr(evaluator, "ResponseCache", ResponseCache)
    monkeypatch.setattr(command_line, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)  # the harness tries again five times


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], int]]:
    """Evaluates a task; returns its results and how many requests the model computed."""

    def evaluate(model: Any = "seeing", model_args: str = "", **given: Any) -> tuple[dict[str, Any], int]:
        own = {
            name: given.pop(name)
            for name in list(given)
            if name in ("limit", "gen_kwargs", "cache_requests", "repeats")
        }
        own |= {name: given.pop(name) for name in list(given) if name in ("num_fewshot", "fewshot_random_seed")}
        folder = given.pop("folder", None) or write_task(tmp_path / "task", **given)
        if isinstance(model, str):
            results = _evaluate(model, model_args, folder, tmp_path, own)
            return results, sys.lmms_made.n_asked
        before = model.n_asked
        return _evaluate(model, model_args, folder, tmp_path, own), model.n_asked - before

    return evaluate


def _evaluate(model: Any, model_args: str, folder: Path, tmp_path: Path, own: dict[str, Any]) -> dict[str, Any]:
    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    results = evaluator.simple_evaluate(
        model=model, model_args=model_args, tasks=["mini"], task_manager=manager, use_cache=str(tmp_path / "answers"),
        batch_size=2, bootstrap_iters=0, verbosity="ERROR", **own,
    )  # fmt: skip
    assert results is not None
    return results


def answers(results: dict[str, Any]) -> list[Any]:
    return [each["resps"] for each in results["samples"]["mini"]]


# --- the response cache ---------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_answers_the_same(run: Any) -> None:
    first, computed = run()
    again, recomputed = run()
    assert (computed, recomputed) == (12, 0)
    assert answers(again) == answers(first)
    assert [each["token_counts"] for each in again["samples"]["mini"]] == [[{"output_tokens": 8}]] * 12


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": "talking", "chat": True},
    "model's arguments": {"model_args": "word=x"},
    "body of doc_to_visual": {"colour": 2},
    "body of doc_to_text": {"suffix": "?"},
    "questions of the dataset": {"question": "What is "},
    "fields of the dataset": {"answer": "B"},
    "generation arguments of the task": {"kwargs": {"max_new_tokens": 9, "until": ["#"]}},
    "generation arguments of the run": {"gen_kwargs": "seed=7"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_question_is_not_served(name: str, run: Any) -> None:
    before, _ = run()
    _, computed = run(**CHANGES[name])
    assert computed == 12
    assert run(**CHANGES[name])[1] == 0
    again, computed = run()
    assert computed == 0
    assert answers(again) == answers(before)


def test_the_body_of_doc_to_messages_counts(run: Any) -> None:
    first, computed = run("talking", chat=True)
    assert computed == 12
    assert run("talking", chat=True)[1] == 0
    for change in ({"colour": 2}, {"suffix": "?"}):
        other, computed = run("talking", chat=True, **change)
        assert computed == 12
        assert answers(other) != answers(first)


def test_the_seed_of_few_shots_counts(run: Any) -> None:
    lines = ("fewshot_split: test", "num_fewshot: 2", "fewshot_config: {sampler: default}")
    first, _ = run(lines=lines)
    assert run(lines=lines)[1] == 0
    other, computed = run(lines=lines, fewshot_random_seed=9)
    assert computed > 0
    assert answers(other) != answers(first)
    assert run(lines=lines, fewshot_random_seed=9)[1] == 0


def test_scoring_again_computes_nothing(run: Any) -> None:
    run()
    results, computed = run(scoring="doc = dict(doc)", metrics=("acc", "length"))
    assert computed == 0
    assert results["results"]["mini"]["length,none"] == 8.0


def test_a_scoring_that_fails_loses_no_answers(run: Any) -> None:
    with pytest.raises(Exception, match=r"RetryError|broken"):
        run(scoring="raise ValueError('broken')")
    assert run()[1] == 0


def test_a_model_as_an_object_is_the_same_as_by_its_name(run: Any) -> None:
    run("seeing", "word=x")
    lm = models.Seeing("x")
    assert run(lm)[1] == 0
    assert run(models.Seeing("y"))[1] == 12
    assert run("seeing", "word=y")[1] == 0
    assert run(lm)[1] == 0


def test_parts_of_a_dataset_share(run: Any) -> None:
    assert run(limit=5)[1] == 5
    assert run(limit=8)[1] == 3
    assert run()[1] == 4


def test_repeats_are_each_kept(run: Any) -> None:
    assert run(repeats=3)[1] == 36
    assert run(repeats=3)[1] == 0
    assert run()[1] == 0


def test_sampled_answers_are_sampled_anew(run: Any) -> None:
    for _ in range(2):
        assert run(kwargs={"max_new_tokens": 8, "temperature": 1.0, "do_sample": True})[1] == 12


def test_choices(run: Any) -> None:
    lines = ("output_type: multiple_choice", 'doc_to_choice: ["yes", "maybe"]', "doc_to_target: 0")
    first, computed = run(lines=lines)
    assert computed == 24
    again, recomputed = run(lines=lines)
    assert recomputed == 0
    assert answers(again) == answers(first)


@pytest.mark.parametrize(("model", "chat"), [("seeing", False), ("talking", True)])
def test_each_round_of_an_agent_is_kept(run: Any, model: str, chat: bool) -> None:
    first, computed = run(model, chat=chat, agentic=True)
    assert computed == 36
    again, recomputed = run(model, chat=chat, agentic=True)
    assert recomputed == 0
    assert answers(again) == answers(first)
    other, computed = run(model, chat=chat, agentic=True, suffix="?")  # the first round's question, too
    assert computed == 36
    assert answers(other) != answers(first)
    _, computed = run(model, chat=chat, agentic=True, colour=2)
    assert computed == 36


def test_sampled_rounds_of_an_agent_are_numbered_as_they_come(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class KeepSampled(ResponseCache):
        @classmethod
        def create(cls, cache_root: Any, *, model: Any = "", model_args: Any = "", **_: Any) -> ResponseCache:
            return cls(cache_root, model=model, model_args=model_args, keep_sampled=True)

    monkeypatch.setattr(evaluator, "ResponseCache", KeepSampled)
    sampled = {"kwargs": {"max_new_tokens": 8, "temperature": 1.0, "do_sample": True}, "repeats": 2, "agentic": True}
    first, computed = run(**sampled)
    assert computed == 72
    again, recomputed = run(**sampled)
    assert recomputed == 0
    assert answers(again) == answers(first)


# --- ranks and crashes ----------------------------------------------------------------------------------------------


def child(work: Callable[[], int], **environment: Any) -> int:
    """Run in a fork, since importing the harness takes long; returns its process number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(*pids: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_other_numbers_of_ranks_compute_nothing_again(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", n_docs=13)
    log = tmp_path / "computed"
    log.touch()

    def rank() -> int:
        import torch.distributed as dist

        if int(os.environ["WORLD_SIZE"]) > 1:
            dist.init_process_group("gloo")
        lm = models.Seeing()
        lm._rank, lm._world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
        evaluator.simple_evaluate(
            model=lm, tasks=["mini"], task_manager=manager, use_cache=str(tmp_path / "answers"), bootstrap_iters=0,
            verbosity="ERROR", distributed_executor_backend="torchrun",
        )  # fmt: skip
        with log.open("a") as file:
            file.write("x" * lm.n_asked)
        return 0

    for turn, world_size in enumerate((1, 2, 4, 1)):
        port = 20_000 + os.getpid() % 20_000 + turn
        told = {"WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        assert wait(*[child(rank, RANK=k, LOCAL_RANK=k, **told) for k in range(world_size)]) == [0] * world_size
        assert log.stat().st_size == 13


@pytest.mark.skipif(not SMOLLM2.exists(), reason="make model")
def test_kill_9_with_smollm2_loses_at_most_the_chunk_in_flight(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", n_docs=40, kwargs={"max_new_tokens": 4, "until": ["#"]})
    log = tmp_path / "computed"

    def evaluate() -> int:
        manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
        results = evaluator.simple_evaluate(
            model="smollm", model_args=f"pretrained={SMOLLM2}", tasks=["mini"], task_manager=manager,
            use_cache=str(tmp_path / "answers"), batch_size=4, bootstrap_iters=0, verbosity="ERROR",
        )  # fmt: skip
        return 0 if results is not None else 1

    pid = child(evaluate, LOG_OF_COMPUTED=log)
    while not log.exists() or len(log.read_text().split()) < 24:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    before = log.read_text().split()
    with lmstash.open(tmp_path / "answers") as stash:
        kept = {str(each.meta["doc"]) for each in stash.store.entries("responses/")}
    assert len(before) - len(kept & set(before)) <= 16  # chunks grow from 4 to 8 and 16 requests by then
    assert len(kept) >= 12
    assert wait(child(evaluate, LOG_OF_COMPUTED=log)) == [0]
    after = log.read_text().split()[len(before) :]
    assert len(after) == 40 - len(kept)
    assert not kept & set(after)
    assert wait(child(evaluate, LOG_OF_COMPUTED=log)) == [0]
    assert len(log.read_text().split()) == len(before) + len(after)


# --- saved requests -------------------------------------------------------------------------------------------------


def test_saved_requests_get_their_functions_back_and_follow_the_task(run: Any, tmp_path: Path) -> None:
    built: list[str] = []

    def go(**change: Any) -> tuple[list[Any], bool]:
        folder = write_task(tmp_path / "task", **change)
        text = (folder / "mini_utils.py").read_text()
        log = tmp_path / "built"
        log.unlink(missing_ok=True)
        _count_contexts(built)
        before = len(built)
        with installed():
            results, _ = run(folder=folder, cache_requests=True)
        assert text
        return answers(results), len(built) > before

    first, fresh = go()
    assert fresh
    again, fresh = go()
    assert not fresh
    assert again == first
    for change in (
        {"colour": 2}, {"suffix": "?"}, {"kwargs": {"max_new_tokens": 9, "until": ["#"]}}, {"question": "What is "},
        {"lines": ("description: 'Answer. '",)},
    ):  # fmt: skip
        other, fresh = go(**change)
        assert fresh, change
        assert other != first, change
    limited = go()
    assert limited[0] == first


def _count_contexts(built: list[str]) -> None:
    from lmms_eval.api.task import ConfigurableTask

    if not hasattr(ConfigurableTask, "_counted"):
        construct = ConfigurableTask.construct_requests

        def construct_requests(self: Any, *arguments: Any, **options: Any) -> Any:
            ConfigurableTask._counted.append(str(self.config.task))
            return construct(self, *arguments, **options)

        ConfigurableTask.construct_requests = construct_requests
    ConfigurableTask._counted = built


def test_saved_requests_of_chat_tasks_keep_their_callback(run: Any) -> None:
    with installed():
        first, _ = run("talking", chat=True, cache_requests=True)
        again, _ = run("talking", chat=True, cache_requests=True)
    assert answers(again) == answers(first)


def test_nothing_is_read_when_the_harness_does_not_ask(run: Any, tmp_path: Path) -> None:
    with installed():
        run(cache_requests=True)
        before = len(list((tmp_path / "requests").rglob("*")))
        run()
    assert before == len(list((tmp_path / "requests").rglob("*")))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., tuple[int, dict[str, int]]]:
    def start(*flags: str, model: str = "seeing", model_args: str = "", **task: Any) -> tuple[int, dict[str, int]]:
        folder = write_task(tmp_path / "task", **task)
        argv = ["--model", model, "--tasks", "mini", "--include_path", str(folder), "--verbosity", "ERROR"]
        if model_args:
            argv += ["--model_args", model_args]
        return launching.run([*argv, *flags], str(tmp_path / "stash"))

    return start


def test_the_command_line_caches_by_default(launch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch() == (0, {"asked": 12, "served": 0, "computed": 12})
    assert "|mini" in capsys.readouterr().out
    assert launch(scoring="doc = dict(doc)") == (0, {"asked": 12, "served": 12, "computed": 0})
    assert launch("--no-cache") == (0, {"asked": 0, "served": 0, "computed": 0})
    assert launch() == (0, {"asked": 12, "served": 12, "computed": 0})
    cached = load_from_cache("seeing_mini")
    assert len(cached) == 12
    for doc_id, group in enumerate(cached):
        for request in group:
            assert isinstance(request, Request)
            assert request.arguments[0] == f"Q: {doc_id} + 1"
            assert request.arguments[2] is None
            assert len(request.response) == 8
    assert evaluator.ResponseCache is ResponseCache  # as it was before
    assert evaluator.simple_evaluate.__module__ != launching.__name__


def test_clearing_concerns_this_run_only(launch: Any) -> None:
    launch()
    launch(model_args="word=x")
    assert launch("--clear-cache")[1]["computed"] == 12
    assert launch()[1]["computed"] == 0
    assert launch(model_args="word=x")[1]["computed"] == 0
    assert launch("--use_cache", "", model_args="word=x")[1]["computed"] == 0


def test_a_launch_can_be_told_to_compute_anew(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "task", n_docs=3)
    argv = ["--model", "seeing", "--tasks", "mini", "--include_path", str(folder), "--verbosity", "ERROR"]
    told = [launching.run(argv, str(tmp_path / "stash"), refresh=refresh)[1] for refresh in (False, True, False)]
    assert [each["computed"] for each in told] == [3, 3, 0]


def test_a_named_folder_and_failures(launch: Any, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    assert launch("--use_cache", elsewhere)[1]["computed"] == 12
    assert (tmp_path / "elsewhere/stash.json").exists()
    assert launch("--use_cache", elsewhere)[1]["computed"] == 0
    assert launch("--use_cache", elsewhere, scoring="raise ValueError('broken')")[0] == 1
    with pytest.raises(lmstash.errors.InvalidArgumentError):
        launching.run([], None, imported="x")


def test_requests_are_deleted_when_the_harness_is_asked_to(launch: Any, tmp_path: Path) -> None:
    def saved() -> list[str]:
        with lmstash.open(tmp_path / "requests/lmstash") as stash:
            entries = stash.store.entries("lmms_eval/saved")
            return [each.meta["name"] for each in entries if each.meta["name"].startswith("requests-")]

    launch("--cache_requests", "true")
    assert len(saved()) == 1
    launch("--cache_requests", "delete")
    assert saved() == []


def test_a_log_line_says_what_was_served(launch: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lmstash"):
        launch()
    assert "0 answers served, 12 computed" in caplog.text


def test_clearing_leaves_tasks_whose_names_go_on(tmp_path: Path) -> None:
    def go(task: str, *flags: str) -> int:
        folder = write_task(tmp_path / "task", name=task, n_docs=2)
        argv = ["--model", "seeing", "--tasks", task, "--include_path", str(folder), "--verbosity", "ERROR"]
        return launching.run([*argv, *flags], str(tmp_path / "stash"))[1]["computed"]

    for task in ("mini", "mini_hard", "mini-hard"):
        go(task, "--cache_requests", "true")
    assert go("mini", "--clear-cache", "--cache_requests", "delete") == 2
    assert all(load_from_cache(f"seeing_{task}") for task in ("mini", "mini_hard", "mini-hard"))
    with lmstash.open(tmp_path / "requests/lmstash") as stash:
        names = [each.meta["name"] for each in stash.store.entries("lmms_eval/saved")]
    saved = sorted(each.split("-0shot")[0] for each in names if each.startswith("requests-"))
    assert saved == ["requests-mini-hard", "requests-mini_hard"]
    assert go("mini_hard") == go("mini-hard") == 0


def test_saved_instances_of_the_harness_have_a_response_as_the_seeds_examples_read_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lmms_eval.api.instance import Instance

    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "cache"))
    live = [
        Instance(
            "generate_until", (f"{k} + 1 =", {}), 0, {"task": "sums", "doc_id": k, "repeats": 1}, resps=[str(k + 1)]
        )
        for k in range(3)
    ]
    assert save_to_cache("toy_sums", [[each] for each in live])
    assert not any(hasattr(each, "response") for each in live)
    for _ in range(2):  # what was loaded may be saved again
        groups = load_from_cache("toy_sums")
        assert [request.response for group in groups for request in group] == ["1", "2", "3"]
        assert [request for group in groups for request in group] == live
        assert sum(group[0].response == str(k + 1) for k, group in enumerate(groups)) == 3
        groups[0][0].resps[0] = "1"
        assert save_to_cache("toy_sums", groups)


def test_a_response_is_what_the_instance_says_now_and_the_whole_instance_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import copy
    import pickle

    from lmms_eval.api.instance import Instance

    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "cache"))

    def saved(**fields: Any) -> Any:
        metadata = {"task": "sums", "doc_id": 0, "repeats": 1}
        assert save_to_cache("m_sums", [[Instance("generate_until", ("1 + 1 =", {}), 0, metadata, **fields)]])
        return load_from_cache("m_sums")[0][0]

    assert saved(resps=["2"], filtered_resps={"none": "two"}).response == "2"
    assert saved(resps=["2", "3"]).response == ["2", "3"]
    assert saved(filtered_resps={"none": "two"}).response == "two"
    assert saved().response is None
    one = saved(resps=["2"])
    assert isinstance(one, Instance)
    for each in (one, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
        each.resps[0] = "changed"
        assert each.response == "changed"
    assert save_to_cache("m_sums", [[one]])
    assert load_from_cache("m_sums") == [[one]]
    assert "response" not in vars(load_from_cache("m_sums")[0][0])


def test_the_seeds_examples_run_on_instances_of_the_harness(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmms_eval.api.instance import Instance

    monkeypatch.setenv("LM_HARNESS_CACHE_PATH", str(tmp_path / "cache"))
    runs = []

    def run_evaluation(model: str, task: str) -> list[list[Any]]:
        runs.append((model, task))
        metadata = {"task": task, "doc_id": 0, "repeats": 1}
        return [[Instance("generate_until", ("Q", {}, lambda doc: []), 0, metadata, resps=["A"])]]

    def basic_usage(model_name: str, task_name: str) -> Any:
        cache_key = f"{model_name}_{task_name}"
        cached_results = load_from_cache(cache_key)
        if cached_results is not None:
            requests = cached_results
        else:
            requests = run_evaluation(model_name, task_name)
            save_to_cache(cache_key, requests)
        return requests

    basic_usage("qwen25vl", "videomme")
    cached_responses = basic_usage("qwen25vl", "videomme")
    assert len(runs) == 1
    for request_group in cached_responses:
        for request in request_group:
            print(f"Input: {request.arguments}")
            print(f"Response: {request.response}")
    assert capsys.readouterr().out.splitlines() == ["Input: ('Q', {}, None)", "Response: A"]
    for metric, score in ((str.isupper, 1), (str.islower, 0)):  # A/B testing
        assert sum(metric(request.response) for group in cached_responses for request in group) == score
    assert delete_cache(key="videomme") == 1
    basic_usage("qwen25vl", "videomme")
    assert delete_cache(key="qwen25vl") == 1
    assert load_from_cache("qwen25vl_videomme") is None
