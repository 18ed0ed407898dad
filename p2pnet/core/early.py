"""Keep what is heard of later rounds until their turn, in bounds. Pure. Contract: protocols/round-1.md, R2."""

from __future__ import annotations

from p2pnet.core.events import Heard
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message
from p2pnet.wire.round import Decision, WideDecision
from p2pnet.wire.signing import Signed

AHEAD_MAX = 512  # messages of the next round kept until this one is applied
AHEAD_PER_PEER = 16  # of one author
DECISIONS_AHEAD = 16  # later rounds whose decision is kept, of at most DECISIONS_PER_ROUND senders
DECISIONS_PER_ROUND = 3


class Early:
    """What came too early."""

    def __init__(self) -> None:
        self._decisions: dict[int, dict[PeerId, Heard]] = {}
        self._messages: dict[PeerId, list[tuple[Heard, float]]] = {}  # by author, with the time of each

    def keep(self, heard: Heard, message: Message, number: int, state: SwarmState, now_s: float) -> None:
        """Keep decisions of the next rounds, other messages of the very next.   number: its round."""
        if isinstance(message, Decision | WideDecision):
            if number <= state.round + DECISIONS_AHEAD:
                kept = self._decisions.setdefault(number, {})
                if len(kept) < DECISIONS_PER_ROUND:
                    kept.setdefault(heard.sender, heard)
        elif number == state.round + 1:
            author = heard.message.peer if isinstance(heard.message, Signed) else heard.sender
            if not state.knows(author) and sum(map(len, self._messages.values())) >= AHEAD_MAX:
                return
            messages = self._messages.setdefault(author, [])
            if len(messages) < AHEAD_PER_PEER:
                messages.append((heard, now_s))

    def take(self, number: int) -> tuple[dict[PeerId, Heard], list[tuple[Heard, float]]]:
        """The decisions of a round that begins, by sender, and its other messages with the time of each."""
        messages, self._messages = self._messages, {}
        self._decisions = {later: kept for later, kept in self._decisions.items() if later >= number}
        return self._decisions.pop(number, {}), [one for kept in messages.values() for one in kept]
