"""Recompute a leaf of a part that was reduced over many groups, and show others what one was made from.

Contract: protocols/bundles-1.md, R7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from p2pnet.core import events as ev
from p2pnet.core.columns import FACTOR_BYTES, Plan, missing_of, rows_root
from p2pnet.core.evidence import Misclipped, Misnormed, Misreduced, sum_norms
from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.errors import NetworkError, P2pnetError, PeerError, WireError
from p2pnet.identity import PeerId
from p2pnet.net.host import Host, Stream
from p2pnet.node.bulk import PROTOCOL, Bulk
from p2pnet.node.lines import ANSWER_S
from p2pnet.node.proving import Formats, is_lie
from p2pnet.node.views import View
from p2pnet.numerics.dense import shorten
from p2pnet.wire import merkle
from p2pnet.wire.bundles import BundledSlice, GetWideLeaf, GroupLeaves
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, decode, encode
from p2pnet.wire.exchange import NORM_BYTES, norms_root
from p2pnet.wire.round import WIDE_REDUCED_RAW_MAX, WideReduced
from p2pnet.wire.signing import Verify, open_signed


@dataclass(frozen=True, slots=True)
class ShownInputs:
    """What a reducer shows of one leaf, each proven under its sender's commit; by place in the roster."""

    is_listed: bool  # the missing are those that it says are missing
    places: list[int]
    codes: list[int]  # q + 1 of each
    leaves: list[bytes]
    norms: bytes  # of the whole part: a row for each leaf (exchange-1, R9)


class WideAudits:
    """The audits of one line's exchanges of many groups."""

    def __init__(
        self, host: Host, swarm: bytes, bulk: Bulk, verify: Verify, report: Callable[[ev.Event], None]
    ) -> None:
        self._host, self._swarm, self._bulk, self._verify, self._report = host, swarm, bulk, verify, report

    async def audit(self, effect: ev.Audit) -> None:
        """Recompute one leaf of a part. A reducer that cannot be asked is not called a liar."""
        view = self._bulk.views.find(effect.round, effect.view)
        plan = view.exchange.plan if view is not None else None
        output, honest = self._bulk.output(effect.round, effect.root), True
        if plan is not None and output is not None and plan.roster == effect.roster:
            try:
                if effect.reducer != self._host.peer:
                    honest = await self._audit(effect, plan, output)
            except (P2pnetError, trio.TooSlowError) as error:
                self._bulk.note(f"audit of part {effect.part.index}", effect.reducer, error)
        self._report(ev.Audited(effect.round, effect.root, honest))

    async def _audit(self, effect: ev.Audit, plan: Plan, output: bytes) -> bool:
        freight, part = self._bulk.freight, effect.part
        leaf_bytes = freight.leaf_bytes(part.start + effect.leaf, freight.fmt_in)
        size = len(plan.commits) * (leaf_bytes + NORM_BYTES * (part.stop - part.start))
        with trio.fail_after(effect.patience_s + size / SLOW_BYTES_PER_S):
            shown = await self._fetch(effect, plan, leaf_bytes)
        whole = freight.fmt_out.payload_bytes(CHUNKS_PER_LEAF)
        given = output[effect.leaf * whole : (effect.leaf + 1) * whole]
        about = plan, shown, effect.leaf, given, (freight.fmt_in, freight.fmt_out)
        return await freight.beside(follows, *about)

    async def _fetch(self, effect: ev.Audit, plan: Plan, leaf_bytes: int) -> ShownInputs:
        freight, reducer = self._bulk.freight, effect.reducer
        place_of = {commit.peer: place for place, commit in enumerate(plan.commits)}
        signed = open_signed((WideReduced,), effect.reduced, self._verify, WIDE_REDUCED_RAW_MAX).message
        found, rows = dict[int, tuple[int, bytes]](), list[bytes]()
        request = GetWideLeaf(self._swarm, effect.round, effect.view, effect.part.index, effect.leaf)
        async with await self._host.open_stream(reducer, PROTOCOL, ANSWER_S) as stream:
            asked_s = trio.current_time()
            await stream.send_frame(encode(request))
            for group in plan.groups:
                raw = await stream.receive_frame(MESSAGE_BYTES_MAX)
                if not rows:
                    self._report(ev.RoundTrip(reducer, trio.current_time() - asked_s))
                if not raw:
                    raise NetworkError("the reducer does not show the inputs")
                try:
                    shown = decode((GroupLeaves,), raw)
                except WireError as error:
                    raise PeerError(reducer, error.rule, error.detail) from error
                codes = codes_of(shown.factors)
                taken = [place for place, code in enumerate(codes) if code]
                if len(codes) != len(group) or [one.place for one in shown.leaves] != taken:
                    raise NetworkError("leaves that are not those of its row")
                rows.append(shown.factors)
                for one in shown.leaves:
                    frame = await stream.receive_frame(leaf_bytes)
                    data = await freight.unwrap(reducer, frame, freight.fmt_in, leaf_bytes)
                    self._prove(effect, plan, group[one.place], one, data)
                    found[place_of[group[one.place]]] = codes[one.place], data
            size = NORM_BYTES * len(found) * (effect.part.stop - effect.part.start)
            norms = await stream.receive_frame(size)
        if rows_root(tuple(rows)) != signed.inputs:
            raise NetworkError("rows that are not those which it signed")
        if not found or len(norms) != size or norms_root(norms, len(found)) != signed.norms:
            raise NetworkError("norms that are not those which it signed")
        places = sorted(found)
        is_listed = missing_of(plan, tuple(rows)) == signed.missing
        return ShownInputs(is_listed, places, [found[at][0] for at in places], [found[at][1] for at in places], norms)

    def _prove(self, effect: ev.Audit, plan: Plan, peer: PeerId, one: BundledSlice, data: bytes) -> None:
        root = plan.commits_by[peer].message.payload_root
        leaf = effect.part.start + effect.leaf
        if not merkle.verify_inclusion(root, self._bulk.freight.leaves, leaf, merkle.leaf_hash(data), one.proof):
            raise NetworkError("a leaf that does not follow from its commit")

    async def show(self, stream: Stream, request: GetWideLeaf) -> None:
        """Somebody audits a part that I reduced."""
        view = self._bulk.views.find(request.round, request.view)
        frames: list[bytes] = []
        if view is not None and view.beside is not None:
            frames = await trio.to_thread.run_sync(self._frames, view, request, limiter=self._bulk.freight.hashing)
        await self._bulk.lines.send(stream, *(frames or [b""]))

    def _frames(self, view: View, request: GetWideLeaf) -> list[bytes]:
        """The answer to an audit; empty when what it needs is not here (any more)."""
        plan, beside, freight = view.exchange.plan, view.beside, self._bulk.freight
        assert plan is not None
        assert beside is not None
        part = plan.parts[request.part] if request.part < len(plan.parts) else None
        rows, norms = beside.rows.get(request.part), beside.norms.get(request.part)
        if part is None or rows is None or norms is None or request.leaf >= part.stop - part.start:
            return []
        pieces, frames = beside.pieces.get(request.part, {}), list[bytes]()
        leaf_bytes = freight.fmt_in.payload_bytes(CHUNKS_PER_LEAF)
        for row, group in zip(rows, plan.groups, strict=True):
            taken = [place for place, code in enumerate(codes_of(row)) if code]
            if any(group[place] not in pieces for place in taken):
                return []
            proofs, leaves = [], []
            for place in taken:
                piece = pieces[group[place]]
                about = freight.leaves, part.start, part.stop, piece.hashes, piece.proof, part.start + request.leaf
                proofs.append(BundledSlice(place, merkle.narrow_proof(*about)))
                data = piece.data[request.leaf * leaf_bytes : (request.leaf + 1) * leaf_bytes]
                leaves.append(shorten(data, freight.fmt_in) if freight.is_dense else data)
            frames += [encode(GroupLeaves(row, tuple(proofs))), *leaves]
        return [*frames, norms]


def codes_of(row: bytes) -> list[int]:
    """What was taken from each member of a group, q + 1 or 0, out of its row."""
    return [int.from_bytes(row[at : at + FACTOR_BYTES], "big") for at in range(0, len(row), FACTOR_BYTES)]


def follows(plan: Plan, shown: ShownInputs, leaf: int, given: bytes, formats: Formats) -> bool:
    """Tell whether a leaf of a part, its norms and the clip factors follow from what its reducer shows."""
    if not shown.is_listed:
        return False
    clips, count = tuple(code - 1 for code in shown.codes), len(shown.codes)
    if is_lie(Misclipped(sum_norms(shown.norms, count), clips), formats):
        return False
    chunks, weights = len(given) // formats[1].chunk_bytes, tuple(plan.weights[place] for place in shown.places)
    if is_lie(Misreduced(tuple(shown.leaves), weights, clips, sum(plan.weights), given, chunks), formats):
        return False
    row = shown.norms[leaf * count * NORM_BYTES : (leaf + 1) * count * NORM_BYTES]
    norms = [int.from_bytes(row[at : at + NORM_BYTES], "big") for at in range(0, len(row), NORM_BYTES)]
    pairs = zip(shown.leaves, norms, strict=True)
    return not any(is_lie(Misnormed(data, chunks, norm), formats) for data, norm in pairs)
