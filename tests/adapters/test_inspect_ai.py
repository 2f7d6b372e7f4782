"""inspect-ai's own evaluations over a model whose answers are kept."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="needs inspect-ai: make env")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelCall,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, ToolFunction, tool
from PIL import Image

import lmstash
from lmstash import Stash
from lmstash.adapters.inspect_ai import attach, detach
from lmstash.errors import InvalidArgumentError

GREEDY = GenerateConfig(temperature=0.0)
QUESTIONS = ["What is 1 + 1?", "What is 2 + 2?", "Who are you?"]


def png(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (1, 1), colour).save(file, "png")
    return file.getvalue()


PIXELS = [f"data:image/png;base64,{base64.b64encode(png(colour)).decode()}" for colour in (1, 2)]


class Counting(ModelAPI):
    """Says how often it was asked."""

    answers = itertools.count(1)
    stop: Any = "stop"
    said = "answer {}"

    def __init__(self, model_name: str, base_url: str | None = None, api_key: str | None = None,
                 config: GenerateConfig = GREEDY, **model_args: Any) -> None:  # fmt: skip
        super().__init__(model_name, base_url, api_key, [], config)
        self.asked = 0

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        self.asked += 1
        output = ModelOutput.from_content(self.model_name, self.said.format(next(self.answers)), self.stop)
        output.usage = ModelUsage(input_tokens=7, output_tokens=2, total_tokens=9)
        output.metadata = {"nested": [1, {"a": None}], "text": "ä"}
        return output


modelapi("counting")(lambda: Counting)


@pytest.fixture
def made(stash: Stash) -> Callable[..., Model]:
    """Makes a model that keeps its answers in `stash`."""

    def make(name: str = "counting/one", *, config: GenerateConfig = GREEDY, **options: Any) -> Model:
        given = {key: options.pop(key) for key in list(options) if key in ("base_url", "version", "folder")}
        return attach(get_model(name, config=config, memoize=False, **given), stash, **options)

    return make


@pytest.fixture
def stash() -> Any:
    with lmstash.open("memory://", strict=True, trust_env=False) as opened:
        yield opened


def run(model: Model, tmp_path: Path, questions: list[Any] = QUESTIONS, **options: Any) -> Any:
    given = {key: options.pop(key) for key in list(options) if key in ("solver", "epochs", "config")}
    task = Task([Sample(input=each, target="answer") for each in questions], scorer=includes(), **given)
    (log,) = eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **options)
    assert log.status == "success", log.error
    return log


def said(log: Any) -> list[str]:
    return [each.output.completion for each in log.samples]


def test_an_evaluation_that_is_run_again_asks_nobody(made: Any, tmp_path: Path) -> None:
    first = made()
    log = run(first, tmp_path)
    assert first.api.asked == 3
    assert log.stats.model_usage["counting/one"].total_tokens == 27
    again = made()
    other = run(again, tmp_path)
    assert again.api.asked == 0
    assert said(other) == said(log)
    assert not other.stats.model_usage  # nothing was paid for


def test_what_comes_back_is_what_was_answered(made: Any, stash: Stash) -> None:
    async def ask(model: Model) -> ModelOutput:
        return await model.generate("What?")

    first, second = asyncio.run(ask(made())), asyncio.run(ask(made()))
    assert second.usage is None
    fields = {"usage", "time", "input_context_tokens"}  # the last is counted from the first
    assert second.model_dump(exclude=fields) == first.model_dump(exclude=fields)
    assert second.choices[0].message.id == first.choices[0].message.id
    assert stash.stats.hits == 1


OTHERS: dict[str, dict[str, Any]] = {
    "model": {"name": "counting/two"},
    "server": {"base_url": "http://other"},
    "arguments of the model": {"version": 2},
    "revision": {"revision": "2026-11"},
    "temperature": {"config": GenerateConfig(temperature=0.0, max_tokens=5)},
    "system message": {"config": GenerateConfig(temperature=0.0, system_message="Be brief.")},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_question_is_not_served(name: str, made: Any, tmp_path: Path) -> None:
    run(made(), tmp_path)
    other = made(**OTHERS[name])
    run(other, tmp_path)
    assert other.api.asked == 3
    again = made(**OTHERS[name])
    run(again, tmp_path)
    assert again.api.asked == 0


def test_what_a_call_is_carried_by_does_not_count(made: Any, tmp_path: Path) -> None:
    run(made(), tmp_path)
    again = made(config=GenerateConfig(temperature=0.0, max_connections=3, timeout=9, max_retries=1))
    run(again, tmp_path)
    assert again.api.asked == 0


def test_the_code_of_the_provider_counts(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    run(model, tmp_path)

    async def other(self: Any, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
        self.asked += 1
        return ModelOutput.from_content(self.model_name, "other")

    monkeypatch.setattr(Counting, "generate", other)
    changed = made()
    run(changed, tmp_path)
    assert changed.api.asked == 3


@tool
def add() -> Tool:
    async def execute(x: int, y: int) -> int:
        """Add.

        Args:
            x: One.
            y: The other.
        """
        return x + y

    return execute


def test_tools_count(made: Any, tmp_path: Path) -> None:
    run(made(), tmp_path)
    for expected in (3, 0):
        model = made()
        run(model, tmp_path, solver=[use_tools(add()), generate()])
        assert model.api.asked == expected


def test_sampled_answers_are_asked_for_anew(made: Any, tmp_path: Path) -> None:
    for config in (GenerateConfig(), GenerateConfig(temperature=0.7)):
        for _ in range(2):
            model = made(config=config)
            run(model, tmp_path)
            assert model.api.asked == 3
    for expected in (3, 0):
        model = made(config=GenerateConfig(temperature=0.7, seed=1))
        run(model, tmp_path)
        assert model.api.asked == expected


def test_sampled_epochs_are_each_kept_when_asked(made: Any, tmp_path: Path) -> None:
    hot = GenerateConfig(temperature=0.7)
    logs = []
    for expected in (9, 0):
        model = made(config=hot, keep_sampled=True)
        logs.append(run(model, tmp_path, epochs=3))
        assert model.api.asked == expected
    assert sorted(said(logs[0])) == sorted(said(logs[1]))
    assert len(set(said(logs[1]))) == 9


@pytest.mark.parametrize(("what", "value"), [("stop", "content_filter"), ("said", "")])
def test_refusals_and_empty_answers_are_not_kept(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: str
) -> None:
    monkeypatch.setattr(Counting, what, value)
    for _ in range(2):
        model = made()
        run(model, tmp_path)
        assert model.api.asked == 3


def test_media_count_by_what_they_hold(made: Any) -> None:
    def asked(image: str) -> int:
        model = made()
        asyncio.run(model.generate([ChatMessageUser(content=[ContentText(text="?"), ContentImage(image=image)])]))
        return model.api.asked

    assert [asked(PIXELS[0]), asked(PIXELS[0]), asked(PIXELS[1])] == [1, 0, 1]


def test_media_by_place_are_not_kept(made: Any, stash: Stash) -> None:
    async def ask() -> None:
        """Past `Model.generate`, which fetches them or refuses."""
        asked = [ChatMessageUser(content=[ContentText(text="?"), ContentImage(image="https://example.com/a.png")])]
        await model.api.generate(input=asked, tools=[], tool_choice="auto", config=GREEDY)

    model = made()
    for _ in range(2):
        asyncio.run(ask())
    assert model.api.asked == 2
    assert stash.stats.misses["unsupported"] == 2


def test_it_is_attached_once_and_can_be_detached(made: Any, stash: Stash, tmp_path: Path) -> None:
    model = made()
    with pytest.raises(InvalidArgumentError, match="detach"):
        attach(model, stash)
    detach(model)
    detach(model)
    for _ in range(2):
        run(model, tmp_path)
    assert model.api.asked == 6
    assert "generate" not in vars(model.api)


def test_a_closed_stash_is_no_reason_to_stop(made: Any, tmp_path: Path) -> None:
    with lmstash.open("memory://", trust_env=False) as other:
        model = attach(get_model("counting/one", config=GREEDY, memoize=False), other)
    run(model, tmp_path)
    assert model.api.asked == 3


def test_a_forced_tool_counts(made: Any, stash: Stash) -> None:
    async def ask(choice: Any) -> int:
        model = made()
        await model.generate("What?", tools=[add()], tool_choice=choice)
        return model.api.asked

    asked = [asyncio.run(ask(choice)) for choice in ("auto", "auto", ToolFunction("add"), ToolFunction("add"))]
    assert asked == [1, 0, 1, 0]
    assert "unsupported" not in stash.stats.misses


def test_of_those_who_ask_at_one_time_one_asks_the_model(made: Any) -> None:
    model = made()

    async def ask() -> list[str]:
        return [each.completion for each in await asyncio.gather(*[model.generate("What?") for _ in range(5)])]

    assert len(set(asyncio.run(ask()))) == 1
    assert model.api.asked == 1


def test_errors_come_through_and_are_not_kept(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    returned = RuntimeError("overloaded"), ModelCall.create({}, {})

    async def fails(self: Any, **given: Any) -> Any:
        self.asked += 1
        if self.asked % 2:
            raise ValueError("broken")
        return returned

    monkeypatch.setattr(Counting, "generate", fails)
    model = made()
    given = {"input": [ChatMessageUser(content="?")], "tools": [], "tool_choice": "auto", "config": GREEDY}
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            asyncio.run(model.api.generate(**given))
        assert asyncio.run(model.api.generate(**given)) is returned
    assert model.api.asked == 4


class Local(Counting):
    """Has weights, and may train while it answers."""

    def __init__(self, model_name: str, *options: Any, folder: str = "", **model_args: Any) -> None:
        import torch
        from transformers import AutoTokenizer

        super().__init__(model_name, *options)
        self.model = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.ones_(self.model.bias)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.trains = False

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        output = await super().generate(input, tools, tool_choice, config)
        if self.trains:
            self.model.weight.data.add_(1)
        return output


modelapi("local")(lambda: Local)


@pytest.mark.model
def test_what_a_model_said_before_it_changed_is_not_kept(made: Any, smollm2_folder: Path, tmp_path: Path) -> None:
    def make() -> Model:
        model = made("local/any", folder=str(smollm2_folder))
        model.api.model.eval().requires_grad_(False)
        return model

    model = make()
    model.api.trains = True
    run(model, tmp_path, QUESTIONS[:1])
    model.api.trains = False
    for expected in (2, 2):
        run(model, tmp_path, QUESTIONS[:1])
        assert model.api.asked == expected
    fresh = make()
    run(fresh, tmp_path, QUESTIONS[:1])
    assert fresh.api.asked == 1


@pytest.mark.model
def test_a_local_model_is_its_weights(
    smollm2_folder: Path, stash: Stash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def load(folder: Path) -> Model:
        config = GenerateConfig(temperature=0.0, max_tokens=4)
        return attach(get_model(f"hf/{folder}", config=config, memoize=False, device="cpu", do_sample=False), stash)

    first = load(smollm2_folder)
    log = run(first, tmp_path, QUESTIONS[:2])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(smollm2_folder)
    again = load(elsewhere)
    assert said(run(again, tmp_path, QUESTIONS[:2])) == said(log)
    assert stash.stats.hits == 2
    with torch.no_grad():
        again.api.model.lm_head.weight.mul_(-1)
    run(again, tmp_path, QUESTIONS[:2])
    assert stash.stats.hits == 2
