"""Hostile bytes: what is valid, damaged on purpose; and how much of it is tried.

`P2PNET_FUZZ_RUNS=2000 pytest tests/fuzz` (or `make fuzz`) tries more than the default suite has time for. Hypothesis
prints a blob that replays a failure; every mutation follows from one integer.
"""

from __future__ import annotations

import json
import os
import random
import re
from functools import cache
from typing import Any, Final

import msgpack
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.vectors import VECTORS

RUNS: Final = int(os.environ.get("P2PNET_FUZZ_RUNS", "0"))  # 0: each test's own small number
SEED_BYTES_MAX: Final = 64 << 10
_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){2,}")
_NUMBERS: Final = (
    -1,
    0,
    1,
    23,
    24,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31,
    2**32 - 1,
    2**32,
    2**63,
    2**64 - 1,
)
_LENGTHS: Final = (0, 1, 19, 20, 21, 31, 32, 33, 63, 64, 65, 255, 256, 512, 4096, 65536)


def fuzz_settings(runs: int) -> settings:
    """So many examples, or as many as P2PNET_FUZZ_RUNS says; never a deadline, since a busy machine is no finding."""
    return settings(
        max_examples=RUNS or runs,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


@cache
def vector_bytes(*pages: str) -> tuple[bytes, ...]:
    """Every string of bytes in the vectors of these pages, the invalid ones too."""
    found: dict[bytes, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, str) and len(value) <= 2 * SEED_BYTES_MAX and _HEX.fullmatch(value):
            found[bytes.fromhex(value)] = None
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                walk(item)

    for page in pages:
        for file in sorted((VECTORS / page).glob("*.json")):
            walk(json.loads(file.read_text()))
    if not found:
        raise ValueError(f"no vectors under {pages}")
    return tuple(found)


def hostile(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Bytes that are one of the seeds damaged, mostly; some are noise, some the seed itself."""
    mutated = st.builds(
        lambda which, seed: mutate(random.Random(seed), seeds[which], seeds),
        st.integers(0, len(seeds) - 1),
        st.integers(0, 2**32),
    )
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=300), st.sampled_from(seeds))


def mutate(rng: random.Random, data: bytes, others: tuple[bytes, ...]) -> bytes:
    """Damage bytes: in their structure when they are msgpack, else bit by bit, cut, spliced, lengths inflated."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice((_tree, _tree, _flip, _cut, _splice, _repeat, inflate))(rng, data, rng.choice(others))
    return data[: 4 * SEED_BYTES_MAX]


def mutate_tree(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Change one place of nested lists, or of what is packed inside their bytes."""
    if isinstance(value, bytes) and len(value) > 2 and rng.random() < 0.6:
        inner = unpacked(value)
        if isinstance(inner, list):  # a signed body, a commit in a roster
            return packed(mutate_tree(rng, inner, depth))
    if not isinstance(value, list) or not value or rng.random() < 0.1:
        return _strange(rng, value)
    value, at = list(value), rng.randrange(len(value))
    match rng.randrange(8):
        case 0:
            del value[at]
        case 1:
            value.insert(at, value[rng.randrange(len(value))])
        case 2:
            other = rng.randrange(len(value))
            value[at], value[other] = value[other], value[at]
        case 3 if depth < 6:
            value += value * min(200, rng.choice((1, 16, 100)) // len(value) + 1)
        case _:
            value[at] = mutate_tree(rng, value[at], depth + 1)
    return value


def _strange(rng: random.Random, value: Any) -> Any:
    """Something of the same kind at the edge of its limits, or of another kind."""
    if rng.random() < 0.7:
        match value:
            case bool():
                return not value
            case int():
                return rng.choice((*_NUMBERS, value + 1, value - 1))
            case bytes():
                return rng.choice((rng.randbytes(rng.choice(_LENGTHS)), value[:-1], value + b"\0", bytes(len(value))))
            case str():
                return rng.choice((value * 20, "", "\0", "\u202e" + value, "ü" * 64, value + "'\"\n"))
    things = (
        None,
        True,
        1.5,
        float("nan"),
        "text",
        b"bytes",
        [],
        [[]],
        [[[[[[[[[]]]]]]]]],
        {},
        {"a": 1},
        2**64 - 1,
        -(2**63),
    )
    return rng.choice(things)


def _tree(rng: random.Random, data: bytes, other: bytes) -> bytes:
    value = unpacked(data)
    return _flip(rng, data, other) if value is None else packed(mutate_tree(rng, value))


def _flip(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    start = rng.choice((0, 0, 0, rng.randrange(len(data) + 1)))
    return data[start : rng.randrange(start, len(data) + 1)]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeat(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randrange(1, 65)]
    return data[:start] + piece * rng.choice((2, 3, 100)) + data[start:]


def inflate(rng: random.Random, data: bytes, _other: bytes) -> bytes:
    """Put a header that claims far more than there is, of msgpack, protobuf, or eight bytes little-endian."""
    start = rng.randrange(len(data) + 1)
    claim = rng.choice(
        (
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdc\xff\xff",
            b"\xff" * 9 + b"\x01",
            b"\xff\xff\xff\x7f",
            b"\xff" * 7 + b"\x7f",
        )
    )
    return data[:start] + claim + data[start + rng.choice((0, len(claim))) :]


def packed(value: Any) -> bytes:
    """Lists as msgpack; what has no such form becomes a byte that never is."""
    try:
        return bytes(msgpack.packb(value, use_bin_type=True))
    except (ValueError, OverflowError):  # an integer beyond 64 bits: no msgpack
        return b"\xc1"


def unpacked(data: bytes) -> Any:
    """What these bytes say in msgpack, or None."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):  # TypeError: a list as a map's key
        return None
