"""The GPU path: codec-1 and the end of a round as Triton kernels, one program for each chunk. Same bytes as elsewhere.

`_choose` reads the accumulator once, keeps the chunk in registers, finds the k-th largest pattern bit by bit, and
writes what is sent; `_lay_out` makes bytes of it. `_move` decodes a result and applies it. All is integers, but for the
last subtraction, which is rounded as everywhere. Imported only where Triton is.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat
from p2pnet.numerics.levels import LEVELS, midpoints

_AT_A_TIME = 1 << 13  # chunks, so that what lies between the kernels is small beside the parameters
_PASSES = tl.constexpr(4)  # Lloyd's
_INFINITY_BITS = tl.constexpr(0x7F800000)
_LARGEST = tl.constexpr(0x7FFFFFFF)


def encode(a: Tensor, fmt: ChunkFormat, level_bias: int, payload: Tensor) -> int:
    """Write the payload of (chunks, 4096) float32. returns: a chunk that holds a NaN or infinity, or -1."""
    chunks, device = a.shape[0], a.device
    bad = torch.full((1,), chunks, dtype=torch.int32, device=device)
    for start in range(0, chunks, _AT_A_TIME):
        block = slice(start, min(start + _AT_A_TIME, chunks))
        _encode(a[block], fmt, level_bias, payload[block], bad, start)
    first = int(bad)
    return first if first < chunks else -1


def _encode(a: Tensor, fmt: ChunkFormat, level_bias: int, payload: Tensor, bad: Tensor, start: int) -> None:
    chunks, device, k, width = a.shape[0], a.device, fmt.k, 8 * fmt.upper_bytes
    indices = torch.zeros((chunks, k), dtype=torch.int16, device=device)
    signs = torch.zeros((chunks, k), dtype=torch.uint8, device=device)
    selectors = torch.zeros((chunks, k if fmt.selector_bits else 0), dtype=torch.uint8, device=device)
    marks = torch.zeros((chunks, width), dtype=torch.uint8, device=device)
    _choose[(chunks,)](
        a.view(torch.int32), indices, signs, selectors, marks, payload, bad, _midpoints(device), _level_table(device),
        start, k, level_bias, width, fmt.chunk_bytes,
        LOW_BITS=fmt.low_bits, LEVELS=fmt.levels, IS_MAP=fmt.is_map, CHUNK=CHUNK_VALUES, num_warps=8,
    )  # fmt: skip
    sizes = (fmt.low_bytes, fmt.upper_bytes, fmt.sign_bytes, fmt.selector_bytes)
    _lay_out[(chunks,)](
        indices, signs, selectors, marks, payload, k, width, fmt.chunk_bytes, *sizes,
        LOW_BITS=fmt.low_bits, SELECTOR_BITS=fmt.selector_bits, BLOCK=triton.next_power_of_2(max(sizes)), num_warps=1,
    )  # fmt: skip


def move(theta: Tensor, result: Tensor, fmt: ChunkFormat, steps: Tensor) -> None:
    """Apply a valid result: theta' = float32(float64(theta) - step). steps: (512,) float64, by code, then negated."""
    if theta.shape[0] == 0:
        return
    _, upper, signs, selectors, levels = fmt.sections
    _move[(theta.shape[0],)](
        theta, result, steps, fmt.chunk_bytes, upper.start, signs.start, selectors.start, levels.start,
        LOW_BITS=fmt.low_bits, SELECTOR_BITS=fmt.selector_bits, IS_MAP=fmt.is_map,
        WIDTH=8 * fmt.upper_bytes, LANES=triton.next_power_of_2(8 * fmt.upper_bytes), num_warps=4,
    )  # fmt: skip


@triton.jit
def _nearest_code(doubled, midpoints):
    """The code nearest to a level, of ceil(2 v): how many midpoints are under it."""
    return tl.sum((tl.load(midpoints + tl.arange(0, 256)) < doubled).to(tl.int32), 0)


@triton.jit
def _mean(total, count, otherwise):
    """Rounded down; a level without values stays."""
    return tl.where(count > 0, total // tl.maximum(count, 1), otherwise)


@triton.jit
def _over(wide, chosen, edge):
    """How many of the chosen magnitudes are over half of an edge, and their sum."""
    is_over = chosen & (wide * 2 > edge)
    return tl.sum(is_over.to(tl.int64), 0), tl.sum(tl.where(is_over, wide, 0), 0)


@triton.jit
def _two_levels(wide, chosen, k, least, most, mean):
    """See selection.lloyd_levels."""
    first, second, total = least, tl.where(least == 0, mean, most), tl.sum(wide, 0)
    for _ in range(_PASSES):
        over, over_total = _over(wide, chosen, first + second)
        first = tl.where(least == 0, 0, _mean(total - over_total, k - over, first))
        second = _mean(over_total, over, second)
    return first, second


@triton.jit
def _four_levels(wide, chosen, k, least, most, low, high):
    """See selection.lloyd_levels."""
    first = tl.where(least == 0, 0, (least + low) // 2)
    second = tl.where(least == 0, high // 2, low)
    third, fourth, total = high, (high + most) // 2, tl.sum(wide, 0)
    for _ in range(_PASSES):
        over_1, total_1 = _over(wide, chosen, first + second)
        over_2, total_2 = _over(wide, chosen, second + third)
        over_3, total_3 = _over(wide, chosen, third + fourth)
        first = tl.where(least == 0, 0, _mean(total - total_1, k - over_1, first))
        second = _mean(total_1 - total_2, over_1 - over_2, second)
        third = _mean(total_2 - total_3, over_2 - over_3, third)
        fourth = _mean(total_3, over_3, fourth)
    return first, second, third, fourth


@triton.jit
def _choose_largest(pattern, k):
    """The k largest, the lower places of equal ones: the k-th largest pattern from its highest bit down."""
    last = 0
    for step in range(31):
        wanted = last | (1 << (30 - step))
        last = tl.where(tl.sum((pattern >= wanted).to(tl.int32), 0) >= k, wanted, last)
    is_larger, is_equal = pattern > last, pattern == last
    room = k - tl.sum(is_larger.to(tl.int32), 0)
    return is_larger | (is_equal & (tl.cumsum(is_equal.to(tl.int32), 0) <= room))


@triton.jit
def _say_levels(levels, sent, selector, code_1, code_2, code_3, code_4, LEVELS: tl.constexpr):
    """Write the codes that occur, each once, the last one again in what is left: see codec.pack.

    returns: for each value the number of its level, and whether that is not zero.
    """
    said, lowest, count = -1, 0, 0
    number = selector * 0
    code = code_1
    for j in tl.static_range(LEVELS):
        code = code_1 if j == 0 else (code_2 if j == 1 else (code_3 if j == 2 else code_4))
        is_used = tl.max((sent & (selector == j)).to(tl.int32), 0) > 0
        is_new = is_used.to(tl.int32) * (code != said).to(tl.int32) > 0
        tl.store(levels + count, code.to(tl.uint8), mask=is_new)
        lowest = tl.where((count == 0) & is_new, code, lowest)
        said = tl.where(is_new, code, said)
        count += is_new.to(tl.int32)
        number = tl.where(selector == j, count - 1, number)
    for j in tl.static_range(LEVELS):
        tl.store(levels + j, said.to(tl.uint8), mask=j >= count)
    return number, number + (lowest > 0).to(tl.int32) > 0


@triton.jit
def _choose(
    a, indices, signs, selectors, marks, payload, bad, midpoints, level_table,
    start, k, level_bias, width, chunk_bytes,
    LOW_BITS: tl.constexpr, LEVELS: tl.constexpr, IS_MAP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CHUNK)
    bits = tl.load(a + chunk * CHUNK + place)
    pattern = bits & _LARGEST
    top = tl.max(pattern, 0)
    if top >= _INFINITY_BITS:
        tl.atomic_min(bad, start + tl.program_id(0))
    chosen = _choose_largest(pattern, k)

    # To integers in units of the largest one's last bit, rounded down.
    top_exponent = tl.maximum(top >> 23, 1)
    mantissa = (pattern & 0x7FFFFF) | ((pattern >= (1 << 23)).to(tl.int32) << 23)
    magnitude = mantissa >> tl.minimum(top_exponent - tl.maximum(pattern >> 23, 1), 31)
    wide = tl.where(chosen, magnitude, 0).to(tl.int64)
    mean = tl.sum(wide, 0) // tl.maximum(tl.sum((wide > 0).to(tl.int64), 0), 1)
    least = tl.min(tl.where(chosen, magnitude, _LARGEST), 0).to(tl.int64)
    most = tl.max(tl.where(chosen, magnitude, 0), 0).to(tl.int64)
    shift = tl.minimum(tl.maximum(top_exponent - 150 + level_bias, -25), 36).to(tl.int64)
    up, down = tl.maximum(shift, 0), tl.maximum(-shift, 0)
    rounding = (tl.full((), 1, tl.int64) << down) - 1

    first, second, third, fourth = mean, mean, mean, mean
    if LEVELS >= 2:
        first, second = _two_levels(wide, chosen, k, least, most, mean)
    if LEVELS == 4:
        first, second, third, fourth = _four_levels(wide, chosen, k, least, most, first, second)
    code_1 = _nearest_code(((first * 2 << up) + rounding) >> down, midpoints)
    code_2, code_3, code_4 = code_1, code_1, code_1
    selector = tl.zeros((CHUNK,), tl.int32)
    if LEVELS >= 2:
        code_2 = _nearest_code(((second * 2 << up) + rounding) >> down, midpoints)
        selector += _is_over(wide, up, down, code_1, code_2, level_table)
    if LEVELS == 4:
        code_3 = _nearest_code(((third * 2 << up) + rounding) >> down, midpoints)
        code_4 = _nearest_code(((fourth * 2 << up) + rounding) >> down, midpoints)
        selector += _is_over(wide, up, down, code_2, code_3, level_table)
        selector += _is_over(wide, up, down, code_3, code_4, level_table)

    levels = payload + (chunk + 1) * chunk_bytes - LEVELS
    if LEVELS == 1:  # zeros do not travel
        sent = tl.where(chosen, magnitude, 0) * (code_1 > 0).to(tl.int32) > 0
        has_level = sent
        tl.store(levels, code_1.to(tl.uint8))
    else:
        sent = chosen
        selector, has_level = _say_levels(levels, sent, selector, code_1, code_2, code_3, code_4, LEVELS)

    rank = tl.cumsum(sent.to(tl.int32), 0) - 1
    to = chunk * k + rank
    tl.store(indices + to, place.to(tl.int16), mask=sent)
    tl.store(signs + to, ((bits < 0) & has_level).to(tl.uint8), mask=sent)
    if LEVELS > 1:
        tl.store(selectors + to, selector.to(tl.uint8), mask=sent)
    bit = place if IS_MAP else (place >> LOW_BITS) + rank
    tl.store(marks + chunk * width + bit, tl.full((CHUNK,), 1, tl.uint8), mask=sent)


@triton.jit
def _is_over(wide, up, down, code, next_code, level_table):
    """Whether magnitudes are nearer to the next coded level. Returns 0 or 1 for each."""
    edge = (tl.load(level_table + code) + tl.load(level_table + next_code)) << down
    return ((wide * 2 << up) > edge).to(tl.int32)


@triton.jit
def _bits_of_fields(fields, byte, count, size, WIDTH: tl.constexpr):
    """The bytes of fields of WIDTH bits that lie back to back. fields: where they begin.   byte: which bytes."""
    out = tl.zeros(byte.shape, tl.int32)
    for bit in tl.static_range(8):
        at = byte * 8 + bit
        field = tl.load(fields + at // WIDTH, mask=(byte < size) & (at // WIDTH < count), other=0).to(tl.int32)
        out |= ((field >> (at % WIDTH)) & 1) << bit
    return out.to(tl.uint8)


@triton.jit
def _lay_out(
    indices, signs, selectors, marks, payload, k, width,
    chunk_bytes, low_bytes, upper_bytes, sign_bytes, selector_bytes,
    LOW_BITS: tl.constexpr, SELECTOR_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    byte = tl.arange(0, BLOCK)
    to = payload + chunk * chunk_bytes
    if LOW_BITS > 0:
        tl.store(to + byte, _bits_of_fields(indices + chunk * k, byte, k, low_bytes, LOW_BITS), mask=byte < low_bytes)
    to += low_bytes
    tl.store(to + byte, _bits_of_fields(marks + chunk * width, byte, width, upper_bytes, 1), mask=byte < upper_bytes)
    to += upper_bytes
    tl.store(to + byte, _bits_of_fields(signs + chunk * k, byte, k, sign_bytes, 1), mask=byte < sign_bytes)
    to += sign_bytes
    if SELECTOR_BITS > 0:
        said = _bits_of_fields(selectors + chunk * k, byte, k, selector_bytes, SELECTOR_BITS)
        tl.store(to + byte, said, mask=byte < selector_bytes)


@triton.jit
def _field(section, number, mask, WIDTH: tl.constexpr):
    """Field `number` of a section. Its second byte may lie behind the section, and is not looked at then."""
    bit = number * WIDTH
    low = tl.load(section + bit // 8, mask=mask, other=0).to(tl.int32)
    is_split = mask & (bit % 8 + WIDTH > 8)
    high = tl.load(section + bit // 8 + 1, mask=is_split, other=0).to(tl.int32)
    return ((low | (high << 8)) >> (bit % 8)) & ((1 << WIDTH) - 1)


@triton.jit
def _move(
    theta, result, steps, chunk_bytes, upper_at, signs_at, selectors_at, levels_at,
    LOW_BITS: tl.constexpr, SELECTOR_BITS: tl.constexpr, IS_MAP: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    said = result + chunk * chunk_bytes
    place = tl.arange(0, LANES)
    is_inside = place < WIDTH
    word = tl.load(said + upper_at + place // 8, mask=is_inside, other=0).to(tl.int32)
    is_one = is_inside & (((word >> (place % 8)) & 1) > 0)
    rank = tl.cumsum(is_one.to(tl.int32), 0) - 1
    index = place
    if not IS_MAP:
        index = place - rank
    if LOW_BITS > 0:
        index = (index << LOW_BITS) | _field(said, rank, is_one, LOW_BITS)
    negative = _field(said + signs_at, rank, is_one, 1)
    selector = tl.zeros((LANES,), tl.int32)
    if SELECTOR_BITS > 0:
        selector = _field(said + selectors_at, rank, is_one, SELECTOR_BITS)
    code = tl.load(said + levels_at + selector, mask=is_one, other=0).to(tl.int32)
    step = tl.load(steps + code + 256 * negative, mask=is_one, other=0.0)
    at = theta + chunk * 4096 + index
    before = tl.load(at, mask=is_one, other=0.0)
    tl.store(at, (before.to(tl.float64) - step).to(tl.float32), mask=is_one)


@cache
def _midpoints(device: torch.device) -> Tensor:
    """Return (256,) int64: twice the boundaries between levels, and one that nothing reaches."""
    return torch.cat([midpoints(device), torch.tensor([2**62], device=device)])


@cache
def _level_table(device: torch.device) -> Tensor:
    """Return (256,) int64: the level of each code."""
    return torch.tensor(LEVELS, dtype=torch.int64, device=device)
