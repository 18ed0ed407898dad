"""Notice that a round does not move because voters are silent, and say whose voices it lacks. Pure.

Contract: protocols/round-1.md, R60.
"""

from __future__ import annotations

from collections.abc import Set

from p2pnet.core.deciding import Deciding
from p2pnet.core.events import Effect, Note
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId


class Stall:
    """Which voters one peer heard lately, and since when its round stands still."""

    def __init__(self, me: PeerId) -> None:
        self.since_s: float | None = None  # None: the round moves
        self.missing: tuple[PeerId, ...] = ()  # whose voices it lacks
        self.gone: tuple[PeerId, ...] = ()  # voters that are silent, where the others were no quorum
        self._me = me
        self._heard_s: dict[PeerId, float] = {}  # voters

    def see(self, peer: PeerId, electorate: Set[PeerId], now_s: float) -> bool:
        """Note that a voter is alive; tells whether this is one."""
        if peer not in electorate:
            return False
        self._heard_s[peer] = now_s
        if peer in self.gone:
            self.gone = tuple(other for other in self.gone if other != peer)
        return True

    def forget(self, electorate: Set[PeerId]) -> None:
        """A round is over: drop who does not vote any more."""
        self._heard_s = {peer: heard_s for peer, heard_s in self._heard_s.items() if peer in electorate}

    def look(
        self, state: SwarmState, deciding: Deciding, down: Set[PeerId], quiet_s: float, now_s: float
    ) -> list[Effect]:
        """Say who is missing, when the round has been quiet for so long that it counts as stalled."""
        stall_s = state.policy.stall_ms / 1000
        if quiet_s < stall_s:
            return []
        others, voters = [peer for peer in state.electorate if peer != self._me], len(state.electorate)
        silent = tuple(peer for peer in others if peer in down or now_s - self._heard_s.get(peer, -stall_s) >= stall_s)
        self.gone, what = silent, "are here"
        if voters - len(silent) >= deciding.needed:  # enough are heard, and do not hear us, or cannot vote
            voted, self.gone = deciding.voters(), ()
            silent = tuple(peer for peer in others if peer not in voted)
            what = f"have voted in view {deciding.view}"
        if self.since_s is not None and silent == self.missing:
            return []
        self.since_s = self.since_s if self.since_s is not None else now_s - quiet_s
        self.missing = silent
        detail = f"{voters - len(silent)} of {voters} voters {what}, {deciding.needed} are needed"
        return [Note(state.round, "stalled", detail, silent)]

    def end(self, round_id: int, now_s: float) -> list[Effect]:
        """The round moves."""
        since_s, self.since_s, self.missing, self.gone = self.since_s, None, (), ()
        return [] if since_s is None else [Note(round_id, "resumed", f"after {now_s - since_s:.1f} s")]
