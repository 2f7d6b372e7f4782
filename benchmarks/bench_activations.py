"""Activations of SmolLM2-135M: what caching adds to a cold run, and what a warm one costs.

Cold: the bare forward pass over identical batches against extraction into a fresh disk store, interleaved, CPU seconds,
the least of three. Warm: the same prompts again, and 10,000 short ones through a toy model of the same width.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lmstash.caches.activations import Activations
from lmstash.caches.activations.batching import plan_batches
from lmstash.caches.activations.prompts import read_prompts
from lmstash.store.disk.store import DiskStore

ROOT = Path(__file__).parent.parent
MODEL = ROOT / ".cache/models/smollm2"
N_PROMPTS = 48
LAYER = 29


def bare(model, prompts) -> None:
    for batch in plan_batches([len(prompt) for prompt in prompts], None):
        longest = max(len(prompts[index]) for index in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, : len(prompts[index])] = torch.from_numpy(prompts[index].ids.astype("int64"))
            mask[row, : len(prompts[index])] = 1
        with torch.no_grad():
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)


def measure(action) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    texts = json.loads((ROOT / "src/lmstash/cli/demo/prompts.json").read_text())
    texts = [each if isinstance(each, str) else each["text"] for each in texts["prompts"]][:N_PROMPTS]
    prompts = read_prompts(texts, tokenizer)
    plain, cold, warm = [], [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            acts = Activations(DiskStore(folder, capacity_bytes=2**30), model, tokenizer)
            plain.append(measure(partial(bare, model, prompts)))
            cold.append(measure(partial(acts, texts, LAYER, "last", progress=False)))
            warm.append(measure(partial(acts, texts, LAYER, "last", on_miss="error")))
            acts.store.close()
    print(f"{len(texts)} prompts, {sum(map(len, prompts)):,} tokens, layer {LAYER}, last token (CPU seconds)")
    print(f"  bare forward {min(plain):8.3f}")
    print(f"  cold extract {min(cold):8.3f}   {100 * (min(cold) / min(plain) - 1):+.1f} %   (goal: at most +3 %)")
    print(f"  warm extract {min(warm):8.3f}   {min(plain) / min(warm):.0f}x")

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=576, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    toy = LlamaForCausalLM(config).eval()
    many = [f"The number {i} is called {i * 7919 % 1000003} in the land of primes." for i in range(10_000)]
    with tempfile.TemporaryDirectory() as folder:
        acts = Activations(DiskStore(folder, capacity_bytes=2**30), toy, tokenizer)
        acts(many, 0, "last", cache_only=True, progress=False)
        warm = [measure(lambda: acts(many, 0, "last", on_miss="error")) for _ in range(3)]
        ids = read_prompts(many, tokenizer)
        by_ids = [measure(lambda: acts(ids, 0, "last", on_miss="error")) for _ in range(3)]
        tokenizing = [measure(lambda: tokenizer(many)) for _ in range(3)]
        acts.store.close()
    print("10,000 short prompts, one layer, warm (CPU seconds)")
    print(f"  strings {min(warm):.3f}   token ids {min(by_ids):.3f}   the tokenizer alone {min(tokenizing):.3f}")


if __name__ == "__main__":
    main()
