"""`ResponseCache` over stand-ins of the harness: no answer to another question, and no question asked twice."""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmms_standins import Echo, Instance, Task, evaluate, questions

import lmstash
from lmstash.adapters.lmms_eval import ResponseCache
from lmstash.caches.responses import register


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "answers")


def image(value: int) -> Any:
    return pytest.importorskip("PIL.Image").new("RGB", (8, 8), (value, 0, 0))


def shown(value: int) -> Any:
    """A `doc_to_visual` whose body shows this image, whatever the document."""
    return lambda doc: [image(value)]


def said(word: str) -> Any:
    """A `doc_to_messages` of this body."""
    return lambda doc: [{"role": "user", "content": [{"type": "text", "text": word + doc["question"]}]}]


def compiled(source: str, name: str) -> Any:
    scope: dict[str, Any] = {"__name__": "task_utils"}
    exec(source, scope)
    return scope[name]


# --- resuming ----------------------------------------------------------------------------------------------------


def test_a_second_run_computes_nothing(place: str) -> None:
    first, computed = evaluate(place, Echo(), Task(questions(50)))
    again, recomputed = evaluate(place, Echo(), Task(questions(50)))
    assert (computed, recomputed) == (50, 0)
    assert again == first == [f"Q{k} -> 0" for k in range(50)]


def test_a_model_that_has_answered_is_the_same_model(place: str) -> None:
    lm = Echo()
    evaluate(place, lm, Task(questions(50)))
    assert lm.calls
    assert evaluate(place, lm, Task(questions(50)))[1] == 0
    assert evaluate(place, lm, Task(questions(60)))[1] == 10


def test_a_crash_loses_at_most_the_chunk_in_flight(place: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    harmless = ["n_asked", str(broken)]

    class Failing(Echo):
        def generate_until(self, requests: Any) -> list[Any]:
            if broken.exists() and self.n_asked + len(requests) > 30:
                raise ConnectionError("lost")
            return super().generate_until(requests)

    with pytest.raises(ConnectionError):
        evaluate(place, Failing(), Task(questions(50)), chunk_size=4, harmless=harmless)
    broken.unlink()
    answers, computed = evaluate(place, Failing(), Task(questions(50)), chunk_size=4, harmless=harmless)
    assert answers == [f"Q{k} -> 0" for k in range(50)]
    assert computed == 50 - 28


def test_kill_9_loses_at_most_the_chunk_in_flight(place: str, tmp_path: Path) -> None:
    log, kill = tmp_path / "computed", tmp_path / "kill"
    harmless = ["n_asked", str(kill)]

    class Killed(Echo):
        def generate_until(self, requests: Any) -> list[Any]:
            answers = super().generate_until(requests)
            with log.open("a") as file:
                file.writelines(f"{each.doc_id}\n" for each in requests)
            if kill.exists() and self.n_asked >= 40:
                os.kill(os.getpid(), signal.SIGKILL)
            return answers

    kill.touch()
    child = os.fork()
    if not child:
        try:
            evaluate(place, Killed(), Task(questions(100)), chunk_size=4, harmless=harmless)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    kill.unlink()
    before = log.read_text().split()
    assert len(before) == 40
    _, computed = evaluate(place, Killed(), Task(questions(100)), chunk_size=4, harmless=harmless)
    assert computed <= 64
    after = log.read_text().split()[len(before) :]
    assert len(set(before) & set(after)) <= 4


def test_other_numbers_of_ranks_compute_nothing_again(place: str) -> None:
    docs = questions(37)
    total = 0
    for world_size in (1, 2, 4, 1):
        got: dict[int, str] = {}
        for rank in range(world_size):
            answers, computed = evaluate(place, Echo(), Task(docs), rank=rank, world_size=world_size)
            total += computed
            got |= dict(zip(range(rank, len(docs), world_size), answers, strict=True))
        assert got == {k: f"Q{k} -> 0" for k in range(37)}
    assert total == 37


def test_ranks_that_run_at_once_share(place: str) -> None:
    children = []
    for rank in range(4):
        child = os.fork()
        if not child:
            code = 1
            try:
                answers, computed = evaluate(place, Echo(), Task(questions(40)), rank=rank, world_size=4)
                code = 0 if computed == 10 and len(answers) == 10 else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children] == [0] * 4
    assert evaluate(place, Echo(), Task(questions(40)))[1] == 0


def test_padding_is_not_computed_again(place: str) -> None:
    lm, task = Echo(), Task(questions(3))
    lm.task_dict["mini"] = {"test": task.docs}
    requests = task.requests()
    pad = Instance("generate_until", requests[-1].args, 0, {**requests[-1].metadata, "__padding_only__": True})
    cache = ResponseCache(place, model="echo")
    answers = cache.execute(lm, "generate_until", [*requests, pad, pad])
    assert lm.n_asked == 3
    assert answers[2] == answers[3] == answers[4]


# --- no wrong hits -------------------------------------------------------------------------------------------------

Change = Callable[[], tuple[Any, Any, dict[str, Any]]]
BASE: Change = lambda: (Echo(), Task(questions(), doc_to_visual=shown(1)), {})  # noqa: E731

WRONG: dict[str, Change] = {
    "settings of the model": lambda: (Echo("x "), Task(questions(), doc_to_visual=shown(1)), {}),
    "deeper settings": lambda: (Echo(a=[1]), Task(questions(), doc_to_visual=shown(1)), {}),
    "code of the model": lambda: (
        type("Echo", (Echo,), {"answer": lambda self, request: "other"})(),
        Task(questions(), doc_to_visual=shown(1)),
        {},
    ),
    "image": lambda: (Echo(), Task(questions(), doc_to_visual=shown(2)), {}),
    "no image": lambda: (Echo(), Task(questions()), {}),
    "text": lambda: (Echo(), Task(questions(), doc_to_text=lambda d: d["question"] + "?", doc_to_visual=shown(1)), {}),
    "document": lambda: (Echo(), Task(questions(language="de"), doc_to_visual=shown(1)), {}),
    **{
        f"generation argument {name}": (
            lambda name=name, value=value: (
                Echo(),
                Task(
                    questions(),
                    doc_to_visual=shown(1),
                    generation_kwargs={"max_new_tokens": 8, "until": ["\n"], name: value},
                ),
                {},
            )
        )
        for name, value in {
            "seed": 7, "stop": ["x"], "min_p": 0.1, "max_tokens": 3, "presence_penalty": 1.0, "reasoning_effort": "low",
            "until": ["."], "max_new_tokens": 9, "limit": float("inf"), "other": float("nan"),
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_another_question_is_not_served(name: str, place: str) -> None:
    lm, task, options = BASE()
    evaluate(place, lm, task, **options)
    lm, task, options = WRONG[name]()
    answers, computed = evaluate(place, lm, task, **options)
    assert computed == len(task.docs)
    lm, task, options = WRONG[name]()
    assert evaluate(place, lm, task, **options) == (answers, 0)
    lm, task, options = BASE()
    assert evaluate(place, lm, task, **options)[1] == 0


def test_the_content_of_a_named_file_counts(place: str, tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    task = Task(questions(), doc_to_visual=lambda doc: [str(video)])
    assert evaluate(place, Echo(), task)[1] == 10
    assert evaluate(place, Echo(), task)[1] == 0
    video.write_bytes(b"two")
    assert evaluate(place, Echo(), task)[1] == 10
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "0.png").write_bytes(b"0")
    task = Task(questions(), doc_to_visual=lambda doc: [f"file://{frames}"])
    assert evaluate(place, Echo(), task)[1] == 10
    (frames / "0.png").write_bytes(b"1")
    assert evaluate(place, Echo(), task)[1] == 10


@pytest.mark.parametrize("shown_by", [lambda url: [url], lambda url: url, lambda url: [{"video": [url]}]])
@pytest.mark.parametrize(
    "start", ["http://127.0.0.1:9/", "s3://b/", "hf://b/", "file:///none/", f"http://h/{'a' * 9000}/"]
)
def test_what_is_shown_by_url_is_not_cached(place: str, start: str, shown_by: Any) -> None:
    task = Task(questions(3), doc_to_visual=lambda doc: shown_by(f"{start}{doc['question']}.png"))
    assert evaluate(place, Echo(), task)[1] == 3
    assert evaluate(place, Echo(), task)[1] == 3
    assert evaluate(place, Echo(), task, urls="trust")[1] == 3
    assert evaluate(place, Echo(), task, urls="trust")[1] == 0


def test_media_of_all_kinds_count(place: str) -> None:
    def sound(value: float) -> Any:
        return lambda doc: [{"array": np.full(100, value, np.float32), "sampling_rate": 16000}]

    for value in (0.0, 1.0):
        assert evaluate(place, Echo(), Task(questions(), doc_to_visual=sound(value)))[1] == 10
        assert evaluate(place, Echo(), Task(questions(), doc_to_visual=sound(value)))[1] == 0


def test_chat_messages_count(place: str) -> None:
    for word in ("a ", "b "):
        task = Task(questions(), doc_to_messages=said(word))
        assert evaluate(place, Echo(), task, chat=True)[1] == 10
        assert evaluate(place, Echo(), task, chat=True)[1] == 0


def test_several_rounds_count_by_the_code_that_makes_them(place: str) -> None:
    def run(body: str) -> int:
        lm = Echo()
        lm.task_dict["mini"] = {"test": questions(5)}
        head = "def doc_to_text(doc, previous_output=None):\n"
        source = f"{head}    return doc['question'] if not previous_output else {body}"
        function = compiled(source, "doc_to_text")
        requests = [
            Instance(
                "generate_until_multi_round",
                (f"Q{k}", {"max_new_tokens": 8}, lambda doc: [], function, k, "mini", "test"),
                0,
                {"task": "mini", "doc_id": k},
            )
            for k in range(5)
        ]
        cache = ResponseCache(place, model="echo")
        assert cache.execute(lm, "generate_until_multi_round", requests) == [[f"Q{k} 1", f"Q{k} 2"] for k in range(5)]
        cache.finalize(success=True)
        return lm.n_asked

    assert [run("'a'"), run("'a'"), run("'b'"), run("'b'"), run("'a'")] == [5, 0, 5, 0, 0]


def test_samples_are_not_collapsed(place: str) -> None:
    class Sampling(Echo):
        def generate_until(self, requests: Any) -> list[Any]:
            out = [f"{request.args[0]} #{self.n_asked + k}" for k, request in enumerate(requests)]
            self.n_asked += len(requests)
            return out

    def run(**options: Any) -> tuple[list[Any], int]:
        kwargs = options.pop("generation_kwargs")
        task = Task(questions(3), generation_kwargs=kwargs, repeats=4)
        return evaluate(place, Sampling(), task, harmless=["n_asked"], **options)

    hot = {"max_new_tokens": 8, "temperature": 1.0}
    for _ in range(2):  # unseeded: each run samples anew
        answers, computed = run(generation_kwargs=hot)
        assert (len(set(answers)), computed) == (12, 12)
    first, computed = run(generation_kwargs=hot, keep_sampled=True)
    assert (len(set(first)), computed) == (12, 12)
    assert run(generation_kwargs=hot, keep_sampled=True) == (first, 0)
    seeded = {**hot, "seed": 3}
    first, computed = run(generation_kwargs=seeded)
    assert (len(set(first)), computed) == (12, 12)
    assert run(generation_kwargs=seeded) == (first, 0)


def test_repeats_of_a_greedy_request_are_each_computed_and_kept(place: str) -> None:
    assert evaluate(place, Echo(), Task(questions(3), repeats=4))[1] == 12
    assert evaluate(place, Echo(), Task(questions(3), repeats=4))[1] == 0
    assert evaluate(place, Echo(), Task(questions(3), repeats=5))[1] == 3


@pytest.mark.parametrize(
    "settings",
    [{"model_args": "temperature=0.7"}, {"model_args": {"do_sample": True}}],
)
def test_models_that_sample_where_nothing_is_said(settings: dict[str, Any], place: str) -> None:
    for _ in range(2):
        assert evaluate(place, Echo(), Task(questions(3)), **settings)[1] == 3
    told = Task(questions(3), generation_kwargs={"do_sample": False, "temperature": 0})
    assert evaluate(place, Echo(), told, **settings)[1] == 3
    assert evaluate(place, Echo(), told, **settings)[1] == 0


def test_two_documents_with_one_text_are_two_questions(place: str) -> None:
    docs = [{"question": "same"}, {"question": "same"}]
    assert evaluate(place, Echo(), Task(docs))[1] == 2


# --- no needless misses ---------------------------------------------------------------------------------------------

NEEDLESS: dict[str, Change] = {
    "order of generation arguments": lambda: (
        Echo(),
        Task(questions(), doc_to_visual=shown(1), generation_kwargs={"until": ["\n"], "max_new_tokens": 8}),
        {},
    ),
    "the model as an object": lambda: (Echo(), Task(questions(), doc_to_visual=shown(1)), {"model": Echo()}),
    "batch size": lambda: (Echo(batch_size=8), Task(questions(), doc_to_visual=shown(1)), {}),
    "another body that shows the same": lambda: (
        Echo(),
        Task(questions(), doc_to_visual=lambda doc: [image(0 + 1)]),
        {},
    ),
    "metrics": lambda: (Echo(), Task(questions(), doc_to_visual=shown(1), metric_list=["bleu"]), {}),
    "harmless arguments": lambda: (
        Echo(),
        Task(questions(), doc_to_visual=shown(1)),
        {"model_args": "api_key=sk-1,device_map=auto"},
    ),
}


@pytest.mark.parametrize("name", NEEDLESS)
def test_the_same_question_is_served(name: str, place: str) -> None:
    lm, task, options = BASE()
    first, _ = evaluate(place, lm, task, **options)
    lm, task, options = NEEDLESS[name]()
    assert evaluate(place, lm, task, **options) == (first, 0)


def test_0_is_0_0(place: str) -> None:
    for temperature in (0, 0.0):
        kwargs = {"temperature": temperature, "top_p": 1, "do_sample": False}
        computed = evaluate(place, Echo(), Task(questions(), generation_kwargs=kwargs))[1]
    assert computed == 0
    assert evaluate(place, Echo(), Task(questions(), generation_kwargs={**kwargs, "top_p": 1.0}))[1] == 0


# --- who answers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def llama() -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return make


class WithModule(Echo):
    """As the harness's models of transformers: a module, and where it came from."""

    def __init__(self, module: Any, pretrained: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self._model = module
        self._config = module.config
        self.pretrained = pretrained
        self._device = "cpu"


def test_a_module_is_its_weights_not_its_path(place: str, llama: Any) -> None:
    def run(seed: int, path: str, name: str = "hf") -> int:
        lm = WithModule(llama(seed), path)
        return evaluate(place, lm, Task(questions()), model=name, model_args=f"pretrained={path},dtype=float32")[1]

    assert [run(0, "/a"), run(0, "/b"), run(0, "/a", "other name"), run(1, "/a"), run(1, "/b")] == [10, 0, 0, 10, 0]


def test_weights_changed_in_place_are_another_model(place: str, llama: Any) -> None:
    torch = pytest.importorskip("torch")
    lm = WithModule(llama(0))
    evaluate(place, lm, Task(questions()))
    weight = lm._model.lm_head.weight.detach().clone()
    with torch.no_grad():
        lm._model.lm_head.weight[0, 0] += 1
    assert evaluate(place, lm, Task(questions()))[1] == 10
    with torch.no_grad():
        lm._model.lm_head.weight.data.copy_(weight)
    assert evaluate(place, lm, Task(questions()))[1] == 0


def test_what_a_module_generates_by_counts(place: str, llama: Any) -> None:
    def run(lm: Any) -> int:
        return evaluate(place, lm, Task(questions()))[1]

    def made(penalty: float | None) -> Any:
        module = llama(0)
        module.generation_config.repetition_penalty = penalty
        return WithModule(module)

    lm = made(None)
    assert [run(lm), run(lm), run(made(1.7)), run(made(1.7)), run(made(None))] == [10, 0, 10, 0, 0]
    lm._model.generation_config.repetition_penalty = 1.7
    assert run(lm) == 0
    lm._model.generation_config.repetition_penalty = 1.2
    assert run(lm) == 10


def test_what_was_said_while_a_module_changed_what_it_generates_by_is_not_kept(place: str, llama: Any) -> None:
    class Setting(WithModule):
        def generate_until(self, requests: Any) -> list[Any]:
            self._model.generation_config.repetition_penalty = 1.7
            return super().generate_until(requests)

    assert evaluate(place, Setting(llama(0)), Task(questions()), chunk_size=20)[1] == 10
    undone = Setting(llama(0))
    assert evaluate(place, undone, Task(questions()), chunk_size=20)[1] == 10
    assert evaluate(place, undone, Task(questions()))[1] == 10  # by now it is what it says
    assert evaluate(place, undone, Task(questions()))[1] == 0


def test_a_model_that_changes_while_it_answers_keeps_nothing(
    place: str, llama: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")

    class Learning(WithModule):
        def generate_until(self, requests: Any) -> list[Any]:
            with torch.no_grad():
                self._model.lm_head.weight += 1
            return super().generate_until(requests)

    assert evaluate(place, Learning(llama(0)), Task(questions()))[1] == 10
    assert evaluate(place, Learning(llama(0)), Task(questions()))[1] == 10


def test_a_module_whose_generation_config_samples(place: str, llama: Any) -> None:
    lm = WithModule(llama(0))
    lm._model.generation_config.do_sample = True
    for _ in range(2):
        assert evaluate(place, lm, Task(questions()))[1] == 10


COUNTING = {
    "a number": ("N = 0", "global N; N += len(r)"),
    "a Counter": ("N = Counter()", "N['asked'] += len(r)"),
    "a defaultdict": ("N = defaultdict(int)", "N['asked'] += len(r)"),
    "a helper's": ("N = Counter()\ndef note(r): N['asked'] += len(r)", "note(r)"),
    "its own": ("N = defaultdict(list)", "self.settings['mine'].append(len(r))"),
}


@pytest.mark.parametrize("how", COUNTING)
def test_counters_among_the_globals_of_a_model_are_no_part_of_it(how: str, place: str, llama: Any) -> None:
    """Though its weights say who it is, and so nothing would be kept of one that changes itself."""
    before, counts = COUNTING[how]
    body = f" def generate_until(self, r):\n  {counts}\n  return super().generate_until(r)"
    for n_computed in (10, 0, 0):
        made: dict[str, Any] = {"__name__": "a_program", "Module": WithModule}
        exec(f"from collections import *\n{before}\nclass Counting(Module):\n{body}", made)
        lm = made["Counting"](llama(0))
        lm.settings = defaultdict(list)
        assert evaluate(place, lm, Task(questions()))[1] == n_computed


def test_a_setting_that_changes_while_it_answers_is_no_counter(place: str, caplog: pytest.LogCaptureFixture) -> None:
    class Drifting(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.mood = "a"

        def generate_until(self, requests: Any) -> list[Any]:
            self.mood = self.mood + "b"
            return super().generate_until(requests)

    for _ in range(2):
        assert evaluate(place, Drifting(), Task(questions()), model=Drifting())[1] == 10
    assert "changes its mood" in caplog.text
    assert evaluate(place, Drifting(), Task(questions()), model=Drifting(), harmless=["mood"])[1] == 10
    assert evaluate(place, Drifting(), Task(questions()), model=Drifting(), harmless=["mood"])[1] == 0


class Explaining(Echo):
    """Goes by an attribute that in a class of the harness changes no answer."""

    def answer(self, request: Any) -> Any:
        return super().answer(request) + " Let me explain." * self.verbosity


def test_an_attribute_that_ones_own_code_goes_by_counts_under_whatever_name(place: str) -> None:
    def run(kind: Any, **attributes: Any) -> int:
        lm = kind()
        vars(lm).update(attributes)
        return evaluate(place, lm, Task(questions()))[1]

    assert [run(Explaining, verbosity=each) for each in (0, 1, 0)] == [10, 10, 0]
    assert run(Explaining, verbosity=0, timeout=9, batch_size=5) == 0
    assert [run(Echo, verbosity=each) for each in (0, 1)] == [10, 0]


class Elsewhere(Echo):
    """Stands for something that computes on a server."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.client = type("Client", (), {"__module__": "openai.client"})()


def test_what_computes_elsewhere_is_its_name_and_arguments(place: str) -> None:
    def run(model: Any, arguments: Any, **options: Any) -> int:
        return evaluate(place, Elsewhere(), Task(questions()), model=model, model_args=arguments, **options)[1]

    base = "model_version=m-1,base_url=https://u:p@host/v1,api_key=sk-1,timeout=3"
    assert run("openai", base) == 10
    assert run("openai", "timeout=9,api_key=sk-2,base_url=https://host/v1/,model_version=m-1") == 0
    assert run("openai", {"model_version": "m-1", "base_url": "https://host/v1"}) == 0
    assert run("openai", base.replace("m-1", "m-2")) == 10
    assert run("openai", base.replace("host", "other")) == 10
    assert run("async_openai", base) == 10
    assert run("openai", base, revision="2026-11") == 10
    assert run("openai", base + ",max_frames=4") == 10
    assert run("openai", base + ",max_frames=4", harmless=["max_frames"]) == 0


ADDRESSES = ["OPENAI_API_BASE", "AZURE_OPENAI_ENDPOINT", "AZURE_API_VERSION", "ANTHROPIC_BASE_URL", "OPENAI_API_URL"]


@pytest.mark.parametrize("variable", ADDRESSES)
def test_where_a_client_is_asked_that_does_not_say_it_is_what_the_environment_says(
    variable: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.endswith(("_URL", "_BASE", "_ENDPOINT")):
            monkeypatch.delenv(name)

    def run(value: str | None) -> int:
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
        return evaluate(place, Elsewhere(), Task(questions()), model="gemini", model_args="model_version=m")[1]

    values = [None, "http://a/v1", "http://b/v1", "http://a/v1", "http://me:pw@a/v1/", None]
    assert [run(each) for each in values] == [10, 10, 10, 0, 0, 0]


def test_the_address_that_a_live_client_has_counts_whatever_said_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(url: str, arguments: str = "model_version=m", version: str | None = None) -> int:
        lm = Elsewhere()
        lm.client.base_url, lm.client._api_version = url, version
        return evaluate(place, lm, Task(questions()), model="openai", model_args=arguments)[1]

    assert [run("http://a/v1/"), run("http://b/v1/"), run("http://a/v1")] == [10, 10, 0]
    monkeypatch.setenv("OPENAI_API_BASE", "http://c/v1")  # which the client has not read
    assert run("http://a/v1") == 0
    assert run("http://a/v1", version="2025-03-01") == 10
    assert [run("http://a/v1", "model_version=m,base_url=http://a/v1") for _ in range(2)] == [10, 0]


def test_another_address_given_to_a_client_meanwhile_is_another_model(place: str) -> None:
    lm = Elsewhere()
    lm.task_dict["mini"] = {"test": questions()}
    cache = ResponseCache(place, model="openai")
    for url in ("http://a", "http://b", "http://a"):
        lm.client.base_url = url
        cache.execute(lm, "generate_until", Task(questions()).requests())
    assert lm.n_asked == 20


def test_the_key_of_one_that_is_given_its_address_stays(place: str) -> None:
    from lmstash.adapters.lmms_eval.who.model import ModelObject

    with lmstash.open(place) as stash:
        lm = Elsewhere()
        lm.client.base_url = "http://a/v1/"
        who = ModelObject(lm, stash.store, name="openai", arguments={"base_url": "http://u:p@a/v1"}).look()
        assert {"name", "arguments", "attribute:client"} <= who.components.keys()
        assert "asked at" not in who.components


def test_of_what_holds_no_module_its_code_may_read_its_address_from_the_environment(
    place: str, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(url: str, lm: Any) -> int:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        return evaluate(place, lm, Task(questions()))[1]

    assert [run("http://a", Echo()), run("http://b", Echo()), run("http://a", Echo())] == [10, 10, 0]
    assert [run("http://a", WithModule(llama(0))), run("http://b", WithModule(llama(0)))] == [10, 0]


def test_nobody_guesses_who_an_object_is_that_computes_elsewhere(place: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        lm = Elsewhere()
        assert evaluate(place, lm, Task(questions()), model=lm)[1] == 10
    assert caplog.text.count("nobody can say who answers") == 2  # once in each run
    lm = Elsewhere()
    assert evaluate(place, lm, Task(questions()), model=lm, declared="mine, 2026-11")[1] == 10
    assert evaluate(place, lm, Task(questions()), model=lm, declared="mine, 2026-11")[1] == 0


def test_local_weights_of_a_declared_model_count(place: str, tmp_path: Path) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "a.safetensors").write_bytes(b"1")

    def run() -> int:
        return evaluate(place, Elsewhere(), Task(questions()), model="vllm", model_args=f"model={weights}")[1]

    assert [run(), run()] == [10, 0]
    (weights / "a.safetensors").write_bytes(b"22")
    assert run() == 10


def test_secrets_are_never_stored(place: str, tmp_path: Path) -> None:
    secret = "sk-very-secret-0123456789"
    for arguments in (f"api_key={secret}", f"hf_token={secret}", f"my_secret={secret}", f"openai_api_key={secret}"):
        evaluate(place, Elsewhere(), Task(questions()), model="openai", model_args=arguments)
    lm = Echo()
    lm.api_key, lm.client_secret, lm.password = secret, secret, secret
    evaluate(place, lm, Task(questions(), generation_kwargs={"api_key": secret, "max_new_tokens": 3}))
    for path in Path(place).rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


# --- answers --------------------------------------------------------------------------------------------------------


@register
@dataclass
class Usage:
    input_tokens: int


@register
@dataclass
class Generation:
    text: str
    token_counts: Usage | None = None


@pytest.mark.parametrize(
    "answer",
    [
        "text",
        Generation("t", Usage(3)),
        ("t", {"input_tokens": 3}),
        ["round 1", "round 2"],
        [Generation("a"), Generation("b")],
    ],
)
def test_answers_come_back_with_their_types(answer: Any, place: str) -> None:
    class Answering(Echo):
        def answer(self, request: Any) -> Any:
            return answer

    first = evaluate(place, Answering(), Task(questions(2)))
    again = evaluate(place, Answering(), Task(questions(2)))
    assert again == (first[0], 0)
    assert type(again[0][0]) is type(answer)


def test_loglikelihoods_come_back_as_tuples(place: str) -> None:
    def run(target: Any) -> tuple[Any, int]:
        lm = Echo()
        lm.task_dict["mini"] = {"test": questions(2)}
        choices = [("Q", each, lambda doc: [], k, "mini", "test") for k in range(2) for each in ("yes", target)]
        requests = [
            Instance("loglikelihood", each, n % 2, {"task": "mini", "doc_id": each[3]})
            for n, each in enumerate(choices)
        ]
        bare = Instance("loglikelihood", ("", "yes"), 0, {"task": "mini", "doc_id": 0})
        cache = ResponseCache(place, model="echo")
        answers = cache.execute(lm, "loglikelihood", [*requests, bare])
        cache.finalize(success=True)
        return answers, lm.n_asked

    answers, computed = run("no")
    assert computed == 5
    assert answers[0] == (-1.0, True)
    assert run("no") == (answers, 0)
    assert run("maybe")[1] == 2


@pytest.mark.parametrize("empty", ["", "  \n", None, Generation(" ")])
def test_empty_answers_are_not_kept(empty: Any, place: str) -> None:
    class Failing(Echo):
        def answer(self, request: Any) -> Any:
            return empty if request.doc_id == 1 else "fine"

    for expected in (3, 1):
        answers, computed = evaluate(place, Failing(), Task(questions(3)))
        assert computed == expected
        assert answers == ["fine", empty, "fine"]


@pytest.mark.parametrize("n_given", [0, 1, 4])
def test_answers_that_nobody_can_attribute_are_refused(n_given: int, place: str) -> None:
    class Short(Echo):
        def generate_until(self, requests: Any) -> list[Any]:
            return ["x"] * n_given

    with pytest.raises(lmstash.errors.InvalidArgumentError, match=f"returned {n_given} answers to 2"):
        evaluate(place, Short(), Task(questions(3)))


# --- faults, numbers, places ----------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_computed_and_not_kept(place: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(doc: Any) -> Any:
        raise OSError("no such image")

    class Blind(Echo):
        def see(self, request: Any) -> Any:
            return []

    counts: dict[str, int] = {}
    for _ in range(2):
        answers, computed = evaluate(
            place,
            Blind(),
            Task(questions(3), doc_to_visual=broken),
            watch=lambda cache: counts.update(cache.stash.stats.misses),
        )
        assert computed == 3
        assert answers == ["Q0 -> 0", "Q1 -> 0", "Q2 -> 0"]
    assert counts["unsupported"] == 3
    assert "no such image" in caplog.text


def test_a_stash_that_cannot_be_written_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    answers, computed = evaluate(str(tmp_path / "file" / "x"), Echo(), Task(questions(3)))
    assert (len(answers), computed) == (3, 3)


def test_a_sharded_model_is_called_for_every_request(place: str) -> None:
    class Sharded(Echo):
        world_size = 2
        accelerator = type("Accelerator", (), {"distributed_type": "DistributedType.FSDP"})()

    for _ in range(2):
        assert evaluate(place, Sharded(), Task(questions(3)))[1] == 3


def test_numbers_by_the_harnesss_names(place: str) -> None:
    stats: dict[str, Any] = {}
    evaluate(place, Echo(), Task(questions(6)))
    evaluate(place, Echo(), Task(questions(8)), watch=lambda cache: stats.update(cache.get_stats()))
    assert (stats["hits"], stats["misses"], stats["total_cached_entries"]) == (6, 2, 8)
    assert stats["hit_rate"] == 0.75
    hot = Task(questions(2), generation_kwargs={"temperature": 1})
    evaluate(place, Echo(), hot, watch=lambda cache: stats.update(cache.get_stats()))
    assert stats["skipped_non_deterministic"] == 2


def test_places(tmp_path: Path) -> None:
    for root, expected in (("new", "new"), ("old.db/cache.db", "old.db"), ("full", "full/lmstash")):
        (tmp_path / "full").mkdir(exist_ok=True)
        (tmp_path / "full/cache.db").write_text("theirs")
        for _ in range(2):
            cache = ResponseCache.create(str(tmp_path / root), model="m", model_args="a=1", world_size=2, global_rank=1)
            cache.close()
        assert (tmp_path / expected / "stash.json").exists()


def test_answers_are_found_by_task_and_can_be_refreshed(place: str) -> None:
    evaluate(place, Echo(), Task(questions(3)))
    with lmstash.open(place) as stash:
        entries = list(stash.store.entries("responses/"))
        assert {(each.meta["task"], each.meta["doc"], each.meta["split"]) for each in entries} == {
            ("mini", k, "test") for k in range(3)
        }
    assert evaluate(place, Echo(), Task(questions(3)), refresh=True)[1] == 3
    assert evaluate(place, Echo(), Task(questions(3)))[1] == 0


@pytest.mark.parametrize("known", [False, True], ids=["new model", "known model"])
def test_the_longest_contexts_come_first_so_that_batches_are_of_equals(place: str, known: bool) -> None:
    if known:
        evaluate(place, Echo(), Task(questions(2)))
    docs = [{"question": f"{'word ' * (50 if k % 8 == 0 else k % 3)}{k}"} for k in range(64)]
    lm = Echo()
    answers, computed = evaluate(place, lm, Task(docs), chunk_size=8)
    assert (answers, computed) == ([f"{each['question']} -> 0" for each in docs], 64)
    lengths = [[len(each.args[0]) for each in chunk] for chunk in lm.calls]
    assert [len(each) for each in lengths] == [8] * 8
    asked = [each for chunk in lengths for each in chunk]
    order = [len(each["question"]) for each in docs]
    first = 0 if known else 8  # of a model that nobody has seen, answers may hang on their order
    assert asked[:first] == order[:first]
    assert asked[first:] == sorted(order[first:], reverse=True)
    assert evaluate(place, Echo(), Task(docs)) == (answers, 0)


class Remembering(Echo):
    """Answers with what it was asked before, too."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[str] = []

    def answer(self, request: Any) -> str:
        self.turns.append(request.args[0])
        return " | ".join(self.turns[-2:])


def test_a_model_whose_answers_hang_on_their_order_answers_as_without_a_cache(place: str) -> None:
    task = Task([{"question": each} for each in ("hi", "what is shown?", "and left of it, what is that?", "why?", "?")])
    live = Remembering()
    live.task_dict = {"mini": {"test": task.docs}}
    expected = live.generate_until(task.requests())
    for _ in range(2):
        lm = Remembering()
        lm.task_dict = live.task_dict
        cache = ResponseCache(place, model="remembering")
        assert cache.execute(lm, "generate_until", task.requests()) == expected
        stats = cache.get_stats()
        assert (stats["hits"], stats["misses"]) == (0, 5)
        cache.finalize(success=True)


class Switching(Echo):
    """Answers in another way from some question on."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = "a"

    def answer(self, request: Any) -> str:
        if "switch" in request.args[0]:
            self.mode = "b"
        return f"{self.mode} {request.args[0]}"


def test_that_the_order_was_another_one_is_told_where_answers_turn_out_to_hang_on_it(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task([{"question": f"{'x' * k}{' switch' if k == 5 else ''}"} for k in range(10)])
    live = Switching()
    live.task_dict = {"mini": {"test": task.docs}}
    expected = live.generate_until(task.requests())
    told: list[int] = []
    for _ in range(2):
        caplog.clear()
        lm = Switching()
        lm.task_dict = live.task_dict
        cache = ResponseCache(place, model="switching")
        answers = cache.execute(lm, "generate_until", task.requests())
        cache.finalize(success=True)
        told.append(sum("run it again" in each.getMessage() for each in caplog.records))
        assert answers == expected or told == [1]
    assert told == [1, 0]


def test_chunks_grow_until_they_take_long_enough(place: str) -> None:
    lm = Echo(batch_size=2)
    evaluate(place, lm, Task(questions(3000)))
    sizes = [len(each) for each in lm.calls]
    assert sizes[0] == 2
    assert sizes == sorted(sizes[:-1]) + sizes[-1:] or max(sizes) >= 512
    assert sum(sizes) == 3000


@pytest.mark.parametrize("loaded", [True, False])
def test_arguments_are_read_as_the_harness_does_also_where_it_is_not_loaded(place: str, monkeypatch, loaded) -> None:
    if loaded:
        pytest.importorskip("lmms_eval.utils")
    else:
        monkeypatch.delitem(sys.modules, "lmms_eval.utils", raising=False)
    cache = ResponseCache(place, model="m", model_args="a=1,b=False,c=0.5,d=x/y=z,e=-2")
    cache.close()
    assert repr(cache._arguments) == repr({"a": 1, "b": False, "c": 0.5, "d": "x/y=z", "e": -2.0})
    assert ("lmms_eval.utils" in sys.modules) is loaded
