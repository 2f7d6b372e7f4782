"""A tiny model, prompts that begin alike, and the places where what is computed over them is kept."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lmstash

VOCABULARY = 120
STASHES = {
    "plain": {},
    "private": {"private": True},
    "salted": {"salt": "tenant"},
    "both": {"private": True, "salt": b"t"},
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(
        **shape, vocab_size=VOCABULARY, max_position_embeddings=512, bos_token_id=None, eos_token_id=None
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=STASHES)
def stash(request, tmp_path):
    """A folder of each kind."""
    with lmstash.open(tmp_path / "stash", capacity_bytes=2**30, **STASHES[request.param]) as opened:
        yield opened


@pytest.fixture
def tokens():
    """Ids of a prompt; the same start for the same seed, and no two seeds have the same token anywhere."""

    def make(n_tokens: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(5)
        first = torch.randint(0, VOCABULARY, (512,), generator=generator)
        return ((first + seed) % VOCABULARY)[:n_tokens].tolist()

    return make


@pytest.fixture
def kept():
    """The keys of what a stash keeps, but for descriptions of models."""

    def keys(stash) -> set[bytes]:
        stash.flush()
        return {entry.key for entry in stash.store.entries() if entry.kind != "models"}

    return keys
