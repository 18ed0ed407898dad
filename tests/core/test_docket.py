"""Whom an outcome excludes: what is proven, fresh, held by who prepares it, and leaves somebody to vote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.candidates import judge_exclusions
from p2pnet.core.docket import Docket
from p2pnet.core.events import (
    Accuse,
    Broadcast,
    Effect,
    FetchEvidence,
    Heard,
    Hold,
    Note,
    Proven,
    Started,
    Tick,
    Unproven,
)
from p2pnet.core.evidence import Offence
from p2pnet.core.rounds import Rounds
from p2pnet.core.state import EVIDENCE_ROUNDS, SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import open_message
from p2pnet.wire.codec import encode
from p2pnet.wire.round import EXCLUDED_MAX, Exclusion, Outcome, Phase, Proposal, Vote, decode_outcome, outcome_digest
from p2pnet.wire.signing import Signed
from tests.core.voters import commit, context, genesis, peer, peers, signed

STATE = genesis(4)
VOTERS = peers(4)


def offence(who: PeerId, number: int = 0, name: bytes = b"") -> Offence:
    return Offence(who, number, (name or who)[:1] * 32, "lied")


def at(number: int, **changed: object) -> SwarmState:
    return replace(STATE, round=number, **changed)  # type: ignore[arg-type]


def after(state: SwarmState, *excluded: Exclusion, roster: bool = False) -> SwarmState:
    """The state after a round that excludes; void, or with all that may commit in its roster."""
    commits = [commit(state, who) for who in VOTERS if not state.bars(who)] if roster else []
    outcome = state.outcome(b"r" * 32 if roster else b"", 0, (), commits, b"", excluded)
    judge_exclusions(state, outcome.excluded)
    raw = encode(outcome)
    return state.advance(raw, decode_outcome(raw), commits)


@pytest.mark.parametrize("roster", [False, True], ids=["void", "result"])
def test_the_excluded_leave_the_electorate_at_once_and_are_barred_for_as_long_as_the_manifest_says(
    roster: bool,
) -> None:
    state = after(STATE, Exclusion(VOTERS[1], b"e" * 32), roster=roster)
    assert state.electorate == (VOTERS[0], *VOTERS[2:])
    assert state.excluded == {VOTERS[1]: 1 + STATE.policy.exclude_rounds}
    assert VOTERS[1] not in state.expected()
    for _ in range(STATE.policy.exclude_rounds):
        assert state.bars(VOTERS[1])
        assert not state.may_exclude(VOTERS[1])
        state = after(state)
    assert not state.bars(VOTERS[1])
    assert state.excluded  # remembered, so that old evidence does not exclude again
    assert VOTERS[1] in after(state, roster=True).electorate


def test_an_exclusion_is_forgotten_when_no_evidence_from_before_its_end_counts_any_more() -> None:
    state = at(10, excluded={VOTERS[1]: 10})
    while state.round < 10 + EVIDENCE_ROUNDS:
        assert state.excluded
        state = after(state)
    assert not state.excluded
    old = Docket([offence(VOTERS[1], 9)])
    assert old.charges(state) == ()


def test_a_commit_of_the_excluded_is_not_taken() -> None:
    state = after(STATE, Exclusion(VOTERS[1], b"e" * 32))
    found = Rounds(context(VOTERS[0]), state, 0.0).round.commits
    assert found.judge(commit(state, VOTERS[1])) == "round-1/R19"
    assert found.judge(commit(state, VOTERS[2])) is None


def test_the_last_voter_is_never_charged_and_an_outcome_that_does_is_refused() -> None:
    docket = Docket(offence(voter) for voter in VOTERS)
    charged = [each.peer for each in docket.charges(STATE)]
    assert charged == VOTERS[:3]
    alone = genesis(1)
    assert Docket([offence(alone.electorate[0])]).charges(alone) == ()
    with pytest.raises(WireError, match="R47"):
        judge_exclusions(alone, (Exclusion(alone.electorate[0], b"e" * 32),))


def test_one_round_excludes_at_most_so_many_and_the_next_one_goes_on() -> None:
    state = genesis(20)
    docket = Docket(offence(voter) for voter in state.electorate[:12])
    charged = docket.charges(state)
    assert len(charged) == EXCLUDED_MAX
    assert [each.peer for each in charged] == sorted(each.peer for each in charged)
    raw = encode(state.outcome(b"", 0, (), (), b"", charged))
    assert len(docket.charges(state.advance(raw, decode_outcome(raw), ()))) == 4


def test_of_many_proofs_against_one_the_first_is_kept_and_one_that_is_asked_for() -> None:
    docket = Docket()
    first, second = offence(VOTERS[1], 0, b"a"), offence(VOTERS[1], 0, b"b")
    assert docket.wants(first, STATE)
    docket.hold(first)
    assert not docket.wants(first, STATE)
    assert not docket.wants(second, STATE)
    named = (Exclusion(VOTERS[1], second.digest),)
    assert docket.fetch(named, (VOTERS[2],), 0.0) == [FetchEvidence(second.digest, (VOTERS[2],))]
    assert docket.fetch(named, (VOTERS[2],), 0.0) == []  # it is on its way
    assert docket.wants(second, STATE)


def test_evidence_against_strangers_of_long_ago_of_later_or_atoned_for_is_not_kept() -> None:
    late = at(1000)
    for wanted, state, one in (
        (False, STATE, offence(peer(99))),
        (False, late, offence(VOTERS[1], 1000 - EVIDENCE_ROUNDS - 1)),
        (True, late, offence(VOTERS[1], 1000 - EVIDENCE_ROUNDS)),
        (False, late, offence(VOTERS[1], 1003)),
        (True, late, offence(VOTERS[1], 1002)),
        (False, at(1000, excluded={VOTERS[1]: 999}), offence(VOTERS[1], 998)),
        (True, at(1000, excluded={VOTERS[1]: 999}), offence(VOTERS[1], 999)),
        (False, at(1000, excluded={VOTERS[1]: 1001}), offence(VOTERS[1], 1000)),
    ):
        assert Docket().wants(one, state) is wanted, one


# --- voters: whoever proposes, an outcome is prepared by those alone that hold the proof


def proposed(state: SwarmState, excluded: tuple[Exclusion, ...]) -> tuple[Outcome, Heard, PeerId]:
    """A proposal of VOID in view 1, heard from its proposer, and a voter that is somebody else."""
    proposer = state.proposer(1)
    outcome = state.outcome(b"", 0, (), (), b"", excluded)
    message = signed(Proposal(state.swarm, 0, 1, 0, encode(outcome)), proposer)
    return outcome, Heard(proposer, message), next(voter for voter in VOTERS if voter != proposer)


def voter_in_view(view: int, state: SwarmState, me: PeerId, *held: Offence) -> Rounds:
    found = Rounds(replace(context(me), docket=Docket(held)), state, 0.0)
    found.handle(Started(0, 7, b""), 0.0)
    for other in VOTERS:
        if other != me:
            for before in range(view):
                for phase in (Phase.PREPARE, Phase.SEAL):
                    found.handle(Heard(other, signed(Vote(state.swarm, 0, before, int(phase), b""), other)), 0.0)
    assert found.round.deciding.view == view
    return found


def holds(effects: list[Effect]) -> list[bytes]:
    return [effect.value for effect in effects if isinstance(effect, Hold)]


@pytest.fixture
def state() -> SwarmState:
    return replace(STATE, round=0)


def test_a_voter_prepares_an_exclusion_only_once_it_has_the_proof(state: SwarmState) -> None:
    victim = next(voter for voter in VOTERS if voter != state.proposer(1))
    proof = offence(victim)
    outcome, heard, _ = proposed(state, (Exclusion(victim, proof.digest),))
    me = next(voter for voter in VOTERS if voter not in (victim, state.proposer(1)))
    found = voter_in_view(1, state, me)
    effects = [*found.handle(heard, 1.0), *found.handle(Started(0, 7, b""), 5.0)]
    [fetch] = [effect for effect in effects if isinstance(effect, FetchEvidence)]
    assert (fetch.digest, fetch.sources[0]) == (proof.digest, state.proposer(1))
    assert me not in fetch.sources
    assert holds(effects) == []
    effects = found.handle(Unproven(proof.digest, False), 5.1)
    assert holds(effects) == []
    effects = found.handle(Started(0, 7, b""), 6.0)  # asked for again, a little later
    assert [type(effect) for effect in effects if isinstance(effect, FetchEvidence)] == [FetchEvidence]
    effects = found.handle(Proven(proof, b"raw"), 6.1)
    assert holds(effects) == [outcome_digest(encode(outcome))]
    assert effects.index(Accuse(proof, b"raw")) < next(i for i, one in enumerate(effects) if isinstance(one, Hold))


@pytest.mark.parametrize("lie", ["worthless", "another", "old"])
def test_a_voter_refuses_an_exclusion_that_its_proof_does_not_carry(state: SwarmState, lie: str) -> None:
    victim, someone = [voter for voter in VOTERS if voter != state.proposer(1)][:2]
    me = next(voter for voter in VOTERS if voter not in (victim, someone, state.proposer(1)))
    digest = b"e" * 32
    _, heard, _ = proposed(state, (Exclusion(victim, digest),))
    found = voter_in_view(1, state, me)
    found.handle(heard, 1.0)
    answers = {
        "worthless": Unproven(digest, True),
        "another": Proven(Offence(someone, 0, digest, "lied"), b"raw"),
        "old": Proven(Offence(victim, 2**31, digest, "lied"), b"raw"),
    }
    effects = found.handle(answers[lie], 5.0)
    assert holds(effects) == []
    [note] = [effect for effect in effects if isinstance(effect, Note) and effect.kind == "refused-proposal"]
    assert note.detail.startswith("round-1/R48")
    assert found.round.deciding.cast[1, Phase.PREPARE] == b""


@pytest.mark.parametrize("view", [1, 2, 3, 4, 5])
def test_a_proposer_charges_until_each_voter_had_its_turn_and_then_goes_on_without(view: int) -> None:
    me = STATE.proposer(view)
    proof = offence(next(voter for voter in VOTERS if voter != me))
    found = voter_in_view(view, STATE, me, proof)
    effects = [effect for at_s in range(100, 200, 10) for effect in found.handle(Tick(), float(at_s))]
    sent = [open_message(effect.raw, True) for effect in effects if isinstance(effect, Broadcast) and effect.signed]
    messages = [one.message for one in sent if isinstance(one, Signed)]
    outcome = next(decode_outcome(one.outcome) for one in messages if isinstance(one, Proposal) and one.view == view)
    assert [each.peer for each in outcome.excluded] == ([proof.peer] if view < len(VOTERS) else [])
