import pytest
import torch
from torch.nn.utils import prune
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextStreamer
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

import lmstash

GREEDY = {"do_sample": False, "max_new_tokens": 6}


def joined(*parts):
    return torch.cat(parts, dim=1)


def logits_of(out):
    return torch.stack(out.logits)


def test_a_longer_prompt_feeds_only_what_is_new(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    first = kv.generate(prompt(100), **GREEDY)
    assert counter.take() == [100, 1, 1, 1, 1, 1]
    assert torch.equal(first, model.generate(prompt(100), **GREEDY))
    counter.take()
    longer = kv.generate(prompt(130), **GREEDY)
    assert counter.take()[0] == 30
    assert torch.equal(longer, model.generate(prompt(130), **GREEDY))


def test_the_same_prompt_again_feeds_one_token(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    for n_tokens in (64, 128, 100, 5, 2):
        first = kv.generate(prompt(n_tokens, n_tokens), **GREEDY)
        counter.take()
        again = kv.generate(prompt(n_tokens, n_tokens), **GREEDY)
        assert counter.take()[0] == 1
        assert torch.equal(first, again)


def test_a_prompt_of_one_token_is_generated(model, stash, prompt):
    kv = stash.kv(model)
    for _ in range(2):
        assert torch.equal(kv.generate(prompt(1), **GREEDY), model.generate(prompt(1), **GREEDY))


@pytest.mark.parametrize("n_prefix", [1, 63, 64, 65, 128, 200])
def test_restored_continues_as_the_live_cache_bit_for_bit(model, stash, prompt, live, n_prefix):
    ids = prompt(n_prefix + 17)
    want = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, past_key_values=live(model, ids[:, :n_prefix]), **want)
    kv = stash.kv(model)
    kv.put(ids[:, :n_prefix], live(model, ids[:, :n_prefix]))
    for _ in ("from the queue", "from the disk"):
        reused = kv.stats.tokens_reused
        out = kv.generate(ids, **want)
        assert kv.stats.tokens_reused - reused >= n_prefix
        if kv.stats.tokens_reused - reused == n_prefix:
            assert torch.equal(logits_of(out), logits_of(expected))
        assert torch.equal(out.sequences, expected.sequences)
        stash.flush()


def test_another_process_continues_bit_for_bit(model, tmp_path, prompt, live):
    ids = prompt(217)
    want = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, past_key_values=live(model, ids[:, :200]), **want)
    with lmstash.open(tmp_path / "two") as first:
        first.kv(model).prefill(ids[:, :200])
    with lmstash.open(tmp_path / "two") as second:
        kv = second.kv(model)
        out = kv.generate(ids, **want)
        assert kv.stats.tokens_reused == 200
    assert torch.equal(logits_of(out), logits_of(expected))


def test_a_conversation_feeds_every_token_once(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    ids = prompt(20)
    generator = torch.Generator().manual_seed(9)
    for turn in range(20):
        out = kv.generate(ids, do_sample=False, max_new_tokens=3 + turn % 5)
        ids = joined(out, torch.randint(3, 120, (1, 4 + turn % 9), generator=generator))
        if turn % 3 == 0:
            stash.flush()  # some turns are read from the disk, others from the queue
    last = out.shape[1]
    assert sum(counter.take()) <= last + 20


def test_a_prompt_that_leaves_another_within_a_block_shares_to_the_token(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    kv.generate(prompt(200), **GREEDY)
    stash.flush()
    counter.take()
    other = joined(prompt(90), prompt(30, seed=7))
    assert not torch.equal(other[:, 90], prompt(91)[:, 90])
    out = kv.generate(other, **GREEDY)
    assert counter.take()[0] == 30
    assert torch.equal(out, model.generate(other, **GREEDY))


def test_sampling_is_the_live_cache_s(model, stash, prompt, live):
    ids = prompt(100)
    kv = stash.kv(model)
    kv.put(ids[:, :80], live(model, ids[:, :80]))
    want = {"do_sample": True, "max_new_tokens": 12, "top_k": 20, "temperature": 1.3}
    torch.manual_seed(3)
    expected = model.generate(ids, past_key_values=live(model, ids[:, :80]), **want)
    torch.manual_seed(3)
    assert torch.equal(kv.generate(ids, **want), expected)
    assert kv.stats.tokens_reused == 80


@pytest.mark.parametrize(
    "want",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 4},
    ],
)
def test_beams_and_several_sequences(model, stash, prompt, want, live, fed):
    ids, want = prompt(100), {"do_sample": False, "max_new_tokens": 6, **want}
    repeats = max(want.get("num_beams", 1), want.get("num_return_sequences", 1))
    kv, counter = stash.kv(model), fed(model)
    kv.prefill(ids[:, :80])
    past = live(model, ids[:, :80])
    past.batch_repeat_interleave(repeats)
    torch.manual_seed(3)
    expected = model.generate(ids, past_key_values=past, **want)
    counter.take()
    torch.manual_seed(3)
    assert torch.equal(kv.generate(ids, **want), expected)
    assert counter.take()[0] == 20
    torch.manual_seed(3)
    kv.generate(ids, **want)
    assert counter.take()[0] == 1  # and what they computed of the prompt was kept


def test_each_of_several_sequences_is_kept(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    torch.manual_seed(1)
    out = kv.generate(prompt(70), do_sample=True, num_return_sequences=3, max_new_tokens=70)
    counter.take()
    for row in out:
        kv.generate(row[None], do_sample=False, max_new_tokens=1)
        assert counter.take()[0] <= 1 + 69  # a tail of 6 shared tokens and then a block each
    assert kv.stats.tokens_reused >= 3 * 70


def test_a_batch_with_a_shared_prefix(model, stash, prompt, fed):
    kv, counter = stash.kv(model), fed(model)
    rows = torch.cat([joined(prompt(80), prompt(20, seed=seed)) for seed in (1, 2, 3)])
    kv.prefill(prompt(80))
    counter.take()
    out = kv.generate(rows, **GREEDY)
    assert counter.take()[0] == 20
    assert torch.equal(out, model.generate(rows, **GREEDY))


def test_a_padded_batch_with_a_prefix_for_each_row(make_model, stash, prompt, fed):
    model = make_model(pad_token_id=0)
    kv, counter = stash.kv(model), fed(model)
    lengths = (100, 63, 130, 17)
    ids, mask = torch.zeros(4, 130, dtype=torch.long), torch.zeros(4, 130, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 130 - length :] = prompt(length, seed=row)
        mask[row, 130 - length :] = 1
    for row, length in enumerate(lengths):
        kv.prefill(prompt(length, seed=row)[:, : length - 5 - row])
    counter.take()
    want = {**GREEDY, "attention_mask": mask, "pad_token_id": 0}
    out = kv.generate(ids, **want)
    assert counter.take()[0] == 8  # the row of which least was kept, 5 + 3 tokens
    assert torch.equal(out, model.generate(ids, **want))
    # What the padded rows computed is theirs without padding, too.
    for row, length in enumerate(lengths):
        counter.take()
        alone = kv.generate(prompt(length, seed=row), **GREEDY)
        assert counter.take()[0] == 1
        assert torch.equal(alone[0], out[row, 130 - length :])


def test_rows_that_end_before_others_are_kept_without_their_padding(make_model, stash, prompt, fed):
    model = make_model(pad_token_id=0)
    kv, counter = stash.kv(model), fed(model)
    rows = torch.cat([prompt(30, 1), prompt(30, 2)])
    plain = model.generate(rows, do_sample=False, max_new_tokens=8)
    end = int(plain[0, 32])  # the first row ends with its third token
    want = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": end, "pad_token_id": 0}
    out = kv.generate(rows, **want)
    assert torch.equal(out, model.generate(rows, **want))
    counter.take()
    past, n_tokens = kv.past(torch.cat([out[:1, :33], prompt(5, 3)], dim=1))
    assert n_tokens >= 32
    assert past.get_seq_length() == n_tokens


def test_what_generate_takes_otherwise(model, stash, prompt, live):
    """Configuration objects, processors, criteria and named arguments take part as in a plain call."""
    kv = stash.kv(model)
    kv.prefill(prompt(90))

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 104)

    calls = [
        {"generation_config": GenerationConfig(max_new_tokens=4, do_sample=False)},
        {"max_length": 105, "do_sample": False, "repetition_penalty": 1.3},
        {"max_new_tokens": 9, "do_sample": False, "stopping_criteria": StoppingCriteriaList([Stop()])},
        {"max_new_tokens": 3, "do_sample": False, "prefix_allowed_tokens_fn": lambda batch, ids: [5, 6]},
        {"max_new_tokens": 3, "do_sample": False, "logits_processor": [lambda ids, scores: -scores]},
        {"max_new_tokens": 3, "do_sample": False, "prefill_chunk_size": 4},
        {"max_new_tokens": 3, "do_sample": False, "use_cache": True, "attention_mask": torch.ones(1, 100)},
    ]
    for want in calls:
        reused = kv.stats.tokens_reused
        assert torch.equal(kv.generate(input_ids=prompt(100), **want), model.generate(prompt(100), **want))
        assert kv.stats.tokens_reused - reused >= 90
    assert not kv.stats.passed_on


def test_a_streamer_gets_every_token_once(model, stash, prompt):
    class Collect(TextStreamer):
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.got.append("end")

    kv = stash.kv(model)
    kv.prefill(prompt(90))
    streamer = Collect()
    out = kv.generate(prompt(100), streamer=streamer, **GREEDY)
    assert streamer.got == [*out[0].tolist(), "end"]
    assert kv.stats.tokens_reused == 90


def test_the_cache_that_is_returned_is_the_caller_s(model, stash, prompt):
    kv = stash.kv(model)
    kv.prefill(prompt(90))
    out = kv.generate(prompt(100), return_dict_in_generate=True, **GREEDY)
    assert [type(layer) for layer in out.past_key_values.layers] == [DynamicLayer] * 3
    for layer in out.past_key_values.layers:
        layer.keys.zero_()
        layer.values.fill_(float("nan"))
    stash.flush()
    expected = model.generate(prompt(120), **GREEDY)
    assert torch.equal(kv.generate(prompt(120), **GREEDY), expected)
    assert kv.stats.tokens_reused > 90


@pytest.mark.parametrize("kind", ["pruned", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_model_whose_passes_make_weights_anew_is_kept(make_model, prompt, kind):
    """By hooks of torch's own, of weights and nothing else."""

    def build():
        model = make_model()
        layer = model.model.layers[0].mlp.up_proj
        if kind == "weight_norm":
            torch.nn.utils.weight_norm(layer)
        else:
            prune.l1_unstructured(layer, "weight", 0.5)
        return model, getattr(layer, "weight_g" if kind == "weight_norm" else "weight_orig")

    (model, weight), (oracle, theirs) = build(), build()
    with lmstash.open("memory://", strict=True) as stash:
        kv = stash.kv(model)
        for edit in (0.0, 0.5, 0.0, -0.5):
            before = kv.stats.tokens_kept
            for each in (weight, theirs):
                each.data.add_(edit)
            for number in range(3):
                out = kv.generate(prompt(100), output_logits=True, return_dict_in_generate=True, **GREEDY)
                expected = oracle.generate(prompt(100), output_logits=True, return_dict_in_generate=True, **GREEDY)
                torch.testing.assert_close(logits_of(out), logits_of(expected), rtol=1e-4, atol=1e-5)
                kv.flush()
                if number == 0 and edit:  # the weight was not made yet when it was looked at
                    assert kv.stats.tokens_kept == before
        assert kv.stats.tokens_reused >= 3 * 99


UNFIT = {
    "use_cache": {"use_cache": False},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
    "cache_implementation": {"cache_implementation": "static"},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "position_ids": {"position_ids": torch.arange(100)[None]},
    "a mask with a hole": {"attention_mask": torch.tensor([[1] * 50 + [0] * 10 + [1] * 40])},
    "a mask at the end": {"attention_mask": torch.tensor([[1] * 90 + [0] * 10])},
}


@pytest.mark.parametrize("name", UNFIT)
def test_calls_that_a_prefix_cannot_take_part_in_are_the_model_s(model, stash, prompt, name):
    kv = stash.kv(model)
    kv.prefill(prompt(90))
    want = {**GREEDY, **UNFIT[name]}
    kept, out, expected = kv.stats.tokens_kept, kv.generate(prompt(100), **want), model.generate(prompt(100), **want)
    sequences = [each if isinstance(each, torch.Tensor) else each.sequences for each in (out, expected)]
    assert torch.equal(*sequences)
    assert sum(kv.stats.passed_on.values()) == 1
    assert (kv.stats.tokens_reused, kv.stats.tokens_kept) == (0, kept)


def test_assisted_decoding_is_the_model_s(make_model, stash, prompt):
    model, small = make_model(), make_model(seed=4)
    kv = stash.kv(model)
    kv.prefill(prompt(90))
    out = kv.generate(prompt(100), assistant_model=small, **GREEDY)
    assert torch.equal(out, model.generate(prompt(100), **GREEDY))
    assert list(kv.stats.passed_on) == ["assistant_model is set"]


def test_embeddings_instead_of_tokens_are_the_model_s(model, stash, prompt):
    kv = stash.kv(model)
    kv.prefill(prompt(90))
    embedded = model.get_input_embeddings()(prompt(100))
    out = kv.generate(inputs_embeds=embedded, **GREEDY)
    assert torch.equal(out, model.generate(inputs_embeds=embedded, **GREEDY))
    assert list(kv.stats.passed_on) == ["the model is given inputs_embeds"]


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_cache_of_the_caller_s_own_is_not_touched(model, stash, prompt, kind, live):
    """Equal, longer, reused, foreign caches: whatever a caller passes goes to the model, and nothing of it is kept."""
    kv = stash.kv(model)

    def own():
        if kind is DynamicCache:
            return live(model, prompt(80))
        cache = StaticCache(config=model.config, max_cache_len=120)
        with torch.no_grad():
            model(prompt(80), past_key_values=cache)
        return cache

    out, expected = (each(prompt(100), past_key_values=own(), **GREEDY) for each in (kv.generate, model.generate))
    assert torch.equal(out, expected)
    assert list(kv.stats.passed_on) == ["the model is given past_key_values"]
    assert kv.stats.tokens_kept == 0


def test_pad_tokens_without_a_mask_are_the_model_s(make_model, stash, prompt):
    model = make_model(pad_token_id=0)
    kv = stash.kv(model)
    ids = prompt(60)
    ids[:, :7] = 0
    want = {**GREEDY, "pad_token_id": 0}
    assert torch.equal(kv.generate(ids, **want), model.generate(ids, **want))
    assert list(kv.stats.passed_on) == ["padding without an attention mask"]


def test_a_model_error_is_the_model_s_own(model, stash, prompt):
    kv = stash.kv(model)
    with pytest.raises(IndexError):
        kv.generate(prompt(10) + 1000, **GREEDY)
    with pytest.raises(ValueError, match="nonsense"):
        kv.generate(prompt(10), nonsense=3, **GREEDY)


def test_the_static_cache_that_gemma_s_files_still_ask_for_is_not_made_and_so_no_hindrance(make_model, stash, prompt):
    """`generate` unsets it, whoever asks, from transformers 5 on."""
    model = make_model()
    model.generation_config.cache_implementation = "hybrid"
    kv = stash.kv(model)
    for _ in range(2):
        assert torch.equal(kv.generate(prompt(100), **GREEDY), model.generate(prompt(100), **GREEDY))
        stash.flush()
    assert kv.stats.tokens_reused == 99
    assert not kv.stats.passed_on
