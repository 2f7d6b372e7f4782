import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend

from lmstash.errors import UnsupportedModelError
from lmstash.identity.tokenizer import fingerprint_tokenizer


def make(text="hello world, the cat sat on the mat", **settings):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **settings)


def test_equal_tokenizers_share_wherever_they_were_loaded_from(tmp_path):
    tokenizer = make()
    found = {fingerprint_tokenizer(tokenizer)}
    for folder in ("a", "b"):
        tokenizer.save_pretrained(tmp_path / folder)
        loaded = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert fingerprint_tokenizer(loaded).explain(fingerprint_tokenizer(tokenizer)) == []
        found.add(fingerprint_tokenizer(loaded))
    assert len(found) == 1


def test_calls_that_pad_and_truncate_do_not_change_it():
    tokenizer = make(pad_token="</s>")
    before = fingerprint_tokenizer(tokenizer)
    tokenizer(["a b c", "d"], padding=True, truncation=True, max_length=2)
    tokenizer.padding_side = "left"
    assert fingerprint_tokenizer(tokenizer) == before


def add_token(tokenizer):
    tokenizer.add_tokens(["zzz"])


def set_pad(tokenizer):
    tokenizer.pad_token = "</s>"


def set_template(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] }}"


def set_prefix_space(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def set_normalizer(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def set_bos(tokenizer):
    tokenizer.bos_token = "<b>"


def set_length(tokenizer):
    tokenizer.model_max_length = 7


def set_truncation_side(tokenizer):
    tokenizer.truncation_side = "left"


@pytest.mark.parametrize(
    "change",
    [add_token, set_pad, set_template, set_prefix_space, set_normalizer, set_bos, set_length, set_truncation_side],
)
def test_what_changes_the_ids_changes_the_fingerprint(change):
    tokenizer = make()
    before = fingerprint_tokenizer(tokenizer)
    change(tokenizer)
    assert fingerprint_tokenizer(tokenizer) != before


def test_another_vocabulary_or_class_counts():
    class Loud(PreTrainedTokenizerFast):
        def _encode_plus(self, text, **settings):
            return super()._encode_plus(text.upper(), **settings)

    tokenizer = make()
    loud = Loud(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    found = {fingerprint_tokenizer(each) for each in (tokenizer, loud, make(text="other words altogether"))}
    assert len(found) == 3


class Letters(PythonBackend):
    """A tokenizer written in Python, one id per letter."""

    def __init__(self, letters="abc", **settings):
        self.letters = {letter: index for index, letter in enumerate(letters)}
        super().__init__(**settings)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return dict(self.letters)

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.get(token, 0)


class Backwards(Letters):
    def _tokenize(self, text, **_):
        return list(reversed(text))


def test_tokenizers_written_in_python_count_by_vocabulary_settings_and_code():
    assert fingerprint_tokenizer(Letters()) == fingerprint_tokenizer(Letters())
    made = [Letters(), Letters("abd"), Letters(unk_token="a"), Backwards()]
    assert len({fingerprint_tokenizer(each) for each in made}) == 4


def test_a_bare_backend_is_a_tokenizer_too():
    tokenizer = make()
    bare = fingerprint_tokenizer(tokenizer.backend_tokenizer)
    assert bare == fingerprint_tokenizer(make().backend_tokenizer)
    assert bare != fingerprint_tokenizer(tokenizer)


@pytest.mark.parametrize("thing", [None, str.split, object(), "gpt2"])
def test_what_is_not_known_to_be_a_tokenizer_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match="lists of token ids"):
        fingerprint_tokenizer(thing)


def test_a_tokenizer_fingerprint_survives_json():
    fingerprint = fingerprint_tokenizer(make())
    again = type(fingerprint).from_description(json.loads(json.dumps(fingerprint.describe(), allow_nan=False)))
    assert again == fingerprint
