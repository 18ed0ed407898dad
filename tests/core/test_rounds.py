"""From round to round: who is ahead, who asks, what is kept; whole swarms are in tests/test_sim.py."""

from __future__ import annotations

import random

from p2pnet.core.certificates import bundle
from p2pnet.core.early import AHEAD_MAX, AHEAD_PER_PEER, DECISIONS_PER_ROUND
from p2pnet.core.events import (
    Applied,
    Decide,
    Effect,
    Encoded,
    Heard,
    Note,
    PeerDown,
    PeerUp,
    Send,
    Serve,
    Started,
    Tick,
    Train,
)  # fmt: skip
from p2pnet.core.rounds import ASK_EVERY_S, TICK_MIN_S, Rounds
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim import POLICY
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Ask, Decision, Phase, Quorum, Roster, Vote, outcome_digest
from tests.core.test_round import certificate
from tests.core.voters import SWARM, commit, context, genesis, peer, peers, signed

STATE = genesis(4)
VOTERS = peers(4)
ME, *OTHERS = VOTERS


def rounds(state: SwarmState = STATE, me: PeerId = ME) -> Rounds:
    return Rounds(context(me), state, 0.0)


def of(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def vote(author: PeerId, number: int = 0, swarm: bytes = SWARM) -> Heard:
    return Heard(author, signed(Vote(swarm, number, 0, 1, b""), author))


def void_decision() -> Decision:
    void = encode(STATE.outcome(b"", 0, (), (), b""))
    return Decision(certificate(outcome_digest(void), VOTERS[:3]), void, ())


def test_the_first_tick_starts_training_once() -> None:
    found = rounds()
    assert of(found.handle(Tick(), 0.0), Train) == [Train(0, STATE.beacon, True, POLICY.window_ms / 1000)]
    assert of(found.handle(Tick(), 0.1), Train) == []


def test_a_vote_of_another_swarm_is_not_heard() -> None:
    found = rounds()
    for author in OTHERS:
        found.handle(vote(author, swarm=b"?" * 32), 0.0)
    assert found.round.deciding.endorsements(0, Phase.PREPARE, b"") == {}


def test_one_voice_of_a_later_round_is_asked_and_not_believed() -> None:
    found = rounds()
    effects = found.handle(vote(OTHERS[0], 2**32 - 1), 1.0)
    assert [effect.to for effect in effects if isinstance(effect, Send)] == OTHERS[:1]
    assert not found.behind()
    found.handle(vote(OTHERS[1], 2), 1.0)
    assert found.behind()


def test_a_peer_is_asked_no_faster_than_it_may_be() -> None:
    found = rounds()
    sent = [of(found.handle(vote(OTHERS[0], 5), at_s / 10), Send) for at_s in range(20)]
    assert sum(map(len, sent)) <= 2.0 / ASK_EVERY_S


def test_an_ask_of_an_earlier_round_is_served_and_of_this_one_answered() -> None:
    found = rounds()
    found.handle(Started(0, 7, b""), 0.0)
    found.handle(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), 1.0)
    answer = found.handle(Heard(OTHERS[0], Ask(SWARM, 0, 0)), 2.0)
    assert len(of(answer, Send)) == 1
    assert found.handle(Heard(OTHERS[0], Ask(SWARM, 0, 0)), 2.1) == []
    found.handle(Heard(OTHERS[1], void_decision()), 3.0)
    assert Serve(OTHERS[0], 0) in found.handle(Heard(OTHERS[0], Ask(SWARM, 0, 0)), 4.0)


def test_who_has_just_come_is_told_what_i_signed_and_who_asks_later_what_others_did_too() -> None:
    found = rounds()
    found.handle(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), 1.0)
    found.handle(Heard(OTHERS[1], commit(STATE, OTHERS[1])), 1.0)
    found.handle(PeerUp(OTHERS[0]), 2.0)
    own = found.round.commits.held[ME][0].raw
    told = of(found.handle(Heard(OTHERS[0], Ask(SWARM, 0, 0)), 2.1), Send)
    assert [effect.raw for effect in told] == [own]
    told = of(found.handle(Heard(OTHERS[0], Ask(SWARM, 0, 0)), 2.1 + found.round.grace_s), Send)
    assert {effect.raw for effect in told} == {own, commit(STATE, OTHERS[1]).raw}


def test_who_waits_for_the_bytes_of_an_exchange_asks_only_when_it_is_late() -> None:
    found = rounds()
    for other in OTHERS:
        found.handle(PeerUp(other), 0.0)
    found.handle(Started(0, 7, b""), 0.0)
    raws = tuple(commit(STATE, voter).raw for voter in VOTERS)
    proposer = STATE.proposer(0)
    found.handle(Heard(OTHERS[0], signed(Roster(SWARM, 0, 0, STATE.lineage, raws), proposer)), 1.0)
    exchange, asked_s, now_s = found.round.exchanges[0], [], 1.0
    while now_s < 1.0 + 2 * exchange.timeout_s:
        now_s += 0.1
        if any(isinstance(effect, Send) for effect in found.handle(Tick(), now_s)):
            asked_s.append(now_s)
    assert asked_s
    assert min(asked_s) >= 1.0 + exchange.timeout_s


def test_a_decision_that_came_early_is_taken_up_in_its_round() -> None:
    found = rounds()
    decision = void_decision()
    assert of(found.handle(Heard(OTHERS[0], decision), 1.0), Decide)
    after = found.round.decided.after if found.round.decided else STATE
    void = encode(after.outcome(b"", 0, (), (), b""))
    ballot = Vote(SWARM, 1, 1, 2, outcome_digest(void))
    quorum = bundle(after, 1, Phase.SEAL, outcome_digest(void), {v: signed(ballot, v).signature for v in VOTERS[:3]})
    found.handle(Heard(OTHERS[0], Decision(quorum, void, ())), 1.0)
    effects = found.handle(Applied(0), 1.1)
    assert of(effects, Decide)
    assert of(effects, Train) == []


def test_who_took_over_a_decision_waits_for_the_next_one_unless_others_commit_to_that_round() -> None:
    alone, together = rounds(), rounds()
    for found in (alone, together):
        found.handle(Heard(OTHERS[0], void_decision()), 1.0)
        assert of(found.handle(Applied(0), 1.1), Train) == []
    assert of(together.handle(Heard(OTHERS[1], commit(together.state, OTHERS[1])), 1.2), Train)
    assert of(alone.handle(Tick(), 1.2), Train) == []
    assert of(alone.handle(Tick(), 1.1 + alone.round.grace_s), Train)


def test_a_window_begins_with_the_certificate_however_late_the_round_is_applied() -> None:
    found, window_s = rounds(), POLICY.window_ms / 1000
    found.handle(Heard(OTHERS[0], void_decision().certificate), 4.0)
    found.handle(Heard(OTHERS[1], void_decision()), 5.0)  # what was certified is here
    found.handle(Applied(0), 30.0)
    assert of(found.handle(Tick(), 31.0), Train) == [Train(1, found.state.beacon, False, 4.0 + window_s)]
    whole = rounds()  # nobody said when this was decided: perhaps long ago
    whole.handle(Heard(OTHERS[1], void_decision()), 5.0)
    whole.handle(Applied(0), 30.0)
    assert of(whole.handle(Tick(), 31.0), Train) == [Train(1, whole.state.beacon, False, 30.0 + window_s)]


def test_a_certificate_that_waited_for_a_slow_peer_counts_from_when_it_came() -> None:
    found = rounds()
    found.handle(Heard(OTHERS[0], void_decision()), 1.0)
    after = found.round.decided.after if found.round.decided else STATE
    void = encode(after.outcome(b"", 0, (), (), b""))
    value = outcome_digest(void)
    seals = {voter: signed(Vote(SWARM, 1, 1, 2, value), voter).signature for voter in VOTERS[:3]}
    quorum = bundle(after, 1, Phase.SEAL, value, seals)
    found.handle(Heard(OTHERS[0], quorum), 3.0)  # while the learner is in a step
    assert of(found.handle(Applied(0), 9.0), Train) == []  # it is over: what was trained for it would be late
    assert found.deadline_s is not None
    assert found.deadline_s > 9.0 + 2 * TICK_MIN_S
    assert found.round.certified_s == 3.0
    found.handle(Heard(OTHERS[0], Decision(quorum, void, ())), 9.5)
    found.handle(Applied(1), 10.0)
    assert found.round.commits.start_s == 3.0


def test_what_is_kept_of_later_rounds_is_bounded() -> None:
    found, rng = rounds(), random.Random(1)
    for _ in range(5000):
        author = rng.choice([*OTHERS, peer(rng.randrange(100, 10**6))])
        found.handle(vote(author, rng.choice([1, 2, 9999])), 0.0)
        forged = Quorum(SWARM, rng.randrange(1, 40), 0, 2, b"v" * 32, void_decision().certificate.endorsements)
        found.handle(Heard(author, Decision(forged, b"x", ())), 0.0)
    assert sum(map(len, found._early._messages.values())) <= AHEAD_MAX + AHEAD_PER_PEER * len(VOTERS)
    assert all(len(kept) <= DECISIONS_PER_ROUND for kept in found._early._decisions.values())
    assert len(found._early._decisions) <= 16
    assert set(found.stall._heard_s) <= set(VOTERS)


def test_the_names_of_strangers_that_go_are_forgotten_before_those_of_voters() -> None:
    found = rounds()
    found.handle(PeerDown(OTHERS[0]), 0.0)
    for number in range(100, 9100):
        found.handle(PeerDown(peer(number)), 0.0)
    assert len(found._down) <= 4097
    assert OTHERS[0] in found.round.down


def test_a_stalled_round_names_the_voters_that_are_not_heard() -> None:
    found = rounds()
    found.handle(PeerUp(OTHERS[0]), 0.0)
    now_s, notes = 0.0, []
    while not notes and now_s < 200:
        now_s += 0.25
        if int(now_s) % 2:
            found.handle(vote(OTHERS[0]), now_s)
        notes = [note for note in found.handle(Tick(), now_s) if isinstance(note, Note) and note.kind == "stalled"]
    assert notes[0].peers == tuple(OTHERS[1:])
    assert found.stall.missing == tuple(OTHERS[1:])


def test_a_stalled_round_names_the_voters_that_are_heard_and_do_not_vote() -> None:
    found, voting, deaf = rounds(), OTHERS[0], OTHERS[1:]
    asks = [Heard(author, Ask(SWARM, 0, 0)) for author in deaf]  # they hear nothing, and ask
    now_s, notes = 0.0, []
    while not notes and now_s < 200:
        now_s += 0.25
        effects = [effect for event in (vote(voting), *asks, Tick()) for effect in found.handle(event, now_s)]
        notes = [note for note in effects if isinstance(note, Note) and note.kind == "stalled"]
    assert notes[0].peers == found.stall.missing == tuple(deaf)
    assert notes[0].detail == "2 of 4 voters have voted in view 0, 3 are needed"


def test_the_next_tick_is_never_in_the_past() -> None:
    found, now_s = rounds(), 0.0
    found.handle(Tick(), now_s)
    for _ in range(200):
        deadline_s = found.deadline_s
        assert deadline_s is not None
        assert deadline_s >= now_s + TICK_MIN_S
        now_s = deadline_s
        found.handle(Tick(), now_s)
    assert now_s > 60  # a quiet peer is woken a few times a second at most


def test_a_newcomer_is_waited_for_from_its_first_word_on_and_for_two_whole_rounds() -> None:
    found, newcomer = rounds(), peer(77)
    found.handle(PeerUp(newcomer), 0.0)
    assert newcomer not in found.round.newcomers  # connected: perhaps it still fetches the state
    number = 0
    for expected in (False, False, True, True, True, False):  # its first word is said in mid-round
        if expected and newcomer not in found.round.newcomers:
            found.handle(Heard(newcomer, Ask(SWARM, number, 0)), 1.0)
        assert (newcomer in found.round.newcomers) is expected, number
        state = found.state
        void = encode(state.outcome(b"", 0, (), (), b"s" * 32 if number % state.policy.snapshot_rounds == 0 else b""))
        value = outcome_digest(void)
        ballot = Vote(SWARM, number, 1, 2, value)
        seals = {voter: signed(ballot, voter).signature for voter in VOTERS[:3]}
        found.handle(Heard(OTHERS[0], Decision(bundle(state, 1, Phase.SEAL, value, seals), void, ())), 1.0)
        found.handle(Applied(number), 1.0)
        number += 1
    found.handle(PeerDown(newcomer), 2.0)
    found.handle(PeerUp(newcomer), 2.0)
    found.handle(Heard(newcomer, Ask(SWARM, number, 0)), 3.0)
    assert newcomer not in found.round.newcomers  # coming and going holds nobody up
