"""What goes into gossip and what comes out: events, effects, verdicts, limits. Contract: protocols/gossip-1.md."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pnet.core.recent import Memory
from p2pnet.core.wanted import Asking
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message


class Verdict(enum.Enum):
    """What a validator says about a message; it must not depend on who passed it on."""

    ACCEPT = "accept"  # deliver and pass on
    IGNORE = "ignore"  # of no use now: not passed on, may come again
    REJECT = "reject"  # a lie whatever the receiver knows: the sender's standing falls


Validate = Callable[[PeerId, str, bytes], Verdict]  # who sent it to us, topic, data


@dataclass(frozen=True, slots=True)
class GossipLimits:
    """Parameters of gossip-1; the page gives the reasons."""

    eager_degree: int = 12
    lazy_degree: int = 4
    lazy_delay_s: float = 0.1
    graft_s: float = 0.3
    direct_grace_s: float = 0.05
    push_bytes_max: int = 64 << 10
    audit_s: float = 1.0
    audit_age_s: float = 30.0
    announces_max: int = 8
    answers_max: int = 4
    window_s: float = 10.0
    have_ids_max: int = 8192
    want_ids_max: int = 4096
    control_max: int = 2048
    repeats_max: int = 64
    ignored_max: int = 2048
    broken_max: int = 64
    answer_bytes_max: int = 32 << 20
    memory: Memory = field(default_factory=Memory)
    asking: Asking = field(default_factory=Asking)


# --- events


@dataclass(frozen=True, slots=True)
class PeerUp:
    """Messages can be exchanged with this peer from now on."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """They no longer can."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Received:
    """A peer sent this; it decoded as one of the messages of the page."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell everybody. Our own messages are neither validated nor delivered to ourselves."""

    topic: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come."""


Event = PeerUp | PeerDown | Received | Publish | Tick

# --- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a peer; it may be lost. The same object goes to many peers in a row: encode it once."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Deliver:
    """An accepted message, once, for the layers above; `peer` passed it on, who wrote it is for its topic to say."""

    topic: str
    data: bytes
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Penalise:
    """A peer broke a rule of the page."""

    peer: PeerId
    rule: str


Effect = Send | Deliver | Penalise


@dataclass(slots=True)
class GossipCounts:
    """What happened so far; `duplicates / delivered` is the redundancy beyond one copy each."""

    delivered: int = 0
    duplicates: int = 0
    rejected: int = 0
    ignored: int = 0
    pushed: int = 0
    answered: int = 0
    announced: int = 0  # ids
