"""Make evidence of what the exchange shows, judge what others send, fetch what an outcome names.

Contract: protocols/evidence-1.md. Judging takes a worker thread: up to 65 signatures, 64 leaves and tensor work.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable

import trio

from p2pnet.core import events as ev
from p2pnet.core.evidence import (
    Claim,
    Ground,
    Malformed,
    Misclipped,
    Misnormed,
    Misreduced,
    Offence,
    examine,
    sum_norms,
)
from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text, verify
from p2pnet.ledger.evidence import EvidenceTable
from p2pnet.net.host import Host, Stream
from p2pnet.node.reducing import find_flaw
from p2pnet.node.views import Piece
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import clip_factors, reduce_leaf, squared_norm
from p2pnet.wire import merkle
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, decode, encode
from p2pnet.wire.evidence import (
    EVIDENCE_BYTES_MAX,
    NORMS_BYTES_MAX,
    Evidence,
    GetEvidence,
    MalformedLeaf,
    ShownLeaf,
    WrongClips,
    WrongLeaf,
    WrongNorm,
    evidence_digest,
)
from p2pnet.wire.exchange import NORM_BYTES

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/evidence/1"
ANSWER_S = 10.0
WAITING_MAX = 64  # pieces of evidence that wait to be judged
WAITING_PER_PEER_MAX = 4  # of one neighbour
JUDGED_MAX = 1024  # digests of evidence judged lately, so that it is judged once
MINE: PeerId | None = None  # whose word it is, when this peer itself found the lie

RULES = {
    Malformed: "evidence-1/R5",
    Misreduced: "evidence-1/R8",
    Misnormed: "evidence-1/R9",
    Misclipped: "evidence-1/R10",
}

Formats = tuple[ChunkFormat, ChunkFormat]  # of payload and result


def is_lie(claim: Claim, formats: Formats) -> bool:
    """Compute what is left to compute: whether what is shown to be under the signatures is what it should be."""
    fmt_in, fmt_out = formats
    match claim:
        case Malformed(data, chunks):
            return _is_malformed(data, chunks, fmt_in)
        case Misclipped(norms, clips):
            return clip_factors(norms) != list(clips)
        case Misnormed(data, chunks, norm):
            return _is_malformed(data, chunks, fmt_in) or squared_norm(data, fmt_in) != norm
        case Misreduced(inputs, weights, clips, total_weight, output, chunks):
            if any(_is_malformed(data, chunks, fmt_in) for data in inputs):
                return True  # a slice that is malformed anywhere counts as missing, and this one was not
            return reduce_leaf(inputs, weights, clips, total_weight, fmt_in, fmt_out) != output


def _is_malformed(data: bytes, chunks: int, fmt: ChunkFormat) -> bool:
    return len(data) != fmt.payload_bytes(chunks) or find_flaw(data, fmt) is not None


def prove_malformed(commit: bytes, leaves: int, part: Part, piece: Piece, fmt: ChunkFormat) -> bytes | None:
    """The evidence that a slice proven under a signed commit is malformed; None when no leaf of it is.

    commit: signed.   leaves: of the payload.
    """
    leaf_bytes = fmt.payload_bytes(CHUNKS_PER_LEAF)
    for leaf in range(part.start, part.stop):
        data = piece.data[(leaf - part.start) * leaf_bytes : (leaf - part.start + 1) * leaf_bytes]
        if find_flaw(data, fmt) is not None:
            proof = merkle.narrow_proof(leaves, part.start, part.stop, piece.hashes, piece.proof, leaf)
            return encode(MalformedLeaf(commit, leaf, ShownLeaf(data, proof)))
    return None


def judge_leaf(
    audit: ev.Audit, exchange: ev.Exchange, inputs: list[ShownLeaf], norms: bytes, output: bytes, formats: Formats
) -> tuple[bool, bytes | None]:
    """Whether the audited leaf, its norms and the clip factors follow from the inputs, and the evidence when not.

    inputs: of those that are not missing, by place, proven under their commits.   norms: the rows that the reducer
    signed.   output: the whole reduced part.   The evidence is None where it is too large to travel.
    """
    places = [place for place, code in enumerate(audit.inputs) if code]
    clips = tuple(audit.inputs[place] - 1 for place in places)
    if is_lie(Misclipped(sum_norms(norms, len(places)), clips), formats):
        return False, _encoded(WrongClips(audit.reduced, norms)) if len(norms) <= NORMS_BYTES_MAX else None
    fmt, commits = formats[1], tuple(commit.raw for commit in exchange.commits)
    leaf_bytes, leaf = fmt.payload_bytes(CHUNKS_PER_LEAF), audit.part.start + audit.leaf
    given = output[audit.leaf * leaf_bytes : (audit.leaf + 1) * leaf_bytes]
    chunks, weights = len(given) // fmt.chunk_bytes, tuple(exchange.weights[place] for place in places)
    leaves = tuple(shown.data for shown in inputs)
    if is_lie(Misreduced(leaves, weights, clips, sum(exchange.weights), given, chunks), formats):
        shown = _shown(output, leaf_bytes, audit.leaf)
        return False, _encoded(WrongLeaf(audit.reduced, commits, leaf, shown, tuple(inputs)))
    row = _shown(norms, NORM_BYTES * len(places), audit.leaf)
    for number, (place, one) in enumerate(zip(places, inputs, strict=True)):
        norm = int.from_bytes(row.data[NORM_BYTES * number : NORM_BYTES * (number + 1)], "big")
        if is_lie(Misnormed(one.data, chunks, norm), formats):
            return False, _encoded(WrongNorm(audit.reduced, commits, leaf, row, place, one))
    return True, None


def _shown(data: bytes, leaf_bytes: int, leaf: int) -> ShownLeaf:
    tree = merkle.Tree.of(merkle.payload_leaves(data, leaf_bytes))
    return ShownLeaf(data[leaf * leaf_bytes : (leaf + 1) * leaf_bytes], tree.inclusion_proof(leaf))


def _encoded(evidence: Evidence) -> bytes | None:
    raw = encode(evidence)
    return raw if len(raw) <= EVIDENCE_BYTES_MAX else None


class Proving:
    """The evidence that comes and goes: judged one piece at a time, and only what holds is kept or passed on."""

    def __init__(
        self,
        host: Host,
        ground: Ground,
        formats: Formats,
        table: EvidenceTable,
        report: Callable[[ev.Event], None],
        blame: Callable[[PeerId, str], None],
    ) -> None:
        """report: takes events for the core.   blame: told who sent evidence that is none."""
        self._host, self._ground, self._formats, self._table = host, ground, formats, table
        self._report, self._blame = report, blame
        self._waiting: deque[tuple[PeerId | None, bytes]] = deque()
        self._counts: Counter[PeerId | None] = Counter()
        self._judged: dict[bytes, Offence | None] = {}  # by digest; None: it proves nothing
        self._cpu = trio.CapacityLimiter(1)
        self._news = trio.Event()

    def offer(self, peer: PeerId | None, raw: bytes) -> None:
        """Take evidence that somebody sent (MINE: that this peer made) to be judged, unless too much waits already."""
        if evidence_digest(raw) in self._judged or self._counts[peer] >= WAITING_PER_PEER_MAX:
            return
        if len(self._waiting) >= WAITING_MAX or len(raw) > EVIDENCE_BYTES_MAX:
            return
        self._counts[peer] += 1
        self._waiting.append((peer, raw))
        self._news.set()

    async def run(self) -> None:
        """Judge what waits, until cancelled."""
        while True:
            while self._waiting:
                peer, raw = self._waiting.popleft()
                self._counts -= Counter([peer])
                offence = await self._judge(peer, raw)
                if offence is not None:
                    self._report(ev.Proven(offence, raw))
            self._news = trio.Event()
            await self._news.wait()

    async def fetch(self, effect: ev.FetchEvidence) -> None:
        """Fetch evidence by its digest from the first source that has it."""
        request = encode(GetEvidence(self._ground.swarm, effect.digest))
        for source in effect.sources:
            if source == self._host.peer:
                continue
            try:
                raw = await self._host.request(source, PROTOCOL, request, ANSWER_S, EVIDENCE_BYTES_MAX)
            except (NetworkError, PeerError) as error:
                log.info("evidence from %s: %s", peer_id_text(source), error)
                continue
            if not raw or evidence_digest(raw) != effect.digest:
                continue  # it is not held there; who sends something else wastes its own time more than ours
            offence = await self._judge(source, raw)
            self._report(ev.Unproven(effect.digest, True) if offence is None else ev.Proven(offence, raw))
            return
        self._report(ev.Unproven(effect.digest, False))

    async def serve(self, stream: Stream) -> None:
        """Answer a request for evidence."""
        request = decode((GetEvidence,), await stream.receive_frame(MESSAGE_BYTES_MAX))
        if request.swarm != self._ground.swarm:
            raise PeerError(stream.peer, "evidence-1/R1", "another swarm")
        raw = await trio.to_thread.run_sync(self._table.find, request.digest)
        with trio.fail_after(ANSWER_S):
            await stream.send_frame(raw or b"")

    async def _judge(self, peer: PeerId | None, raw: bytes) -> Offence | None:
        """Who is proved to have lied, once everything in the evidence is checked and computed; None: nobody."""
        digest = evidence_digest(raw)
        if digest not in self._judged:
            offence, rule = await trio.to_thread.run_sync(self._examine, raw, limiter=self._cpu)
            self._judged[digest] = offence
            if len(self._judged) > JUDGED_MAX:
                del self._judged[next(iter(self._judged))]
            if offence is None:
                log.warning("evidence from %s proves nothing: %s", peer_id_text(peer) if peer else "here", rule)
                if peer is not None:
                    self._blame(peer, rule)
        return self._judged[digest]

    def _examine(self, raw: bytes) -> tuple[Offence | None, str]:
        try:
            offence, claim = examine(raw, self._ground, verify)
        except WireError as error:
            return None, error.rule
        if claim is None or is_lie(claim, self._formats):
            return offence, ""
        return None, RULES[type(claim)]
