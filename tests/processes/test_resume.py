"""kill -9 at random moments, as in benchmarks/resume.py, a few times."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.resume import measure


@pytest.mark.slow
def test_a_peer_killed_again_and_again_never_signs_against_its_past_and_a_newcomer_contributes(tmp_path: Path) -> None:
    found = measure(tmp_path, kills=3, seed=7)
    assert found["conflicts"] == 0
    assert found["slots"] > 3
    assert found["is_identical"]
    assert found["join"]["credited_round"] <= found["join"]["ready_round"] + 2
