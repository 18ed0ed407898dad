"""Know the members of a swarm: hellos, records, whom to dial, whom to ban. Contract: protocols/membership-1.md.

Ages are counted on our own monotonic clock from when we heard something. Times that others write down are for people to
read: a peer whose clock is wrong by an hour is a member like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2pnet.core.addressbook import AddressBook
from p2pnet.core.contact import (
    Answer,
    Ban,
    Connected,
    Dial,
    DialFailed,
    Disconnect,
    Disconnected,
    Down,
    Effect,
    Event,
    Found,
    HelloAnswered,
    HelloReceived,
    MembershipLimits,
    Misbehaved,
    Profile,
    ProfileChanged,
    PublishRecord,
    RecordReceived,
    Refused,
    SendHello,
    Tick,
    Up,
)
from p2pnet.core.news import Verdict
from p2pnet.core.standing import Standing
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.membership import (
    ADDR_BYTES_MAX,
    ADDRS_MAX,
    ANSWER_RECORDS_MAX,
    RECORD_BYTES_MAX,
    VERSION,
    Hello,
    HelloAnswer,
    PeerRecord,
    Reason,
)
from p2pnet.wire.signing import Sign, Signed, Verify, open_signed, sign_message

if TYPE_CHECKING:
    import random

__all__ = [
    "Answer",
    "Ban",
    "Connected",
    "Dial",
    "DialFailed",
    "Disconnect",
    "Disconnected",
    "Down",
    "Effect",
    "Event",
    "Found",
    "HelloAnswered",
    "HelloReceived",
    "Membership",
    "MembershipLimits",
    "Misbehaved",
    "Profile",
    "ProfileChanged",
    "PublishRecord",
    "RecordReceived",
    "Refused",
    "SendHello",
    "Tick",
    "Up",
]

_SEQ_SANE: Final = 2**62  # a record of our own beyond this is not from any clock


@dataclass(slots=True)
class _Link:
    """One connection."""

    since_s: float
    session: bytes | None = None  # the other process's, once it is up

    @property
    def up(self) -> bool:
        return self.session is not None


class Membership:
    """One peer's view of its swarm. `handle` an event, perform the effects in order, `Tick` at `deadline_s`."""

    def __init__(
        self,
        me: PeerId,
        swarm: bytes,
        profile: Profile,
        session: bytes,
        clock_s: float,
        sign: Sign,
        verify: Verify,
        rng: random.Random,
        limits: MembershipLimits | None = None,
    ) -> None:
        """swarm: 32 bytes.   session: 8 random bytes of this process.   clock_s: unix time minus monotonic time."""
        self.me, self.swarm, self.limits = me, swarm, limits or MembershipLimits()
        self.book = AddressBook(me, rng, self.limits.book)
        self.standing = Standing(self.limits.standing)
        self._profile, self._session, self._clock_s = profile, session, clock_s
        self._sign, self._verify, self._rng = sign, verify, rng
        self._own: Signed[PeerRecord] | None = None
        self._seq = -1
        self._published_s = float("-inf")
        self._refresh_s = self.limits.refresh_s
        self._changed = False  # our profile is not what the published record says
        self._links: dict[PeerId, _Link] = {}
        self._dialling: dict[PeerId, float] = {}
        self._opened: dict[bytes, Signed[PeerRecord]] = {}  # verified lately: gossip judges before it delivers
        self._tick_s = float("-inf")

    @property
    def deadline_s(self) -> float:
        """When a Tick is wanted next; in the past before the first one."""
        return self._tick_s

    @property
    def up(self) -> tuple[PeerId, ...]:
        """The members connected."""
        return tuple(peer for peer, link in self._links.items() if link.up)

    @property
    def size(self) -> int:
        """How many members the swarm seems to have, we among them."""
        return 1 + sum(known.record is not None for known in self.book.all())

    @property
    def own_record(self) -> bytes:
        """The signed record others get from us; empty before the first event."""
        return b"" if self._own is None else self._own.raw

    def record(self, peer: PeerId) -> PeerRecord | None:
        """Return the last record of a member."""
        known = self.book.get(peer)
        return known.record.message if known is not None and known.record is not None else None

    def judge(self, peer: PeerId, raw: bytes, now_s: float) -> Verdict:
        """Say what gossip shall do with a record that `peer` passed on; changes nothing but a cache."""
        try:
            signed = self._open(raw)
        except WireError:
            return Verdict.REJECT
        if signed.peer == self.me:
            return Verdict.ACCEPT if signed.message.seq > self._seq else Verdict.IGNORE
        if self.standing.banned_until_s(signed.peer, now_s) is not None:
            return Verdict.IGNORE
        return Verdict.ACCEPT if self.book.is_news(signed, now_s, peer) else Verdict.IGNORE

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event at a monotonic time in seconds; returns what to do, in order."""
        effects = self._publish_if_due(now_s)
        match event:
            case Tick():
                effects += self._tick(now_s)
            case Connected(peer):
                effects += self._connected(peer, now_s)
            case Disconnected(peer):
                effects += self._disconnected(peer, now_s)
            case DialFailed(peer):
                effects += self._dial_failed(peer, now_s)
            case HelloReceived(peer, hello):
                effects += self._greeted(peer, hello, now_s)
            case HelloAnswered(peer, answer):
                effects += self._answered(peer, answer, now_s)
            case RecordReceived(peer, raw):
                effects += self._heard(peer, raw, now_s)
            case Found(peer, addrs):
                self.book.found(peer, addrs, now_s, self._links)
            case Misbehaved(peer, rule, points):
                effects += self._misbehaved(peer, rule, points, now_s)
            case ProfileChanged(profile):
                self._changed = self._changed or profile != self._profile
                self._profile = profile
                effects += self._publish_if_due(now_s)
        return effects + self._dial(now_s)

    # --- connections

    def _connected(self, peer: PeerId, now_s: float) -> list[Effect]:
        self._dialling.pop(peer, None)
        if self.standing.banned_until_s(peer, now_s) is not None:
            return [Disconnect(peer, "banned")]
        if peer in self._links:
            return []
        if len(self._links) >= 2 * self.limits.degree_max:
            return [Disconnect(peer, "too many connections")]
        self._links[peer] = _Link(now_s)
        hello = Hello(VERSION, self.swarm, self._session, self._profile.agent, self.own_record)
        return [SendHello(peer, hello)]

    def _disconnected(self, peer: PeerId, now_s: float) -> list[Effect]:
        link = self._links.pop(peer, None)
        if link is None:
            return []
        if not link.up:
            self.book.failed(peer, now_s)
            return []
        self.book.left(peer, now_s)
        return [Down(peer)]

    def _dial_failed(self, peer: PeerId, now_s: float) -> list[Effect]:
        link = self._links.get(peer)
        if link is not None and link.up:
            return []  # it came to us meanwhile
        if self._dialling.pop(peer, None) is not None or link is not None:
            self.book.failed(peer, now_s)
        return self._drop(peer, "no answer to the hello")

    def _drop(self, peer: PeerId, why: str) -> list[Effect]:
        link = self._links.pop(peer, None)
        if link is None:
            return []
        return [*([Down(peer)] if link.up else []), Disconnect(peer, why)]

    def _set_up(self, peer: PeerId, session: bytes, now_s: float) -> list[Effect]:
        link = self._links.setdefault(peer, _Link(now_s))
        if link.session == session:
            return []
        effects: list[Effect] = [Down(peer)] if link.up else []  # restarted, and no connection broke to show it
        link.session = session
        self.book.met(peer, now_s)
        return [*effects, Up(peer)]

    # --- hellos

    def _greeted(self, peer: PeerId, hello: Hello, now_s: float) -> list[Effect]:
        self._dialling.pop(peer, None)
        reason, record = self._object(peer, hello, now_s)
        if record is None:
            others = self.book.sample(ANSWER_RECORDS_MAX, now_s, self.up, peer) if reason is Reason.FULL else ()
            answer = HelloAnswer(0, int(reason), VERSION, self._session, b"", b"", others)
            effects: list[Effect] = [Answer(peer, answer), Refused(peer, reason, by_us=True)]
            if reason is Reason.BAD_RECORD:
                effects += self._misbehaved(peer, "membership-1/R4", None, now_s)
            self._links.setdefault(peer, _Link(now_s))  # there is a connection, whether we heard of it or not
            return effects + self._drop(peer, f"refused: {reason.name.lower().replace('_', ' ')}")
        self.book.learn(record, now_s, None, {peer, *self._links})
        known = self.book.get(peer)
        newer = known.record.raw if known is not None and known.record and known.seq > record.message.seq else b""
        others = self.book.sample(ANSWER_RECORDS_MAX, now_s, self.up, peer)
        answer = HelloAnswer(1, int(Reason.NONE), VERSION, self._session, self.own_record, newer, others)
        return [Answer(peer, answer), *self._set_up(peer, hello.session, now_s)]

    def _object(self, peer: PeerId, hello: Hello, now_s: float) -> tuple[Reason, Signed[PeerRecord] | None]:
        """Return why a hello is refused, or the record it brought."""
        if self.standing.banned_until_s(peer, now_s) is not None:
            return Reason.BANNED, None
        if hello.version != VERSION:
            return Reason.OTHER_VERSION, None
        if hello.swarm != self.swarm:
            return Reason.OTHER_SWARM, None
        try:
            record = self._open(hello.record, peer)
        except WireError:
            return Reason.BAD_RECORD, None
        link = self._links.get(peer)
        if (link is None or not link.up) and len(self.up) >= self.limits.degree_max:
            return Reason.FULL, None
        return Reason.NONE, record

    def _answered(self, peer: PeerId, answer: HelloAnswer, now_s: float) -> list[Effect]:
        if peer not in self._links:
            return []  # too late
        if not answer.accepted:
            reason = Reason(answer.reason)
            self._learn_others(peer, answer, now_s)
            lasting = reason in (Reason.OTHER_SWARM, Reason.OTHER_VERSION, Reason.BANNED)
            self.book.failed(peer, now_s, self.limits.refused_s if lasting else 0.0)
            why = f"refused by the peer: {reason.name.lower().replace('_', ' ')}"
            return [Refused(peer, reason, by_us=False), *self._drop(peer, why)]
        try:
            record = self._open(answer.record, peer)
        except WireError:
            self.book.failed(peer, now_s, self.limits.refused_s)
            effects: list[Effect] = [Refused(peer, Reason.BAD_RECORD, by_us=True)]
            return effects + self._misbehaved(peer, "membership-1/R4", None, now_s) + self._drop(peer, "bad record")
        self.book.learn(record, now_s, None, {peer, *self._links})
        effects = self._learn_others(peer, answer, now_s)
        if peer not in self._links:
            return effects  # banned for what it said of others
        if answer.newer:
            self._catch_up(answer.newer)
        return [*effects, *self._set_up(peer, answer.session, now_s)]

    def _learn_others(self, peer: PeerId, answer: HelloAnswer, now_s: float) -> list[Effect]:
        for raw in answer.others:
            try:
                self.book.learn(self._open(raw), now_s, peer, self._links)
            except WireError:
                return self._misbehaved(peer, "membership-1/R4", None, now_s)
        return []

    # --- records

    def _open(self, raw: bytes, author: PeerId | None = None) -> Signed[PeerRecord]:
        """Return a record of our swarm (by this author), or raise WireError."""
        signed = self._opened.get(raw)
        if signed is None:
            signed = open_signed((PeerRecord,), raw, self._verify, RECORD_BYTES_MAX)
            self._opened[raw] = signed
            if len(self._opened) > self.limits.opened_max:
                del self._opened[next(iter(self._opened))]
        if signed.message.swarm != self.swarm:
            raise WireError("membership-1/R4", "a record of another swarm")
        if author is not None and signed.peer != author:
            raise WireError("membership-1/R4", "somebody else's record")
        return signed

    def _heard(self, peer: PeerId, raw: bytes, now_s: float) -> list[Effect]:
        try:
            signed = self._open(raw)
        except WireError as error:
            return self._misbehaved(peer, error.rule, None, now_s)
        if signed.peer == self.me:
            self._catch_up(raw)
        elif self.standing.banned_until_s(signed.peer, now_s) is None:
            self.book.learn(signed, now_s, peer, self._links)
            self.book.spread(signed, now_s)
        return []

    def _catch_up(self, raw: bytes) -> None:
        """Go beyond a record of ours that others hold: we restarted with a clock that runs behind."""
        try:
            seq = self._open(raw, self.me).message.seq
        except WireError:
            return
        if self._seq < seq < _SEQ_SANE:
            self._seq, self._changed = seq, True

    def _publish_if_due(self, now_s: float) -> list[Effect]:
        wait_s = self.limits.book.record_interval_s if self._changed else self._refresh_s
        if self._own is not None and now_s < self._published_s + wait_s:
            return []
        first = int(now_s + self._clock_s)  # so that a restart needs no memory of the last number
        self._seq = max(self._seq + 1, first if self._own is None else 0)
        profile = self._profile
        addrs = tuple(addr for addr in profile.addrs if 0 < len(addr) <= ADDR_BYTES_MAX)[:ADDRS_MAX]
        issued_s = max(0, int(now_s + self._clock_s))
        record = PeerRecord(
            self.swarm, self._seq, addrs, int(profile.reach), profile.agent, profile.up_bps, profile.down_bps, issued_s
        )
        self._own = sign_message(record, self.me, self._sign)
        self._published_s, self._changed = now_s, False
        self._refresh_s = self.limits.refresh_s * (0.9 + 0.2 * self._rng.random())  # or all would publish at once
        return [PublishRecord(self._own.raw)]

    # --- standing, dialling, time

    def _misbehaved(self, peer: PeerId, rule: str, points: int | None, now_s: float) -> list[Effect]:
        until_s = self.standing.misbehaved(peer, now_s, points)
        if until_s is None or peer == self.me:
            return []
        return [Ban(peer, until_s, rule), *self._drop(peer, f"banned: broke {rule}")]

    def _tick(self, now_s: float) -> list[Effect]:
        self._tick_s = now_s + self.limits.tick_s
        self.book.expire(now_s, self._links)
        effects: list[Effect] = []
        late_s = now_s - self.limits.hello_s
        for peer in [peer for peer, link in self._links.items() if not link.up and link.since_s <= late_s]:
            self.book.failed(peer, now_s)
            effects += self._drop(peer, "no answer to the hello")
        for peer in [peer for peer, since_s in self._dialling.items() if since_s <= now_s - self.limits.dial_s]:
            del self._dialling[peer]
            self.book.failed(peer, now_s)
        return effects

    def _dial(self, now_s: float) -> list[Effect]:
        """Dial whom the mesh lacks: everybody in a small swarm, a few in a large one."""
        wanted = self.limits.mesh_max - 1 if self.size <= self.limits.mesh_max else self.limits.degree
        lacking = wanted - len(self._links) - len(self._dialling)
        count = min(lacking, self.limits.dials_max - len(self._dialling))
        if count <= 0:
            return []
        busy = {*self._links, *self._dialling, *self.standing.bans(now_s)}
        effects: list[Effect] = []
        for known in self.book.to_dial(count, now_s, busy):
            self._dialling[known.peer] = now_s
            effects.append(Dial(known.peer, known.addrs))
        return effects
