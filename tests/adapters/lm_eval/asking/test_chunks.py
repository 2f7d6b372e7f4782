"""How many requests a model gets at once."""

from __future__ import annotations

import pytest

from lmstash.adapters.lm_eval.asking.chunks import Chunks


def sizes(batch_seconds: list[float], batch_size: int = 8) -> list[int]:
    """Sizes of chunks, in batches, where batches take so long, each time."""
    now = [0.0]
    chunks = Chunks(batch_size, clock=lambda: now[0])
    out = []
    for seconds in batch_seconds:
        out.append(chunks.size() // batch_size)

        def call(chunk: list[int], seconds: float = seconds) -> list[int]:
            now[0] += seconds * len(chunk) / batch_size
            return chunk

        chunks.timed(call, [0] * chunks.size())
    return out


@pytest.mark.parametrize(
    ("batch_seconds", "expected"),
    [
        ([8.0] * 4, [1, 2, 1, 1]),
        ([1.5] * 4, [1, 2, 1, 1]),
        ([0.5] * 5, [1, 2, 4, 4, 4]),
        ([0.01] * 9, [1, 2, 4, 8, 16, 32, 64, 128, 200]),
        ([30.0, 0.5, 0.5, 0.5], [1, 2, 4, 4]),
        ([0.1, 0.1, 0.1, 5.0, 5.0], [1, 2, 4, 8, 1]),
    ],
)
def test_a_chunk_is_one_batch_or_what_should_be_done_in_two_seconds(
    batch_seconds: list[float], expected: list[int]
) -> None:
    assert sizes(batch_seconds) == expected


def side_by_side(n_at_once: int, request_seconds: float, n_requests: int, batch_size: int = 1) -> list[int]:
    """Sizes of chunks for a model that has so many requests answered at the same time, and says nothing of it."""
    now = [0.0]
    chunks = Chunks(batch_size, clock=lambda: now[0])
    out: list[int] = []

    def call(chunk: list[int]) -> list[int]:
        now[0] += request_seconds * -(-len(chunk) // n_at_once)
        return chunk

    while sum(out) < n_requests:
        out.append(min(chunks.size(), n_requests - sum(out)))
        chunks.timed(call, [0] * out[-1])
    return out


@pytest.mark.parametrize("request_seconds", [1.2, 8.0, 60.0])
def test_more_at_once_are_found_to_help_where_nothing_says_so(request_seconds: float) -> None:
    found = side_by_side(32, request_seconds, 400)
    assert found[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert min(found[7:-1]) >= 32


def test_that_more_at_once_are_no_help_is_found_out_once_in_a_while() -> None:
    found = side_by_side(1, 8.0, 200)
    assert found[:18] == [1, 2, *[1] * 16]
    assert set(found) == {1, 2}
    assert found.count(2) == 4


def test_what_became_slow_is_made_smaller_first_though_more_are_due_to_be_tried() -> None:
    assert sizes([0.2] * 17 + [60.0] * 3)[-3:] == [10, 1, 2]


def test_chunks_of_no_time_are_bounded_and_whole_batches() -> None:
    assert max(sizes([0.0] * 30, 1000)) == 4
    assert max(sizes([0.0] * 30, 10_000)) == 1


def test_the_last_chunk_which_is_smaller_teaches_nothing() -> None:
    now = [0.0]
    chunks = Chunks(8, clock=lambda: now[0])
    chunks.timed(lambda chunk: chunk, [0] * 5)
    assert chunks.size() == 8


def test_a_size_that_is_given_stays() -> None:
    chunks = Chunks(8, 3)
    chunks.timed(lambda chunk: chunk, [0] * 3)
    assert chunks.size() == 3
