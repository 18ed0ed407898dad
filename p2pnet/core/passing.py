"""Say which messages of rounds gossip passes on: those that may still be of use to somebody. Pure.

Contract: protocols/gossip-1.md, R2 and R3, for the topic `round`.
"""

from __future__ import annotations

from p2pnet.core.events import Heard
from p2pnet.core.news import Verdict
from p2pnet.core.rounds import Rounds
from p2pnet.core.state import SwarmState
from p2pnet.wire.round import Commit, Decision, Proposal, Quorum, Roster, SignedRound, Skip, Vote
from p2pnet.wire.signing import Signed, Verify

ROUNDS_AHEAD = 2  # messages of later rounds are not passed on: nobody could check them


def judge(heard: Heard, rounds: Rounds) -> Verdict:
    """Say what gossip does with a message of a round whose signature is right."""
    ahead = round_of(heard) - rounds.state.round
    if not -1 <= ahead <= ROUNDS_AHEAD:
        return Verdict.IGNORE
    if isinstance(heard.message, Quorum):
        if ahead != 0:
            return Verdict.IGNORE  # its electorate is not known here
        return Verdict.ACCEPT if is_endorsed(heard.message, rounds.state, rounds.context.verify) else Verdict.REJECT
    if ahead == 0 and isinstance(heard.message, Signed) and not is_of_use(heard.message, rounds):
        return Verdict.IGNORE  # perhaps of use to others, who know another lineage; but nobody floods us with it
    return Verdict.ACCEPT


def is_of_use(signed: SignedRound, rounds: Rounds) -> bool:
    """Tell whether a message of the current round can change anything: identities are free, and so are signatures."""
    state, held = rounds.state, rounds.round.commits.held
    match signed.message:
        case Commit():
            known = held.get(signed.peer)  # another one of the same peer is worth nothing; the same one came directly
            return known[0].raw == signed.raw if known else rounds.round.commits.judge(signed) is None
        case Roster(view=view) | Proposal(view=view):
            return signed.peer == state.proposer(view)
        case Vote():
            return signed.peer in state.electorate
        case Skip():
            return signed.peer in rounds.round.awaited | rounds.round.newcomers
        case _:
            return signed.peer in held or state.knows(signed.peer)  # reduced, by somebody in the roster


def is_endorsed(message: Quorum, state: SwarmState, verify: Verify) -> bool:
    """Tell whether every endorsement of a bundle is a voter's, once, with a right signature."""
    peers = [each.peer for each in message.endorsements]
    if peers != sorted(set(peers)) or not set(peers) <= set(state.electorate):
        return False
    data = message.vote_bytes()
    return all(verify(each.peer, data, each.signature) for each in message.endorsements)


def swarm_of(heard: Heard) -> bytes:
    """The swarm that a message belongs to, 32 bytes."""
    message = heard.message.message if isinstance(heard.message, Signed) else heard.message
    swarm: bytes = message.certificate.swarm if isinstance(message, Decision) else message.swarm
    return swarm


def round_of(heard: Heard) -> int:
    """The round that a message belongs to."""
    message = heard.message.message if isinstance(heard.message, Signed) else heard.message
    number: int = message.certificate.round if isinstance(message, Decision) else message.round
    return number
