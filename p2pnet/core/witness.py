"""Notice who signs two things for one slot, among all that is heard in a round. Pure, and bounded.

Contract: protocols/evidence-1.md, R3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from p2pnet.core.evidence import lineage_of, make_double_signed
from p2pnet.core.remember import remember
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.evidence import DoubleSigned
from p2pnet.wire.round import (
    GroupRoster,
    Phase,
    Proposal,
    Quorum,
    Reduced,
    Roster,
    SignedRound,
    Vote,
    WideReduced,
    WideRoster,
    slot_of,
)  # fmt: skip
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.core.round import Round

SEEN_PER_PEER = 64  # messages of one author that are remembered: no honest one signs so many in a few views
VIEWS_SEEN = 8  # views before and after the current one whose messages are remembered


class Witness:
    """What the members that matter have signed in one round, as far as it came here."""

    def __init__(self) -> None:
        self._seen: dict[PeerId, dict[bytes, Signed[Message]]] = {}  # by slot, the first one
        self._caught: set[PeerId] = set()  # one proof of each is enough

    def observe(self, heard: object, round_: Round) -> Iterator[DoubleSigned]:
        """Compare a message of this round, and what is signed inside it, with what was heard before.

        heard: after the round took it, so that what is inside is opened and checked already, if it is of any use.
        """
        for signed in _signed_in(heard, round_):
            if (found := self.see(signed, round_)) is not None:
                yield found

    def see(self, signed: Signed[Message], round_: Round) -> DoubleSigned | None:
        """Remember a message, or return the evidence that it makes with an earlier one."""
        if signed.peer in self._caught or not _matters(signed, round_):
            return None
        seen, slot = self._seen.setdefault(signed.peer, {}), slot_of(signed.message)
        before = seen.get(slot)
        if before is None:
            if len(seen) < SEEN_PER_PEER:
                seen[slot] = signed
            return None
        found = make_double_signed(before, signed)
        if found is not None:
            self._caught.add(signed.peer)
        return found

    def contradicts(self, signed: SignedRound) -> bool:
        """Tell whether a message would make evidence against its author."""
        before = self._seen.get(signed.peer, {}).get(slot_of(signed.message))
        return before is not None and signed.peer not in self._caught and before.body != signed.body


def _signed_in(heard: object, round_: Round) -> Sequence[Signed[Message]]:
    """What is signed in a message: itself, the commits of a roster, the reduced digests of an outcome, the votes."""
    match heard:
        case Signed(message=Roster(commits=raws)):
            listed = round_.rosters.find(heard.message.digest())
            inside = listed.commits if listed is not None and len(listed.commits) == len(raws) else ()
            return [heard, *inside]
        case Signed(message=Proposal(view=view)):
            proposed = round_.proposals.get(view)
            candidate = round_.candidates.found.get(proposed.value) if proposed is not None else None
            return [heard, *(candidate.reduced if candidate is not None else ())]
        case Signed():
            return [heard]
        case Quorum():
            found = round_.deciding.endorsements(heard.view, Phase(heard.phase), heard.value)
            told = {each.peer: each.signature for each in heard.endorsements}
            return _votes_in(heard) if found == told else _votes(heard, found)
    return []


@remember(64)
def _votes_in(message: Quorum) -> list[Signed[Message]]:
    """The votes of a bundle; made once for all that hold the same object."""
    return _votes(message, {each.peer: each.signature for each in message.endorsements})


def _votes(message: Quorum, found: Mapping[PeerId, bytes]) -> list[Signed[Message]]:
    vote = Vote(message.swarm, message.round, message.view, message.phase, message.value)
    body = encode(vote)
    return [Signed(vote, peer, body, signature) for peer, signature in found.items()]


def _matters(signed: Signed[Message], round_: Round) -> bool:
    """Tell whether a double of this message would be a lie worth proving: names are free, and so are signatures."""
    state, message, near = round_.state, signed.message, round_.deciding.view
    if signed.peer == round_.context.me or not state.knows(signed.peer):
        return False
    match message:
        case Roster(view=view) | Proposal(view=view) | WideRoster(view=view):
            if abs(view - near) > VIEWS_SEEN or signed.peer != state.proposer(view):
                return False
        case Vote(view=view):
            return abs(view - near) <= VIEWS_SEEN and signed.peer in state.electorate
        case Reduced(view=view) | WideReduced(view=view) | GroupRoster(view=view):
            return abs(view - near) <= VIEWS_SEEN
    lineage = lineage_of(message)  # one of another lineage would stand in the way of two of this one
    return lineage is None or lineage == state.lineage
