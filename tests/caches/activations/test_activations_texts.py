"""The index from texts to ids: never an id that the tokenizer would not give now."""

import numpy as np
import pytest
import torch

from lmstash.caches.activations import Activations, texts
from lmstash.caches.activations.texts import TextIndex, tokenize
from lmstash.store.memory import MemoryStore


@pytest.fixture
def many():
    return [f"w{number % 97} w{number % 13} w{number % 7}" * (1 + number % 3) for number in range(2500)]


class Calls:
    """How many texts a tokenizer was called with."""

    def __init__(self, monkeypatch):
        self.texts = 0

        def counted(strings, tokenizer):
            self.texts += len(strings)
            return tokenize(strings, tokenizer)

        monkeypatch.setattr(texts, "tokenize", counted)


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def ids_of(index, strings):
    return [np.frombuffer(ids, "<u4").tolist() for ids in index.tokenize(strings)]


def test_texts_seen_before_are_not_tokenized_again(tokenizer, many, calls):
    store = MemoryStore()
    expected = tokenizer(many)["input_ids"]
    assert ids_of(TextIndex(store, tokenizer), many) == expected
    assert calls.texts == 2500
    assert ids_of(TextIndex(store, tokenizer), many) == expected
    assert calls.texts == 2500


def test_a_list_that_grew_is_tokenized_from_its_last_full_chunk(tokenizer, many, calls):
    index = TextIndex(MemoryStore(), tokenizer)
    index.tokenize(many)
    assert ids_of(index, [*many, "w1"]) == tokenizer([*many, "w1"])["input_ids"]
    assert calls.texts == 2500 + (2501 - 2048)


def test_a_tokenizer_changed_in_place_is_another_one(tokenizer, many, calls):
    from tokenizers import normalizers, processors

    index = TextIndex(MemoryStore(), tokenizer)
    index.tokenize(many)
    changes = [
        lambda: setattr(tokenizer.backend_tokenizer, "normalizer", normalizers.Replace("w1", "w2")),
        lambda: tokenizer.add_tokens(["w96 w12"]),
        lambda: setattr(
            tokenizer.backend_tokenizer,
            "post_processor",
            processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)]),
        ),
    ]
    for number, change in enumerate(changes, 2):
        change()
        assert ids_of(index, many) == tokenizer(many)["input_ids"]
        assert calls.texts == number * 2500


def test_padding_and_truncation_that_others_switched_on_do_not_matter(tokenizer, many, calls):
    index = TextIndex(MemoryStore(), tokenizer)
    expected = ids_of(index, many)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.padding_side = "left"
    assert ids_of(index, many) == expected
    assert calls.texts == 2500


def test_a_tokenizer_with_parts_nobody_can_read_is_always_called(tokenizer, many, calls):
    from tokenizers import NormalizedString, normalizers

    class Own:
        def normalize(self, normalized: NormalizedString):
            normalized.lowercase()

    store = MemoryStore()
    tokenizer.backend_tokenizer.normalizer = normalizers.Normalizer.custom(Own())
    index = TextIndex(store, tokenizer)
    assert ids_of(index, many) == ids_of(index, many)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.setting = object()
    index.tokenize(many)
    assert calls.texts == 3 * 2500
    assert store.info().entries == 0


def test_short_lists_do_without_an_index(tokenizer):
    store = MemoryStore()
    TextIndex(store, tokenizer).tokenize(["w1 w2"])
    assert store.info().entries == 0


def test_a_tokenizer_that_draws_random_numbers_is_always_called(many, calls):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"w": 0, "1": 1, "w1": 2, "<unk>": 3}
    backend = Tokenizer(models.BPE(words, [("w", "1")], dropout=0.5, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    store = MemoryStore()
    index = TextIndex(store, PreTrainedTokenizerFast(tokenizer_object=backend))
    index.tokenize(many)
    index.tokenize(many)
    assert calls.texts == 5000
    assert store.info().entries == 0


def test_salts_keep_tenants_apart(tokenizer, many, calls):
    store = MemoryStore()
    for salt in ("one", "two", None):
        TextIndex(store, tokenizer, salt=salt).tokenize(many)
    assert calls.texts == 3 * 2500


def test_an_entry_that_does_not_fit_is_a_counted_miss(tokenizer, many):
    from lmstash.codecs.tensors import decode_tensors, encode_tensors

    store = MemoryStore()
    index = TextIndex(store, tokenizer)
    index.tokenize(many)
    first, second, third = list(store.entries())
    kept = decode_tensors(store.get(third.key), framework="numpy", copy=True)
    kept["lengths"][0] += np.uint32(1)
    for entry, value in (
        (first, b"damaged"),
        (second, bytes(store.get(first.key))),
        (third, b"".join(encode_tensors(kept))),
    ):
        store.put(entry.key, value, namespace=entry.namespace)
    assert ids_of(index, many) == tokenizer(many)["input_ids"]
    assert store.events.stats.misses["mismatch"] == 3
    assert ids_of(index, many) == tokenizer(many)["input_ids"]
    assert store.events.stats.misses["mismatch"] == 3


def test_private_mode_keeps_no_ids(model, tokenizer, many):
    for private, namespaces in ((True, {"activations", "models"}), (False, {"activations", "models", "prompts"})):
        store = MemoryStore()
        acts = Activations(store, model, tokenizer, private=private)
        cold = acts(many, 0)
        assert {entry.kind for entry in store.entries()} == namespaces
        assert torch.equal(acts(many, 0, on_miss="error"), cold)
