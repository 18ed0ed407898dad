"""Judge evidence from its bytes: who lied, and what only arithmetic on tensors can still tell. Pure.

Contract: protocols/evidence-1.md. Nothing here depends on the state of a round, so that everybody comes to the same
verdict whenever it looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.core.state import weight_of
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire import merkle
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.evidence import (
    SIGNED_RAW_MAX,
    DoubleSigned,
    MalformedLeaf,
    ShownLeaf,
    WrongClips,
    WrongLeaf,
    WrongNorm,
    decode_evidence,
    evidence_digest,
)
from p2pnet.wire.exchange import NORM_BYTES, norms_root
from p2pnet.wire.round import (
    COMMIT_RAW_MAX,
    REDUCED_RAW_MAX,
    SIGNED,
    Commit,
    Proposal,
    Reduced,
    decode_value,
    roster_digest,
    slot_of,
)  # fmt: skip
from p2pnet.wire.signing import Signed, Verify, open_signed


@dataclass(frozen=True, slots=True)
class Offence:
    """What a piece of evidence proves."""

    peer: PeerId  # who lied
    round: int  # in which round
    digest: bytes  # 32 bytes, of the evidence
    what: str  # for a person


@dataclass(frozen=True, slots=True)
class Malformed:
    """Proven to be under its author's commit; a lie unless it is this many well-formed chunks."""

    data: bytes = field(repr=False)
    chunks: int


@dataclass(frozen=True, slots=True)
class Misreduced:
    """Proven to be what the reducer took and gave; a lie unless the output follows from well-formed inputs."""

    inputs: tuple[bytes, ...] = field(repr=False)
    weights: tuple[int, ...]  # of the inputs
    clips: tuple[int, ...]
    total_weight: int  # of the roster
    output: bytes = field(repr=False)
    chunks: int


@dataclass(frozen=True, slots=True)
class Misnormed:
    """Proven to be a leaf that the reducer took and the norm that it gave it; a lie unless that is its norm."""

    data: bytes = field(repr=False)
    chunks: int
    norm: int | None  # None: its row has another size than its inputs need


@dataclass(frozen=True, slots=True)
class Misclipped:
    """Proven to be the norms that the reducer signed; a lie unless its clip factors follow from them."""

    norms: tuple[int, ...]  # of the inputs
    clips: tuple[int, ...]


Claim = Malformed | Misreduced | Misnormed | Misclipped  # what is left to be computed


@dataclass(frozen=True, slots=True)
class Ground:
    """What a swarm's manifest says of that evidence is judged by."""

    swarm: bytes  # 32 bytes
    chunks: int  # of a payload, and so of the result
    round_samples: int

    @property
    def leaves(self) -> int:
        """Leaves of a payload."""
        return -(-self.chunks // CHUNKS_PER_LEAF)

    def chunks_of(self, leaf: int) -> int:
        """How many chunks a leaf has: 16, the last one perhaps fewer."""
        return min((leaf + 1) * CHUNKS_PER_LEAF, self.chunks) - leaf * CHUNKS_PER_LEAF


def examine(raw: bytes, ground: Ground, verify: Verify) -> tuple[Offence, Claim | None]:
    """Say who is accused of what, and what is left to compute before it is proven; None: nothing.

    Raises WireError with the rule broken: then the evidence is worth nothing, and accuses nobody.
    """
    message = decode_evidence(raw)
    match message:
        case DoubleSigned():
            return _double_signed(message, raw, ground, verify), None
        case MalformedLeaf():
            return _malformed_leaf(message, raw, ground, verify)
        case WrongLeaf():
            return _wrong_leaf(message, raw, ground, verify)
        case WrongNorm():
            return _wrong_norm(message, raw, ground, verify)
        case WrongClips():
            return _wrong_clips(message, raw, ground, verify)


def accuse_of_two(found: DoubleSigned) -> tuple[Offence, bytes]:
    """What `make_double_signed` found, and its bytes: the signatures were checked when the messages came."""
    raw = encode(found)
    first = open_signed(SIGNED, found.first, _trusted, SIGNED_RAW_MAX)
    return _two(first, raw), raw


def make_double_signed(one: Signed[Message], other: Signed[Message]) -> DoubleSigned | None:
    """The evidence that two messages of one author make, None when they make none."""
    first, second = sorted((one, other), key=lambda signed: signed.body)
    return DoubleSigned(first.raw, second.raw) if _contradict(first, second) is None else None


def lineage_of(message: Message) -> bytes | None:
    """The lineage that a signed message says it builds on; None: it does not say."""
    if isinstance(message, Proposal):
        try:
            return decode_value(message.outcome).lineage
        except WireError:
            return None  # no outcome at all: nobody honest proposes that on any lineage
    return getattr(message, "lineage", None)


def _contradict(first: Signed[Message], second: Signed[Message]) -> str | None:
    """Say why two messages are no offence, None when they are one. Bodies are compared, for signatures may differ."""
    if first.peer != second.peer:
        return "two authors"
    if slot_of(first.message) != slot_of(second.message):
        return "two slots"
    lineages = lineage_of(first.message), lineage_of(second.message)
    if None not in lineages and lineages[0] != lineages[1]:
        return "two lineages"  # somebody who follows another branch signs for it what it must
    if first.body >= second.body:
        return "the same twice, or the higher body first"
    return None


def _double_signed(message: DoubleSigned, raw: bytes, ground: Ground, verify: Verify) -> Offence:
    first, second = (open_signed(SIGNED, each, verify, SIGNED_RAW_MAX) for each in (message.first, message.second))
    _refuse({_swarm(first.message), _swarm(second.message)} != {ground.swarm}, "R2", "another swarm")
    why = _contradict(first, second)
    _refuse(why is not None, "R3", why or "")
    return _two(first, raw)


def _two(signed: Signed[Message], raw: bytes) -> Offence:
    kind = type(signed.message).__name__.lower()
    number: int = getattr(signed.message, "round")  # noqa: B009 - every signed message has it, their union does not
    return Offence(signed.peer, number, evidence_digest(raw), f"signed two {kind} messages for one slot")


def _trusted(_peer: PeerId, _data: bytes, _signature: bytes) -> bool:
    return True


def _malformed_leaf(message: MalformedLeaf, raw: bytes, ground: Ground, verify: Verify) -> tuple[Offence, Claim | None]:
    signed = open_signed((Commit,), message.commit, verify, COMMIT_RAW_MAX)
    _refuse(signed.message.swarm != ground.swarm, "R2", "another swarm")
    _refuse(message.leaf >= ground.leaves, "R4", f"leaf {message.leaf} of {ground.leaves}")
    _show(message.shown, signed.message.payload_root, ground.leaves, message.leaf, "R4")
    offence = Offence(signed.peer, signed.message.round, evidence_digest(raw), "committed to a malformed update")
    return offence, Malformed(message.shown.data, ground.chunks_of(message.leaf))


def _wrong_leaf(message: WrongLeaf, raw: bytes, ground: Ground, verify: Verify) -> tuple[Offence, Claim | None]:
    signed = _open_reduced(message.reduced, ground, verify)
    reduced, leaf = signed.message, message.leaf
    commits = _open_roster(message.commits, reduced, leaf, ground, verify)
    taken = [place for place, code in enumerate(reduced.inputs) if code]
    _refuse(len(taken) != len(message.inputs), "R6", f"{len(message.inputs)} inputs of {len(taken)}")
    for place, shown in zip(taken, message.inputs, strict=True):
        _show(shown, commits[place].message.payload_root, ground.leaves, leaf, "R7")
    _show(message.output, reduced.root, reduced.stop - reduced.start, leaf - reduced.start, "R7")
    weights = [weight_of(commit.message, ground.round_samples) for commit in commits]
    return _by_reducer(signed, raw, "reduced a part to something else"), Misreduced(
        tuple(shown.data for shown in message.inputs),
        tuple(weights[place] for place in taken),
        tuple(reduced.inputs[place] - 1 for place in taken),
        sum(weights),
        message.output.data,
        ground.chunks_of(leaf),
    )


def _wrong_norm(message: WrongNorm, raw: bytes, ground: Ground, verify: Verify) -> tuple[Offence, Claim | None]:
    signed = _open_reduced(message.reduced, ground, verify)
    reduced, leaf, place = signed.message, message.leaf, message.place
    commits = _open_roster(message.commits, reduced, leaf, ground, verify)
    _refuse(place >= len(commits) or not reduced.inputs[place], "R6", "no input of this place")
    _show(message.shown, commits[place].message.payload_root, ground.leaves, leaf, "R7")
    _show(message.row, reduced.norms, reduced.stop - reduced.start, leaf - reduced.start, "R7")
    taken = [code > 0 for code in reduced.inputs]
    row, at = message.row.data, NORM_BYTES * sum(taken[:place])
    norm = int.from_bytes(row[at : at + NORM_BYTES], "big") if len(row) == NORM_BYTES * sum(taken) else None
    claim = Misnormed(message.shown.data, ground.chunks_of(leaf), norm)
    return _by_reducer(signed, raw, "gave a slice another norm"), claim


def _wrong_clips(message: WrongClips, raw: bytes, ground: Ground, verify: Verify) -> tuple[Offence, Claim | None]:
    signed = _open_reduced(message.reduced, ground, verify)
    reduced, norms = signed.message, message.norms
    clips = tuple(code - 1 for code in reduced.inputs if code)
    row_bytes = NORM_BYTES * len(clips)
    rows = reduced.stop - reduced.start
    _refuse(not clips or rows < 1 or len(norms) != rows * row_bytes, "R6", f"{len(norms)} bytes of norms")
    _refuse(norms_root(norms, len(clips)) != reduced.norms, "R7", "other norms")
    return _by_reducer(signed, raw, "clipped by other factors"), Misclipped(sum_norms(norms, len(clips)), clips)


def sum_norms(norms: bytes, inputs: int) -> tuple[int, ...]:
    """The norm^2 of each input's slice, from the rows of norms of its leaves."""
    found = [0] * inputs
    for number, at in enumerate(range(0, len(norms), NORM_BYTES)):
        found[number % inputs] += int.from_bytes(norms[at : at + NORM_BYTES], "big")
    return tuple(found)


def _open_reduced(raw: bytes, ground: Ground, verify: Verify) -> Signed[Reduced]:
    signed = open_signed((Reduced,), raw, verify, REDUCED_RAW_MAX)
    _refuse(signed.message.swarm != ground.swarm, "R2", "another swarm")
    return signed


def _open_roster(
    raws: tuple[bytes, ...], reduced: Reduced, leaf: int, ground: Ground, verify: Verify
) -> list[Signed[Commit]]:
    """The commits of the roster that a reduced digest is of, for evidence about one of its leaves."""
    _refuse(roster_digest(raws) != reduced.roster, "R6", "another roster")
    _refuse(len(reduced.inputs) != len(raws), "R6", "inputs that are not the roster's")
    _refuse(not reduced.start <= leaf < reduced.stop <= ground.leaves, "R6", f"leaf {leaf} is not of this part")
    return [open_signed((Commit,), each, verify, COMMIT_RAW_MAX) for each in raws]


def _by_reducer(signed: Signed[Reduced], raw: bytes, what: str) -> Offence:
    return Offence(signed.peer, signed.message.round, evidence_digest(raw), what)


def _show(shown: ShownLeaf, root: bytes, size: int, index: int, rule: str) -> None:
    found = merkle.leaf_hash(shown.data)
    _refuse(not merkle.verify_inclusion(root, size, index, found, shown.proof), rule, "a leaf that is not under it")


def _swarm(message: Message) -> bytes:
    swarm: bytes = getattr(message, "swarm")  # noqa: B009 - every signed message has it, their union does not
    return swarm


def _refuse(bad: bool, rule: str, detail: str) -> None:
    if bad:
        raise WireError(f"evidence-1/{rule}", detail)
