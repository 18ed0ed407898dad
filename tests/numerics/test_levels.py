from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.numerics.levels import (
    CODES,
    LEVEL_BIAS_MAX,
    LEVEL_BIAS_MIN,
    LEVEL_MAX,
    LEVELS,
    level_integers,
    level_value,
    nearest_codes,
)
from tests.numerics import reference
from tests.vectors import vectors


@pytest.mark.parametrize("vector", vectors("codec-1", "levels"))
def test_the_vectors_hold(vector: dict[str, Any], device: torch.device) -> None:
    assert list(LEVELS) == vector["integers"]
    assert level_integers(torch.arange(CODES, device=device)).tolist() == vector["integers"]
    for numerator, denominator, code in vector["nearest"]:
        doubled = torch.tensor([-(-2 * numerator // denominator)], device=device)
        assert nearest_codes(doubled).tolist() == [code]


def test_code_0_is_zero_and_the_smallest_level_is_9_units() -> None:
    assert (LEVELS[0], LEVELS[1]) == (0, 9)
    assert LEVELS[-1] == LEVEL_MAX == 15 << 31


def test_levels_rise_with_the_code() -> None:
    assert sorted(set(LEVELS)) == list(LEVELS)


@pytest.mark.parametrize("bias", [LEVEL_BIAS_MIN, 32, LEVEL_BIAS_MAX])
def test_every_level_is_a_normal_float32(bias: int) -> None:
    values = torch.tensor([level_value(code, bias) for code in range(CODES)], dtype=torch.float32)
    exact = [Fraction(level) / 2**bias for level in LEVELS]
    assert [Fraction(value) for value in values.tolist()] == exact
    assert values[1] >= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("bias", [LEVEL_BIAS_MIN - 1, LEVEL_BIAS_MAX + 1])
def test_a_bias_with_inexact_levels_is_refused(bias: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.129"):
        level_value(1, bias)


@given(numerator=st.integers(0, 2**45), denominator=st.integers(1, 2**20))
def test_the_nearest_code_is_that_of_exact_fractions(numerator: int, denominator: int) -> None:
    doubled = torch.tensor([-(-2 * numerator // denominator)])
    assert nearest_codes(doubled).tolist() == [reference.nearest_code(Fraction(numerator, denominator))]


@given(code=st.integers(0, 254), denominator=st.integers(1, 2**16))
def test_halfway_between_two_levels_the_lower_one_is_nearest(code: int, denominator: int) -> None:
    middle = (LEVELS[code] + LEVELS[code + 1]) * denominator  # twice the numerator
    doubled = torch.tensor([-(-middle // denominator), -(-(middle + 1) // denominator)])
    assert nearest_codes(doubled).tolist() == [code, code + 1]
