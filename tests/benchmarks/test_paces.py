from __future__ import annotations

import pytest
import torch

from benchmarks.arms import Bench
from benchmarks.paces import WAYS, Setting, run
from p2pnet.config import BytesLmTask

TINY = BytesLmTask("bytes-lm", layers=1, width=64, heads=2, context=16)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_wait_learns_and_says_who_took_part(way: str) -> None:
    torch.set_num_threads(1)
    bench = Bench(TINY, is_compiled=False, grid=8, end=8)
    found = run(bench, Setting(way, horizon_s=6.0, h_steps=4, window_s=0.45, steps_s=(0.1, 0.1, 0.1, 0.4), batch=2))
    times_s, losses = zip(*found["curve"], strict=True)
    assert times_s[-1] >= 6.0
    assert losses[-1] < losses[0] - 0.1
    fast, _, late, slow = found["credited"]
    assert fast == found["rounds"]
    assert 0 < late < fast
    expected = {"window": fast, "fixed": fast // 2, "fixed, waits for all": fast, "fixed, without the slow one": 0}
    assert slow == expected[way]
