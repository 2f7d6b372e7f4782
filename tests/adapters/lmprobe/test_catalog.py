"""What is remembered of a model under its name must name its entries as the model itself would."""

from dataclasses import replace

import pytest
import torch
import transformers

from lmstash.adapters.lmprobe.catalog import Reading, readings, register
from lmstash.adapters.lmprobe.layout import hash16
from lmstash.adapters.lmprobe.slots import read_facts
from lmstash.adapters.lmprobe.source import SITE, ExtractBatchSource
from lmstash.caches.activations.model_source import ModelSource
from lmstash.store.memory import MemoryStore

READING = Reading("tiny", bytes(32), None, by_tokens=True, causal=False, n_layers=2, width=16, n_experts=None)
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 30}


@pytest.mark.parametrize(("kind", "padded_tokens"), [("FNetModel", 0), ("BertModel", None)])
def test_how_far_prompts_of_a_live_model_may_be_padded_is_remembered(kind, padded_tokens):
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    heads = {} if kind == "FNetModel" else {"num_attention_heads": 2}
    live = ModelSource(model(model.config_class(**TINY, **heads)).eval())
    extractor = type("Named", (), {"model_name": "tiny"})()
    source = ExtractBatchSource(extractor, live, remote=False, max_retries=0, after_batch=lambda: None)
    assert source.padded_tokens(SITE) == padded_tokens
    store = MemoryStore()
    register(store, replace(READING, padded_tokens=source.padded_tokens(SITE)))
    (found,) = readings(store, hash16("tiny"))
    assert found.source().padded_tokens(SITE) == padded_tokens


def test_where_padding_does_not_show_nothing_more_is_said_than_before():
    store = MemoryStore()
    register(store, READING)
    ((fact, _),) = read_facts(store, [hash16("tiny")])[hash16("tiny")]
    assert "padded_tokens" not in fact
