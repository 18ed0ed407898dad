from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.parts import HALVINGS_MAX
from p2pnet.core.shares import Volume
from p2pnet.core.state import FORGET_FACTOR, FORGIVE_ROUNDS, HashChain, SwarmState, quorum
from p2pnet.sim import POLICY
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Commit, Reduced, decode_outcome, next_lineage, outcome_digest, roster_digest
from p2pnet.wire.signing import Signed, open_signed
from tests.core.voters import VOLUME, chain_of, commit, genesis, peer, peers, signed
from tests.vectors import vectors

LARGE = Volume(400, 1312, 2592)


def committed(state: SwarmState, present: list[Any], fast: Any = None) -> list[Signed[Commit]]:
    rates = {each: 4000 if each == fast else 1000 for each in present}
    return [commit(state, each, up_kbps=rates[each], down_kbps=rates[each]) for each in sorted(present)]


def decide(state: SwarmState, present: list[Any], late: Any = None) -> SwarmState:
    """The state after a round of these peers; who is late has the fastest line, and its part comes from its backup."""
    return decided(state, committed(state, present, late), late)


def decided(state: SwarmState, commits: list[Signed[Commit]], late: Any = None) -> SwarmState:
    digest = roster_digest(tuple(each.raw for each in commits)) if commits else b""
    reduced = []
    for part in state.parts(commits, 0) if commits else ():
        author = part.backup if part.reducer == late else part.reducer
        inputs = (257,) * len(commits)
        message = Reduced(
            state.swarm, state.round, 0, part.index, part.start, part.stop, digest, inputs, b"r" * 32, b"n" * 32
        )
        reduced.append(signed(message, author).raw)
    outcome = state.outcome(digest, 0, tuple(reduced), commits, b"")
    return state.advance(encode(outcome), outcome, commits)


@pytest.mark.parametrize("vector", vectors("round-1", "quorum"))
def test_a_quorum_is_what_the_page_says(vector: dict[str, Any]) -> None:
    assert [[voters, quorum(voters)] for voters, _ in vector["quorums"]] == vector["quorums"]


@pytest.mark.parametrize("voters", range(4, 101))
def test_two_quorums_share_more_than_a_third(voters: int) -> None:
    liars = (voters - 1) // 3
    assert 2 * quorum(voters) - voters > liars
    assert quorum(voters) <= voters - liars


@pytest.mark.parametrize("vector", vectors("round-1", "state"))
def test_hashes_of_the_state_are_those_of_the_page(vector: dict[str, Any]) -> None:
    voters = tuple(bytes.fromhex(key) for key in vector["electorate"])
    state = SwarmState(
        bytes.fromhex(vector["swarm"]), POLICY, 0, bytes.fromhex(vector["lineage"]), bytes.fromhex(vector["beacon"]),
        voters, {}, frozenset(voters), VOLUME,  # type: ignore[arg-type]
    )  # fmt: skip
    raws = tuple(bytes.fromhex(raw) for raw in vector["roster"])
    outcome = bytes.fromhex(vector["outcome"])
    commits = [open_signed((Commit,), raw, lambda *_: True) for raw in raws]
    assert [state.proposer(view).hex() for view in range(8)] == vector["proposers"]
    assert roster_digest(raws).hex() == vector["roster_digest"]
    assert outcome_digest(outcome).hex() == vector["value"]
    assert next_lineage(state.lineage, outcome_digest(outcome)).hex() == vector["next_lineage"]
    after = state.advance(outcome, decode_outcome(outcome), commits)
    assert (after.lineage.hex(), after.beacon.hex()) == (vector["next_lineage"], vector["next_beacon"])


def test_n_views_in_a_row_go_round_all_n_voters() -> None:
    state = genesis(7)
    assert {state.proposer(view) for view in range(3, 10)} == set(state.electorate)


@pytest.mark.parametrize(("voters", "most"), [(1, 0), (2, 0), (3, 1), (4, 1), (7, 2), (10, 3)])
def test_the_proposers_of_the_views_before_rest_at_most_a_third_of_the_voters(voters: int, most: int) -> None:
    state = genesis(voters)
    for view in range(5):
        resting = state.resting(view)
        assert resting == {state.proposer(before) for before in range(max(0, view - most), view)}
        assert len(resting) == min(view, most)
    commits = committed(state, peers(voters))
    rest = state.resting(1)
    assert all(part.reducer not in rest for part in state.parts(commits, 1))


def test_a_voter_that_misses_a_round_is_dropped_and_comes_back_one_at_a_time() -> None:
    state = decide(genesis(4), peers(4))
    state = decide(state, peers(4)[:2])
    assert state.electorate == tuple(peers(4)[:2])
    state = decide(state, peers(4))
    assert len(state.electorate) == 3
    assert len(decide(state, peers(4)).electorate) == 4


def test_a_newcomer_votes_after_its_service() -> None:
    state = genesis(1)
    everyone = [*state.electorate, peer(77)]
    for served in range(1, POLICY.service_rounds + 1):
        assert peer(77) not in state.electorate
        state = decide(state, everyone)
        assert state.members[peer(77)].accepted == served
    assert peer(77) in state.electorate


def test_void_leaves_electorate_and_members_as_they_are_and_moves_beacon_and_lineage() -> None:
    before = decide(genesis(4), peers(4))
    after = decide(before, [])
    assert (after.electorate, after.members) == (before.electorate, before.members)
    assert len({before.beacon, after.beacon}) == len({before.lineage, after.lineage}) == 2


def test_each_member_reveals_its_chain_backwards_and_nothing_else_is_admitted() -> None:
    state = decide(genesis(2), peers(2))
    tip = state.members[peers(2)[0]].tip
    preimage = chain_of(peers(2)[0]).reveal(tip)
    assert preimage is not None
    assert hashlib.sha256(preimage).digest() == tip
    assert state.admits_preimage(peers(2)[0], preimage)
    assert not state.admits_preimage(peers(2)[0], tip)


def test_a_chain_that_is_used_up_or_not_ours_reveals_nothing() -> None:
    chain = HashChain(b"s" * 32, 2)
    end = chain.reveal(None)
    first = chain.reveal(end)
    assert chain.reveal(first) == b"s" * 32
    assert chain.reveal(b"s" * 32) is None
    assert chain.reveal(b"?" * 32) is None


def test_a_name_that_came_once_is_forgotten_soon_and_one_that_served_long_is_not() -> None:
    state = decide(genesis(2), [*peers(2), peer(88)])
    assert state.knows(peer(88))
    for _ in range(FORGET_FACTOR):
        state = decide(state, peers(2))
    assert not state.knows(peer(88))
    state = decide(state, [])
    assert all(state.knows(each) for each in peers(2))


def test_a_commit_with_a_right_signature_is_what_the_helpers_make() -> None:
    made = commit(genesis(1), peers(1)[0])
    assert fake_verify(made.peer, b"p2pnet/round/1\n" + made.body, made.signature)


def weigh(samples: int, round_samples: int) -> int:
    state = replace(genesis(1), policy=replace(POLICY, round_samples=round_samples))
    return state.weight(commit(state, peer(0), samples=samples).message)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31))
def test_a_weight_is_the_eighths_of_a_full_round_that_were_begun_and_never_more_than_eight(
    samples: int, round_samples: int
) -> None:
    assert weigh(samples, round_samples) == min(8, max(1, ceil(Fraction(8 * samples, round_samples))))


@pytest.mark.parametrize(
    ("samples", "round_samples", "weight"),
    [
        (0, 2**31, 1), (1, 2**31, 1), (2**28, 2**31, 1), (2**28 + 1, 2**31, 2), (2**31, 2**31, 8),
        (2**32 - 1, 2**31, 8), (0, 1, 1), (1, 1, 8), (2**32 - 1, 1, 8), (7, 56, 1), (8, 56, 2), (55, 56, 8), (1, 3, 3),
    ],
)  # fmt: skip
def test_weights_at_their_bounds(samples: int, round_samples: int, weight: int) -> None:
    assert weigh(samples, round_samples) == weight


def share(state: SwarmState, fast: Any) -> int:
    parts = state.parts(committed(state, peers(8), fast), 0)
    return sum(part.stop - part.start for part in parts if part.reducer == fast)


def test_a_reducer_that_is_late_gets_less_each_time_at_last_nothing_and_is_tried_again_after_a_while() -> None:
    state, slow = replace(genesis(8), volume=LARGE), peers(8)[0]
    shares = [share(state, slow)]
    while shares[-1]:
        state = decide(state, peers(8), slow)
        shares.append(share(state, slow))
        assert state.members[slow].halvings == len(shares) - 1
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == len(shares) == 4
    before = state.round
    while not share(state, slow):
        state = decide(state, peers(8), slow)
    assert 1 < state.round - before <= FORGIVE_ROUNDS
    assert {state.members[other].halvings for other in peers(8)[1:]} == {0}


def test_a_reduction_in_time_takes_a_halving_back_and_void_none() -> None:
    state, slow = replace(genesis(4), volume=LARGE), peers(4)[0]
    seen = []
    for late in (True, True, False, False, False):
        state = decide(state, peers(4), slow) if late else decided(state, committed(state, peers(4), slow))
        seen.append(state.members[slow].halvings)
    assert seen == [1, 2, 1, 0, 0]
    assert decide(state, []).members == state.members


def test_halvings_have_a_bound_and_who_is_alone_backs_itself_up() -> None:
    alone = peers(1)[0]
    assert decide(genesis(1), [alone], alone).members[alone].halvings == 0
    state = genesis(2)
    for _ in range(HALVINGS_MAX + 5):
        state = decide(state, peers(2), peers(2)[0])
    assert 0 < state.members[peers(2)[0]].halvings <= HALVINGS_MAX
