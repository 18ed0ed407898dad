"""Every reader of foreign bytes, with damaged ones: one kind of error, and it is the right one."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.fuzz.material import fuzz_settings, hostile
from tests.fuzz.targets import TARGETS, Target

SLOW = {"ledger": 12, "learner": 30, "safetensors": 60, "config": 60, "content": 80, "status": 60}  # a file each time


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_bytes_are_read_or_refused_as_they_should_be(target: Target) -> None:
    @fuzz_settings(SLOW.get(target.name, 150))
    @given(data=hostile(target.seeds()))
    def check(data: bytes) -> None:
        target.run(data)

    check()
