"""lmprobe's caches are taken over whole, untouched, and served only on somebody's word."""

import pytest
import torch

import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CachedExtractor, config, declare_model, import_cache, load_imported
from lmstash.errors import InvalidArgumentError, StoreUnavailableError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

HIDDEN = 4


def value(prompt: str, layer: int) -> torch.Tensor:
    return torch.tensor([float(ord(each)) for each in prompt])[:, None].expand(-1, HIDDEN) + 100 * layer


class Letters:
    model_name = "letters"
    batch_size = 4

    def __init__(self, layers=(0, 1), scale=1.0):
        self.layer_indices = list(layers)
        self.scale = scale
        self.calls = 0

    def extract_batch(self, prompts, layer_indices, remote=False):
        self.calls += 1
        longest = max(map(len, prompts))
        values = torch.zeros(len(prompts), longest, HIDDEN * len(layer_indices))
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            rows = torch.cat([value(prompt, layer) for layer in layer_indices], dim=1)
            values[row, : len(prompt)] = rows * self.scale
            mask[row, : len(prompt)] = 1
        return values, mask


def entry(prompt: str, layers=(0, 1), *, left=0, right=2, dtype=torch.float32) -> dict[str, torch.Tensor]:
    pad = torch.full((left + right, HIDDEN), 9.0)
    rows = {layer: torch.cat([pad[:left], value(prompt, layer), pad[left:]])[None].to(dtype) for layer in layers}
    mask = torch.tensor([[0] * left + [1] * len(prompt) + [0] * right])
    return {f"layer_{layer}": each for layer, each in rows.items()} | {"attention_mask": mask}


@pytest.fixture(autouse=True)
def store():
    config.reset()
    store = MemoryStore()
    adapter.set_cache_backend(store)
    yield store
    config.reset()


@pytest.fixture
def filled(folder):
    for prompt in ("abc", "de", "fghij"):
        folder.add("letters", prompt, entry(prompt))
    folder.add("letters", "abc", {"perplexity": torch.tensor([1.0, 2.0, 3.0])}, suffix=".perplexity")
    folder.add_old("letters", "old", entry("old") | {"pooled_mean/layer_0": torch.ones(1, HIDDEN)})
    return folder


def extract(extractor, prompts=("abc", "de")):
    return CachedExtractor(extractor).extract(list(prompts))


def test_everything_is_taken_and_the_folder_is_not_touched(filled):
    before = filled.picture()
    report = import_cache(filled.base)
    [model] = report.models
    assert (model.name, model.prompts, model.status, report.problems) == ("letters", 4, "unverified", [])
    assert model.added == model.tensors == 14
    assert filled.picture() == before
    assert torch.equal(load_imported("letters", "abc", unverified=True)["perplexity"], torch.tensor([1.0, 2.0, 3.0]))
    old = load_imported("letters", "old", unverified=True)
    assert torch.equal(old["layer_1"], value("old", 1))
    assert torch.equal(old["pooled_mean_layer_0"], torch.ones(1, HIDDEN))


def test_imported_values_are_marked_and_not_served_without_a_word(filled, store):
    import_cache(filled.base)
    assert all(each.meta["unverified"] for each in store.entries("activations/"))
    extractor = Letters()
    extract(extractor)
    assert extractor.calls == 1


def test_nothing_of_an_import_is_returned_before_somebody_vouches_for_it(filled, caplog):
    import_cache(filled.base)
    assert load_imported("letters", "abc") is None
    assert "unverified" in caplog.text
    declare_model("letters")
    assert set(load_imported("letters", "abc")) == {"layer_0", "layer_1", "attention_mask", "perplexity"}
    assert load_imported("letters", "never seen") is None


def test_a_sample_that_agrees_lets_the_rest_be_returned_and_one_that_does_not_takes_it_back(filled):
    import_cache(filled.base, model=Letters(), verify_sample=2)
    assert torch.equal(load_imported("letters", "old")["pooled_mean_layer_0"], torch.ones(1, HIDDEN))
    import_cache(filled.base, model=Letters(scale=1.1), verify_sample=2)
    assert load_imported("letters", "old") is None


def test_a_cache_of_pooled_values_alone_is_returned_once_it_is_declared(folder):
    """W16: lmprobe's default keeps pooled values only, and lists none of their prompts."""
    kept = {f"pooled_last_token_layer_{layer}": torch.full((1, HIDDEN), float(layer)) for layer in (0, 1)}
    folder.add("letters", "abc", kept, listed=False)
    import_cache(folder.base)
    assert load_imported("letters", "abc") is None
    import_cache(folder.base, model="letters", declare=True)
    found = load_imported("letters", "abc")
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in kept.items()
    }


def test_a_first_token_pooled_under_left_padding_is_not_returned_on_the_owners_word(folder):
    """W5: lmprobe's first-token pooling takes the padding where there is some on the left."""
    padding = {"pooled_first_token_layer_0": torch.full((1, HIDDEN), 9.0)}
    folder.add("letters", "de", entry("de", [0], left=2, right=0) | padding)
    import_cache(folder.base, model="letters", declare=True)
    assert load_imported("letters", "de") is None
    report = import_cache(folder.base, model=Letters(layers=[0]), verify_sample=1)
    assert report.models[0].status == "disagrees"
    assert load_imported("letters", "de") is None
    assert torch.equal(load_imported("letters", "de", unverified=True)["layer_0"], value("de", 0))


def test_top_logits_are_told_with_the_number_that_is_kept(folder):
    """W4: asked for the top 50 where 5 are kept, lmprobe returns 5 and calls them 50."""
    for k in (5, 50):
        values, indices = torch.rand(1, 1, k), torch.arange(k, dtype=torch.int32).reshape(1, 1, k)
        folder.add("letters", "abc", {"logits_top_k_values": values, "logits_top_k_indices": indices}, suffix=".logits")
        import_cache(folder.base, model="letters", declare=True)
        found = load_imported("letters", "abc")
        assert adapter.discover_cached("letters", "abc").logits_top_k == k
        assert found["logits_top_k_values"].shape[-1] == found["logits_top_k_indices"].shape[-1] == k
        assert torch.equal(found["logits_top_k_values"], values)


def test_importing_again_adds_nothing_and_takes_what_is_new(filled, store):
    import_cache(filled.base)
    entries = store.info().entries
    assert import_cache(filled.base).models[0].added == 0
    assert store.info().entries == entries
    filled.add("letters", "abc", entry("abc", [0, 1, 2]))
    assert import_cache(filled.base).models[0].added == 1
    assert adapter.discover_cached("letters", "abc").raw_layers == [0, 1, 2]


def test_a_declaration_by_a_live_extractor_serves_that_one_only(filled):
    report = import_cache(filled.base, model=Letters(), declare=True)
    assert report.models[0].status == "declared"
    extractor = Letters()
    values, mask = extract(extractor)
    assert extractor.calls == 0
    assert torch.equal(values[0, :3, HIDDEN:], value("abc", 1))
    assert not values[1, 2:].any()
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    other = Letters(scale=2.0)
    assert torch.equal(extract(other)[0][0, :3, :HIDDEN], 2 * value("abc", 0))
    assert other.calls == 1


def test_a_declaration_by_name_is_taken_by_the_first_extractor_of_that_name(filled):
    import_cache(filled.base, model="letters", declare=True)
    first, second = Letters(), Letters(scale=2.0)
    extract(first)
    extract(second)
    assert (first.calls, second.calls) == (0, 1)
    import_cache(filled.base, model="letters", declare=True)  # does not hand it to another
    extract(third := Letters(scale=3.0))
    assert third.calls == 1


def test_declaring_later_is_the_same(filled):
    import_cache(filled.base)
    declare_model(Letters())
    extractor = Letters()
    extract(extractor, ["abc", "old"])
    assert extractor.calls == 0


def test_a_sample_that_agrees_verifies_and_one_that_does_not_revokes(filled):
    report = import_cache(filled.base, model=Letters(), verify_sample=2)
    [model] = report.models
    assert (model.status, model.sampled, model.largest_difference) == ("verified", 2, 0.0)
    extract(agreeing := Letters())
    assert agreeing.calls == 0
    report = import_cache(filled.base, model=Letters(scale=1.1), verify_sample=2, declare=True)
    assert report.models[0].status == "disagrees"
    assert report.models[0].largest_difference == pytest.approx(0.1 / 1.1, rel=1e-3)
    extract(again := Letters(layers=[1]))
    assert again.calls == 1


def test_the_tolerance_is_what_decides(filled):
    assert import_cache(filled.base, model=Letters(scale=1.01), verify_sample=1).models[0].status == "disagrees"
    report = import_cache(filled.base, model=Letters(scale=1.01), verify_sample=1, tolerance=0.02)
    assert report.models[0].status == "verified"


def test_half_precision_entries_agree_within_their_precision_and_are_served(folder):
    folder.add("letters", "abc", entry("abc", dtype=torch.bfloat16))
    assert import_cache(folder.base, model=Letters(), verify_sample=1).models[0].status == "verified"
    values, _ = extract(Letters(), ["abc"])
    assert torch.equal(values[0, :, :HIDDEN].bfloat16(), value("abc", 0).bfloat16())


def test_what_is_added_after_a_sample_needs_another_sample(filled):
    import_cache(filled.base, model=Letters(), verify_sample=2)
    filled.add("letters", "new", entry("new"))
    assert import_cache(filled.base).models[0].status == "unverified"
    extract(extractor := Letters())
    assert extractor.calls == 1


def test_left_padded_entries_are_served_only_when_one_was_in_the_sample(folder):
    """W5: what GPT-2 computed under left padding is wrong, and lmprobe kept it."""
    folder.add("letters", "abc", entry("abc"))
    folder.add("letters", "de", entry("de", left=2, right=0))
    report = import_cache(folder.base, model=Letters(), declare=True)
    assert report.models[0].left_padded == 1
    extract(declared := Letters(), ["abc"])
    assert declared.calls == 0
    extract(declared, ["de"])
    assert declared.calls == 1
    import_cache(folder.base, model=Letters(layers=[0]), verify_sample=1)
    extract(verified := Letters(scale=1.0), ["de"])
    assert verified.calls == 0


def test_prompts_whose_text_is_lost_are_served_by_their_hash(folder):
    """W18: lmprobe's manifest loses lines when processes write at once."""
    folder.add("letters", "abc", entry("abc"), listed=False)
    import_cache(folder.base, model=Letters(), declare=True)
    extract(extractor := Letters(), ["abc"])
    assert extractor.calls == 0


def test_missing_layers_are_computed_and_never_left_out(folder):
    """W6: asked for two layers where one was pulled, lmprobe returns half the width without a word."""
    folder.add("letters", "abc", entry("abc", [0]))
    import_cache(folder.base, model=Letters(), declare=True)
    values, _ = extract(extractor := Letters(), ["abc"])
    assert values.shape == (1, 3, 2 * HIDDEN)
    assert torch.equal(values[0, :, HIDDEN:], value("abc", 1))
    assert extractor.calls == 1


def test_shard_registries_are_not_believed(folder):
    """W1: lmprobe's registry of lazily pulled data claims raw layers and serves other prompts' rows from its shards."""
    folder.add("letters", "abc", entry("abc", [0]))
    (folder.model("letters") / "_shard_manifest_0123456789abcdef.json").write_text('{"layers": [0, 1]}')
    (folder.model("letters") / "_shard_index.json").write_text('{"abc": {"row_offset": 0}}')
    report = import_cache(folder.base)
    assert len(report.ignored) == 2
    assert adapter.discover_cached("letters", "abc").raw_layers == [0]
    assert "_shard_index.json" in str(report)


def test_damaged_files_are_reported_and_the_rest_is_taken(filled):
    """W13: one truncated file stops lmprobe's discover, extract and warmup alike."""
    path = next(filled.base.rglob("*.perplexity.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    old = next(filled.base.rglob("layer_1.pt"))
    old.write_bytes(old.read_bytes()[:40])
    report = import_cache(filled.base)
    assert len(report.problems) == 2
    assert report.models[0].prompts == 4
    assert "perplexity" not in load_imported("letters", "abc", unverified=True)


def test_a_model_whose_name_is_lost_is_taken_and_can_be_named(folder):
    folder.add("letters", "abc", entry("abc"))
    (folder.model("letters") / "_model_name.txt").unlink()
    assert import_cache(folder.base).models[0].name is None
    report = import_cache(folder.base, model="letters", declare=True)
    assert report.models[0].name == "letters"
    extract(extractor := Letters(), ["abc"])
    assert extractor.calls == 0


def test_only_the_model_asked_for_is_taken(folder):
    folder.add("letters", "abc", entry("abc"))
    folder.add("another", "abc", entry("abc"))
    assert [each.name for each in import_cache(folder.base, model="another").models] == ["another"]
    with pytest.raises(InvalidArgumentError, match="letters"):
        import_cache(folder.base, model="nobody")


def test_calls_that_cannot_mean_anything_are_refused(filled, tmp_path):
    with pytest.raises(InvalidArgumentError, match="declare=True"):
        import_cache(filled.base, declare=True)
    with pytest.raises(InvalidArgumentError, match="live extractor"):
        import_cache(filled.base, model="letters", verify_sample=3)
    with pytest.raises(StoreUnavailableError):
        import_cache(tmp_path / "nowhere")


def test_what_has_no_room_is_counted(filled):
    report = import_cache(filled.base, Stash(MemoryStore(600)))
    assert report.models[0].dropped > 0
    assert "raise the limit" in str(report)
    assert report.as_dict()["models"][0]["dropped"] == report.models[0].dropped


def test_invalidate_cache_computes_what_was_imported(filled):
    import_cache(filled.base, model=Letters(), declare=True)
    extractor = Letters()
    CachedExtractor(extractor).extract(["abc"], invalidate_cache=True)
    assert extractor.calls == 1
    assert CachedExtractor(extractor).extract(["de"], cache_only=True) is None
    assert extractor.calls == 1


def test_a_declaration_follows_an_extractor_whose_state_is_noted_later(filled):
    class Counting(Letters):
        def __init__(self):
            super().__init__()
            self.seen = []

        def extract_batch(self, prompts, layer_indices, remote=False):
            self.seen.extend(prompts)
            return super().extract_batch(prompts, layer_indices)

    declare_to = Counting()
    import_cache(filled.base, model=declare_to, verify_sample=1)
    extract(declare_to, ["zz"])
    before = declare_to.calls
    extract(declare_to)
    assert declare_to.calls == before
