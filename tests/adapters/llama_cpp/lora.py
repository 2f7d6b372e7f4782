"""Writes LoRA adapters and other small GGUF files for tests."""

import numpy as np


def write_lora(path, *, seed=0, rank=4, scale=0.2, n_layers=30, width=576, kv_width=192):
    """Write an adapter of SmolLM2's K projections, with random weights."""
    import gguf

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(n_layers):
        name = f"blk.{layer}.attn_k.weight"
        writer.add_tensor(f"{name}.lora_a", (draw.standard_normal((rank, width)) * scale).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", (draw.standard_normal((kv_width, rank)) * scale).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
