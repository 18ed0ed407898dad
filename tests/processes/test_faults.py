"""Faults at a named moment of a round on real processes, as in benchmarks/faults.py, once each and at a small size."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.faults import measure
from benchmarks.faults_rows import ROWS

NAMES = ("proposer killed before its proposal", "reducer frozen in reduce", "daemon killed in gather")
MEGABYTES = 0.5


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the others saw, by row; all rows are of one swarm."""
    rows = [row for row in ROWS if row.name in NAMES]
    return {each["row"]: each["runs"][0] for each in measure("loopback", rows, 1, MEGABYTES)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_others_decide_the_round_and_the_next_one_has_a_result(found: dict[str, Any], name: str) -> None:
    assert found[name]["outcome"] in ("result", "void")
    assert found[name]["next"] == "result"


@pytest.mark.slow
def test_whatever_was_struck_takes_part_again_with_the_same_parameters(found: dict[str, Any]) -> None:
    assert found.keys() == set(NAMES)
    assert all(run["equal"] for run in found.values())
