from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.parts import SHARE_MAX, assign_parts
from p2pnet.identity import PeerId
from p2pnet.wire.membership import Reach
from tests.core.voters import commit, genesis, peers
from tests.vectors import vectors

RATES = st.one_of(st.just(0), st.integers(1, 2**32 - 1))
MEMBERS = st.lists(st.tuples(st.sampled_from(list(Reach)), RATES, RATES), min_size=1, max_size=64)


@pytest.mark.parametrize("vector", vectors("round-1", "parts"))
def test_parts_are_those_of_the_page(vector: dict[str, Any]) -> None:
    state = genesis(1)
    commits = [
        commit(state, PeerId(bytes.fromhex(key)), reach=reach, up_kbps=up, down_kbps=down)
        for key, reach, up, down in vector["members"]
    ]
    found = assign_parts(
        vector["leaves"], commits, bytes.fromhex(vector["beacon"]), vector["view"], vector["reducers_min"]
    )
    assert [[part.start, part.stop, part.reducer.hex(), part.backup.hex()] for part in found] == vector["parts"]
    assert [part.index for part in found] == list(range(len(found)))


@given(leaves=st.integers(1, 10_000), members=MEMBERS, view=st.integers(0, 2**32 - 1), least=st.integers(1, 64))
def test_parts_cover_every_leaf_once_and_nobody_has_more_than_its_share(
    leaves: int, members: list[tuple[Reach, int, int]], view: int, least: int
) -> None:
    state = genesis(1)
    commits = [
        commit(state, each, reach=int(reach), up_kbps=up, down_kbps=down)
        for each, (reach, up, down) in zip(peers(len(members)), members, strict=True)
    ]
    parts = assign_parts(leaves, commits, b"b" * 32, view, least)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == leaves
    dialled = [each for each in commits if each.message.reach != Reach.PRIVATE]
    reducers = dialled if len(dialled) >= min(least, len(commits)) else commits
    assert all(0 < part.stop - part.start <= -(-SHARE_MAX * leaves // len(reducers)) for part in parts)
    assert {part.reducer for part in parts} <= {each.peer for each in reducers}
    assert len({part.reducer for part in parts}) == len(parts)
