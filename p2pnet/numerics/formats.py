"""How many bytes a chunk takes and which are what. Contract: protocols/codec-1.md. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

CHUNK_VALUES: Final = 4096
WEIGHT_TIMES_K_MAX: Final = 1 << 20  # so that sums are exact: see `reduce`
CHUNK_BITS: Final = 12  # an index fits 12 bits
K_MIN: Final = 8
K_MAX: Final = 2048
K_WORD_MAX: Final = 1024  # over it a bit map of all 4096 is shorter than two sections of indices
VALUE_BITS_MAX: Final = 3


@dataclass(frozen=True)
class ChunkFormat:
    """The layout of one encoded chunk: low index bits, upper index word, signs, selectors, levels.

    Indices are Elias-Fano coded (Elias 1974, Fano 1971): `low_bits` low bits of each index as they are, the rest as the
    position of the i-th one in a word of k + 2^(12 - low_bits) bits, at (index >> low_bits) + i. Over 1024 of them the
    word is a bit map. A value is a sign and a selector of value_bits - 1 bits, which says one of the chunk's levels.
    With one bit for a value, its sign, a chunk carries at most k values at one level, zeros not.
    """

    k: int  # values of 4096 that a chunk carries, 8..2048
    value_bits: int = 2  # 1: the sign alone; 2: two levels; 3: four

    def __post_init__(self) -> None:
        if not K_MIN <= self.k <= K_MAX:
            raise ValueError(f"k is {self.k}, allowed are {K_MIN}..{K_MAX}")
        if not 1 <= self.value_bits <= VALUE_BITS_MAX:
            raise ValueError(f"value_bits is {self.value_bits}, allowed are 1..{VALUE_BITS_MAX}")

    @property
    def levels(self) -> int:
        """How many levels a chunk has, a byte each."""
        return 1 << self.selector_bits

    @property
    def selector_bits(self) -> int:
        """Bits of a value beside its sign."""
        return self.value_bits - 1

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
    def sign_bytes(self) -> int:
        """Size of the section of signs."""
        return bit_bytes(self.k)

    @cached_property
    def selector_bytes(self) -> int:
        """Size of the section of selectors."""
        return bit_bytes(self.k * self.selector_bits)

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of one encoded chunk: 82 for k = 64 and two bits."""
        return self.low_bytes + self.upper_bytes + self.sign_bytes + self.selector_bytes + self.levels

    @cached_property
    def sections(self) -> tuple[slice, slice, slice, slice, slice]:
        """Where the low fields, the upper word, the signs, the selectors and the levels are in a chunk."""
        found, start = [], 0
        for size in (self.low_bytes, self.upper_bytes, self.sign_bytes, self.selector_bytes, self.levels):
            found.append(slice(start, start + size))
            start += size
        low, upper, signs, selectors, levels = found
        return low, upper, signs, selectors, levels

    def payload_bytes(self, chunks: int) -> int:
        """Return the size of so many encoded chunks."""
        return chunks * self.chunk_bytes


def bit_bytes(bits: int) -> int:
    """Return how many bytes hold so many bits."""
    return -(-bits // 8)


def _index_bytes(k: int, low_bits: int) -> tuple[int, int]:
    """Return the sizes of the low fields and of the upper word."""
    return bit_bytes(k * low_bits), bit_bytes(k + (1 << (CHUNK_BITS - low_bits)))
