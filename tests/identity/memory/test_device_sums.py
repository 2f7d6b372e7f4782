"""The sums that stand for weights on a GPU. They are the same numbers on any device, so most is tested on the CPU."""

import itertools

import pytest
import torch

from lmstash.identity.memory.device_sums import CHUNK_WORDS, LANES, DeviceSums, _agrees, _drawn, _kernel_works, _words

COUNTS = [1, 3, 4, 1000, 4 * LANES, 4 * LANES + 4, 4 * CHUNK_WORDS, 4 * CHUNK_WORDS + 1, 4 * (64 * CHUNK_WORDS + 5)]


def sums(tensor):
    return DeviceSums([tensor]).take()[0]


def by_hand(words):
    """As the kernel's docstring says, in Python's own integers."""
    weights = _drawn().tolist()
    rows = CHUNK_WORDS // LANES
    out = []
    for start in range(0, len(words), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        for weight in weights:
            total = 0
            for lane in range(LANES):
                column = chunk[lane::LANES]
                held = sum(word * weight[row] for row, word in enumerate(column)) % 2**64
                high = held >> 32
                high -= 2**32 if high >= 2**31 else 0
                total += high * weight[rows + lane] + (held & 0xFFFFFFFF) * weight[rows + LANES + lane]
            total %= 2**64
            out.append(total - 2**64 if total >= 2**63 else total)
    return out


@pytest.mark.parametrize("count", [1, LANES - 1, LANES + 1, CHUNK_WORDS, CHUNK_WORDS + 2 * LANES + 7])
def test_the_sums_are_what_is_written(count):
    words = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32)
    assert torch.frombuffer(bytearray(sums(words)), dtype=torch.int64).tolist() == by_hand(words.tolist())


@pytest.mark.parametrize("count", COUNTS)
def test_one_bit_anywhere_and_two_words_exchanged_are_seen(count):
    data = torch.randint(0, 255, (count,), dtype=torch.uint8)
    before = sums(data)
    assert sums(data.clone()) == before
    for place, bit in itertools.product({0, count // 2, count - 1}, (1, 128)):
        edited = data.clone()
        edited[place] ^= bit
        assert sums(edited) != before
    if count > 8:
        edited = data.clone()
        edited[0:4], edited[-4:] = data[-4:], data[0:4]
        assert torch.equal(edited, data) or sums(edited) != before


def negate_two(weight):
    weight.view(-1)[[3, 500]] *= -1


def negate_all(weight):
    weight.neg_()


def swap_rows(weight):
    weight[[0, 1]] = weight[[1, 0]]


def swap_far_rows(weight):
    weight[[0, -1]] = weight[[-1, 0]]


def swap_columns(weight):
    weight[:, [0, 1]] = weight[:, [1, 0]]


def roll(weight):
    weight.copy_(weight.roll(1, 0))


def reverse(weight):
    weight.copy_(weight.flip(0, 1))


def one_ulp(weight):
    bits = weight.view(torch.int32 if weight.element_size() == 4 else torch.int16)
    bits[7, 9] += 1


def up_and_down(weight):
    bits = weight.view(torch.int32 if weight.element_size() == 4 else torch.int16)
    bits[7, 9] += 1
    bits[8, 9] -= 1


def sign_of_zero(weight):
    weight[5, 5] = -0.0


def signs_of_two_zeros(weight):
    weight[5, 5] = weight[6, 6] = -0.0


def another_nan(weight):
    bits = weight.view(torch.int32 if weight.element_size() == 4 else torch.int16)
    bits[2, 2] ^= 1


def two_top_bits(weight):
    bits = weight.view(torch.int32 if weight.element_size() == 4 else torch.int16)
    top = -(2 ** (8 * weight.element_size() - 1))
    bits[0, 0] ^= top
    bits[0, LANES // 4] ^= top


CHANGES = [
    negate_two, negate_all, swap_rows, swap_far_rows, swap_columns, roll, reverse, one_ulp, up_and_down, sign_of_zero,
    signs_of_two_zeros, another_nan, two_top_bits,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_made_to_slip_through_are_seen(change, dtype):
    weight = torch.randn(300, 512).to(dtype)
    weight[5, 5] = weight[6, 6] = 0.0
    weight[2, 2] = float("nan")
    before = sums(weight)
    change(weight)
    assert sums(weight) != before


def test_every_pair_of_top_bits_of_a_small_tensor_is_seen():
    """What a sum with odd weights is weakest at: only the lowest bits of two weights tell such changes apart."""
    before = torch.zeros(40, dtype=torch.int32)
    seen = {sums(before)}
    for first, second in itertools.combinations(range(40), 2):
        edited = before.clone()
        edited[[first, second]] = -(2**31)
        seen.add(sums(edited))
    assert len(seen) == 1 + 40 * 39 // 2


def test_two_tensors_of_one_shape_exchanged_are_seen():
    one, two = torch.randn(2, 64, 64)
    planned = DeviceSums([one, two])
    first, second = planned.take()
    assert first != second
    kept = one.clone()
    one.copy_(two)
    two.copy_(kept)
    assert planned.take() == [second, first]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(6, 8).t(),
        torch.randn(4, 5, 6).permute(2, 0, 1),
        torch.randn(10, 10)[:, ::2],
        torch.randn(3, 1).expand(3, 4),
        torch.randn(5, dtype=torch.complex64),
        torch.randn(7).to(torch.float16)[1:6],
        torch.tensor(3.0),
        torch.ones(9, dtype=torch.bool),
    ],
    ids=["transposed", "permuted", "gaps", "expanded", "complex", "odd start", "scalar", "bool"],
)
def test_any_layout_is_read_where_it_lies(tensor):
    planned = DeviceSums([tensor])
    before = planned.take()
    assert planned.take() == before
    base = tensor.untyped_storage()
    place = tensor.storage_offset() * tensor.element_size()
    base[place] ^= 1
    assert planned.take() != before
    base[place] ^= 1
    assert planned.take() == before


def test_words_are_views_unless_memory_has_gaps():
    assert _words(torch.randn(6, 8).t()).dtype == torch.int32
    square = torch.randn(6, 8)
    assert _words(square.t()).data_ptr() == square.data_ptr()
    assert _words(torch.randn(10, 10)[:, ::2]).numel() == 50


@pytest.mark.cuda
def test_the_kernel_computes_the_same_numbers(cuda):
    assert _agrees(cuda)
    assert _kernel_works(cuda)
    for count in COUNTS:
        data = torch.randint(0, 255, (count,), dtype=torch.uint8)
        assert sums(data.to(cuda)) == sums(data), count


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_made_to_slip_through_are_seen_on_a_gpu(cuda, change, dtype):
    weight = torch.randn(300, 512).to(dtype)
    weight[5, 5] = weight[6, 6] = 0.0
    weight[2, 2] = float("nan")
    there = weight.to(cuda)
    assert sums(there) == sums(weight)
    before = sums(there)
    change(there)
    assert sums(there) != before
    assert sums(there) == sums(there.cpu())


@pytest.mark.cuda
def test_without_triton_the_numbers_are_the_same(cuda, monkeypatch):
    from lmstash.identity.memory import device_sums

    tensors = [torch.randn(1000, 700, device=cuda), torch.randn(5, device=cuda), torch.ones(3, dtype=bool, device=cuda)]
    with_it = DeviceSums(tensors).take()
    monkeypatch.setitem(device_sums._working, str(tensors[0].device), False)
    assert DeviceSums(tensors).take() == with_it
