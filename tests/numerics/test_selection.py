from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2pnet.numerics.selection import largest_among, largest_indices, lloyd_levels
from tests.numerics import reference
from tests.numerics.samples import made_up_chunks, sizes


def ranked(magnitudes: Tensor, k: int) -> list[list[int]]:
    return [reference.largest(row, k) for row in magnitudes.tolist()]


@given(values=made_up_chunks, k=sizes)
def test_the_largest_are_those_of_a_stable_sort(values: Tensor, k: int) -> None:
    bits = values.view(torch.int32) & 0x7FFFFFFF
    assert largest_indices(bits, k).tolist() == ranked(bits, k)


@given(seed=st.integers(0, 2**32), k=sizes, limit=st.sampled_from([1, 2, 5, 100, 2**52]), share=st.floats(0, 0.1))
def test_the_largest_sums_too(seed: int, k: int, limit: int, share: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    sums = torch.randint(0, limit, (2, 4096), generator=rng) * (torch.rand((2, 4096), generator=rng) < share)
    assert largest_indices(sums, k).tolist() == ranked(sums, k)


@given(
    seed=st.integers(0, 2**32),
    k=sizes,
    limit=st.sampled_from([1, 2, 5, 2**51 - 1]),
    senders=st.integers(1, 8),
    each=st.sampled_from([8, 64, 300]),
)
def test_among_those_that_somebody_named_are_the_same_largest(
    seed: int, k: int, limit: int, senders: int, each: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    named = torch.randint(0, 4096, (2, senders * each), generator=rng)  # some of them twice
    sums = torch.zeros((2, 4096), dtype=torch.int64)
    sums.scatter_(1, named, torch.randint(-limit, limit + 1, named.shape, generator=rng))
    assert largest_among(sums, named, k).tolist() == ranked(sums.abs(), k)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_zeros_are_filled_up_from_the_lowest_free_index(dtype: torch.dtype, device: torch.device) -> None:
    row = torch.zeros((1, 4096), dtype=dtype, device=device)
    row[0, [1, 3, 4000]] = 7
    assert largest_indices(row, 8).tolist() == [[0, 1, 2, 3, 4, 5, 6, 4000]]


@given(
    rows=st.integers(1, 64).flatmap(
        lambda k: st.lists(st.lists(st.integers(0, 2**52), min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    count=st.sampled_from([2, 4]),
)
def test_lloyd_levels_are_those_of_python_integers(rows: list[list[int]], count: int) -> None:
    assert lloyd_levels(torch.tensor(rows), count).tolist() == [reference.lloyd(row, count) for row in rows]


@pytest.mark.parametrize("count", [2, 4])
@given(rows=st.lists(st.lists(st.integers(0, 40), min_size=9, max_size=9), min_size=1, max_size=4))
def test_levels_never_fall(rows: list[list[int]], count: int) -> None:
    levels = lloyd_levels(torch.tensor(rows), count)
    assert levels.tolist() == levels.sort(1).values.tolist()


def test_a_zero_among_the_values_keeps_the_low_level_at_zero() -> None:
    rows = torch.tensor([[0, 90, 100, 110], [1, 90, 100, 110], [0, 0, 0, 0]])
    assert lloyd_levels(rows, 2).tolist() == [[0, 100], [1, 100], [0, 0]]
    assert lloyd_levels(rows, 4)[:, 0].tolist() == [0, 1, 0]


def test_one_loud_value_beside_a_zero_does_not_silence_the_others() -> None:
    assert lloyd_levels(torch.tensor([[0, *[100] * 19, 500]]), 2).tolist() == [[0, 120]]


def test_the_largest_sums_that_are_allowed_do_not_overflow() -> None:
    largest = 15 * 2**39 * (2**20 // 1024)  # reduce.py: W * k' = 2^20 at k' = 1024
    for count in (2, 4):
        levels = lloyd_levels(torch.full((1, 1024), largest), count)
        assert levels[0, -2:].tolist() == [largest, largest]
