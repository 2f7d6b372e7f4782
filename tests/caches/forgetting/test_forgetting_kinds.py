"""`stash.forget`: nothing of one prompt is left, of any kind, and other prompts still get what is right."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import lmstash  # noqa: E402
from lmstash.errors import InvalidArgumentError  # noqa: E402

VOCABULARY = 120
LENGTHS = [20, 64, 100, 150]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, eos_token_id=None, **shape)
    made = transformers.LlamaForCausalLM(config).eval()
    made.generation_config.eos_token_id = made.generation_config.pad_token_id = None
    return made


class Words:
    """A tokenizer: a token for each word, and one before the first if special tokens are wanted."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [int(word) for word in text.split()]}


def ids_of(n_tokens: int, seed: int = 0, shared: int = 0) -> list[int]:
    """Return ids, of which the first `shared` are those of seed 0."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (512,), generator=draw).tolist()[:n_tokens]
    return ids_of(shared) + ids[shared:] if shared else ids


# Each kind: what keeps something of a prompt, returning what was computed.


def _last(stash: Any, model: Any, ids: list[int]) -> Any:
    return stash.activations(model)([ids], 1, "last", progress=False)


def _raw(stash: Any, model: Any, ids: list[int]) -> Any:
    return stash.activations(model)([ids], 1, None, progress=False)[0]


def _kv(stash: Any, model: Any, ids: list[int]) -> Any:
    return stash.kv(model).generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)


def _next(stash: Any, model: Any, ids: list[int]) -> Any:
    return stash.logprobs(model).next_token_logprobs(ids)


def _score(stash: Any, model: Any, ids: list[int]) -> Any:
    return stash.logprobs(model).score(ids)


KINDS: dict[str, Callable[[Any, Any, list[int]], Any]] = {
    **{"last": _last, "raw": _raw, "kv": _kv, "next": _next, "score": _score}
}


@pytest.fixture
def fed(model: Any) -> Any:
    """Counts the tokens that the model is fed."""
    seen: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((kwargs.get("input_ids") if "input_ids" in kwargs else args[0]).numel())

    count._lmstash = True  # reads only
    handles = [each.register_forward_pre_hook(count, with_kwargs=True) for each in (model.model,)]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("options", [{}, {"private": True}, {"salt": "tenant"}], ids=str)
@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_computed_anew_once_forgotten(
    kind: str, n_tokens: int, options: dict[str, Any], model: Any, fed: list[int], tmp_path: Path
) -> None:
    compute, ids = KINDS[kind], ids_of(n_tokens)
    with lmstash.open(tmp_path / "s", **options) as stash:
        first = compute(stash, model, ids)
        stash.flush()
        plain = sum(fed)
        would = stash.forget(prompt=ids, dry_run=True)
        removed = stash.forget(prompt=ids)
        assert removed.entries == would.entries > 0
        assert removed.nbytes == would.nbytes > 0
        assert stash.forget(prompt=ids).entries == 0
        fed.clear()
        again = compute(stash, model, ids)  # in the same process: nothing in RAM brings it back
        assert sum(fed) == plain
        torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-5)
        stash.forget(prompt=torch.tensor([ids]))
    with lmstash.open(tmp_path / "s", **options) as stash:
        fed.clear()
        compute(stash, model, ids)
        assert sum(fed) == plain


@pytest.mark.parametrize("n_tokens", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_another_prompt_that_begins_alike_keeps_its_own_part(
    kind: str, n_tokens: int, model: Any, tmp_path: Path
) -> None:
    compute, ids, other = KINDS[kind], ids_of(n_tokens), ids_of(180, seed=1, shared=min(n_tokens - 5, 70))
    stranger = ids_of(90, seed=2)
    with lmstash.open(tmp_path / "s") as stash:
        compute(stash, model, ids)
        expected = [compute(stash, model, each) for each in (other, stranger)]
        stash.flush()
        before = {entry.key for entry in stash.store.entries()}
        stash.forget(prompt=ids)
        left = {entry.key for entry in stash.store.entries()}
        # Of the KV of prompts that begin with one token, less than a block of each, the last one's is kept.
        assert left < before or (kind, n_tokens) == ("kv", 20)
        assert stash.forget(prompt=other, dry_run=True).entries
        assert stash.forget(prompt=stranger, dry_run=True).entries
        for each, value in zip((other, stranger), expected, strict=True):
            torch.testing.assert_close(compute(stash, model, each), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["kv", "raw", "score"])
def test_a_short_beginning_does_not_take_every_prompt_that_begins_so(kind: str, model: Any, tmp_path: Path) -> None:
    """A system prompt of one block goes, and what others have after it stays."""
    compute, users = KINDS[kind], [ids_of(200, seed=seed, shared=64) for seed in (1, 2, 3)]
    with lmstash.open(tmp_path / "s") as stash:
        for each in users:
            compute(stash, model, each)
        stash.flush()
        n_kept = stash.info().entries
        assert 0 < stash.forget(prompt=ids_of(64)).entries < n_kept / 2


def test_a_text_is_found_by_its_tokenizer(model: Any, tmp_path: Path) -> None:
    ids = ids_of(100)
    text = " ".join(map(str, ids))
    with lmstash.open(tmp_path / "s") as stash:
        for each in (ids, [1, *ids]):  # without special tokens and with
            stash.activations(model)([each], 1, "last", progress=False)
            _kv(stash, model, each)
        stash.responses(model="m").put({"prompt": f"say {text}"}, "answer")
        stash.flush()
        n_kept = stash.info().entries
        assert stash.forget(prompt=text, dry_run=True).entries == 1  # the answer: nobody says which ids it is
        removed = stash.forget(prompt=text, tokenizer=Words())
        left = [entry.kind for entry in stash.store.entries()]
        assert set(left) == {"models"}
        assert removed.entries == n_kept - len(left)


def test_other_kinds_of_tokenizers(model: Any, tmp_path: Path) -> None:
    ids = ids_of(40)
    text = " ".join(map(str, ids))

    def of_bytes(text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return [1] * add_bos + [int(word) for word in text.split()]

    for tokenizer in (lambda text: [int(word) for word in text.split()], of_bytes):
        with lmstash.open(tmp_path / "s") as stash:
            _kv(stash, model, ids)
            stash.flush()
            assert stash.forget(prompt=text, tokenizer=tokenizer).entries


@pytest.mark.parametrize("prompt", [[], torch.zeros(1, 0, dtype=torch.int64), [[1, 2], [3, 4]], 5, [1.5], [-1]])
def test_what_is_no_prompt_is_refused_and_removes_nothing(prompt: Any, model: Any, tmp_path: Path) -> None:
    with lmstash.open(tmp_path / "s") as stash:
        _last(stash, model, ids_of(10))
        stash.flush()
        n_kept = stash.info().entries
        with pytest.raises(InvalidArgumentError):
            stash.forget(prompt=prompt)
        assert stash.info().entries == n_kept


def test_ids_of_numpy_and_of_a_row_are_the_same_prompt(model: Any, tmp_path: Path) -> None:
    ids = ids_of(70)
    for given in (np.array(ids), torch.tensor(ids), torch.tensor([ids]), tuple(ids), [ids], {"input_ids": ids}):
        with lmstash.open(tmp_path / "s") as stash:
            _kv(stash, model, ids)
            stash.flush()
            assert stash.forget(prompt=given).entries


def test_entries_whose_model_is_not_described_are_found(model: Any, tmp_path: Path) -> None:
    """As earlier versions kept them, and as it is once its description was evicted."""
    ids = ids_of(150)
    with lmstash.open(tmp_path / "s") as stash:
        _kv(stash, model, ids)
        _next(stash, model, ids)
        stash.flush()
        stash.store.prune(lambda entry: entry.kind == "models")
        assert stash.forget(prompt=ids).entries
        left = [entry for entry in stash.store.entries() if entry.n_tokens <= 150]
        assert left == []


def test_forgetting_while_others_read_and_write_raises_nothing(model: Any, tmp_path: Path) -> None:
    failed: list[BaseException] = []
    with lmstash.open(tmp_path / "s") as stash:
        kv = stash.kv(model)

        def work() -> None:
            try:
                for seed in range(8):
                    kv.generate(torch.tensor([ids_of(90, seed=seed)]), max_new_tokens=2, do_sample=False)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        for seed in range(8):
            stash.forget(prompt=ids_of(90, seed=seed))
        thread.join()
    assert failed == []
