"""The 8-bit level code: what magnitudes a payload can say. Contract: protocols/codec-1.md.

A code c is 5 exponent bits E = c >> 3 over 3 mantissa bits m = c & 7. In units of 2^-level_bias it stands for the
integer (8 + m) << E, so its value is (8 + m) * 2^(E - level_bias). Code 0 stands for zero, not for 8: the smallest
positive level is 9 units (code 1). The integers rise with the code and fit 35 bits.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

CODES: Final = 256
LEVELS: Final = (0, *((8 + (code & 7)) << (code >> 3) for code in range(1, CODES)))  # units of 2^-level_bias
LEVEL_MAX: Final = LEVELS[-1]  # 15 << 31, under 2^35

# Every level of every bias in this range is a normal float32 and therefore exact: 9 * 2^-129 >= 2^-126, and
# 15 * 2^31 < 2^128. A swarm says which one it uses; the default was guessed to suit updates between 2e-9 and 7.5.
LEVEL_BIAS_MIN: Final = 0
LEVEL_BIAS_MAX: Final = 129
LEVEL_BIAS_DEFAULT: Final = 32


def level_value(code: int, level_bias: int) -> float:
    """Return the exact value of a level code, 0..255, for a bias of 0..129."""
    check_bias(level_bias)
    return LEVELS[code] * 2.0**-level_bias


def check_bias(level_bias: int) -> None:
    """Raise `ValueError` for a bias whose levels are not all normal float32 numbers."""
    if not LEVEL_BIAS_MIN <= level_bias <= LEVEL_BIAS_MAX:
        raise ValueError(f"level_bias is {level_bias}, allowed are {LEVEL_BIAS_MIN}..{LEVEL_BIAS_MAX}")


def nearest_codes(doubled: Tensor) -> Tensor:
    """Return the code whose level is nearest, the lower of two that are equally near, 255 for all beyond the last.

    doubled: int64, ceil(2 v) of the magnitudes v >= 0 in level units.   returns: int64 of the same shape, 0..255.

    Code c + 1 is nearer than code c where 2 v > level(c) + level(c + 1). The right side is an integer, so rounding 2 v
    up to one changes no comparison, and cross-multiplying by the denominator of v gives the same answer.
    """
    return torch.searchsorted(midpoints(doubled.device), doubled)


def level_integers(codes: Tensor) -> Tensor:
    """Return the integers of level codes. codes: int64, 0..255.   returns: int64 of the same shape, under 2^35."""
    return _levels(codes.device).index_select(0, codes.view(-1)).view(codes.shape)


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.int64, device=device)


@cache
def midpoints(device: torch.device) -> Tensor:
    """Return (255,) int64: twice the boundaries between neighbouring levels."""
    sums = [low + high for low, high in pairwise(LEVELS)]
    return torch.tensor(sums, dtype=torch.int64, device=device)
