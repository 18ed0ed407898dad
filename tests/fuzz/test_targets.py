"""Every reader of foreign bytes, with damaged ones: one kind of error, and it is the right one."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given

from tests.fuzz.material import fuzz_settings, hostile, inflate
from tests.fuzz.targets import TARGETS, Target

PEAK_BYTES_MAX = 32 << 20
SLOW = {"ledger": 12, "learner": 30, "safetensors": 60, "config": 60, "content": 80, "status": 60}  # a file each time


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_bytes_are_read_or_refused_as_they_should_be(target: Target) -> None:
    @fuzz_settings(SLOW.get(target.name, 150))
    @given(data=hostile(target.seeds()))
    def check(data: bytes) -> None:
        target.run(data)

    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_claims_to_be_huge_costs_no_more_than_it_is(target: Target) -> None:
    rng, seeds = random.Random(1), target.seeds()
    target.run(seeds[0])  # what is made once and kept
    tracemalloc.start()
    for _ in range(20):
        target.run(inflate(rng, rng.choice(seeds), b""))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES_MAX, f"{peak_bytes >> 20} MiB"
