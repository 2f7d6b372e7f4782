import gc
import os
import signal
import threading
import time
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lmstash.errors import UnsupportedModelError
from lmstash.identity.memory.probe import Probe
from lmstash.identity.models import watch as watch_module
from lmstash.identity.models.fingerprinting import fingerprint_model
from lmstash.identity.models.watch import ModelWatch, watch_model


def add_in_place(model):
    with torch.no_grad():
        model.lm_head.weight.add_(1)


def copy_in_place(model):
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.ones_like(model.lm_head.weight))


def edit_data(model):
    model.lm_head.weight.data[5, 5] += 1


def edit_numpy(model):
    model.lm_head.weight.detach().numpy()[1, 1] = 3


def replace_data(model):
    model.lm_head.weight.data = model.lm_head.weight.data * 2


def replace_parameter(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)


def load_state(model):
    model.load_state_dict({name: each + 1 for name, each in model.state_dict().items()})


def step_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()


def edit_buffer(model):
    next(model.buffers()).data.mul_(2)


def cast(model):
    model.to(torch.bfloat16)


def edit_config(model):
    model.config.rope_parameters["rope_theta"] = 5.0


def edit_attribute(model):
    model.model.layers[0].self_attn.scaling = 1.0


def edit_type_only(model):
    model.model.layers[0].self_attn.is_causal = 1


def switch_attention(model):
    model.set_attn_implementation("eager")


class Loud(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found * 2 if func is nn.functional.linear else found


class LoudParameter(nn.Parameter, Loud):
    pass


def take_for_another_class(model):
    weight = model.lm_head.weight
    model.lm_head._parameters["weight"] = weight.as_subclass(Loud)


def assign_another_class(model):
    model.lm_head.weight.__class__ = LoudParameter


def replace_module(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def drop_layer(model):
    del model.model.layers[1]


def swap_layers(model):
    model.model.layers[0], model.model.layers[1] = model.model.layers[1], model.model.layers[0]


def train(model):
    model.train()


def add_attribute_tensor(model):
    model.steering = torch.ones(3)


CHANGES = [
    take_for_another_class,
    assign_another_class,
    add_in_place,
    copy_in_place,
    edit_data,
    edit_numpy,
    replace_data,
    replace_parameter,
    load_state,
    step_optimizer,
    edit_buffer,
    cast,
    edit_config,
    edit_attribute,
    edit_type_only,
    switch_attention,
    replace_module,
    drop_layer,
    swap_layers,
    train,
    add_attribute_tensor,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_place_is_seen_and_named_as_a_new_fingerprint_would(build_llama, change):
    model = build_llama()
    watch = ModelWatch(model)
    before = watch.fingerprint
    assert watch.unchanged()
    assert watch.refresh() is before
    change(model)
    assert not watch.unchanged(before)
    after = watch.refresh()
    assert after != before
    assert after == fingerprint_model(model)
    assert watch.fingerprint is after
    assert watch.refresh() is after
    assert watch.unchanged()


@pytest.mark.parametrize("change", CHANGES)
def test_refresh_alone_sees_a_change_in_place(build_llama, change):
    model = build_llama()
    watch = ModelWatch(model)
    before = watch.refresh()
    change(model)
    assert watch.refresh() not in (before,)


def test_a_change_undone_gives_the_old_fingerprint_back(build):
    model = build()
    watch = ModelWatch(model)
    before = watch.refresh()
    kept = model.lm_head.weight.data[5, 5].clone()
    model.lm_head.weight.data[5, 5] += 1
    assert watch.refresh() != before
    model.lm_head.weight.data[5, 5] = kept
    assert watch.refresh() == before


def test_a_version_counter_that_moved_over_equal_bytes_changes_nothing(build):
    model = build()
    watch = ModelWatch(model)
    before = watch.refresh()
    with torch.no_grad():
        model.lm_head.weight.mul_(1)
    assert watch.refresh() is before
    assert watch.unchanged()


def test_a_forward_pass_changes_nothing(build):
    model = build()
    watch = ModelWatch(model)
    before = watch.fingerprint
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), output_hidden_states=True, output_attentions=True)
    assert watch.unchanged(before)
    assert watch.refresh() is before


def test_our_own_hooks_are_not_a_change(build):
    model = build()
    watch = ModelWatch(model)
    before = watch.fingerprint

    def hook(*_):
        return None

    hook._lmstash = True
    handle = model.lm_head.register_forward_hook(hook)
    assert watch.unchanged()
    assert watch.refresh() is before
    handle.remove()
    assert watch.refresh() is before


def test_a_hook_placed_later_is_refused_and_removed_is_fine_again(build):
    model = build()
    watch = ModelWatch(model)
    before = watch.fingerprint
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    assert not watch.unchanged()
    with pytest.raises(UnsupportedModelError, match="forward hook"):
        watch.refresh()
    with pytest.raises(UnsupportedModelError, match="refresh"):
        _ = watch.fingerprint
    handle.remove()
    assert watch.refresh() == before


def test_a_method_replaced_in_the_class_is_seen(build_llama, monkeypatch):
    from transformers.models.llama import modeling_llama

    model = build_llama()
    watch = ModelWatch(model)
    before = watch.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: x)
        assert watch.refresh() != before
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_: (q, k))
        assert watch.refresh() != before
    assert watch.refresh() == before


def test_autocast_belongs_to_the_calling_thread(build):
    watch = ModelWatch(build())
    plain = watch.refresh()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = watch.refresh()
        assert cast != plain
        found = []
        thread = threading.Thread(target=lambda: found.append(watch.refresh()))
        thread.start()
        thread.join()
        assert found == [plain]
        assert watch.unchanged(cast)
        assert not watch.unchanged(plain)
    assert watch.unchanged(plain)


def test_assume_frozen_reads_once(build):
    model = build()
    watch = ModelWatch(model, assume_frozen=True)
    before = watch.fingerprint
    model.lm_head.weight.data[5, 5] += 1
    assert watch.refresh() is before
    assert watch.unchanged()


def test_who_vouches_for_a_model_does_not_vouch_for_the_settings_of_every_thread(build):
    model = build()
    watch = ModelWatch(model, assume_frozen=True)
    plain = watch.fingerprint
    assert plain == fingerprint_model(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = watch.refresh()
        assert cast == fingerprint_model(model) != plain
        assert watch.recognise() is watch.look().fingerprint is watch.fingerprint is cast
        assert watch.unchanged(cast)
        assert watch.unchanged(plain)  # it is the model that must be so, whoever flushes
        assert not watch.unchanged(fingerprint_model(build_other()))
        found = []
        thread = threading.Thread(target=lambda: found.append(watch.refresh()))
        thread.start()
        thread.join()
        assert found == [plain]
    assert watch.refresh() is plain
    assert watch.unchanged(plain)
    assert watch.unchanged(cast)


def build_other():
    return nn.Linear(2, 2).eval()


def test_who_vouches_for_a_model_that_evaluates_does_not_vouch_for_dropout(build):
    model = build()
    watch = ModelWatch(model, assume_frozen=True)
    before = watch.refresh()
    model.train()
    for ask in (watch.refresh, watch.recognise, watch.look):
        with pytest.raises(UnsupportedModelError, match="training mode"):
            ask()
    assert not watch.unchanged(before)
    assert watch.fingerprint is before
    model.eval()
    assert watch.refresh() is before


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("look", ["refresh", "recognise", "look"])
def test_casts_that_autocast_kept_of_other_weights_are_forgotten_by_each_look(build, look, frozen):
    """They come from an edit within an autocast block that was undone: who the model is says nothing of them."""
    model = build()
    ids = torch.arange(9)[None]
    watch = ModelWatch(model, assume_frozen=frozen)
    weight = next(each for name, each in model.named_parameters() if "mlp" in name and each.ndim == 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        right = model(ids).logits
        getattr(watch, look)()
        torch.clear_autocast_cache()
        kept = weight.detach().clone()
        weight.data.mul_(100)
        assert not model(ids).logits.equal(right)
        weight.data.copy_(kept)
        assert not model(ids).logits.equal(right)  # as torch has it
        getattr(watch, look)()
        assert model(ids).logits.equal(right)


@pytest.mark.parametrize("outside", [("cpu", False), ("cuda", False)])
def test_casts_that_the_model_s_own_autocast_has_left_are_forgotten(build, outside):
    """torch drops them as the outermost context ends, of whatever kind and however it is set."""
    model, (device, enabled) = build(), outside
    ids = torch.arange(9)[None]
    watch = ModelWatch(model)
    weight = next(each for name, each in model.named_parameters() if "mlp" in name and each.ndim == 2)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(ids).logits

    with torch.no_grad(), torch.autocast(device, enabled=enabled):
        run()
        weight.data.mul_(3)
        watch.refresh()
        found = run()
    with torch.no_grad():
        assert found.equal(run())


def test_variant_and_strict_numerics_reach_the_fingerprint(build):
    model = build()
    assert ModelWatch(model, variant="a").fingerprint == fingerprint_model(model, variant="a")
    assert ModelWatch(model, strict_numerics=True).fingerprint == fingerprint_model(model, strict_numerics=True)


def test_one_element_of_half_a_gigabyte_is_seen():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(538 * 10**6 // 2, dtype=torch.bfloat16), requires_grad=False)
    watch = ModelWatch(model.eval())
    before = watch.fingerprint
    for place in (0, 123_456_789, model.weight.numel() - 1):
        model.weight.data[place] = 1
        after = watch.refresh()
        assert after != before
        before = after


def test_above_the_limit_pieces_are_read_and_everything_before_publishing(monkeypatch):
    monkeypatch.setattr(watch_module, "WHOLE_BYTES", 2**20)
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(16 * 2**20, dtype=torch.uint8), requires_grad=False)  # 4 pieces
    watch = ModelWatch(model.eval())
    before = watch.fingerprint
    model.weight.data[5] = 1
    assert not watch.unchanged(before)
    seen = watch.refresh()
    assert seen != before
    model.weight.data[5] = 2
    tries = 0
    while watch.refresh() == seen:  # one piece of four is drawn each time
        tries += 1
        assert tries < 500
    model.weight.data += 1
    assert watch.refresh() == fingerprint_model(model), "a change all over is seen at once"


def test_memory_freed_behind_the_model_is_refused_not_read(build):
    model = build()
    watch = ModelWatch(model)
    model.lm_head.weight.untyped_storage().resize_(0)
    assert not watch.unchanged()
    with pytest.raises(UnsupportedModelError, match="freed"):
        watch.refresh()


def test_weights_made_under_inference_mode_are_watched():
    with torch.inference_mode():
        model = nn.Linear(4, 4).eval()
    watch = ModelWatch(model)
    before = watch.fingerprint
    with torch.inference_mode():
        model.weight[0, 0] += 1
    assert watch.refresh() != before


def conjugate_in_place(model):
    with torch.no_grad():
        model.spin.mul_(2)


def edit_conjugate_data(model):
    model.spin.data[3] += 1


@pytest.mark.parametrize("change", [conjugate_in_place, edit_conjugate_data])
@pytest.mark.parametrize("view", [torch.conj, lambda value: value.conj().imag], ids=["conjugate", "negative"])
def test_a_lazily_conjugated_buffer_is_read_where_it_lies(change, view):
    model = nn.Module()
    model.register_buffer("spin", view(torch.randn(8, dtype=torch.complex64)))
    watch = ModelWatch(model.eval())
    before = watch.refresh()
    assert watch.refresh() is before
    change(model)
    assert watch.refresh() != before


def test_a_lazily_conjugated_buffer_is_not_the_one_whose_memory_it_shares():
    straight, turned = nn.Module(), nn.Module()
    values = torch.randn(8, dtype=torch.complex64)
    straight.register_buffer("spin", values)
    turned.register_buffer("spin", values.conj())
    assert fingerprint_model(straight.eval()) != fingerprint_model(turned.eval())


@pytest.mark.parametrize("setting", ["mkldnn.matmul", "mkldnn.conv", "mkldnn"])
def test_a_precision_set_by_torchs_newer_names_counts_and_breaks_nothing(build, setting):
    place = torch.backends
    for name in setting.split("."):
        place = getattr(place, name)
    watch = ModelWatch(build())
    before = watch.refresh()
    place.fp32_precision = "bf16"
    try:
        assert watch.refresh() != before
    finally:
        place.fp32_precision = "none"
    assert watch.refresh() == before


def test_many_threads_agree_while_the_model_changes(build):
    model = build()
    watch = ModelWatch(model)
    found, faults = [], []

    def look():
        try:
            found.extend([watch.refresh() for _ in range(20)])
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for each in threads:
        each.start()
    model.lm_head.weight.data[5, 5] += 1
    for each in threads:
        each.join()
    assert faults == []
    assert len(set(found)) <= 2
    assert watch.refresh() == fingerprint_model(model)


def test_the_structural_look_at_a_30_layer_model_is_cheap(build_llama):
    watch = ModelWatch(build_llama(num_hidden_layers=30))
    costs = []
    for _ in range(20):
        start = time.process_time()
        watch.refresh()
        costs.append(time.process_time() - start)
    assert min(costs) < 0.02  # 2.4 ms on one core of a busy machine; this guards against another order of magnitude


def test_a_probe_tells_tensors_of_equal_bytes_but_other_type_or_shape_apart():
    tensors = {
        "float": torch.zeros(4),
        "int": torch.zeros(4, dtype=torch.int32),
        "square": torch.zeros(2, 2),
        "empty": torch.zeros(0),
        "none": torch.zeros(0, 3),
    }
    probe = Probe(tensors)
    assert len(set(probe.whole().values())) == 5
    assert probe.holds()
    tensors["square"][1, 1] = 1
    assert not probe.holds()


def test_a_look_leaves_the_bytes_for_later(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    sight = watch.look()
    assert sight.fingerprint == watch.fingerprint
    assert sight.holds()
    assert sight.unchanged()


@pytest.fixture
def pruned(build_llama):
    """A model of which each pass makes a weight anew."""
    model = build_llama()
    prune.random_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)
    return model


def run(model):
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))


def test_a_weight_that_each_pass_makes_anew_is_what_it_was(pruned):
    watch = ModelWatch(pruned)
    for _ in range(2):
        sight = watch.look()
        run(pruned)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # whose settings are those of another thread
            assert sight.unchanged()
        assert watch.unchanged(sight.fingerprint)


@pytest.mark.parametrize("name", ["weight_orig", "weight_mask", "weight"])
@pytest.mark.parametrize("late", [False, True], ids=["before the pass", "after it"])
def test_a_weight_that_each_pass_makes_anew_may_be_another(pruned, name, late):
    sight = ModelWatch(pruned).look()
    if late:
        run(pruned)
    getattr(pruned.model.layers[0].mlp.up_proj, name).data.add_(1)
    if not late:
        run(pruned)
    assert sight.unchanged() == (name == "weight" and not late)  # what was put there the pass has made anew


def test_a_look_does_not_wait_for_a_thread_that_reads_every_weight(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    first = watch.fingerprint
    with watch._probing:  # as the thread that writes holds it, of the call before
        seen: list[object] = []
        looking = threading.Thread(target=lambda: seen.append(watch.look().fingerprint), daemon=True)
        looking.start()
        looking.join(10)
    assert seen == [first]


@pytest.mark.parametrize("change", [edit_data, edit_numpy, edit_buffer])
def test_an_edit_that_moves_no_counter_is_found_by_what_was_left(build_llama, change):
    model = build_llama()
    watch = ModelWatch(model)
    sight = watch.look()
    change(model)
    assert not sight.holds()
    assert not sight.unchanged()
    later = watch.look()  # reads everything, since the last sighting proved wrong
    assert later.fingerprint != sight.fingerprint
    assert later.holds()
    assert later.unchanged()
    assert not sight.unchanged()


@pytest.mark.parametrize("change", [add_in_place, replace_parameter, edit_config, edit_attribute, cast])
def test_a_look_sees_at_once_what_leaves_a_trace(build_llama, change):
    model = build_llama()
    watch = ModelWatch(model)
    before = watch.look()
    change(model)
    assert watch.look().fingerprint != before.fingerprint
    assert not before.unchanged()


def test_an_edit_before_a_look_is_found_by_its_sighting(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    edit_data(model)
    sight = watch.look()  # does not read, so it names the model of before
    assert not sight.holds()
    assert watch.look().fingerprint != sight.fingerprint


def test_a_sighting_goes_by_the_settings_of_who_looked(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sight = watch.look()
    plain = watch.look()
    assert sight.fingerprint != plain.fingerprint
    answers = []
    thread = threading.Thread(target=lambda: answers.extend([sight.unchanged(), plain.unchanged(), sight.holds()]))
    thread.start()
    thread.join()
    assert answers == [True, True, True]


def test_a_frozen_model_is_not_looked_at(build_llama):
    model = build_llama()
    watch = ModelWatch(model, assume_frozen=True)
    edit_data(model)
    sight = watch.look()
    assert sight.holds()
    assert sight.unchanged()


def test_a_stamp_does_not_grow_with_the_square_of_the_model(build_llama):
    """Every loaded weight carries a mark; naming each apart cost 8 of 10 ms on SmolLM2."""
    model = build_llama()
    from lmstash.identity.models.structure import stamp

    for each in model.parameters():
        each._is_hf_initialized = True
    found, live = stamp(model)
    assert len({id(each) for each in live}) == len(live)
    next(model.parameters()).meaning = 3
    assert stamp(model)[0] != found


# --- one watch for the caches of one model ----------------------------------------------------------------------------


def test_caches_of_one_model_share_a_watch(build_llama):
    model = build_llama()
    watch = watch_model(model)
    assert watch_model(model) is watch
    assert watch_model(model, variant="mine") is not watch
    assert watch_model(model, strict_numerics=True) is not watch


def test_a_shared_watch_sees_what_changed_before_it_was_asked_for_again(build_llama, monkeypatch):
    model = build_llama()
    monkeypatch.setattr(watch_module, "WHOLE_BYTES", 0)  # as if the model were large
    watch = watch_model(model)
    before = watch.fingerprint
    edit_data(model)
    assert watch_model(model) is watch
    assert watch.fingerprint != before
    assert watch.fingerprint == fingerprint_model(model)


def test_who_vouches_for_a_model_does_so_from_then_on(build_llama):
    model = build_llama()
    first = watch_model(model, assume_frozen=True)
    edit_data(model)
    second = watch_model(model, assume_frozen=True)
    assert first.refresh() != second.refresh() == fingerprint_model(model)


def test_a_model_goes_with_its_last_cache(build_llama):
    model = build_llama()
    watch, gone, name = watch_model(model), weakref.ref(model), (id(model), None, False)
    del model
    gc.collect()
    assert gone() is not None
    del watch
    gc.collect()
    assert gone() is None
    assert name not in watch_module._watches


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_it_does_not_have(build_llama):
    watch = ModelWatch(build_llama())
    with watch._lock, watch._probing:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            answered = []
            thread = threading.Thread(target=lambda: answered.append(watch.unchanged()))
            thread.start()
            thread.join()
            os._exit(0 if answered == [True] else 1)
    assert os.waitpid(child, 0)[1] == 0


class Louder(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * 2 if func is nn.functional.linear else found


@pytest.mark.parametrize("frozen", [False, True])
def test_under_a_mode_nothing_is_known_unless_somebody_vouches(build, frozen):
    model = build()
    watch = ModelWatch(model, assume_frozen=frozen)
    vouched = ModelWatch(model, assume_frozen=frozen, variant="may be louder")
    first, other = watch.refresh(), vouched.refresh()
    with Louder():
        for look in (watch.refresh, watch.recognise, watch.look):
            with pytest.raises(UnsupportedModelError, match="Louder is active"):
                look()
        assert vouched.refresh() not in (first, other)
        if not frozen:
            assert not watch.unchanged(first)
    assert (watch.refresh(), vouched.refresh()) == (first, other)
    with torch.device("cpu"):
        assert watch.refresh() == first


def test_a_part_that_is_swapped_for_an_equal_one_shows_in_the_parts(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    before, parts = watch.refresh(), watch.parts
    assert (watch.refresh(), watch.parts) == (before, parts)
    other = type(model.model)(model.config).eval()
    other.load_state_dict(model.model.state_dict())
    model.model = other
    assert watch.refresh() == before
    assert watch.parts != parts
    other, parts = model.config, watch.parts
    other.note = 1
    assert watch.refresh() != before
    assert watch.parts == parts


class Gained(nn.Module):
    def __init__(self, inner, gain):
        super().__init__()
        self.inner, self.gain = inner, gain

    def forward(self, given):
        return self.inner(given) * self.gain


def test_only_code_that_nobody_knows_and_nobody_vouches_for_is_unknown(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    assert not watch.runs_unknown_code()
    model.model.norm = Gained(model.model.norm, 2)
    assert watch.refresh()
    assert watch.runs_unknown_code()
    assert not ModelWatch(model, variant="twice the norm").runs_unknown_code()


def test_what_nests_too_deep_is_said_to(build_llama):
    model = build_llama()
    watch = ModelWatch(model)
    deep = []
    for _ in range(5000):
        deep = [deep]
    model.notes = deep
    assert not watch.unchanged()
    with pytest.raises(UnsupportedModelError, match="too deep"):
        watch.refresh()
    del model.notes
    assert watch.refresh()
