"""`CachedExtractor` over any duck-typed extractor: right results, computed once, served to nobody else."""

import gc
import logging
import weakref
from pathlib import Path

import pytest
import torch

import lmstash.adapters.lmprobe as adapter
from lmstash.adapters.lmprobe import CachedExtractor, RemoteExtractionError, config
from lmstash.errors import InvalidArgumentError, MismatchError
from lmstash.stash import Stash
from lmstash.store.memory import MemoryStore

HIDDEN = 4
PROMPTS = ["abc", "de", "fghij", "kl"]


class Letters:
    """One token per character; values tell character, layer and scale. Pads with NaN, on either side."""

    def __init__(self, layers=(0, 2), *, side="right", batch_size=2, scale=1.0, name="letters"):
        self.model_name = name
        self.layer_indices = list(layers)
        self.batch_size = batch_size
        self.side = side
        self.scale = scale
        self.calls = []

    def value(self, prompt: str, layer: int, shift: int = 0) -> torch.Tensor:
        points = torch.tensor([ord(each) + 0.5 * shift for each in prompt])
        return (points[:, None] + torch.arange(HIDDEN) / 8 + 1000 * layer) * self.scale

    def extract_batch(self, prompts, layer_indices, remote=False):
        self.calls.append((tuple(prompts), tuple(layer_indices)))
        longest = max(map(len, prompts))
        values = torch.full((len(prompts), longest, HIDDEN * len(layer_indices)), float("nan"))
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            shift = longest - len(prompt) if self.side == "left" else 0
            rows = [self.value(prompt, layer, shift) for layer in layer_indices]
            values[row, shift : shift + len(prompt)] = torch.cat(rows, dim=1)
            mask[row, shift : shift + len(prompt)] = 1
        return values, mask

    def expected(self, prompts):
        longest = max(map(len, prompts), default=0)
        layers = sorted(self.layer_indices)
        values = torch.zeros(len(prompts), longest, HIDDEN * len(layers))
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            values[row, : len(prompt)] = torch.cat([self.value(prompt, layer) for layer in layers], dim=1)
            mask[row, : len(prompt)] = 1
        return values, mask


@pytest.fixture(autouse=True)
def store():
    torch.set_num_threads(1)
    config.reset()
    store = MemoryStore()
    adapter.set_cache_backend(store)
    yield store
    config.reset()


def same(result, expected) -> bool:
    return torch.equal(result[0], expected[0]) and torch.equal(result[1], expected[1])


@pytest.mark.parametrize("side", ["right", "left"])
def test_cold_and_warm_runs_give_layers_in_order_padded_right_with_zeros(side):
    """W5: a prompt padded on the left is computed again among prompts of its length, where nothing shifts it."""
    extractor = Letters([2, 0], side=side)
    expected = extractor.expected(PROMPTS)
    assert same(CachedExtractor(extractor).extract(PROMPTS), expected)
    cold = len(extractor.calls)
    assert same(CachedExtractor(extractor).extract(PROMPTS), expected)
    assert len(extractor.calls) == cold


def test_equal_prompts_are_computed_once_and_an_empty_list_gives_an_empty_result():
    """W14: lmprobe computes five equal prompts five times, and raises for an empty list."""
    extractor = Letters(batch_size=8)
    prompts = ["abc", "abc", "de", "abc", "abc"]
    assert same(CachedExtractor(extractor).extract(prompts), extractor.expected(prompts))
    assert sorted(prompt for batch, _ in extractor.calls for prompt in batch) == ["abc", "de"]
    values, mask = CachedExtractor(extractor).extract([])
    assert (values.shape[0], tuple(mask.shape)) == (0, (0, 0))


def test_writing_into_a_result_changes_neither_the_cache_nor_equal_rows():
    cached = CachedExtractor(Letters())
    values, mask = cached.extract(["abc", "abc"])
    values[0] = -1
    mask[0] = 7
    assert same((values[1:], mask[1:]), Letters().expected(["abc"]))
    assert same(cached.extract(["abc"]), Letters().expected(["abc"]))


def test_layers_added_later_compute_only_the_new_ones():
    extractor = Letters([0])
    CachedExtractor(extractor).extract(PROMPTS)
    extractor.layer_indices = [0, 1]
    extractor.calls.clear()
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert {layers for _, layers in extractor.calls} == {(1,)}


def test_layers_from_differently_padded_batches_go_together():
    """W11: lmprobe keeps layers with the padding of their batch, and then cannot put them together ever again."""
    first = Letters([0], batch_size=4)
    CachedExtractor(first).extract(["ab", "a much longer prompt"])
    second = Letters([1], batch_size=1)
    CachedExtractor(second).extract(["ab"])
    both = Letters([0, 1])
    assert same(CachedExtractor(both).extract(["ab"]), both.expected(["ab"]))
    assert both.calls == []


def test_a_prompt_that_suddenly_has_other_tokens_is_computed_anew_as_a_whole():
    class Doubled(Letters):
        def extract_batch(self, prompts, layer_indices, remote=False):
            again = state["times"]
            return super().extract_batch([prompt * again for prompt in prompts], layer_indices)

    state = {"times": 1}
    extractor = Doubled([0])
    extractor.fingerprint = "vouched for, wrongly"
    CachedExtractor(extractor).extract(["ab"])
    state["times"] = 2
    extractor.layer_indices = [0, 1]
    assert same(CachedExtractor(extractor).extract(["ab"]), extractor.expected(["abab"]))


def test_cache_only_fills_and_returns_none():
    extractor = Letters()
    assert CachedExtractor(extractor).extract(PROMPTS, cache_only=True) is None
    cold = len(extractor.calls)
    assert CachedExtractor(extractor).extract(PROMPTS, cache_only=True) is None
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert len(extractor.calls) == cold


def test_invalidate_cache_computes_anew_and_replaces():
    extractor = Letters()
    extractor.fingerprint = "one and the same"
    CachedExtractor(extractor).extract(PROMPTS)
    extractor.scale = 2.0
    assert not same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert same(CachedExtractor(extractor).extract(PROMPTS, invalidate_cache=True), extractor.expected(PROMPTS))
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))


def test_what_changes_values_is_another_extractor_and_mere_state_is_not():
    """W2, W3: names alone do not tell extractors apart; attributes, code and the name do, and call logs do not."""
    extractor = Letters()
    CachedExtractor(extractor).extract(PROMPTS)
    extractor.scale = 3.0
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    other = Letters(name="other")
    CachedExtractor(other).extract(PROMPTS)
    assert other.calls

    class Louder(Letters):
        def value(self, prompt, layer, shift=0):
            return super().value(prompt, layer, shift) + 1

    louder = Louder()
    assert same(CachedExtractor(louder).extract(PROMPTS), louder.expected(PROMPTS))
    alike = Letters(batch_size=7)
    assert same(CachedExtractor(alike).extract(PROMPTS), alike.expected(PROMPTS))
    assert alike.calls == []


CALLS_OF_ALL: list[str] = []


def test_counters_and_logs_wherever_they_are_kept_do_not_hinder_hits():
    class Logging(Letters):
        def __init__(self):
            super().__init__()
            self.n_prompts = 0
            self.by_layer = {}
            self.seen = set()

        def extract_batch(self, prompts, layer_indices, remote=False):
            self.n_prompts += len(prompts)
            self.seen.update(prompts)
            CALLS_OF_ALL.extend(prompts)
            for layer in layer_indices:
                self.by_layer[layer] = self.by_layer.get(layer, 0) + 1
            return super().extract_batch(prompts, layer_indices)

    for _ in range(2):
        extractor = Logging()
        CachedExtractor(extractor).extract(PROMPTS)
        calls = len(extractor.calls)
        CachedExtractor(extractor).extract(PROMPTS)
        assert len(extractor.calls) == calls
    assert extractor.calls == []
    assert sorted(CALLS_OF_ALL) == sorted(PROMPTS)


def test_another_class_of_the_same_name_says_nothing_of_what_counts_here():
    """Two notebooks have a `Remote` each: `step` counts calls in one, and says which checkpoint in the other."""

    def counting():
        class Remote(Letters):
            def __init__(self):
                super().__init__()
                self.step = 0

            def extract_batch(self, prompts, layer_indices, remote=False):
                self.step += 1
                return super().extract_batch(prompts, layer_indices)

        return Remote

    def stepping():
        class Remote(Letters):
            def __init__(self, step):
                super().__init__()
                self.step = step

            def value(self, prompt, layer, shift=0):
                return super().value(prompt, layer, shift) + self.step

        return Remote

    first, second = counting(), stepping()
    second.__qualname__ = first.__qualname__
    CachedExtractor(first()).extract(PROMPTS)
    for step in (1000, 143_000):
        extractor = second(step)
        assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    again = first()
    CachedExtractor(again).extract(PROMPTS)
    assert again.calls == []  # what was learnt of its class still holds


def test_state_that_changes_what_comes_next_is_never_taken_for_a_log(caplog):
    class Drifting(Letters):
        def extract_batch(self, prompts, layer_indices, remote=False):
            answer = super().extract_batch(prompts, layer_indices)
            self.scale *= 0.5
            return answer

    extractor = Drifting(batch_size=1)
    CachedExtractor(extractor).extract(PROMPTS)
    assert "changes its scale while it runs" in caplog.text
    expected = extractor.expected(["abc"])
    assert same(CachedExtractor(extractor).extract(["abc"]), expected)
    for _ in range(2):
        fresh = Drifting()
        expected = fresh.expected(["fghij"])
        assert same(CachedExtractor(fresh).extract(["fghij"]), expected)


def test_a_model_that_is_loaded_by_its_property_counts_from_the_first_call_on():
    class Lazy(Letters):
        def __init__(self, seed):
            super().__init__()
            self.seed_of_weights = [seed]
            self._net = None

        @property
        def model(self):
            if self._net is None:
                torch.manual_seed(self.seed_of_weights[0])
                self._net = torch.nn.Linear(HIDDEN, HIDDEN).eval()
            return self._net

        def value(self, prompt, layer, shift=0):
            with torch.no_grad():
                return self.model(super().value(prompt, layer, shift))

    for seed in (1, 1, 2):
        extractor = Lazy(seed)
        assert same(CachedExtractor(extractor).extract(PROMPTS), Lazy(seed).expected(PROMPTS))
        extractor.calls.clear()
        assert same(CachedExtractor(extractor).extract(PROMPTS), Lazy(seed).expected(PROMPTS))
        assert extractor.calls == []


def test_weights_inside_a_bare_extractor_count():
    class Net(Letters):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(HIDDEN, HIDDEN).eval()

        def value(self, prompt, layer, shift=0):
            with torch.no_grad():
                return self.net(super().value(prompt, layer, shift))

    extractor = Net()
    CachedExtractor(extractor).extract(PROMPTS)
    with torch.no_grad():
        extractor.net.weight[0, 0] += 1
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))


def test_models_are_let_go_with_their_extractor():
    class Net(Letters):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(HIDDEN, HIDDEN).eval()

    extractor = Net()
    CachedExtractor(extractor).extract(PROMPTS)
    first, second = weakref.ref(extractor.net), torch.nn.Linear(HIDDEN, HIDDEN).eval()
    extractor.net = second
    CachedExtractor(extractor).extract(PROMPTS)
    gc.collect()
    assert first() is None
    last = weakref.ref(second)
    del extractor, second
    gc.collect()
    assert last() is None


def test_a_model_folder_with_other_files_is_another_model(tmp_path, monkeypatch):
    """W2: lmprobe's key for a relative path is the same in every directory, whatever lies there."""
    for folder, scale in (("one", 1.0), ("two", 2.0)):
        (tmp_path / folder / "model").mkdir(parents=True)
        (tmp_path / folder / "model" / "weights.bin").write_bytes(b"w" * int(scale))
        monkeypatch.chdir(tmp_path / folder)
        extractor = Letters(name="model")
        CachedExtractor(extractor).extract(PROMPTS)
        assert extractor.calls
    (tmp_path / "two" / "model" / "weights.bin").write_bytes(b"other")
    extractor = Letters(name="model")
    CachedExtractor(extractor).extract(PROMPTS)
    assert extractor.calls


def test_an_extractor_that_cannot_be_identified_is_computed_and_not_kept(store, caplog):
    extractor = Letters()
    extractor.net = torch.nn.Linear(2, 2, device="meta")
    for _ in range(2):
        assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert store.info().entries == 0
    assert caplog.text.count("not cached in this run") == 1
    strict = MemoryStore(strict=True)
    adapter.set_cache_backend(strict)
    with pytest.raises(Exception, match="meta"):
        CachedExtractor(extractor).extract(PROMPTS)


@pytest.mark.parametrize("prompts", ["abc", ["abc", 3], [["a"]], 5])
def test_prompts_that_are_no_strings_are_refused(prompts):
    with pytest.raises(InvalidArgumentError):
        CachedExtractor(Letters()).extract(prompts)


def test_something_that_is_no_extractor_is_refused():
    with pytest.raises(InvalidArgumentError, match="extract_batch"):
        CachedExtractor(object())


def test_an_answer_of_another_shape_is_refused():
    extractor = Letters()
    extractor.extract_batch = lambda prompts, layers, remote=False: (torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(MismatchError, match="n_layers"):
        CachedExtractor(extractor).extract(["abc"])


def test_a_local_failure_passes_through_at_once_and_what_was_done_is_kept():
    """W15: an interrupted run of lmprobe's, resumed, lists 1 of 3 batches."""

    class Failing(Letters):
        def extract_batch(self, prompts, layer_indices, remote=False):
            if prompts == ["kl"]:
                raise ZeroDivisionError
            return super().extract_batch(prompts, layer_indices)

    failing = Failing(batch_size=1)
    failing.fingerprint = "x"
    with pytest.raises(ZeroDivisionError):
        CachedExtractor(failing).extract(PROMPTS)
    done = [prompt for batch, _ in failing.calls for prompt in batch]
    assert done
    failing.calls.clear()
    CachedExtractor(failing).extract(done)
    assert failing.calls == []


def test_remote_batches_are_tried_again_and_a_lost_one_leaves_the_others_kept(monkeypatch):
    waits = []
    monkeypatch.setattr("lmstash.caches.activations.running.time.sleep", waits.append)

    class Flaky(Letters):
        def extract_batch(self, prompts, layer_indices, remote=False):
            assert remote
            if "kl" in prompts:
                raise ConnectionError("lost")
            return super().extract_batch(prompts, layer_indices)

    extractor = Flaky(batch_size=1)
    with pytest.raises(RemoteExtractionError, match="1 of 4") as raised:
        CachedExtractor(extractor).extract(PROMPTS, remote=True)
    assert isinstance(raised.value, RuntimeError)
    assert len(waits) == 3
    assert 2.0 <= waits[0] <= 2.5 <= 4.0 <= waits[1]
    extractor.calls.clear()
    assert same(CachedExtractor(extractor).extract(PROMPTS[:3], remote=True), extractor.expected(PROMPTS[:3]))
    assert extractor.calls == []
    with pytest.raises(ConnectionError):
        CachedExtractor(extractor).extract(PROMPTS, remote=True, max_retries=0)


def test_remote_and_local_answers_are_kept_apart():
    extractor = Letters()
    CachedExtractor(extractor).extract(PROMPTS, remote=True)
    extractor.calls.clear()
    CachedExtractor(extractor).extract(PROMPTS)
    assert extractor.calls


def test_a_storage_dtype_rounds_cold_and_warm_runs_alike_and_is_part_of_the_identity():
    """W3: a dtype asked for later is not answered with what was stored in another."""
    extractor = Letters()
    exact = CachedExtractor(extractor).extract(PROMPTS)
    adapter.set_cache_dtype("bfloat16")
    cold = CachedExtractor(extractor).extract(PROMPTS)
    warm = CachedExtractor(extractor).extract(PROMPTS)
    assert same(cold, warm)
    assert not torch.equal(cold[0], exact[0])
    assert torch.equal(cold[0], exact[0].bfloat16().to(cold[0].dtype))
    adapter.set_cache_dtype(None)
    assert same(CachedExtractor(extractor).extract(PROMPTS), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_come_in_the_storage_dtype_in_cold_and_warm_runs(dtype):
    adapter.set_cache_dtype(str(dtype).removeprefix("torch."))
    extractor = Letters()
    exact = extractor.expected(PROMPTS)[0]
    for _ in range(2):
        values, _mask = CachedExtractor(extractor).extract(PROMPTS)
        assert values.dtype == dtype
        assert torch.equal(values, exact.to(dtype))
    assert CachedExtractor(extractor).extract([])[0].dtype == dtype


def test_one_value_too_large_for_float16_makes_the_whole_result_float32():
    adapter.set_cache_dtype("float16")
    small, large = Letters(), Letters(scale=100.0)
    for _ in range(2):
        assert CachedExtractor(small).extract(PROMPTS)[0].dtype == torch.float16
        values, _mask = CachedExtractor(large).extract(PROMPTS)
        assert values.dtype == torch.float32
        assert values.max() > 65_504


def test_a_value_too_large_for_float16_is_kept_in_float32(store):
    """lmprobe turns 70,000 into infinity without a word."""
    adapter.set_cache_dtype("float16")
    extractor = Letters(scale=100.0)
    values, _ = CachedExtractor(extractor).extract(PROMPTS)
    assert torch.isfinite(values).all()
    assert values.max() > 65_504
    assert store.events.stats.overflows > 0


def test_a_limit_of_zero_stores_nothing_and_still_returns(store):
    """W12: in lmprobe a limit of 0 makes extract raise FileNotFoundError."""
    extractor = Letters()
    CachedExtractor(extractor).extract(["abc"])
    entries = store.info().entries
    adapter.set_cache_limit(0)
    extractor.calls.clear()
    for _ in range(2):
        assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert len(extractor.calls) == 4
    assert store.info().entries == entries
    adapter.set_cache_limit(None)
    extractor.calls.clear()
    CachedExtractor(extractor).extract(["abc"])
    assert extractor.calls == []


def test_a_limit_below_the_working_set_holds_on_write_and_still_returns(store):
    """W12, W10: lmprobe's limit does nothing on write, and evict removes what the next line reads, or other folders."""
    limit = 20_000
    adapter.set_cache_limit(limit / 1024**3)
    extractor = Letters()
    prompts = [f"prompt number {number} of many" for number in range(60)]
    assert same(CachedExtractor(extractor).extract(prompts), extractor.expected(prompts))
    assert store.info().physical_bytes <= limit
    before = store.info().entries
    adapter.evict()
    assert store.info().entries == before
    assert adapter.cache_info().cache_limit_bytes == limit


def test_damaged_entries_are_computed_anew_and_healed(store):
    """W8, W13: lmprobe serves flipped bytes, and cannot get past a truncated file."""
    extractor = Letters()
    CachedExtractor(extractor).extract(PROMPTS)
    for entry in list(store.entries("activations/")):
        value = bytes(store.get(entry.key) or b"")
        store.put(entry.key, value[: len(value) // 2], namespace=entry.namespace)
    extractor.calls.clear()
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert extractor.calls
    extractor.calls.clear()
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert extractor.calls == []


def test_an_entry_moved_under_another_prompts_key_is_not_served(store):
    """W8: lmprobe serves another prompt's file when it lies under the key."""
    extractor = Letters([0])
    CachedExtractor(extractor).extract(["abc", "xyz"])
    first, second = store.entries("activations/")
    store.put(first.key, bytes(store.get(second.key) or b""), namespace=first.namespace)
    assert same(CachedExtractor(extractor).extract(["abc", "xyz"]), extractor.expected(["abc", "xyz"]))


def test_a_prompt_with_a_lone_surrogate_is_a_prompt_like_any_other():
    extractor = Letters()
    for _ in range(2):
        assert same(CachedExtractor(extractor).extract(["a\ud800b"]), extractor.expected(["a\ud800b"]))
    assert len(extractor.calls) == 1


def test_private_stashes_keep_no_text():
    store = MemoryStore()
    adapter.set_cache_backend(Stash(store, private=True))
    extractor = Letters()
    for _ in range(2):
        CachedExtractor(extractor).extract(["a secret prompt"])
    assert len(extractor.calls) == 1
    for entry in store.entries():
        assert "secret" not in str(entry.meta)
        assert b"secret" not in bytes(store.get(entry.key) or b"")


def test_other_salts_share_nothing():
    store = MemoryStore()
    for salt in ("tenant one", "tenant two"):
        adapter.set_cache_backend(Stash(store, salt=salt))
        extractor = Letters()
        CachedExtractor(extractor).extract(PROMPTS)
        assert extractor.calls


def test_summaries_are_info_and_each_hit_and_miss_is_debug(caplog):
    extractor = Letters()
    with caplog.at_level(logging.INFO, logger="lmstash"):
        CachedExtractor(extractor).extract(PROMPTS)
    assert "0 of 4 prompts kept, 4 to compute" in caplog.text
    assert ": absent" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="lmstash"):
        CachedExtractor(extractor).extract([*PROMPTS, "new"])
    assert "miss" in caplog.text
    assert ": absent" in caplog.text
    assert "hit activations/" in caplog.text


def test_a_store_that_cannot_be_used_does_not_stop_the_extraction(tmp_path: Path):
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("here")
    adapter.set_cache_backend(str(blocked))
    extractor = Letters()
    assert same(CachedExtractor(extractor).extract(PROMPTS), extractor.expected(PROMPTS))
    assert blocked.read_text() == "here"
