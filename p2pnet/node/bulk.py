"""Move a round's bulk data: slices, reduced parts, leaves for audits. Contract: protocols/exchange-1.md."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from p2pnet.core import events as ev
from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import NetworkError, P2pnetError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.host import Host, Stream
from p2pnet.node.freight import Freight
from p2pnet.node.lines import ANSWER_S, Lines
from p2pnet.node.proving import judge_leaf, prove_malformed
from p2pnet.node.reducing import leaf_frames, open_output, reduce_slices
from p2pnet.node.views import ROSTER_WAIT_S, Piece, View, Views
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, decode, encode
from p2pnet.wire.evidence import ShownLeaf
from p2pnet.wire.exchange import NORM_BYTES, GetLeaf, GetOutput, Leaves, Slice, norms_root
from p2pnet.wire.round import REDUCED_RAW_MAX, Reduced
from p2pnet.wire.signing import Verify, open_signed

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/exchange/1"
OTHER_ROOT, MALFORMED = "with another root", "that are malformed"  # what may be wrong with a reduced part

Request = Slice | GetOutput | GetLeaf


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
        lines: Lines | None = None,
    ) -> None:
        """round_id: the round that is not decided yet.   formats: of payload and result.   is_dense: send dense-1.

        report: takes events for the core.   blame: told who broke which rule.   stored: parts that the ledger has.
        accuse: takes evidence.
        lines: what measures the node's line, shared by all that uses it; None: one of its own, without a cap.
        """
        self._host, self._swarm, self._verify = host, swarm, verify
        (self._in, self._out), self.freight = formats, Freight(chunks, formats, is_dense)
        self._report, self._blame, self._stored, self._accuse = report, blame, stored, accuse
        self._payloads: dict[int, tuple[bytes, merkle.Tree]] = {}  # by round
        self._outputs: dict[tuple[int, bytes], bytes] = {}  # round, root -> reduced bytes
        self._frames: dict[tuple[int, bytes], bytes] = {}  # as they travel, where that differs
        self.views = Views(round_id)
        self.lines = lines or Lines(sum(fmt.payload_bytes(chunks) for fmt in formats))

    def keep_payload(self, round_id: int, payload: bytes, tree: merkle.Tree) -> bytes:
        """Take this peer's payload of a round and the tree over it (`payload_tree`); returns its root, 32 bytes."""
        self._payloads[round_id] = payload, tree
        return tree.root()

    def payload(self, round_id: int) -> tuple[bytes, merkle.Tree] | None:
        """Return this peer's payload of a round and the tree over it, while it is kept."""
        return self._payloads.get(round_id)

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
        data = payload[slice(*self.freight.span(part, self._in))]
        proof = tree.range_proof(part.start, part.stop)
        if to == self._host.peer:
            hashes = [tree.node(0, leaf) for leaf in range(part.start, part.stop)]
            self.keep_piece(view, part.index, to, Piece(data, hashes, proof))
            return
        try:
            await self._send_slice(effect, view, data, proof)
        except (NetworkError, PeerError) as error:
            self.note(f"slice of part {part.index}", to, error)
            self._report(failed)

    async def _send_slice(self, effect: ev.Scatter, view: View, data: bytes, proof: tuple[bytes, ...]) -> None:
        part, to = effect.part, effect.to
        request = Slice(self._swarm, effect.round, effect.view, view.roster, part.index, proof)
        output_bytes = self.freight.size(part, self._out)
        with trio.move_on_after(ROSTER_WAIT_S + 4 * (len(data) + output_bytes) / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(to, PROTOCOL, ROSTER_WAIT_S) as stream:
                await stream.send_frame(encode(request))
                await stream.send_frame(await self.freight.wrap(data, self._in))
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
            output = await self.freight.unwrap(to, frame, self._out, output_bytes)
            if flaw := await self.take_output(effect.round, message.root, part, output):
                raise PeerError(to, "exchange-1/R5", f"reduced bytes {flaw}")
            self._report(ev.Heard(to, signed))
            self._report(ev.Gathered(effect.round, message.root))
            return
        raise NetworkError("no result within the time")

    async def reduce(self, effect: ev.Reduce) -> None:
        """Reduce a part from the slices that came."""
        view = self.views.find(effect.round, effect.view)
        if view is None:
            return
        pieces = view.pieces.get(effect.part.index, {})
        chosen = {peer: pieces[peer] for peer in effect.senders if peer in pieces}
        done = await self.reduce_pieces(view.exchange, effect.part, chosen)
        if done is not None:
            root, inputs, norms = done
            view.norms[effect.part.index], taken = norms, sum(code > 0 for code in inputs)
            about = effect.round, effect.view, effect.part.index
            self._report(ev.ReduceDone(*about, inputs, root, norms_root(norms, taken)))

    async def reduce_pieces(
        self, exchange: ev.Exchange, part: Part, pieces: Mapping[PeerId, Piece]
    ) -> tuple[bytes, tuple[int, ...], bytes] | None:
        """Reduce slices in a worker thread and keep the output; one that is malformed inside counts as missing.

        Returns root, inputs as `Reduced` lists them, and norms (`reduce_slices`); None: no slice is of use.
        """
        slices = {peer: piece.data for peer, piece in pieces.items()}
        about = exchange, slices, self._in, self._out
        output, inputs, norms, malformed = await self.freight.beside(reduce_slices, *about)
        for peer, error in malformed.items():  # under its signed commit: nobody else can have done that
            log.warning("%s committed to a malformed slice: %s", peer_id_text(peer), error)
            self._blame(peer, error.rule)
            commit = next(commit.raw for commit in exchange.commits if commit.peer == peer)
            shown = commit, self.freight.leaves, part, pieces[peer], self._in
            proof = await self.freight.beside(prove_malformed, *shown)
            if proof is not None:
                self._accuse(proof)
        if not output:
            return None
        root = merkle.root(await self.freight.hash(output, self._out))
        self._outputs[exchange.round, root] = output
        if self.freight.is_dense:  # once for all who wait for it
            self._frames[exchange.round, root] = await self.freight.wrap(output, self._out)
        return root, inputs, norms

    async def frame(self, round_id: int, root: bytes) -> bytes | None:
        """The frame in which a reduced part travels, if it is held."""
        if (frame := self._frames.get((round_id, root))) is not None:
            return frame
        data = self.output(round_id, root)
        return await self.freight.wrap(data, self._out) if data is not None else None

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
        size = self.freight.size(effect.part, self._out)
        request = encode(GetOutput(self._swarm, effect.round, effect.root))
        for source in effect.sources:
            if source == self._host.peer:
                continue
            try:
                timeout_s = ANSWER_S + 2 * size / SLOW_BYTES_PER_S
                data = await self._host.request(source, PROTOCOL, request, timeout_s, size)
                data = await self.freight.unwrap(source, data, self._out, size) if data else data
                flaw = await self.take_output(effect.round, effect.root, effect.part, data) if data else MALFORMED
                if flaw == OTHER_ROOT:
                    raise PeerError(source, "exchange-1/R6", f"reduced bytes {flaw}")
                if flaw is None:
                    self._report(ev.Gathered(effect.round, effect.root))
                    return
            except (NetworkError, PeerError) as error:
                self.note(f"part of round {effect.round}", source, error)
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
                self.note(f"audit of part {effect.part.index}", effect.reducer, error)
        self._report(ev.Audited(effect.round, effect.root, honest))

    async def _audit(self, effect: ev.Audit, view: View, output: bytes) -> bool:
        wanted = [place for place, q in enumerate(effect.inputs) if q]
        leaf_bytes = self.freight.leaf_bytes(effect.part.start + effect.leaf, self._in)
        size = len(wanted) * (leaf_bytes + NORM_BYTES * (effect.part.stop - effect.part.start))
        with trio.fail_after(effect.patience_s + size / SLOW_BYTES_PER_S):
            shown, norms = await self._fetch_leaf(effect, view, wanted, leaf_bytes)
        formats = self._in, self._out
        is_honest, proof = await self.freight.beside(judge_leaf, effect, view.exchange, shown, norms, output, formats)
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
                frame = await stream.receive_frame(leaf_bytes)
                piece = await self.freight.unwrap(effect.reducer, frame, self._in, leaf_bytes)
                root = view.exchange.commits[proof.place].message.payload_root
                if not merkle.verify_inclusion(root, self.freight.leaves, leaf, merkle.leaf_hash(piece), proof.proof):
                    # Not blamed: the proposer may have told it another roster for this view.
                    raise NetworkError("a leaf that does not follow from its commit")
                pieces.append(ShownLeaf(piece, proof.proof))
            size = NORM_BYTES * len(wanted) * (effect.part.stop - effect.part.start)
            norms = await stream.receive_frame(size)
            if len(norms) != size or norms_root(norms, len(wanted)) != effect.norms:
                raise NetworkError("norms that are not those which it signed")
        return pieces, norms

    # What others want -----------------------------------------------------------------------------------------------

    async def serve(self, stream: Stream, request: Request) -> None:
        """Answer one stream of exchange-1, whose request was read."""
        match request:
            case Slice():
                await self._receive_slice(stream, request)
            case GetOutput():
                await self.lines.send(stream, await self.frame(request.round, request.root) or b"")
            case GetLeaf():
                await self._show_leaf(stream, request)

    async def _receive_slice(self, stream: Stream, request: Slice) -> None:
        is_early = self.views.find(request.round, request.view) is None  # its bytes wait in buffers: not measured
        view = await self.views.wait(request.round, request.view, stream.peer)
        if view is None or view.roster != request.roster:
            await stream.aclose()  # a roster that was not accepted here: nobody's fault, and the backup is waiting
            return
        part, plan = view.part(request.part), view.exchange.plan
        commit = next((c for c in view.exchange.commits if c.peer == stream.peer), None)
        if commit is None or part is None or self._host.peer not in (part.reducer, part.backup):
            raise PeerError(stream.peer, "exchange-1/R2", "not in the roster, or not my part")
        if plan is not None and plan.group_of(stream.peer) != plan.group_of(self._host.peer):
            raise PeerError(stream.peer, "bundles-1/R2", "a slice of another group")
        size = self.freight.size(part, self._in)
        data = None
        with trio.move_on_after(ANSWER_S + size / SLOW_BYTES_PER_S):
            data = await (stream.receive_frame(size) if is_early else self.lines.receive(stream, size))
        if data is None:
            raise NetworkError("an announced slice did not come in time")  # slow, or frozen: no fault that shows
        data = await self.freight.unwrap(stream.peer, data, self._in, size)
        root, hashes = commit.message.payload_root, await self.freight.hash(data, self._in)
        if len(data) != size or not merkle.verify_range(
            root, self.freight.leaves, part.start, part.stop, hashes, request.proof
        ):
            raise PeerError(stream.peer, "exchange-1/R3", "the slice does not follow from the commit")
        self.keep_piece(view, part.index, stream.peer, Piece(data, hashes, request.proof))
        answer = await view.wait_answer(part.index)
        if answer is None:
            await stream.aclose()
        else:
            await self.lines.send(stream, *answer)

    async def _show_leaf(self, stream: Stream, request: GetLeaf) -> None:
        view = self.views.find(request.round, request.view)
        part = view.part(request.part) if view else None
        answer = view.answered(request.part) if view else None
        is_wide = (
            view is not None and view.exchange.plan is not None
        )  # then an answer is a column, and has other leaves
        if view is None or part is None or answer is None or is_wide or request.leaf >= part.stop - part.start:
            await self.lines.send(stream, encode(Leaves((), (), 0)))
            return
        inputs = open_signed((Reduced,), answer[0], self._verify, REDUCED_RAW_MAX).message.inputs
        about = view, part, inputs, request.leaf, self.freight.leaves, self._in, self.freight.is_dense
        frames = await trio.to_thread.run_sync(leaf_frames, *about, limiter=self.freight.hashing)
        await self.lines.send(stream, *frames)

    # Inside ---------------------------------------------------------------------------------------------------------

    def note(self, what: str, peer: PeerId, error: Exception) -> None:
        """Log what failed, and lower the standing of who broke a rule."""
        log.info("%s, %s: %s", what, peer_id_text(peer), str(error) or "too slow")
        if isinstance(error, PeerError):
            self._blame(error.peer, error.rule)

    def keep_piece(self, view: View, part: int, peer: PeerId, piece: Piece) -> None:
        """Take a slice that follows from its commit."""
        if view.keep(part, peer, piece):
            self._report(ev.SliceArrived(view.exchange.round, view.exchange.view, part, peer))

    async def take_output(
        self, round_id: int, root: bytes, part: Part, data: bytes, frame: bytes | None = None
    ) -> str | None:
        """Keep reduced bytes that have this root; returns OTHER_ROOT or MALFORMED when they are not what they should.

        frame: in which they came, if it is to be passed on.
        Whose signature is under the root of malformed ones has lied, as such a result could not be applied; who only
        passes the bytes on has not.
        """
        found, flaw = await self.freight.beside(open_output, data, self._out)
        if found != root:
            return OTHER_ROOT
        if flaw is not None or len(data) != self.freight.size(part, self._out):
            log.warning("a reduced part of round %d is malformed: %s", round_id, flaw or f"{len(data)} bytes")
            return MALFORMED
        if round_id >= self.views.oldest:
            self._outputs.setdefault((round_id, root), data)
            if frame is not None and self.freight.is_dense:
                self._frames.setdefault((round_id, root), frame)
        return None


def payload_tree(payload: bytes, fmt: ChunkFormat) -> merkle.Tree:
    """The tree over a payload's leaves of 16 chunks, whose root a commit carries."""
    return merkle.Tree.of(merkle.payload_leaves(payload, fmt.payload_bytes(CHUNKS_PER_LEAF)))
