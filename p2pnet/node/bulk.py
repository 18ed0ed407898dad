"""Move a round's bulk data: slices, reduced parts, leaves for audits. Contract: protocols/exchange-1.md."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from p2pnet.core import events as ev
from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import NetworkError, P2pnetError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.host import Host, Stream
from p2pnet.numerics.codec import ChunkFormat
from p2pnet.numerics.codec import decode as decode_chunks
from p2pnet.numerics.reduce import reduce_leaf, reduce_part
from p2pnet.wire import merkle
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, decode, encode
from p2pnet.wire.exchange import REQUESTS, GetLeaf, GetOutput, LeafProof, Leaves, Slice
from p2pnet.wire.round import REDUCED_RAW_MAX, Reduced
from p2pnet.wire.signing import Verify, open_signed

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/exchange/1"
ROUNDS_KEPT = 2  # a round's slices and outputs are served for two rounds
ROSTER_WAIT_S = 30.0  # a slice may come before the roster it belongs to
SLOW_BYTES_PER_S = 1_250_000  # 10 Mbit/s: what a deadline expects of a link
WAITING_MAX = 256  # streams that wait for a roster


@dataclass(slots=True)
class _View:
    """One roster's exchange: what came for the parts that this peer reduces, and what it made of it."""

    exchange: ev.Exchange
    slices: dict[int, dict[PeerId, bytes]] = field(default_factory=dict)
    proofs: dict[int, dict[PeerId, tuple[bytes, ...]]] = field(default_factory=dict)
    answers: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)  # part -> signed digest, root
    answered: dict[int, trio.Event] = field(default_factory=dict)

    def part(self, index: int) -> Part | None:
        """The part of this number, if there is one."""
        return self.exchange.parts[index] if index < len(self.exchange.parts) else None


class Bulk:
    """The bulk data of the latest rounds, and the streams that move it."""

    def __init__(
        self,
        host: Host,
        swarm: bytes,
        chunks: int,
        formats: tuple[ChunkFormat, ChunkFormat],
        verify: Verify,
        report: Callable[[ev.Event], None],
        stored: Callable[[int, bytes], bytes | None],
    ) -> None:
        """formats: of payload and result.   report: takes events for the core.   stored: parts that the ledger has."""
        self._host, self._swarm, self._chunks, self._verify = host, swarm, chunks, verify
        self._in, self._out = formats
        self._report, self._stored = report, stored
        self._payloads: OrderedDict[int, bytes] = OrderedDict()
        self._trees: dict[int, merkle.Tree] = {}
        self._views: dict[tuple[int, int], _View] = {}
        self._outputs: dict[tuple[int, bytes], bytes] = {}  # round, root -> reduced bytes
        self._opened: dict[tuple[int, int], trio.Event] = {}
        self._oldest = 0
        self._cpu = trio.CapacityLimiter(1)  # one reduction at a time, beside the training

    @property
    def leaves(self) -> int:
        """Leaves of the payload, and so of the result."""
        return -(-self._chunks // CHUNKS_PER_LEAF)

    def keep_payload(self, round_id: int, payload: bytes, tree: merkle.Tree) -> bytes:
        """Take this peer's payload of a round and the tree over it (`payload_tree`); returns its root, 32 bytes."""
        self._payloads[round_id], self._trees[round_id] = payload, tree
        return tree.root()

    def open_view(self, exchange: ev.Exchange) -> None:
        """A roster was accepted: slices that wait for it may be checked."""
        key = (exchange.round, exchange.view)
        self._views.setdefault(key, _View(exchange))
        self._opened.setdefault(key, trio.Event()).set()

    def forget(self, decided: int) -> None:
        """Drop what is older than `ROUNDS_KEPT` rounds."""
        self._oldest = decided - ROUNDS_KEPT + 1
        self._payloads = OrderedDict((r, p) for r, p in self._payloads.items() if r >= self._oldest)
        self._trees = {r: tree for r, tree in self._trees.items() if r >= self._oldest}
        self._views = {key: view for key, view in self._views.items() if key[0] >= self._oldest}
        self._outputs = {key: data for key, data in self._outputs.items() if key[0] >= self._oldest}
        for key in [key for key in self._opened if key[0] < self._oldest]:
            self._opened.pop(key).set()

    def output(self, round_id: int, root: bytes) -> bytes | None:
        """The reduced bytes with this root, if they are held."""
        data = self._outputs.get((round_id, root))
        return data if data is not None else self._stored(round_id, root)

    def outputs(self, round_id: int, roots: tuple[bytes, ...]) -> Mapping[bytes, bytes]:
        """Those of these parts that are in memory, by root."""
        return {root: data for root in roots if (data := self._outputs.get((round_id, root))) is not None}

    # What the core wants --------------------------------------------------------------------------------------------

    async def scatter(self, effect: ev.Scatter) -> None:
        """Send my slice of a part to a reducer and take the result back on the same stream."""
        part, to = effect.part, effect.to
        payload, tree = self._payloads.get(effect.round), self._trees.get(effect.round)
        failed = ev.ScatterFailed(effect.round, effect.view, part.index, to)
        if payload is None or tree is None:
            self._report(failed)
            return
        piece = payload[slice(*self._span(part, self._in))]
        proof = tree.range_proof(part.start, part.stop)
        if to == self._host.peer:
            self._keep_slice((effect.round, effect.view), part.index, to, piece, proof)
            return
        try:
            await self._send_slice(effect, piece, proof)
        except (NetworkError, WireError, PeerError) as error:
            log.info("slice of part %d to %s: %s", part.index, peer_id_text(to), error)
            self._report(failed)

    async def _send_slice(self, effect: ev.Scatter, piece: bytes, proof: tuple[bytes, ...]) -> None:
        part, to = effect.part, effect.to
        request = Slice(self._swarm, effect.round, effect.view, part.index, proof)
        output_bytes = self._size(part, self._out)
        with trio.move_on_after(ROSTER_WAIT_S + 4 * (len(piece) + output_bytes) / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(to, PROTOCOL, ROSTER_WAIT_S) as stream:
                await stream.send_frame(encode(request))
                await stream.send_frame(piece)
                raw = await stream.receive_frame(REDUCED_RAW_MAX)
                signed = open_signed((Reduced,), raw, self._verify, REDUCED_RAW_MAX)
                data = await stream.receive_frame(output_bytes)
                if self._take_output(effect.round, signed.message.root, data, part.stop - part.start):
                    self._report(ev.Heard(to, signed))
                    self._report(ev.Gathered(effect.round, signed.message.root))
                    return
                raise PeerError(to, "exchange-1/R5", "the reduced bytes have another root")
        raise NetworkError("no result within the time")

    async def reduce(self, effect: ev.Reduce) -> None:
        """Reduce a part in a worker thread; a slice that is malformed inside counts as missing."""
        view = self._views.get((effect.round, effect.view))
        if view is None:
            return
        peers = [commit.peer for commit in view.exchange.commits]
        slices = {p: data for p, data in view.slices.get(effect.part.index, {}).items() if p in effect.senders}
        weights = dict(zip(peers, view.exchange.weights, strict=True))
        total = sum(view.exchange.weights)
        done = await trio.to_thread.run_sync(self._reduce, peers, slices, weights, total, limiter=self._cpu)
        if done is None:
            return
        output, inputs = done
        root = self._root(output)
        self._outputs[effect.round, root] = output
        self._report(ev.ReduceDone(effect.round, effect.view, effect.part.index, inputs, root))

    def _reduce(
        self, peers: list[PeerId], slices: dict[PeerId, bytes], weights: dict[PeerId, int], total: int
    ) -> tuple[bytes, tuple[int, ...]] | None:
        senders = [peer for peer in peers if peer in slices]
        try:
            done = reduce_part(
                [slices[peer] for peer in senders], [weights[peer] for peer in senders], total, self._in, self._out
            )
        except WireError:
            senders = [peer for peer in senders if self._is_well_formed(peer, slices[peer])]
            if not senders:
                return None
            done = reduce_part(
                [slices[peer] for peer in senders], [weights[peer] for peer in senders], total, self._in, self._out
            )
        clips = dict(zip(senders, done.clips, strict=True))
        return done.output, tuple(clips[peer] + 1 if peer in clips else 0 for peer in peers)

    def _is_well_formed(self, peer: PeerId, data: bytes) -> bool:
        try:
            decode_chunks(data, self._in)
        except WireError as error:
            log.warning("%s sent a malformed slice: %s", peer_id_text(peer), error)
            return False
        return True

    def answer(self, effect: ev.Answer) -> None:
        """Let everybody who waits for this part have it."""
        view = self._views.get((effect.round, effect.view))
        if view is not None:
            view.answers[effect.part] = (effect.raw, effect.root)
            view.answered.setdefault(effect.part, trio.Event()).set()

    async def gather(self, effect: ev.Gather) -> None:
        """Fetch a reduced part from the first source that has it."""
        if self.output(effect.round, effect.root) is not None:
            self._report(ev.Gathered(effect.round, effect.root))
            return
        bytes_max = effect.leaves * self._out.payload_bytes(CHUNKS_PER_LEAF)
        request = encode(GetOutput(self._swarm, effect.round, effect.root))
        for source in effect.sources:
            try:
                timeout_s = 2.0 + 2 * bytes_max / SLOW_BYTES_PER_S
                data = await self._host.request(source, PROTOCOL, request, timeout_s, bytes_max)
            except (NetworkError, PeerError) as error:
                log.info("part of round %d from %s: %s", effect.round, peer_id_text(source), error)
                continue
            if data and self._take_output(effect.round, effect.root, data, effect.leaves):
                self._report(ev.Gathered(effect.round, effect.root))
                return
        self._report(ev.GatherFailed(effect.round, effect.root))

    async def audit(self, effect: ev.Audit) -> None:
        """Recompute one leaf of a part from its signed inputs. A reducer that cannot be asked is not called a liar."""
        view, output = self._views.get((effect.round, effect.view)), self.output(effect.round, effect.root)
        honest = True
        if view is not None and output is not None and effect.reducer != self._host.peer:
            try:
                honest = await self._audit(effect, view, output)
            except (P2pnetError, WireError) as error:
                log.info("audit of part %d: %s", effect.part.index, error)
        self._report(ev.Audited(effect.round, effect.root, honest))

    async def _audit(self, effect: ev.Audit, view: _View, output: bytes) -> bool:
        request = GetLeaf(self._swarm, effect.round, effect.view, effect.part.index, effect.leaf)
        leaf_index = effect.part.start + effect.leaf
        leaf_bytes = self._leaf_bytes(leaf_index, self._in)
        with trio.fail_after(5.0 + len(effect.inputs) * leaf_bytes / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(effect.reducer, PROTOCOL, 5.0) as stream:
                await stream.send_frame(encode(request))
                answer = decode((Leaves,), await stream.receive_frame(MESSAGE_BYTES_MAX))
                places = [proof.place for proof in answer.inputs]
                wanted = [place for place, q in enumerate(effect.inputs) if q]
                if not answer.known or places != wanted:
                    raise NetworkError("the reducer does not show the inputs")
                pieces = []
                for proof in answer.inputs:
                    piece = await stream.receive_frame(leaf_bytes)
                    root = view.exchange.commits[proof.place].message.payload_root
                    if not merkle.verify_inclusion(root, self.leaves, leaf_index, merkle.leaf_hash(piece), proof.proof):
                        raise PeerError(effect.reducer, "exchange-1/R7", "a leaf that does not follow from its commit")
                    pieces.append(piece)
        clips = [effect.inputs[place] - 1 for place in wanted]
        weights = [view.exchange.weights[place] for place in wanted]
        total = sum(view.exchange.weights)
        leaf = await trio.to_thread.run_sync(
            reduce_leaf, pieces, weights, clips, total, self._in, self._out, limiter=self._cpu
        )
        start = effect.leaf * self._out.payload_bytes(CHUNKS_PER_LEAF)
        return leaf == output[start : start + len(leaf)]

    # What others want -----------------------------------------------------------------------------------------------

    async def serve(self, stream: Stream) -> None:
        """Answer one stream of exchange-1."""
        request = decode(REQUESTS, await stream.receive_frame(MESSAGE_BYTES_MAX))
        if getattr(request, "swarm") != self._swarm:  # noqa: B009 - every request has it, their union does not
            raise PeerError(stream.peer, "exchange-1/R1", "another swarm")
        match request:
            case Slice():
                await self._receive_slice(stream, request)
            case GetOutput():
                await stream.send_frame(self.output(request.round, request.root) or b"")
            case GetLeaf():
                await self._show_leaf(stream, request)

    async def _receive_slice(self, stream: Stream, request: Slice) -> None:
        key = (request.round, request.view)
        if request.round < self._oldest or len(self._opened) >= WAITING_MAX:
            return
        with trio.move_on_after(ROSTER_WAIT_S):
            await self._opened.setdefault(key, trio.Event()).wait()
        view = self._views.get(key)
        part = view.part(request.part) if view else None
        if view is None or part is None or self._host.peer not in (part.reducer, part.backup):
            return  # a roster that was not accepted here: nobody's fault
        commit = next((c for c in view.exchange.commits if c.peer == stream.peer), None)
        if commit is None:
            raise PeerError(stream.peer, "exchange-1/R2", "not in the roster")
        piece = await stream.receive_frame(self._size(part, self._in))
        hashes = merkle.payload_leaves(piece, self._in.payload_bytes(CHUNKS_PER_LEAF))
        root = commit.message.payload_root
        if len(piece) != self._size(part, self._in) or not merkle.verify_range(
            root, self.leaves, part.start, part.stop, hashes, request.proof
        ):
            raise PeerError(stream.peer, "exchange-1/R3", "the slice does not follow from the commit")
        self._keep_slice(key, part.index, stream.peer, piece, request.proof)
        await view.answered.setdefault(part.index, trio.Event()).wait()
        raw, output_root = view.answers[part.index]
        await stream.send_frame(raw)
        await stream.send_frame(self._outputs.get((request.round, output_root), b""))

    async def _show_leaf(self, stream: Stream, request: GetLeaf) -> None:
        view = self._views.get((request.round, request.view))
        part = view.part(request.part) if view else None
        if view is None or part is None or request.part not in view.answers or request.leaf >= part.stop - part.start:
            await stream.send_frame(encode(Leaves((), (), 0)))
            return
        signed = open_signed((Reduced,), view.answers[part.index][0], self._verify, REDUCED_RAW_MAX)
        slices, proofs, pieces = view.slices[part.index], [], []
        for place, commit in enumerate(view.exchange.commits):
            if not signed.message.inputs[place]:
                continue
            data, span_proof = slices[commit.peer], view.proofs[part.index][commit.peer]
            hashes = merkle.payload_leaves(data, self._in.payload_bytes(CHUNKS_PER_LEAF))
            proof = merkle.narrow_proof(
                self.leaves, part.start, part.stop, hashes, span_proof, part.start + request.leaf
            )
            proofs.append(LeafProof(place, proof))
            start = request.leaf * self._in.payload_bytes(CHUNKS_PER_LEAF)
            pieces.append(data[start : start + self._leaf_bytes(part.start + request.leaf, self._in)])
        await stream.send_frame(encode(Leaves(tuple(proofs), (), 1)))
        for piece in pieces:
            await stream.send_frame(piece)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _keep_slice(
        self, key: tuple[int, int], part: int, peer: PeerId, piece: bytes, proof: tuple[bytes, ...]
    ) -> None:
        view = self._views.get(key)
        if view is None or peer in view.slices.setdefault(part, {}):
            return
        view.slices[part][peer] = piece
        view.proofs.setdefault(part, {})[peer] = proof
        self._report(ev.SliceArrived(key[0], key[1], part, peer))

    def _take_output(self, round_id: int, root: bytes, data: bytes, leaves: int) -> bool:
        """Keep reduced bytes if they have this root; tells whether they do."""
        if (
            len(merkle.payload_leaves(data, self._out.payload_bytes(CHUNKS_PER_LEAF))) != leaves
            or self._root(data) != root
        ):
            return False
        self._outputs.setdefault((round_id, root), data)
        return True

    def _root(self, output: bytes) -> bytes:
        return merkle.root(merkle.payload_leaves(output, self._out.payload_bytes(CHUNKS_PER_LEAF)))

    def _span(self, part: Part, fmt: ChunkFormat) -> tuple[int, int]:
        start = fmt.payload_bytes(part.start * CHUNKS_PER_LEAF)
        return start, fmt.payload_bytes(min(part.stop * CHUNKS_PER_LEAF, self._chunks))

    def _size(self, part: Part, fmt: ChunkFormat) -> int:
        start, stop = self._span(part, fmt)
        return stop - start

    def _leaf_bytes(self, leaf: int, fmt: ChunkFormat) -> int:
        stop = min((leaf + 1) * CHUNKS_PER_LEAF, self._chunks)
        return fmt.payload_bytes(stop - leaf * CHUNKS_PER_LEAF)


def payload_tree(payload: bytes, fmt: ChunkFormat) -> merkle.Tree:
    """The tree over a payload's leaves of 64 chunks, whose root a commit carries."""
    return merkle.Tree.of(merkle.payload_leaves(payload, fmt.payload_bytes(CHUNKS_PER_LEAF)))
