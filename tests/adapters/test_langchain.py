"""LangChain's own models, with our cache set as LangChain's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult, Generation
from pydantic import BaseModel

import lmstash
from lmstash.adapters.langchain import StashCache
from lmstash.stash import Stash


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


class Counting(BaseChatModel):
    """A chat model that says how often it was asked."""

    name_of_model: str = "m"
    answer: Any = None
    asked: int = 0

    @property
    def _llm_type(self) -> str:
        return "counting"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name_of_model}

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.asked += 1
        message = self.answer or AIMessage(content=f"answer {self.asked}", response_metadata={"finish_reason": "stop"})
        return ChatResult(generations=[ChatGeneration(message=message, generation_info={"logprobs": (-0.5,)})])


def test_a_chat_is_asked_once_and_found_by_a_new_program(tmp_path: Path) -> None:
    asked = 0
    for _ in range(2):
        with lmstash.open(tmp_path / "stash", strict=True) as stash:
            model = Counting(cache=StashCache(stash))
            for _ in range(2):
                message = model.invoke("hi")
                assert message.content == "answer 1"
                assert message.response_metadata["finish_reason"] == "stop"
            model.invoke("hi", stop=["x"])
            model.invoke("ho")
            asked += model.asked
    assert asked == 3


def test_a_completion_and_the_async_forms(stash: Stash) -> None:
    model = FakeListLLM(responses=["one", "two"], cache=StashCache(stash))
    assert [model.invoke("p") for _ in range(2)] == ["one", "one"]
    chat = Counting(cache=StashCache(stash))

    async def run() -> None:
        assert [(await chat.ainvoke("hi")).content for _ in range(2)] == ["answer 1"] * 2
        await StashCache(stash).aclear()
        assert (await chat.ainvoke("hi")).content == "answer 2"

    asyncio.run(run())


def test_types_come_back_as_they_were(stash: Stash) -> None:
    cache = StashCache(stash)
    called = AIMessage(content="", tool_calls=[{"name": "f", "args": {"x": (1, 2)}, "id": "t"}])
    answer = [
        ChatGeneration(message=called, generation_info={"logprobs": (-0.5,)}),
        Generation(text="t", generation_info=None),
    ]
    cache.update("p", "m", answer)
    assert cache.lookup("p", "m") == answer
    assert cache.lookup("p", "n") is None
    assert cache.lookup("q", "m") is None
    assert StashCache(stash, scope="another").lookup("p", "m") is None


class Scored(AIMessage):
    """A message of a program's own class."""


class Person(BaseModel):
    name: str


@pytest.mark.parametrize(
    "message", [Scored(content="hi"), AIMessage(content="hi", additional_kwargs={"parsed": Person(name="Bo")})]
)
def test_an_answer_that_would_come_back_altered_is_not_kept(stash: Stash, message: AIMessage) -> None:
    model = Counting(cache=StashCache(stash), answer=message)
    for _ in range(2):
        came = model.invoke("hi")
        assert type(came) is type(message)
        assert came.additional_kwargs == message.additional_kwargs
    assert (model.asked, stash.info().entries) == (2, 0)


def test_failures_and_empty_answers_are_not_kept(stash: Stash) -> None:
    filtered = AIMessage(content="no", response_metadata={"finish_reason": "content_filter"})
    for answer in (AIMessage(content=""), filtered):
        model = Counting(cache=StashCache(stash), answer=answer)
        for _ in range(2):
            model.invoke("hi")
        assert model.asked == 2
    assert stash.info().entries == 0


def test_a_prompt_that_points_at_a_url_is_not_kept_unless_urls_are_trusted(stash: Stash) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    message = HumanMessage(content=[{"type": "text", "text": "what?"}, part])
    for trust_urls, asked in ((False, 2), (True, 1)):
        model = Counting(cache=StashCache(stash, trust_urls=trust_urls))
        for _ in range(2):
            model.invoke([message])
        assert model.asked == asked


@pytest.mark.parametrize(
    "told",
    [
        {"api_key": "SEKRET", "model": "m"},
        {"headers": {"Authorization": "Bearer SEKRET"}},
        {"token": "SEKRET"},
        {"auth": ("user", "SEKRET")},
        {"base_url": "https://user:SEKRET@host/v1"},
        {"endpoint": "https://host/v1?sig=SEKRET"},
        {"extra": [["X-Api-Key", "SEKRET"]]},
    ],
)
def test_a_description_of_a_model_with_a_secret_in_it_counts_and_is_not_stored(tmp_path: Path, told: Any) -> None:
    class Telling(Counting):
        @property
        def _identifying_params(self) -> dict[str, Any]:
            return told

    with lmstash.open(tmp_path / "stash", strict=True) as stash:
        model = Telling(cache=StashCache(stash))
        assert [model.invoke("hi").content for _ in range(2)] == ["answer 1"] * 2
        cache = StashCache(stash)
        for described in (str(sorted(told.items())), json.dumps(told)):
            cache.update("p", described, [Generation(text="t")])
            assert cache.lookup("p", described) is not None
            assert cache.lookup("p", described.replace("SEKRET", "other")) is None
    files = [each.read_bytes() for each in (tmp_path / "stash").rglob("*") if each.is_file()]
    assert any(b"answer 1" in each for each in files)
    assert not any(b"SEKRET" in each for each in files)


def test_a_description_of_a_model_without_a_secret_is_stored_as_it_is(stash: Stash) -> None:
    """LangChain writes a name in the place of a secret that it knows for one."""
    key = {"lc": 1, "type": "secret", "id": ["OPENAI_API_KEY"]}
    about = {"kwargs": {"openai_api_key": key, "max_tokens": 8, "base_url": "http://localhost:8000/v1?v=1"}}
    told = json.dumps(about) + "---" + str([("api_key", None), ("stop", ["token", "x"]), ("token_ids", [1])])
    StashCache(stash).update("p", told, [Generation(text="t")])
    responses = stash.responses("langchain/langchain")
    assert next(responses.find()).request == {"prompt": "p", "llm": told}


def test_clear_removes_its_own_scope_only(stash: Stash) -> None:
    one, two = StashCache(stash), StashCache(stash, scope="two")
    for cache in (one, two):
        cache.update("p", "m", [Generation(text="t")])
    one.clear()
    assert one.lookup("p", "m") is None
    assert two.lookup("p", "m") == [Generation(text="t")]


def test_a_streaming_model_of_langchain(stash: Stash) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage(content="once")]), cache=StashCache(stash))
    assert [model.invoke("hi").content for _ in range(2)] == ["once", "once"]
