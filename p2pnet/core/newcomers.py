"""Know who is here and was in no roster yet, and for how many rounds it is waited for. Pure.

Contract: protocols/round-1.md, R20.
"""

from __future__ import annotations

from collections.abc import Set

from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId

AWAIT_NEWCOMER_ROUNDS = 2  # whole rounds that wait for a peer that is there and was in no roster yet
NEWCOMERS_MAX = 4096  # the latest are remembered


class Newcomers:
    """Peers that are here and in no roster."""

    def __init__(self) -> None:
        self._waited: dict[PeerId, int] = {}  # rounds

    def add(self, peer: PeerId) -> None:
        """One takes part from now on; this round, of which it has a part only, does not count."""
        self._waited.setdefault(peer, -1)

    def awaited(self, up: Set[PeerId], state: SwarmState) -> frozenset[PeerId]:
        """Those whose commits are waited for, of the ones that are up."""
        fresh = (peer for peer, waited in self._waited.items() if waited < AWAIT_NEWCOMER_ROUNDS and peer in up)
        return frozenset(peer for peer in fresh if not state.bars(peer))

    def next_round(self, present: Set[PeerId], here: Set[PeerId]) -> None:
        """A round is over.   present: in its roster.   here: who was there all along."""
        left_out = [(peer, waited) for peer, waited in self._waited.items() if peer not in present]
        self._waited = {peer: waited + (peer in here) for peer, waited in left_out[-NEWCOMERS_MAX:]}
        for peer in here - present - self._waited.keys():
            self._waited[peer] = 0
