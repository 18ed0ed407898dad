"""Turn what the vote count wants into signed messages. Pure. Contract: protocols/round-1.md, R50 to R56."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core import deciding as votes
from p2pnet.core.certificates import bundle
from p2pnet.core.events import Broadcast, Effect, Send
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Phase, Vote

if TYPE_CHECKING:
    from p2pnet.core.round import Round


STAND_INS = 3  # proposers of the next views that broadcast a certificate besides; who lacks it still asks


def act(round_: Round, actions: list[votes.Action], now_s: float, bundled: bool = False) -> list[Effect]:
    """Turn what the vote count wants into effects; bundled: it follows from a bundle that somebody broadcast."""
    effects: list[Effect] = []
    pending = list(actions)
    while pending:
        match pending.pop(0):
            case votes.Cast(view, phase, value):
                vote = Vote(round_.state.swarm, round_.state.round, view, int(phase), value)
                signed, sent = round_.slots.sign(vote)
                proposer = round_.state.proposer(view)
                effects += sent
                if not value:
                    effects.append(Broadcast(signed.raw, True))
                elif proposer != round_.context.me:
                    effects.append(Send(proposer, signed.raw, True))
                pending += round_.deciding.vote(round_.context.me, view, phase, value, signed.signature, now_s)
            case votes.Prepared(view, value, endorsements):
                if round_.context.me == round_.state.proposer(view):
                    quorum = bundle(round_.state, view, Phase.PREPARE, value, endorsements)
                    effects.append(Broadcast(encode(quorum), False))
            case votes.Sealed(view, value, endorsements):
                round_.certificate = bundle(round_.state, view, Phase.SEAL, value, endorsements)
                round_.certified_s = now_s
                if _may_certify(round_, view) and (not bundled or round_.context.me == round_.state.proposer(view)):
                    effects.append(Broadcast(encode(round_.certificate), False))
            case votes.Entered(view):
                effects += round_.enter(view, now_s)
    return effects


def _may_certify(round_: Round, view: int) -> bool:
    """Tell whether this peer broadcasts a certificate that it has made: of seals that went to all, all make one."""
    return any(round_.context.me == round_.state.proposer(view + later) for later in range(STAND_INS + 1))
