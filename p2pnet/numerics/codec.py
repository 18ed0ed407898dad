"""The chunk codec: k signed values of 4096, at one or two levels, in a fixed number of bytes: protocols/codec-1.md.

Selection, levels and packing are integer arithmetic on the bit patterns of the fp32 values, so that every machine,
device and number of threads sends the same bytes for the same accumulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, TypeAlias

import torch
from torch import Tensor

from p2pnet.errors import NotFiniteError, WireError
from p2pnet.numerics.bits import bit_bytes, count_bits, pack_bits, pack_fields, unpack_bits, unpack_fields
from p2pnet.numerics.levels import CODES, LEVELS, check_bias, level_integers, nearest_codes
from p2pnet.numerics.selection import fill_up, largest_indices, levels_of

CHUNK_VALUES: Final = 4096
CHUNK_BITS: Final = 12  # an index fits 12 bits
K_MIN: Final = 8
K_MAX: Final = 2048
K_WORD_MAX: Final = 1024  # over it a bit map of all 4096 is shorter than two sections of indices
VALUE_BITS_MAX: Final = 2

Payload: TypeAlias = Tensor | bytes | bytearray | memoryview

_MAGNITUDE_BITS: Final = 0x7FFFFFFF  # of a fp32 pattern, all but the sign
_INFINITY_BITS: Final = 0x7F800000  # as fp32; NaN patterns are larger
_UNUSED: Final = "codec-1/R5", "a level without values, or values without a level"
_SHIFT_MIN: Final = -25  # below, a 24-bit magnitude is under half of the smallest level: code 0 whatever the exponent
_SHIFT_MAX: Final = 36  # above, any magnitude but 0 is beyond the largest level: code 255


@dataclass(frozen=True)
class ChunkFormat:
    """The layout of one encoded chunk: low index bits, upper index word, signs, magnitude bits, levels.

    Indices are Elias-Fano coded (Elias 1974, Fano 1971): `low_bits` low bits of each index as they are, the rest as the
    position of the i-th one in a word of k + 2^(12 - low_bits) bits, at (index >> low_bits) + i. Over 1024 of them the
    word is a bit map. With one bit for a value, its sign, a chunk carries at most k values at one level, zeros not.
    """

    k: int  # values of 4096 that a chunk carries, 8..2048
    value_bits: int = 2  # 1: the sign alone

    def __post_init__(self) -> None:
        if not K_MIN <= self.k <= K_MAX:
            raise ValueError(f"k is {self.k}, allowed are {K_MIN}..{K_MAX}")
        if not 1 <= self.value_bits <= VALUE_BITS_MAX:
            raise ValueError(f"value_bits is {self.value_bits}, allowed are 1..{VALUE_BITS_MAX}")

    @property
    def is_map(self) -> bool:
        """Whether the upper word has a bit for each index."""
        return self.k > K_WORD_MAX

    @cached_property
    def low_bits(self) -> int:
        """The width of the low fields with the fewest index bytes; the wider one of two that are equal; 0 in a map."""
        if self.is_map:
            return 0
        return min(range(CHUNK_BITS, -1, -1), key=lambda width: sum(_index_bytes(self.k, width)))

    @cached_property
    def low_bytes(self) -> int:
        """Size of the section of low fields."""
        return bit_bytes(self.k * self.low_bits)

    @cached_property
    def upper_bytes(self) -> int:
        """Size of the upper word."""
        return CHUNK_VALUES // 8 if self.is_map else _index_bytes(self.k, self.low_bits)[1]

    @cached_property
    def value_bytes(self) -> int:
        """Size of the section of signs, and of that of magnitude bits where there is one."""
        return bit_bytes(self.k)

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of one encoded chunk: 82 for k = 64 and two bits."""
        return self.low_bytes + self.upper_bytes + self.value_bits * (self.value_bytes + 1)

    @cached_property
    def sections(self) -> tuple[slice, slice, slice, slice, slice]:
        """Where the low fields, the upper word, the signs, the magnitude bits and the levels are in a chunk."""
        first = self.low_bytes
        second = first + self.upper_bytes
        third = second + self.value_bytes
        fourth = self.chunk_bytes - self.value_bits
        return (
            slice(0, first),
            slice(first, second),
            slice(second, third),
            slice(third, fourth),
            slice(fourth, self.chunk_bytes),
        )

    def payload_bytes(self, chunks: int) -> int:
        """Return the size of so many encoded chunks."""
        return chunks * self.chunk_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The values that a payload or a result carries, k of each chunk, in the order of their indices.

    indices: (chunks, k) int16, rising, 0..4095.   codes: (chunks, k) uint8, at most two different in a chunk
    (levels.py).   negative: (chunks, k) bool, False where the code is 0.
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


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What one peer sends in a round: payload, (chunks, chunk_bytes) uint8, and what it says."""

    payload: Tensor
    sent: Sparse


def encode(a: Tensor, fmt: ChunkFormat, level_bias: int) -> Encoded:
    """Encode the k largest magnitudes of each chunk; the lower index is the larger of two equal ones.

    a: (chunks, 4096) float32, the accumulator, finite, contiguous.   level_bias: 0..129.
    returns: payload (chunks, fmt.chunk_bytes) uint8 and the values it carries, both on the device of `a`.
    Raises `NotFiniteError` where `a` holds a NaN or infinity; nothing is returned then.
    """
    check_bias(level_bias)
    if a.ndim != 2 or a.shape[1] != CHUNK_VALUES or a.dtype != torch.float32 or not a.is_contiguous():
        raise ValueError(f"expected contiguous float32 of shape (chunks, {CHUNK_VALUES}), got {a.dtype} {a.shape}")
    chunks = a.shape[0]
    payload = torch.empty((chunks, fmt.chunk_bytes), dtype=torch.uint8, device=a.device)
    sent = _empty_sparse(chunks, fmt.k, a.device)
    scratch: Tensor | None = None  # kept over the blocks, as fresh memory costs more than the arithmetic on it
    for block in chunk_blocks(chunks, a.device):
        bits = a[block].view(torch.int32)
        scratch = torch.empty_like(bits) if scratch is None else scratch[: bits.shape[0]]
        magnitude_bits = torch.bitwise_and(bits, _MAGNITUDE_BITS, out=scratch)
        indices = largest_indices(magnitude_bits, fmt.k)
        codes, negative = _quantise(bits.gather(1, indices), fmt.value_bits, level_bias, block.start)
        sent.indices[block] = indices
        sent.codes[block] = codes
        sent.negative[block] = negative
        payload[block] = pack(indices, codes, negative, fmt)
    return Encoded(payload, sent)


def pack(indices: Tensor, codes: Tensor, negative: Tensor, fmt: ChunkFormat) -> Tensor:
    """Lay out the values of chunks as bytes: the one encoding that `decode` accepts for them.

    indices: (chunks, k) int64, rising.   codes: (chunks, k) int64, at most two different in a chunk, and with one bit
    for a value at most one that is not 0.   negative: (chunks, k) bool, False where the code is 0.
    returns: (chunks, fmt.chunk_bytes) uint8.
    """
    chunks, device, width = indices.shape[0], indices.device, 8 * fmt.upper_bytes
    low, upper, signs, magnitudes, levels = fmt.sections
    pair = torch.stack(torch.aminmax(codes, dim=1), dim=1)
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
    if fmt.value_bits > 1:
        payload[:, magnitudes] = pack_bits(codes > pair[:, :1])
    payload[:, levels] = pair[:, -fmt.value_bits :].to(torch.uint8)
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


def join(parts: Sequence[Sparse]) -> Sparse:
    """Return what the parts of a payload carry as one, in their order."""
    return Sparse(
        torch.cat([part.indices for part in parts]),
        torch.cat([part.codes for part in parts]),
        torch.cat([part.negative for part in parts]),
    )


def dequantise(sparse: Sparse, level_bias: int) -> Tensor:
    """Return the values of a payload. returns: (chunks, k) float32, exact: every level is a float32 number."""
    check_bias(level_bias)
    return sparse.look_up(_value_table(level_bias, sparse.codes.device))


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


def chunk_blocks(chunks: int, device: torch.device, values: int = CHUNK_VALUES) -> Iterator[slice]:
    """Yield slices of so many chunks as one pass takes: on a CPU what stays in its cache, on a GPU what fills it.

    values: about how many each chunk needs at a time. Results do not depend on the size of a block.
    """
    step = max(1, (1 << (26 if device.type == "cuda" else 20)) // values)
    for start in range(0, chunks, step):
        yield slice(start, min(start + step, chunks))


def _quantise(chosen: Tensor, value_bits: int, level_bias: int, first_chunk: int) -> tuple[Tensor, Tensor]:
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
    codes = nearest_codes((((levels_of(magnitudes, value_bits) * 2) << up) + (1 << down) - 1) >> down)
    if value_bits == 1:
        codes = torch.where(magnitudes > 0, codes, 0)
    else:
        is_high = ((magnitudes * 2) << up) > (level_integers(codes).sum(1, keepdim=True) << down)
        codes = torch.where(is_high, codes[:, 1:], codes[:, :1])
    return codes, (chosen < 0) & (codes > 0)


def _unpack(data: Tensor, fmt: ChunkFormat, first_chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices (int32), codes (uint8) and signs (bool) of a block, or raise. data: (rows, chunk_bytes) uint8."""
    low, upper, signs, magnitudes, levels = (data[:, section] for section in fmt.sections)
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
    sign_bits, magnitude_bits = unpack_bits(signs), unpack_bits(magnitudes)
    if spare := k % 8:
        padding = padding | (signs[:, -1] >> spare)
        if fmt.value_bits > 1:
            padding = padding | (magnitudes[:, -1] >> spare)
    if spare := fmt.low_bits * k % 8:
        padding = padding | (low[:, -1] >> spare)
    _refuse(padding != 0, "codec-1/R3", "padding that is not zero", first_chunk)
    _refuse(indices[:, 1:] <= indices[:, :-1], "codec-1/R4", "indices that do not rise", first_chunk)
    is_high, negative = (bits.view(torch.bool)[:, :k] for bits in (magnitude_bits, sign_bits))
    if fmt.value_bits == 1:
        _refuse(levels[:, 0] == 0, *_UNUSED, first_chunk)
        return indices, levels.expand(rows, k), negative
    ones = count_bits(magnitudes)
    first, second = levels[:, 0], levels[:, 1]
    bad = (first > second) | torch.where(first == second, ones > 0, (ones == 0) | (ones == k))
    _refuse(bad, "codec-1/R5", "levels out of order, equal with magnitude bits set, or one of two unused", first_chunk)
    codes = torch.where(is_high, levels[:, 1:], levels[:, :1])
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
    is_free = torch.arange(8 * fmt.value_bytes, device=device) >= counts.unsqueeze(1)
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


def _index_bytes(k: int, low_bits: int) -> tuple[int, int]:
    """Return the sizes of the low fields and of the upper word."""
    return bit_bytes(k * low_bits), bit_bytes(k + (1 << (CHUNK_BITS - low_bits)))


@cache
def _value_table(level_bias: int, device: torch.device) -> Tensor:
    """Return (512,) float32: the value of each code, then its negative."""
    values = [level * 2.0**-level_bias for level in LEVELS]
    return torch.tensor(values + [-value for value in values], dtype=torch.float32, device=device)
