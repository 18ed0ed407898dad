"""One line at one peer, the final chain or a branch: what is written to its ledger, and its bulk data."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import trio

from p2pnet.core import events as ev
from p2pnet.core.decided import kept_of, listed_spans, roots_of, split_listings
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.core.slots import Restored
from p2pnet.errors import P2pnetError, WireError
from p2pnet.identity import PeerId
from p2pnet.ledger.log import Held, Ledger
from p2pnet.net.host import Stream
from p2pnet.node import bridge as br
from p2pnet.node.branches import Kept
from p2pnet.node.bulk import Bulk
from p2pnet.node.groups import BulkRequest, Groups, Request
from p2pnet.node.history import decision_of, entry_of
from p2pnet.node.results import join_result
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, encode
from p2pnet.wire.round import WideDecision, WideOutcome, decode_value

SERVE_MAX = 32  # decisions sent in answer to one ask


@dataclass(slots=True)
class Site:
    """A line with its ledger and its bulk data."""

    ledger: Ledger
    bulk: Bulk
    groups: Groups
    kept: Kept | None = None  # None: the final chain

    @property
    def branch(self) -> str:
        """The branch's id in hexadecimal digits; empty: the final chain."""
        return self.kept.id.hex() if self.kept is not None else ""

    def write(self, effect: ev.Effect) -> None:
        """Make durable what must be before the next effect; inside a batch of the ledger."""
        match effect:
            case ev.Persist(number, slot, raw):
                self.ledger.sign_once(number, slot, raw)
            case ev.Hold(number, value, outcome, commits, roots):
                roots = roots_of(outcome, commits, roots)
                self.ledger.hold(Held(number, value, outcome, commits, roots), self.bulk.outputs(number, roots))
            case ev.Decide(number, decision, _, roots):
                roots = roots_of(decision.outcome, kept_of(decision), roots)
                entry = entry_of(decision, effect.after.lineage, roots)
                self.ledger.append(entry, self.bulk.outputs(number, roots))

    def move(self, effect: ev.Effect, nursery: trio.Nursery, others: tuple[PeerId, ...]) -> None:
        """Move the bulk data that an effect is about.

        others: who may have a result, too: of a round that is over elsewhere, perhaps long ago, anybody.
        """
        bulk = self.bulk
        if self.groups.perform(effect, nursery, others):
            return
        match effect:
            case ev.Exchange():
                bulk.views.open(effect)
            case ev.Scatter():
                nursery.start_soon(bulk.scatter, effect)
            case ev.Reduce():
                nursery.start_soon(bulk.reduce, effect)
            case ev.Answer():
                bulk.answer(effect)
            case ev.Gather():
                sources = tuple(dict.fromkeys((*effect.sources, *others)))
                nursery.start_soon(bulk.gather, replace(effect, sources=sources))
            case ev.Audit():
                nursery.start_soon(bulk.audit, effect)

    async def serve(self, stream: Stream, request: Request) -> None:
        """Answer one stream of exchange-1, whose request was read."""
        if isinstance(request, BulkRequest):
            await self.bulk.serve(stream, request)
        else:
            await self.groups.serve(stream, request)

    def outcome(self, decide: ev.Decide) -> br.Outcome:
        """What the learner is told of a decided round."""
        if decide.void:
            return br.Outcome(decide.round, decide.after.lineage, True, b"", None)
        parts, named = list[tuple[tuple[int, int], bytes]](), [False] * self.bulk.freight.leaves
        for (start, stop), root, is_taken in result_parts(decide):
            data = self.bulk.output(decide.round, root)
            if data is None:
                raise P2pnetError(f"round {decide.round} was decided and its result is not held: the ledger is damaged")
            parts.append(((start, stop), data))
            named[start:stop] = [is_taken] * (stop - start)
        result = join_result(parts, self.bulk.freight.chunks, self.bulk.freight.fmt_out)
        mine = tuple(named) if any(named) else None
        return br.Outcome(decide.round, decide.after.lineage, False, result, mine)

    def forget(self, decided: int) -> None:
        """A round is decided: drop what nobody asks for any more."""
        self.bulk.forget(decided)
        self.groups.forget()

    def decisions(self, start: int) -> list[bytes]:
        """The decided rounds from one on, encoded, as many as are sent at once; none that is too large for that."""
        found = (encode(decision_of(entry)) for entry in self.ledger.entries(start, start + SERVE_MAX))
        return list(itertools.takewhile(lambda raw: len(raw) <= MESSAGE_BYTES_MAX, found))

    def restored(self, round_id: int, fmt: ChunkFormat) -> Restored:
        """What a stopped process of ours left of a round; raises WireError when a part's bytes are not what they were.

        fmt: of results.
        """
        held = self.ledger.held(round_id)
        for root in {root for one in held for root in one.roots}:
            data = self.ledger.part(round_id, root) or b""
            if merkle.root(merkle.payload_leaves(data, fmt.payload_bytes(CHUNKS_PER_LEAF))) != root:
                raise WireError("exchange-1/R6", f"a part held for round {round_id} has another root")
        return Restored(self.ledger.slots_of_round(round_id), tuple((one.outcome, one.commits) for one in held))


def result_parts(decide: ev.Decide) -> list[tuple[tuple[int, int], bytes, bool]]:
    """The parts of a decided result that are not void, by leaf: leaves, root, whether my slice is among the inputs."""
    if not isinstance(decide.decision, WideDecision):
        return list(zip(decide.spans, decide.roots, map(bool, decide.accepted), strict=True))
    return [
        ((span[0], span[1]), span[2], bool(mask >> number & 1))
        for column, mask in zip(decide.decision.columns, decide.accepted, strict=True)
        for number, span in enumerate(listed_spans(column))
        if span is not None
    ]


def listing_of(ledger: Ledger, number: int, digest: bytes) -> tuple[bytes, ...] | None:
    """The signed digests of a column that this ledger has, of a decided round or of an outcome that is held."""
    entry = ledger.entry(number)
    outcomes = (
        [(entry.outcome, entry.commits)] if entry else [(one.outcome, one.commits) for one in ledger.held(number)]
    )
    for raw, kept in outcomes:
        outcome = decode_value(raw)
        if isinstance(outcome, WideOutcome) and digest in outcome.columns:
            return split_listings(outcome, kept)[1][outcome.columns.index(digest)].items
    return None
