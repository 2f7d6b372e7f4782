import pytest
import torch

from lmstash.caches.activations.pooling import check_pool, check_token_index, pack_tokens, pool_tokens, token_of_all
from lmstash.errors import InvalidArgumentError

POOLS = ["last", "first", "mean", "max", 1, -2]


def by_hand(values: torch.Tensor, pool) -> torch.Tensor:
    if pool == "last":
        return values[-1]
    if pool == "first":
        return values[0]
    if pool == "mean":
        return values.double().mean(0).to(values.dtype)
    if pool == "max":
        return values.max(0).values
    return values[pool]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_poisoned_padding_never_shows(pool, dtype):
    torch.manual_seed(0)
    lengths = torch.tensor([2, 5, 3])
    hidden = torch.randn(3, 7, 6).to(dtype)
    for row, length in enumerate(lengths):
        hidden[row, length:] = float("nan") if row else float("inf")
    pooled = pool_tokens(hidden, lengths, pool)
    assert pooled.dtype == dtype
    expected = torch.stack([by_hand(hidden[row, :length], pool) for row, length in enumerate(lengths)])
    torch.testing.assert_close(
        pooled, expected, rtol=2e-3 if dtype == torch.float16 else None, atol=None if dtype != torch.float16 else 1e-3
    )


@pytest.mark.parametrize("pool", POOLS)
def test_nan_and_infinity_of_real_tokens_pass_through(pool):
    hidden = torch.tensor([[[float("nan"), float("inf"), 1.0]] * 3])
    pooled = pool_tokens(hidden, torch.tensor([3]), pool)[0]
    assert torch.isnan(pooled[0])
    assert pooled[1] == float("inf")
    assert pooled[2] == 1.0


def test_a_max_over_tokens_that_are_all_minus_infinity_is_minus_infinity():
    hidden = torch.full((1, 2, 1), float("-inf"))
    assert pool_tokens(hidden, torch.tensor([2]), "max").item() == float("-inf")


def test_means_accumulate_in_float32():
    hidden = torch.full((1, 4000, 1), 1.001953125).to(torch.float16)  # a float16 sum would stick at 2048
    assert pool_tokens(hidden, torch.tensor([4000]), "mean").item() == hidden[0, 0, 0].item()


@pytest.mark.parametrize("pool", POOLS)
def test_a_pooled_value_is_a_copy(pool):
    hidden = torch.randn(2, 3, 4)
    before = hidden.clone()
    pool_tokens(hidden, torch.tensor([3, 3]), pool).zero_()
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("lengths", [[3], [3, 3], [2, 3], [1, 3]])
@pytest.mark.parametrize("pool", ["last", "first", "mean", "max", 1, -1, -2])
def test_one_place_for_all_is_where_pooling_reads(pool, lengths):
    hidden = torch.randn(len(lengths), 3, 4)
    place = token_of_all(pool, lengths)
    known = pool in ("first", 1) or (pool not in ("mean", "max") and len(set(lengths)) == 1)
    assert (place is not None) == known
    if place is not None:
        assert torch.equal(hidden[:, place], pool_tokens(hidden, torch.tensor(lengths), check_pool(pool)))


def test_packing_keeps_real_tokens_in_order():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    packed = pack_tokens(hidden, torch.tensor([0, 3, 4, 5]))
    assert torch.equal(packed, torch.cat([hidden[0, :1], hidden[1]]))


def test_two_names_of_one_pooling_are_one():
    assert check_pool(-1) == "last"
    assert check_pool(0) == "first"
    assert check_pool(-2) == -2


@pytest.mark.parametrize("pool", ["median", True, 1.0, [1], ""])
def test_what_is_no_pooling_is_refused(pool):
    with pytest.raises(InvalidArgumentError, match="pool="):
        check_pool(pool)


@pytest.mark.parametrize("pool", [3, -4])
def test_a_token_index_beyond_a_prompt_names_the_prompt(pool):
    with pytest.raises(InvalidArgumentError, match="prompt 1 has only 3 tokens"):
        check_token_index(pool, [4, 3])
