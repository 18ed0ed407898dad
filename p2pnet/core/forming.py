"""Agree with the voters that are left on going on without the others, when a round has no quorum. Pure.

Contract: protocols/branch-1.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from p2pnet.core.events import Effect, Send
from p2pnet.core.slots import Context
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.branch import NONCE_BYTES, Branch, BranchCertificate, read_hears, write_hears
from p2pnet.wire.signing import Signed, Verify, sign_message

RESEND_S = 2.0  # a proposal is said again so often, at most: by it the others know that its author is there
CHANGE_S = 0.25  # and not sooner again when it changes: a liar could make it change with every word
SETTLE_S = 4.0  # no branch begins sooner after the first proposal, at most: who was quiet is heard by then


class Forming:
    """One voter's search for a branch from one stalled round."""

    def __init__(self, context: Context, state: SwarmState) -> None:
        """state: before the stalled round."""
        self.state = state
        self._context = context
        self._nonce = context.rng.randbytes(NONCE_BYTES)
        self._heard: dict[PeerId, Signed[Branch]] = {}  # the latest of each voter
        self._mine: Signed[Branch] | None = None
        self._say_s = 0.0  # when it is said again
        self._said_s = -CHANGE_S
        self._begin_s: float | None = None  # no sooner
        self._half_stall_s = state.policy.stall_ms / 2000

    @property
    def deadline_s(self) -> float | None:
        """When the proposal is to be said again; None when there is none."""
        return self._say_s if self._mine is not None else None

    def hear(self, signed: Signed[Branch]) -> bool:
        """Take a voter's proposal; tells whether it is news; one that leaves its author out is none."""
        message, known = signed.message, self._heard.get(signed.peer)
        about = message.swarm, message.round, message.lineage
        if about != (self.state.swarm, self.state.round, self.state.lineage) or signed.peer == self._context.me:
            return False
        if signed.peer not in message.voters or not is_rising(message.voters, self.state.electorate):
            return False
        if known is not None and known.body == signed.body:
            return False
        self._heard[signed.peer] = signed
        return True

    def propose(self, here: Set[PeerId], up: Set[PeerId], now_s: float) -> list[Effect]:
        """Propose to go on with those voters that are here and hear each other, as far as they have said.

        here: the voters that this one hears, without itself.   up: those that it is connected to: they are told.
        """
        if self._begin_s is None:
            self._begin_s = now_s + min(SETTLE_S, self._half_stall_s)
        me, chosen = self._context.me, [self._context.me]
        for peer in sorted(here):
            if all(self._agree(peer, other) for other in chosen):
                chosen.append(peer)
        state = self.state
        hears = write_hears(state.electorate, here | {me})
        message = Branch(state.swarm, state.round, state.lineage, tuple(sorted(chosen)), hears, self._nonce)
        if self._mine is None or self._mine.message != message:
            if now_s < self._said_s + CHANGE_S:
                self._say_s = min(self._say_s, self._said_s + CHANGE_S)
                return []
            self._mine = sign_message(message, me, self._context.sign)
        elif now_s < self._say_s:
            return []
        self._said_s, self._say_s = now_s, now_s + min(RESEND_S, self._half_stall_s)
        return [Send(peer, self._mine.raw, True) for peer in sorted(up)]

    def certificate(self, now_s: float) -> BranchCertificate | None:
        """The branch, once each of its voters has signed for it with all of them."""
        if self._mine is None or self._begin_s is None or now_s < self._begin_s:
            return None
        voters = self._mine.message.voters
        signed = [self._mine if peer == self._context.me else self._heard.get(peer) for peer in voters]
        found = [each for each in signed if each is not None and each.message.voters == voters]
        if len(found) < len(voters):
            return None
        return BranchCertificate(
            self.state.swarm,
            self.state.round,
            self.state.lineage,
            voters,
            tuple(each.message.hears for each in found),
            tuple(each.message.nonce for each in found),
            tuple(each.signature for each in found),
        )

    def _agree(self, one: PeerId, other: PeerId) -> bool:
        """Tell whether two voters hear each other, as far as they have said."""
        for author, named in ((one, other), (other, one)):
            said = self._heard.get(author)
            if said is not None and named not in read_hears(self.state.electorate, said.message.hears):
                return False
        return True


def certifies_branch(certificate: BranchCertificate, state: SwarmState, verify: Verify) -> bool:
    """Tell whether a branch from this round exists: each of its voters, all of this electorate, signed for it."""
    voters = certificate.voters
    about = certificate.swarm, certificate.round, certificate.lineage
    if about != (state.swarm, state.round, state.lineage) or not is_rising(voters, state.electorate):
        return False
    if not len(voters) == len(certificate.hears) == len(certificate.nonces) == len(certificate.signatures):
        return False
    signed = zip(voters, certificate.signed_bytes(), certificate.signatures, strict=True)
    return all(verify(peer, data, signature) for peer, data, signature in signed)


def is_rising(voters: Iterable[PeerId], electorate: Iterable[PeerId]) -> bool:
    """Tell whether these are voters of this electorate, rising, each once."""
    listed = list(voters)
    return listed == sorted(set(listed)) and set(listed) <= set(electorate)


def rank(certificate: BranchCertificate) -> tuple[int, bytes]:
    """What decides between branches from one round: the lowest wins. More voters, then the lower id."""
    return -len(certificate.voters), certificate.branch_id()
