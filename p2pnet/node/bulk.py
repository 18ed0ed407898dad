"""Move a round's bulk data: slices, reduced parts, leaves for audits. Contract: protocols/exchange-1.md."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar, TypeVarTuple, Unpack

import trio

from p2pnet.core import events as ev
from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import NetworkError, P2pnetError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.host import Host, Stream
from p2pnet.node.lines import ANSWER_S, Lines
from p2pnet.node.proving import judge_leaf, prove_malformed
from p2pnet.node.reducing import leaf_frames, open_output, reduce_slices
from p2pnet.node.views import ROSTER_WAIT_S, Piece, View, Views
from p2pnet.numerics.dense import restore, shorten
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, decode, encode
from p2pnet.wire.evidence import ShownLeaf
from p2pnet.wire.exchange import NORM_BYTES, REQUESTS, GetLeaf, GetOutput, Leaves, Slice, norms_root
from p2pnet.wire.round import REDUCED_RAW_MAX, Reduced
from p2pnet.wire.signing import Verify, open_signed

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/exchange/1"
HASH_BYTES_MAX = 1 << 18  # hashed in the loop, in 0.2 ms or so: to wake a thread for it takes as long
OTHER_ROOT, MALFORMED = "with another root", "that are malformed"  # what may be wrong with a reduced part

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Bulk:
    """The bulk data of the latest rounds, and the streams that move it."""

    def __init__(
        self,
        host: Host,
        swarm: bytes,
        round_id: int,
        chunks: int,
        formats: tuple[ChunkFormat, ChunkFormat],
        is_dense: bool,
        verify: Verify,
        report: Callable[[ev.Event], None],
        blame: Callable[[PeerId, str], None],
        stored: Callable[[int, bytes], bytes | None],
        accuse: Callable[[bytes], None],
        caps_bps: tuple[int, int] = (0, 0),
    ) -> None:
        """round_id: the round that is not decided yet.   formats: of payload and result.   is_dense: send dense-1.

        report: takes events for the core.   blame: told who broke which rule.   stored: parts that the ledger has.
        accuse: takes evidence.
        caps_bps: what the operator allows, up and down; 0: no cap.
        """
        self._host, self._swarm, self._chunks, self._verify = host, swarm, chunks, verify
        self._in, self._out, self._is_dense = *formats, is_dense
        self._report, self._blame, self._stored, self._accuse = report, blame, stored, accuse
        self._payloads: dict[int, tuple[bytes, merkle.Tree]] = {}  # by round
        self._outputs: dict[tuple[int, bytes], bytes] = {}  # round, root -> reduced bytes
        self._frames: dict[tuple[int, bytes], bytes] = {}  # as they travel, where that differs
        self.views = Views(round_id)
        self.lines = Lines(sum(fmt.payload_bytes(chunks) for fmt in formats), caps_bps)
        self._cpu = trio.CapacityLimiter(1)  # one reduction at a time, beside the training
        self._hashing = trio.CapacityLimiter(1)

    @property
    def leaves(self) -> int:
        """Leaves of the payload, and so of the result."""
        return -(-self._chunks // CHUNKS_PER_LEAF)

    def keep_payload(self, round_id: int, payload: bytes, tree: merkle.Tree) -> bytes:
        """Take this peer's payload of a round and the tree over it (`payload_tree`); returns its root, 32 bytes."""
        self._payloads[round_id] = payload, tree
        return tree.root()

    def left_out(self, round_id: int, after_s: float) -> None:
        """A round is decided in which most reducers had not got my slices, so long after its roster."""
        if round_id in self._payloads:
            self.lines.late(len(self._payloads[round_id][0]), after_s)

    def forget(self, decided: int) -> None:
        """A round is decided: drop what nobody asks for any more."""
        self.views.forget(decided)
        self.lines.next_round()
        oldest = self.views.oldest
        self._payloads = {r: kept for r, kept in self._payloads.items() if r >= oldest}
        self._outputs = {key: data for key, data in self._outputs.items() if key[0] >= oldest}
        self._frames = {key: data for key, data in self._frames.items() if key[0] >= oldest}

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
        part, to, view = effect.part, effect.to, self.views.find(effect.round, effect.view)
        kept = self._payloads.get(effect.round)
        failed = ev.ScatterFailed(effect.round, effect.view, part.index, to)
        if kept is None or view is None:
            self._report(failed)
            return
        payload, tree = kept
        data = payload[slice(*self._span(part, self._in))]
        proof = tree.range_proof(part.start, part.stop)
        if to == self._host.peer:
            hashes = [tree.node(0, leaf) for leaf in range(part.start, part.stop)]
            self._keep_piece(view, part.index, to, Piece(data, hashes, proof))
            return
        try:
            await self._send_slice(effect, view, data, proof)
        except (NetworkError, PeerError) as error:
            self._note(f"slice of part {part.index}", to, error)
            self._report(failed)

    async def _send_slice(self, effect: ev.Scatter, view: View, data: bytes, proof: tuple[bytes, ...]) -> None:
        part, to = effect.part, effect.to
        request = Slice(self._swarm, effect.round, effect.view, view.roster, part.index, proof)
        output_bytes = self._size(part, self._out)
        with trio.move_on_after(ROSTER_WAIT_S + 4 * (len(data) + output_bytes) / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(to, PROTOCOL, ROSTER_WAIT_S) as stream:
                await stream.send_frame(encode(request))
                await stream.send_frame(await self._wrap(data, self._in))
                raw = await stream.receive_frame(REDUCED_RAW_MAX)
                try:
                    signed = open_signed((Reduced,), raw, self._verify, REDUCED_RAW_MAX)
                except WireError as error:
                    raise PeerError(to, error.rule, error.detail) from error
                message = signed.message
                about = (message.swarm, message.round, message.view, message.part, message.roster)
                if signed.peer != to or about != (self._swarm, effect.round, effect.view, part.index, view.roster):
                    raise PeerError(to, "exchange-1/R5", "a digest of something else")
                frame = await self.lines.receive(stream, output_bytes)
            # The stream is closed: by that the reducer sees what its line carries.
            output = await self._unwrap(to, frame, self._out, output_bytes)
            if flaw := await self._take_output(effect.round, message.root, part, output):
                raise PeerError(to, "exchange-1/R5", f"reduced bytes {flaw}")
            self._report(ev.Heard(to, signed))
            self._report(ev.Gathered(effect.round, message.root))
            return
        raise NetworkError("no result within the time")

    async def reduce(self, effect: ev.Reduce) -> None:
        """Reduce a part in a worker thread; a slice that is malformed inside counts as missing."""
        view = self.views.find(effect.round, effect.view)
        if view is None:
            return
        pieces = view.pieces.get(effect.part.index, {})
        slices = {peer: pieces[peer].data for peer in effect.senders if peer in pieces}
        output, inputs, norms, malformed = await self._beside(reduce_slices, view.exchange, slices, self._in, self._out)
        for peer, error in malformed.items():  # under its signed commit: nobody else can have done that
            log.warning("%s committed to a malformed slice: %s", peer_id_text(peer), error)
            self._blame(peer, error.rule)
            commit = next(commit.raw for commit in view.exchange.commits if commit.peer == peer)
            proof = await self._beside(prove_malformed, commit, self.leaves, effect.part, pieces[peer], self._in)
            if proof is not None:
                self._accuse(proof)
        if output:
            root = merkle.root(await self._hash(output, self._out))
            self._outputs[effect.round, root] = output
            if self._is_dense:  # once for all who wait for it
                self._frames[effect.round, root] = await self._wrap(output, self._out)
            view.norms[effect.part.index], taken = norms, sum(code > 0 for code in inputs)
            about = effect.round, effect.view, effect.part.index
            self._report(ev.ReduceDone(*about, inputs, root, norms_root(norms, taken)))

    def answer(self, effect: ev.Answer) -> None:
        """Let everybody who waits for this part have it."""
        view, output = self.views.find(effect.round, effect.view), self._outputs.get((effect.round, effect.root))
        if view is not None and output is not None:
            view.answer(effect.part, effect.raw, self._frames.get((effect.round, effect.root), output))

    async def gather(self, effect: ev.Gather) -> None:
        """Fetch a reduced part from the first source that has it."""
        if self.output(effect.round, effect.root) is not None:
            self._report(ev.Gathered(effect.round, effect.root))
            return
        size = self._size(effect.part, self._out)
        request = encode(GetOutput(self._swarm, effect.round, effect.root))
        for source in effect.sources:
            if source == self._host.peer:
                continue
            try:
                timeout_s = ANSWER_S + 2 * size / SLOW_BYTES_PER_S
                data = await self._host.request(source, PROTOCOL, request, timeout_s, size)
                data = await self._unwrap(source, data, self._out, size) if data else data
                flaw = await self._take_output(effect.round, effect.root, effect.part, data) if data else MALFORMED
                if flaw == OTHER_ROOT:
                    raise PeerError(source, "exchange-1/R6", f"reduced bytes {flaw}")
                if flaw is None:
                    self._report(ev.Gathered(effect.round, effect.root))
                    return
            except (NetworkError, PeerError) as error:
                self._note(f"part of round {effect.round}", source, error)
        self._report(ev.GatherFailed(effect.round, effect.root))

    async def audit(self, effect: ev.Audit) -> None:
        """Recompute one leaf of a part from its signed inputs. A reducer that cannot be asked is not called a liar."""
        view, output = self.views.find(effect.round, effect.view), self.output(effect.round, effect.root)
        honest = True
        if (
            view is not None
            and output is not None
            and view.roster == effect.roster
            and effect.reducer != self._host.peer
        ):
            try:
                honest = await self._audit(effect, view, output)
            except (P2pnetError, trio.TooSlowError) as error:
                self._note(f"audit of part {effect.part.index}", effect.reducer, error)
        self._report(ev.Audited(effect.round, effect.root, honest))

    async def _audit(self, effect: ev.Audit, view: View, output: bytes) -> bool:
        wanted = [place for place, q in enumerate(effect.inputs) if q]
        leaf_bytes = self._leaf_bytes(effect.part.start + effect.leaf, self._in)
        size = len(wanted) * (leaf_bytes + NORM_BYTES * (effect.part.stop - effect.part.start))
        with trio.fail_after(effect.patience_s + size / SLOW_BYTES_PER_S):
            shown, norms = await self._fetch_leaf(effect, view, wanted, leaf_bytes)
        formats = self._in, self._out
        is_honest, proof = await self._beside(judge_leaf, effect, view.exchange, shown, norms, output, formats)
        if proof is not None:
            self._accuse(proof)
        return is_honest

    async def _fetch_leaf(
        self, effect: ev.Audit, view: View, wanted: list[int], leaf_bytes: int
    ) -> tuple[list[ShownLeaf], bytes]:
        """The inputs of a leaf, in the order of `wanted`, each proven against its sender's commit; and all norms."""
        request = GetLeaf(self._swarm, effect.round, effect.view, effect.part.index, effect.leaf)
        leaf, pieces = effect.part.start + effect.leaf, list[ShownLeaf]()
        async with await self._host.open_stream(effect.reducer, PROTOCOL, ANSWER_S) as stream:
            asked_s = trio.current_time()
            await stream.send_frame(encode(request))
            try:
                answer = decode((Leaves,), await stream.receive_frame(MESSAGE_BYTES_MAX))
            except WireError as error:
                raise PeerError(effect.reducer, error.rule, error.detail) from error
            self._report(ev.RoundTrip(effect.reducer, trio.current_time() - asked_s))
            if not answer.known or [proof.place for proof in answer.inputs] != wanted:
                raise NetworkError("the reducer does not show the inputs")
            for proof in answer.inputs:
                piece = await self._unwrap(effect.reducer, await stream.receive_frame(leaf_bytes), self._in, leaf_bytes)
                root = view.exchange.commits[proof.place].message.payload_root
                if not merkle.verify_inclusion(root, self.leaves, leaf, merkle.leaf_hash(piece), proof.proof):
                    # Not blamed: the proposer may have told it another roster for this view.
                    raise NetworkError("a leaf that does not follow from its commit")
                pieces.append(ShownLeaf(piece, proof.proof))
            size = NORM_BYTES * len(wanted) * (effect.part.stop - effect.part.start)
            norms = await stream.receive_frame(size)
            if len(norms) != size or norms_root(norms, len(wanted)) != effect.norms:
                raise NetworkError("norms that are not those which it signed")
        return pieces, norms

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
                output = self.output(request.round, request.root) or b""
                await self.lines.send(stream, await self._wrap(output, self._out))
            case GetLeaf():
                await self._show_leaf(stream, request)

    async def _receive_slice(self, stream: Stream, request: Slice) -> None:
        is_early = self.views.find(request.round, request.view) is None  # its bytes wait in buffers: not measured
        view = await self.views.wait(request.round, request.view, stream.peer)
        if view is None or view.roster != request.roster:
            await stream.aclose()  # a roster that was not accepted here: nobody's fault, and the backup is waiting
            return
        part = view.part(request.part)
        commit = next((c for c in view.exchange.commits if c.peer == stream.peer), None)
        if commit is None or part is None or self._host.peer not in (part.reducer, part.backup):
            raise PeerError(stream.peer, "exchange-1/R2", "not in the roster, or not my part")
        size = self._size(part, self._in)
        data = None
        with trio.move_on_after(ANSWER_S + size / SLOW_BYTES_PER_S):
            data = await (stream.receive_frame(size) if is_early else self.lines.receive(stream, size))
        if data is None:
            raise PeerError(stream.peer, "exchange-1/R4", "announced a slice that did not come")
        data = await self._unwrap(stream.peer, data, self._in, size)
        root, hashes = commit.message.payload_root, await self._hash(data, self._in)
        if len(data) != size or not merkle.verify_range(
            root, self.leaves, part.start, part.stop, hashes, request.proof
        ):
            raise PeerError(stream.peer, "exchange-1/R3", "the slice does not follow from the commit")
        self._keep_piece(view, part.index, stream.peer, Piece(data, hashes, request.proof))
        answer = await view.wait_answer(part.index)
        if answer is None:
            await stream.aclose()
        else:
            await self.lines.send(stream, *answer)

    async def _show_leaf(self, stream: Stream, request: GetLeaf) -> None:
        view = self.views.find(request.round, request.view)
        part = view.part(request.part) if view else None
        answer = view.answered(request.part) if view else None
        if view is None or part is None or answer is None or request.leaf >= part.stop - part.start:
            await self.lines.send(stream, encode(Leaves((), (), 0)))
            return
        inputs = open_signed((Reduced,), answer[0], self._verify, REDUCED_RAW_MAX).message.inputs
        about = view, part, inputs, request.leaf, self.leaves, self._in, self._is_dense
        frames = await trio.to_thread.run_sync(leaf_frames, *about, limiter=self._hashing)
        await self.lines.send(stream, *frames)

    # Inside ---------------------------------------------------------------------------------------------------------

    async def _wrap(self, data: bytes, fmt: ChunkFormat) -> bytes:
        """The frame in which whole chunks travel."""
        return await self._beside(shorten, data, fmt) if self._is_dense and data else data

    async def _unwrap(self, peer: PeerId, frame: bytes, fmt: ChunkFormat, size: int) -> bytes:
        """The chunks that a frame of a peer stands for, `size` bytes if it is honest."""
        if not self._is_dense or len(frame) == size:
            return frame
        try:
            return await self._beside(restore, frame, fmt, size // fmt.chunk_bytes)
        except WireError as error:
            raise PeerError(peer, error.rule, error.detail) from error

    def _note(self, what: str, peer: PeerId, error: Exception) -> None:
        """Log what failed, and lower the standing of who broke a rule."""
        log.info("%s, %s: %s", what, peer_id_text(peer), str(error) or "too slow")
        if isinstance(error, PeerError):
            self._blame(error.peer, error.rule)

    def _keep_piece(self, view: View, part: int, peer: PeerId, piece: Piece) -> None:
        if view.keep(part, peer, piece):
            self._report(ev.SliceArrived(view.exchange.round, view.exchange.view, part, peer))

    async def _take_output(self, round_id: int, root: bytes, part: Part, data: bytes) -> str | None:
        """Keep reduced bytes that have this root; returns OTHER_ROOT or MALFORMED when they are not what they should.

        Whose signature is under the root of malformed ones has lied, as such a result could not be applied; who only
        passes the bytes on has not.
        """
        found, flaw = await self._beside(open_output, data, self._out)
        if found != root:
            return OTHER_ROOT
        if flaw is not None or len(data) != self._size(part, self._out):
            log.warning("a reduced part of round %d is malformed: %s", round_id, flaw or f"{len(data)} bytes")
            return MALFORMED
        if round_id >= self.views.oldest:
            self._outputs.setdefault((round_id, root), data)
        return None

    async def _hash(self, data: bytes, fmt: ChunkFormat) -> list[bytes]:
        """The hashes of the leaves of a part; of a large one beside the loop, as it may take a second."""
        leaf_bytes = fmt.payload_bytes(CHUNKS_PER_LEAF)
        if len(data) <= HASH_BYTES_MAX:
            return merkle.payload_leaves(data, leaf_bytes)
        return await trio.to_thread.run_sync(merkle.payload_leaves, data, leaf_bytes, limiter=self._hashing)

    async def _beside(self, work: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Do tensor work in a thread beside the loop, and beside the training: one at a time."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._cpu)

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
    """The tree over a payload's leaves of 16 chunks, whose root a commit carries."""
    return merkle.Tree.of(merkle.payload_leaves(payload, fmt.payload_bytes(CHUNKS_PER_LEAF)))
