"""How members of a very large simulated swarm keep in touch: neighbours and broadcasts, played instead of gossiped.

The node's gossip and membership cost thousands of events for each member and round, too many for thousands of members.
Here each has a few neighbours, and a broadcast goes down a tree that is drawn for it, with the bytes that gossip takes:
the message once, and announcements to a few others. Who falls out is replaced by its parent a moment later. Records of
members are not played: what they take is membership-1's own, and grows with the swarm.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from p2pnet.core import events as ev
from p2pnet.core.news import Verdict
from p2pnet.core.passing import judge, swarm_of
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim.contacts import Contacts, kind_of
from p2pnet.sim.signatures import open_raw
from p2pnet.sim.sizes import framed

if TYPE_CHECKING:
    from p2pnet.sim.member import Member

PLAYED_FROM = 512  # members from which on gossip is played
DEGREE = 8  # neighbours that a member seeks; about as many seek it
FAN_OUT = 4  # members that each one passes a broadcast to
HEAD_BYTES = 16  # of a message in gossip (gossip-1, Data), guessed up
HAVE_BYTES = 4 * 26  # announcements to four others
GRAFT_S = 0.3  # until the children of who fell out are fed by its parent


class Flood(Contacts):
    """The connections of one process, and what it passes on."""

    def __init__(self, member: Member, rng: random.Random) -> None:
        super().__init__(member, rng)
        self._rng = rng

    @property
    def connected(self) -> tuple[PeerId, ...]:
        """Whoever is connected."""
        return tuple(self.up)

    def start(self) -> None:
        """Seek neighbours."""
        for other in self._net.found(self._member)[:DEGREE]:
            if other.contacts is not self and self._member.reach(other.peer) is not None:
                self.connected_to(other.peer)
                other.contacts.connected_to(self._member.peer)

    def connected_to(self, peer: PeerId) -> None:
        """Somebody is a neighbour now."""
        if peer not in self.up:
            self.up[peer] = None
            self._member.take(ev.PeerUp(peer))

    def dial_failed(self, peer: PeerId) -> None:
        """Nobody dials."""

    def lost(self, peer: PeerId) -> None:
        """A connection ended, or the streams to somebody that is no neighbour."""
        self.up.pop(peer, None)
        self._member.streams.lost(peer)
        self._member.groups.lost(peer)
        self._member.take(ev.PeerDown(peer))

    def send(self, to: PeerId, raw: bytes) -> None:
        """Give a message of a round to one member on a stream of its own."""
        target = self._member.reach(to)
        if target is not None:
            self._member.send(kind_of(raw), target, framed(len(raw)), target.contacts.hear, self._member.peer, raw)

    def tell_directly(self, to: PeerId, raw: bytes) -> None:
        """The same, to whomever."""
        self.send(to, raw)

    def hear(self, sender: PeerId, raw: bytes, patience_s: float = 0.0) -> None:  # noqa: ARG002 - for neighbours only
        """A message of a round came directly."""
        self._member.take(ev.Heard(sender, open_raw(raw)))

    def broadcast(self, raw: bytes) -> None:
        """Give a message to everybody."""
        order = [member for member in self._net.members.values() if member.alive and member is not self._member]
        self._rng.shuffle(order)
        self._pass_on([self._member, *order], 0, raw)

    def _pass_on(self, order: list[Member], place: int, raw: bytes) -> None:
        """Send a message to the children of a place in a tree."""
        for child in range(FAN_OUT * place + 1, min(FAN_OUT * place + FAN_OUT + 1, len(order))):
            self._feed(order, child, raw)

    def _feed(self, order: list[Member], place: int, raw: bytes) -> None:
        member = self._member
        target = member.reach(order[place].peer)
        if target is None or target.held is not None:  # its children are fed from here, once that is noticed
            member.after(GRAFT_S, self._pass_on, order, place, raw)
            return
        assert isinstance(target.contacts, Flood)
        head = "gossip have", HAVE_BYTES
        member.send(kind_of(raw), target, framed(len(raw) + HEAD_BYTES), target.contacts.receive, order, place,
                    member.peer, raw, head=head)  # fmt: skip

    def receive(self, order: list[Member], place: int, sender: PeerId, raw: bytes) -> None:
        """A broadcast came: pass it on, as a node does, if it may be of use to anybody."""
        self.gossip.counts.delivered += 1
        try:
            heard = ev.Heard(sender, open_raw(raw))
        except WireError:
            return
        if swarm_of(heard) != self._net.swarm:
            return
        if not self._member.takes_part or judge(heard, self._member.rounds) is not Verdict.REJECT:
            self._pass_on(order, place, raw)
        self._member.take(heard)
