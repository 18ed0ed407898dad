from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.commits import PATIENCE, STRANGERS_MAX, Commits
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim import POLICY
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.round import Commit, Roster
from p2pnet.wire.signing import Signed
from tests.core.voters import commit, genesis, peer, peers

STATE = genesis(4)
VOTERS = peers(4)
GRACE_S = POLICY.grace_ms / 1000


def commits(present: list[PeerId], at_s: float = 0.0) -> Commits:
    found = Commits(STATE, fake_verify, 0.0)
    for each in present:
        assert found.add(commit(STATE, each), at_s) is None
    return found


def roster(found: list[Signed[Commit]]) -> Roster:
    return Roster(STATE.swarm, 0, 0, STATE.lineage, tuple(each.raw for each in found))


@pytest.mark.parametrize(
    ("lie", "rule"),
    [({"swarm": b"?" * 32}, "R10"), ({"round": 1}, "R10"), ({"lineage": b"?" * 32}, "R11")],
)
def test_a_commit_of_something_else_is_refused(lie: dict[str, object], rule: str) -> None:
    assert commits([]).add(commit(STATE, VOTERS[0], **lie), 0.0) == f"round-1/{rule}"


def test_a_second_commit_of_one_peer_changes_nothing() -> None:
    found = commits(VOTERS)
    before = dict(found.held)
    assert found.add(commit(STATE, VOTERS[0], payload_root=b"2" * 32), 1.0) is None
    assert found.held == before


def test_a_flood_of_new_names_takes_bounded_memory_and_keeps_no_founder_out() -> None:
    found = commits([])
    for number in range(100, 100 + 3 * STRANGERS_MAX):
        found.add(commit(STATE, peer(number)), 0.0)
    for voter in VOTERS:
        assert found.add(commit(STATE, voter), 0.0) is None
    assert len(found.held) == STRANGERS_MAX + len(VOTERS)
    listed = found.open_roster(found.roster())
    assert len(listed) == POLICY.group_size_max
    assert set(VOTERS) <= {each.peer for each in listed}


def test_the_phase_ends_at_once_when_all_that_are_awaited_have_committed() -> None:
    assert commits(VOTERS, 3.0).deadline_s(VOTERS) == 3.0


def test_half_and_one_more_give_the_others_a_fair_wait_and_fewer_the_whole_window() -> None:
    assert commits(VOTERS[:3], 4.0).deadline_s(VOTERS) == PATIENCE * 4.0 + GRACE_S
    assert commits(VOTERS[:2], 4.0).deadline_s(VOTERS) == POLICY.window_ms / 1000 + GRACE_S


def test_a_slow_newcomer_is_given_patience_and_never_the_window() -> None:
    alone = commits(VOTERS[:1], 4.0)
    assert alone.deadline_s(VOTERS[:1], [peer(50)]) == PATIENCE * 4.0 + GRACE_S
    alone.add(commit(STATE, peer(50)), 5.0)
    assert alone.deadline_s(VOTERS[:1], [peer(50)]) == 5.0


def test_by_window_everybody_has_until_its_end_however_early_the_others_commit() -> None:
    policy = replace(POLICY, by_window=1)
    latest_s = policy.window_ms / 1000 + GRACE_S
    found = Commits(replace(STATE, policy=policy), fake_verify, 0.0)
    for voter in VOTERS[:3]:
        found.add(commit(STATE, voter), 0.1)
    assert found.deadline_s(VOTERS) == latest_s
    assert found.deadline_s(VOTERS[:3], VOTERS[3:]) == latest_s
    found.add(commit(STATE, VOTERS[3]), 7.0)
    assert found.deadline_s(VOTERS) == found.deadline_s(VOTERS[:3], VOTERS[3:]) == 7.0


def test_who_comes_to_a_round_late_gives_no_more_than_what_is_left_and_a_grace() -> None:
    found, window_s = Commits(STATE, fake_verify, 50.0), POLICY.window_ms / 1000
    found.begin(20.0)
    assert found.deadline_s(VOTERS) == 20.0 + window_s + GRACE_S
    later = Commits(STATE, fake_verify, 200.0)
    later.begin(20.0)
    assert later.deadline_s(VOTERS) == 200.0 + GRACE_S  # not in the past, before it could commit itself


def test_who_started_elsewhere_than_most_voters_is_left_out_even_of_its_own_roster() -> None:
    found = commits(VOTERS[:3])
    found.add(commit(STATE, VOTERS[3], checksum=8), 0.0)
    assert [each.peer for each in found.open_roster(found.roster())] == VOTERS[:3]


def test_a_roster_that_is_unsorted_repeated_or_too_long_is_refused() -> None:
    found = commits(VOTERS)
    raws = found.roster()
    for lie in (raws[::-1], (raws[0], *raws)):
        with pytest.raises(WireError, match="R13"):
            found.open_roster(lie)
    small = Commits(replace(STATE, policy=replace(POLICY, group_size_max=3)), fake_verify, 0.0)
    with pytest.raises(WireError, match="R13"):
        small.open_roster(raws)


def test_a_roster_with_a_forged_or_strange_commit_is_refused() -> None:
    found = commits([])
    good = commit(STATE, VOTERS[0])
    forged = replace(good, signature=b"\0" * 64)
    with pytest.raises(WireError, match="wire-1/R6"):
        found.open_roster((forged.raw,))
    with pytest.raises(WireError, match="R11"):
        found.open_roster((commit(STATE, VOTERS[0], lineage=b"?" * 32).raw,))
    with pytest.raises(WireError):
        found.open_roster((b"garbage",))


def test_a_roster_that_omits_a_voter_is_refused_once_it_had_time_to_arrive() -> None:
    found = commits(VOTERS)
    short = [found.held[each][0] for each in VOTERS[:3]]
    assert not found.omitted_too_many(roster(short), tuple(short), 7, GRACE_S)
    assert found.omitted_too_many(roster(short), tuple(short), 7, GRACE_S + 0.1)


def test_strangers_and_those_who_started_elsewhere_cannot_have_a_roster_refused() -> None:
    found = commits([*VOTERS[:3], *(peer(number) for number in range(60, 90))])
    found.add(commit(STATE, VOTERS[3], checksum=8), 0.0)
    listed = [found.held[each][0] for each in VOTERS[:3]]
    assert not found.omitted_too_many(roster(listed), tuple(listed), 7, 100.0)
