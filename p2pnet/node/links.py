"""Keep in touch with the members: hellos, gossip, direct messages; membership and gossip joined to the host."""

from __future__ import annotations

import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from p2pnet.core import events as ev
from p2pnet.core import gossip as news
from p2pnet.core import membership as members
from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import Identity, PeerId, peer_id_text, verify
from p2pnet.net.control import addr_to_bytes, addr_to_text
from p2pnet.net.host import Host, PeerAddrs, Stream
from p2pnet.wire.branch import BranchCertificate, open_spoken
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, Message, decode, encode
from p2pnet.wire.gossip import MESSAGES as GOSSIP_MESSAGES
from p2pnet.wire.membership import RECORD_BYTES_MAX, TOPIC, Hello, HelloAnswer
from p2pnet.wire.round import Quorum
from p2pnet.wire.signing import Signed

log = logging.getLogger(__name__)

HELLO = "/p2pnet/membership/1"
GOSSIP = "/p2pnet/gossip/1"
ROUND = "/p2pnet/round/1"
TOPIC_ROUND = "round"
TOPIC_EVIDENCE = "evidence"
OUTBOX_BYTES_MAX = 4 << 20  # queued for one peer on one protocol; beyond it the oldest are dropped
OPENED_MAX = 1024  # messages opened for gossip's judgement and not yet delivered
UP_WAIT_S = 10.0  # a stream may come before our own view of the hello
HELLO_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 20 * RECORD_BYTES_MAX
WATCH_S = 1.0
REFUSED_MAX = 256  # reasons that are remembered; a stranger can have any number of names
SEND_S = 30.0  # a peer that takes nothing for so long is not sent more


@dataclass(slots=True)
class _Outbox:
    """Frames on their way to one peer, in order, over one long-lived stream."""

    frames: deque[bytes] = field(default_factory=deque)
    queued_bytes: int = 0
    news: trio.Event = field(default_factory=trio.Event)

    def put(self, frame: bytes) -> None:
        """Queue a frame; the oldest fall out when the peer does not keep up."""
        self.frames.append(frame)
        self.queued_bytes += len(frame)
        while self.queued_bytes > OUTBOX_BYTES_MAX and len(self.frames) > 1:
            self.queued_bytes -= len(self.frames.popleft())
        self.news.set()

    def take(self) -> bytes:
        """The next frame."""
        frame = self.frames.popleft()
        self.queued_bytes -= len(frame)
        return frame


class Links:
    """The connections of one node to the members of its swarm."""

    def __init__(
        self,
        host: Host,
        swarm: bytes,
        identity: Identity,
        report: Callable[[ev.Event], None],
        judge: Callable[[ev.Heard], news.Verdict],
        agent: str,
        clock_s: float,
        rng: random.Random,
    ) -> None:
        """report: takes events for the core.   judge: what gossip shall do with a message of a round.

        clock_s: unix time minus the host's monotonic time.
        """
        self._host, self._swarm, self._identity, self._report, self._judge = host, swarm, identity, report, judge
        self._agent = agent
        profile = self._profile()
        session = rng.randbytes(8)
        self.membership = members.Membership(
            identity.peer, swarm, profile, session, clock_s, identity.sign, verify, rng
        )
        self.gossip = news.Gossip(identity.peer, self._validate, rng)
        self.offer: Callable[[PeerId, bytes], None] | None = None  # takes evidence, once there is somebody to judge it
        self.refused: dict[PeerId, str] = {}  # who could not be a neighbour, and why
        self.routes: dict[PeerId, tuple[str, ...]] = {}  # who is connected, at which addresses
        self._outboxes: dict[tuple[PeerId, str], _Outbox] = {}
        self._scopes: dict[tuple[PeerId, str], trio.CancelScope] = {}
        self._up: dict[PeerId, trio.Event] = {}
        self._opened: OrderedDict[bytes, ev.Heard] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._encoded: tuple[Message | None, bytes] = (None, b"")

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and keep in touch until cancelled; started once others can say hello."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._host.handle(HELLO, self._serve_hello)
            await self._host.handle(GOSSIP, self._serve_gossip, concurrency_per_peer=2)
            await self._host.handle(ROUND, self._serve_round, concurrency_per_peer=2)
            task_status.started()
            nursery.start_soon(self._tick)
            try:
                await self._watch()
            finally:
                self._nursery = None  # streams that end later must not start anything

    def connected(self, found: PeerAddrs) -> None:
        """Discovery has dialled somebody who claims to be a member."""
        self._tell_membership(members.Found(found.peer, _to_bytes(found.addrs)))
        self._tell_membership(members.Connected(found.peer))

    def misbehaved(self, peer: PeerId, rule: str) -> None:
        """A peer broke a rule on some stream."""
        self._tell_membership(members.Misbehaved(peer, rule))

    def broadcast(self, raw: bytes) -> None:
        """Give a message of a round to everybody."""
        self._do_gossip(self.gossip.handle(news.Publish(TOPIC_ROUND, raw), trio.current_time()))

    def accuse(self, raw: bytes) -> None:
        """Give evidence to everybody, which was judged here."""
        self._do_gossip(self.gossip.handle(news.Publish(TOPIC_EVIDENCE, raw), trio.current_time()))

    def send(self, peer: PeerId, raw: bytes) -> None:
        """Give a message of a round to one member."""
        self._put(peer, ROUND, raw)

    # Streams in -----------------------------------------------------------------------------------------------------

    async def _serve_hello(self, stream: Stream) -> None:
        hello = decode((Hello,), await stream.receive_frame(2 * RECORD_BYTES_MAX))
        later: list[members.Disconnect] = []  # a refusal is heard before the connection ends
        answer = self._tell_membership(members.HelloReceived(stream.peer, hello), later)
        if answer is not None:
            with trio.move_on_after(HELLO_TIMEOUT_S):
                await stream.send_frame(encode(answer))
                await stream.finish()
        for effect in later:
            await self._reach(effect)

    async def _serve_gossip(self, stream: Stream) -> None:
        await self._wait_up(stream.peer)
        try:
            while True:
                message = decode(GOSSIP_MESSAGES, await stream.receive_frame(MESSAGE_BYTES_MAX))
                self._do_gossip(self.gossip.handle(news.Received(stream.peer, message), trio.current_time()))
        finally:
            self._look_after(stream.peer)

    async def _serve_round(self, stream: Stream) -> None:
        await self._wait_up(stream.peer)
        try:
            while True:
                raw = await stream.receive_frame(MESSAGE_BYTES_MAX)
                self._report(ev.Heard(stream.peer, open_spoken(raw, verify)))  # of a line that is not followed: no harm
        finally:
            self._look_after(stream.peer)

    async def _wait_up(self, peer: PeerId) -> None:
        up = self._up.setdefault(peer, trio.Event())
        with trio.move_on_after(UP_WAIT_S):
            await up.wait()
        if not up.is_set():
            if self._up.get(peer) is up:
                del self._up[peer]
            raise NetworkError(f"{peer_id_text(peer)} opened a stream without a hello")

    def _look_after(self, peer: PeerId) -> None:
        """A stream from this peer ended: see at once whether the connection did."""
        if self._nursery is not None and peer in self.membership.up:
            self._nursery.start_soon(self._see_gone)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(WATCH_S)
            await self._see_gone()

    async def _see_gone(self) -> None:
        """Tell membership which members are not connected any more; the host does not say when they go."""
        up = self.membership.up
        try:
            connected = self.routes = {found.peer: found.addrs for found in await self._host.connected()}
        except NetworkError as error:
            log.info("cannot list connections: %s", error)  # busy, or being started again: then streams break, and soon
            return
        for peer in up:
            if peer not in connected and peer in self.membership.up:
                self._tell_membership(members.Disconnected(peer))
        self._tell_membership(members.ProfileChanged(self._profile()))

    # Streams out ----------------------------------------------------------------------------------------------------

    def _put(self, peer: PeerId, protocol: str, frame: bytes) -> None:
        if peer not in self._up or not self._up[peer].is_set() or self._nursery is None:
            return
        key = (peer, protocol)
        if key not in self._outboxes:
            self._outboxes[key] = _Outbox()
            self._scopes[key] = trio.CancelScope()
            self._nursery.start_soon(self._drain, key, self._outboxes[key], self._scopes[key])
        self._outboxes[key].put(frame)

    async def _drain(self, key: tuple[PeerId, str], outbox: _Outbox, scope: trio.CancelScope) -> None:
        peer, protocol = key
        with scope:
            try:
                async with await self._host.open_stream(peer, protocol, HELLO_TIMEOUT_S) as stream:
                    while True:
                        while outbox.frames:
                            with trio.fail_after(SEND_S):
                                await stream.send_frame(outbox.take())
                        outbox.news = trio.Event()
                        await outbox.news.wait()
            except (NetworkError, trio.TooSlowError) as error:
                log.info("to %s: %s", peer_id_text(peer), str(error) or "it takes nothing")
                self._look_after(peer)
            finally:
                if self._outboxes.get(key) is outbox:  # what is queued is lost; asking brings it again
                    del self._outboxes[key], self._scopes[key]

    # Machines -------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Tick both machines when they want it."""
        while True:
            now_s = trio.current_time()
            if now_s >= self.membership.deadline_s:
                self._tell_membership(members.Tick())
            if self.gossip.deadline_s is not None and now_s >= self.gossip.deadline_s:
                self._do_gossip(self.gossip.handle(news.Tick(), now_s))
            self._wake = trio.Event()
            times = [self.membership.deadline_s, self.gossip.deadline_s]
            with trio.move_on_at(min(time for time in times if time is not None)):
                await self._wake.wait()

    def _tell_membership(
        self, event: members.Event, later: list[members.Disconnect] | None = None
    ) -> HelloAnswer | None:
        """Hand an event to membership and do what it wants; returns the answer to a hello.

        later: takes up the disconnections, for a caller that has something to say first.
        """
        answer: HelloAnswer | None = None
        for effect in self.membership.handle(event, trio.current_time()):
            match effect:
                case members.Answer(answer=given):
                    answer = given
                case members.Up(peer):
                    self._set_up(peer)
                case members.Down(peer):
                    self._set_down(peer)
                case members.PublishRecord(raw):
                    publish = news.Publish(TOPIC, raw)
                    self._do_gossip(self.gossip.handle(publish, trio.current_time()))
                case members.Refused(peer, reason):
                    self.refused.pop(peer, None)
                    self.refused[peer] = reason.name.lower().replace("_", " ")
                    if len(self.refused) > REFUSED_MAX:
                        del self.refused[next(iter(self.refused))]
                    log.warning("%s is not a neighbour: %s", peer_id_text(peer), self.refused[peer])
                case members.Ban(peer, rule=rule):
                    log.warning("%s is banned: broke %s", peer_id_text(peer), rule)
                case members.Disconnect() if later is not None:
                    later.append(effect)
                case _:
                    if self._nursery is not None:
                        self._nursery.start_soon(self._reach, effect)
        self._wake.set()
        return answer

    async def _reach(self, effect: members.Effect) -> None:
        """Perform what takes time: dial, say hello, disconnect."""
        if not isinstance(effect, members.Dial | members.SendHello | members.Disconnect):
            raise TypeError(f"nothing to reach for in {effect}")
        try:
            match effect:
                case members.Dial(peer, addrs):
                    await self._host.connect(peer, [addr_to_text(addr) for addr in addrs], 5.0)
                    self._tell_membership(members.Connected(peer))
                case members.SendHello(peer, hello):
                    asked_s = trio.current_time()
                    raw = await self._host.request(peer, HELLO, encode(hello), HELLO_TIMEOUT_S, ANSWER_BYTES_MAX)
                    self._report(ev.RoundTrip(peer, trio.current_time() - asked_s))
                    self._tell_membership(members.HelloAnswered(peer, decode((HelloAnswer,), raw)))
                case members.Disconnect(peer, why):
                    log.info("disconnecting %s: %s", peer_id_text(peer), why)
                    await self._host.disconnect(peer)
        except WireError as error:
            self._tell_membership(members.Misbehaved(effect.peer, error.rule))
        except PeerError as error:
            self._tell_membership(members.Misbehaved(effect.peer, error.rule))
        except (NetworkError, ValueError) as error:  # ValueError: an address that a stranger made up
            log.info("%s", error)
            if not isinstance(effect, members.Disconnect):
                self._tell_membership(members.DialFailed(effect.peer))

    def _set_up(self, peer: PeerId) -> None:
        self.refused.pop(peer, None)
        self._up.setdefault(peer, trio.Event()).set()
        self._do_gossip(self.gossip.handle(news.PeerUp(peer), trio.current_time()))
        self._report(ev.PeerUp(peer))

    def _set_down(self, peer: PeerId) -> None:
        self._up.pop(peer, None)
        for protocol in (GOSSIP, ROUND):
            if self._outboxes.pop((peer, protocol), None) is not None:  # now: it may be up again in a moment
                self._scopes.pop((peer, protocol)).cancel()
        self._do_gossip(self.gossip.handle(news.PeerDown(peer), trio.current_time()))
        self._report(ev.PeerDown(peer))

    def _do_gossip(self, effects: list[news.Effect]) -> None:
        for effect in effects:
            match effect:
                case news.Send(peer, message):
                    if self._encoded[0] is not message:  # the same object goes to many peers in a row
                        self._encoded = (message, encode(message))
                    self._put(peer, GOSSIP, self._encoded[1])
                case news.Deliver(topic, data, peer):
                    if topic == TOPIC:
                        self._tell_membership(members.RecordReceived(peer, data))
                    elif (heard := self._opened.pop(data, None)) is not None:
                        self._report(ev.Heard(peer, heard.message))
                case news.Penalise(peer, rule):
                    self._tell_membership(members.Misbehaved(peer, rule))
        self._wake.set()

    def _validate(self, peer: PeerId, topic: str, data: bytes) -> news.Verdict:
        """Judge what gossip brought, before it is passed on."""
        if topic == TOPIC:
            return self.membership.judge(peer, data, trio.current_time())
        if topic == TOPIC_EVIDENCE:  # passed on from here once it is judged, which takes a thread: see node/proving.py
            if self.offer is not None:
                self.offer(peer, data)
            return news.Verdict.IGNORE
        if topic != TOPIC_ROUND:
            return news.Verdict.IGNORE  # a later version's
        try:
            heard = ev.Heard(peer, open_spoken(data, verify))
        except WireError:
            return news.Verdict.REJECT
        if not isinstance(heard.message, Signed | Quorum | BranchCertificate):
            return news.Verdict.REJECT
        verdict = self._judge(heard)
        if verdict is news.Verdict.ACCEPT:
            self._opened[data] = heard
            if len(self._opened) > OPENED_MAX:
                self._opened.popitem(last=False)
        return verdict

    def _profile(self) -> members.Profile:
        return members.Profile(addrs=_to_bytes(self._host.addrs()), agent=self._agent)


def _to_bytes(addrs: Iterable[str]) -> tuple[bytes, ...]:
    """Encode addresses, those that can be: they are a stranger's, or a transport's that multiaddr does not know."""
    encoded = []
    for text in addrs:
        try:
            encoded.append(addr_to_bytes(text))
        except ValueError:
            log.debug("an address that cannot be encoded: %s", text)
    return tuple(encoded)
