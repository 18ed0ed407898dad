"""Write protocols/vectors/codec-1, dense-1 and reduce-1, from `reference.py` and never from p2pnet.

Run `python -m tests.numerics.make_vectors` from the repository's root.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.numerics import reference as ref
from tests.numerics import reference_dense
from tests.numerics.reference import CHUNK, Value
from tests.vectors import VECTORS

Case = dict[str, Any]
NEGATIVE = 1 << 31


def main() -> None:
    for page, cases in all_cases().items():
        folder = VECTORS / page
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.json"):
            stale.unlink()
        for name, case in cases.items():
            (folder / f"{name}.json").write_text(json.dumps(case, indent=2) + "\n")


def all_cases() -> dict[str, dict[str, Case]]:
    codec = {
        **dict(encoded()),
        **dict(refused()),
        **dict(refused_signs()),
        **dict(refused_selectors()),
        "levels": levels(),
        **dict(layouts()),
    }
    reduce = {**dict(reductions()), **dict(steps())}
    return {
        page: {name: {"page": page, **case} for name, case in cases.items()}
        for page, cases in (("codec-1", codec), ("dense-1", dict(dense())), ("reduce-1", reduce))
    }


# --- codec-1


def noise(seed: int, exponent: int = 112, spread: int = 8) -> Case:
    return {"noise": {"seed": seed, "exponent": exponent, "spread": spread}}


def listed(*patterns: tuple[int, int]) -> Case:
    return {"listed": [[index, f"{pattern:08x}"] for index, pattern in patterns]}


def patterns_of(chunk: Case) -> list[int]:
    """The 4096 patterns that a case's description of a chunk stands for."""
    if "noise" in chunk:
        return ref.noise(chunk["noise"]["seed"], CHUNK, chunk["noise"]["exponent"], chunk["noise"]["spread"])
    patterns = [0] * CHUNK
    for index, pattern in chunk["listed"]:
        patterns[index] = int(pattern, 16)
    return patterns


def encode_case(k: int, *chunks: Case, level_bias: int = 32, bits: int = 2) -> Case:
    payload = [ref.encode_chunk(patterns_of(chunk), k, level_bias, bits) for chunk in chunks]
    case = {"kind": "encode", "valid": True, "k": k, "value_bits": bits, "level_bias": level_bias}
    case |= {"chunks": list(chunks), "payload": [data.hex() for data in payload]}
    first = ref.read_chunk(payload[0], k, bits)[:8]
    case["first_values"] = [[v.index, v.code * (-1 if v.negative else 1)] for v in first]
    return case


def encoded() -> Iterator[tuple[str, Case]]:
    one, two = ref.to_pattern(1.0), ref.to_pattern(2.0)
    for k in (8, 13, 64, 96, 100, 1024, 1025, 2048):
        yield f"noise-k{k}", encode_case(k, noise(k))
    for k in (8, 13, 64, 512, 1024, 1536):
        yield f"signs-k{k}", encode_case(k, noise(k), bits=1)
    for k in (8, 13, 64, 1024, 1536):
        yield f"four-levels-k{k}", encode_case(k, noise(k), bits=3)
    yield (
        "four-levels-of-two-magnitudes",
        encode_case(8, listed(*((i, (one, two)[i % 3 == 0]) for i in range(5, 13))), bits=3),
    )
    yield (
        "four-levels-of-fewer-values-than-k",
        encode_case(8, listed((2, one), (700, two | NEGATIVE), (4095, two)), bits=3),
    )
    yield "four-levels-of-zeros", encode_case(8, listed(), bits=3)
    some = listed((2, one), (700, one | NEGATIVE), (4095, two))
    yield "signs-of-fewer-values-than-k", encode_case(8, some, noise(9), bits=1)
    yield "signs-of-fewer-values-in-a-map", encode_case(1100, some, noise(9), bits=1)
    yield "signs-of-zeros", encode_case(8, listed(), bits=1)
    yield "signs-below-the-first-level", encode_case(8, listed((9, one), (10, one)), level_bias=0, bits=1)
    yield "two-chunks", encode_case(16, noise(1), noise(2, spread=1))
    yield "wide-exponents", encode_case(64, noise(3, exponent=90, spread=64), level_bias=32)
    yield "zeros", encode_case(8, listed())
    yield "fewer-values-than-k", encode_case(8, listed((2, one), (700, one | NEGATIVE), (4095, two)))
    yield "one-value", encode_case(8, listed((3, one | NEGATIVE)))
    yield "ties", encode_case(8, listed(*((index, one | NEGATIVE * (index % 2)) for index in range(40, 4000, 40))))
    yield "two-magnitudes", encode_case(8, listed(*((index, (one, two)[index % 3 == 0]) for index in range(5, 13))))
    yield "negative-zeros", encode_case(8, listed(*((index, NEGATIVE) for index in range(100)), (50, one)))
    yield "subnormals", encode_case(8, listed(*((7 * index, 1 << index) for index in range(1, 12))), level_bias=129)
    yield "one-subnormal-bit", encode_case(8, listed((9, 1)), level_bias=129)
    yield "largest-float", encode_case(8, listed((9, 0x7F7FFFFF), (10, 0xFF7FFFFF)), level_bias=0)
    yield "above-the-last-level", encode_case(8, listed(*((index, two + index) for index in range(8))), level_bias=64)
    yield "below-the-first-level", encode_case(8, listed(*((index, one + index) for index in range(8))), level_bias=0)
    half = ref.to_pattern(4.5)  # half of level code 1 with bias 0: a tie between zero and it, and ties go down
    yield "half-of-the-first-level", encode_case(8, listed(*((index, half) for index in range(8))), level_bias=0)
    yield "over-half-of-the-first-level", encode_case(8, listed(*((i, half + 1) for i in range(8))), level_bias=0)
    for name, pattern in (("not-a-number", 0x7FC00000), ("infinity", 0xFF800000)):
        chunks = [listed((5, one)), listed((5, one), (4000, pattern))]
        yield (
            name,
            {
                "kind": "encode",
                "valid": False,
                "rule": "codec-1/R7",
                "k": 8,
                "value_bits": 2,
                "level_bias": 32,
                "chunks": chunks,
            },
        )


def honest(k: int = 8, step: int = 100) -> list[Value]:
    return [Value(step * i + i % 3, (200, 210)[i % 2], i % 4 == 1) for i in range(k)]


def lie(rule: str, data: bytes, k: int = 8, bits: int = 2) -> Case:
    with pytest.raises(ref.RefusedError, match=f"codec-1/{rule}"):
        ref.read(data, k, bits)
    found = {"kind": "decode", "valid": False, "rule": f"codec-1/{rule}", "k": k, "value_bits": bits}
    return {**found, "payload": data.hex()}


def flipped(data: bytes, byte: int, xor: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ xor]) + data[byte + 1 :]


def refused() -> Iterator[tuple[str, Case]]:
    good = ref.write_chunk(honest())
    low, upper, signs, magnitudes, _ = ref.section_bytes(8)

    first_of_levels = low + upper + signs + magnitudes
    yield "truncated", lie("R1", good[:-1])
    yield "trailing-byte", lie("R1", good + b"\0")
    yield "another-k", lie("R1", good, k=16)
    ones = int.from_bytes(good[low : low + upper], "little")
    yield "index-missing", lie("R2", good[:low] + (ones & ones - 1).to_bytes(upper, "little") + good[low + upper :])
    yield "index-too-many", lie("R2", good[:low] + (ones | 1 << 12).to_bytes(upper, "little") + good[low + upper :])
    yield "no-index", lie("R2", bytes(len(good)))
    # A last index of 4096: its one is in the last bit of the upper word, which no index below 4096 reaches.
    yield "index-beyond-the-chunk", lie("R3", ref.write_chunk([*honest()[:-1], Value(4096, 210, False)]))
    odd = ref.write_chunk(honest(25, 90))
    sizes = ref.section_bytes(25)
    ends = [sum(sizes[: i + 1]) - 1 for i in range(4)]
    for name, end in zip(("low-fields", "upper-word", "signs", "magnitudes"), ends, strict=True):
        if name != "upper-word":  # there a second one would be counted first
            yield f"padding-in-{name}", lie("R3", flipped(odd, end, 0x80), k=25)
    values = honest()
    repeated = ref.write_chunk([*values[:3], values[3]._replace(index=202), *values[4:]])
    yield "repeated-index", lie("R4", repeated)
    swapped = [*values[:2], values[2]._replace(index=2), values[3]._replace(index=1), *values[4:]]
    swapped = [value._replace(index=index) for value, index in zip(swapped, (0, 3, 2, 4, 5, 6, 7, 8), strict=True)]
    yield "unsorted-index", lie("R4", ref.write_chunk(swapped))
    yield "levels-out-of-order", lie("R5", ref.write_chunk(values, levels=(210, 200)))
    yield "equal-levels-with-magnitude-bits", lie("R5", flipped(good, first_of_levels, 200 ^ 210))
    same = [value._replace(code=200) for value in values]
    yield "high-level-unused", lie("R5", ref.write_chunk(same, levels=(200, 210)))
    yield "low-level-unused", lie("R5", ref.write_chunk(same, levels=(199, 200)))
    yield "negative-zero", lie("R6", ref.write_chunk([Value(10 * i, (0, 9)[i % 2], i == 4) for i in range(8)]))
    yield "second-chunk-repeats-an-index", lie("R4", good + repeated)


def refused_signs() -> Iterator[tuple[str, Case]]:
    yield "signs-of-two-bits", lie("R1", ref.write_chunk(honest()), bits=1)
    few = [Value(index, 200, index > 90) for index in (3, 90, 700, 4000)]
    some, sizes = ref.write_signs(few, 13), ref.section_bytes(13, 1)
    signs_end = sum(sizes[:3]) - 1
    many = [Value(300 * i, 200, False) for i in range(13)]
    word = ref.write_signs(many, 13)[sizes[0] : sizes[0] + sizes[1]]
    more = int.from_bytes(word, "little") | 1 << (8 * sizes[1] - 3)
    yield (
        "signs-of-too-many",
        lie("R2", some[: sizes[0]] + more.to_bytes(sizes[1], "little") + some[sum(sizes[:2]) :], 13, 1),
    )
    yield "sign-without-a-value", lie("R3", flipped(some, signs_end, 0x10), 13, 1)
    yield "low-field-without-a-value", lie("R3", flipped(some, sizes[0] - 2, 0x80), 13, 1)
    yield "few-and-one-beyond-the-chunk", lie("R3", ref.write_signs([*few[:3], Value(4096, 200, False)], 13), 13, 1)
    yield "few-unsorted", lie("R4", ref.write_signs([few[0], few[1], few[1], few[3]], 13), 13, 1)
    yield "level-without-values", lie("R5", ref.write_signs([], 13, level=200), 13, 1)
    yield "values-without-a-level", lie("R5", ref.write_signs(few, 13, level=0), 13, 1)
    yield "all-values-without-a-level", lie("R5", ref.write_signs(many, 13, level=0), 13, 1)
    yield "sign-without-a-value-in-a-map", lie("R3", flipped(ref.write_signs(few, 1100), 512, 0x10), 1100, 1)


def levels() -> Case:
    nearest = [[0, 1], [9, 2], [10, 2], [19, 2], [21, 2], [63, 4], [31, 1], [33, 1], [35, 1], [ref.level(255) + 1, 1]]
    return {
        "kind": "levels",
        "valid": True,
        "integers": [ref.level(code) for code in range(256)],
        "nearest": [[*ratio, ref.nearest_code(ref.Fraction(*ratio))] for ratio in nearest],
    }


def refused_selectors() -> Iterator[tuple[str, Case]]:
    values = [Value(100 * i + i % 3, (200, 210, 220, 230)[i % 4], i % 4 == 1) for i in range(8)]
    three = [value._replace(code=min(value.code, 220)) for value in values]
    levels_start = sum(ref.section_bytes(8, 3)[:4])
    said = ref.write_chunk(values, bits=3)
    yield "four-levels-of-two-bits", lie("R1", ref.write_chunk(honest()), bits=3)
    yield "four-levels-out-of-order", lie("R5", flipped(said, levels_start + 1, 210 ^ 240), bits=3)
    yield "four-levels-of-which-two-are-equal", lie("R5", flipped(said, levels_start + 1, 200 ^ 210), bits=3)
    yield "fourth-level-unused", lie("R5", ref.write_chunk(three, levels=(200, 210, 220, 230), bits=3), bits=3)
    yield "second-level-unused", lie("R5", ref.write_chunk(three, levels=(200, 205, 210, 220), bits=3), bits=3)
    yield (
        "third-level-said-in-two-ways",
        lie("R5", flipped(ref.write_chunk(three, bits=3), levels_start - 1, 0x40), bits=3),
    )
    odd = [Value(90 * i, (200, 210)[i % 2], False) for i in range(25)]
    end = sum(ref.section_bytes(25, 3)[:4]) - 1
    yield "padding-in-selectors", lie("R3", flipped(ref.write_chunk(odd, bits=3), end, 0x80), 25, 3)
    zero = [value._replace(code=0, negative=i == 4) if i % 4 == 0 else value for i, value in enumerate(values)]
    yield "negative-zero-of-four-levels", lie("R6", ref.write_chunk(zero, bits=3), bits=3)


def layouts() -> Iterator[tuple[str, Case]]:
    def case(table: dict[str, list[int]], slots: list[list[Any]], chunks: int) -> Case:
        return {"kind": "layout", "valid": True, "table": table, "slots": slots, "chunks": chunks}

    # Written by hand: name, first chunk, place in it, values.
    table: dict[str, list[int]] = {
        "b.bias": [10],
        "b.weight": [64, 65],
        "a.weight": [64, 64],
        "a.scale": [],
        "c": [4095],
    }
    slots = [
        ["a.weight", 0, 0, 4096],
        ["b.weight", 1, 0, 4160],
        ["a.scale", 3, 0, 1],
        ["b.bias", 3, 1, 10],
        ["c", 3, 11, 4095],
    ]
    yield "layout", case(table, slots, 5)
    yield (
        "layout-of-small-tensors",
        case({"z": [2, 2], "Z": [3], "é": [1]}, [["Z", 0, 0, 3], ["z", 0, 3, 4], ["é", 0, 7, 1]], 1),
    )


# --- dense-1


def dense() -> Iterator[tuple[str, Case]]:
    def case(k: int, bits: int, *chunks: list[int], level_bias: int = 32) -> Case:
        payload = [ref.encode_chunk(patterns, k, level_bias, bits) for patterns in chunks]
        frame = reference_dense.write(ref.read(b"".join(payload), k, bits), k, bits)
        assert reference_dense.read(frame, len(chunks), k, bits) == b"".join(payload)
        assert len(frame) < len(b"".join(payload))
        case = {"kind": "dense", "valid": True, "k": k, "value_bits": bits, "chunks": len(chunks)}
        return case | {"payload": [data.hex() for data in payload], "dense": frame.hex()}

    def lie(rule: str, frame: bytes, k: int, bits: int, chunks: int) -> Case:
        found = {"kind": "dense", "valid": False, "rule": f"dense-1/{rule}", "k": k, "value_bits": bits}
        return found | {"chunks": chunks, "dense": frame.hex()}

    one = patterns_of(listed((2, ref.to_pattern(1.0)), (700, ref.to_pattern(1.0) | NEGATIVE)))
    for k, bits in ((64, 1), (64, 2), (64, 3), (512, 1), (1536, 1)):
        yield f"three-chunks-k{k}-bits{bits}", case(k, bits, *(ref.noise(k + i, spread=4) for i in range(3)))
    yield "few-values", case(64, 1, one, ref.noise(1), [0] * CHUNK)
    yield "nothing", case(64, 1, [0] * CHUNK, [0] * CHUNK)
    good = bytes.fromhex(case(64, 2, ref.noise(1), ref.noise(2))["dense"])
    yield "longer-than-the-chunks", lie("R1", bytes(165), 64, 2, 2)
    yield "cut", lie("R2", good[:-9], 64, 2, 2)
    yield "trailing-byte", lie("R2", good + b"\0", 64, 2, 2)
    yield "empty", lie("R2", b"", 64, 2, 2)
    writer = reference_dense.Writer()
    for place in range(CHUNK):  # 64 values are to come, and none does
        writer(0, min(64 * 65536 // (CHUNK - place), 65535))
    yield "values-without-a-place", lie("R2", writer.bytes(), 64, 2, 3)


# --- reduce-1


def reductions() -> Iterator[tuple[str, Case]]:
    def case(slices: list[bytes], weights: list[int], total: int, k: int, k_out: int, bits: int = 2) -> Case:
        output, clips = ref.reduce(slices, weights, total, k, k_out, bits)
        size = sum(ref.section_bytes(k_out, bits))
        return {
            "kind": "reduce",
            "valid": True,
            "k": k,
            "k_result": k_out,
            "value_bits": bits,
            "slices": [data.hex() for data in slices],
            "weights": weights,
            "total_weight": total,
            "clips": clips,
            "output": [output[start : start + size].hex() for start in range(0, len(output), size)],
        }

    def update(seed: int, k: int = 16, chunks: int = 2, exponent: int = 112, bits: int = 2) -> bytes:
        made = (ref.noise(10 * seed + i, exponent=exponent) for i in range(chunks))
        return b"".join(ref.encode_chunk(patterns, k, 32, bits) for patterns in made)

    def said(*values: tuple[int, int]) -> bytes:
        """A chunk of k = 8 with these (index, signed code)."""
        return ref.write_chunk([Value(index, abs(code), code < 0) for index, code in values])

    updates = [update(seed) for seed in range(1, 6)]
    yield "one-member", case(updates[:1], [1], 1, 16, 32)
    yield "five-members", case(updates, [1, 1, 1, 1, 1], 5, 16, 32)
    yield "weights", case(updates[:3], [8, 1, 3], 12, 16, 32)
    yield "half-of-the-roster-missing", case(updates[:3], [1, 2, 1], 8, 16, 32)
    yield "larger-result", case([update(7, k=8), update(8, k=8)], [1, 1], 2, 8, 100)
    yield "smaller-result", case(updates[:4], [1, 1, 1, 1], 4, 16, 8)
    yield "loud-member", case([*updates[:3], update(9, exponent=115)], [1, 1, 1, 1], 4, 16, 32)
    yield "deafening-member", case([*updates[:3], update(9, exponent=125)], [1, 1, 1, 1], 4, 16, 32)
    silent = ref.encode_chunk([0] * CHUNK, 16, 32) * 2
    yield "silent-member", case([silent, updates[1], update(9, exponent=113)], [1, 1, 1], 3, 16, 32)
    yield "all-silent", case([silent, silent], [1, 1], 2, 16, 32)
    plus = said(*((10 * i, 100) for i in range(8)))
    minus = said(*((10 * i, -100) for i in range(8)))
    yield "cancelling", case([plus, minus], [1, 1], 2, 8, 16)
    yield "equal-sums", case([plus, said(*((5 + 10 * i, 100) for i in range(8)))], [1, 1], 2, 8, 12)
    tiny = said(*((4095 - 9 * (7 - i), 1) for i in range(8)))
    yield "below-the-first-level", case([tiny], [1], 8, 8, 16)
    signs = [update(seed, bits=1) for seed in range(1, 6)]
    yield "signs", case(signs, [1, 1, 1, 1, 1], 5, 16, 32, bits=1)
    yield "signs-that-all-find-room", case(signs[:3], [8, 1, 3], 12, 16, 64, bits=1)
    fours = [update(seed, bits=3) for seed in range(1, 6)]
    yield "four-levels", case(fours, [1, 1, 2, 1, 1], 6, 16, 40, bits=3)
    against = ref.write_signs([Value(10 * i, 100, True) for i in range(8)], 8)
    along = ref.write_signs([Value(10 * i, 100, i == 7) for i in range(8)], 8)
    yield "signs-that-cancel", case([against, along], [1, 1], 2, 8, 16, bits=1)
    wide = [update(seed, k=300, chunks=1, bits=1) for seed in range(6, 10)]
    yield "signs-in-a-map", case(wide, [1, 2, 1, 1], 5, 300, 1100, bits=1)
    yield "largest-sums", case([said(*((i, 255) for i in range(8)))] * 4, [8] * 4, 32, 8, 8)


def steps() -> Iterator[tuple[str, Case]]:
    def hexes(patterns: list[int]) -> list[str]:
        return [f"{pattern:08x}" for pattern in patterns]

    e, delta = ref.noise(1, 24, 100, 40), ref.noise(2, 24, 100, 40)
    e += [0, NEGATIVE, 1, 0x00800000, 3, 0x3F800000]
    delta += [NEGATIVE, NEGATIVE, 2, 0x80800001, 0x80000001, 0xBF733333]
    yield (
        "accumulate",
        {
            "kind": "accumulate",
            "valid": True,
            "e": hexes(e),
            "delta": hexes(delta),
            "a": {str(beta): hexes(ref.accumulate(e, delta, beta)) for beta in (0, 1, 900_000, 950_000, 1_000_000)},
        },
    )
    yield from round_ends()
    chunks = [noise(31), noise(32)]
    values = [pattern for chunk in chunks for pattern in patterns_of(chunk)]
    yield (
        "state",
        {
            "kind": "state",
            "valid": True,
            "chunks": chunks,
            "checksum": str(ref.checksum(values)),  # too large for a JSON number in some languages
            "state_sha256": ref.state_sha256({"a": values}).hex(),
        },
    )


def round_ends() -> Iterator[tuple[str, Case]]:
    k, k_out, bias = 16, 32, 32
    mine, other = ref.noise(21), ref.noise(22)
    payloads = [ref.encode_chunk(patterns, k, bias) for patterns in (mine, other)]
    result, _ = ref.reduce(payloads, [1, 1], 2, k, k_out)
    sent, decided = ref.read_chunk(payloads[0], k), ref.read_chunk(result, k_out)
    for name, named in (("residual", True), ("residual-not-named", False)):
        after = ref.residual(mine, sent, decided, named, bias)
        yield (
            name,
            {
                "kind": "residual",
                "valid": True,
                "k": k,
                "k_result": k_out,
                "level_bias": bias,
                "a": noise(21),
                "payload": payloads[0].hex(),
                "result": result.hex(),
                "named": int(named),
                "changed": [[i, f"{after[i]:08x}"] for i in range(CHUNK) if after[i] != mine[i]],
            },
        )
    theta = ref.noise(23, exponent=108, spread=16)
    for alpha in (650_000, 1_000_000):
        after = ref.apply(theta, decided, bias, alpha)
        yield (
            f"apply-{alpha}",
            {
                "kind": "apply",
                "valid": True,
                "k_result": k_out,
                "level_bias": bias,
                "alpha_ppm": alpha,
                "theta": noise(23, 108, 16),
                "result": result.hex(),
                "changed": [[i, f"{after[i]:08x}"] for i in range(CHUNK) if after[i] != theta[i]],
            },
        )


if __name__ == "__main__":
    main()
