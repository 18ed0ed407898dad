"""How one simulated member keeps in touch: the node's own membership and gossip, over played connections.

Played after `p2pnet.node.links`: hellos, records, what is pushed, announced and asked for, and who is dropped when.
"""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING

from p2pnet.core import events as ev
from p2pnet.core import gossip as news
from p2pnet.core import membership as members
from p2pnet.core.passing import judge, swarm_of
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import fake_sign, fake_verify, open_raw
from p2pnet.sim.sizes import framed, gossip_bytes
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.gossip import Data
from p2pnet.wire.membership import TOPIC, Hello, HelloAnswer, Reach
from p2pnet.wire.round import Quorum
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.sim.member import Member

TOPIC_ROUND = "round"
AGENT = "p2pnet/0.1.0"
STARTED_UNIX_S = 1.7e9  # of every simulation; records count from it
DIAL_ROUND_TRIPS = 3  # TCP, noise, the muxer
WAIT_UP_S = 1.0  # a message may come before the answer to the hello


class Contacts:
    """The connections of one process."""

    def __init__(self, member: Member, rng: random.Random) -> None:
        self._member, self._net = member, member.simulation
        me = member.peer
        reach = Reach.PRIVATE if member.is_private else Reach.PUBLIC
        profile = members.Profile((b"\x04" + me[:4] + b"\x06\x0f\xa1",), reach, AGENT)
        self.membership = members.Membership(
            me, self._net.swarm, profile, rng.randbytes(8), STARTED_UNIX_S,
            lambda data: fake_sign(me, data), fake_verify, rng,
        )  # fmt: skip
        self.gossip = news.Gossip(me, self._validate, rng)
        self.up: dict[PeerId, None] = {}
        self.banned = 0
        self._connected: dict[PeerId, None] = {}
        self._sized: tuple[Message | None, int, str] = (None, 0, "")
        self._tick_s = {"membership": -1.0, "gossip": -1.0}

    def start(self) -> None:
        """Look around: what the DHT would name."""
        for other in self._net.found(self._member):
            self.tell(members.Found(other.peer, (b"\x04" + other.peer[:4] + b"\x06\x0f\xa1",)))
        self.tell(members.Tick())

    def broadcast(self, raw: bytes) -> None:
        """Give a message of a round to everybody."""
        self._gossip(news.Publish(TOPIC_ROUND, raw))

    def send(self, to: PeerId, raw: bytes) -> None:
        """Give a message of a round to one member; as in the node it is dropped when that is no neighbour."""
        target = self._member.reach(to) if to in self.up else None
        if target is None:
            if self._member.rounds.round.assembly is not None:
                self.tell_directly(to, raw)  # in a large swarm hardly anybody is a neighbour
                return
            self._net.dropped += 1
            return
        self._member.send(kind_of(raw), target, framed(len(raw)), target.contacts.hear, self._member.peer, raw)

    def tell_directly(self, to: PeerId, raw: bytes) -> None:
        """Give a message of a round to one member on a stream of its own, a neighbour or not."""
        target = self._member.reach(to)
        if target is not None:
            self._member.send(kind_of(raw), target, framed(len(raw)), target.contacts.told, self._member.peer, raw)

    def told(self, sender: PeerId, raw: bytes) -> None:
        """A message of a round came on a stream of its own."""
        self._member.take(ev.Heard(sender, open_raw(raw)))

    def hear(self, sender: PeerId, raw: bytes, patience_s: float = WAIT_UP_S) -> None:
        """A message of a round came directly."""
        if sender in self.up:
            self._member.take(ev.Heard(sender, open_raw(raw)))
        elif patience_s > 0:
            self._member.after(patience_s, self.hear, sender, raw, 0.0)

    def hear_gossip(self, sender: PeerId, message: Message) -> None:
        """A message of gossip came."""
        if sender in self.up:
            self._gossip(news.Received(sender, message))
        else:
            self._member.after(WAIT_UP_S, self._gossip, news.Received(sender, message))

    # Connections ----------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> tuple[PeerId, ...]:
        """Whoever is connected, a neighbour or not."""
        return tuple(self._connected)

    def connected_to(self, peer: PeerId) -> None:
        """A dial succeeded."""
        self._connected[peer] = None
        self.tell(members.Connected(peer))

    def dial_failed(self, peer: PeerId) -> None:
        """Or it did not."""
        self.tell(members.DialFailed(peer))

    def lost(self, peer: PeerId) -> None:
        """A connection ended."""
        was_connected = self._connected.pop(peer, self) is None
        self._member.streams.lost(peer)
        self._member.groups.lost(peer)
        if not was_connected:  # only a stream of an exchange was there
            self._member.take(ev.PeerDown(peer))
            return
        self.tell(members.Disconnected(peer))

    def tell(self, event: members.Event) -> None:
        """Hand an event to membership and do what it wants."""
        for effect in self.membership.handle(event, self._net.now_s):
            self._reach(effect)
        self._wake("membership", self.membership.deadline_s)

    def _reach(self, effect: members.Effect) -> None:
        member = self._member
        match effect:
            case members.Dial(peer=peer):
                self._net.dial(member, peer)
            case members.SendHello(peer=peer, hello=hello):
                target = member.reach(peer)
                if target is not None:
                    size = framed(len(encode(hello)))
                    member.send("hellos", target, size, target.contacts.greeted, member, hello)
            case members.Answer(peer=peer, answer=answer):
                target = member.reach(peer)
                if target is not None:
                    size = framed(len(encode(answer)))
                    member.send("hellos", target, size, target.contacts.answered, member.peer, answer)
            case members.Up(peer=peer):
                self.up[peer] = None
                self._gossip(news.PeerUp(peer))
                member.take(ev.PeerUp(peer))
            case members.Down(peer=peer):
                self.up.pop(peer, None)
                self._gossip(news.PeerDown(peer))
                member.take(ev.PeerDown(peer))
            case members.PublishRecord(raw=raw):
                self._gossip(news.Publish(TOPIC, raw))
            case members.Disconnect(peer=peer):
                self._net.disconnect(member.peer, peer)
            case members.Ban():
                self.banned += 1

    def greeted(self, sender: Member, hello: Hello) -> None:
        """A hello came: with it the connection is known here."""
        self._connected[sender.peer] = None
        self.tell(members.HelloReceived(sender.peer, hello))

    def answered(self, sender: PeerId, answer: HelloAnswer) -> None:
        """The answer to our hello came."""
        self.tell(members.HelloAnswered(sender, answer))

    # Gossip ---------------------------------------------------------------------------------------------------------

    def _gossip(self, event: news.Event) -> None:
        member = self._member
        for effect in self.gossip.handle(event, self._net.now_s):
            match effect:
                case news.Send(peer=peer, message=message):
                    if self._sized[0] is not message:  # the same object goes to many peers in a row
                        self._sized = message, gossip_bytes(message), gossip_kind(message)
                    target = member.reach(peer)
                    if target is not None:
                        _, size, kind = self._sized
                        member.send(kind, target, size, target.contacts.hear_gossip, member.peer, message)
                case news.Deliver(topic=topic, data=data, peer=peer):
                    if topic == TOPIC:
                        self.tell(members.RecordReceived(peer, data))
                    else:
                        member.take(ev.Heard(peer, open_raw(data)))
                case news.Penalise(peer=peer, rule=rule):
                    self.tell(members.Misbehaved(peer, rule))
        deadline_s = self.gossip.deadline_s
        if deadline_s is not None:
            self._wake("gossip", deadline_s)

    def _validate(self, peer: PeerId, topic: str, data: bytes) -> news.Verdict:
        """Judge what gossip brought, as a node does."""
        if topic == TOPIC:
            return self.membership.judge(peer, data, self._net.now_s)
        try:
            heard = ev.Heard(peer, open_raw(data))
        except WireError:
            return news.Verdict.REJECT
        if swarm_of(heard) != self._net.swarm or not isinstance(heard.message, Signed | Quorum):
            return news.Verdict.REJECT
        if not self._member.takes_part:
            return news.Verdict.ACCEPT if isinstance(heard.message, Signed) else news.Verdict.IGNORE
        return judge(heard, self._member.rounds)

    def _wake(self, name: str, deadline_s: float) -> None:
        """Tick a machine at its deadline; at most one tick is on its way that is not too late."""
        now_s = self._net.now_s
        if not now_s < self._tick_s[name] <= deadline_s:
            self._tick_s[name] = max(deadline_s, now_s)
            self._member.after(self._tick_s[name] - now_s, self._tick, name, self._tick_s[name])

    def _tick(self, name: str, due_s: float) -> None:
        if self._tick_s[name] != due_s:
            return  # an earlier one came in between
        self._tick_s[name] = -1.0
        if name == "membership":
            self.tell(members.Tick())
        else:
            self._gossip(news.Tick())


def gossip_kind(message: Message) -> str:
    """What a message of gossip is counted as: by what it carries, or as gossip's own."""
    if not isinstance(message, Data):
        return "gossip " + type(message).__name__.lower()
    return "records" if message.topic == TOPIC else kind_of(message.data)


@functools.lru_cache(maxsize=1 << 14)
def kind_of(raw: bytes) -> str:
    """What a message of a round is counted as."""
    message = open_raw(raw)
    name = type(message.message if isinstance(message, Signed) else message).__name__.lower()
    return {"reduced": "reduced"}.get(name, name + "s" if not name.endswith("s") else name)
