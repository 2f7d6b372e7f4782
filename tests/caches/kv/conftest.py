"""Tiny random models, and what goes through them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lmstash

VOCABULARY = 120


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make_model():
    """Build a tiny model of a family; one seed gives one set of weights."""

    def build(kind: str = "llama", seed: int = 0, **options):
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 512}
        ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        config = AutoConfig.for_model(kind, **{**shape, **ends, **options})
        model = AutoModelForCausalLM.from_config(config).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = None
        return model

    return build


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def stash(tmp_path):
    with lmstash.open(tmp_path / "stash", capacity_bytes=2**30) as opened:
        yield opened


@pytest.fixture
def prompt():
    """Ids `[1, n]` of a prompt; the same start for the same seed."""

    def make(n_tokens: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, VOCABULARY, (1, 512), generator=generator)[:, :n_tokens]

    return make


class Fed:
    """How many tokens were fed to a model, in all rows."""

    def __init__(self, model) -> None:
        self.tokens = 0
        self.passes: list[int] = []

        def count(module, args, kwargs):
            ids = kwargs.get("input_ids", args[0] if args else None)
            self.tokens += ids.numel()
            self.passes.append(ids.shape[1])

        count._lmstash = True  # reads only, so the model's fingerprint may overlook it
        model.register_forward_pre_hook(count, with_kwargs=True)

    def take(self) -> list[int]:
        """Return the lengths of the passes since the last time."""
        passes, self.passes = self.passes, []
        return passes


@pytest.fixture
def fed():
    return Fed


def live_cache(model, ids):
    """What one forward pass over `ids` leaves."""
    with torch.no_grad():
        return model(ids, use_cache=True).past_key_values


@pytest.fixture
def live():
    return live_cache
