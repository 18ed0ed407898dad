"""Decided rounds with real signatures, as a node writes them."""

from __future__ import annotations

from pathlib import Path

from p2pnet.identity import Identity, PeerId
from p2pnet.ledger.log import FILE_NAME, Entry, Ledger
from p2pnet.wire.codec import encode
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import (
    Commit,
    Endorsement,
    Exclusion,
    Listing,
    Outcome,
    Phase,
    Quorum,
    Reduced,
    WideOutcome,
    WideReduced,
    listing_digest,
    next_lineage,
    outcome_digest,
    roster_digest,
)
from p2pnet.wire.signing import sign_message

MEMBERS = sorted((Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3)), key=lambda one: one.peer)
VOTERS: tuple[PeerId, ...] = tuple(one.peer for one in MEMBERS)
SWARM, GENESIS = b"\x5a" * 32, b"\x00" * 32
DECIDED_UNIX_S = 1_700_000_000


def decide(
    ledger: Ledger, *, void: bool = False, samples: int = 40, sealers: int = 2, excluded: tuple[Exclusion, ...] = ()
) -> Entry:
    """Append the next round to a ledger: three members, one part, sealed by the first two of them."""
    number, lineage = len(ledger), ledger.lineage()
    commits = tuple(_commit(one, number, lineage, samples) for one in MEMBERS)
    if void:
        outcome = Outcome(SWARM, number, lineage, b"", 0, (), VOTERS, b"\x01" * 32, b"", excluded)
        commits = ()
    else:
        roster = roster_digest(commits)
        reduced = Reduced(SWARM, number, 1, 0, 0, 4, roster, (257, 101, 0), b"\x02" * 32, b"\x08" * 32)
        signed = sign_message(reduced, MEMBERS[0].peer, MEMBERS[0].sign).raw
        outcome = Outcome(SWARM, number, lineage, roster, 1, (signed,), VOTERS, b"\x01" * 32, b"\x03" * 32, excluded)
    data = encode(outcome)
    value = outcome_digest(data)
    unsealed = Quorum(SWARM, number, 1, int(Phase.SEAL), value, ())
    endorsements = tuple(Endorsement(one.peer, one.sign(unsealed.vote_bytes())) for one in MEMBERS[:sealers])
    certificate = encode(Quorum(SWARM, number, 1, int(Phase.SEAL), value, endorsements))
    roots = () if void else (b"\x02" * 32,)
    entry = Entry(number, next_lineage(lineage, value), data, certificate, commits, roots, DECIDED_UNIX_S + number)
    ledger.append(entry)
    return entry


def decide_wide(ledger: Ledger) -> Entry:
    """Append the next round: three members in two groups, one column of two parts, of which the second is void."""
    number, lineage = len(ledger), ledger.lineage()
    commits = tuple(_commit(one, number, lineage, 40) for one in MEMBERS)
    groups = Listing(commits[:2]), Listing(commits[2:])
    roster = listing_digest(tuple(roster_digest(group.items) for group in groups))
    message = WideReduced(SWARM, number, 0, 0, 0, 4, roster, b"\x06" * 32, b"", b"\x02" * 32, b"\x08" * 32)
    column = Listing((sign_message(message, MEMBERS[0].peer, MEMBERS[0].sign).raw, b""))
    columns = (listing_digest(column.items),)
    data = encode(WideOutcome(SWARM, number, lineage, roster, 0, columns, VOTERS, b"\x01" * 32, b"", ()))
    value = outcome_digest(data)
    unsealed = Quorum(SWARM, number, 0, int(Phase.SEAL), value, ())
    endorsements = tuple(Endorsement(one.peer, one.sign(unsealed.vote_bytes())) for one in MEMBERS)
    certificate = encode(Quorum(SWARM, number, 0, int(Phase.SEAL), value, endorsements))
    kept = tuple(encode(each) for each in (*groups, column))
    roots, at_unix_s = (b"\x02" * 32,), DECIDED_UNIX_S + number
    entry = Entry(number, next_lineage(lineage, value), data, certificate, kept, roots, at_unix_s)
    ledger.append(entry)
    return entry


def open_ledger(folder: Path) -> Ledger:
    """Return the ledger of the swarm in its folder."""
    return Ledger(folder / FILE_NAME, SWARM, GENESIS)


def _commit(member: Identity, number: int, lineage: bytes, samples: int) -> bytes:
    commit = Commit(
        SWARM, number, lineage, b"\x04" * 32, samples, b"\x05" * 32, 2**64 - 1, 1, int(Reach.PUBLIC), 8_000, 80_000
    )
    return sign_message(commit, member.peer, member.sign).raw
