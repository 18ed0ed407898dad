"""Choose what a peer that lacks something is sent: my own messages, and those on which my view rests. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.certificates import bundle
from p2pnet.core.events import Effect, Send
from p2pnet.identity import PeerId
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Commit, Phase, Proposal, Quorum, Reduced, Roster, Skip, Vote

if TYPE_CHECKING:
    from p2pnet.core.round import Round


def own_messages(round_: Round, asked: int | None = None) -> list[bytes]:
    """What I signed in this round and somebody may lack: commit, roster, reduced, proposal, votes.

    asked: the view of a peer that asks; it gets my votes of that view too.
    """
    current = round_.deciding.view
    wanted = {(view, int(phase)) for view, phase, _ in round_.deciding.own_votes(asked)}
    raws = []
    for signed in round_.slots.all():
        match signed.message:
            case Commit() | Skip():
                useful = current not in round_.exchanges
            case Vote(view=view, phase=phase):
                useful = (view, phase) in wanted
            case Roster(view=view) | Reduced(view=view) | Proposal(view=view):
                useful = view == current
            case _:
                useful = False
        if useful:
            raws.append(signed.raw)
    return raws


def answer_ask(round_: Round, peer: PeerId, asked: int, is_new: bool) -> list[Effect]:
    """For a peer in view `asked`: my own messages, and the others' on which this view rests.

    is_new: it has just come, asks everybody, and gossip tells it the rest; else n peers would send it n commits each.
    """
    view = round_.deciding.view
    exchange, proposed = round_.exchanges.get(view), round_.proposals.get(view)
    held = round_.commits.held.values()
    raws = [exchange.roster.raw] if exchange is not None else [commit.raw for commit, _ in held]
    if proposed is not None:
        raws.append(proposed.signed.raw)
    raws = list(dict.fromkeys([*([] if is_new else raws), *own_messages(round_, asked)]))
    proof = prepared_quorum(round_)
    effects: list[Effect] = [Send(peer, raw, True) for raw in raws]
    return [*effects, *([Send(peer, encode(proof), False)] if proof else [])]


def prepared_quorum(round_: Round) -> Quorum | None:
    """The proof for the value that more than 2/3 prepared last, if it is held."""
    deciding = round_.deciding
    if deciding.valid is None:
        return None
    view, value = deciding.valid
    found = deciding.endorsements(view, Phase.PREPARE, value)
    return bundle(round_.state, view, Phase.PREPARE, value, found) if len(found) >= deciding.needed else None
