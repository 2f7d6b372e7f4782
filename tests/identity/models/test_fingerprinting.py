import json
import math
import operator
import os
import random
import subprocess
import sys
import textwrap
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn

from lmstash.errors import UnsupportedModelError
from lmstash.identity.models import structure
from lmstash.identity.models.code import ModelCode
from lmstash.identity.models.fingerprinting import Fingerprint, fingerprint_model
from lmstash.identity.models.watch import ModelWatch


def names(ours, theirs):
    return [each.name for each in ours.explain(theirs)]


def test_equal_models_share_and_different_ones_do_not(build):
    left, right = fingerprint_model(build()), fingerprint_model(build())
    assert left == right
    assert left.hex == right.hex
    assert left.explain(right) == []
    other = build()
    with torch.no_grad():
        next(other.parameters())[3, 3] += 1e-3
    assert fingerprint_model(other) != left
    assert all(name.startswith("tensors.") for name in names(fingerprint_model(other), left))


def test_the_same_weights_in_two_folders_share(build, tmp_path):
    model = build()
    for folder in ("a", "b/renamed"):
        model.save_pretrained(tmp_path / folder)
    loaded = [type(model).from_pretrained(tmp_path / folder, dtype="auto") for folder in ("a", "b/renamed")]
    prints = [fingerprint_model(each) for each in (*loaded, model)]
    assert prints[0] == prints[1] == prints[2]
    assert prints[0].recorded["name"] != prints[1].recorded["name"]


def test_another_process_finds_the_same_fingerprint():
    script = textwrap.dedent("""
        import torch
        from transformers import GPT2Config, GPT2Model
        from lmstash.identity.models.fingerprinting import fingerprint_model
        torch.manual_seed(0)
        print(fingerprint_model(GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).eval()).hex)
    """)
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(runs) == 1


def test_a_forward_pass_does_not_change_the_fingerprint(build):
    model = build()
    before = fingerprint_model(model)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False)
    assert names(fingerprint_model(model), before) == []


@pytest.mark.parametrize(
    ("change", "component"),
    [
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, "config.rope_parameters.rope_theta"),
        ({"rms_norm_eps": 1e-5}, "config.rms_norm_eps"),
        ({"hidden_act": "gelu"}, "config.hidden_act"),
        ({"max_position_embeddings": 64}, "config.max_position_embeddings"),
        ({"attn_implementation": "eager"}, "config._attn_implementation_internal"),
    ],
)
def test_the_configuration_counts_field_by_field(build_llama, change, component):
    assert component in names(fingerprint_model(build_llama(**change)), fingerprint_model(build_llama()))


def test_dtype_counts_even_for_weights_that_are_zero(build_llama):
    models = [build_llama(), build_llama()]
    for model in models:
        for each in model.parameters():
            each.data.zero_()
    models[1].to(torch.bfloat16)
    prints = [fingerprint_model(each) for each in models]
    assert "tensors.lm_head.weight" in names(*prints)
    assert prints[1].recorded["dtypes"] == ["bfloat16"]


class Shifted(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 1


class ShiftedMore(nn.Linear):
    def forward(self, input):
        return super().forward(input) + 2


def test_a_subclass_with_another_forward_counts(build):
    models = [build(), build(), build()]
    models[1].lm_head.__class__ = Shifted
    models[2].lm_head.__class__ = ShiftedMore
    assert len({fingerprint_model(each) for each in models}) == 3


def test_the_body_of_a_class_counts_even_under_the_same_name():
    def make(constant, helper):
        space = {"nn": nn, "__name__": "user_code"}
        source = f"""
            def helper(x):
                return x * {helper}

            class Block(nn.Linear):
                def forward(self, x):
                    return helper(super().forward(x)) + {constant}
        """
        exec(textwrap.dedent(source), space)
        torch.manual_seed(0)
        return fingerprint_model(space["Block"](4, 4).eval())

    assert make(1, 1) == make(1, 1)
    assert make(2, 1) != make(1, 1)
    assert make(1, 2) != make(1, 1), "a function that the class calls is part of it"


class Settings:
    def __init__(self):
        self.scale = 1.0
        self.head = nn.Linear(2, 2)


SETTINGS = Settings()
SCALES = {"scale": 1.0}
OFFSET = torch.zeros(2)


class UsesGlobals(nn.Linear):
    def forward(self, input):
        return super().forward(input) * SCALES["scale"] * SETTINGS.scale + OFFSET


def test_globals_that_the_code_names_count(monkeypatch):
    model = UsesGlobals(2, 2).eval()
    before = fingerprint_model(model)
    assert fingerprint_model(model) == before
    monkeypatch.setitem(SCALES, "scale", 2.0)
    scaled = fingerprint_model(model)
    assert scaled != before
    OFFSET[0] = 1
    try:
        assert fingerprint_model(model) != scaled
    finally:
        OFFSET[0] = 0


xp = np


class UsesAnAlias(nn.Linear):
    def forward(self, input):
        return super().forward(input) * xp.asarray([2.0])[0].item() + xp.abs(xp.asarray(-1)).item()


@pytest.mark.parametrize("other", [torch, torch.nn.functional, math])
def test_which_library_a_name_stands_for_counts_and_is_watched(monkeypatch, other):
    model = UsesAnAlias(2, 2).eval()
    watch = ModelWatch(model)
    before = watch.refresh()
    assert watch.unchanged(before)
    monkeypatch.setattr(sys.modules[__name__], "xp", other)
    assert not watch.unchanged(before)
    assert watch.refresh() == fingerprint_model(model) != before
    monkeypatch.undo()
    assert watch.refresh() == before


def change_number(monkeypatch):
    monkeypatch.setattr(SETTINGS, "scale", 2.0)


def change_module(monkeypatch):
    monkeypatch.setattr(SETTINGS.head.weight, "data", torch.ones(2, 2))


def replace_module(monkeypatch):
    monkeypatch.setattr(SETTINGS, "head", nn.Linear(2, 2))


@pytest.mark.parametrize("change", [change_number, change_module, replace_module])
def test_objects_that_the_code_names_count_and_are_watched(monkeypatch, change):
    model = UsesGlobals(2, 2).eval()
    SETTINGS.head.train()
    before = fingerprint_model(model)
    SETTINGS.head.eval()
    watch = ModelWatch(model)
    frozen = watch.refresh()
    assert frozen != before, "training mode counts there, too"
    assert watch.unchanged()
    change(monkeypatch)
    assert not watch.unchanged(frozen)
    assert watch.refresh() == fingerprint_model(model) != frozen


def scaled(factor):
    def decorate(forward):
        def wrapper(self, input):
            return forward(self, input) * factor

        return wrapper

    return decorate


def test_what_decorators_close_over_counts():
    def make(first, second):
        class Left(nn.Linear):
            @scaled(first)
            def forward(self, input):
                return super().forward(input)

        class Right(nn.Linear):
            @scaled(second)
            def forward(self, input):
                return super().forward(input)

        torch.manual_seed(0)
        return fingerprint_model(nn.Sequential(Left(2, 2), Right(2, 2)).eval())

    assert make(2.0, 3.0) == make(2.0, 3.0)
    assert len({make(2.0, 3.0), make(3.0, 2.0), make(2.0, 2.0), make(3.0, 3.0)}) == 4


def test_a_function_replaced_inside_transformers_counts(build_llama, monkeypatch):
    from transformers.models.llama import modeling_llama

    model = build_llama()
    before = fingerprint_model(model)
    original = modeling_llama.rotate_half
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "rotate_half", lambda x: -original(x))
        assert fingerprint_model(model) != before
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: self.down_proj(self.up_proj(x)))
        assert fingerprint_model(model) != before
    assert fingerprint_model(model) == before


def test_plain_attributes_of_modules_count(build_llama):
    model = build_llama()
    before = fingerprint_model(model)
    model.model.layers[1].self_attn.scaling *= 2
    assert names(fingerprint_model(model), before) == ["modules.model.layers.1.self_attn.scaling"]


class Adapted(nn.Linear):
    """What a LoRA layer looks like: adapters by name, a scale for each, and which of them are active."""

    def __init__(self):
        super().__init__(4, 4)
        self.lora_A = nn.ModuleDict({"x": nn.Linear(4, 2), "y": nn.Linear(4, 2)})
        self.lora_B = nn.ModuleDict({"x": nn.Linear(2, 4), "y": nn.Linear(2, 4)})
        self.scaling = {"x": 1.0, "y": 1.0}
        self.active = ["x"]
        self.merged = False


@pytest.mark.parametrize(
    ("change", "component"),
    [
        (lambda layer: layer.scaling.update(x=2.0), "modules.<root>.scaling.x"),
        (lambda layer: setattr(layer, "active", ["y"]), "modules.<root>.active"),
        (lambda layer: setattr(layer, "merged", True), "modules.<root>.merged"),
        (lambda layer: layer.lora_B["x"].weight.data.add_(1), "tensors.lora_B.x.weight"),
    ],
)
def test_adapters_count_by_weights_scale_and_which_is_active(change, component):
    layer = Adapted().eval()
    before = fingerprint_model(layer)
    change(layer)
    assert names(fingerprint_model(layer), before) == [component]


def test_buffers_count_persistent_or_not():
    def make(first, second):
        module = nn.Identity().eval()
        module.register_buffer("kept", torch.tensor([first]))
        module.register_buffer("temporary", torch.tensor([second]), persistent=False)
        return fingerprint_model(module)

    assert make(1, 1) == make(1, 1)
    assert len({make(1, 1), make(2, 1), make(1, 2)}) == 3


def test_tensors_and_modules_outside_torch_registers_count():
    def make(tensor, weight):
        module = nn.Identity().eval()
        module.steering = {"layer": [torch.tensor([tensor])]}
        hidden = nn.Linear(1, 1).eval()
        hidden.weight.data.fill_(weight)
        hidden.bias.data.fill_(0)
        module.hidden = [hidden]
        return fingerprint_model(module)

    assert make(1.0, 1.0) == make(1.0, 1.0)
    assert len({make(1.0, 1.0), make(2.0, 1.0), make(1.0, 2.0)}) == 3


def test_what_an_attribute_hides_an_attribute_shows():
    """`__dict__` wins over registered parameters, so both must count."""
    module = nn.Linear(2, 2).eval()
    before = fingerprint_model(module)
    module.__dict__["weight"] = torch.ones(2, 2)
    shadowed = fingerprint_model(module)
    module.__dict__["weight"] = torch.zeros(2, 2)
    assert len({before, shadowed, fingerprint_model(module)}) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64])
def test_one_element_counts_in_every_dtype_and_layout(dtype):
    def make(value, view):
        module = nn.Identity().eval()
        data = torch.zeros(6, 4, dtype=torch.float32).to(dtype)
        data[2, 1] = value
        module.register_buffer("data", view(data))
        return fingerprint_model(module)

    def same(data):
        return data

    def transposed(data):
        return data.T.contiguous().T

    assert make(0, same) != make(1, same)
    assert make(1, same) == make(1, transposed), "strides do not change what is computed from"
    assert make(0, transposed) != make(1, transposed)


def test_shapes_count_and_empty_or_scalar_tensors_are_fine():
    def make(*shape):
        module = nn.Identity().eval()
        module.register_buffer("data", torch.zeros(shape))
        return fingerprint_model(module)

    assert len({make(), make(0), make(1), make(0, 3), make(3, 0), make(4), make(2, 2)}) == 7


def test_tied_weights_are_listed_under_each_name(build):
    found = fingerprint_model(build(tie_word_embeddings=True)).components["tensors"]
    assert isinstance(found, dict)
    digests = [
        value[2] for name, value in found.items() if "lm_head" in name or "wte" in name or "embed_tokens" in name
    ]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_a_model_in_training_mode_with_dropout_is_refused(build):
    model = build(attention_dropout=0.1) if build.__name__ == "llama" else build()
    model.train()
    with pytest.raises(UnsupportedModelError, match=r"Call model.eval\(\)"):
        fingerprint_model(model)


def test_training_mode_without_effect_passes_but_does_not_share(build_llama):
    model = build_llama(attention_dropout=0.0)
    before = fingerprint_model(model)
    model.train()
    assert fingerprint_model(model) != before


def test_batch_norm_in_training_mode_is_refused():
    with pytest.raises(UnsupportedModelError, match="normalises by the batch"):
        fingerprint_model(nn.BatchNorm1d(3).train())


def test_an_instance_level_forward_needs_a_variant(build):
    model = build()
    plain = fingerprint_model(model)
    model.lm_head.forward = lambda input: input
    with pytest.raises(UnsupportedModelError, match=r"lm_head has its own `forward`.*variant="):
        fingerprint_model(model)
    vouched = fingerprint_model(model, variant="a")
    assert len({plain, vouched, fingerprint_model(model, variant="b")}) == 3


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_others_need_a_variant_and_our_own_do_not(build, register):
    model = build()
    plain = fingerprint_model(model)

    def hook(*_):
        return None

    handle = getattr(model.lm_head, register)(hook)
    with pytest.raises(UnsupportedModelError, match=r"lm_head has a forward hook .*variant="):
        fingerprint_model(model)
    assert fingerprint_model(model, variant="a") != plain
    hook._lmstash = True
    assert fingerprint_model(model) == plain
    handle.remove()
    assert fingerprint_model(model) == plain


def test_global_hooks_need_a_variant(build):
    model = build()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(UnsupportedModelError, match="global hooks"):
            fingerprint_model(model)
    finally:
        handle.remove()


def test_a_model_on_the_meta_device_is_refused(build):
    with torch.device("meta"):
        model = build()
    with pytest.raises(UnsupportedModelError, match=r"meta device.*Load the model"):
        fingerprint_model(model)


def test_what_cannot_be_taken_apart_is_refused_unless_vouched_for():
    module = nn.Identity().eval()
    module.stream = iter([1, 2])
    assert fingerprint_model(module) == fingerprint_model(module)  # a list iterator says what it was copied from
    module.stream = (each for each in [1, 2])
    with pytest.raises(UnsupportedModelError, match=r"stream is a builtins.generator.*variant="):
        fingerprint_model(module)
    assert fingerprint_model(module, variant="a").digest


@pytest.mark.parametrize("thing", [None, "gpt2", object(), 5])
def test_what_is_not_a_torch_module_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match="expected a torch module"):
        fingerprint_model(thing)


def test_autocast_and_matmul_precision_count(build):
    model = build()
    found = {fingerprint_model(model)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.add(fingerprint_model(model))
    with torch.autocast("cpu", dtype=torch.float16):
        found.add(fingerprint_model(model))
    torch.set_float32_matmul_precision("medium")
    try:
        found.add(fingerprint_model(model))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(found) == 4


def test_a_registered_attention_function_counts_by_its_code(build_llama):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def first(*arguments, **keywords):
        return sdpa_attention_forward(*arguments, **keywords)

    def second(*arguments, **keywords):
        output, weights = sdpa_attention_forward(*arguments, **keywords)
        return output * 2, weights

    found = set()
    try:
        for function in (first, second):
            AttentionInterface.register("lmstash_test", function)
            model = build_llama()
            model.config._attn_implementation = "lmstash_test"
            found.add(fingerprint_model(model))
    finally:  # what is registered counts for every model
        AttentionInterface._global_mapping.pop("lmstash_test")
    assert len(found) == 2


def test_strict_numerics_counts_what_is_otherwise_only_recorded(build):
    model = build()
    plain, strict = fingerprint_model(model), fingerprint_model(model, strict_numerics=True)
    assert names(plain, strict) == ["environment"]
    assert plain.recorded["torch"] == str(torch.__version__)
    assert plain.recorded["devices"] == ["cpu"]


def test_a_fingerprint_survives_json(build):
    fingerprint = fingerprint_model(build())
    again = Fingerprint.from_description(json.loads(json.dumps(fingerprint.describe(), allow_nan=False)))
    assert again == fingerprint
    assert again.recorded == fingerprint.recorded
    assert again.explain(fingerprint) == []


def test_threads_may_fingerprint_one_model_at_once(build):
    model = build()
    found: list[Fingerprint] = []
    threads = [threading.Thread(target=lambda: found.append(fingerprint_model(model))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_parametrizations_count(build_llama):
    from torch.nn.utils import parametrize

    class Double(nn.Module):
        def forward(self, weight):
            return weight * 2

    model = build_llama()
    before = fingerprint_model(model)
    parametrize.register_parametrization(model.lm_head, "weight", Double())
    assert fingerprint_model(model) != before


@pytest.mark.parametrize("registry", ["attention", "masks"])
def test_what_is_registered_under_a_word_of_the_configuration_is_seen_when_it_changes(build_llama, registry):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def scaled(*arguments, **keywords):
        output, weights = sdpa_attention_forward(*arguments, **keywords)
        return output * 2, weights

    def blind(*arguments, **keywords):
        mask = sdpa_mask(*arguments, **keywords)
        return None if mask is None else mask & False

    AttentionInterface.register("lmstash_word", sdpa_attention_forward)
    AttentionMaskInterface.register("lmstash_word", sdpa_mask)
    try:
        model = build_llama()
        model.config._attn_implementation = "lmstash_word"
        watch = ModelWatch(model)
        before = watch.refresh()
        assert before == fingerprint_model(model)
        if registry == "attention":
            AttentionInterface.register("lmstash_word", scaled)
        else:
            AttentionMaskInterface.register("lmstash_word", blind)
        assert not watch.unchanged(before)
        assert before != watch.refresh() == fingerprint_model(model)
    finally:
        AttentionInterface._global_mapping.pop("lmstash_word")
        AttentionMaskInterface._global_mapping.pop("lmstash_word")


def test_a_program_s_own_random_numbers_are_left_alone(build_llama, monkeypatch):
    from lmstash.identity.models import watch as watch_module

    monkeypatch.setattr(watch_module, "WHOLE_BYTES", 1)
    watch = ModelWatch(build_llama())
    random.seed(3)
    state = random.getstate()
    watch.refresh()
    watch.recognise()
    assert random.getstate() == state


def test_the_outliers_of_the_last_batch_do_not_count_where_each_pass_notes_them_anew(build_llama):
    """LLM.int8 keeps them for the way back; versions that compute with what is kept beside them are told by that."""

    def quantized(**held):
        model = build_llama()
        name = {"__module__": "bitsandbytes.autograd._functions"}
        state = model.model.layers[0].mlp.down_proj.state = type("MatmulLtState", (), name)()
        vars(state).update({"threshold": 6.0, "idx": None, **held})
        return fingerprint_model(model)

    fresh = quantized()
    assert quantized(idx=torch.tensor([3, 5])) == fresh
    assert quantized(idx=torch.tensor([3, 5]), subB=None) == quantized(subB=None)
    assert quantized(threshold=5.0) != fresh
    assert quantized(idx=torch.tensor([3]), subB=torch.ones(2)) != quantized(idx=torch.tensor([4]), subB=torch.ones(2))


def test_what_generate_and_accelerate_leave_for_their_next_call_does_not_count(build_llama):
    from transformers import CompileConfig

    model = build_llama()
    before = fingerprint_model(model)
    watch = ModelWatch(model)
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False, cache_implementation="static")
    assert model._previous_max_cache_length > 0
    assert model.get_compiled_call(CompileConfig()) is model._compiled_call
    model._is_accelerate_prepared = True
    assert fingerprint_model(model) == before
    assert watch.refresh() == before


def test_a_method_of_the_class_s_own_that_was_put_back_does_not_count(build_llama):
    model = build_llama()
    before, watch, mlp = fingerprint_model(model), ModelWatch(model), model.model.layers[0].mlp
    theirs = mlp.forward
    mlp.forward = lambda x: theirs(x) * 2
    with pytest.raises(UnsupportedModelError, match=r"its own `forward`"):
        watch.refresh()
    mlp.forward = theirs
    for each in (model, model.model.norm):
        each.__dict__.update(train=each.train, _call_impl=each._call_impl)
    assert fingerprint_model(model) == before == watch.refresh()
    assert fingerprint_model(model, variant="mine") == fingerprint_model(build_llama(), variant="mine")


def test_a_forward_that_is_not_what_runs_without_it_is_refused(build_llama, monkeypatch):
    model = build_llama()
    first, second = (layer.mlp for layer in (*model.model.layers, *model.model.layers)[:2])
    second = type(first)(model.config) if second is first else second
    watch = ModelWatch(model)
    for other in (second.forward, types.MethodType(model.model.norm.forward, first), types.MethodType(len, first)):
        first.forward = other
        with pytest.raises(UnsupportedModelError, match=r"its own `forward`"):
            watch.refresh()
    first.forward = types.MethodType(type(first).forward, first)
    watch.refresh()
    older = type(first).forward
    monkeypatch.setattr(type(first), "forward", lambda self, x: older(self, x) * 2)  # which the instance does not run
    with pytest.raises(UnsupportedModelError, match=r"its own `forward`"):
        watch.refresh()


def test_a_method_by_another_name_counts(build_llama):
    model = build_llama()
    before = fingerprint_model(model)
    model.model.norm.train = model.model.norm.eval
    assert fingerprint_model(model) != before


@pytest.mark.parametrize("name", ["_previous_max_cache_length", "_compiled_call", "_last_compile_config"])
def test_a_class_of_ones_own_may_read_what_has_the_names_of_what_generate_leaves(build_llama, name):
    model = build_llama()
    model.__class__ = type("Mine", (type(model),), {"__module__": "of_my_own"})
    before = fingerprint_model(model)
    setattr(model, name, 3)
    assert fingerprint_model(model) != before


def test_one_adapter_is_the_same_by_its_name_and_as_a_list_of_one(build_llama):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    model = peft.get_peft_model(build_llama(), config)
    model.add_adapter("other", config)
    model.eval()
    fresh = fingerprint_model(model)
    model.set_adapter("other")
    assert fingerprint_model(model) != fresh
    model.set_adapter("default")
    assert {type(each.__dict__["active_adapter"]) for each in (model, model.base_model)} == {str}
    assert fingerprint_model(model) == fresh
    model.base_model.set_adapter(["default", "other"])
    assert fingerprint_model(model) != fresh


class AsksForNotes(torch.nn.Module):
    """A layer that computes by what transformers' own only note down."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **options):
        factor = 2.0 if self.name_or_path == "steered" else 1.0
        return self.block(*args, **options) * factor * self.generation_config.scale * self.hf_device_map["x"]


class Asks(torch.nn.Module):
    """A layer that asks a model of transformers for what it notes down."""

    def __init__(self, block, model):
        super().__init__()
        self.block = block
        self.ask = lambda: model.generation_config.temperature

    def forward(self, *args, **options):
        return self.block(*args, **options) * self.ask()


@pytest.mark.parametrize("name", ["name_or_path", "generation_config", "hf_device_map"])
def test_notes_count_where_a_class_of_ones_own_asks_for_them(build_llama, name):
    model = build_llama()
    layer = model.model.layers[0] = AsksForNotes(model.model.layers[0])
    layer.name_or_path, layer.generation_config, layer.hf_device_map = "a", types.SimpleNamespace(scale=1.0), {"x": 1.0}
    layer.warnings_issued = {"k": 1}
    watch = ModelWatch(model)
    before = watch.refresh()
    layer.warnings_issued["k"] = 2  # nobody asks for it
    assert watch.refresh() == before == fingerprint_model(model)
    if name == "name_or_path":
        layer.name_or_path = "steered"
    elif name == "generation_config":
        layer.generation_config.scale = 3.0
    else:
        layer.hf_device_map["x"] = 3.0
    assert watch.refresh() == fingerprint_model(model) != before


def test_notes_of_a_model_count_where_a_class_of_ones_own_asks_for_them(build_llama):
    model = build_llama()
    fresh = fingerprint_model(model)
    model.generation_config.temperature = 0.5
    assert fingerprint_model(model) == fresh
    model.model.layers[0] = Asks(model.model.layers[0], model)
    watch = ModelWatch(model)
    before = watch.refresh()
    model.generation_config.temperature = 0.7
    assert watch.refresh() == fingerprint_model(model) != before


NOTE = "name_or_path"
READ_NOTE = operator.attrgetter(NOTE)


class Steered(torch.nn.Module):
    """A layer that computes by a note which it asks for in some way or other."""

    HERE = NOTE

    def __init__(self, block, how):
        super().__init__()
        self.block, self.how, self.name_or_path, self.fields = block, how, "a", [NOTE]

    def read(self, name=NOTE):
        return {
            "global": lambda: getattr(self, NOTE),
            "default": lambda: getattr(self, name),
            "class": lambda: getattr(self, self.HERE),
            "list": lambda: getattr(self, self.fields[0]),
            "attrgetter": lambda: READ_NOTE(self),
            "vars": lambda: vars(self)["name_or" + "_path"],
        }[self.how]()

    def forward(self, *args, **options):
        return self.block(*args, **options) * (2.0 if self.read() == "steered" else 1.0)


@pytest.mark.parametrize("how", ["global", "default", "class", "list", "attrgetter", "vars"])
def test_notes_count_however_code_of_ones_own_asks_for_them(build_llama, how):
    model = build_llama()
    layer = model.model.layers[0] = Steered(model.model.layers[0], how)
    watch = ModelWatch(model)
    before = watch.refresh()
    layer.name_or_path = "steered"
    assert watch.refresh() == fingerprint_model(model) != before


class Applies:
    def __init__(self, model):
        self.ask = lambda: model.name_or_path


def test_what_a_note_itself_asks_for_counts_too(build_llama):
    model = build_llama()
    layer = model.model.layers[0] = AsksForNotes(model.model.layers[0])
    layer.name_or_path, layer.hf_device_map = "a", {"x": 1.0}
    layer.generation_config = Applies(layer)
    before = fingerprint_model(model)
    layer.name_or_path = "steered"
    assert fingerprint_model(model) != before


GENERATES = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from lmstash.identity.models.fingerprinting import fingerprint_model
class Mine(LlamaForCausalLM):
    def say(self, ids):
        return self.generate(ids, generation_config=self.generation_config)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
print(fingerprint_model(Mine(LlamaConfig(**shape, vocab_size=30)).eval()).hex)
"""


def test_a_class_of_ones_own_that_names_its_generation_config_is_the_same_in_each_process(tmp_path):
    (tmp_path / "mine.py").write_text(GENERATES)
    found = {
        subprocess.run(
            [sys.executable, str(tmp_path / "mine.py")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_an_adapter_that_is_saved_and_loaded_again_is_the_same(build_llama, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build_llama(), config).eval()
    fresh, stamped = fingerprint_model(model), structure.stamp(model, ModelCode())[0]
    model.save_pretrained(tmp_path)
    for trainable in (False, True):
        again = peft.PeftModel.from_pretrained(build_llama(), str(tmp_path), is_trainable=trainable).eval()
        assert again.peft_config["default"].auto_mapping != config.auto_mapping
        assert again.peft_config["default"].inference_mode is not trainable
        assert fingerprint_model(again) == fresh
    model.peft_config["default"].inference_mode = True
    assert fingerprint_model(model) == fresh
    assert structure.stamp(model, ModelCode())[0] == stamped
    model.peft_config["default"].lora_alpha += 1  # may be read by whoever merges it
    assert fingerprint_model(model) != fresh


def test_generate_of_peft_leaves_the_model_as_it_was(build_llama):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build_llama(), config).eval()
    fresh, glanced = fingerprint_model(model), structure.stamp(model)[0]
    model.generate(input_ids=torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False)
    left = model.base_model.__dict__["prepare_inputs_for_generation"]
    assert left == model.base_model.model.prepare_inputs_for_generation
    assert fingerprint_model(model) == fresh
    assert structure.stamp(model)[0] == glanced
    model.base_model.prepare_inputs_for_generation = (
        model.prepare_inputs_for_generation
    )  # another one stays, and counts
    assert fingerprint_model(model) != fresh
    assert structure.stamp(model)[0] != glanced


def test_how_gradients_are_computed_is_no_part_of_a_model_that_evaluates(build_llama):
    model = build_llama().eval()
    fresh = fingerprint_model(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert fingerprint_model(model) == fresh
    assert fingerprint_model(model.train()) != fresh
    model.eval().gradient_checkpointing_disable()
    model.disable_input_require_grads()
    assert fingerprint_model(model) == fresh


def test_a_peft_model_that_was_trained_with_gradient_checkpointing_is_itself(build_llama):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build_llama(), config).eval()
    fresh = fingerprint_model(model)
    model.gradient_checkpointing_enable()
    model.train()(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert fingerprint_model(model.eval()) == fresh


BY_TEXT = {
    "getattr, by a text": "getattr(mod, 'SCALE')",
    "getattr, by a name that is made": "getattr(mod, 'SC' + self.rest)",
    "vars": "vars(mod)['SCALE']",
    "__dict__": "mod.__dict__['SC' + self.rest]",
    "a function": "getattr(mod, 'sc' + 'ale')()",
    "globals": "globals()['SC' + self.rest]",
    "globals, by a text": "globals()['SCALE']",
    "eval": "eval('mod.SCALE * 1')",
    "sys.modules": "sys.modules['lmstash_test_asked'].SCALE",
    "__import__": "__import__('lmstash_test_asked').SCALE",
    "import_module": "importlib.import_module('lmstash_test_asked').SCALE",
    "a module that it holds": "self.held.SCALE",
    "a module in a table": "TABLE['a'][0].SCALE",
}


@pytest.mark.parametrize("how", BY_TEXT)
def test_what_your_own_code_asks_for_by_text_counts(build_llama, how, monkeypatch):
    mod = types.ModuleType("lmstash_test_asked")
    exec("SCALE = 1.0\ndef scale(): return 1.0", vars(mod))
    monkeypatch.setitem(sys.modules, mod.__name__, mod)
    program = {"__name__": "lmstash_test_program", "nn": nn, "mod": mod, "SCALE": 1.0, "TABLE": {"a": [mod]}}
    source = f"""
import importlib, sys
class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.rest = inner, "ALE"
    def forward(self, x):
        return self.inner(x) * {BY_TEXT[how]}
"""
    exec(source, program)
    model = build_llama()
    layer = model.model.layers[0]
    layer.mlp = program["Scaled"](layer.mlp)
    if "self.held" in source:
        layer.mlp.held = mod
    watch = ModelWatch(model)
    before, ids = watch.fingerprint, torch.tensor([[1, 2, 3]])
    assert watch.unchanged(before)
    assert fingerprint_model(model) == before
    with torch.no_grad():
        said = model(ids).logits
        exec("SCALE = 2.0\ndef scale(): return 2.0", vars(mod))
        program["SCALE"] = 2.0
        assert not torch.equal(model(ids).logits, said)
    assert not watch.unchanged(before)
    assert fingerprint_model(model) != before


def test_what_is_met_by_text_alone_is_no_reason_to_refuse_a_model(build_llama, monkeypatch):
    """A module of yours has clients, locks and loggers in it, that nobody asks for here."""
    requests = pytest.importorskip("requests")
    mod = types.ModuleType("lmstash_test_asked")
    exec("SCALE = 1.0\nclass Tool:\n def go(self): return session", vars(mod))
    mod.session, mod.lock = requests.Session(), threading.Lock()
    monkeypatch.setitem(sys.modules, mod.__name__, mod)
    program = {"__name__": "lmstash_test_program", "nn": nn, "mod": mod}
    exec("class L(nn.Module):\n def forward(self, x): return getattr(mod, 'SCALE') * x", program)
    model = build_llama()
    model.extra, model.held = program["L"](), mod
    before = fingerprint_model(model)
    mod.Tool.go = lambda self: None
    assert fingerprint_model(model) != before


def test_an_object_that_fails_when_it_is_looked_at_is_a_refusal(build_llama):
    requests = pytest.importorskip("requests")
    model = build_llama()
    model.session = requests.Session()
    with pytest.raises(UnsupportedModelError, match=r"session.*variant="):
        fingerprint_model(model)
    assert fingerprint_model(model, variant="with a session").hex


def test_a_module_that_a_text_names_counts_by_its_file_and_is_not_run(build_llama, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "lmstash_test_train.py"
    program = {"__name__": "lmstash_test_program", "nn": nn}
    source = "import importlib\nclass L(nn.Module):\n def forward(self, x):\n"
    exec(source + "  return x * importlib.import_module('lmstash_test_train').SCALE", program)
    model = build_llama()
    model.extra = program["L"]()
    file.write_text("raise SystemExit('it trains')")
    before = fingerprint_model(model)
    assert fingerprint_model(model) == before
    file.write_text("SCALE = 2")
    assert fingerprint_model(model) != before
    assert "lmstash_test_train" not in sys.modules


def test_a_module_with_names_that_are_no_texts_is_read(build_llama):
    mod = types.ModuleType("lmstash_test_odd")
    vars(mod).update({1: "a", "b": 2})
    model = build_llama()
    model.held = mod
    before = fingerprint_model(model)
    mod.b = 3
    assert fingerprint_model(model) != before


class InSlots(nn.Linear):
    __slots__ = ("__hidden", "scale")

    def __init__(self, size):
        super().__init__(size, size)
        self.scale, self.__hidden = 1.0, 1.0

    def hide(self, value):
        self.__hidden = value

    def forward(self, given):
        return super().forward(given) * self.scale * self.__hidden


class InNamedSlots(nn.Linear):
    __slots__ = iter(["scale"])


def test_slots_count_however_they_were_named():
    layer = InNamedSlots(2, 2).eval()
    layer.scale = 1.0
    before = fingerprint_model(layer)
    layer.scale = 2.0
    assert fingerprint_model(layer) != before


@pytest.mark.parametrize("change", [lambda layer: setattr(layer, "scale", 5.0), lambda layer: layer.hide(5.0)])
def test_what_a_module_keeps_in_slots_counts(change):
    layer = InSlots(4).eval()
    watch = ModelWatch(layer)
    before = watch.refresh()
    change(layer)
    assert not watch.unchanged(before)
    assert fingerprint_model(layer) != before


def test_what_somebody_puts_into_a_library_s_class_counts_where_code_of_theirs_asks_for_it(build_llama, monkeypatch):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    model = build_llama()
    plain = fingerprint_model(model)
    monkeypatch.setattr(LlamaMLP, "gain", 1, raising=False)
    assert fingerprint_model(model) == plain  # nobody asks
    theirs = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: theirs(self, x) * self.gain + self.config.shift[0])
    monkeypatch.setattr(LlamaConfig, "shift", [0], raising=False)
    watch = ModelWatch(model)
    seen = {watch.refresh().hex}
    monkeypatch.setattr(LlamaMLP, "gain", 4)
    seen.add(watch.refresh().hex)
    LlamaConfig.shift[0] = 1
    seen.add(watch.refresh().hex)
    assert fingerprint_model(model).hex in seen
    assert len(seen) == 3


def test_the_precision_of_one_number_counts():
    class Holds(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

    values = [np.array(0.5, np.float32), np.array(0.5, np.float64), np.float32(0.5), 0.5]
    assert len({fingerprint_model(Holds(each).eval()).hex for each in values}) >= 3
    assert fingerprint_model(Holds(values[0]).eval()) == fingerprint_model(Holds(np.array(0.5, np.float32)).eval())


def test_a_generator_of_random_numbers_counts_by_where_it_stands():
    layer = nn.Linear(2, 2).eval()
    layer.draws = torch.Generator().manual_seed(1)
    watch = ModelWatch(layer)
    before = watch.refresh()
    assert watch.refresh() == before
    torch.rand(1, generator=layer.draws)
    assert watch.refresh() != before
    layer.draws.manual_seed(1)
    assert watch.refresh() == before


def test_an_object_that_somebody_puts_into_a_library_s_class_counts(build_llama, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    model, gain = build_llama(), torch.ones(1)
    theirs = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: theirs(self, x) * self.gain)
    monkeypatch.setattr(LlamaMLP, "gain", gain, raising=False)
    watch = ModelWatch(model)
    before = watch.refresh()
    assert watch.refresh() == before
    gain.mul_(2)
    after = watch.refresh()
    assert after != before
    monkeypatch.setattr(LlamaMLP, "gain", types.SimpleNamespace(of=2))
    assert watch.refresh() not in (before, after)


def test_a_traced_module_is_refused_with_clear_words(build_llama):
    model = build_llama()
    model.model.norm = torch.jit.trace(nn.Linear(32, 32), torch.ones(1, 32))
    with pytest.raises(UnsupportedModelError, match="norm is a TopLevelTracedModule"):
        ModelWatch(model)
