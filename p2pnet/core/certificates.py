"""Bundle votes and check bundles: a certificate is more than 2/3 of the electorate under one seal. Pure.

Contract: protocols/round-1.md, R54 to R56.
"""

from __future__ import annotations

from collections.abc import Mapping

from p2pnet.core.remember import remember
from p2pnet.core.state import SwarmState, quorum
from p2pnet.identity import PeerId
from p2pnet.wire.round import Decision, Endorsement, Phase, Quorum, WideDecision, outcome_digest
from p2pnet.wire.signing import Verify


def bundle(state: SwarmState, view: int, phase: Phase, value: bytes, found: Mapping[PeerId, bytes]) -> Quorum:
    """Put votes for one value into one message; `found`: voter -> signature."""
    listed = tuple(Endorsement(peer, found[peer]) for peer in sorted(found))
    return Quorum(state.swarm, state.round, view, int(phase), value, listed)


def unbundle(
    message: Quorum, state: SwarmState, known: Mapping[PeerId, bytes], verify: Verify
) -> Mapping[PeerId, bytes] | None:
    """The votes of a bundle, voter -> signature; None when one is not a voter's, comes twice or is signed wrongly.

    known: signatures under this very vote that were checked before.
    """
    if not known:
        return found[0] if (found := _unbundled(message, state, verify)) else None
    return _open(message, state, known, verify)


@remember(64)
def _unbundled(message: Quorum, state: SwarmState, verify: Verify) -> list[dict[PeerId, bytes]]:
    """The votes of a bundle of which none is known; checked once for all that hold the same object."""
    found = _open(message, state, {}, verify)
    return [] if found is None else [found]


def _open(
    message: Quorum, state: SwarmState, known: Mapping[PeerId, bytes], verify: Verify
) -> dict[PeerId, bytes] | None:
    data = message.vote_bytes()
    peers = [each.peer for each in message.endorsements]
    if peers != sorted(set(peers)) or not set(peers) <= set(state.electorate):
        return None
    found: dict[PeerId, bytes] = {}
    for each in message.endorsements:
        if each.peer not in known and not verify(each.peer, data, each.signature):
            return None
        found[each.peer] = known.get(each.peer, each.signature)
    return found


def certifies(decision: Decision | WideDecision, state: SwarmState, verify: Verify) -> bool:
    """Tell whether a decision's certificate holds: more than 2/3 of this state's electorate sealed this outcome."""
    certificate = decision.certificate
    if (certificate.swarm, certificate.round, certificate.phase) != (state.swarm, state.round, int(Phase.SEAL)):
        return False
    if certificate.value != outcome_digest(decision.outcome):
        return False
    if len(certificate.endorsements) < quorum(len(state.electorate)):
        return False
    return unbundle(certificate, state, {}, verify) is not None
