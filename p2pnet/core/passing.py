"""Say which messages of rounds gossip passes on: those that may still be of use to somebody. Pure.

Contract: protocols/gossip-1.md, R2 and R3, for the topic `round`.
"""

from __future__ import annotations

from p2pnet.core.certificates import unbundle
from p2pnet.core.course import Course
from p2pnet.core.events import Heard
from p2pnet.core.forming import certifies_branch
from p2pnet.core.news import Verdict
from p2pnet.core.rounds import Rounds
from p2pnet.core.state import SwarmState
from p2pnet.wire.branch import Branch, BranchCertificate
from p2pnet.wire.round import (
    Commit,
    Decision,
    GroupRoster,
    Proposal,
    Quorum,
    Roster,
    SignedRound,
    Skip,
    Vote,
    WideDecision,
    WideReduced,
    WideRoster,
)  # fmt: skip
from p2pnet.wire.signing import Signed, Verify

ROUNDS_AHEAD = 2  # messages of later rounds are not passed on: nobody could check them


def judge_course(heard: Heard, course: Course) -> Verdict:
    """Say what gossip does with a message of the final chain or of a branch, perhaps one that is not known here.

    Those of other branches are of use to others, who may reach each other only through this peer; members' alone.
    """
    message, line = heard.message, course.find(swarm_of(heard))
    if isinstance(message, BranchCertificate):
        if line is None:
            return Verdict.IGNORE
        is_right = certifies_branch(message, line.rounds.state, line.rounds.context.verify)
        return Verdict.ACCEPT if is_right else Verdict.IGNORE  # not refused: of another round, it may have been right
    if isinstance(message, Signed) and isinstance(message.message, Branch):
        return Verdict.IGNORE  # is sent to those whom it concerns
    if line is None:
        is_known = isinstance(message, Signed) and course.final.state.knows(message.peer)
        return Verdict.ACCEPT if is_known else Verdict.IGNORE
    return judge(heard, line.rounds)


def judge(heard: Heard, rounds: Rounds) -> Verdict:
    """Say what gossip does with a message of a round whose signature is right."""
    message = heard.message
    ahead = round_of(heard) - rounds.state.round
    if not -1 <= ahead <= ROUNDS_AHEAD:
        return Verdict.IGNORE
    if isinstance(message, Quorum):
        if ahead != 0:
            return Verdict.IGNORE  # its electorate is not known here
        return Verdict.ACCEPT if is_endorsed(message, rounds.state, rounds.context.verify) else Verdict.REJECT
    if ahead == 0 and isinstance(message, Signed) and not is_of_use(message, rounds):  # type: ignore[arg-type]
        return Verdict.IGNORE  # perhaps of use to others, who know another lineage; but nobody floods us with it
    return Verdict.ACCEPT


def is_of_use(signed: SignedRound, rounds: Rounds) -> bool:
    """Tell whether a message of the current round can change anything: identities are free, and so are signatures."""
    state, held = rounds.state, rounds.round.commits.held
    match signed.message:
        case Commit() | Skip() if rounds.round.assembly is not None:
            return False  # in a large swarm these go to the stewards of a group, and nobody else needs them
        case GroupRoster() | WideReduced():
            return False  # nor these
        case Commit():
            known = held.get(signed.peer)  # another one of the same peer is worth nothing; the same one came directly
            return known[0].raw == signed.raw if known else rounds.round.commits.judge(signed) is None
        case Roster(view=view) | Proposal(view=view) | WideRoster(view=view):
            return signed.peer == state.proposer(view)
        case Vote():
            return signed.peer in state.electorate
        case Skip():
            return signed.peer in rounds.round.awaited | rounds.round.newcomers
        case _:
            return signed.peer in held or state.knows(signed.peer)  # reduced, by somebody in the roster


def is_endorsed(message: Quorum, state: SwarmState, verify: Verify) -> bool:
    """Tell whether every endorsement of a bundle is a voter's, once, with a right signature."""
    return unbundle(message, state, {}, verify) is not None


def swarm_of(heard: Heard) -> bytes:
    """The swarm that a message belongs to, 32 bytes."""
    message = heard.message.message if isinstance(heard.message, Signed) else heard.message
    swarm: bytes = message.certificate.swarm if isinstance(message, Decision | WideDecision) else message.swarm
    return swarm


def round_of(heard: Heard) -> int:
    """The round that a message belongs to."""
    message = heard.message.message if isinstance(heard.message, Signed) else heard.message
    number: int = message.certificate.round if isinstance(message, Decision | WideDecision) else message.round
    return number
