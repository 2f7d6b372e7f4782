"""`docs/format.md` is enough to read what a transformers model left: by its tables, with nothing of the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmstash
from lmstash.stash import Stash

from .document import array, fits, read_tensors, tables, typed
from .kept import ids
from .kept_kinds import Kept, of

TOKENS = ids(70)


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**shape, **ends, num_key_value_heads=2, vocab_size=120)).eval()


@pytest.fixture(scope="module")
def said(model: Any) -> Any:
    """What one forward pass over the tokens says."""
    with torch.no_grad():
        return model(torch.tensor([TOKENS]), output_hidden_states=True, use_cache=True)


@pytest.fixture
def stash(tmp_path: Path) -> Iterator[Stash]:
    with lmstash.open(tmp_path / "stash", strict=True) as opened:
        yield opened


def kept(stash: Stash, kind: str) -> list[tuple[Kept, Any, dict[str, str]]]:
    """Entries of one kind, with their tensors and metadata."""
    stash.flush()
    found = stash.store.fetch_many([each.key for each in stash.store.entries()])
    every = [Kept(e.namespace, e.key, e.parent, bytes(e.value), e.meta) for e in found if e is not None]
    descriptions = [typed(each.value) for each in every if each.namespace == "models/all"]
    assert all(each["schema"] == 1 for each in descriptions)
    return [(each, *read_tensors(each.value)) for each in of(every, kind)]


def test_activations_of_a_model(stash: Stash, model: Any, said: Any):
    cache = stash.activations(model)
    cache([TOKENS], layers=[0], pool="mean")
    cache([TOKENS], layers=[0], pool=None)
    given = said.hidden_states[1][0].numpy()
    rows = {}
    for each, arrays, _ in kept(stash, "activations"):
        fits(arrays, tables("Activations")[0])
        assert array(arrays["layers"]).tolist() == each.components["layers"] == [0]
        assert each.components["site"] == "block_out"
        rows[each.components["pool"], each.components.get("start")] = array(arrays["value"])[0]
    assert rows.keys() == {("mean", None), (None, 0), (None, 64)}
    assert np.allclose(rows["mean", None], given.mean(0), atol=1e-5)
    assert np.allclose(np.concatenate([rows[None, 0], rows[None, 64]]), given, atol=1e-5)


def test_kv_of_a_model(stash: Stash, model: Any, said: Any):
    stash.kv(model).generate(torch.tensor([TOKENS]), max_new_tokens=1, do_sample=False)
    layers = said.past_key_values.layers
    given = np.stack([each.numpy()[0] for each in (*(one.keys for one in layers), *(one.values for one in layers))])
    read: dict[int, np.ndarray] = {}
    for each, arrays, metadata in kept(stash, "kv"):
        fits(arrays, tables("KV pieces")[0])
        if "shape" in metadata:
            assert metadata["skip"] == "0"
            assert metadata["shape"] == '[[4,2,8,"float32"]]'
            start = each.components["start"]
            assert array(arrays["tokens"]).tolist() == TOKENS[start : start + int(metadata["n"])]
            read[start] = array(arrays["part0"])
    found = np.concatenate([read[0], read[64]], axis=2)
    assert np.allclose(found, given[:, :, : found.shape[2]], atol=1e-5)
    assert found.shape[2] >= len(TOKENS) - 1


def test_log_probabilities_of_a_model(stash: Stash, model: Any, said: Any):
    given = torch.log_softmax(said.logits[0].float(), 1).numpy()
    for keep in ("hidden", "exact", "uint16"):
        cache = stash.logprobs(model, keep=keep)
        cache.next_token_logprobs(TOKENS)
        cache.score(TOKENS)
        cache.flush()
    seen: dict[str, np.ndarray] = {}
    for each, arrays, _ in kept(stash, "logprobs"):
        fits(arrays, tables("Log-probabilities")[0])
        site, n_tokens = each.components["site"], int(array(arrays["n_tokens"])[0])
        value = array(arrays["value"])
        if site == "uint16":
            value = array(arrays["range"])[0] + value * array(arrays["range"])[1]
        seen[f"{site} {n_tokens}"] = value
    assert np.allclose(seen["exact 70"], given[69], atol=1e-4)
    assert np.allclose(seen["uint16 70"], given[69], atol=1e-3)
    with torch.no_grad():
        by_head = torch.log_softmax(model.lm_head(torch.from_numpy(seen["hidden 70"].copy())).float(), 0).numpy()
    assert np.allclose(by_head, given[69], atol=1e-4)
    scores = [given[place - 1][TOKENS[place]] for place in range(1, 70)]
    assert np.allclose(np.concatenate([seen["score 64"], seen["score 70"]])[:70], [0.0, *scores], atol=1e-4)
    assert not seen["score 70"][6:].any()
