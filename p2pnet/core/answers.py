"""Choose what a peer that lacks something is sent: my own messages, and those on which my view rests. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.certificates import bundle
from p2pnet.core.events import Broadcast, Effect, Send
from p2pnet.core.group_events import Tell
from p2pnet.identity import PeerId
from p2pnet.wire.codec import encode
from p2pnet.wire.round import (
    Commit,
    Phase,
    Proposal,
    Quorum,
    Reduced,
    Roster,
    Skip,
    Vote,
    WideRoster,
)  # fmt: skip

if TYPE_CHECKING:
    from p2pnet.core.round import Round


PEERS_MAX = 4096  # rows of what is remembered about peers


class Spaced:
    """What is done for one peer not more often than so."""

    def __init__(self, apart_s: float) -> None:
        self._apart_s = apart_s
        self.done_s: dict[PeerId, float] = {}

    def may(self, peer: PeerId, now_s: float) -> bool:
        """Tell whether it may be done now; then it counts as done."""
        if now_s - self.done_s.get(peer, now_s - self._apart_s) < self._apart_s:
            return False
        if len(self.done_s) >= PEERS_MAX:
            self.done_s.clear()
        self.done_s[peer] = now_s
        return True


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
            case Roster(view=view) | Reduced(view=view) | Proposal(view=view) | WideRoster(view=view):
                useful = view == current
            case _:
                useful = False
        if useful:
            raws.append(signed.raw)
    return raws


def resend(round_: Round) -> list[Effect]:
    """Send my own messages again: in a large swarm my commit goes to the stewards of my group, all else to everybody.

    The rosters of groups are told again by their stewards (`assembling`).
    """
    assembly = round_.assembly
    if assembly is None:
        return [Broadcast(raw, True) for raw in own_messages(round_)]
    of_group = [signed.raw for signed in round_.slots.all() if isinstance(signed.message, Commit | Skip)]
    effects: list[Effect] = [Broadcast(raw, True) for raw in own_messages(round_) if raw not in of_group]
    if round_.deciding.view not in round_.exchanges:
        effects += [Tell(assembly.commits_to(), raw) for raw in of_group]
    return effects


def answer_ask(round_: Round, peer: PeerId, asked: int, is_new: bool) -> list[Effect]:
    """For a peer in view `asked`: my own messages, and the others' on which this view rests.

    is_new: it has just come, asks everybody, and gossip tells it the rest; else n peers would send it n commits each.
    """
    view = round_.deciding.view
    exchange, proposed = round_.exchanges.get(view), round_.proposals.get(view)
    held = round_.commits.held.values()
    if exchange is not None:
        raws = [exchange.roster.raw]
    elif round_.assembly is not None:
        wide = round_.assembly.wide.get(view)
        raws = [wide.raw] if wide is not None else []
    else:
        raws = [commit.raw for commit, _ in held]
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
