from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.groups import STEWARDS_MIN, count_groups, deal
from p2pnet.core.state import Member, SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.round import GROUPS_MAX
from tests.core.voters import POLICY, genesis, peers
from tests.vectors import vectors


def swarm(members: int, voters: int, size: int) -> SwarmState:
    """A swarm after a round in which all of its members were."""
    who = peers(members)
    rows = {peer: Member(b"t" * 32, 1, 0, 0) for peer in who}
    state = replace(genesis(1, replace(POLICY, group_size_max=size)), members=rows, electorate=tuple(who[:voters]))
    return replace(state, round=1)


@pytest.mark.parametrize("vector", vectors("groups-1", "deal"))
def test_the_deal_is_that_of_the_page(vector: dict[str, Any]) -> None:
    voters, others = ([PeerId(bytes.fromhex(key)) for key in vector[name]] for name in ("voters", "others"))
    state = replace(
        swarm(1, 1, vector["group_size_max"]),
        beacon=bytes.fromhex(vector["beacon"]),
        electorate=tuple(voters),
        members={peer: Member(b"t" * 32, 1, 0, 0) for peer in voters + others},
    )
    found = deal(state)
    groups = [[peer.hex() for peer in group] for group in found.groups] if found is not None else vector["groups"]
    assert groups == vector["groups"]
    assert (found is None) == (len(vector["groups"]) == 1)


@given(members=st.integers(1, 70_000), size=st.integers(1, 64))
def test_no_group_is_full_and_none_is_empty(members: int, size: int) -> None:
    count = count_groups(members, size)
    assert 1 <= count <= min(members, GROUPS_MAX)
    if 1 < count < min(members, GROUPS_MAX):
        assert -(-members // count) <= size


@given(members=st.integers(4, 90), voters=st.integers(1, 90), size=st.integers(2, 12))
def test_everybody_is_in_one_group_and_voters_and_members_are_spread_evenly(
    members: int, voters: int, size: int
) -> None:
    state = swarm(members, min(voters, members), size)
    found = deal(state)
    if found is None:
        assert members < size
        return
    everybody = [peer for group in found.groups for peer in group]
    assert sorted(everybody) == sorted(state.members)
    sizes = [len(group) for group in found.groups]
    voting = [sum(peer in state.electorate for peer in group) for group in found.groups]
    assert max(sizes) - min(sizes) <= 1
    assert max(voting) - min(voting) <= 1
    for group, stewards in zip(found.groups, found.stewards, strict=True):
        assert len(stewards) >= min(STEWARDS_MIN, len(group))
        assert {peer for peer in group if peer in state.electorate} <= set(stewards)
        assert {found.rank(peer, 5) for peer in stewards} == set(range(len(stewards)))


def test_a_newcomer_commits_in_the_group_of_its_draw_and_another_beacon_deals_anew() -> None:
    state = swarm(20, 4, 6)
    found, other = deal(state), deal(replace(state, beacon=b"o" * 32))
    assert found is not None
    assert other is not None
    newcomer = peers(40)[30]
    assert newcomer not in found.places or newcomer in state.members
    assert 0 <= found.group_of(newcomer) < len(found.groups)
    assert found.groups != other.groups
