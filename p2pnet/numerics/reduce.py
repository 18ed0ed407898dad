"""Reduce: from the members' slices of one part to its result, in integers. Contract: protocols/reduce-1.md.

Why int64 is enough. A level is at most 15 * 2^31, a clip factor 2^8, and the weights sum to at most W, so for every
coordinate |S| <= 15 * 2^39 * W. The largest number formed is the sum of k' of them, at most 15 * 2^39 * W * k', which
is at most 15 * 2^59 < 2^63 while W * k' <= 2^20. Then W <= 2^17, as k' >= 8, so that 2 |S|, 2 |S| + 256 W and 256 W
times the sum of two levels stay under 2^61 + 2^25. 64 members of weight 8 have W = 512, so that every k' up to 2048 is
allowed. Norms are Python integers and have no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Final

import torch
from torch import Tensor

from p2pnet.errors import WireError
from p2pnet.numerics import native
from p2pnet.numerics.bits import count_bits, unpack_fields
from p2pnet.numerics.codec import Payload, as_bytes, as_chunks, chunk_blocks, decode, nearest_levels, pack
from p2pnet.numerics.formats import CHUNK_VALUES, WEIGHT_TIMES_K_MAX, ChunkFormat
from p2pnet.numerics.levels import CODES, LEVELS, nearest_codes
from p2pnet.numerics.selection import largest_among, largest_indices, levels_of

CLIP_ONE: Final = 256  # the clip factor that leaves a slice as it is
WEIGHT_MAX: Final = 8
LEAF_CHUNKS: Final = 16
NORM_BLOCK_LEAVES: Final = 1024  # whose levels are counted at a time, in 2 MiB
FEW_WEIGHT_MAX: Final = 256  # |S| <= 15 * 2^39 * 2^8 < 2^51, as `largest_among` needs it


@dataclass(frozen=True, slots=True)
class Reduction:
    """One part's result: its encoded chunks, and each input's clip factor q (of 256), in the order of the inputs."""

    output: bytes
    clips: list[int]
    norms: list[list[int]]  # of each input: the norm^2 of each of its leaves


def reduce_part(
    slices: Sequence[Payload],
    weights: Sequence[int],
    total_weight: int,
    fmt_in: ChunkFormat,
    fmt_out: ChunkFormat,
) -> Reduction:
    """Clip every member's slice to the median norm, sum, and encode what the k' largest sums are of the total weight.

    slices: the same part of each member's payload, (chunks, fmt_in.chunk_bytes) uint8 or bytes, on one device.
    weights: 1..8 for each.   total_weight: of the whole roster, senders or not.
    Raises `WireError` for a malformed slice. The order of the inputs changes nothing.
    """
    data = _same_chunks(slices, fmt_in)
    norms = [leaf_norms(piece, fmt_in) for piece in data]
    clips = clip_factors([sum(each) for each in norms])
    return Reduction(_reduce(data, weights, clips, total_weight, fmt_in, fmt_out), clips, norms)


def reduce_leaf(
    slices: Sequence[Payload],
    weights: Sequence[int],
    clips: Sequence[int],
    total_weight: int,
    fmt_in: ChunkFormat,
    fmt_out: ChunkFormat,
) -> bytes:
    """Recompute some chunks of a part, such as one leaf, with the clip factors that its reducer signed.

    As `reduce_part`, given the same chunks of each input only; returns those of its output, byte for byte.
    """
    return _reduce(_same_chunks(slices, fmt_in), weights, clips, total_weight, fmt_in, fmt_out)


def squared_norm(piece: Payload, fmt: ChunkFormat) -> int:
    """Return the squared length of a slice in level units, exact.   piece: as for `reduce_part`."""
    return sum(leaf_norms(piece, fmt))


def leaf_norms(piece: Payload, fmt: ChunkFormat) -> list[int]:
    """Return the squared length of each leaf of a slice in level units, exact, from how often each level occurs.

    piece: as for `reduce_part`; its indices are not looked at.
    """
    data, norms = as_chunks(piece, fmt), list[int]()
    for start in range(0, data.shape[0], NORM_BLOCK_LEAVES * LEAF_CHUNKS):
        block = data[start : start + NORM_BLOCK_LEAVES * LEAF_CHUNKS]
        _, upper, _, selectors, levels = (block[:, section] for section in fmt.sections)
        leaves = -(-block.shape[0] // LEAF_CHUNKS)
        codes = (
            levels.to(torch.int64) + CODES * (torch.arange(block.shape[0], device=data.device) // LEAF_CHUNKS)[:, None]
        )
        histogram = torch.zeros(leaves * CODES, dtype=torch.int64, device=data.device)
        if fmt.value_bits == 1:
            histogram.index_add_(0, codes[:, 0], count_bits(upper))
        else:
            planes = unpack_fields(selectors, fmt.k, fmt.selector_bits)
            for number in range(fmt.levels):
                histogram.index_add_(0, codes[:, number], (planes == number).sum(1))
        found = [0] * leaves
        used = histogram.nonzero().view(-1)
        for place, count in zip(used.tolist(), histogram[used].tolist(), strict=True):
            found[place // CODES] += count * LEVELS[place % CODES] ** 2
        norms += found
    return norms


def clip_factors(squared_norms: Sequence[int]) -> list[int]:
    """Return for each norm^2 the largest q <= 256 with q^2 norm^2 <= 256^2 median^2.

    The median is the lower one of those that are not zero. A slice of zeros keeps 256, and one of more than 256 times
    the median counts for nothing.
    """
    some = sorted(norm for norm in squared_norms if norm)
    median = some[(len(some) - 1) // 2] if some else 0
    return [min(CLIP_ONE, isqrt(CLIP_ONE**2 * median // norm)) if norm else CLIP_ONE for norm in squared_norms]


def _reduce(
    data: Sequence[Tensor],
    weights: Sequence[int],
    clips: Sequence[int],
    total_weight: int,
    fmt_in: ChunkFormat,
    fmt_out: ChunkFormat,
) -> bytes:
    _check_factors(len(data), weights, clips, total_weight, fmt_out)
    chunks, device = data[0].shape[0], data[0].device
    factors = [weight * clip for weight, clip in zip(weights, clips, strict=True)]
    output = torch.empty((chunks, fmt_out.chunk_bytes), dtype=torch.uint8, device=device)
    if native.usable(*data) and native.reduce(data, factors, CLIP_ONE * total_weight, fmt_in, fmt_out, output):
        return as_bytes(output)
    tables = [_signed_levels(device) * factor for factor in factors]
    for block in chunk_blocks(chunks, device):
        sums = torch.zeros((block.stop - block.start, CHUNK_VALUES), dtype=torch.int64, device=device)
        named: list[Tensor] = []
        for number, (piece, table) in enumerate(zip(data, tables, strict=True)):
            try:
                sparse = decode(piece[block], fmt_in, first_chunk=block.start)
            except WireError as error:
                raise _of_input(number, error) from None
            values = sparse.look_up(table)
            named.append(sparse.indices.to(torch.int64))
            sums.scatter_add_(1, named[-1], values)
        few = torch.cat(named, dim=1) if total_weight <= FEW_WEIGHT_MAX else None
        output[block] = _encode_sums(sums, few, CLIP_ONE * total_weight, fmt_out)
    return as_bytes(output)


def _encode_sums(sums: Tensor, named: Tensor | None, divisor: int, fmt: ChunkFormat) -> Tensor:
    """Return the k' largest |S| of each chunk at the format's levels of |S| / divisor.

    sums: (rows, 4096) int64.   named: (rows, n) int64, indices that hold all sums but zeros; None: not known.
    """
    indices = largest_indices(sums.abs(), fmt.k) if named is None else largest_among(sums, named, fmt.k)
    chosen = sums.gather(1, indices)
    magnitudes = chosen.abs()
    levels = nearest_codes((levels_of(magnitudes, fmt.levels) * 2 + (divisor - 1)) // divisor)
    codes = nearest_levels(magnitudes * 2, levels, lambda sums: sums * divisor)
    return pack(indices, codes, (chosen < 0) & (codes > 0), fmt)


def _same_chunks(slices: Sequence[Payload], fmt: ChunkFormat) -> list[Tensor]:
    if not slices:
        raise ValueError("a part without inputs has no result")
    data: list[Tensor] = []
    for number, piece in enumerate(slices):
        try:
            data.append(as_chunks(piece, fmt, data[0].shape[0] if data else None))
        except WireError as error:
            raise _of_input(number, error) from None
    return data


def _of_input(number: int, error: WireError) -> WireError:
    return WireError(error.rule, f"input {number}: {error.detail}")


def _check_factors(
    inputs: int, weights: Sequence[int], clips: Sequence[int], total_weight: int, fmt_out: ChunkFormat
) -> None:
    if not len(weights) == len(clips) == inputs:
        raise ValueError(f"{inputs} slices, {len(weights)} weights, {len(clips)} clip factors")
    if not all(1 <= weight <= WEIGHT_MAX for weight in weights) or not all(0 <= clip <= CLIP_ONE for clip in clips):
        raise ValueError(f"weights {weights} (1..{WEIGHT_MAX}), clip factors {clips} (0..{CLIP_ONE})")
    if total_weight < sum(weights):
        raise ValueError(f"total weight {total_weight} under the sum of the inputs' weights {sum(weights)}")
    if total_weight * fmt_out.k > WEIGHT_TIMES_K_MAX:
        raise ValueError(f"total weight {total_weight} times k' {fmt_out.k} is over {WEIGHT_TIMES_K_MAX}")


@cache
def _signed_levels(device: torch.device) -> Tensor:
    """Return (512,) int64: the level of each code, then its negative."""
    return torch.tensor([*LEVELS, *(-level for level in LEVELS)], dtype=torch.int64, device=device)
