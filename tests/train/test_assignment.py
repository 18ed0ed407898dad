from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.train import assignment
from p2pnet.train.assignment import Assignment, sample_index, sample_indices
from tests.vectors import vectors

BEACON, PEER = b"b" * 32, b"p" * 32


@pytest.mark.parametrize("vector", vectors("assignment-1"))
def test_the_vectors_hold(vector: dict[str, Any]) -> None:
    count = vector["count"] if "count" in vector else len(vector["indices"])
    beacon, peer = bytes.fromhex(vector["beacon"]), bytes.fromhex(vector["peer"])
    if vector["valid"]:
        drawn = sample_indices(beacon, peer, count, vector["population"], first=vector["first"])
        assert drawn == vector["indices"]
    else:
        with pytest.raises(ValueError, match=r"allowed|32 bytes|not within"):
            sample_indices(beacon, peer, count, vector["population"], first=vector["first"])


def test_the_page_names_the_values_of_the_code(repository: Path) -> None:
    page = (repository / "protocols" / "assignment-1.md").read_text()
    for name in ("BEACON_BYTES", "PEER_BYTES", "POSITIONS_MAX", "POPULATION_MAX"):
        assert f"| {name} | {getattr(assignment, name)} |" in page
    assert f"| TAG | `{assignment.TAG.decode()!r}` |".replace("'", "") in page


@given(first=st.integers(0, 2**62), count=st.integers(0, 8), population=st.integers(1, 2**63))
def test_a_position_needs_no_other(first: int, count: int, population: int) -> None:
    alone = [sample_index(BEACON, PEER, position, population) for position in range(first, first + count)]
    assert sample_indices(BEACON, PEER, count, population, first=first) == alone
    assert all(0 <= index < population for index in alone)


def test_a_batch_is_the_positions_after_those_of_the_batches_before_it() -> None:
    assigned = Assignment(round_id=3, beacon=BEACON, peer=PEER)
    whole = sample_indices(BEACON, PEER, 12, 1000)
    assert [index for step in range(3) for index in assigned.batch(step, 4, 1000)] == whole


def test_beacon_and_peer_each_change_every_draw() -> None:
    drawn = sample_indices(BEACON, PEER, 50, 2**40)
    assert not set(drawn) & set(sample_indices(PEER, PEER, 50, 2**40))
    assert not set(drawn) & set(sample_indices(BEACON, BEACON, 50, 2**40))


def test_draws_are_spread_evenly() -> None:
    counts = Counter(sample_indices(BEACON, PEER, 6000, 6))
    chi_squared = sum((counts[face] - 1000) ** 2 / 1000 for face in range(6))
    assert chi_squared < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds; this one is fixed
