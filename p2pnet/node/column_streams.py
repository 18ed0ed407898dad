"""Send slices to who collects a column in my group, bring columns back, and fetch those that an outcome names.

Contract: protocols/bundles-1.md, R2 and R6.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import Column, Plan, judge_column
from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import PeerId
from p2pnet.net.host import Host, Stream
from p2pnet.node.bulk import PROTOCOL, Bulk
from p2pnet.node.lines import ANSWER_S
from p2pnet.node.views import ROSTER_WAIT_S, Piece, View
from p2pnet.wire.bundles import AwaitColumn, GetColumn, LackedParts
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, decode, encode
from p2pnet.wire.exchange import Slice
from p2pnet.wire.round import WIDE_REDUCED_RAW_MAX, Listing, WideReduced
from p2pnet.wire.signing import Signed, Verify, open_signed

HEAD_S = 3.0  # for a source to say whether it has a column: a vote may wait for it, and it may be frozen
LACKED_BYTES_MAX = 4096  # of a `LackedParts`


class ColumnStreams:
    """The columns of the latest rounds, and the streams between a group's members and who collects for them."""

    def __init__(
        self,
        host: Host,
        swarm: bytes,
        bulk: Bulk,
        verify: Verify,
        report: Callable[[ev.Event], None],
        stored: Callable[[int, bytes], tuple[bytes, ...] | None],
    ) -> None:
        """stored: the listing of a column that the ledger has, by round and digest."""
        self._host, self._swarm, self._bulk = host, swarm, bulk
        self._verify, self._report, self._stored = verify, report, stored
        self._known: dict[tuple[int, bytes], tuple[bytes, ...]] = {}  # by round and digest: columns that are here

    def forget(self) -> None:
        """A round is decided: drop what nobody asks for any more."""
        oldest = self._bulk.views.oldest
        self._known = {key: known for key, known in self._known.items() if key[0] >= oldest}

    # What the core wants --------------------------------------------------------------------------------------------

    async def scatter(self, effect: ev.Scatter) -> None:
        """Send my slice of a column to who collects it, or none, and take the column on the same stream."""
        part, to, view = effect.part, effect.to, self._bulk.views.find(effect.round, effect.view)
        kept = self._bulk.payload(effect.round)
        failed = ev.ScatterFailed(effect.round, effect.view, part.index, to)
        if view is None or view.exchange.plan is None or (kept is None and not effect.listens):
            self._report(failed)
            return
        if to == self._host.peer:
            if not effect.listens:
                self._keep_own(effect, view)
            return
        try:
            await self._exchange(effect, view.exchange.plan)
        except (NetworkError, PeerError) as error:
            self._bulk.note(f"column {part.index}", to, error)
            self._report(failed)

    def _slice_of(self, effect: ev.Scatter) -> Piece:
        kept, freight, part = self._bulk.payload(effect.round), self._bulk.freight, effect.part
        assert kept is not None
        payload, tree = kept
        data = payload[slice(*freight.span(part, freight.fmt_in))]
        hashes = [tree.node(0, leaf) for leaf in range(part.start, part.stop)]
        return Piece(data, hashes, tree.range_proof(part.start, part.stop))

    def _keep_own(self, effect: ev.Scatter, view: View) -> None:
        self._bulk.keep_piece(view, effect.part.index, self._host.peer, self._slice_of(effect))

    async def _exchange(self, effect: ev.Scatter, plan: Plan) -> None:
        part, to, freight = effect.part, effect.to, self._bulk.freight
        about, frames = (self._swarm, effect.round, effect.view, plan.roster, part.index), list[bytes]()
        if effect.listens:
            frames.append(encode(AwaitColumn(*about)))
        else:
            mine = self._slice_of(effect)
            frames += [encode(Slice(*about, mine.proof)), await freight.wrap(mine.data, freight.fmt_in)]
        size = sum(map(len, frames)) + freight.size(part, freight.fmt_out)
        with trio.move_on_after(ROSTER_WAIT_S + 4 * size / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(to, PROTOCOL, ROSTER_WAIT_S) as stream:
                for frame in frames:
                    await stream.send_frame(frame)
                column = self._open(plan, part.index, to, await stream.receive_frame(MESSAGE_BYTES_MAX))
                everything = [signed for signed in column.reduced if signed is not None]
                parts = await self._receive_parts(stream, plan, everything)
            # The stream is closed: by that who gave the column sees what its line carries.
            await self._keep_parts(to, plan, everything, parts)
            self._take(plan, column)
            return
        raise NetworkError("no column within the time")

    def _open(self, plan: Plan, index: int, peer: PeerId, raw: bytes) -> Column:
        """The digests of a column that a peer gives; raises PeerError when they are not right."""
        try:
            return judge_column(plan, index, decode((Listing,), raw).items, self._verify)
        except WireError as error:
            raise PeerError(peer, error.rule, error.detail) from error

    async def _receive_parts(self, stream: Stream, plan: Plan, wanted: list[Signed[WideReduced]]) -> list[bytes]:
        """The frames of some parts of a column, in their order."""
        return [await self._bulk.lines.receive(stream, self._size(plan, signed)) for signed in wanted]

    async def _keep_parts(
        self, peer: PeerId, plan: Plan, wanted: list[Signed[WideReduced]], frames: list[bytes]
    ) -> None:
        """Keep the parts in these frames; raises PeerError when one is not what its digest says."""
        freight = self._bulk.freight
        for signed, frame in zip(wanted, frames, strict=True):
            part = plan.parts[signed.message.part]
            assert part is not None
            data = await freight.unwrap(peer, frame, freight.fmt_out, self._size(plan, signed))
            if flaw := await self._bulk.take_output(plan.round, signed.message.root, part, data, frame):
                raise PeerError(peer, "bundles-1/R6", f"reduced bytes {flaw}")

    def _size(self, plan: Plan, signed: Signed[WideReduced]) -> int:
        part = plan.parts[signed.message.part]
        assert part is not None
        return self._bulk.freight.size(part, self._bulk.freight.fmt_out)

    def _take(self, plan: Plan, column: Column) -> None:
        """A column is here, with all its bytes."""
        if plan.round >= self._bulk.views.oldest:
            self._known[plan.round, column.digest] = column.listing
        self._report(gev.ColumnArrived(plan.round, plan.view, plan.roster, column.index, column.listing))

    async def give(self, effect: gev.Give) -> None:
        """Let everybody who waits for this column have it."""
        view = self._bulk.views.find(effect.round, effect.view)
        self._known[effect.round, effect.digest] = effect.listing
        roots = [_open_listed(raw).root for raw in effect.listing if raw]
        frames = [await self._bulk.frame(effect.round, root) for root in roots]
        if view is not None and None not in frames:
            view.answer(effect.column, encode(Listing(effect.listing)), *(frame or b"" for frame in frames))

    async def gather(self, effect: ev.Gather) -> None:
        """Fetch a column by its digest from the first source that has it."""
        plan = effect.plan
        assert plan is not None
        for source in effect.sources:
            if source == self._host.peer:
                continue
            try:
                found = await self._fetch(effect, plan, source)
            except (NetworkError, PeerError) as error:
                self._bulk.note(f"column of round {effect.round}", source, error)
                continue
            if found is not None:
                self._take(plan, found)
                return
        self._report(ev.GatherFailed(effect.round, effect.root))

    async def _fetch(self, effect: ev.Gather, plan: Plan, source: PeerId) -> Column | None:
        """A column, its bytes kept; None: this source does not have it."""
        freight = self._bulk.freight
        size = freight.size(effect.part, freight.fmt_out)
        request = encode(GetColumn(self._swarm, effect.round, effect.root))
        with trio.move_on_after(HEAD_S + ANSWER_S + 2 * size / SLOW_BYTES_PER_S):
            async with await self._host.open_stream(source, PROTOCOL, HEAD_S) as stream:
                with trio.move_on_after(HEAD_S) as waiting:
                    await stream.send_frame(request)
                    raw = await stream.receive_frame(MESSAGE_BYTES_MAX)
                if waiting.cancelled_caught:
                    raise NetworkError("it does not say whether it has the column")
                if not raw:
                    return None
                column = self._open(plan, effect.part.index, source, raw)
                if column.digest != effect.root:
                    raise PeerError(source, "bundles-1/R6", "a column with another digest")
                listed = [signed for signed in column.reduced if signed is not None]
                lacked = [one for one in listed if self._bulk.output(effect.round, one.message.root) is None]
                groups = tuple(one.message.part % len(plan.groups) for one in lacked)
                await stream.send_frame(encode(LackedParts(groups)))
                parts = await self._receive_parts(stream, plan, lacked)
            await self._keep_parts(source, plan, lacked, parts)
            return column
        raise NetworkError("no column within the time")

    # What others want -----------------------------------------------------------------------------------------------

    async def serve_wait(self, stream: Stream, request: AwaitColumn) -> None:
        """Somebody waits for a column that I collect."""
        view = await self._bulk.views.wait(request.round, request.view, stream.peer)
        plan = view.exchange.plan if view is not None else None
        if view is None or plan is None or plan.roster != request.roster:
            await stream.aclose()
            return
        part = view.part(request.column)
        if part is None or self._host.peer not in (part.reducer, part.backup):
            raise PeerError(stream.peer, "bundles-1/R2", "a column that I do not collect")
        answer = await view.wait_answer(request.column)
        if answer is None:
            await stream.aclose()
        else:
            await self._bulk.lines.send(stream, *answer)

    async def show_column(self, stream: Stream, request: GetColumn) -> None:
        """Somebody asks for a column by its digest, and then for the parts of it that it lacks."""
        listing = self._known.get((request.round, request.digest)) or self._stored(request.round, request.digest)
        with trio.fail_after(2 * ANSWER_S):
            await stream.send_frame(encode(Listing(listing)) if listing is not None else b"")
            if listing is None:
                return
            lacked = decode((LackedParts,), await stream.receive_frame(LACKED_BYTES_MAX))
        if list(lacked.groups) != sorted(set(lacked.groups)):
            raise PeerError(stream.peer, "bundles-1/R6", "a part asked for twice, or parts that do not rise")
        frames: list[bytes] = []
        for group in lacked.groups:
            raw = listing[group] if group < len(listing) else b""
            frame = await self._bulk.frame(request.round, _open_listed(raw).root) if raw else None
            if frame is None:
                await stream.aclose()  # it is not kept any more
                return
            frames.append(frame)
        await self._bulk.lines.send(stream, *frames)


def _open_listed(raw: bytes) -> WideReduced:
    """A digest that was checked before."""
    return open_signed((WideReduced,), raw, _trust, WIDE_REDUCED_RAW_MAX).message


def _trust(_peer: PeerId, _data: bytes, _signature: bytes) -> bool:
    return True
