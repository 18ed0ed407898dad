"""Two messages for one slot are noticed wherever they come from, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.certificates import bundle
from p2pnet.core.events import Accuse, Effect, Encoded, Heard, Started
from p2pnet.core.evidence import Ground, examine
from p2pnet.core.rounds import Rounds
from p2pnet.core.witness import SEEN_PER_PEER, VIEWS_SEEN
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.round import Phase, Proposal, Reduced, Roster, Skip, Vote
from p2pnet.wire.signing import Signed
from tests.core.voters import LEAVES, commit, context, genesis, peer, peers, signed

STATE = genesis(4)
VOTERS = peers(4)
ME = next(voter for voter in VOTERS if voter not in (STATE.proposer(0), STATE.proposer(1)))
PROPOSER, OTHER = STATE.proposer(0), next(v for v in VOTERS if v not in (ME, STATE.proposer(0)))
GROUND = Ground(STATE.swarm, 16 * LEAVES, 1)


def rounds() -> Rounds:
    found = Rounds(context(ME), STATE, 0.0)
    found.handle(Started(0, 7, b""), 0.0)
    return found


def hear(found: Rounds, *messages: Message | Signed[Message]) -> list[Accuse]:
    effects: list[Effect] = []
    for message in messages:
        effects += found.handle(Heard(OTHER, message), 0.1)  # type: ignore[arg-type]
    return [effect for effect in effects if isinstance(effect, Accuse)]


def guilty(accusations: list[Accuse]) -> list[PeerId]:
    """Who is accused, each by evidence that stands by itself."""
    for each in accusations:
        offence, claim = examine(each.raw, GROUND, fake_verify)
        assert (offence, claim) == (each.offence, None)
    return [each.offence.peer for each in accusations]


def vote(author: PeerId, value: bytes, view: int = 0, phase: int = 1) -> Signed[Vote]:
    return signed(Vote(STATE.swarm, 0, view, phase, value), author)


def void(beacon: bytes = b"") -> bytes:
    outcome = STATE.outcome(b"", 0, (), (), b"")
    return encode(replace(outcome, beacon=beacon or outcome.beacon))


@pytest.mark.parametrize(
    ("author", "one", "two"),
    [
        (OTHER, vote(OTHER, b"a" * 32), vote(OTHER, b"b" * 32)),
        (OTHER, vote(OTHER, b"a" * 32, 3, 2), vote(OTHER, b"", 3, 2)),
        (OTHER, commit(STATE, OTHER), commit(STATE, OTHER, payload_root=b"b" * 32)),
        (PROPOSER, signed(Proposal(STATE.swarm, 0, 0, 0, void()), PROPOSER),
         signed(Proposal(STATE.swarm, 0, 0, 0, void(b"b" * 32)), PROPOSER)),
        (PROPOSER, *(signed(Roster(STATE.swarm, 0, 0, STATE.lineage, (commit(STATE, who).raw,)), PROPOSER)
                     for who in VOTERS[:2])),
        (OTHER, *(signed(Reduced(STATE.swarm, 0, 0, 0, 0, 4, b"r" * 32, (257,), root * 32, b"n" * 32), OTHER)
                  for root in (b"a", b"b"))),
    ],
    ids=["prepares", "seals", "commits", "proposals", "rosters", "reduced"],
)  # fmt: skip
def test_two_things_for_one_slot_are_evidence_once(author: PeerId, one: Signed[Message], two: Signed[Message]) -> None:
    found = rounds()
    assert guilty(hear(found, one, one)) == []
    assert guilty(hear(found, two)) == [author]
    assert guilty(hear(found, one, two)) == []
    assert not found.witness.contradicts(two)  # type: ignore[arg-type]


def test_a_second_commit_is_found_inside_a_roster() -> None:
    found = rounds()
    twin = commit(STATE, OTHER, payload_root=b"b" * 32)
    assert hear(found, commit(STATE, OTHER)) == []
    assert found.witness.contradicts(twin)
    raws = tuple(one.raw for one in sorted([commit(STATE, PROPOSER), twin], key=lambda one: one.peer))
    assert guilty(hear(found, signed(Roster(STATE.swarm, 0, 0, STATE.lineage, raws), PROPOSER))) == [OTHER]


def test_a_second_vote_is_found_inside_a_certificate() -> None:
    found = rounds()
    assert hear(found, vote(OTHER, b"")) == []
    value = b"v" * 32
    votes = {voter: vote(voter, value).signature for voter in VOTERS if voter != ME}
    assert guilty(hear(found, bundle(STATE, 0, Phase.PREPARE, value, votes))) == [OTHER]


def test_a_forged_bundle_or_roster_accuses_nobody() -> None:
    found = rounds()
    assert hear(found, vote(OTHER, b""), commit(STATE, OTHER)) == []
    value = b"v" * 32
    forged = dict.fromkeys(VOTERS, b"\x00" * 64)
    assert hear(found, bundle(STATE, 0, Phase.PREPARE, value, forged)) == []
    twin = commit(STATE, OTHER, payload_root=b"b" * 32)
    raw = replace(twin, signature=b"\0" * 64).raw
    assert hear(found, signed(Roster(STATE.swarm, 0, 0, STATE.lineage, (raw,)), PROPOSER)) == []


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (vote(OTHER, b"a" * 32), vote(OTHER, b"b" * 32, phase=2)),
        (vote(OTHER, b"a" * 32), vote(OTHER, b"b" * 32, view=1)),
        (commit(STATE, OTHER), signed(Skip(STATE.swarm, 0, STATE.lineage), OTHER)),
        (commit(STATE, OTHER), commit(STATE, OTHER, lineage=b"o" * 32)),
        (signed(Skip(STATE.swarm, 0, STATE.lineage), OTHER), signed(Skip(STATE.swarm, 0, b"o" * 32), OTHER)),
        (vote(peer(99), b"a" * 32), vote(peer(99), b"b" * 32)),  # a stranger: it would come back under another name
        (vote(OTHER, b"a" * 32, view=VIEWS_SEEN + 1), vote(OTHER, b"b" * 32, view=VIEWS_SEEN + 1)),
        (vote(ME, b"a" * 32), vote(ME, b"b" * 32)),  # I say nothing against myself
    ],
    ids=["phases", "views", "kinds", "lineages", "skips", "strangers", "far-views", "myself"],
)
def test_other_pairs_are_none(one: Signed[Message], two: Signed[Message]) -> None:
    assert hear(rounds(), one, two) == []


def test_what_a_peer_signs_without_end_takes_no_room_without_end() -> None:
    found = rounds()
    for part in range(64):
        for view in range(VIEWS_SEEN):
            hear(
                found, signed(Reduced(STATE.swarm, 0, view, part, 0, 1, b"r" * 32, (257,), b"a" * 32, b"n" * 32), OTHER)
            )
    assert len(found.witness._seen[OTHER]) == SEEN_PER_PEER


def test_my_own_commit_that_comes_back_is_nothing() -> None:
    found = rounds()
    effects = found.handle(Encoded(0, b"p" * 32, 40, True, 1, 0, 0), 0.0)
    assert effects
    mine = found.round.commits.held[ME][0]
    assert hear(found, mine) == []
