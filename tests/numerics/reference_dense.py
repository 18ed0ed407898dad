"""dense-1 again, from its page alone: Python integers of any size, one bit at a time. It shares no code with p2pnet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.numerics import reference as ref
from tests.numerics.reference import CHUNK, Value

HALF = 1 << 15
Coder = Callable[[int, int], int]  # a bit (ignored when reading) and how likely a one is, of 2^16; returns the bit


class Model:
    def __init__(self) -> None:
        self.one, self.seen = HALF, 0

    def code(self, coder: Coder, bit: int) -> int:
        bit = coder(bit, self.one)
        step = (65535 if bit else 0) - self.one
        change = abs(step) * 2 // (2 * self.seen + 3)
        self.one = min(max(self.one + (change if step > 0 else -change), 32), 65504)
        self.seen = min(self.seen + 1, 255)
        return bit


class Slice:
    """What is learnt over the chunks of a slice."""

    def __init__(self, coder: Coder, k: int, bits: int) -> None:
        self.coder, self.k, self.bits, self.levels = coder, k, bits, 2 ** (bits - 1)
        self.is_full = Model()
        self.selectors = [Model() for _ in range(self.levels)]
        self.trees = [[Model() for _ in range(256)] for _ in range(self.levels)]
        self.before = [0] * self.levels

    def tree(self, models: list[Model], field: int, width: int) -> int:
        node = 1
        for i in reversed(range(width)):
            node = 2 * node + models[node].code(self.coder, field >> i & 1)
        return node - (1 << width)

    def chunk(self, places: list[int], signs: list[int], selectors: list[int], table: list[int]) -> None:
        """Say a chunk, or fill in the empty lists."""
        n = len(places)
        if self.bits == 1 and not self.is_full.code(self.coder, n == self.k):
            n = sum(self.coder(n >> i & 1, HALF) << i for i in reversed(range(12)))
        else:
            n = self.k
        left, wanted, found = n, set(places), []
        for place in range(CHUNK):
            if left and self.coder(place in wanted, min(left * 65536 // (CHUNK - place), 65535)):
                found.append(place)
                left -= 1
        places[:] = found
        signs[:] = [self.coder(signs[i] if signs else 0, HALF) for i in range(n)]
        if self.bits > 1:
            selectors[:] = [
                self.tree(self.selectors, selectors[i] if selectors else 0, self.bits - 1) for i in range(n)
            ]
        said = table or [0] * self.levels
        for j in range(self.levels):
            change = self.tree(self.trees[j], (said[j] - self.before[j]) % 256, 8)
            self.before[j] = (self.before[j] + change) % 256
        table[:] = self.before


class Writer:
    """A range coder whose number is one Python integer: carries take care of themselves."""

    def __init__(self) -> None:
        self.low, self.range, self.shifts = 0, 2**32 - 1, 0

    def __call__(self, bit: int, one: int) -> int:
        bound = (self.range >> 16) * one
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 2**24:
            self.range <<= 8
            self.low <<= 8
            self.shifts += 1
        return int(bit)

    def bytes(self) -> bytes:
        return self.low.to_bytes(self.shifts + 4, "big")


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.value, self.range = int.from_bytes(data[:4], "big"), 2**32 - 1

    def __call__(self, _bit: int, one: int) -> int:
        bound = (self.range >> 16) * one
        bit = self.value < bound
        if bit:
            self.range = bound
        else:
            self.value -= bound
            self.range -= bound
        while self.range < 2**24:
            self.range <<= 8
            self.value = self.value << 8 | self.data[self.at]
            self.at += 1
        return int(bit)


def write(chunks: Sequence[Sequence[Value]], k: int, bits: int) -> bytes:
    writer = Writer()
    its = Slice(writer, k, bits)
    for values in chunks:
        some = [value for value in values if value.code or bits > 1]
        used = sorted({value.code for value in some}) or [0]
        table = used + used[-1:] * (its.levels - len(used))
        selectors = [used.index(value.code) for value in some]
        its.chunk([value.index for value in some], [int(value.negative) for value in some], selectors, table)
    return writer.bytes()


def read(data: bytes, count: int, k: int, bits: int) -> bytes:
    """Back to codec-1."""
    reader, payload = Reader(data), b""
    its = Slice(reader, k, bits)
    for _ in range(count):
        places: list[int] = []
        signs: list[int] = []
        selectors: list[int] = []
        table: list[int] = []
        its.chunk(places, signs, selectors, table)
        which = selectors or [0] * len(places)
        values = [
            Value(place, table[number], bool(sign)) for place, number, sign in zip(places, which, signs, strict=True)
        ]
        payload += ref.write_chunk(values, bits=bits) if bits > 1 else ref.write_signs(values, k)
    assert reader.at == len(data)
    return payload
