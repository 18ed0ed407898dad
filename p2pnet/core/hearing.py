"""Hand a signed message of the current round to its machine. Pure."""

from __future__ import annotations

from typing import Any

from p2pnet.core.assembling import take_group_roster, take_wide_roster
from p2pnet.core.events import Effect
from p2pnet.core.round import Round
from p2pnet.wire.round import Commit, GroupRoster, Proposal, Reduced, Roster, Skip, Vote, WideRoster
from p2pnet.wire.signing import Signed


def hear(round_: Round, signed: Signed[Any], now_s: float) -> list[Effect]:
    """Take a message whose signature is right; what is for nobody in a round does nothing."""
    match signed.message:
        case Commit():
            return round_.commit(signed, now_s)
        case Roster():
            return round_.roster(signed, now_s)
        case Reduced():
            return round_.reduced(signed, now_s)
        case Proposal():
            return round_.proposal(signed, now_s)
        case Vote():
            return round_.vote(signed, now_s)
        case Skip():
            return round_.skip(signed, now_s)
        case GroupRoster():
            return take_group_roster(round_, signed, now_s)
        case WideRoster():
            return take_wide_roster(round_, signed, now_s)
    return []
