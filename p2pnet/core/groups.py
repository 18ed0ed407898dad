"""Deal the members of a large swarm into groups that commit together, in each round. Contract: protocols/groups-1.md.

With fewer than `group_size_max` members there are no groups, and nothing here is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from p2pnet.core.remember import remember
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.round import GROUPS_MAX

STEWARDS_MIN = 4  # of a group, who take its commits and call its roster: its voters, and others when they are fewer


def count_groups(members: int, group_size_max: int) -> int:
    """How many groups so many members make: none of them is full, so that newcomers find room."""
    return 1 if members < group_size_max else min(members // group_size_max + 1, members, GROUPS_MAX)


@dataclass(frozen=True, slots=True, eq=False)
class Deal:
    """Who commits where, in one round."""

    beacon: bytes
    groups: tuple[tuple[PeerId, ...], ...]  # the members expected in each, voters first
    stewards: tuple[tuple[PeerId, ...], ...]
    places: Mapping[PeerId, int]

    def group_of(self, peer: PeerId) -> int:
        """The group in which a peer commits, whether it is expected or not."""
        known = self.places.get(peer)
        return _draw(self.beacon, peer) % len(self.groups) if known is None else known

    def is_steward(self, peer: PeerId) -> bool:
        """Tell whether a peer takes the commits of its group."""
        return peer in self.stewards[self.group_of(peer)]

    def rank(self, peer: PeerId, view: int) -> int:
        """How many stewards come before this one in a view; the first leads the group, the others stand in for it."""
        stewards = self.stewards[self.group_of(peer)]
        return (stewards.index(peer) - view) % len(stewards)


@remember(16)
def deal(state: SwarmState) -> Deal | None:
    """Deal the expected members of a round into groups; None: they are few enough for one roster.

    Voters in the order of their draw go round the groups, then the others: each group has about as many of both.
    """
    voters = set(state.electorate)
    expected = state.expected() | voters
    count = count_groups(len(expected), state.policy.group_size_max)
    if count == 1:
        return None
    order = sorted(expected, key=lambda peer: (peer not in voters, _draw(state.beacon, peer)))
    groups = tuple(tuple(order[number::count]) for number in range(count))
    stewards = tuple(
        tuple(peer for place, peer in enumerate(group) if peer in voters or place < STEWARDS_MIN) for group in groups
    )
    places = {peer: number for number, group in enumerate(groups) for peer in group}
    return Deal(state.beacon, groups, stewards, places)


def _draw(beacon: bytes, peer: PeerId) -> int:
    return int.from_bytes(hashlib.sha256(b"p2pnet/deal/1\n" + beacon + peer).digest(), "big")
