"""Lists of ids kept by the words of their texts: found again, and never when one word would come out otherwise."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lmstash.caches.activations import texts
from lmstash.caches.activations.texts import TextIndex, tokenize
from lmstash.caches.activations.tokenizer_state import TokenizerState
from lmstash.store.memory import MemoryStore

SIZE = 6000
MANY = [f"The number {n} is called {n * 7919 % 97} in the land of héllo primes" for n in range(400)]


def corpus(seed: int) -> list[str]:
    letters = random.Random(seed)
    return ["".join(letters.choices("abcdefghilmnoprstu", k=6)) for _ in range(4000)] + MANY[seed * 50 :][:50]


def byte_level(seed: int, **options) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    train(backend, seed)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **options)


def train(backend: Tokenizer, seed: int) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus(seed), trainer)


def word_level(words) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.fixture
def calls(monkeypatch):
    seen: list[str] = []

    def counted(strings, tokenizer):
        seen.extend(strings)
        return tokenize(strings, tokenizer)

    monkeypatch.setattr(texts, "tokenize", counted)
    return seen


@pytest.fixture(scope="module")
def trained():
    return byte_level(0)


@pytest.fixture
def tokenizer(trained):
    backend = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def ids_of(index, strings):
    return [np.frombuffer(ids, "<u4").tolist() for ids in index.tokenize(strings)]


def plain(tokenizer, strings):
    return tokenizer(strings)["input_ids"]


def test_these_texts_are_kept_by_words(tokenizer):
    assert texts._LEAST_CHARACTERS <= sum(map(len, MANY)) < texts._CHARACTERS_PER_WORD * tokenizer.vocab_size
    words = TokenizerState(tokenizer).words(MANY, plain(tokenizer, MANY))
    assert words is not None
    assert {"The", "Ġnumber", "ĠhÃ©llo"} < words.keys()


def test_texts_seen_before_are_not_tokenized_again(tokenizer, calls):
    store = MemoryStore()
    expected = plain(tokenizer, MANY)
    assert ids_of(TextIndex(store, tokenizer), MANY) == expected
    assert ids_of(TextIndex(store, tokenizer), MANY) == expected
    assert calls == MANY
    assert [entry.kind for entry in store.entries()] == ["prompts"]


def test_the_model_is_not_serialised(tokenizer, monkeypatch):
    store = MemoryStore()
    TextIndex(store, tokenizer).tokenize(MANY)
    monkeypatch.setattr(TokenizerState, "whole", None)
    assert ids_of(TextIndex(store, tokenizer), MANY) == plain(tokenizer, MANY)


CHANGES = {
    "a model trained anew in place": lambda it: train(it.backend_tokenizer, 1),
    "another model": lambda it: setattr(it.backend_tokenizer, "model", byte_level(1).backend_tokenizer.model),
    "merges left out": lambda it: setattr(it.backend_tokenizer.model, "ignore_merges", True),
    "a normalizer": lambda it: setattr(it.backend_tokenizer, "normalizer", normalizers.Replace("primes", "prime s")),
    "an added token": lambda it: it.add_tokens(["land of"]),
    "a special token": lambda it: it.add_special_tokens({"additional_special_tokens": ["number"]}),
    "another pre-tokenizer": lambda it: setattr(
        it.backend_tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "another post-processor": lambda it: setattr(
        it.backend_tokenizer,
        "post_processor",
        processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)]),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tokenizer_changed_in_place_is_asked_again(tokenizer, calls, change):
    index = TextIndex(MemoryStore(), tokenizer)
    before = ids_of(index, MANY)
    size = tokenizer.backend_tokenizer.get_vocab_size(False)
    change(tokenizer)
    # A BPE model goes on using words that it remembers of before it was trained: a copy remembers none.
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    expected = [each.ids for each in copy.encode_batch(MANY)]
    assert ids_of(index, MANY) == expected == plain(tokenizer, MANY)
    if change is CHANGES["a model trained anew in place"]:
        assert tokenizer.backend_tokenizer.get_vocab_size(False) == size == SIZE
    assert expected != before or change is CHANGES["merges left out"]
    assert len(calls) == 2 * len(MANY) or expected == before


def test_every_single_word_counts(calls):
    """One word of many comes out otherwise, everything else being equal: sampled words, size and rules."""
    words = ["<unk>", *(f"w{number}" for number in range(SIZE))]
    strings = [" ".join(f"w{(number + at) % 41}" for at in range(12)) for number in range(500)]
    tokenizer = word_level(words)
    index = TextIndex(MemoryStore(), tokenizer)
    index.tokenize(strings)
    index.tokenize(strings)
    assert len(calls) == 500
    swapped = dict(zip(words, range(len(words)), strict=True))
    swapped["w40"], swapped["w5001"] = swapped["w5001"], swapped["w40"]
    state = TokenizerState(tokenizer)
    rules = state.rules()
    tokenizer.backend_tokenizer.model = models.WordLevel(swapped, unk_token="<unk>")
    assert state.rules() == rules
    assert ids_of(index, strings) == plain(tokenizer, strings)
    assert len(calls) == 1000


def test_a_word_unknown_before_is_noticed_when_it_is_learned(calls):
    words = ["<unk>", *(f"w{number}" for number in range(SIZE)), "filler"]
    strings = [f"strange w{number % 41} w1 w2 w3 w4 w5 w6 w7 w8 w9" for number in range(500)]
    tokenizer = word_level(words)
    index = TextIndex(MemoryStore(), tokenizer)
    before = ids_of(index, strings)
    tokenizer.backend_tokenizer.model = models.WordLevel(
        {word: at for at, word in enumerate([*words[:-1], "strange"])}, unk_token="<unk>"
    )
    after = ids_of(index, strings)
    assert after == plain(tokenizer, strings)
    assert after != before


def test_added_tokens_in_a_text_leave_it_to_the_tokenizer(tokenizer, calls):
    store = MemoryStore()
    strings = [*MANY, "ends with </s> in its midst"]
    for _ in range(2):
        assert ids_of(TextIndex(store, tokenizer), strings) == plain(tokenizer, strings)
    assert len(calls) == 2 * len(strings)
    assert store.info().entries == 0


@pytest.mark.parametrize(
    "strings",
    [
        [f"{number * 7919} {number * 104729} {number * 1299709} {number}" for number in range(800)],
        [f"w1\0w2 w{number % 7} and some more words to fill it" for number in range(500)],
    ],
    ids=["words that hardly repeat", "words with zeros in them"],
)
def test_lists_of_which_words_say_too_little_are_tokenized(strings, calls):
    tokenizer = word_level(["<unk>", *(f"w{number}" for number in range(9000))])
    store = MemoryStore()
    for _ in range(2):
        assert ids_of(TextIndex(store, tokenizer), strings) == plain(tokenizer, strings)
    assert len(calls) == 2 * len(strings)
    assert store.info().entries == 0


def test_a_tokenizer_that_does_not_cut_words_is_called(calls):
    tokenizer = word_level(["<unk>", *MANY, *(f"w{number}" for number in range(SIZE))])
    tokenizer.backend_tokenizer.pre_tokenizer = None
    store = MemoryStore()
    for _ in range(2):
        assert ids_of(TextIndex(store, tokenizer), MANY) == plain(tokenizer, MANY)
    assert store.info().entries == 0


def test_an_entry_whose_words_were_tampered_with_is_not_used(tokenizer, calls):
    from lmstash.codecs.tensors import decode_tensors, encode_tensors

    store = MemoryStore()
    index = TextIndex(store, tokenizer)
    index.tokenize(MANY)
    [entry] = store.entries()
    for name in ("words", "word_lengths", "word_ids"):
        value = store.get(entry.key)
        assert value is not None
        kept = decode_tensors(value, framework="numpy", copy=True)
        for changed in (kept[name][:-1], np.append(kept[name], kept[name][-1:])):
            store.put(entry.key, encode_tensors(kept | {name: changed}), namespace=entry.namespace)
            before = len(calls)
            assert ids_of(index, MANY) == plain(tokenizer, MANY)
            assert len(calls) == before + len(MANY)
        del kept[name]
        store.put(entry.key, encode_tensors(kept), namespace=entry.namespace)
        assert ids_of(index, MANY) == plain(tokenizer, MANY)


@pytest.mark.parametrize("name", ["__call__", "_encode_plus"])
def test_a_tokenizer_class_with_somebodys_method_is_asked_each_time(tokenizer, monkeypatch, name):
    store, kind = MemoryStore(), type(tokenizer)
    before = ids_of(TextIndex(store, tokenizer), MANY)
    theirs = getattr(kind, name)

    def upper(self, text, *rest, **named):
        return theirs(self, [*map(str.upper, text)], *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, upper)
        now = plain(tokenizer, MANY)
        assert ids_of(TextIndex(store, tokenizer), MANY) == now != before
        patch.setattr(texts, "_CHARACTERS_PER_WORD", 0)  # long lists: the tokenizer is read as a whole
        assert ids_of(TextIndex(store, tokenizer), MANY) == now
    assert ids_of(TextIndex(store, tokenizer), MANY) == before


def test_what_a_tokenizer_class_calls_counts_as_its_methods_do(tokenizer, monkeypatch):
    from transformers import tokenization_utils_base

    state = TokenizerState(tokenizer)
    known = state.rules()
    with monkeypatch.context() as patch:
        patch.setattr(tokenization_utils_base.BatchEncoding, "__getitem__", lambda self, item: [])
        assert state.rules() is state.whole() is None
    assert state.rules() == known is not None
