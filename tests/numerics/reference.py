"""codec-1 and reduce-1 again, from the pages alone: Python integers and fractions, no torch, one value at a time.

It shares no code with p2pnet. The vectors under protocols/vectors come from here, so that they can contradict p2pnet.
A fp32 value is its bit pattern, an int; a chunk is 4096 of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise
from typing import NamedTuple

CHUNK = 4096


class RefusedError(Exception):
    """The payload breaks a rule; the message is the rule's id."""


class Value(NamedTuple):
    index: int
    code: int
    negative: bool


# --- levels


def level(code: int) -> int:
    exponent, mantissa = divmod(code, 8)
    return (8 + mantissa) * 2**exponent if code else 0


def nearest_code(value: Fraction) -> int:
    return min(range(256), key=lambda code: (abs(level(code) - value), code))


def lloyd(values: Sequence[int], count: int = 2) -> list[int]:
    """Two or four levels."""
    least, most = min(values), max(values)
    start = sum(values) // max(1, sum(value > 0 for value in values)) if least == 0 else most
    levels = lloyd_passes(values, [least, start])
    if count == 4:
        low, high = levels
        first = [(least + low) // 2, low] if least else [0, high // 2]
        levels = lloyd_passes(values, [*first, high, (high + most) // 2])
    return levels


def lloyd_passes(values: Sequence[int], levels: list[int]) -> list[int]:
    for _ in range(4):
        members: list[list[int]] = [[] for _ in levels]
        for value in values:
            members[sum(2 * value > low + high for low, high in pairwise(levels))].append(value)
        levels = [sum(group) // len(group) if group else level for group, level in zip(members, levels, strict=True)]
        if min(values) == 0:
            levels[0] = 0
    return levels


def to_levels(values: Sequence[int], unit: Fraction, bits: int = 2) -> list[int]:
    """The code of each value: Lloyd, then the nearest codes, then for each value the nearest of these.

    With one bit: the mean of those that are not zero, then the nearest code, for each of these.
    """
    if bits == 1:
        some = [value for value in values if value]
        code = nearest_code(sum(some) // len(some) * unit) if some else 0
        return [code if value else 0 for value in values]
    codes = sorted({nearest_code(mean * unit) for mean in lloyd(values, 2 ** (bits - 1))})
    return [min(codes, key=lambda code: (abs(level(code) - value * unit), code)) for value in values]


def largest(magnitudes: Sequence[int], k: int) -> list[int]:
    return sorted(sorted(range(len(magnitudes)), key=lambda index: (-magnitudes[index], index))[:k])


# --- bytes


def index_bits(k: int, low_bits: int) -> tuple[int, int]:
    return k * low_bits, k + 2 ** (12 - low_bits)


def best_low_bits(k: int) -> int:
    def size(low_bits: int) -> int:
        return sum(-(-bits // 8) for bits in index_bits(k, low_bits))

    return max(range(13), key=lambda low_bits: (-size(low_bits), low_bits))


def section_bytes(k: int, bits: int = 2) -> list[int]:
    low, upper = index_bits(k, best_low_bits(k)) if k <= 1024 else (0, CHUNK)
    return [-(-size // 8) for size in (low, upper, k, k * (bits - 1), 8 * 2 ** (bits - 1))]


def write_chunk(values: Sequence[Value], levels: Sequence[int] | None = None, bits: int = 2) -> bytes:
    """Bytes of sorted values; `levels` forces the codes that are said, for lies."""
    k, count = len(values), 2 ** (bits - 1)
    used = sorted({value.code for value in values})
    said = list(levels or used + used[-1:] * (count - len(used)))
    which = [sum(value.code > level for level in said[:-1]) for value in values]
    selectors = sum(number << i * (bits - 1) for i, number in enumerate(which))
    words = [*_places(values, k), selectors, int.from_bytes(bytes(said), "little")]
    return _join(words, section_bytes(k, bits))


def write_signs(values: Sequence[Value], k: int, level: int | None = None) -> bytes:
    """Bytes of sorted values with one bit each, those at code 0 left out; `level` forces a code, for lies."""
    some = [value for value in values if value.code]
    code = max((value.code for value in some), default=0) if level is None else level
    return _join([*_places(some, k), 0, code], section_bytes(k, 1))


def _places(values: Sequence[Value], k: int) -> tuple[int, int, int]:
    """Low fields, upper word, signs."""
    low_bits = best_low_bits(k) if k <= 1024 else 0
    low = upper = signs = 0
    for i, value in enumerate(values):
        low |= (value.index % 2**low_bits) << (i * low_bits)
        upper |= 1 << ((value.index >> low_bits) + (i if k <= 1024 else 0))
        signs |= value.negative << i
    return low, upper, signs


def _join(words: Sequence[int], sizes: Sequence[int]) -> bytes:
    return b"".join(word.to_bytes(size, "little") for word, size in zip(words, sizes, strict=True))


def write(values: Sequence[Value], bits: int) -> bytes:
    return write_chunk(values, bits=bits) if bits > 1 else write_signs(values, len(values))


def read_chunk(data: bytes, k: int, bits: int = 2) -> list[Value]:
    """The k values of a chunk; with one bit each as many zeros among them, at the lowest free indices, as it lacks."""
    sizes = section_bytes(k, bits)
    if len(data) != sum(sizes):
        raise RefusedError("codec-1/R1")
    words, start = [], 0
    for size in sizes:
        words.append(int.from_bytes(data[start : start + size], "little"))
        start += size
    low, upper, signs, selectors, levels = words
    low_bits = best_low_bits(k) if k <= 1024 else 0
    places = [place for place in range(8 * sizes[1]) if upper >> place & 1]
    n = len(places)
    if n != k if bits > 1 else n > k:
        raise RefusedError("codec-1/R2")
    high = places if k > 1024 else [place - i for i, place in enumerate(places)]
    if (
        low >> (n * low_bits)
        or any(part >= 2 ** (12 - low_bits) for part in high)
        or signs >> n
        or selectors >> n * (bits - 1)
    ):
        raise RefusedError("codec-1/R3")
    indices = [high[i] * 2**low_bits + (low >> (i * low_bits)) % 2**low_bits for i in range(n)]
    if any(after <= before for before, after in pairwise(indices)):
        raise RefusedError("codec-1/R4")
    if bits == 1:
        if (levels > 0) != (n > 0):
            raise RefusedError("codec-1/R5")
        free = [index for index in range(CHUNK) if index not in set(indices)][: k - n]
        return sorted(
            [Value(index, levels, bool(signs >> i & 1)) for i, index in enumerate(indices)]
            + [Value(index, 0, False) for index in free]
        )
    said = list(levels.to_bytes(sizes[4], "little"))
    which = [selectors >> i * (bits - 1) & 2 ** (bits - 1) - 1 for i in range(k)]
    used = sorted({said[number] for number in which})
    if said != used + used[-1:] * (len(said) - len(used)) or set(which) != set(range(len(used))):
        raise RefusedError("codec-1/R5")
    values = [Value(index, said[which[i]], bool(signs >> i & 1)) for i, index in enumerate(indices)]
    if any(value.negative and not value.code for value in values):
        raise RefusedError("codec-1/R6")
    return values


def read(data: bytes, k: int, bits: int = 2) -> list[list[Value]]:
    size = sum(section_bytes(k, bits))
    if len(data) % size:
        raise RefusedError("codec-1/R1")
    return [read_chunk(data[start : start + size], k, bits) for start in range(0, len(data), size)]


# --- encoding


def encode_chunk(patterns: Sequence[int], k: int, level_bias: int, bits: int = 2) -> bytes:
    chosen = largest([pattern % 2**31 for pattern in patterns], k)
    exponent = max(max(patterns[index] % 2**31 >> 23, 1) for index in chosen)
    if exponent == 255:
        raise ValueError("not finite")
    unit = Fraction(2) ** (exponent - 150)  # of a magnitude, the last bit of the largest one
    magnitudes = [int(abs(exact(patterns[index])) / unit) for index in chosen]
    codes = to_levels(magnitudes, unit * 2**level_bias, bits)
    return write(
        [
            Value(index, code, code > 0 and bool(patterns[index] >> 31))
            for index, code in zip(chosen, codes, strict=True)
        ],
        bits,
    )


def exact(pattern: int) -> Fraction:
    sign, exponent, mantissa = pattern >> 31, pattern >> 23 & 255, pattern % 2**23
    magnitude = (mantissa + (2**23 if exponent else 0)) * Fraction(2) ** (max(exponent, 1) - 150)
    return -magnitude if sign else magnitude


def value_of(value: Value, level_bias: int) -> Fraction:
    return level(value.code) * Fraction(2) ** -level_bias * (-1 if value.negative else 1)


# --- reduce


def norm2(data: bytes, k: int, bits: int = 2) -> int:
    return sum(level(value.code) ** 2 for chunk in read(data, k, bits) for value in chunk)


def clip_factors(norms: Sequence[int]) -> list[int]:
    some = sorted(norm for norm in norms if norm)
    if not some:
        return [256 for _ in norms]
    median = some[(len(some) - 1) // 2]
    return [max(q for q in range(257) if q**2 * norm <= 256**2 * median) for norm in norms]


def sums(
    slices: Sequence[bytes], weights: Sequence[int], clips: Sequence[int], k: int, bits: int = 2
) -> list[list[int]]:
    """S of each coordinate, chunk by chunk."""
    totals = [[0] * CHUNK for _ in read(slices[0], k, bits)]
    for data, weight, clip in zip(slices, weights, clips, strict=True):
        for chunk, values in enumerate(read(data, k, bits)):
            for value in values:
                totals[chunk][value.index] += weight * clip * level(value.code) * (-1 if value.negative else 1)
    return totals


def reduce(
    slices: Sequence[bytes], weights: Sequence[int], total_weight: int, k: int, k_out: int, bits: int = 2
) -> tuple[bytes, list[int]]:
    clips = clip_factors([norm2(data, k, bits) for data in slices])
    output = b""
    for total in sums(slices, weights, clips, k, bits):
        chosen = largest([abs(s) for s in total], k_out)
        codes = to_levels([abs(total[index]) for index in chosen], Fraction(1, 256 * total_weight), bits)
        output += write(
            [Value(index, code, code > 0 and total[index] < 0) for index, code in zip(chosen, codes, strict=True)], bits
        )
    return output, clips


# --- floats. Python's float is binary64: one operation on two binary32 numbers in it, then rounded to binary32, gives
# the correctly rounded binary32 result (Figueroa 1995: 53 >= 2 * 24 + 2).


def to_float(pattern: int) -> float:
    value: float = struct.unpack("<f", pattern.to_bytes(4, "little"))[0]
    return value


def to_pattern(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")


def accumulate(e: Sequence[int], delta: Sequence[int], beta_ppm: int) -> list[int]:
    beta = to_float(to_pattern(beta_ppm / 10**6))
    products = [to_float(to_pattern(beta * to_float(pattern))) for pattern in e]
    return [to_pattern(product + to_float(pattern)) for product, pattern in zip(products, delta, strict=True)]


def residual(
    a: Sequence[int], sent: Sequence[Value], result: Sequence[Value], named: bool, level_bias: int
) -> list[int]:
    taken = {value.index for value in result if value.code} if named else set()
    e = list(a)
    for value in sent:
        if value.index in taken and value.code:
            e[value.index] = to_pattern(to_float(a[value.index]) - float(value_of(value, level_bias)))
    return e


def apply(theta: Sequence[int], result: Sequence[Value], level_bias: int, alpha_ppm: int) -> list[int]:
    after = list(theta)
    for value in result:
        if value.code:
            step = alpha_ppm / 10**6 * float(value_of(value, level_bias))
            after[value.index] = to_pattern(to_float(theta[value.index]) - step)
    return after


def checksum(patterns: Sequence[int]) -> int:
    total = 0
    for chunk in range(len(patterns) // CHUNK):
        for i, pattern in enumerate(patterns[chunk * CHUNK : (chunk + 1) * CHUNK]):
            total += (2 * chunk + 1) * (pattern << 32 * (i % 2))
    return total % 2**64


def state_sha256(tensors: dict[str, list[int]]) -> bytes:
    patterns = [pattern for _, values in sorted(tensors.items()) for pattern in values]
    return sha256(struct.pack(f"<{len(patterns)}I", *patterns)).digest()


# --- made-up numbers that every language can make: splitmix64 (Steele, Lea, Flood 2014)


def splitmix64(seed: int) -> Iterator[int]:
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        yield z ^ z >> 31


def noise(seed: int, count: int = CHUNK, exponent: int = 112, spread: int = 8) -> list[int]:
    """Patterns with random sign and mantissa and an exponent of exponent .. exponent + spread - 1."""
    numbers = splitmix64(seed)
    words = [next(numbers) for _ in range(count)]
    return [word % 2**23 | (exponent + (word >> 32) % spread) << 23 | (word >> 63) << 31 for word in words]
