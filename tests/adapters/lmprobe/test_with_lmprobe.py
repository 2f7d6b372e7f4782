"""With lmprobe itself: same names, same results, same entries as stash.activations, and its caches taken over."""

import inspect
from pathlib import Path

import pytest
import torch

import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CachedExtractor, config, import_cache, load_imported
from lmstash.adapters.lmprobe.source import ExtractBatchSource
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

lmprobe = pytest.importorskip("lmprobe")
transformers = pytest.importorskip("transformers")

PROMPTS = ["the cat sat", "on a mat by the red door", "dog", "the cat sat on the mat and the dog sat by the door"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "by", "red", "door", "dog", "and"]


def save_model(folder: Path, *, padding_side: str = "right", seed: int = 0, position_free: bool = False) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(seed)
    vocabulary = {"<pad>": 0, "<unk>": 1} | {word: index + 2 for index, word in enumerate(WORDS)}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=rules, pad_token="<pad>", unk_token="<unk>", padding_side=padding_side
    )
    if position_free:
        settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
        shape = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, max_position_embeddings=64, **settings)
        model = transformers.LlamaForCausalLM(shape)
    else:
        shape = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=4, n_head=2, n_positions=64)
        model = transformers.GPT2LMHeadModel(shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def extractor_of(name: str, layers=(1, 3), batch_size: int = 2):
    from lmprobe.extraction import ActivationExtractor, clear_model_cache

    clear_model_cache()
    return ActivationExtractor(name, device="cpu", layers=list(layers), batch_size=batch_size)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    import lmprobe.backends
    import lmprobe.cache

    torch.set_num_threads(1)
    monkeypatch.setenv("LMPROBE_CACHE_DIR", str(tmp_path / "theirs"))
    for name in ("_LOCAL_MODEL_CACHE", "_local_model_cache", "_MODEL_CACHE", "_local_models"):
        if hasattr(lmprobe.backends, name):
            getattr(lmprobe.backends, name).clear()
    lmprobe.cache.set_cache_backend(None)
    lmprobe.cache.clear_header_cache()
    lmprobe.cache.clear_mask_cache()
    config.reset()
    adapter.set_cache_backend(Stash(MemoryStore()))
    yield
    config.reset()


def counted(extractor, monkeypatch):
    """What is asked of an extractor. Counted where lmstash asks: lmprobe with a spy in it is no longer lmprobe."""
    calls: list[tuple[list[str], list[int]]] = []
    original = ExtractBatchSource._ask

    def spy(self, texts, layers):
        if self._extractor is extractor:
            calls.append((list(texts), list(layers)))
        return original(self, texts, layers)

    monkeypatch.setattr(ExtractBatchSource, "_ask", spy)
    return calls


@pytest.mark.parametrize(
    "name",
    [
        "set_cache_backend", "set_cache_limit", "set_cache_dtype", "enable_cache_logging", "cache_info", "clear_cache",
        "discover_cached", "invalidate_extraction_cache", "evict", "CachedExtractor.extract",
    ],
)  # fmt: skip
def test_names_and_parameters_are_those_of_lmprobe(name):
    import lmprobe.cache

    ours, theirs = adapter, lmprobe.cache
    for part in name.split("."):
        ours, theirs = getattr(ours, part), getattr(theirs, part)
    defaults = [
        [(each.name, each.default, each.kind) for each in inspect.signature(function).parameters.values()]
        for function in (ours, theirs)
    ]
    assert defaults[0] == defaults[1]


@pytest.mark.parametrize("record", ["CacheInfo", "ModelCacheInfo", "CachedPromptInfo"])
def test_records_have_the_fields_of_lmprobe(record):
    import dataclasses

    import lmprobe.cache

    ours, theirs = (
        [each.name for each in dataclasses.fields(getattr(module, record))] for module in (adapter, lmprobe.cache)
    )
    assert ours == theirs


@pytest.mark.parametrize("position_free", [False, True])
def test_results_equal_lmprobes_own_in_a_cold_and_in_a_warm_run(tmp_path, monkeypatch, position_free):
    from lmprobe.cache import CachedExtractor as Theirs

    extractor = extractor_of(save_model(tmp_path / "m", position_free=position_free))
    expected, expected_mask = Theirs(extractor).extract(PROMPTS)
    calls = counted(extractor, monkeypatch)
    cold, mask = CachedExtractor(extractor).extract(PROMPTS)
    assert len(calls) == 2
    assert cold.shape == expected.shape
    assert torch.equal(mask, expected_mask)
    real = mask.bool()
    assert torch.allclose(cold[real], expected[real], atol=1e-5)
    assert not cold[~real].any()
    warm, warm_mask = CachedExtractor(extractor).extract(PROMPTS)
    assert len(calls) == 2
    assert torch.equal(warm, cold)
    assert torch.equal(warm_mask, mask)


def test_entries_are_shared_with_stash_activations(tmp_path, monkeypatch):
    extractor = extractor_of(save_model(tmp_path / "m"))
    calls = counted(extractor, monkeypatch)
    activations, mask = CachedExtractor(extractor).extract(PROMPTS)
    stash = config.current_stash()
    acts = stash.activations(extractor.model, extractor.tokenizer)
    assert acts.missing(PROMPTS, layers=[1, 3], pool=None) == []
    raw = acts(PROMPTS, layers=[1, 3], pool=None)
    for row, keep, values in zip(activations, mask.bool(), raw, strict=True):
        assert torch.equal(row[keep], torch.cat(list(values), dim=-1))
    acts(["dog and cat"], layers=[1, 3], pool=None)
    before = len(calls)
    CachedExtractor(extractor).extract(["dog and cat"])
    assert len(calls) == before


def tokenized(extractor, monkeypatch):
    """Count the texts that are tokenized by lmstash."""
    from lmstash.caches.activations import texts

    seen: list[str] = []
    original = texts.tokenize
    monkeypatch.setattr(
        texts, "tokenize", lambda strings, tokenizer: seen.extend(strings) or original(strings, tokenizer)
    )
    return seen


def lists_kept():
    return [entry for entry in config.current_stash().store.entries() if entry.kind == "prompts"]


def test_a_warm_call_tokenizes_nothing_and_a_changed_tokenizer_is_asked_again(tmp_path, monkeypatch):
    from tokenizers import normalizers

    extractor = extractor_of(save_model(tmp_path / "m"))
    seen = tokenized(extractor, monkeypatch)
    first, _ = CachedExtractor(extractor).extract(PROMPTS)
    assert seen == PROMPTS
    extractor.tokenizer.padding_side = "left"  # as other users of it may, which changes no ids
    extractor.tokenizer(PROMPTS, padding=True)
    warm, _ = CachedExtractor(extractor).extract(PROMPTS)
    assert torch.equal(warm, first)
    assert seen == PROMPTS
    extractor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("cat", "dog")
    CachedExtractor(extractor).extract(PROMPTS)
    assert seen == PROMPTS * 2


@pytest.mark.parametrize(
    "forget",
    [
        lambda name: adapter.clear_cache(),
        lambda name: adapter.invalidate_extraction_cache(adapter.get_prompt_cache_dir(name, PROMPTS[0])),
    ],
)
def test_ids_go_with_the_prompts_they_spell_out(tmp_path, forget):
    name = save_model(tmp_path / "m")
    CachedExtractor(extractor_of(name)).extract(PROMPTS)
    assert lists_kept()
    forget(name)
    assert lists_kept() == []


def test_private_stashes_keep_no_lists_of_ids(tmp_path):
    adapter.set_cache_backend(Stash(MemoryStore(), private=True))
    CachedExtractor(extractor_of(save_model(tmp_path / "m"))).extract(PROMPTS)
    assert lists_kept() == []


def test_layers_added_later_compute_only_what_is_new(tmp_path, monkeypatch):
    name = save_model(tmp_path / "m")
    CachedExtractor(extractor_of(name, [1])).extract(PROMPTS)
    wider = extractor_of(name, [0, 1])
    calls = counted(wider, monkeypatch)
    both, _ = CachedExtractor(wider).extract(PROMPTS)
    assert [layers for _, layers in calls] == [[0], [0]]
    assert both.shape[2] == 32


def test_other_weights_at_the_same_path_are_not_served(tmp_path, monkeypatch):
    """W2: lmprobe serves the old weights' activations, at a difference of 606."""
    name = save_model(tmp_path / "m", seed=0)
    old, _ = CachedExtractor(extractor_of(name)).extract(PROMPTS)
    save_model(tmp_path / "m", seed=1)
    extractor = extractor_of(name)
    with torch.no_grad():
        for parameter in extractor.model.parameters():
            parameter.mul_(1.5)  # in case the model was kept in memory
    calls = counted(extractor, monkeypatch)
    new, _ = CachedExtractor(extractor).extract(PROMPTS)
    assert len(calls) == 2
    assert not torch.allclose(old, new, atol=1e-3)


def test_weights_changed_in_place_are_noticed_and_restored_ones_hit_again(tmp_path, monkeypatch):
    extractor = extractor_of(save_model(tmp_path / "m"))
    cached = CachedExtractor(extractor)
    old, _ = cached.extract(PROMPTS)
    weight = extractor.model.transformer.h[0].mlp.c_fc.weight
    kept = weight.detach().clone()
    weight.data[0, 0] += 1.0
    changed, _ = cached.extract(PROMPTS)
    assert not torch.equal(changed, old)
    weight.data.copy_(kept)
    calls = counted(extractor, monkeypatch)
    again, _ = cached.extract(PROMPTS)
    assert torch.equal(again, old)
    assert calls == []


def test_a_lower_precision_model_is_another_model(tmp_path, monkeypatch):
    """W3: lmprobe's key has neither dtype nor backend; asked for float32 it serves bfloat16."""
    from lmprobe.extraction import ActivationExtractor

    name = save_model(tmp_path / "m")
    half = ActivationExtractor(name, device="cpu", layers=[1, 3], batch_size=2, dtype=torch.bfloat16)
    narrow, _ = CachedExtractor(half).extract(PROMPTS)
    full = extractor_of(name)
    calls = counted(full, monkeypatch)
    wide, _ = CachedExtractor(full).extract(PROMPTS)
    assert calls
    assert wide.dtype == torch.float32
    assert not torch.equal(wide, narrow.float())


def test_left_padding_tokenizers_are_made_to_pad_right_while_extracting(tmp_path):
    """W5: GPT-2 padded on the left without position ids gives other values for a prompt in a batch than alone."""
    extractor = extractor_of(save_model(tmp_path / "m", padding_side="left"), batch_size=4)
    activations, mask = CachedExtractor(extractor).extract(PROMPTS)
    assert extractor.tokenizer.padding_side == "left"
    for row, keep, prompt in zip(activations, mask.bool(), PROMPTS, strict=True):
        alone, _ = extractor.extract_batch([prompt], [1, 3])
        assert torch.allclose(row[keep], alone[0], atol=1e-5)


@pytest.mark.parametrize(("pool", "token"), [("first", 0), ("last", -1)])
def test_pooling_never_takes_padding_whatever_side_the_tokenizer_pads_on(tmp_path, pool, token):
    """W5: of a prompt padded on the left, lmprobe's first-token pooling keeps the padding's vector."""
    from lmprobe.pooling import pool_first_token

    extractor = extractor_of(save_model(tmp_path / "m", padding_side="left"), batch_size=4)
    theirs = pool_first_token(*extractor.extract_batch(PROMPTS, [1]))
    acts = config.current_stash().activations(extractor.model, extractor.tokenizer)
    for _ in range(2):
        pooled = acts(PROMPTS, layers=[1], pool=pool, batch_size=4)[:, 0]
        for row, prompt in zip(pooled, PROMPTS, strict=True):
            alone, _ = extractor.extract_batch([prompt], [1])
            assert torch.allclose(row, alone[0, token], atol=1e-5)
    if pool == "first":
        assert not torch.allclose(pooled, theirs, atol=1e-3)  # or this shows nothing


def test_training_mode_with_dropout_is_computed_and_not_kept(tmp_path, caplog):
    extractor = extractor_of(save_model(tmp_path / "m"))
    extractor.model.train()
    try:
        activations, _ = CachedExtractor(extractor).extract(PROMPTS)
    finally:
        extractor.model.eval()
    assert activations.shape[0] == 4
    assert config.current_stash().store.info().entries == 0
    assert "not cached" in caplog.text


def test_a_cache_that_lmprobe_wrote_is_imported_and_served_after_a_sample_agrees(tmp_path, monkeypatch):
    from lmprobe.cache import CachedExtractor as Theirs
    from lmprobe.cache import save_prompt_logits, save_prompt_perplexity, save_prompt_pooled_activations

    name = save_model(tmp_path / "m")
    extractor = extractor_of(name)
    expected, mask = Theirs(extractor).extract(PROMPTS)
    save_prompt_pooled_activations(name, PROMPTS[0], [1], torch.ones(1, 16), "mean_of_mine")
    save_prompt_logits(name, PROMPTS[0], torch.randn(1, 3, 32), torch.ones(1, 3), top_k=5)
    save_prompt_perplexity(name, PROMPTS[0], torch.tensor([1.0, 2.0, 3.0]))
    report = import_cache(tmp_path / "theirs", model=extractor, verify_sample=2)
    [model] = report.models
    assert (model.status, model.sampled, model.prompts, report.problems) == ("verified", 2, 4, [])
    calls = counted(extractor, monkeypatch)
    served, served_mask = CachedExtractor(extractor).extract(PROMPTS)
    assert calls == []
    assert torch.equal(served[mask.bool()], expected[mask.bool()])
    assert torch.equal(served_mask, mask)
    found = adapter.discover_cached(name, PROMPTS[0])
    assert found.raw_layers == [1, 3]
    assert found.pooled == {"mean_of_mine": [1]}
    assert (found.has_logits, found.logits_top_k, found.has_perplexity) == (False, 5, True)
    tensors = load_imported(name, PROMPTS[0])
    assert torch.equal(tensors["perplexity"], torch.tensor([1.0, 2.0, 3.0]))


def test_an_import_that_disagrees_with_the_live_model_is_not_served(tmp_path, monkeypatch):
    from lmprobe.cache import CachedExtractor as Theirs

    name = save_model(tmp_path / "m")
    extractor = extractor_of(name)
    Theirs(extractor).extract(PROMPTS)
    with torch.no_grad():
        extractor.model.transformer.h[0].mlp.c_fc.weight.mul_(3.0)
    report = import_cache(tmp_path / "theirs", model=extractor, verify_sample=2, declare=True)
    assert report.models[0].status == "disagrees"
    calls = counted(extractor, monkeypatch)
    CachedExtractor(extractor).extract(PROMPTS)
    assert calls


def test_lmprobes_own_backend_can_hold_the_cache(tmp_path, monkeypatch):
    from lmprobe.cache_backends import LocalCacheBackend

    adapter.set_cache_backend(LocalCacheBackend(tmp_path / "blobs"))
    extractor = extractor_of(save_model(tmp_path / "m"))
    cold, _ = CachedExtractor(extractor).extract(PROMPTS)
    calls = counted(extractor, monkeypatch)
    warm, _ = CachedExtractor(extractor).extract(PROMPTS)
    assert torch.equal(cold, warm)
    assert calls == []


def trebled(original):
    def extract_batch(*given, **named):
        values, mask = original(*given, **named)
        return values * 3, mask

    return extract_batch


@pytest.mark.parametrize("place", ["extractor", "backend", "extractor's class", "backend's class", "what it calls"])
def test_lmprobe_with_somebodys_method_is_another_extractor_and_leaves_the_models_entries_alone(
    tmp_path, monkeypatch, place
):
    import lmprobe.backends

    name = save_model(tmp_path / "model")
    extractor = extractor_of(name)
    plain, mask = extractor.extract_batch(PROMPTS, [1, 3])
    plain = plain * mask[..., None]
    holder = extractor if place.startswith("extractor") else extractor._backend
    with monkeypatch.context() as patch:
        if place == "what it calls":
            theirs = lmprobe.backends._get_decoder_layers
            patch.setattr(lmprobe.backends, "_get_decoder_layers", lambda model: theirs(model)[::-1])
            expected, _ = extractor.extract_batch(PROMPTS, [1, 3])
        else:
            holder = type(holder) if place.endswith("class") else holder
            patch.setattr(holder, "extract_batch", trebled(holder.extract_batch))
            expected = plain * 3
        for _ in range(2):
            found, _ = CachedExtractor(extractor).extract(PROMPTS)
            assert torch.allclose(found, expected * mask[..., None], atol=1e-4)
    assert torch.allclose(CachedExtractor(extractor).extract(PROMPTS)[0], plain, atol=1e-5)
    raw = adapter.config.current_stash().activations(extractor.model, extractor.tokenizer)(PROMPTS, layers=[1, 3])
    last = torch.stack([row[real.bool()][-1] for row, real in zip(plain, mask, strict=True)])
    assert torch.allclose(raw.flatten(1), last, atol=1e-5)


def test_what_somebodys_method_in_lmprobe_does_and_the_models_weights_count(tmp_path, monkeypatch):
    extractor = extractor_of(save_model(tmp_path / "model"))
    original = extractor.extract_batch
    values, mask = original(PROMPTS, [1, 3])

    def multiplied(by):
        def extract_batch(*given, **named):
            values, mask = original(*given, **named)
            return values * by, mask

        return extract_batch

    for by in (2, 3):
        monkeypatch.setattr(extractor, "extract_batch", multiplied(by))
        found, _ = CachedExtractor(extractor).extract(PROMPTS)
        assert torch.allclose(found, values * mask[..., None] * by, atol=1e-4)
    calls = counted(extractor, monkeypatch)
    assert torch.equal(CachedExtractor(extractor).extract(PROMPTS)[0], found)
    assert calls == []
    extractor.model.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 1
    assert not torch.equal(CachedExtractor(extractor).extract(PROMPTS)[0], found)
