"""What membership is told and what it wants done: events, effects, parameters. Contract: protocols/membership-1.md."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnet.core.addressbook import BookLimits
from p2pnet.core.standing import StandingLimits
from p2pnet.identity import PeerId
from p2pnet.wire.membership import Hello, HelloAnswer, Reach, Reason


@dataclass(frozen=True, slots=True)
class MembershipLimits:
    """Parameters of membership-1; the page gives the reasons."""

    mesh_max: int = 64
    degree: int = 16
    degree_max: int = 96
    dials_max: int = 16
    dial_s: float = 20.0
    hello_s: float = 10.0
    refresh_s: float = 60.0
    refused_s: float = 600.0
    tick_s: float = 1.0
    opened_max: int = 1024
    book: BookLimits = field(default_factory=BookLimits)
    standing: StandingLimits = field(default_factory=StandingLimits)


@dataclass(frozen=True, slots=True)
class Profile:
    """What we say about ourselves."""

    addrs: tuple[bytes, ...] = ()  # binary multiaddrs under which we can be dialled, relayed ones among them
    reach: Reach = Reach.UNKNOWN
    agent: str = ""
    up_bps: int = 0
    down_bps: int = 0


# --- events


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection to this peer, whoever dialled."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is none any more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """It could not be dialled, or did not answer the hello."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class HelloReceived:
    """A peer said hello and waits for the answer."""

    peer: PeerId
    hello: Hello


@dataclass(frozen=True, slots=True)
class HelloAnswered:
    """A peer answered our hello."""

    peer: PeerId
    answer: HelloAnswer


@dataclass(frozen=True, slots=True)
class RecordReceived:
    """Gossip delivered a signed record that `judge` accepted; `peer` passed it on."""

    peer: PeerId
    raw: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """The DHT, or a link, names a peer and its addresses."""

    peer: PeerId
    addrs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """A peer broke a rule of some page."""

    peer: PeerId
    rule: str
    points: int | None = None  # None: the usual number


@dataclass(frozen=True, slots=True)
class ProfileChanged:
    """Our addresses, reachability or rates are others now."""

    profile: Profile


Event = (
    Tick
    | Connected
    | Disconnected
    | DialFailed
    | HelloReceived
    | HelloAnswered
    | RecordReceived
    | Found
    | Misbehaved
    | ProfileChanged
)

# --- effects


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to this peer; ends in Connected or DialFailed."""

    peer: PeerId
    addrs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection; `why` is for people."""

    peer: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class SendHello:
    """Ask the peer; ends in HelloAnswered or DialFailed."""

    peer: PeerId
    hello: Hello


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the peer's hello. A Disconnect that follows comes after the answer is out."""

    peer: PeerId
    answer: HelloAnswer


@dataclass(frozen=True, slots=True)
class PublishRecord:
    """Gossip our own record."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Up:
    """A member is connected and of our swarm: the layers above may talk to it."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Down:
    """It no longer is."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Refused:
    """A hello was refused, by us or by the peer: the operator wants to know why."""

    peer: PeerId
    reason: Reason
    by_us: bool


@dataclass(frozen=True, slots=True)
class Ban:
    """Accept no connection from this peer until then (monotonic seconds)."""

    peer: PeerId
    until_s: float
    rule: str  # the last one it broke


Effect = Dial | Disconnect | SendHello | Answer | PublishRecord | Up | Down | Refused | Ban
