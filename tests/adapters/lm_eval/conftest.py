"""A tiny local model, a model of one's own class, and tasks in local files, for the harness's tests."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import lmstash
from lmstash.stash import Stash

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


@pytest.fixture(autouse=True)
def _datasets_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "datasets"
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the variables above say, also where another test has loaded the hub's client before."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def _without_a_report_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness ends each evaluation by asking other programs about the machine, which takes seconds."""
    import lm_eval.evaluator

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    monkeypatch.setattr(lm_eval.evaluator, "get_git_commit_hash", lambda: None)


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


def of_harness(kind: Any) -> Any:
    """A class whose functions are the harness's own, as far as anyone can see."""
    for name, member in list(vars(kind).items()):
        if isinstance(member, FunctionType):
            named = {**member.__globals__, "__name__": "lm_eval.models.scripted"}
            made = FunctionType(member.__code__, named, name, member.__defaults__, member.__closure__)
            made.__kwdefaults__ = member.__kwdefaults__
            setattr(kind, name, made)
    return kind


@of_harness
class Scripted(LM):
    """A backend of the harness: answers by a function, counts what it is asked, and reports as it is told to."""

    batch_size = 1

    def __init__(self, say: Callable[[str, tuple[Any, ...]], Any], *, reports: bool = False) -> None:
        super().__init__()
        self._say = say
        self._reports = reports
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def _each(self, method: str, requests: list[Any]) -> list[Any]:
        out = []
        for each in requests:
            self.seen.append((method, each.args))
            out.append(self._say(method, each.args))
            if self._reports:
                self.cache_hook.add_partial(method, each.args, out[-1])
        return out

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return self._each("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        return self._each("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return self._each("generate_until", requests)


def echo(method: str, arguments: tuple[Any, ...]) -> Any:
    """An answer that says what was asked."""
    if method == "loglikelihood":
        return (-float(len(arguments[0])) - len(arguments[1]) / 100, len(arguments[1]) % 2 == 0)
    if method == "loglikelihood_rolling":
        return -float(len(arguments[0]))
    options = {name: float(value) if type(value) is int else value for name, value in arguments[1].items()}
    return f"{arguments[0]} -> {sorted(map(str, options.items()))}"


def instance(
    method: str, *arguments: Any, doc: int | None = 0, repeats: int = 1, task: str = "t", idx: int = 0
) -> Instance:
    """A request as a task makes it."""
    return Instance(method, {}, arguments, 0, (task, doc, repeats))  # pyright: ignore[reportArgumentType]


def generations(n: int, **options: Any) -> list[Instance]:
    """Greedy requests with different prompts."""
    given = {"until": ["\n"], "max_gen_toks": 4, **options}
    return [instance("generate_until", f"prompt {i}", dict(given), doc=i) for i in range(n)]


def write_tasks(
    folder: Path, n_docs: int = 8, *, prompt: str = "Q: {{q}}\nA:", metric: str = "exact_match", **options: Any
) -> Path:
    """Write tasks `t_gen`, `t_mc` and `t_roll` over one local dataset; `options` go among the generation arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"q": f"What is {i} plus {i + 1}?", "a": str(2 * i + 1), "choices": [str(2 * i), str(2 * i + 1)], "gold": 1}
        for i in range(n_docs)
    ]
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": prompt,
    }
    generation = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False, **options}
    tasks = {
        "t_gen": {"output_type": "generate_until", "doc_to_target": "{{a}}", "generation_kwargs": generation}
        | {"metric_list": [{"metric": metric}]},
        "t_mc": {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": "choices"}
        | {"metric_list": [{"metric": "acc"}]},
        "t_roll": {"output_type": "loglikelihood_rolling", "doc_to_target": "{{q}} {{a}}", "doc_to_text": ""}
        | {"metric_list": [{"metric": "word_perplexity"}]},
    }
    for name, task in tasks.items():  # YAML reads JSON
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def evaluate(model: Any, folder: Path, names: list[str], **options: Any) -> dict[str, Any]:
    """Run the harness's own evaluator on local tasks."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    given = {"bootstrap_iters": 0, "log_samples": True, **options}
    return simple_evaluate(model=model, tasks=names, task_manager=manager, **given)  # pyright: ignore[reportReturnType]


def answers_of(results: dict[str, Any]) -> dict[str, list[Any]]:
    """All answers of an evaluation, by task."""
    return {name: [each["resps"] for each in samples] for name, samples in results["samples"].items()}


@pytest.fixture(scope="session")
def tokenizer(smollm2_folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(smollm2_folder)


def tiny_model(seed: int = 0, **options: Any) -> Any:
    """A random Llama of one small layer with the vocabulary of SmolLM2."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=49152,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
        bos_token_id=1,
        **shape,
        **options,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def hflm(tokenizer: Any) -> Callable[..., Any]:
    """Makes an `HFLM` of a tiny random model: of `seed`, or of `model`."""
    from lm_eval.models.huggingface import HFLM

    def make(seed: int = 0, model: Any = None, **options: Any) -> Any:
        given = {"tokenizer": tokenizer, "batch_size": 2, "device": "cpu", **options}
        return HFLM(pretrained=tiny_model(seed) if model is None else model, **given)

    return make
