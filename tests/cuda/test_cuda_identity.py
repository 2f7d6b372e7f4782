"""Who a model is does not depend on where it lies; a change of its weights on the GPU never goes unseen."""

import threading

import pytest
import torch
from torch import nn

from lmstash.identity.models.fingerprinting import fingerprint_model
from lmstash.identity.models.watch import ModelWatch

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_model_is_the_same_on_either_device(build, cuda, dtype):
    model = build().to(dtype)
    here = fingerprint_model(model)
    there = fingerprint_model(model.to(cuda))
    assert here == there, here.explain(there)
    assert fingerprint_model(model.to("cpu")) == here
    assert here.recorded["devices"] != there.recorded["devices"]


def test_strict_numerics_tell_devices_apart(build, cuda):
    model = build()
    here = fingerprint_model(model, strict_numerics=True)
    there = fingerprint_model(model.to(cuda), strict_numerics=True)
    assert here != there
    assert {each.name.partition(".")[0] for each in here.explain(there)} == {"environment"}


def test_a_watch_follows_its_model_from_device_to_device(build, cuda):
    model = build()
    watch = ModelWatch(model)
    before = watch.refresh()
    for place in (cuda, "cpu", cuda):
        model.to(place)
        assert watch.refresh() == before
        assert watch.unchanged(before)
        model.lm_head.weight.data[3, 3] += 1
        changed = watch.refresh()
        assert changed not in (before,)
        assert changed == fingerprint_model(model)
        model.lm_head.weight.data[3, 3] -= 1
        before = watch.refresh()


def add_in_place(model):
    with torch.no_grad():
        model.lm_head.weight.add_(1)


def edit_data(model):
    model.lm_head.weight.data[5, 5] += 1


def edit_bias_data(model):
    list(model.parameters())[-2].data.view(-1)[0] += 1


def edit_one_ulp(model):
    model.lm_head.weight.data.view(torch.int32)[5, 5] += 1


def swap_rows_of_data(model):
    weight = model.lm_head.weight.data
    weight[[1, 2]] = weight[[2, 1]]


def swap_contents_of_equal_shapes(model):
    blocks = next(each for each in model.modules() if isinstance(each, nn.ModuleList))
    for one, two in zip(blocks[0].parameters(), blocks[1].parameters(), strict=True):
        kept = one.data.clone()
        one.data.copy_(two.data)
        two.data.copy_(kept)


def edit_out_of_view(model):
    """Through a tensor that shares the memory, made before: no counter of the parameter moves."""
    torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(model.lm_head.weight.detach()))[0, 0] += 1


def step_optimizer(model):
    place = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2, 3]], device=place)).logits.sum().backward()
    optimizer.step()
    model.zero_grad()


def load_state(model):
    model.load_state_dict({name: each + 1 for name, each in model.state_dict().items()})


def cast(model):
    model.to(torch.bfloat16)


def switch_attention(model):
    model.set_attn_implementation("eager")


CHANGES = [
    add_in_place, edit_data, edit_bias_data, edit_one_ulp, swap_rows_of_data, swap_contents_of_equal_shapes,
    edit_out_of_view, step_optimizer, load_state, cast, switch_attention,
]  # fmt: skip


@pytest.mark.parametrize("triton", [True, False], ids=["triton", "torch"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_the_gpu_is_seen_before_a_hit_is_served(build, cuda, change, triton, monkeypatch):
    if not triton:
        from lmstash.identity.memory import device_sums

        monkeypatch.setitem(device_sums._working, str(cuda), False)
    model = build().to(cuda)
    watch = ModelWatch(model)
    before = watch.refresh()
    assert watch.refresh() is before
    change(model)
    after = watch.refresh()
    assert after != before
    assert after == fingerprint_model(model)
    assert watch.unchanged(after)
    assert not watch.unchanged(before)
    assert not ModelWatch(model).unchanged(before)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_the_gpu_is_seen_before_values_are_kept(build_llama, cuda, change):
    model = build_llama().to(cuda)
    watch = ModelWatch(model)
    before = watch.refresh()
    change(model)
    assert not watch.unchanged(before)


def big_model(cuda):
    """2 GiB in sixteen tensors, and some that are not of whole words."""
    model = nn.Module()
    shape = 2**13, 2**13
    model.w = nn.ParameterList(
        [nn.Parameter(torch.randn(shape, device=cuda, dtype=torch.bfloat16), requires_grad=False) for _ in range(16)]
    )
    model.scale = nn.Parameter(torch.ones(3, device=cuda, dtype=torch.bfloat16), requires_grad=False)
    return model.eval()


def test_one_element_of_more_than_a_gibibyte_is_seen_wherever_it_lies(cuda):
    model = big_model(cuda)
    watch = ModelWatch(model)
    assert sum(each.nbytes for each in model.parameters()) > 2**31
    for index, tensor in enumerate((model.scale, *model.w)):
        flat = tensor.data.view(-1)
        place = (0, flat.numel() // 2, flat.numel() - 1)[index % 3]
        before = watch.refresh()
        flat.view(torch.int16)[place] ^= 1  # the last bit
        assert watch.refresh() != before
        assert watch.unchanged()
        flat.view(torch.int16)[place] ^= 1
        assert watch.refresh() == before


def test_rows_and_tensors_exchanged_in_more_than_a_gibibyte_are_seen(cuda):
    model = big_model(cuda)
    watch = ModelWatch(model)
    seen = {watch.refresh()}
    weight = model.w[3].data
    weight[[7, 8000]] = weight[[8000, 7]]
    seen.add(watch.refresh())
    kept = model.w[5].data.clone()
    model.w[5].data.copy_(model.w[9].data)
    model.w[9].data.copy_(kept)
    seen.add(watch.refresh())
    with torch.no_grad():
        model.w[0][0, 0], model.w[0][0, 1] = model.w[0][0, 1].clone() + 2, model.w[0][0, 0].clone() + 3
    seen.add(watch.refresh())
    weight[0, 0], weight[0, 1] = 0.0, float("nan")
    seen.add(watch.refresh())
    weight[0, 0] = -0.0
    seen.add(watch.refresh())
    weight.view(torch.int16)[0, 1] ^= 1
    seen.add(watch.refresh())
    assert len(seen) == 7


@pytest.mark.parametrize("where", ["within", "after", "another thread"])
def test_an_edit_still_in_flight_on_another_stream_is_seen(build, cuda, where):
    """An edit through `.data` moves no counter, and the default stream does not wait for others."""
    model = build().to(cuda)
    watch = ModelWatch(model)
    before = watch.refresh()
    found = []
    stream = torch.cuda.Stream(cuda)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)  # half a second
        model.lm_head.weight.data.add_(1)
        if where == "within":
            found.append(watch.refresh())
    if where == "after":
        found.append(watch.refresh())
    if where == "another thread":
        thread = threading.Thread(target=lambda: found.append(watch.refresh()))
        thread.start()
        thread.join()
    assert found[0] != before
    assert found[0] == fingerprint_model(model)


def test_autocast_attention_and_precision_are_part_of_who_computes(build_llama, cuda):
    model = build_llama().to(cuda)
    watch = ModelWatch(model)
    plain = watch.refresh()
    seen = {plain}
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            seen.add(watch.refresh())
    matmul = torch.backends.cuda.matmul
    for name in ("allow_tf32", "allow_fp16_accumulation"):
        setattr(matmul, name, True)
        seen.add(watch.refresh())
        setattr(matmul, name, False)
    matmul.allow_bf16_reduced_precision_reduction = False
    seen.add(watch.refresh())
    matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cudnn.allow_tf32 = False
    seen.add(watch.refresh())
    torch.backends.cudnn.allow_tf32 = True
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        seen.add(watch.refresh())
    assert watch.refresh() == plain
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        seen.add(watch.refresh())
    assert len(seen) == 9  # "sdpa" is what it was
    assert watch.refresh() == plain


def test_a_full_device_can_still_be_checked(build_llama, cuda):
    model = build_llama().to(cuda)
    model.big = nn.Parameter(torch.zeros(2**25 + 1, dtype=torch.uint8, device=cuda), requires_grad=False)
    watch = ModelWatch(model)
    before = watch.refresh()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total, cuda)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2**26, device=cuda)
        assert watch.refresh() is before
        assert watch.unchanged(before)
        assert ModelWatch(model).fingerprint == before
        model.big.data[-1] = 1
        assert not watch.unchanged(before)
        assert watch.refresh() == fingerprint_model(model)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, cuda)


def test_layouts_other_than_rows_are_read_where_they_lie(cuda):
    model = nn.Module()
    model.turned = nn.Parameter(torch.randn(64, 32, device=cuda).t(), requires_grad=False)
    model.gaps = nn.Parameter(torch.randn(64, 32, device=cuda)[:, ::2], requires_grad=False)
    model.wide = nn.Parameter(torch.randn(64, 1, device=cuda).expand(64, 8), requires_grad=False)
    model.register_buffer("spin", torch.randn(8, dtype=torch.complex64, device=cuda).conj())
    watch = ModelWatch(model.eval())
    before = watch.refresh()
    model.to("cpu")
    assert watch.refresh().hex == fingerprint_model(model).hex
    model.to(cuda)
    for tensor in (model.turned, model.gaps, model.wide, model.spin):
        before = watch.refresh()
        tensor.data[3].mul_(2)
        assert watch.refresh() != before
