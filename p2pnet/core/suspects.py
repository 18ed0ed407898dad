"""Know who failed in the last round and has not been heard since: a roster does not wait for it. Pure.

Contract: protocols/round-1.md, R24. A frozen process keeps its connections, so that nothing else tells it from one that
trains. Each peer suspects on its own; whoever is heard again is waited for again.
"""

from __future__ import annotations

import math
from collections.abc import Set

from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId

SILENT = 0.5  # graces without a word; who failed meanwhile is suspected


class Suspects:
    """Peers that were to do something in a decided round, did not, and are silent since."""

    def __init__(self, me: PeerId) -> None:
        self.peers: frozenset[PeerId] = frozenset()
        self._me = me
        self._heard_s: dict[PeerId, float] = {}  # members and voters

    def hear(self, peers: Set[PeerId], state: SwarmState, now_s: float) -> bool:
        """Note who has said something; tells whether one of them was suspected."""
        self._heard_s.update((peer, now_s) for peer in peers if state.knows(peer))
        was, self.peers = self.peers, self.peers - peers
        return self.peers != was

    def judge(
        self, before: SwarmState, after: SwarmState, view: int, missed: Set[PeerId], voted: Set[PeerId], now_s: float
    ) -> None:
        """A round is decided, in this view.

        before, after: the state then.   missed: of whom a slice was missed.   voted: who cast a vote in this view.
        """
        rows = ((peer, before.members.get(peer), member) for peer, member in after.members.items())
        late = {peer for peer, was, member in rows if was is not None and member.halvings > was.halvings}
        failed = late | missed
        if view or failed:  # when all goes well, some need not vote
            failed |= set(before.electorate) - voted
        failed -= {self._me}
        since_s = now_s - SILENT * before.policy.grace_ms / 1000
        silent = {peer for peer in failed if self._heard_s.get(peer, -math.inf) < since_s}
        self.peers = (self.peers | silent) & after.members.keys()
        self._heard_s = {peer: heard_s for peer, heard_s in self._heard_s.items() if peer in after.members}
