"""Tiny random models, and prompts for them."""

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 120


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make_model():
    """Build a Llama of 4 layers, 32 wide; one seed gives one set of weights."""

    def build(seed: int = 0, **options) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
        config = LlamaConfig(**{**shape, "vocab_size": VOCABULARY, "max_position_embeddings": 300, **options})
        return LlamaForCausalLM(config).eval()

    return build


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def encoder():
    """A model that sees the future: raw values are kept by exact prompt."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    return BertModel(BertConfig(**shape, vocab_size=VOCABULARY)).eval()


@pytest.fixture
def prompts():
    """Ids of 1 to 200 tokens."""
    generator = torch.Generator().manual_seed(5)
    lengths = (7, 70, 64, 1, 200, 128, 3)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


class Forwards:
    """How many prompts went through a model's block 0, and in how many batches."""

    def __init__(self, model) -> None:
        self.batches = 0
        self.rows = 0
        block = model.model.layers[0] if hasattr(model, "model") else model.encoder.layer[0]

        def count(module, args, kwargs):
            self.batches += 1
            self.rows += len(args[0] if args else kwargs["hidden_states"])

        count._lmstash = True  # reads only, so the model's fingerprint may overlook it
        block.register_forward_pre_hook(count, with_kwargs=True)


@pytest.fixture
def count_forwards():
    return Forwards


@pytest.fixture
def tokenizer():
    """A fast word-level tokenizer without pad token; adds a begin token, as Llama's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
