import numpy as np
import pytest
import torch

from lmstash.caches.activations.prompts import Prompt, read_prompts
from lmstash.errors import InvalidArgumentError


def test_ids_in_any_container_are_the_same_prompt():
    kinds = [[3, 4], (3, 4), np.array([3, 4], dtype=np.int16), torch.tensor([3, 4]), Prompt(np.array([3, 4]), "x")]
    for prompt in read_prompts(kinds):
        assert prompt.ids.dtype == np.uint32
        assert prompt.ids.tolist() == [3, 4]


def test_strings_are_tokenized_with_special_tokens_and_nothing_else(tokenizer):
    tokenizer.padding_side = "left"
    tokenizer.pad_token = "<unk>"
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    short, long = read_prompts(["w0", "w1 w2 w3 w4"], tokenizer)
    assert short.ids.tolist() == [0, 2]
    assert long.ids.tolist() == [0, 3, 4, 5, 6]
    assert long.text == "w1 w2 w3 w4"


def test_a_tokenizer_without_pad_token_will_do(tokenizer):
    assert tokenizer.pad_token is None
    assert [len(prompt) for prompt in read_prompts(["w0", "w1 w2"], tokenizer)] == [2, 3]


def test_what_a_chat_template_returns_is_taken_as_it_is(tokenizer):
    """Transformers 5 returns ids and a mask."""
    tokenizer.chat_template = "<s>{% for m in messages %} {{ m['content'] }}{% endfor %}"
    chat = [{"role": "user", "content": "w1 w2"}]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True)
    (prompt,) = read_prompts([encoded])
    assert prompt.ids.tolist() == encoded["input_ids"]
    (prompt,) = read_prompts([{"input_ids": [1, 2], "attention_mask": [1, 1], "token_type_ids": [0, 0]}])
    assert prompt.ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    "more", [{"attention_mask": [1, 1, 0]}, {"token_type_ids": [0, 1, 1]}, {"position_ids": [0, 1, 2]}]
)
def test_what_would_be_left_out_of_an_encoding_is_refused(more):
    """The ids alone would give other values than the user means."""
    with pytest.raises(InvalidArgumentError, match=rf"prompt 1 is padded, or .*\({next(iter(more))}\)"):
        read_prompts([[1], {"input_ids": [1, 2, 0], **more}])


def test_messages_that_a_template_does_not_take_are_named(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ raise_exception('no such role') }}{% endfor %}"
    with pytest.raises(InvalidArgumentError, match="prompt 1: the chat template does not take it: no such role"):
        read_prompts([[5], [{"role": "user", "content": "w1"}]], tokenizer)


def test_chat_messages_go_through_the_template_once(tokenizer):
    tokenizer.chat_template = "<s>{% for m in messages %} {{ m['content'] }}{% endfor %}"
    chat = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    (prompt,) = read_prompts([chat], tokenizer)
    assert prompt.ids.tolist() == tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert prompt.ids.tolist() == [0, 3, 4, 5]
    assert prompt.text == "<s> w1 w2 w3"


def test_kinds_may_be_mixed_and_keep_their_order(tokenizer):
    found = read_prompts([[7], "w0", [8, 9]], tokenizer)
    assert [prompt.ids.tolist() for prompt in found] == [[7], [0, 2], [8, 9]]


@pytest.mark.parametrize("prompt", [[], (), np.array([], dtype=np.int64), torch.tensor([], dtype=torch.int64)])
def test_an_empty_prompt_is_named_by_its_index(prompt):
    with pytest.raises(InvalidArgumentError, match="prompt 1 is empty"):
        read_prompts([[1], prompt])


def test_a_string_without_tokens_is_named_by_its_index(tokenizer):
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(InvalidArgumentError, match="prompt 1 is empty"):
        read_prompts(["w0", ""], tokenizer)


@pytest.mark.parametrize(
    "prompt", [[1.5], [True], [[1], [2]], [-1], [2**32], None, 5, object(), [1, "a"], [[1], [2, 3]], [{"role": "user"}]]
)
def test_what_is_no_prompt_is_named_by_its_index(prompt):
    with pytest.raises(InvalidArgumentError, match="prompt 1"):
        read_prompts([[1], prompt])


def test_one_string_instead_of_a_list_is_explained():
    with pytest.raises(InvalidArgumentError, match="list of prompts"):
        read_prompts("text")


def test_strings_without_a_tokenizer_are_explained():
    with pytest.raises(InvalidArgumentError, match="tokenizer="):
        read_prompts(["text"])


def test_an_iterator_is_refused():
    with pytest.raises(InvalidArgumentError, match="list"):
        read_prompts(iter([[1]]))


def test_a_shuffled_series_is_read_by_place_not_by_label(tokenizer):
    pandas = pytest.importorskip("pandas")
    texts = pandas.Series(["w0", "w1 w2", "w3"], index=[2, 0, 1])
    assert [prompt.text for prompt in read_prompts(texts, tokenizer)] == ["w0", "w1 w2", "w3"]
    assert [prompt.ids.tolist() for prompt in read_prompts(texts, tokenizer)] == [[0, 2], [0, 3, 4], [0, 5]]


def test_prompts_that_know_places_and_labels_are_read_in_the_order_in_which_they_come(tokenizer):
    class Labelled(list):  # as a Series that was filtered: its labels are no places
        def __getitem__(self, label):
            return super().__getitem__({3: 0, 0: 1}[label])

    assert [prompt.ids.tolist() for prompt in read_prompts(Labelled(["w0", "w1"]), tokenizer)] == [[0, 2], [0, 3]]


def test_a_table_is_refused_as_it_would_give_the_names_of_its_columns(tokenizer):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InvalidArgumentError, match="columns"):
        read_prompts(pandas.DataFrame({"w0": ["w1"]}), tokenizer)


def test_what_a_tokenizer_returns_is_refused_with_what_to_pass_instead(tokenizer):
    enc = tokenizer(["w0", "w1"])
    with pytest.raises(InvalidArgumentError, match=r'enc\["input_ids"\]'):
        read_prompts(enc)
    assert len(read_prompts(enc["input_ids"])) == 2
