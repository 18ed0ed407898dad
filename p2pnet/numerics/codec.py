"""The chunk codec: k signed values of 4096, at few levels, in a fixed number of bytes. Contract: protocols/codec-1.md.

Selection, levels and packing are integer arithmetic on the bit patterns of the fp32 values, so that every machine,
device and number of threads sends the same bytes for the same accumulator. On a CPU native.py does the work where it
can; the torch code here is the reference, the fallback, and what names the rule that a payload breaks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Final, TypeAlias

import torch
from torch import Tensor

from p2pnet.errors import NotFiniteError, WireError
from p2pnet.numerics import native
from p2pnet.numerics.bits import count_bits, pack_bits, pack_fields, unpack_bits, unpack_fields
from p2pnet.numerics.formats import CHUNK_BITS, CHUNK_VALUES, ChunkFormat
from p2pnet.numerics.levels import CODES, LEVELS, check_bias, level_integers, nearest_codes
from p2pnet.numerics.selection import fill_up, largest_indices, levels_of

Payload: TypeAlias = Tensor | bytes | bytearray | memoryview

_MAGNITUDE_BITS: Final = 0x7FFFFFFF  # of a fp32 pattern, all but the sign
_INFINITY_BITS: Final = 0x7F800000  # as fp32; NaN patterns are larger
_UNUSED: Final = "codec-1/R5", "a level without values, or values without a level"
_SHIFT_MIN: Final = -25  # below, a 24-bit magnitude is under half of the smallest level: code 0 whatever the exponent
_SHIFT_MAX: Final = 36  # above, any magnitude but 0 is beyond the largest level: code 255


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The values that a payload or a result carries, k of each chunk, in the order of their indices.

    indices: (chunks, k) int16, rising, 0..4095.   codes: (chunks, k) uint8, in a chunk no more different ones
    than it has levels (levels.py).   negative: (chunks, k) bool, False where the code is 0.
    """

    indices: Tensor
    codes: Tensor
    negative: Tensor

    def to(self, device: torch.device | str) -> Sparse:
        """Return the same values on another device."""
        return Sparse(self.indices.to(device), self.codes.to(device), self.negative.to(device))

    def look_up(self, table: Tensor) -> Tensor:
        """Return (chunks, k): the table's entry for each value. table: (512,), all codes, then all codes negated."""
        entries = self.codes.to(torch.int32) + self.negative.to(torch.int32) * CODES
        return table.index_select(0, entries.view(-1)).view(entries.shape)


def encode(a: Tensor, fmt: ChunkFormat, level_bias: int) -> Tensor:
    """Encode the k largest magnitudes of each chunk; the lower index is the larger of two equal ones.

    a: (chunks, 4096) float32, the accumulator, finite, contiguous.   level_bias: 0..129.
    returns: (chunks, fmt.chunk_bytes) uint8, on the device of `a`: `as_bytes` makes bytes of it.
    Raises `NotFiniteError` where `a` holds a NaN or infinity; nothing is returned then.
    """
    check_bias(level_bias)
    if a.ndim != 2 or a.shape[1] != CHUNK_VALUES or a.dtype != torch.float32 or not a.is_contiguous():
        raise ValueError(f"expected contiguous float32 of shape (chunks, {CHUNK_VALUES}), got {a.dtype} {a.shape}")
    chunks = a.shape[0]
    payload = torch.empty((chunks, fmt.chunk_bytes), dtype=torch.uint8, device=a.device)
    if native.usable(a):
        if (bad := native.encode(a, fmt, level_bias, payload)) >= 0:
            raise NotFiniteError(f"chunk {bad} holds a NaN or infinity")
        return payload
    if (kernels := gpu_kernels(a)) is not None:
        if (bad := kernels.encode(a, fmt, level_bias, payload)) >= 0:
            raise NotFiniteError(f"chunk {bad} holds a NaN or infinity")
        return payload
    scratch: Tensor | None = None  # kept over the blocks, as fresh memory costs more than the arithmetic on it
    for block in chunk_blocks(chunks, a.device):
        bits = a[block].view(torch.int32)
        scratch = torch.empty_like(bits) if scratch is None else scratch[: bits.shape[0]]
        magnitude_bits = torch.bitwise_and(bits, _MAGNITUDE_BITS, out=scratch)
        indices = largest_indices(magnitude_bits, fmt.k)
        codes, negative = _quantise(bits.gather(1, indices), fmt, level_bias, block.start)
        payload[block] = pack(indices, codes, negative, fmt)
    return payload


def pack(indices: Tensor, codes: Tensor, negative: Tensor, fmt: ChunkFormat) -> Tensor:
    """Lay out the values of chunks as bytes: the one encoding that `decode` accepts for them.

    indices: (chunks, k) int64, rising.   codes: (chunks, k) int64, of no more different ones in a chunk than it has
    levels; with one bit for a value at most one that is not 0.   negative: (chunks, k) bool, False where the code is 0.
    returns: (chunks, fmt.chunk_bytes) uint8.
    """
    chunks, device, width = indices.shape[0], indices.device, 8 * fmt.upper_bytes
    low, upper, signs, selectors, levels = fmt.sections
    places = indices >> fmt.low_bits
    fields = indices & ((1 << fmt.low_bits) - 1)
    if fmt.value_bits == 1 and bool((codes == 0).any()):  # zeros do not travel: the others move up
        is_here, first = torch.sort(codes > 0, dim=1, descending=True, stable=True)
        places, fields, negative = (values.gather(1, first) for values in (places, fields, negative))
        fields.mul_(is_here)
    else:
        is_here = None
    if not fmt.is_map:
        places = places + torch.arange(fmt.k, device=device)
    if is_here is not None:
        places = torch.where(is_here, places, width)  # to a column that is cut off, one of a byte of them
    word = torch.zeros((chunks, width + (8 if is_here is not None else 0)), dtype=torch.uint8, device=device)
    word.scatter_(1, places, 1)
    payload = torch.empty((chunks, fmt.chunk_bytes), dtype=torch.uint8, device=device)
    payload[:, low] = pack_fields(fields, fmt.low_bits)
    payload[:, upper] = pack_bits(word[:, :width])
    payload[:, signs] = pack_bits(negative)
    table = _used_levels(codes, fmt)
    if fmt.value_bits > 1:
        chosen = (codes.unsqueeze(2) > table[:, None, :-1]).sum(2)  # (chunks, k): how many levels are under it
        payload[:, selectors] = pack_fields(chosen, fmt.selector_bits)
    payload[:, levels] = table.to(torch.uint8)
    return payload


def decode(payload: Payload, fmt: ChunkFormat, chunks: int | None = None, first_chunk: int = 0) -> Sparse:
    """Decode and check a payload or a slice of whole chunks; accepts one encoding only of what it says.

    payload: (chunks, fmt.chunk_bytes) uint8, or its bytes.   chunks: how many are expected, where that is known.
    first_chunk: the number of the first one, for error messages.
    Raises `WireError` with the rule broken, "codec-1/R1" to "codec-1/R6"; reads and allocates in proportion to what was
    expected at most.
    """
    data = as_chunks(payload, fmt, chunks)
    sparse = _empty_sparse(data.shape[0], fmt.k, data.device)
    for block in chunk_blocks(data.shape[0], data.device, values=8 * fmt.k):
        indices, codes, negative = _unpack(data[block], fmt, first_chunk + block.start)
        sparse.indices[block] = indices
        sparse.codes[block] = codes
        sparse.negative[block] = negative
    return sparse


def check(payload: Payload, fmt: ChunkFormat, chunks: int | None = None) -> None:
    """Raise the `WireError` that `decode` would; return nothing where it would return something."""
    data = as_chunks(payload, fmt, chunks)
    if native.usable(data) and native.is_valid(data, fmt):
        return
    for block in chunk_blocks(data.shape[0], data.device, values=8 * fmt.k):
        _unpack(data[block], fmt, block.start)


def dequantise(sparse: Sparse, level_bias: int) -> Tensor:
    """Return the values of a payload. returns: (chunks, k) float32, exact: every level is a float32 number."""
    check_bias(level_bias)
    return sparse.look_up(value_table(level_bias, sparse.codes.device))


def as_chunks(payload: Payload, fmt: ChunkFormat, chunks: int | None = None) -> Tensor:
    """Return bytes as (chunks, fmt.chunk_bytes) uint8, unchecked but for their number: `WireError` codec-1/R1."""
    size = payload.numel() if isinstance(payload, Tensor) else memoryview(payload).nbytes
    expected = size // fmt.chunk_bytes if chunks is None else chunks
    if size != fmt.payload_bytes(expected):
        sizes = f"{expected} chunks of {fmt.chunk_bytes}"
        raise WireError("codec-1/R1", f"{size} bytes, expected {sizes}")
    if isinstance(payload, Tensor):
        if payload.dtype != torch.uint8:
            raise ValueError(f"payload of {payload.dtype}, expected uint8")
        return payload.reshape(expected, fmt.chunk_bytes)
    if size == 0:
        return torch.empty((0, fmt.chunk_bytes), dtype=torch.uint8)
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(expected, fmt.chunk_bytes)


def as_bytes(payload: Tensor) -> bytes:
    """Return the bytes of a payload, (chunks, chunk_bytes) uint8 on any device."""
    data: bytes = payload.contiguous().cpu().numpy().tobytes()
    return data


def gpu_kernels(tensor: Tensor) -> ModuleType | None:
    """Return the Triton kernels where they can work on this tensor; None on a CPU, or without Triton."""
    return _kernels() if tensor.device.type == "cuda" else None


@cache
def _kernels() -> ModuleType | None:
    try:
        return importlib.import_module("p2pnet.numerics.kernels")
    except ImportError:  # a torch without Triton: its operators do the same work
        return None


def chunk_blocks(chunks: int, device: torch.device, values: int = CHUNK_VALUES) -> Iterator[slice]:
    """Yield slices of so many chunks as one pass takes: on a CPU what stays in its cache, on a GPU what fills it.

    values: about how many each chunk needs at a time. Results do not depend on the size of a block.
    """
    step = max(1, (1 << (26 if device.type == "cuda" else 20)) // values)
    for start in range(0, chunks, step):
        yield slice(start, min(start + step, chunks))


@cache
def value_table(level_bias: int, device: torch.device) -> Tensor:
    """Return (512,) float32: the value of each code, then its negative."""
    values = [level * 2.0**-level_bias for level in LEVELS]
    return torch.tensor(values + [-value for value in values], dtype=torch.float32, device=device)


def _quantise(chosen: Tensor, fmt: ChunkFormat, level_bias: int, first_chunk: int) -> tuple[Tensor, Tensor]:
    """Return codes (int64) and signs of the chosen values of a block. chosen: (rows, k) int32, fp32 patterns."""
    chosen_bits = chosen & _MAGNITUDE_BITS
    top = chosen_bits.amax(1, keepdim=True)  # NaN and infinity rank above all numbers
    if bool((top >= _INFINITY_BITS).any()):
        row = int((top >= _INFINITY_BITS).view(-1).to(torch.int32).argmax())
        raise NotFiniteError(f"chunk {first_chunk + row} holds a NaN or infinity")
    exponents = (chosen_bits >> 23).clamp(min=1)  # subnormal numbers have exponent 1 and no hidden bit
    top_exponent = (top >> 23).clamp(min=1)
    mantissas = (chosen_bits & 0x7FFFFF) | ((chosen_bits >= 1 << 23).to(torch.int32) << 23)
    magnitudes = (mantissas >> (top_exponent - exponents).clamp(max=31)).to(torch.int64)
    # One unit of a magnitude is 2^shift level units. Every shift below keeps under 2^62.
    shift = (top_exponent.to(torch.int64) - 150 + level_bias).clamp(_SHIFT_MIN, _SHIFT_MAX)
    up, down = shift.clamp(min=0), (-shift).clamp(min=0)
    levels = nearest_codes((((levels_of(magnitudes, fmt.levels) * 2) << up) + (1 << down) - 1) >> down)
    codes = nearest_levels((magnitudes * 2) << up, levels, lambda sums: sums << down)
    return codes, (chosen < 0) & (codes > 0)


def _unpack(data: Tensor, fmt: ChunkFormat, first_chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices (int32), codes (uint8) and signs (bool) of a block, or raise. data: (rows, chunk_bytes) uint8."""
    low, upper, signs, selectors, levels = (data[:, section] for section in fmt.sections)
    rows, k, width = data.shape[0], fmt.k, 8 * fmt.upper_bytes
    places = unpack_bits(upper).view(-1).nonzero().view(-1)
    row, order = (torch.arange(count, dtype=torch.int32, device=data.device) for count in (rows, k))
    high = places.to(torch.int32)
    is_full = high.numel() == rows * k
    if is_full:
        high = high.view(rows, k).sub_((row * width).unsqueeze(1))
        is_full = not bool(((high[:, 0] < 0) | (high[:, -1] >= width)).any())  # ones of a row lie before it or behind
    if not is_full:
        counts = count_bits(upper)
        if fmt.value_bits == 1:
            return _unpack_some(data, fmt, places, counts, first_chunk)
        _refuse(counts != k, "codec-1/R2", f"upper word without exactly {k} ones", first_chunk)
    if not fmt.is_map:
        high.sub_(order)
    padding = high[:, -1] >> (CHUNK_BITS - fmt.low_bits)  # ones in the padding of the upper word
    indices = high.bitwise_left_shift_(fmt.low_bits).bitwise_or_(unpack_fields(low, k, fmt.low_bits))
    negative = unpack_bits(signs).view(torch.bool)[:, :k]
    for section, bits in ((signs, k), (selectors, fmt.selector_bits * k), (low, fmt.low_bits * k)):
        if bits % 8:
            padding = padding | (section[:, -1] >> bits % 8)
    _refuse(padding != 0, "codec-1/R3", "padding that is not zero", first_chunk)
    _refuse(indices[:, 1:] <= indices[:, :-1], "codec-1/R4", "indices that do not rise", first_chunk)
    if fmt.value_bits == 1:
        _refuse(levels[:, 0] == 0, *_UNUSED, first_chunk)
        return indices, levels.expand(rows, k), negative
    chosen = unpack_fields(selectors, k, fmt.selector_bits).to(torch.int64)
    used = torch.zeros((rows, fmt.levels), dtype=torch.bool, device=data.device).scatter_(1, chosen, True)
    rises = levels[:, 1:] > levels[:, :-1]  # a level that is used is over the one before it, any other equals it
    bad = (levels[:, 1:] < levels[:, :-1]) | (rises != used[:, 1:])
    _refuse(bad | ~used[:, :1], "codec-1/R5", "levels out of order, said twice, or without a value", first_chunk)
    _refuse(used[:, 2:] & ~used[:, 1:-1], "codec-1/R5", "levels with a gap", first_chunk)
    codes = levels.gather(1, chosen)
    _refuse(negative & (codes == 0), "codec-1/R6", "a negative zero", first_chunk)
    return indices, codes, negative


def _unpack_some(
    data: Tensor, fmt: ChunkFormat, places: Tensor, counts: Tensor, first_chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_unpack` does where chunks carry fewer than k values, zeros in the place of those that lack.

    places: (ones,) int64, flat, of the ones in the upper words.   counts: (rows,) int64, how many each has.
    """
    low, _, signs, _, levels = (data[:, section] for section in fmt.sections)
    rows, k, device = data.shape[0], fmt.k, data.device
    _refuse(counts > k, "codec-1/R2", f"upper word with more than {k} ones", first_chunk)
    row = torch.arange(rows, device=device).repeat_interleave(counts)
    order = torch.arange(places.numel(), device=device) - (counts.cumsum(0) - counts).index_select(0, row)
    fields, sign_bits = unpack_fields(low, k, fmt.low_bits), unpack_bits(signs).view(torch.bool)
    high = places - row * (8 * fmt.upper_bytes)
    if not fmt.is_map:
        high -= order
    is_free = torch.arange(8 * fmt.sign_bytes, device=device) >= counts.unsqueeze(1)
    padding = (sign_bits & is_free).any(1) | ((fields != 0) & is_free[:, :k]).any(1)
    padding.index_put_((row[(high >> (CHUNK_BITS - fmt.low_bits)) > 0],), torch.tensor(True, device=device))
    if spare := fmt.low_bits * k % 8:
        padding = padding | ((low[:, -1] >> spare) > 0)
    _refuse(padding, "codec-1/R3", "padding that is not zero", first_chunk)
    flat = (row * CHUNK_VALUES) + (high << fmt.low_bits | fields[row, order])
    falls = torch.zeros(rows, dtype=torch.bool, device=device)
    falls[row[1:][flat[1:] <= flat[:-1]]] = True
    _refuse(falls, "codec-1/R4", "indices that do not rise", first_chunk)
    _refuse((levels[:, 0] > 0) != (counts > 0), *_UNUSED, first_chunk)
    is_sent = torch.zeros((rows, CHUNK_VALUES), dtype=torch.bool, device=device)
    is_sent.view(-1)[flat] = True
    indices = fill_up(is_sent, k)
    is_here = is_sent.gather(1, indices)
    negative = sign_bits.gather(1, (is_here.cumsum(1) - 1).clamp_(min=0)).logical_and_(is_here)
    return indices, torch.where(is_here, levels, 0), negative


def nearest_levels(doubled: Tensor, codes: Tensor, scaled: Callable[[Tensor], Tensor]) -> Tensor:
    """Return for each value the nearest of the levels that its chunk says, the lower one of two that are equally near.

    doubled: (rows, k) int64, twice the magnitudes.   codes: (rows, levels) int64, never falling.   scaled: turns
    sums of two levels, int64, into what `doubled` counts in.   returns: (rows, k) int64, codes; with one level 0 for
    what is zero.
    """
    if codes.shape[1] == 1:
        return torch.where(doubled > 0, codes, 0)
    levels = level_integers(codes)
    edges = scaled(levels[:, 1:] + levels[:, :-1])
    found = codes[:, :1].expand(doubled.shape)
    for number in range(codes.shape[1] - 1):
        found = torch.where(doubled > edges[:, number, None], codes[:, number + 1, None], found)
    return found


def _used_levels(codes: Tensor, fmt: ChunkFormat) -> Tensor:
    """Return the different codes of each chunk, rising, the last one again in what is left: (rows, fmt.levels)."""
    if fmt.value_bits == 1:
        return codes.amax(1, keepdim=True)
    found = [codes.amin(1, keepdim=True)]
    for _ in range(fmt.levels - 2):
        above = torch.where(codes > found[-1], codes, CODES).amin(1, keepdim=True)
        found.append(torch.where(above < CODES, above, found[-1]))
    return torch.cat([*found, codes.amax(1, keepdim=True)], dim=1)


def _refuse(bad: Tensor, rule: str, what: str, first_chunk: int) -> None:
    """Raise `WireError` where a chunk of the block is bad. bad: (rows,) or (rows, values) bool."""
    if bool(bad.any()):
        row = int(bad.view(bad.shape[0], -1).any(1).to(torch.int32).argmax())
        raise WireError(rule, f"chunk {first_chunk + row}: {what}")


def _empty_sparse(chunks: int, k: int, device: torch.device) -> Sparse:
    return Sparse(
        torch.empty((chunks, k), dtype=torch.int16, device=device),
        torch.empty((chunks, k), dtype=torch.uint8, device=device),
        torch.empty((chunks, k), dtype=torch.bool, device=device),
    )
