"""Carry bundles of slices to the reducers of parts, reduce over all groups, and bring the parts back.

Contract: protocols/bundles-1.md, R3 to R5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import Plan, judge_reduced, row_of
from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import PeerId
from p2pnet.net.host import Host, Stream
from p2pnet.node.bulk import PROTOCOL, Bulk
from p2pnet.node.lines import ANSWER_S
from p2pnet.node.views import ROSTER_WAIT_S, Piece, View
from p2pnet.numerics.dense import restore, shorten
from p2pnet.numerics.formats import WEIGHT_TIMES_K_MAX, ChunkFormat
from p2pnet.wire import merkle
from p2pnet.wire.bundles import Bundle, BundledSlice
from p2pnet.wire.codec import encode
from p2pnet.wire.exchange import norms_root
from p2pnet.wire.round import WIDE_REDUCED_RAW_MAX, WideReduced
from p2pnet.wire.signing import Signed, Verify, open_signed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cargo:
    """One slice of a bundle."""

    peer: PeerId  # whose it is
    place: int  # in its group
    piece: Piece


class Bundles:
    """The streams between who collects the slices of a group and who reduces a part over all groups."""

    def __init__(
        self, host: Host, swarm: bytes, bulk: Bulk, verify: Verify, report: Callable[[ev.Event], None]
    ) -> None:
        self._host, self._swarm, self._bulk, self._verify, self._report = host, swarm, bulk, verify, report
        self._cutting = trio.CapacityLimiter(1)

    # Out ------------------------------------------------------------------------------------------------------------

    async def forward(self, effect: gev.Forward) -> None:
        """Send my group's slices of a part to its reducer, and take the part back on the same stream."""
        view, part, to = self._bulk.views.find(effect.round, effect.view), effect.part, effect.to
        failed = gev.ForwardFailed(effect.round, effect.view, part.index, to)
        if view is None or view.exchange.plan is None:
            self._report(failed)
            return
        try:
            bundle = await trio.to_thread.run_sync(self._cut, effect, view, limiter=self._cutting)
            if to == self._host.peer:
                await self._keep_own(effect, view, bundle)
            else:
                await self._send(effect, view.exchange.plan, bundle)
        except (NetworkError, PeerError) as error:
            self._bulk.note(f"bundle of part {part.index}", to, error)
            self._report(failed)

    def _cut(self, effect: gev.Forward, view: View) -> list[Cargo]:
        """My group's slices of a part, out of those of its column, each with its own proof."""
        plan, part, freight = view.exchange.plan, effect.part, self._bulk.freight
        assert plan is not None
        number = part.index // len(plan.groups)
        column, pieces = plan.columns[effect.group][number], view.pieces.get(number, {})
        low, high = freight.span(part, freight.fmt_in)
        start, found = freight.span(column, freight.fmt_in)[0], list[Cargo]()
        for place, peer in enumerate(plan.groups[effect.group]):
            piece = pieces.get(peer) if peer in effect.members else None
            if piece is None:
                continue
            if (number, peer) not in view.narrow:
                about = freight.leaves, column.start, column.stop, piece.hashes, piece.proof
                view.narrow[number, peer] = merkle.narrow_ranges(*about)
            hashes = piece.hashes[part.start - column.start : part.stop - column.start]
            proof = view.narrow[number, peer](part.start, part.stop)
            found.append(Cargo(peer, place, Piece(piece.data[low - start : high - start], hashes, proof)))
        return found

    async def _keep_own(self, effect: gev.Forward, view: View, bundle: list[Cargo]) -> None:
        """The bundle of a part that I reduce myself."""
        self._keep(view, effect.part, effect.group, self._host.peer, bundle)
        answer = await self._wait_part(view, effect.part.index)
        if answer is None:
            raise NetworkError("the part was not reduced here")
        signed = open_signed((WideReduced,), answer[0], self._verify, WIDE_REDUCED_RAW_MAX)
        self._report(gev.PartReturned(effect.round, effect.view, signed))

    async def _send(self, effect: gev.Forward, plan: Plan, bundle: list[Cargo]) -> None:
        part, to, freight = effect.part, effect.to, self._bulk.freight
        slices = tuple(BundledSlice(one.place, one.piece.proof) for one in bundle)
        request = Bundle(self._swarm, effect.round, effect.view, plan.roster, part.index, effect.group, slices)
        frames = [one.piece.data for one in bundle]
        if freight.is_dense:
            frames = await freight.beside(shorten_all, frames, freight.fmt_in)
        size = freight.size(part, freight.fmt_out)
        with trio.move_on_after(ROSTER_WAIT_S + 4 * (sum(map(len, frames)) + size) / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(to, PROTOCOL, ROSTER_WAIT_S) as stream:
                await stream.send_frame(encode(request))
                for frame in frames:
                    await stream.send_frame(frame)
                signed = self._open(plan, part, to, await stream.receive_frame(WIDE_REDUCED_RAW_MAX))
                frame = await self._bulk.lines.receive(stream, size)
            # The stream is closed: by that the reducer sees what its line carries.
            data = await freight.unwrap(to, frame, freight.fmt_out, size)
            if flaw := await self._bulk.take_output(effect.round, signed.message.root, part, data, frame):
                raise PeerError(to, "bundles-1/R5", f"reduced bytes {flaw}")
            self._report(gev.PartReturned(effect.round, effect.view, signed))
            return
        raise NetworkError("no part within the time")

    def _open(self, plan: Plan, part: Part, to: PeerId, raw: bytes) -> Signed[WideReduced]:
        """The signed digest of a part that came back; raises PeerError when it is of something else."""
        try:
            signed = open_signed((WideReduced,), raw, self._verify, WIDE_REDUCED_RAW_MAX)
        except WireError as error:
            raise PeerError(to, error.rule, error.detail) from error
        if signed.peer != to or signed.message.part != part.index or judge_reduced(plan, signed) is not None:
            raise PeerError(to, "bundles-1/R5", "a digest of something else")
        return signed

    # In -------------------------------------------------------------------------------------------------------------

    async def receive(self, stream: Stream, request: Bundle) -> None:
        """Somebody brings the slices of its group, and waits for the part."""
        view = await self._bulk.views.wait(request.round, request.view, stream.peer)
        plan = view.exchange.plan if view is not None else None
        if view is None or plan is None or plan.roster != request.roster:
            await stream.aclose()  # a roster that was not accepted here: nobody's fault, and the backup is waiting
            return
        part = self._admit(plan, stream.peer, request)
        bundle = await self._read_bundle(stream, plan, part, request)
        self._keep(view, part, request.group, stream.peer, bundle)
        answer = await self._wait_part(view, part.index)
        if answer is None:
            await stream.aclose()
        else:
            await self._bulk.lines.send(stream, *answer)

    def _admit(self, plan: Plan, peer: PeerId, request: Bundle) -> Part:
        """The part that a bundle is for; raises PeerError unless it is mine, and the sender's to bring."""
        part = plan.parts[request.part] if request.part < len(plan.parts) else None
        if part is None or self._host.peer not in (part.reducer, part.backup) or request.group >= len(plan.groups):
            raise PeerError(peer, "bundles-1/R3", "not my part")
        column = plan.columns[request.group][part.index // len(plan.groups)]
        if peer not in (column.reducer, column.backup):
            raise PeerError(peer, "bundles-1/R3", "somebody else collects these slices")
        places = [each.place for each in request.slices]
        if places != sorted(set(places)) or (places and places[-1] >= len(plan.groups[request.group])):
            raise PeerError(peer, "bundles-1/R3", "places that do not rise, or of nobody")
        return part

    async def _read_bundle(self, stream: Stream, plan: Plan, part: Part, request: Bundle) -> list[Cargo]:
        """The slices of a bundle, each proven against its sender's commit."""
        freight, frames = self._bulk.freight, list[bytes]()
        size = freight.size(part, freight.fmt_in)
        with trio.move_on_after(ANSWER_S + size * len(request.slices) / SLOW_BYTES_PER_S) as scope:
            for _ in request.slices:
                frames.append(await self._bulk.lines.receive(stream, size))
        if scope.cancelled_caught:
            raise NetworkError("announced slices did not come in time")  # slow, or frozen: no fault that shows
        members = plan.groups[request.group]
        roots = [plan.commits_by[members[each.place]].message.payload_root for each in request.slices]
        about = frames, request.slices, roots, part, freight.leaves, size, freight.fmt_in, freight.is_dense
        try:
            pieces = await trio.to_thread.run_sync(open_bundle, *about, limiter=freight.hashing)
        except WireError as error:
            raise PeerError(stream.peer, error.rule, error.detail) from error
        places = [each.place for each in request.slices]
        return [Cargo(members[place], place, piece) for place, piece in zip(places, pieces, strict=True)]

    def _keep(self, view: View, part: Part, group: int, sender: PeerId, bundle: Iterable[Cargo]) -> None:
        if view.beside is None:
            return
        members = set()
        for one in bundle:
            view.beside.keep(part.index, one.peer, one.piece)
            members.add(one.peer)
        about = view.exchange.round, view.exchange.view, part.index, group
        self._report(gev.BundleArrived(*about, sender, frozenset(members)))

    async def _wait_part(self, view: View, part: int) -> tuple[bytes, ...] | None:
        """The signed digest of a part that I reduce, and the frame of its bytes; None when it will not come."""
        return await view.beside.wait_answer(part) if view.beside is not None else None

    async def reduce(self, effect: gev.ReducePart) -> None:
        """Reduce a part over all groups in a worker thread."""
        view, part = self._bulk.views.find(effect.round, effect.view), effect.part
        plan = view.exchange.plan if view is not None else None
        if view is None or view.beside is None or plan is None:
            return
        if sum(plan.weights) * self._bulk.freight.fmt_out.k > WEIGHT_TIMES_K_MAX:
            log.warning("round %d: too many members for exact sums (reduce-1)", effect.round)
            return
        pieces = view.beside.pieces.get(part.index, {})
        chosen = {peer: pieces[peer] for senders in effect.senders for peer in senders if peer in pieces}
        done = await self._bulk.reduce_pieces(view.exchange, part, chosen)
        if done is None:
            return
        root, inputs, norms = done
        factors = {commit.peer: code for commit, code in zip(plan.commits, inputs, strict=True)}
        rows = tuple(row_of(group, factors) for group in plan.groups)
        view.beside.rows[part.index], view.beside.norms[part.index] = rows, norms
        norms_digest = norms_root(norms, sum(code > 0 for code in inputs))
        self._report(gev.PartReduced(effect.round, effect.view, part.index, rows, root, norms_digest))

    async def answer(self, effect: ev.Answer) -> None:
        """Let everybody who brought a bundle for this part have it."""
        view = self._bulk.views.find(effect.round, effect.view)
        frame = await self._bulk.frame(effect.round, effect.root)
        if view is not None and view.beside is not None and frame is not None:
            view.beside.answer(effect.part, effect.raw, frame)


def open_bundle(
    frames: list[bytes],
    slices: tuple[BundledSlice, ...],
    roots: list[bytes],
    part: Part,
    leaves: int,
    size: int,
    fmt: ChunkFormat,
    is_dense: bool,
) -> list[Piece]:
    """The slices in the frames of a bundle; raises WireError for one that does not follow from its commit.

    roots: of their senders' payloads.   leaves: of a payload.   size: bytes of each slice.
    """
    pieces, leaf_bytes = [], fmt.payload_bytes(CHUNKS_PER_LEAF)
    for frame, one, root in zip(frames, slices, roots, strict=True):
        data = restore(frame, fmt, size // fmt.chunk_bytes) if is_dense and len(frame) != size else frame
        hashes = merkle.payload_leaves(data, leaf_bytes)
        if len(data) != size or not merkle.verify_range(root, leaves, part.start, part.stop, hashes, one.proof):
            raise WireError("bundles-1/R4", "a slice that does not follow from its commit")
        pieces.append(Piece(data, hashes, one.proof))
    return pieces


def shorten_all(slices: list[bytes], fmt: ChunkFormat) -> list[bytes]:
    """The frames in which slices travel as dense-1."""
    return [shorten(data, fmt) if data else data for data in slices]
