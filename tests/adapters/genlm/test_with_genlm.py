"""With genlm-backend 0.3 and genlm-control themselves: equal answers, none of the released class's defects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmstash
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

pytest.importorskip("genlm.backend", reason="needs genlm-backend: make env")
transformers = pytest.importorskip("transformers")

from genlm.backend.llm import AsyncTransformer as Released  # noqa: E402
from genlm.control import AWRS, BoolFSA, PromptedLLM  # noqa: E402

from lmstash.adapters.genlm import AsyncTransformer, TokenTrie  # noqa: E402
from lmstash.adapters.genlm.joining import Abandoned  # noqa: E402

CLOSE = {"atol": 2e-4, "rtol": 0}
HIDDEN = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Feeding:
    """Counts rows and tokens of each forward pass."""

    _lmstash = True
    __name__ = __qualname__ = "feeding"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        self.shapes.append(tuple(ids.shape))


@contextlib.contextmanager
def feeding(model: Any) -> Iterator[list[tuple[int, ...]]]:
    counter = Feeding()
    handle = model.model.register_forward_pre_hook(counter, with_kwargs=True)
    try:
        yield counter.shapes
    finally:
        handle.remove()


def tiny(seed: int = 0, family: str = "Llama", **settings: Any) -> Any:
    torch.manual_seed(seed)
    shape = {"vocab_size": 49152, "num_key_value_heads": 1, "max_position_embeddings": 4096, **HIDDEN, **settings}
    config = getattr(transformers, f"{family}Config")(**shape)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # answers that differ by more than rounding
    return model


@pytest.fixture(scope="session")
def tokenizer(smollm2_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm2_folder)


@pytest.fixture
def ours(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncTransformer:
    return made(AsyncTransformer, tokenizer, monkeypatch)


@pytest.fixture
def theirs(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return made(Released, tokenizer, monkeypatch)


def made(kind: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, model: Any = None, **options: Any) -> Any:
    """One over a tiny model; the vocabulary, which takes seconds to decode and is not asked for here, is left out."""
    monkeypatch.setattr("genlm.backend.llm.base.decode_vocab", lambda tokenizer: ([], []))
    return kind(model or tiny(), tokenizer, **options)


def fresh(lm: Any, ids: list[int], lora_name: str | None = None) -> torch.Tensor:
    return lm.next_token_logprobs_uncached(ids, lora_name)


def ids_of(n_tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [0, *(rng.randrange(1, 49152) for _ in range(n_tokens - 1))]


# --- genlm-control --------------------------------------------------------------------------------------------------


def smc(lm: Any) -> Any:
    """The first example of genlm-control's README, with seeds."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    llm = PromptedLLM(lm)
    llm.set_prompt_from_str("Here is my honest opinion:")
    fsa = BoolFSA.from_regex(r" SMC is (🔥🔥|😍😍|🤌🤌) with LMs")
    coerced_fsa = fsa.coerce(llm, f=b"".join)
    token_sampler = AWRS(llm, coerced_fsa, seed=0)
    return asyncio.run(token_sampler.smc(n_particles=10, ess_threshold=0.5, max_tokens=30, verbosity=0))


@pytest.mark.filterwarnings("ignore:Common vocabulary")
def test_controls_own_smc_example_gives_the_same_particles(smollm2):
    model, tokenizer = smollm2
    expected = smc(Released(model, tokenizer))
    lm = AsyncTransformer(model, tokenizer)
    with feeding(model) as shapes:
        found = smc(lm)
        n_fed = sum(rows * tokens for rows, tokens in shapes)
        again = smc(lm)
        assert sum(rows * tokens for rows, tokens in shapes) == n_fed
    for each in (found, again):
        assert each.contexts == expected.contexts
        assert np.allclose(each.log_weights, expected.log_weights, atol=1e-3)
        assert each.log_ml == pytest.approx(expected.log_ml, abs=1e-3)
    assert set(found.decoded_posterior) == set(expected.decoded_posterior)


def test_the_probability_of_a_text_takes_one_forward_pass(smollm2):
    model, tokenizer = smollm2
    context = tokenizer.encode("The quick brown fox jumps over the lazy dog, and the story goes on for a while.")
    values = []
    for kind in (Released, AsyncTransformer):
        llm = PromptedLLM(kind(model, tokenizer))
        llm.model.next_token_logprobs_sync([1])  # lmstash takes the fingerprint, and looks what the model bears
        llm.set_prompt_from_str("Once upon a time,")
        with feeding(model) as shapes:
            values.append(asyncio.run(llm._log_probability(context)))
    assert shapes == [(1, len(tokenizer.encode("Once upon a time,")) + len(context) - 1)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_a_program_that_loads_by_name_can_stay_as_it_is(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("genlm.backend.llm.AsyncTransformer", AsyncTransformer)
    tiny().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"hf_opts": {"device_map": None, "dtype": "float32"}}
    llm = PromptedLLM.from_name(str(tmp_path), backend="hf", **options)
    assert isinstance(llm.model, AsyncTransformer)
    llm.prompt_ids = ids_of(5)
    row = asyncio.run(llm.logw_next([])).weights
    assert len(row) == len(llm.vocab) + 1
    assert llm.model.walk_cache(ids_of(5))[1] == 5


# --- answers --------------------------------------------------------------------------------------------------------


def test_every_way_of_asking_gives_the_models_answer(ours):
    contexts = [ids_of(30), ids_of(30)[:12], ids_of(9, seed=1), ids_of(30)]
    expected = torch.stack([fresh(ours, each) for each in contexts])

    async def ask() -> list[torch.Tensor]:
        singly = asyncio.gather(*map(ours.next_token_logprobs, contexts))
        together = ours.batch_next_token_logprobs(contexts)
        return [torch.stack(await singly), await together]

    for found in [
        *asyncio.run(ask()),
        ours.batch_next_token_logprobs_sync(contexts),
        torch.stack([ours.next_token_logprobs_sync(each) for each in contexts]),
    ]:
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, **CLOSE)


def test_what_tasks_ask_at_once_is_one_batch_and_equal_contexts_are_computed_once(ours):
    contexts = [ids_of(20)] * 8 + [[*ids_of(20), last] for last in range(8)]

    async def ask() -> None:
        await asyncio.gather(*map(ours.next_token_logprobs, contexts))

    with feeding(ours.model) as shapes:
        ours.next_token_logprobs_sync(ids_of(3, seed=9))  # the fingerprint and the probe are behind
        shapes.clear()
        asyncio.run(ask())
        assert sum(rows * tokens for rows, tokens in shapes) <= 20 + 8
        assert len(shapes) <= 2
        shapes.clear()
        asyncio.run(ask())
        assert shapes == []


def test_sampling_draws_what_theirs_draws(ours, theirs):
    def draw(lm: Any) -> Any:
        batch = lm.batch_sample([ids_of(5), ids_of(7, 1)], 6, [], temperature=0.7, seed=3)
        return asyncio.run(lm.sample(ids_of(5), 8, [], seed=11)), asyncio.run(batch)

    assert draw(ours) == draw(theirs)


def test_no_tokens_and_wrong_tokens_are_errors_of_the_one_who_asked(ours):
    for ask in (ours.next_token_logprobs_sync, ours.next_token_logprobs_uncached):
        with pytest.raises(ValueError, match="empty"):
            ask([])

    async def mixed() -> list[Any]:
        wrong = [[], [1, 10**6]]
        return await asyncio.gather(
            *[ours.next_token_logprobs(each) for each in (*wrong, ids_of(4))], return_exceptions=True
        )

    *errors, row = asyncio.run(mixed())
    assert all(isinstance(each, ValueError) for each in errors)
    assert torch.allclose(row, fresh(ours, ids_of(4)), **CLOSE)


# --- the released class's defects -----------------------------------------------------------------------------------


def test_equal_suffixes_of_different_prefixes_get_answers_of_their_own(ours):
    first, second, suffix = ids_of(16, 1), ids_of(16, 2), ids_of(6, 3)
    ours.cache_kv(first)
    ours.cache_kv(second)

    async def ask() -> list[torch.Tensor]:
        return await asyncio.gather(*[ours.next_token_logprobs(each + suffix) for each in (first, second)])

    one, other = asyncio.run(ask())
    assert torch.allclose(one, fresh(ours, first + suffix), **CLOSE)
    assert torch.allclose(other, fresh(ours, second + suffix), **CLOSE)
    assert (one - other).abs().max() > 0.1


def test_sync_questions_use_kept_kv_and_leave_it_as_it_was(ours):
    prompt, more = ids_of(16), ids_of(5, 1)
    ours.cache_kv(prompt)
    for length in (1, 5, 3):
        context = prompt + more[:length]
        assert torch.allclose(ours.next_token_logprobs_sync(context), fresh(ours, context), **CLOSE)
        context = prompt + more[1 : length + 1]
        found = asyncio.run(ours.next_token_logprobs(context))
        assert torch.allclose(found, fresh(ours, context), **CLOSE)


def test_questions_over_a_shared_uncached_prefix_are_all_kept(ours):
    contexts = [[*ids_of(21), last] for last in range(8)]

    async def ask() -> None:
        await asyncio.gather(*map(ours.next_token_logprobs, contexts))

    asyncio.run(ask())
    with feeding(ours.model) as shapes:
        asyncio.run(ask())
    assert shapes == []


def test_a_second_prompt_with_the_same_first_token_leaves_the_first_ones_kv(ours):
    first, second = ids_of(40, 1), ids_of(40, 2)
    ours.cache_kv(first)
    ours.cache_kv(second)
    with feeding(ours.model) as shapes:
        found = ours.next_token_logprobs_sync([*first, 5])
    assert shapes == [(1, 1)]
    assert torch.allclose(found, fresh(ours, [*first, 5]), **CLOSE)


def test_a_question_in_flight_does_not_undo_what_is_cached_meanwhile(ours):
    prompt = ids_of(40)

    async def ask() -> None:
        waiting = asyncio.ensure_future(ours.next_token_logprobs(prompt[:30]))
        await asyncio.sleep(0)
        ours.cache_kv(prompt)
        await waiting

    asyncio.run(ask())
    with feeding(ours.model) as shapes:
        ours.next_token_logprobs_sync([*prompt, 5])
    assert shapes == [(1, 1)]


def test_a_cancelled_question_fails_no_other(ours):
    async def ask() -> list[Any]:
        tasks = [asyncio.ensure_future(ours.next_token_logprobs(ids_of(9, seed))) for seed in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, cancelled, *others = asyncio.run(ask())
    assert isinstance(cancelled, asyncio.CancelledError)
    for seed, row in zip((0, 2, 3), (first, *others), strict=True):
        assert torch.allclose(row, fresh(ours, ids_of(9, seed)), **CLOSE)


def test_a_steady_trickle_of_questions_keeps_nobody_waiting(ours):
    async def ask() -> float:
        loop = asyncio.get_running_loop()
        ours.timeout = 60.0
        started = loop.time()
        first = asyncio.ensure_future(ours.next_token_logprobs(ids_of(9)))
        others = []
        for seed in range(1, 200):
            if first.done():
                break
            others.append(asyncio.ensure_future(ours.next_token_logprobs(ids_of(9, seed))))
            await asyncio.sleep(0)
        await asyncio.gather(first, *others)
        return loop.time() - started

    assert asyncio.run(ask()) < 30


def test_event_loops_that_are_over_are_forgotten(ours):
    for _ in range(3):
        asyncio.run(ours.next_token_logprobs(ids_of(5)))
    gc.collect()
    assert len(ours._joiners) == 0


def test_loops_in_several_threads_may_ask_one_model(ours):
    def ask(seed: int) -> torch.Tensor:
        contexts = [ids_of(length, seed) for length in range(2, 12)]
        return asyncio.run(ours.batch_next_token_logprobs(contexts))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    for seed, rows in enumerate(found):
        assert torch.allclose(rows[-1], fresh(ours, ids_of(11, seed)), **CLOSE)


def test_models_with_a_sliding_window_answer_mixed_batches(tokenizer, monkeypatch):
    lm = made(AsyncTransformer, tokenizer, monkeypatch, tiny(family="Mistral", sliding_window=16))
    prompt = ids_of(40)
    lm.cache_kv(prompt)
    contexts = [[*prompt, 3], ids_of(7, 1), [*prompt[:20], 8, 9], [*prompt, 3, 4]]
    found = asyncio.run(lm.batch_next_token_logprobs(contexts))
    for context, row in zip(contexts, found, strict=True):
        assert torch.allclose(row, fresh(lm, context), **CLOSE)


def test_a_long_prompt_takes_little_memory_and_no_recursion(ours):
    prompt = ids_of(2000)
    ours.cache_kv(prompt)
    per_token = 2 * 2 * 16 * 4  # two layers, K and V, one head of 16
    assert ours._logprobs(None).held_bytes <= 40 * 2**20
    assert ours._logprobs(None).held_bytes >= 2000 * per_token
    ours.clear_kv_cache()
    ours.clear_cache()
    assert repr(ours.walk_cache(prompt)[0]) == "[]"


def test_what_is_handed_out_belongs_to_the_caller(ours):
    context = ids_of(9)

    async def ask() -> list[torch.Tensor]:
        return await asyncio.gather(*[ours.next_token_logprobs(context) for _ in range(3)])

    rows = asyncio.run(ask())
    expected = fresh(ours, context)
    rows[0].zero_()
    ours.next_token_logprobs_sync(context).zero_()
    assert torch.allclose(rows[1], expected, **CLOSE)
    assert torch.allclose(ours.next_token_logprobs_sync(context), expected, **CLOSE)
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in rows)


# --- the other methods ----------------------------------------------------------------------------------------------


def test_kv_can_be_forgotten_and_answers_stay(ours):
    prompt = ids_of(40)
    ours.cache_kv(prompt)
    held = ours._logprobs(None).held_bytes
    ours.clear_kv_cache()
    assert ours._logprobs(None).held_bytes < held
    with feeding(ours.model) as shapes:
        found = ours.next_token_logprobs_sync(prompt)
        assert [shape for shape in shapes if shape[1] >= 40] == []
        shapes.clear()
        ours.next_token_logprobs_sync([*prompt, 3])
        assert shapes == [(1, 41)]
    assert torch.allclose(found, fresh(ours, prompt), **CLOSE)


def test_everything_can_be_forgotten(ours):
    prompt = ids_of(40)
    ours.next_token_logprobs_sync(prompt)
    ours.clear_cache()
    assert ours.walk_cache(prompt)[1:] == (0, None, 0)
    with feeding(ours.model) as shapes:
        ours.next_token_logprobs_sync(prompt)
    assert (1, 40) in shapes


def test_walking_the_cache_says_what_is_in_memory(ours):
    prompt = ids_of(20)
    assert ours.walk_cache(prompt)[1:] == (0, None, 0)
    ours.cache_kv(prompt)
    node, matched, past, base = ours.walk_cache(prompt)
    assert (matched, base, past.get_seq_length()) == (20, 19, 19)
    assert node.past_key_values.get_seq_length() == 20
    assert torch.allclose(node.logprobs, fresh(ours, prompt), **CLOSE)
    node, matched, past, base = ours.walk_cache([*prompt, 7, 8])
    assert (matched, base) == (20, 20)
    out = ours.model(torch.tensor([[7, 8]]), past_key_values=past).logits[0, -1]
    assert torch.allclose(out.log_softmax(-1), fresh(ours, [*prompt, 7, 8]), **CLOSE)


def test_dropped_questions_are_heard_of(ours):
    async def ask() -> list[Any]:
        tasks = [asyncio.ensure_future(ours.next_token_logprobs(ids_of(9, seed))) for seed in range(2)]
        await asyncio.sleep(0)
        ours.reset_async_queries()
        dropped = await asyncio.gather(*tasks, return_exceptions=True)
        return [*dropped, await ours.next_token_logprobs(ids_of(4))]

    *dropped, row = asyncio.run(ask())
    assert all(isinstance(each, Abandoned) for each in dropped)
    assert torch.allclose(row, fresh(ours, ids_of(4)), **CLOSE)


def test_raw_queries_work_as_theirs(ours, theirs):
    async def ask(lm: Any) -> torch.Tensor:
        future = asyncio.get_running_loop().create_future()
        lm.add_query(ids_of(6), future, None)
        assert len(lm.queries) == 1
        return await asyncio.wait_for(future, 30)

    assert torch.allclose(asyncio.run(ask(ours)), asyncio.run(ask(theirs)), **CLOSE)
    ours.batch_evaluate_queries()
    assert ours.queries == []


def test_a_model_that_cannot_be_cached_is_answered_all_the_same(tokenizer, monkeypatch, caplog):
    lm = made(AsyncTransformer, tokenizer, monkeypatch)
    handle = lm.model.model.register_forward_hook(lambda *_: None)
    try:
        for _ in range(2):
            found = asyncio.run(lm.batch_next_token_logprobs([ids_of(5), ids_of(7, 1)]))
            assert torch.allclose(found[1], fresh(lm, ids_of(7, 1)), **CLOSE)
        assert caplog.text.count("without a cache") == 1
        assert lm.walk_cache(ids_of(5))[1] == 0
        lm.clear_kv_cache()
    finally:
        handle.remove()
    lm.clear_cache()
    lm.next_token_logprobs_sync(ids_of(5))
    assert lm.walk_cache(ids_of(5))[1] == 5


def test_changed_weights_are_answered_anew(ours):
    before = ours.next_token_logprobs_sync(ids_of(9))
    with torch.no_grad():
        ours.model.lm_head.weight[:50] += 1
    after = asyncio.run(ours.next_token_logprobs(ids_of(9)))
    assert (before - after).abs().max() > 0.1
    assert torch.allclose(after, fresh(ours, ids_of(9)), **CLOSE)


def test_names_and_parameters_are_those_of_the_released_class():
    import inspect

    for name in [name for name in dir(Released) if not name.startswith("_")] + ["__init__"]:
        mine, other = getattr(AsyncTransformer, name), getattr(Released, name)
        taken = list(inspect.signature(mine).parameters.values())
        for each, expected in zip(taken, inspect.signature(other).parameters.values(), strict=False):
            assert (each.name, each.default, each.kind) == (expected.name, expected.default, expected.kind), name


def test_the_released_class_runs_over_our_tree(tokenizer, monkeypatch):
    monkeypatch.setattr("genlm.backend.llm.hf.TokenTrie", TokenTrie)
    lm = made(Released, tokenizer, monkeypatch)
    first, second = ids_of(16, 1), ids_of(16, 2)
    for prompt in (first, second):
        lm.cache_kv(prompt)
    node, matched, _, _ = lm.walk_cache(first)
    assert matched == 16
    assert node.past_key_values.get_seq_length() == 16
    contexts = [[*first, 3], [*second, 4, 5], ids_of(7, 3), [*first, 3, 8]]
    found = asyncio.run(lm.batch_next_token_logprobs(contexts))
    for context, row in zip(contexts, found, strict=True):
        assert torch.allclose(row, fresh(lm, context), **CLOSE)
    assert isinstance(node, TokenTrie)
    lm.clear_kv_cache()
    assert node.past_key_values is None


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    import peft

    folders = []
    for seed in range(2):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        folder = tmp_path_factory.mktemp(f"adapter-{seed}")
        model = tiny()
        torch.manual_seed(100 + seed)
        peft.get_peft_model(model, config).save_pretrained(folder)
        folders.append(folder)
    return folders


def test_adapters_are_never_mixed_up(ours, adapters):
    ids = ids_of(12)
    base = ours.next_token_logprobs_sync(ids)
    for name, folder in zip(("a", "b"), adapters, strict=True):
        ours.add_new_lora(str(folder), name)
    names = [None, "a", "b"]
    expected = {name: fresh(ours, ids, name) for name in names}
    assert torch.allclose(expected[None], base, **CLOSE)
    assert all((expected[one] - expected[other]).abs().max() > 0.01 for one, other in (("a", "b"), ("a", None)))

    async def ask() -> list[torch.Tensor]:
        order = [name for _ in range(2) for name in names]
        return await asyncio.gather(*[ours.next_token_logprobs(ids, lora_name=name) for name in order])

    for _ in range(2):
        for name, row in zip(names * 2, asyncio.run(ask()), strict=True):
            assert torch.allclose(row, expected[name], **CLOSE)
        for name in names:
            assert torch.allclose(ours.batch_next_token_logprobs_sync([ids], name)[0], expected[name], **CLOSE)
    with feeding(ours.model) as shapes:
        asyncio.run(ask())
    assert shapes == []


def test_an_adapter_loaded_under_a_taken_name_takes_its_place(ours, adapters):
    ids = ids_of(12)
    ours.add_new_lora(str(adapters[0]), "x")
    first = ours.next_token_logprobs_sync(ids, "x")
    ours.add_new_lora(str(adapters[1]), "x")
    second = ours.next_token_logprobs_sync(ids, "x")
    assert (first - second).abs().max() > 0.01
    assert torch.allclose(second, fresh(ours, ids, "x"), **CLOSE)
    ours.remove_lora("x")
    for ask in (ours.next_token_logprobs_sync, lambda *args: asyncio.run(ours.next_token_logprobs(*args))):
        with pytest.raises(ValueError, match="unknown LoRA adapter"):
            ask(ids, "x")
    with pytest.raises(RuntimeError, match="removed"):
        ours.set_lora("path", "x")


# --- where answers are kept -----------------------------------------------------------------------------------------


def test_a_stash_of_ones_own_is_used_and_not_cleared(tokenizer, monkeypatch):
    stash = Stash(MemoryStore())
    lm = made(AsyncTransformer, tokenizer, monkeypatch, stash=stash)
    lm.next_token_logprobs_sync(ids_of(9))
    lm.clear_cache()
    assert stash.info().entries > 0
    other = made(AsyncTransformer, tokenizer, monkeypatch, stash=stash)
    with feeding(other.model) as shapes:
        other.next_token_logprobs_sync(ids_of(9))
    assert (1, 9) not in shapes


PROGRAM = """
import sys, torch, transformers
import genlm.backend.llm.base as base
base.decode_vocab = lambda tokenizer: ([], [])
from lmstash.adapters.genlm import AsyncTransformer
torch.set_num_threads(1)
lm = AsyncTransformer.from_name(sys.argv[1], hf_opts={"device_map": None, "dtype": "float32"}, stash=sys.argv[2])
shapes = []
class Feeding:
    _lmstash = True
    __qualname__ = "feeding"
    def __call__(self, module, args, kwargs):
        shapes.append(kwargs["input_ids"].shape[1])
lm.model.model.register_forward_pre_hook(Feeding(), with_kwargs=True)
row = lm.next_token_logprobs_sync(list(range(33)))
print(33 in shapes, float(row[7]))
"""


def test_a_later_process_finds_the_answers_of_one_that_just_ended(tmp_path, tokenizer):
    tiny().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = []
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM, tmp_path / "model", tmp_path / "stash"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Traceback" not in done.stderr
        lines.append(done.stdout.split())
    assert [fed for fed, _ in lines] == ["True", "False"]
    assert float(lines[0][1]) == pytest.approx(float(lines[1][1]), abs=1e-4)
    with lmstash.open(tmp_path / "stash") as stash:
        assert stash.info().entries > 0
