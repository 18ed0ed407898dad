from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.parts import HALVINGS_MAX, RATE_RANGE, RATE_UNKNOWN_KBPS, SHARE_MAX, assign_parts, line_rates
from p2pnet.core.shares import Rate, Volume
from p2pnet.identity import PeerId
from p2pnet.wire.membership import Reach
from tests.core.voters import VOLUME, commit, genesis, peers
from tests.vectors import vectors

RATES = st.one_of(st.just(0), st.integers(1, 2**32 - 1))
MEMBERS = st.lists(
    st.tuples(st.sampled_from(list(Reach)), RATES, RATES, st.integers(0, HALVINGS_MAX)), min_size=1, max_size=64
)
STATE = genesis(1)


@pytest.mark.parametrize("vector", vectors("parts-1", "parts"))
def test_parts_are_those_of_the_page(vector: dict[str, Any]) -> None:
    members = [(PeerId(bytes.fromhex(key)), *rest) for key, *rest in vector["members"]]
    commits = [commit(STATE, key, reach=reach, up_kbps=up, down_kbps=down) for key, reach, up, down, _ in members]
    halvings = {key: times for key, *_, times in members}
    beacon, volume = bytes.fromhex(vector["beacon"]), Volume(*vector["volume"])
    resting = {PeerId(bytes.fromhex(key)) for key in vector.get("resting", ())}
    found = assign_parts(volume, commits, beacon, vector["view"], vector["reducers_min"], halvings, resting)
    assert [[part.start, part.stop, part.reducer.hex(), part.backup.hex()] for part in found] == vector["parts"]
    assert [part.index for part in found] == list(range(len(found)))


@given(
    leaves=st.integers(1, 10_000),
    sizes=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    members=MEMBERS,
    view=st.integers(0, 2**32 - 1),
    least=st.integers(1, 64),
)
def test_parts_cover_every_leaf_once_and_nobody_has_more_than_its_share(
    leaves: int, sizes: tuple[int, int], members: list[tuple[Reach, int, int, int]], view: int, least: int
) -> None:
    who = peers(len(members))
    commits = [
        commit(STATE, each, reach=int(reach), up_kbps=up, down_kbps=down)
        for each, (reach, up, down, _) in zip(who, members, strict=True)
    ]
    halvings = {each: times for each, (*_, times) in zip(who, members, strict=True) if times}
    parts = assign_parts(Volume(leaves, *sizes), commits, b"b" * 32, view, least, halvings)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == leaves
    dialled = [each for each in commits if each.message.reach != Reach.PRIVATE]
    reducers = dialled if len(dialled) >= min(least, len(commits)) else commits
    assert all(0 < part.stop - part.start <= -(-SHARE_MAX * leaves // len(reducers)) for part in parts)
    assert {part.reducer for part in parts} | {part.backup for part in parts} <= {each.peer for each in reducers}
    assert len({part.reducer for part in parts}) == len(parts)
    assert all(part.backup != part.reducer for part in parts) or len(reducers) == 1
    assert parts == assign_parts(Volume(leaves, *sizes), commits[::-1], b"b" * 32, view, least, halvings)


def test_who_rests_neither_reduces_nor_backs_up_while_enough_others_can() -> None:
    who = peers(4)
    commits = [commit(STATE, each) for each in who]
    for resting, expected in ((who[:1], set(who[1:])), (who[:2], set(who[2:])), (who[:3], set(who))):
        parts = assign_parts(Volume(380, 1312, 2592), commits, b"b" * 32, 1, 2, {}, resting)
        assert {part.reducer for part in parts} == {part.backup for part in parts} == expected


def test_a_peer_with_a_slow_line_neither_reduces_nor_backs_up_while_others_do() -> None:
    who = peers(8)
    ups = [5_000, *[100_000] * 7]
    commits = [commit(STATE, each, up_kbps=up, down_kbps=100_000) for each, up in zip(who, ups, strict=True)]
    parts = assign_parts(Volume(380, 1312, 2592), commits, b"b" * 32, 0, 3, {})
    assert {part.reducer for part in parts} == {part.backup for part in parts} == set(who[1:])


def test_half_of_a_roster_bounds_what_the_others_can_say_of_their_lines() -> None:
    who = peers(5)
    claims = ((0, 0), (1, 1), (1_000_000, 500_000), (2_000_000, 600_000), (2**32 - 1, 2**32 - 1))
    commits = [commit(STATE, each, up_kbps=up, down_kbps=down) for each, (up, down) in zip(who, claims, strict=True)]
    assert [line_rates(commits)[each] for each in who] == [
        Rate(1_000_000, 500_000),
        Rate(1_000_000 // RATE_RANGE, 500_000 // RATE_RANGE),
        Rate(1_000_000, 500_000),
        Rate(2_000_000, 600_000),
        Rate(1_000_000 * RATE_RANGE, 500_000 * RATE_RANGE),
    ]
    unknown = line_rates([commit(STATE, each) for each in who])
    assert set(unknown.values()) == {Rate(RATE_UNKNOWN_KBPS, RATE_UNKNOWN_KBPS)}


def test_one_leaf_is_one_part_whose_backup_is_another_reducer() -> None:
    commits = [commit(STATE, each) for each in peers(3)]
    [part] = assign_parts(Volume(1, 1312, 2592), commits, b"b" * 32, 0, 3, {})
    assert part.backup != part.reducer
    [alone] = assign_parts(VOLUME, commits[:1], b"b" * 32, 0, 3, {})
    assert alone.backup == alone.reducer
