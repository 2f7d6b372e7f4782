"""What `stash.forget` is asked to forget: a text, the ids that a tokenizer makes of it, ids in any form."""

import subprocess
import sys
from array import array

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import lmstash
from lmstash.errors import InvalidArgumentError, ReadOnlyError

TEXT = "a secret that nobody shall read again"


@pytest.fixture
def tokenizer():
    """A transformers tokenizer of words, which puts a special token before a text."""
    words = {word: number for number, word in enumerate(["<s>", "?", "user", *TEXT.split()])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(4)
    template = "{% for turn in messages %}{{ turn['role'] }} {{ turn['content'] }}{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="?", chat_template=template)


@pytest.fixture
def plain_ids(tokenizer):
    return tokenizer(TEXT, add_special_tokens=False, truncation=False).input_ids


def test_without_a_tokenizer_a_text_finds_what_was_asked_for_by_it_and_nothing_else(
    tmp_path, model, tokenizer, plain_ids
):
    with lmstash.open(tmp_path / "s") as stash:
        acts = stash.activations(model, tokenizer)
        acts([TEXT], [0])
        acts([plain_ids], [0])
        stash.logprobs(model).next_token_logprobs(plain_ids)
        stash.responses("a").get_or_compute({"prompt": f"Say: {TEXT}"}, lambda: "no")
        assert stash.forget(prompt=TEXT).entries == 2
        assert {each.kind for each in stash.store.entries()} == {"activations", "logprobs", "models"}


def test_a_tokenizer_finds_what_was_computed_from_ids_with_special_tokens_and_without(
    stash, model, tokenizer, plain_ids, kept
):
    kv, lp, acts = stash.kv(model), stash.logprobs(model), stash.activations(model)
    for ids in (plain_ids, [0, *plain_ids]):
        kv.prefill(ids)
        lp.next_token_logprobs(ids)
        acts([ids], [0])
        acts([ids], [0], pool=None)
    stash.responses("a").get_or_compute({"prompt": f"Say: {TEXT}"}, lambda: "no")
    stash.forget(prompt=TEXT, tokenizer=tokenizer)
    assert len(kept(stash)) == (1 if stash.private else 0)  # a private stash keeps no requests to look at


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_of_bytes_such_as_llama_cpps_will_do(tmp_path, model, plain_ids, kept, special):
    asked = []

    class Llama:
        def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
            if not isinstance(text, bytes):
                raise TypeError("wrong type")
            asked.append((add_bos, special))
            assert text == TEXT.encode()
            return [0] * add_bos + plain_ids + [99] * special

    with lmstash.open(tmp_path / "s") as stash:
        for bos in (True, False):
            stash.logprobs(model).next_token_logprobs(Llama().tokenize(TEXT.encode(), bos, special))
        stash.forget(prompt=TEXT, tokenizer=Llama().tokenize)
        assert kept(stash) == set()
    assert set(asked) == {(True, True), (True, False), (False, True), (False, False)}


def test_any_function_from_text_to_ids_will_do(tmp_path, model, tokenizer, plain_ids, kept):
    functions = [
        lambda text: tokenizer(text, add_special_tokens=False, truncation=False, return_tensors="pt").input_ids,
        lambda text: np.array(plain_ids),
        lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False),  # an object with ids
    ]
    tokenizer.backend_tokenizer.no_truncation()
    with lmstash.open(tmp_path / "s") as stash:
        for function in functions:
            stash.logprobs(model).next_token_logprobs(plain_ids)
            assert stash.forget(prompt=TEXT, tokenizer=function).entries == 1


def test_a_chat_is_forgotten_by_its_rendered_text(tmp_path, model, tokenizer, kept):
    messages = [{"role": "user", "content": TEXT}]
    with lmstash.open(tmp_path / "s") as stash:
        stash.activations(model, tokenizer)([messages], [0])
        ids = tokenizer.apply_chat_template(messages, truncation=False, return_dict=False)
        stash.kv(model).prefill(ids)
        stash.forget(prompt=tokenizer.apply_chat_template(messages, tokenize=False), tokenizer=tokenizer)
        assert kept(stash) == set()


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor, lambda ids: torch.tensor([ids]), lambda ids: array("I", ids)]
)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_ids_are_taken_in_every_form(tmp_path, model, tokens, form, n_tokens):
    with lmstash.open(tmp_path / "s") as stash:
        stash.logprobs(model).next_token_logprobs(tokens(n_tokens))
        assert stash.forget(prompt=form(tokens(n_tokens))).entries == 1


@pytest.mark.parametrize(
    "wrong", [[], [[]], b"bytes", [1.5], ["a"], 7, [[1], [2]], torch.zeros(2, 3, dtype=torch.int64)]
)
def test_what_is_neither_text_nor_ids_is_refused(tmp_path, wrong):
    with lmstash.open(tmp_path / "s") as stash, pytest.raises(InvalidArgumentError):
        stash.forget(prompt=wrong)


def test_lists_of_ids_go_whatever_the_prompt_is_given_as(tmp_path):
    with lmstash.open(tmp_path / "s") as stash:
        stash.store.put(bytes(32), b"ids", namespace="prompts/x")
        assert stash.forget(prompt=[1, 2], dry_run=True).entries == 1
        assert stash.forget(prompt=[1, 2]).entries == 1


def test_a_read_only_stash_forgets_nothing_and_says_what_it_would(tmp_path, model, tokens):
    with lmstash.open(tmp_path / "s") as stash:
        stash.logprobs(model).next_token_logprobs(tokens(9))
    with lmstash.open(tmp_path / "s", read_only=True) as stash:
        assert stash.forget(prompt=tokens(9), dry_run=True).entries == 1
        with pytest.raises(ReadOnlyError):
            stash.forget(prompt=tokens(9))


def test_nothing_of_a_prompt_is_left_in_the_files_or_in_a_ram_tier(tmp_path, model, tokens):
    folder = tmp_path / "s"
    with lmstash.open(folder, memory_bytes="10MB") as stash:
        kv = stash.kv(model)
        kv.prefill(tokens(100))
        kv.past(tokens(100))  # now in RAM, too
        written = np.array(tokens(100)[:64], "<u4").tobytes()
        assert any(written in each.read_bytes() for each in folder.rglob("*") if each.is_file())
        stash.forget(prompt=tokens(100))
        assert kv.past(tokens(100)) == (None, 0)
        assert not any(written in each.read_bytes() for each in folder.rglob("*") if each.is_file())


def test_forgetting_needs_no_torch():
    code = (
        "import sys, lmstash\n"
        "with lmstash.open('memory://') as stash:\n"
        "    for kind in ('kv', 'logprobs', 'states', 'scores', 'sequences', 'activations'):\n"
        "        stash.store.put(bytes(31) + kind[:1].encode(), b'x', namespace=kind + '/0123456789abcdef')\n"
        "    print(stash.forget(prompt=[1, 2, 3]).entries, [name for name in ('torch',) if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "[]"]


@pytest.mark.parametrize("how", ["clear", "prune", "prune by age"])
def test_what_was_just_computed_is_removed_with_the_rest_and_served_no_more(tmp_path, model, tokens, how):
    """Though it is still on its way to the folder, or lies in RAM."""

    def remove(stash, kind):
        if how == "clear":
            return stash.clear()
        return stash.prune(kind=kind) if how == "prune" else stash.prune(kind=kind, older_than=-1)

    with lmstash.open(tmp_path / "s") as stash:
        kv, logprobs = stash.kv(model), stash.logprobs(model)
        kv.generate(torch.tensor([tokens(100)]), max_new_tokens=2, do_sample=False)
        assert remove(stash, "kv").entries > 0
        assert kv.past(tokens(100)) == (None, 0)
        logprobs.next_token_logprobs(tokens(9))
        assert remove(stash, "logprobs").entries > 0
        fed = logprobs.fed_tokens
        logprobs.next_token_logprobs(tokens(9))
        assert logprobs.fed_tokens > fed
    with lmstash.open(tmp_path / "s") as stash:
        assert {each.namespace.partition("/")[0] for each in stash.store.entries("kv/")} == set()
        assert len(list(stash.store.entries("logprobs/"))) == 1  # what was asked for again
