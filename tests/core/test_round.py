"""What one peer does in one round with what it hears; whole swarms are in tests/test_sim.py."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from p2pnet.core.certificates import bundle, certifies
from p2pnet.core.events import (
    Broadcast,
    Decide,
    Effect,
    Encoded,
    Exchange,
    GatherFailed,
    Hold,
    Note,
    Persist,
    ScatterFailed,
    Send,
    Skipped,
    SliceArrived,
    Started,
)  # fmt: skip
from p2pnet.core.exchange import LATE_PROPOSAL
from p2pnet.core.leading import propose_due_s
from p2pnet.core.pace import SAFETY
from p2pnet.core.reports import report
from p2pnet.core.rosters import EARLY_PER_PEER
from p2pnet.core.round import Round
from p2pnet.core.slots import Restored
from p2pnet.core.voting import STAND_INS
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import fake_sign, fake_verify
from p2pnet.wire.codec import encode
from p2pnet.wire.round import (
    SIGNED,
    Commit,
    Decision,
    Endorsement,
    Phase,
    Proposal,
    Quorum,
    Reduced,
    Roster,
    Skip,
    Vote,
    outcome_digest,
    slot_of,
)  # fmt: skip
from p2pnet.wire.signing import open_signed
from tests.core.voters import SWARM, commit, context, genesis, peer, peers, round_of, signed

STATE = genesis(4)
VOTERS = peers(4)
LEADER = STATE.proposer(0)
ME = next(each for each in VOTERS if each not in (LEADER, STATE.proposer(1)))
VOID = encode(STATE.outcome(b"", 0, (), (), b""))


def kinds(effects: list[Effect]) -> list[str]:
    return [effect.kind for effect in effects if isinstance(effect, Note)]


def of(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def started(me: PeerId = ME) -> Round:
    round_ = round_of(STATE, me)
    round_.started(Started(0, 7, b""), 0.0)
    return round_


def committed(me: PeerId = ME, at_s: float = 1.0) -> Round:
    round_ = started(me)
    round_.encoded(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), at_s)
    for each in VOTERS:
        round_.commit(commit(STATE, each), at_s)
    return round_


def roster(round_: Round, view: int = 0, present: list[PeerId] = VOTERS, author: PeerId | None = None) -> list[Effect]:
    raws = tuple(round_.commits.held[each][0].raw for each in present)
    message = Roster(STATE.swarm, 0, view, STATE.lineage, raws)
    return round_.roster(signed(message, author or STATE.proposer(view)), 3.0)


def certificate(value: bytes, voters: list[PeerId], view: int = 1) -> Quorum:
    vote = Vote(STATE.swarm, 0, view, int(Phase.SEAL), value)
    return bundle(STATE, view, Phase.SEAL, value, {each: signed(vote, each).signature for each in voters})


def test_a_commit_is_durable_before_it_is_told() -> None:
    effects = started().encoded(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), 1.0)
    assert isinstance(effects[0], Persist)
    assert isinstance(effects[1], Broadcast)
    assert effects[1].raw == effects[0].raw


def test_a_voter_that_skips_is_not_waited_for_and_a_stranger_that_skips_changes_nothing() -> None:
    round_ = started(LEADER)
    skipper, *others = [each for each in VOTERS if each != LEADER]
    for each in (LEADER, *others):
        round_.commit(commit(STATE, each), 1.0)
    assert round_.phase() == "train"
    round_.skip(signed(Skip(STATE.swarm, 0, STATE.lineage), peer(99)), 1.1)
    round_.skip(signed(Skip(STATE.swarm, 0, bytes(32)), skipper), 1.1)
    assert round_.phase() == "train"
    assert not round_.skips
    rosters = list(round_.skip(signed(Skip(STATE.swarm, 0, STATE.lineage), skipper), 1.2))
    assert of(rosters, Exchange)
    assert {each.peer for each in of(rosters, Exchange)[0].commits} == {LEADER, *others}  # type: ignore[attr-defined]


def test_a_round_that_all_skip_is_over_at_once_and_needs_no_window() -> None:
    round_ = started(LEADER)
    effects = round_.skipped(Skipped(0, "NaN"), 1.0)
    assert kinds(effects) == ["skipped"]
    assert of(effects, Persist)
    for each in VOTERS:
        round_.skip(signed(Skip(STATE.swarm, 0, STATE.lineage), each), 1.0)
    assert round_.phase() == "roster"
    assert not of(round_.skipped(Skipped(0, "NaN"), 1.0), Persist)  # signed once


def test_a_roster_opens_an_exchange_only_when_its_proposer_signed_it() -> None:
    assert of(roster(committed(), author=ME), Exchange) == []
    assert len(of(roster(committed()), Exchange)) == 1


def test_of_two_rosters_of_one_view_the_first_counts() -> None:
    round_ = committed()
    roster(round_)
    assert roster(round_, present=VOTERS[1:]) == []
    assert len(round_.exchanges) == 1


def test_a_roster_that_omits_a_voter_is_refused_and_said_so() -> None:
    round_ = committed()
    assert kinds(roster(round_, present=[each for each in VOTERS if each != ME])) == ["refused-roster"]
    assert round_.exchanges == {}


def test_a_roster_of_garbage_is_refused() -> None:
    round_ = committed()
    message = Roster(STATE.swarm, 0, 0, STATE.lineage, (b"garbage", b"more"))
    assert kinds(round_.roster(signed(message, LEADER), 2.0)) == ["refused-roster"]


def test_a_roster_of_a_later_view_is_kept_until_then() -> None:
    round_ = committed()
    assert roster(round_, view=1) == []
    effects: list[Effect] = []
    for each in [each for each in VOTERS if each != ME]:
        effects += round_.vote(signed(Vote(STATE.swarm, 0, 1, 1, b""), each), 3.0)
    assert round_.deciding.view == 1
    assert len(of(effects, Exchange)) == 1


def test_the_leader_calls_one_roster_when_all_have_committed_and_signs_it_once() -> None:
    round_ = started(LEADER)
    effects = round_.encoded(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), 1.0)
    for each in VOTERS:
        effects += round_.commit(commit(STATE, each), 1.0)
    effects += round_.advance(1.1)
    slots = [effect.slot for effect in effects if isinstance(effect, Persist)]
    assert len(slots) == len(set(slots)) == 2
    assert len(of(effects, Exchange)) == 1


def reduce_all(round_: Round, now_s: float) -> list[Effect]:
    effects: list[Effect] = []
    digest = round_.exchanges[0].digest
    for part in round_.exchanges[0].parts:
        message = Reduced(
            STATE.swarm, 0, 0, part.index, part.start, part.stop, digest, (257,) * len(VOTERS),
            bytes([part.index]) * 32, b"n" * 32,
        )  # fmt: skip
        effects += round_.reduced(signed(message, part.reducer), now_s)
    return effects


def test_a_proposer_that_has_all_it_needs_and_is_quiet_is_given_half_a_grace() -> None:
    round_ = committed()
    roster(round_)
    late_s = 3.0 + LATE_PROPOSAL * round_.exchanges[0].timeout_s
    assert propose_due_s(round_) == late_s
    reduce_all(round_, 3.2)
    assert propose_due_s(round_) == pytest.approx(3.2 + round_.grace_s / 2)
    assert not of(round_.advance(3.2 + round_.grace_s / 2 - 0.01), Persist)
    assert of(round_.advance(3.2 + round_.grace_s / 2), Persist)  # nil
    assert round_.deciding.step == 1


def test_time_outs_follow_from_what_the_last_rounds_took() -> None:
    reducer = next(part.reducer for part in STATE.parts([commit(STATE, each) for each in VOTERS], 0))
    round_ = committed(reducer)
    roster(round_)
    pace, volume = round_.context.pace, STATE.volume
    longest_s = pace.longest_s(round_.grace_s, volume)
    assert round_.exchanges[0].timeout_s == longest_s
    part = next(part for part in round_.exchanges[0].parts if part.reducer == reducer)
    report(round_, SliceArrived(0, 0, part.index, reducer), 3.0)  # its own says nothing
    commits, parts = round_.exchanges[0].commits, round_.exchanges[0].parts
    assert pace.timeout_s(round_.grace_s, volume, commits, parts) == longest_s
    other = next(each for each in VOTERS if each != reducer)
    report(round_, SliceArrived(0, 0, part.index, other), 3.4)
    assert pace.timeout_s(round_.grace_s, volume, commits, parts) == pytest.approx(SAFETY * 0.4)
    round_.advance(3.0 + longest_s)  # two of four are missing
    assert pace.timeout_s(round_.grace_s, volume, commits, parts) == longest_s


def test_a_view_without_a_proposal_is_given_up_with_nil_told_to_all() -> None:
    round_ = committed()
    due_s = round_.deadline_s(1.0)
    assert due_s is not None
    effects = round_.advance(due_s + 10.0)
    votes = [effect for effect in effects if isinstance(effect, Broadcast)]
    assert len(votes) == 1
    assert round_.deciding.step == 1


def test_a_voter_whose_commits_did_not_come_gives_up_the_view_once_more_than_a_third_have_voted() -> None:
    round_ = started()  # a half-open connection: the others decided without it that the commit phase is over
    others = [each for each in VOTERS if each != ME]
    for each in others[:2]:
        assert round_.commit_over_s is None
        round_.vote(signed(Vote(STATE.swarm, 0, 0, int(Phase.PREPARE), b""), each), 5.0)
    assert round_.commit_over_s == 5.0
    due_s = round_.deadline_s(5.0)
    assert due_s is not None
    assert due_s < 5.0 + STATE.policy.window_ms / 1000
    assert [effect for effect in round_.advance(due_s) if isinstance(effect, Broadcast)]


def test_a_result_whose_bytes_went_down_with_their_reducer_is_given_up_at_once() -> None:
    proposer = STATE.proposer(0)
    round_ = committed(next(voter for voter in VOTERS if voter != proposer))
    roster(round_)
    exchange = round_.exchanges[0]
    commits = tuple(each for each, _ in (round_.commits.held[voter] for voter in VOTERS))
    inputs = (257,) * len(VOTERS)
    raws = tuple(
        signed(
            Reduced(
                SWARM,
                0,
                0,
                part.index,
                part.start,
                part.stop,
                exchange.digest,
                inputs,
                bytes([part.index]) * 32,
                b"n" * 32,
            ),
            part.reducer,
        ).raw
        for part in exchange.parts
    )
    outcome = encode(STATE.outcome(exchange.digest, 0, raws, commits, b""))
    round_.proposal(signed(Proposal(SWARM, 0, 0, 0, outcome), proposer), 3.1)
    assert of(round_.advance(4.0), Broadcast) == []
    for part in exchange.parts:
        report(round_, ScatterFailed(0, 0, part.index, part.reducer), 4.0)
    for part in exchange.parts:
        report(round_, GatherFailed(0, bytes([part.index]) * 32), 5.0)
    told = [open_signed(SIGNED, effect.raw, fake_verify) for effect in of(round_.advance(5.1), Broadcast)]
    assert [vote.message.value for vote in told if isinstance(vote.message, Vote)] == [b""]
    assert round_.deciding.step == 1


def test_void_is_not_prepared_in_the_first_view() -> None:
    round_ = committed()
    round_.proposal(signed(Proposal(STATE.swarm, 0, 0, 0, VOID), LEADER), 2.0)
    assert of(round_.advance(2.1), Hold) == []
    assert round_.deciding.step == 0


def test_void_is_prepared_late_in_a_later_view_and_is_held_first() -> None:
    round_ = committed()
    for each in [each for each in VOTERS if each != ME]:
        round_.vote(signed(Vote(STATE.swarm, 0, 1, 1, b""), each), 3.0)
    round_.proposal(signed(Proposal(STATE.swarm, 0, 1, 0, VOID), STATE.proposer(1)), 3.0)
    assert round_.deciding.step == 0
    due_s = round_.deadline_s(3.0)
    assert due_s is not None
    effects = round_.advance(due_s)
    order = [type(effect) for effect in effects if isinstance(effect, Hold | Persist | Send)]
    assert order[:3] == [Hold, Persist, Send]


def test_a_whole_decision_is_believed_for_its_certificate_alone() -> None:
    value = outcome_digest(VOID)
    effects = started().decision(Decision(certificate(value, VOTERS[:3]), VOID, ()), 1.0)
    assert isinstance(effects[-1], Decide)
    assert effects[-1].void
    assert effects[-1].after.round == 1


@pytest.mark.parametrize(
    "lie", ["too few", "another value", "forged", "twice", "a stranger", "prepares", "another round"]
)
def test_a_decision_that_is_not_certified_changes_nothing(lie: str) -> None:
    good = certificate(outcome_digest(VOID), VOTERS[:3])
    first = good.endorsements[0]
    bad = {
        "too few": replace(good, endorsements=good.endorsements[:2]),
        "another value": replace(good, value=b"?" * 32),
        "forged": replace(good, endorsements=(replace(first, signature=b"0" * 64), *good.endorsements[1:])),
        "twice": replace(good, endorsements=(first, first, first)),
        "a stranger": replace(good, endorsements=(*good.endorsements[:2], Endorsement(peer(99), b"0" * 64))),
        "prepares": replace(good, phase=1),
        "another round": replace(good, round=1),
    }[lie]
    assert not certifies(Decision(bad, VOID, ()), STATE, fake_verify)
    round_ = started()
    assert round_.decision(Decision(bad, VOID, ()), 1.0) == []
    assert round_.decided is None


def test_a_bundle_with_one_forged_vote_does_not_count_at_all() -> None:
    good = certificate(b"v" * 32, VOTERS[:3])
    round_ = started()
    forged = tuple(replace(each, signature=b"0" * 64) for each in good.endorsements[2:])
    round_.quorum(replace(good, endorsements=(*good.endorsements[:2], *forged)), 1.0)
    assert round_.certificate is None
    round_.quorum(good, 1.0)
    assert round_.certificate == good


def test_of_seals_that_all_get_a_few_peers_only_broadcast_the_certificate() -> None:
    state = genesis(12)
    vote = Vote(state.swarm, 0, 0, int(Phase.SEAL), b"v" * 32)
    seals = [signed(vote, each) for each in state.electorate[:9]]  # more than 2/3
    told = set()
    for me in state.electorate:
        round_ = round_of(state, me)
        effects = [effect for seal in seals for effect in round_.vote(seal, 1.0)]
        assert round_.certificate is not None
        if encode(round_.certificate) in {effect.raw for effect in of(effects, Broadcast)}:  # type: ignore[attr-defined]
            told.add(me)
    assert told == {state.proposer(view) for view in range(1 + STAND_INS)}


def test_a_restarted_peer_signs_the_same_commit_again_and_takes_no_part_with_another_payload() -> None:
    first = started()
    effects = first.encoded(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), 1.0)
    slots = {effect.slot: effect.raw for effect in effects if isinstance(effect, Persist)}
    again = Round(context(ME), STATE, 0.0, Restored(slots))
    again.started(Started(0, 7, b""), 0.0)
    effects = again.encoded(Encoded(0, b"q" * 32, 40, True, 1, 0, 0), 1.0)
    assert of(effects, Persist) == []
    assert [effect.raw for effect in effects if isinstance(effect, Broadcast)] == list(slots.values())
    for each in VOTERS:
        again.commit(commit(STATE, each), 1.0)
    assert "left-out" in kinds(roster(again))


def test_a_restarted_voter_that_sealed_is_locked_and_decides_alone_what_it_alone_decided() -> None:
    state = genesis(1)
    me = state.electorate[0]
    void = encode(state.outcome(b"", 0, (), (), b""))
    votes = [Vote(state.swarm, 0, 1, phase, outcome_digest(void)) for phase in (1, 2)]
    slots = {slot_of(vote): signed(vote, me).raw for vote in votes}
    round_ = Round(context(me), state, 0.0, Restored(slots, ((void, ()),)))
    assert round_.deciding.locked == (1, outcome_digest(void))
    assert isinstance(round_.advance(0.0)[-1], Decide)


def test_a_flood_of_well_signed_nonsense_neither_raises_nor_grows_without_bound() -> None:
    round_, rng = committed(), random.Random(3)
    for _ in range(4000):
        author = rng.choice([*VOTERS, peer(rng.randrange(50, 10**6))])
        view, value = rng.choice([0, 1, 2, 63, 64, 65, 2**32 - 1]), rng.randbytes(rng.choice([0, 5, 32]))
        digest = rng.randbytes(32)
        raws = (*rng.sample([each.raw for each, _ in round_.commits.held.values()], 3), value or b"x")
        message = rng.choice([
            Commit(STATE.swarm, 0, STATE.lineage, digest, 1, digest, 1, 0, 2, 0, 2**32 - 1),
            Roster(STATE.swarm, 0, view, STATE.lineage, raws),
            Reduced(STATE.swarm, 0, view, rng.randrange(64), 0, 1, digest, (0, 257), digest, digest),
            Proposal(STATE.swarm, 0, view, rng.choice([0, 1, 2**32]), rng.choice([VOID, rng.randbytes(40)])),
            Vote(STATE.swarm, 0, view, rng.choice([1, 2]), value),
        ])  # fmt: skip
        found = signed(message, author)
        getattr(round_, type(message).__name__.lower())(found, 4.0)
        endorsements = tuple(Endorsement(each, fake_sign(each, value)) for each in VOTERS)
        round_.quorum(Quorum(STATE.swarm, 0, view, 2, digest, endorsements), 4.0)
    held = len(round_.commits.held)
    assert held <= 128 + len(VOTERS)
    assert len(round_.proposals) <= 66
    assert len(round_.rosters._early) <= 64
    assert sum(map(len, round_.rosters._early_reduced.values())) <= EARLY_PER_PEER * held
    assert round_.decided is None
