import math

import pytest
import torch

from lmstash.codecs.dtypes import check_storage_dtype, restore, rows_to_storage, to_storage, widest
from lmstash.errors import InvalidArgumentError

torch.set_num_threads(1)

F32_MAX = torch.finfo(torch.float32).max
ALL_FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", ALL_FLOATS)
def test_none_keeps_every_dtype_as_it_is(dtype):
    tensor = torch.randn(3, 4).to(dtype)
    kept, overflowed = to_storage(tensor, None)
    assert kept.dtype == dtype
    assert kept.data_ptr() == tensor.data_ptr()
    assert not overflowed


@pytest.mark.parametrize("source", ALL_FLOATS)
@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32"])
def test_values_that_fit_are_rounded_as_torch_rounds(source, target):
    batch = torch.randn(5, 7).to(source)
    kept, rows = rows_to_storage(batch, target)
    assert rows == []
    assert kept.dtype == getattr(torch, target)
    assert torch.equal(kept, batch.to(getattr(torch, target)))


@pytest.mark.parametrize(
    ("source", "target", "value"),
    [
        (torch.float32, "float16", 70_000.0),
        (torch.float32, "float16", -65_520.0),
        (torch.bfloat16, "float16", 1e30),
        (torch.float32, "bfloat16", F32_MAX),
        (torch.float32, "bfloat16", -F32_MAX),
        (torch.float64, "bfloat16", 1e300),
        (torch.float64, "float32", -1e39),
    ],
)
def test_finite_values_that_would_become_infinite_are_overflow(source, target, value):
    batch = torch.zeros(4, 3, dtype=source)
    batch[1, 2] = value
    batch[3, 0] = value
    kept, rows = rows_to_storage(batch, target)
    assert rows == [1, 3]
    assert kept[[0, 2]].abs().sum() == 0
    whole, overflowed = to_storage(batch, target)
    assert overflowed
    assert torch.isfinite(whole).all()
    assert whole.double()[1, 2].item() == pytest.approx(float(batch[1, 2]), rel=1e-6)


@pytest.mark.parametrize("value", [65_504.0, 65_519.0, -65_519.0])
def test_values_that_round_down_to_the_largest_are_no_overflow(value):
    kept, rows = rows_to_storage(torch.full((2, 2), value), "float16")
    assert rows == []
    assert kept.abs().max() == 65_504


@pytest.mark.parametrize("target", ["float16", "bfloat16"])
def test_nan_and_infinity_of_the_source_are_kept_and_are_no_overflow(target):
    batch = torch.tensor([[math.nan, 1.0], [math.inf, -math.inf], [1.0, 2.0], [math.nan, F32_MAX]])
    kept, rows = rows_to_storage(batch, target)
    assert rows == [3]
    assert math.isnan(kept[0, 0])
    assert kept[1].tolist() == [math.inf, -math.inf]
    assert kept[2].tolist() == [1, 2]
    assert to_storage(batch[:3], target)[1] is False


def test_an_overflowing_tensor_is_kept_in_float32_unless_that_overflows_too():
    assert widest(torch.tensor([1e30], dtype=torch.bfloat16)).dtype == torch.float32
    assert widest(torch.tensor([1e30], dtype=torch.float64)).dtype == torch.float32
    assert widest(torch.tensor([1e300], dtype=torch.float64)).dtype == torch.float64
    assert widest(torch.tensor([math.inf], dtype=torch.float64)).dtype == torch.float32
    kept, overflowed = to_storage(torch.tensor([1e300, 1.0], dtype=torch.float64), "float16")
    assert overflowed
    assert kept.tolist() == [1e300, 1.0]


@pytest.mark.parametrize(
    "tensor", [torch.arange(4), torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.complex64)]
)
def test_integers_booleans_and_complex_numbers_are_not_converted(tensor):
    kept, overflowed = to_storage(tensor, "float16")
    assert kept.dtype == tensor.dtype
    assert not overflowed
    assert restore(tensor, "float16").dtype == tensor.dtype


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)])
def test_empty_batches_have_no_overflow(shape):
    kept, rows = rows_to_storage(torch.empty(shape), "float16")
    assert kept.shape == shape
    assert kept.dtype == torch.float16
    assert rows == []


def test_scalars_and_batches_of_scalars_are_handled():
    assert to_storage(torch.tensor(1e9), "float16")[1] is True
    assert to_storage(torch.tensor(2.0), "float16")[0].shape == ()
    assert rows_to_storage(torch.tensor([1.0, 1e9, 2.0]), "float16")[1] == [1]


def test_the_batch_given_is_not_changed_and_gradients_are_left_behind():
    batch = torch.full((2, 2), 1e9, requires_grad=True)
    kept, rows = rows_to_storage(batch, "float16")
    assert rows == [0, 1]
    assert not kept.requires_grad
    assert (batch.detach() == 1e9).all()


def test_restoring_gives_the_dtype_asked_for_or_leaves_it():
    tensor = torch.randn(3).bfloat16()
    assert restore(tensor, None) is tensor
    assert torch.equal(restore(tensor, "float32"), tensor.float())
    assert torch.equal(restore(tensor, torch.float64), tensor.double())


@pytest.mark.parametrize("name", ["int8", "float17", "float8", "", "half ", torch.int64, 3])
def test_other_names_are_refused(name):
    with pytest.raises(InvalidArgumentError):
        restore(torch.ones(1), name)
    with pytest.raises(InvalidArgumentError):
        check_storage_dtype(name)
    with pytest.raises(InvalidArgumentError):
        to_storage(torch.ones(1), name)
