"""With mellea itself and SmolLM2: shared beginnings are forwarded once, and nothing else changes."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

import lmstash
from lmstash.adapters.mellea import ByteLRUCache, Cache, SimpleLRUCache, attach
from lmstash.errors import InvalidArgumentError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

pytest.importorskip("mellea", reason="needs mellea: make env")

import llguidance.hf
from mellea import MelleaSession
from mellea.backends import ModelOption
from mellea.backends import cache as theirs
from mellea.backends.huggingface import HFAloraCacheInfo, LocalHFBackend
from mellea.core import CBlock
from mellea.stdlib.context import ChatContext, SimpleContext

DOCUMENT = "The library keeps what a language model has computed, so that nobody computes it twice. " * 5
QUESTIONS = ["What does the library keep?", "Who computes it twice?", "Name one thing that is kept."]


class Feeding:
    """Counts the tokens of each forward pass of a model."""

    _lmstash = True  # lmstash takes the hook for one of its own: it changes nothing
    __name__ = __qualname__ = "feeding"

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        self.lengths.append(ids.shape[1])

    def of(self, work: Any) -> tuple[Any, list[int]]:
        self.lengths = []
        return work(), [n for n in self.lengths if n > 1]


@pytest.fixture(scope="session")
def fed(smollm2) -> Iterator[Feeding]:
    counter = Feeding()
    handle = smollm2[0].model.register_forward_pre_hook(counter, with_kwargs=True)
    yield counter
    handle.remove()


@pytest.fixture(scope="session", autouse=True)
def _one_grammar_tokenizer() -> Iterator[None]:
    """mellea makes one for each backend, which takes most of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llguidance.hf, "from_tokenizer", functools.cache(llguidance.hf.from_tokenizer))
        yield


@pytest.fixture
def backend(smollm2) -> LocalHFBackend:
    model, tokenizer = smollm2
    return LocalHFBackend("smollm2", custom_config=(tokenizer, model, torch.device("cpu")))


def ask(backend: LocalHFBackend, question: str, context: Any = None, **options: Any) -> Any:
    session = MelleaSession(backend, context or SimpleContext())
    options = {"model_options": {ModelOption.MAX_NEW_TOKENS: 6, **options.pop("model_options", {})}, **options}
    return session.instruct(question, prefix=DOCUMENT, strategy=None, **options)


def test_our_caches_count_as_theirs():
    for kind in (Cache, SimpleLRUCache, ByteLRUCache):
        assert issubclass(kind, theirs.Cache)
    assert isinstance(SimpleLRUCache(3), theirs.Cache)
    assert isinstance(ByteLRUCache(3), theirs.Cache)


def test_simple_lru_cache_behaves_as_theirs():
    import random

    rng, calls = random.Random(0), ([], [])
    ours, other = SimpleLRUCache(3, calls[0].append), theirs.SimpleLRUCache(3, calls[1].append)
    for step in range(3000):
        key = rng.choice([0, 1, True, "a", "b", 2.0, 2, 3])
        if rng.random() < 0.02:
            ours.capacity = other.capacity = rng.randrange(-1, 6)
        if rng.random() < 0.5:
            assert ours.get(key) == other.get(key)
        else:
            ours.put(key, step)
            other.put(key, step)
        assert list(ours.cache.items()) == list(other.cache.items())
        assert ours.current_size() == other.current_size()
    assert calls[0] == calls[1]


def test_three_questions_about_a_document_forward_it_once(backend, fed):
    plain = [fed.of(lambda q=question: ask(backend, q).value) for question in QUESTIONS]
    whole = [lengths[0] for _, lengths in plain]
    with attach(backend, Stash(MemoryStore())) as attachment:
        found = [fed.of(lambda q=question: ask(backend, q).value) for question in QUESTIONS]
    assert [answer for answer, _ in found] == [answer for answer, _ in plain]
    assert found[0][1] == whole[:1]
    assert all(lengths[0] <= 16 for _, lengths in found[1:])
    assert sum(lengths[0] for _, lengths in found) <= whole[0] + 32
    assert attachment.kv.stats.tokens_reused >= 2 * (whole[0] - 16)


def test_a_later_process_forwards_only_the_question(backend, fed, tmp_path):
    answers = []
    for _ in range(2):
        gc.collect()
        with lmstash.open(tmp_path) as stash, attach(backend, stash):
            answers.append(fed.of(lambda: ask(backend, QUESTIONS[0]).value))
    assert answers[1][0] == answers[0][0]
    assert answers[0][1][0] > 100
    assert answers[1][1] == []  # one token is always fed


def test_the_turns_of_a_conversation_are_fed_once(backend, fed):
    def converse() -> list[str]:
        session = MelleaSession(backend, ChatContext())
        options = {ModelOption.MAX_NEW_TOKENS: 6}
        return [str(session.chat(f"{DOCUMENT} {question}", model_options=options).content) for question in QUESTIONS]

    plain, whole = fed.of(converse)
    with attach(backend, Stash(MemoryStore())):
        answers, new = fed.of(converse)
    assert answers == plain
    assert sum(new) <= whole[-1] + 20


def test_single_calls_can_be_left_alone_and_detaching_puts_everything_back(backend, fed):
    ask(backend, QUESTIONS[0])
    before = dict(vars(backend))
    attachment = attach(backend, Stash(MemoryStore()))
    ask(backend, QUESTIONS[0])
    with attachment.off():
        assert fed.of(lambda: ask(backend, QUESTIONS[0]))[1][0] > 100
    assert fed.of(lambda: ask(backend, QUESTIONS[0]))[1] == []
    attachment.detach()
    attachment.detach()
    assert fed.of(lambda: ask(backend, QUESTIONS[0]))[1][0] > 100
    assert dict(vars(backend)) == before


def test_a_wrapper_put_on_later_survives_detaching(backend, fed):
    attachment = attach(backend, Stash(MemoryStore()))
    inner, calls = backend._generate_with_adapter_lock, []
    backend._generate_with_adapter_lock = lambda *args, **kwargs: (calls.append(1), inner(*args, **kwargs))[1]
    attachment.detach()
    assert fed.of(lambda: ask(backend, QUESTIONS[0]))[1][0] > 100
    assert calls == [1]
    assert attachment.kv.stats.calls == 0


def test_attaching_twice_or_to_something_else_is_refused(backend):
    with attach(backend, Stash(MemoryStore())), pytest.raises(InvalidArgumentError, match="detach"):
        attach(backend, Stash(MemoryStore()))
    attach(backend, Stash(MemoryStore())).detach()
    with pytest.raises(InvalidArgumentError, match="LocalHFBackend"):
        attach(object(), Stash(MemoryStore()))


def test_a_stash_that_is_closed_costs_the_reuse_and_nothing_else(backend, fed, tmp_path):
    plain = ask(backend, QUESTIONS[0]).value
    stash = lmstash.open(tmp_path)
    attach(backend, stash)
    assert ask(backend, QUESTIONS[0]).value == plain
    stash.close()
    assert ask(backend, QUESTIONS[0]).value == plain


def test_a_model_that_can_no_longer_be_identified_is_generated_with_as_before(backend, fed, caplog):
    plain = ask(backend, QUESTIONS[0]).value
    with attach(backend, Stash(MemoryStore())) as attachment:
        ask(backend, QUESTIONS[0])
        attachment.kv.flush()  # what is not written yet when the model changes is dropped
        handle = backend._model.register_forward_hook(lambda *_: None)
        try:
            found, lengths = fed.of(lambda: ask(backend, QUESTIONS[0]).value)
        finally:
            handle.remove()
        assert (found, lengths[0] > 100) == (plain, True)
        assert "forward hook" in caplog.text
        assert fed.of(lambda: ask(backend, QUESTIONS[0]))[1] == []
        assert attachment.kv.stats.calls == 3


class Answer(pydantic.BaseModel):
    kept: bool


@pytest.mark.parametrize(
    "options",
    [
        {"model_options": {ModelOption.SEED: 7, ModelOption.TEMPERATURE: 1.5}},
        {"model_options": {"do_sample": True, "top_k": 3, ModelOption.SEED: 3}},
        {"model_options": {ModelOption.STOP_SEQUENCES: ["model", " is"], ModelOption.MAX_NEW_TOKENS: 20}},
        {"model_options": {"repetition_penalty": 1.7}},
        {"model_options": {"num_beams": 2}},
        {"model_options": {ModelOption.SYSTEM_PROMPT: "Answer in French."}},
        {"format": Answer, "model_options": {ModelOption.MAX_NEW_TOKENS: 12}},
    ],
    ids=["seed", "top-k", "stop", "penalty", "beams", "system", "format"],
)
def test_what_mellea_hands_to_generate_is_honoured(backend, fed, options):
    plain = ask(backend, QUESTIONS[0], **options).value
    with attach(backend, Stash(MemoryStore())):
        first = ask(backend, QUESTIONS[0], **options).value
        second, lengths = fed.of(lambda: ask(backend, QUESTIONS[0], **options).value)
    assert first == second == plain
    assert sum(lengths) <= 32


def test_logits_are_handed_out_as_before(backend):
    options = {"model_options": {ModelOption.LOGITS: True, ModelOption.RAW_LOGITS: True}}
    plain = ask(backend, QUESTIONS[0], **options)
    with attach(backend, Stash(MemoryStore())):
        ask(backend, QUESTIONS[1], **options)
        found = ask(backend, QUESTIONS[0], **options)
    for name in ("logits", "raw_logits"):
        mine, other = getattr(found.generation, name), getattr(plain.generation, name)
        assert len(mine) == len(other) > 1
        assert all(torch.allclose(*pair, atol=1e-3) for pair in zip(mine, other, strict=True))
    assert found.generation.usage == plain.generation.usage
    assert found.generation.finish_reasons == plain.generation.finish_reasons


def test_streamed_answers_are_the_same(backend, fed):
    import asyncio

    async def stream() -> str:
        session = MelleaSession(backend, SimpleContext())
        options = {ModelOption.MAX_NEW_TOKENS: 6, ModelOption.STREAM: True}
        out = await session.ainstruct(
            QUESTIONS[0], prefix=DOCUMENT, strategy=None, model_options=options, await_result=False
        )
        return str(await out.avalue())

    plain = asyncio.run(stream())
    with attach(backend, Stash(MemoryStore())):
        assert asyncio.run(stream()) == plain
        again, lengths = fed.of(lambda: asyncio.run(stream()))
    assert (again, lengths) == (plain, [])


def test_a_batch_of_raw_prompts_gives_the_same_texts(backend):
    import asyncio

    async def raw() -> list[str]:
        actions = [CBlock(DOCUMENT + question) for question in QUESTIONS]
        options = {ModelOption.MAX_NEW_TOKENS: 6}
        return [
            str(out.value) for out in await backend.generate_from_raw(actions, SimpleContext(), model_options=options)
        ]

    plain = asyncio.run(raw())
    with attach(backend, Stash(MemoryStore())):
        assert [asyncio.run(raw()), asyncio.run(raw())] == [plain, plain]


def test_with_use_caches_false_nothing_is_reused_or_kept(smollm2, fed):
    model, tokenizer = smollm2
    backend = LocalHFBackend("smollm2", use_caches=False, custom_config=(tokenizer, model, torch.device("cpu")))
    with attach(backend, Stash(MemoryStore())) as attachment:
        for _ in range(2):
            assert fed.of(lambda: ask(backend, QUESTIONS[0]))[1][0] > 100
    assert attachment.kv.stats.passed_on["use_cache=False"] == 2
    assert attachment.kv.stats.tokens_kept == 0


def test_a_bounded_cache_gets_what_mellea_keeps_and_holds_its_limit(smollm2):
    model, tokenizer = smollm2
    evicted: list[Any] = []
    cache = ByteLRUCache("12MB", evicted.append)
    backend = LocalHFBackend("smollm2", cache=cache, custom_config=(tokenizer, model, torch.device("cpu")))
    answers = [ask(backend, question) for question in QUESTIONS]  # alive: mellea names entries by their `id`
    assert 0 < cache.current_bytes() <= 12_000_000
    assert cache.current_size() + len(evicted) == len(answers)
    assert {type(each) for each in (*evicted, *cache.cache.values())} == {HFAloraCacheInfo}


def test_what_a_user_puts_under_a_name_is_there_in_a_later_process(smollm2, tmp_path: Path):
    model, tokenizer = smollm2
    config = (tokenizer, model, torch.device("cpu"))
    with lmstash.open(tmp_path) as stash:
        cache = ByteLRUCache("1GB", stash=stash, model=model)
        backend = LocalHFBackend("smollm2", cache=cache, custom_config=config)
        ask(backend, QUESTIONS[0])
        (info,) = cache.cache.values()
        backend.cache_put("document", info)
    with lmstash.open(tmp_path) as stash:
        cache = ByteLRUCache("1GB", stash=stash, model=model)
        found = LocalHFBackend("smollm2", cache=cache, custom_config=config).cache_get("document")
    assert type(found) is HFAloraCacheInfo
    assert found.q_end == info.q_end
    assert torch.equal(found.merged_token_ids, info.merged_token_ids)
    assert torch.equal(found.kv_cache.layers[-1].values, info.kv_cache.layers[-1].values)
