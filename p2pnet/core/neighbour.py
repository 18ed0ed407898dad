"""What gossip knows of one neighbour: in which lanes to push to it, and how much it asked of us lately."""

from __future__ import annotations

from collections.abc import Iterable

from p2pnet.core.news import Effect, Penalise
from p2pnet.identity import PeerId
from p2pnet.wire.gossip import LANES

_ALL_LANES = (1 << LANES) - 1


class Neighbour:
    """A peer we exchange messages with. Sets of lanes are bits of one integer: 256 lanes, whatever it sends."""

    __slots__ = (
        "_lazy", "_served", "_window_s", "answer_bytes", "answers", "broken", "counts", "eager", "pruned_s",
    )  # fmt: skip

    def __init__(self, eager: bool, now_s: float) -> None:
        self.eager = eager
        self._lazy = 0 if eager else _ALL_LANES  # announce in these lanes, do not push
        self._served = 0  # in these lanes it gets the messages from somebody else
        self.counts: dict[str, int] = {}  # by rule, in the current window
        self.answers: dict[bytes, int] = {}  # message -> how often we sent it on request, in the current window
        self.answer_bytes = 0  # of these messages
        self._window_s = now_s  # when the window began
        self.pruned_s: dict[int, float] = {}  # lane -> when we last told it not to push
        self.broken = 0  # how often in a row it did not send what it had announced

    def pushed(self, lane: int) -> bool:
        """Tell whether messages of this lane are pushed to it; else they are announced."""
        return not self._lazy >> lane & 1

    def served(self, lane: int) -> bool:
        """Tell whether somebody else brings it the messages of this lane."""
        return bool(self._served >> lane & 1)

    def depends(self, lane: int) -> bool:
        """Tell whether it may have nobody but us in this lane."""
        return not self._lazy & self._served & 1 << lane

    def graft(self, lanes: Iterable[int]) -> None:
        """Push to it from now on, in these lanes."""
        for lane in lanes:
            self._lazy &= ~(1 << lane)
            self._served &= ~(1 << lane)

    def prune(self, lane: int) -> None:
        """Push no more: somebody else is faster."""
        self._lazy |= 1 << lane
        self._served |= 1 << lane

    def link(self, lane: int) -> None:
        """Push what others bring in this lane: it was the first to bring something."""
        self._lazy &= ~(1 << lane)

    def serve(self, lane: int) -> None:
        """Note that it got a message of this lane elsewhere."""
        self._served |= 1 << lane

    def become_eager(self) -> None:
        """Take it among those to whom everything is pushed until it says no."""
        self.eager, self._lazy = True, 0

    def enter_window(self, now_s: float, window_s: float) -> None:
        """Start counting anew when the window of counts is over."""
        if self._window_s + window_s <= now_s:
            self.counts.clear()
            self.answers.clear()
            self.answer_bytes = 0
            self._window_s = now_s

    def over(self, rule: str, most: int) -> bool:
        """Tell whether it has used up what a rule allows in this window."""
        return self.counts.get(rule, 0) > most

    def count(self, peer: PeerId, rule: str, count: int, most: int) -> list[Effect]:
        """Count against a bound per window; who goes beyond it is penalised, once per window."""
        before = self.counts.get(rule, 0)
        self.counts[rule] = before + count
        return [Penalise(peer, rule)] if before <= most < before + count else []
