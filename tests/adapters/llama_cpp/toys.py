"""Tiny random GGUF models of families whose memory is not a plain KV cache."""

import numpy as np

WIDTH, HEADS, KV_HEADS, FEED, LAYERS, VOCABULARY = 64, 4, 2, 96, 3, 258
KINDS = ("llama", "qwen2vl", "gemma3", "lfm2", "mamba")


def write_toy(path, kind, *, seed=0, window=32, context=2048):
    """Write a model of a family; one seed gives one set of weights."""
    import gguf

    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_name(f"toy {kind}")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(7 if kind == "gemma3" else LAYERS)
    writer.add_feed_forward_length(FEED if kind != "mamba" else 0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_layer_norm_rms_eps(1e-5)
    n_layers = 7 if kind == "gemma3" else LAYERS  # every sixth attends to everything
    attends = [kind != "mamba" and (kind != "lfm2" or layer == 1) for layer in range(n_layers)]
    if kind == "lfm2":
        writer.add_head_count(HEADS)
        writer.add_head_count_kv([KV_HEADS if each else 0 for each in attends])
        writer.add_shortconv_l_cache(3)
    elif kind == "mamba":
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * WIDTH)
        writer.add_ssm_state_size(8)
        writer.add_ssm_time_step_rank(4)
    else:
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
    if kind == "gemma3":
        writer.add_sliding_window(window)
        writer.add_key_length(WIDTH // HEADS)
        writer.add_value_length(WIDTH // HEADS)
    if kind == "qwen2vl":
        writer.add_rope_dimension_sections([2, 3, 3, 0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", *[f"w{number}." for number in range(3, VOCABULARY - 1)], "<end>"])
    writer.add_token_types([1] * (VOCABULARY - 1) + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_add_bos_token(False)

    def put(name, *shape, around=0.0, scale=0.3):
        writer.add_tensor(name, (around + scale * draw.standard_normal(shape)).astype(np.float32))

    put("token_embd.weight", VOCABULARY, WIDTH)
    put("output.weight", VOCABULARY, WIDTH)  # tied ones repeat the last token whatever came before
    put("output_norm.weight" if kind != "lfm2" else "token_embd_norm.weight", WIDTH, around=1.0, scale=0.1)
    for layer in range(n_layers):
        name = f"blk.{layer}."
        put(name + "attn_norm.weight", WIDTH, around=1.0, scale=0.1)
        if kind == "mamba":
            inner = 2 * WIDTH
            put(name + "ssm_in.weight", 2 * inner, WIDTH)
            put(name + "ssm_conv1d.weight", inner, 4)
            put(name + "ssm_conv1d.bias", inner)
            put(name + "ssm_x.weight", 4 + 16, inner, scale=0.1)
            put(name + "ssm_dt.weight", inner, 4)
            put(name + "ssm_dt.bias", inner)
            put(name + "ssm_a", inner, 8, around=-1.0, scale=0.1)
            put(name + "ssm_d", inner)
            put(name + "ssm_out.weight", WIDTH, inner, scale=0.1)
            continue
        if attends[layer]:
            head = WIDTH // HEADS
            for each, width in (("q", WIDTH), ("k", KV_HEADS * head), ("v", KV_HEADS * head)):
                put(f"{name}attn_{each}.weight", width, WIDTH)
                if kind == "qwen2vl":
                    put(f"{name}attn_{each}.bias", width)
            put(name + "attn_output.weight", WIDTH, WIDTH)
            if kind in ("gemma3", "lfm2"):
                put(name + "attn_q_norm.weight", head, around=1.0, scale=0.1)
                put(name + "attn_k_norm.weight", head, around=1.0, scale=0.1)
        else:
            put(name + "shortconv.conv.weight", WIDTH, 3)
            put(name + "shortconv.in_proj.weight", 3 * WIDTH, WIDTH)
            put(name + "shortconv.out_proj.weight", WIDTH, WIDTH)
        if kind == "gemma3":
            put(name + "post_attention_norm.weight", WIDTH, around=1.0, scale=0.1)
            put(name + "post_ffw_norm.weight", WIDTH, around=1.0, scale=0.1)
        put(name + "ffn_norm.weight", WIDTH, around=1.0, scale=0.1)
        put(name + "ffn_gate.weight", FEED, WIDTH)
        put(name + "ffn_up.weight", FEED, WIDTH)
        put(name + "ffn_down.weight", WIDTH, FEED)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
