import hashlib
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmstash.errors import InvalidArgumentError
from lmstash.identity.chain import BLOCK_TOKENS, chain_ids, chain_key, chain_root, tail_key
from lmstash.identity.tokens import digest_tokens, digests_after, hex_digests, token_bytes

ROOT = chain_root(b"m" * 32)
WHAT = {"kind": "activations", "site": "block_out.3", "layout": "t,h", "dtype": "bfloat16"}
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=200)


@given(tokens, st.integers(0, 200))
def test_a_prefix_of_the_tokens_has_a_prefix_of_the_ids(ids, cut):
    assert chain_ids(ROOT, ids[:cut]) == chain_ids(ROOT, ids)[: min(cut, len(ids)) // BLOCK_TOKENS]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=192, max_size=192), st.integers(0, 191))
def test_one_other_token_changes_its_block_and_all_later_ones_only(ids, place):
    other = [*ids[:place], ids[place] ^ 1, *ids[place + 1 :]]
    same = [left == right for left, right in zip(chain_ids(ROOT, ids), chain_ids(ROOT, other), strict=True)]
    assert same == [block < place // BLOCK_TOKENS for block in range(3)]


def test_a_chain_goes_on_from_any_block():
    ids = list(range(256))
    whole = chain_ids(ROOT, ids)
    assert len(whole) == 4
    assert chain_ids(whole[1], ids[128:]) == whole[2:]


@pytest.mark.parametrize(("count", "blocks"), [(0, 0), (1, 0), (63, 0), (64, 1), (65, 1), (127, 1), (128, 2)])
def test_only_full_blocks_have_ids(count, blocks):
    assert len(chain_ids(ROOT, range(count))) == blocks


def test_model_positions_and_salt_part_the_chains():
    roots = [
        ROOT,
        chain_root(b"n" * 32),
        chain_root(b"m" * 31),
        chain_root(b"m" * 32, position_scheme="left-padded"),
        chain_root(b"m" * 32, salt=""),
        chain_root(b"m" * 32, salt=b""),
        chain_root(b"m" * 32, salt="a"),
        chain_root(b"m" * 32, salt=b"a"),
    ]
    assert len(set(roots)) == len(roots)
    assert len({chain_ids(root, range(64))[0] for root in roots}) == len(roots)


def test_keys_of_kinds_sites_layouts_dtypes_and_tails_never_meet():
    (block,) = chain_ids(ROOT, range(64))
    keys = [chain_key(block, **WHAT), tail_key(block, 0, **WHAT), tail_key(block, 1, **WHAT)]
    for name in WHAT:
        other = {**WHAT, name: "other"}
        keys += [chain_key(block, **other), tail_key(block, 0, **other)]
    keys += [chain_key(ROOT, **WHAT), tail_key(ROOT, 0, **WHAT), ROOT, block, *chain_ids(block, range(64))]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}


def test_parts_of_a_key_cannot_be_shifted_into_each_other():
    left = chain_key(ROOT, kind="ab", site="c", layout="", dtype="")
    assert left != chain_key(ROOT, kind="a", site="bc", layout="", dtype="")


def test_the_chain_has_not_drifted():
    """These digests name entries on people's disks. If this fails, raise the version in the domains."""
    (block,) = chain_ids(ROOT, range(64))
    assert ROOT.hex() == "0d4a82f472c87e81adeafabe6a906275702466e85cccb646e0b9974181df2ee0"
    assert block.hex() == "c12e80b168bd90fae85e2621f5b49de5ee6969358eab67e19a13ebc16f34b17d"
    assert chain_key(block, **WHAT).hex() == "9aa4162e71709839fc928b82531c7028a95d6bea53f405ee95f6363fd8d1d237"
    assert tail_key(block, 7, **WHAT).hex() == "2f834b8c98cfd66c40d9fe6fa116c8b5fa3f2f0cc8525597b269ee0bd413746e"
    assert digest_tokens([1, 2, 3]).hex() == "eafd785831a2ac2d6ead37380cb7dae8b6bbca7defba03f08cc5e4b1f8927c66"


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u4", ">i8", ">u2"])
@pytest.mark.parametrize("count", [1, 2, 5000])
def test_every_integer_dtype_is_read_by_value(dtype, count):
    """Short and long arrays are checked in different ways; the one number out of range is at any place."""
    info = np.iinfo(dtype)
    top = min(info.max, 2**32 - 1)
    array = np.zeros(count, dtype)
    array[-1] = top
    assert token_bytes(array) == b"\0\0\0\0" * (count - 1) + int(top).to_bytes(4, "little")
    assert token_bytes(array[::2]) == token_bytes(array[::2].tolist())
    for wrong in {info.min, -1, 2**32, info.max}:
        if info.min <= wrong <= info.max and not 0 <= wrong < 2**32:
            for place in {0, count // 2, count - 1}:
                bad = np.zeros(count, dtype)
                bad[place] = wrong
                with pytest.raises(InvalidArgumentError, match="2\\*\\*32"):
                    token_bytes(bad)


@given(tokens)
def test_lists_tuples_arrays_and_tensors_of_the_same_ids_are_the_same(ids):
    digest = digest_tokens(ids)
    assert digest_tokens(tuple(ids)) == digest
    assert digest_tokens(np.array(ids, np.int64)) == digest
    assert digest_tokens(np.array(ids, np.uint32)) == digest
    assert digest_tokens(np.array(ids, ">i8")) == digest
    assert digest_tokens(torch.tensor(ids, dtype=torch.int64)) == digest
    assert chain_ids(ROOT, torch.tensor(ids, dtype=torch.int64)) == chain_ids(ROOT, ids)


@given(st.lists(tokens, max_size=20))
def test_digests_of_many_are_those_of_each(lists):
    assert hex_digests([token_bytes(ids) for ids in lists]) == [digest_tokens(ids).hex() for ids in lists]


@given(st.binary(max_size=200), st.lists(st.binary(max_size=200), max_size=20))
def test_digests_after_one_beginning_are_those_of_the_whole(head, tails):
    assert digests_after(head, tails) == [hashlib.sha256(head + tail).digest() for tail in tails]


def test_strided_arrays_are_read_in_their_own_order():
    assert digest_tokens(np.arange(10)[::2]) == digest_tokens([0, 2, 4, 6, 8])
    assert digest_tokens(torch.arange(10)[1::3]) == digest_tokens([1, 4, 7])


def test_how_many_tokens_there_are_counts():
    assert len({digest_tokens([0] * count) for count in range(5)}) == 5


@pytest.mark.parametrize(
    "ids",
    [
        [-1],
        [2**32],
        [1.0],
        ["a"],
        [None],
        "text",
        b"bytes",
        np.array([[1, 2]]),
        np.array([1.0]),
        np.array([-1]),
        np.array([2**32]),
        np.array([True]),
        torch.tensor([[1]]),
        torch.tensor([0.5]),
        np.int64(3),
        5,
    ],
)
def test_what_is_not_a_row_of_token_ids_is_refused(ids):
    with pytest.raises(InvalidArgumentError):
        token_bytes(ids)
    with pytest.raises(InvalidArgumentError):
        chain_ids(ROOT, ids)


@pytest.mark.parametrize("token", [-1, 2**32, 1.5, "a"])
def test_a_tail_needs_a_token_id(token):
    with pytest.raises(InvalidArgumentError, match="token id"):
        tail_key(ROOT, token, **WHAT)


@pytest.mark.parametrize("call", [chain_ids, chain_key, tail_key])
def test_what_is_not_a_chain_id_is_refused(call):
    arguments = {"ids": [1], "first_token": 1, **WHAT}
    wanted = inspect.signature(call).parameters
    with pytest.raises(InvalidArgumentError, match="32 bytes"):
        call(b"short", **{name: value for name, value in arguments.items() if name in wanted})
