"""What the round machine is told, and what it wants done: events in, effects out; see `group_events` for the rest.

Effects are performed in order, and nothing after a `Persist` or a `Hold` starts before it is durable.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnet.core.columns import Plan
from p2pnet.core.evidence import Offence
from p2pnet.core.group_events import (
    BundleArrived,
    ColumnArrived,
    Fetched,
    GroupEffect,
    GroupEvent,
    PartReturned,
    Root,
)
from p2pnet.core.parts import Part
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.branch import BranchCertificate, Spoken
from p2pnet.wire.round import Commit, Decision, WideDecision
from p2pnet.wire.signing import Signed


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline that the machine named has come."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A message arrived; signatures on the outside are checked, those nested in it are not."""

    sender: PeerId  # who handed it over, not always its author
    message: Spoken


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A member can be reached."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The connection to a member is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A peer has answered a small request."""

    peer: PeerId
    after_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """The learner stands at the start of the round, with these parameters."""

    round: int
    checksum: int  # of theta, 64 bits
    state: bytes  # SHA-256 of theta in a snapshot round, else empty


@dataclass(frozen=True, slots=True)
class Encoded:
    """The learner trained and encoded its payload."""

    round: int
    payload_root: bytes
    samples: int
    assigned: bool
    reach: int
    up_kbps: int
    down_kbps: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """The learner has no update this round."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class SliceArrived:
    """A contributor's slice of a part that this peer reduces is here and follows from its commit."""

    round: int
    view: int
    part: int
    peer: PeerId


@dataclass(frozen=True, slots=True)
class ReduceDone:
    """The part was reduced; the output is held under its root."""

    round: int
    view: int
    part: int
    inputs: tuple[int, ...]  # by place in the roster; 0 missing, else q + 1
    root: Root
    norms: bytes  # 32 bytes: root over the norms that the clip factors follow from


@dataclass(frozen=True, slots=True)
class ScatterFailed:
    """The slice did not reach this reducer, or no result came back on its stream."""

    round: int
    view: int
    part: int
    to: PeerId


@dataclass(frozen=True, slots=True)
class Gathered:
    """The bytes of a reduced part are held, and their root is right."""

    round: int
    root: Root


@dataclass(frozen=True, slots=True)
class GatherFailed:
    """None of the sources gave the bytes."""

    round: int
    root: Root


@dataclass(frozen=True, slots=True)
class Audited:
    """One leaf of a reduced part was recomputed from the signed inputs."""

    round: int
    root: Root
    honest: bool


@dataclass(frozen=True, slots=True)
class Proven:
    """Evidence came, from whomever, and it proves what it says."""

    offence: Offence
    raw: bytes


@dataclass(frozen=True, slots=True)
class Unproven:
    """Evidence that was asked for is not here: nobody gave it, or (worthless) what has this digest proves nothing."""

    digest: bytes
    worthless: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """The learner applied the decided round and stands at the next one."""

    round: int


Report = (
    Started | Encoded | Skipped | SliceArrived | ReduceDone | ScatterFailed | Gathered | GatherFailed | Audited
    | GroupEvent
)  # fmt: skip
FREIGHT = (SliceArrived, BundleArrived, PartReturned, ColumnArrived, Fetched)  # in thousands: most only add to the rest
Event = Tick | Heard | PeerUp | PeerDown | RoundTrip | Report | Proven | Unproven | Applied


@dataclass(frozen=True, slots=True)
class About:
    """An event of the final chain or of a branch, where several may be meant."""

    swarm: bytes  # the id of the line
    event: Event


@dataclass(frozen=True, slots=True)
class Train:
    """Train this round on what the beacon assigns; `state_wanted`: hash the parameters first."""

    round: int
    beacon: bytes
    state_wanted: bool
    end_s: float  # of the round's window, by the machine's clock


@dataclass(frozen=True, slots=True)
class Persist:
    """Write what is about to be signed for this slot; it must be durable before the next effect."""

    round: int
    slot: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Give this message to every member."""

    raw: bytes
    signed: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Give this message to one member."""

    to: PeerId
    raw: bytes
    signed: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """A roster is accepted: slices for these parts may come and go."""

    round: int
    view: int
    commits: tuple[Signed[Commit], ...]  # by peer, rising
    weights: tuple[int, ...]
    parts: tuple[Part, ...]  # with many groups the columns, as my group sees them
    plan: Plan | None = None  # of many groups


@dataclass(frozen=True, slots=True)
class Scatter:
    """Send my slice of this part to its reducer (or backup) and take the result back on the same stream."""

    round: int
    view: int
    part: Part
    to: PeerId
    listens: bool = False  # send none, only wait for the result


@dataclass(frozen=True, slots=True)
class Reduce:
    """Reduce this part from the slices of these senders."""

    round: int
    view: int
    part: Part
    senders: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Answer:
    """Send the signed digest and the reduced bytes to all who wait for them on their streams."""

    round: int
    view: int
    part: int
    root: Root
    raw: bytes


@dataclass(frozen=True, slots=True)
class Gather:
    """Fetch the bytes of a reduced part from the first of these that gives them."""

    round: int
    root: Root
    part: Part  # whose bytes they are: how many there must be follows from it
    sources: tuple[PeerId, ...]
    plan: Plan | None = None  # of many groups: a column is wanted, and the root is its digest


@dataclass(frozen=True, slots=True)
class Audit:
    """Recompute one leaf of this part from its signed inputs, fetched from its reducer."""

    round: int
    view: int
    roster: bytes  # 32 bytes, its digest: who the inputs are
    part: Part
    leaf: int  # within the part
    root: Root
    inputs: tuple[int, ...]
    reducer: PeerId
    norms: bytes  # 32 bytes: root over the norms that the clip factors follow from
    reduced: bytes  # what the reducer signed: evidence, if the leaf is wrong
    patience_s: float  # besides what the bytes take: a reducer that is frozen must not keep the round waiting


@dataclass(frozen=True, slots=True)
class Accuse:
    """Keep this evidence durably, like a `Persist`, and give it to every member."""

    offence: Offence
    raw: bytes


@dataclass(frozen=True, slots=True)
class FetchEvidence:
    """Fetch evidence by its digest from the first of these that gives it, and judge it."""

    digest: bytes  # 32 bytes
    sources: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep this outcome and its parts, durably: they may become the decision."""

    round: int
    value: bytes
    outcome: bytes
    commits: tuple[bytes, ...]  # of many groups encoded listings: of the groups, then of the columns
    roots: tuple[Root, ...]


@dataclass(frozen=True, slots=True)
class Decide:
    """The round is decided and all of it is held: log it, then apply it."""

    round: int
    decision: Decision | WideDecision
    void: bool
    roots: tuple[Root, ...]  # of many groups the columns' digests
    spans: tuple[tuple[int, int], ...]  # the leaves of each part
    accepted: tuple[int, ...]  # by part: my slice is among its inputs; of a column by bits, one for each group's part
    after: SwarmState

    @property
    def shares(self) -> tuple[int, int]:
        """In how many parts of the result my slice is, and how many there are."""
        if not isinstance(self.decision, WideDecision):
            return sum(self.accepted), len(self.accepted)
        listed = sum(bool(raw) for column in self.decision.columns for raw in column.items)
        return sum(mask.bit_count() for mask in self.accepted), listed


@dataclass(frozen=True, slots=True)
class Fork:
    """Keep, durably, where the learner stands in a round that has no quorum, and go on as a branch."""

    round: int  # that is stalled
    certificate: BranchCertificate
    branch: bytes  # its id
    genesis: SwarmState  # in which it begins
    started: Started | None  # what the learner said of this round
    update: Encoded | None  # its update of this round: the branch's too


@dataclass(frozen=True, slots=True)
class Leave:
    """Take the learner back to where it left this line, with the work of these branches; before the next effect."""

    round: int  # in which this line still is, or that it is about to decide
    branches: tuple[bytes, ...]  # their ids, each from the one before it


@dataclass(frozen=True, slots=True)
class Serve:
    """Send the decisions from this round on, out of the log."""

    to: PeerId
    round: int


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person wants to know: `stalled`, `void`, `left-out`, `refused-roster`, `diverged`..."""

    round: int
    kind: str
    detail: str
    peers: tuple[PeerId, ...] = ()


Effect = (
    Train | Persist | Broadcast | Send | Exchange | Scatter | Reduce | Answer | Gather | Audit | Accuse | FetchEvidence
    | Hold | Decide | Fork | Leave | Serve | Note | GroupEffect
)  # fmt: skip
