"""Serve the decided rounds to who was not there, fetch them, follow them. Contract: protocols/history-1.md."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

import trio

from p2pnet.core.decided import Decided, decision_from, kept_of, read_decided, takes
from p2pnet.core.history import Step, follow
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.core.shares import Volume
from p2pnet.core.state import SwarmState
from p2pnet.errors import NetworkError, P2pnetError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text, verify
from p2pnet.ledger.log import Entry, Ledger
from p2pnet.net.host import Host, Stream
from p2pnet.node import bridge as br
from p2pnet.node.results import join_result
from p2pnet.numerics.formats import WEIGHT_TIMES_K_MAX, ChunkFormat
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.history import DECISIONS_MAX, PAGE_BYTES_MAX, Decisions, GetDecisions
from p2pnet.wire.manifest import Manifest
from p2pnet.wire.round import Commit, Decision, Outcome, Quorum, Reduced, WideDecision
from p2pnet.wire.signing import Signed, open_signed

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/history/1"
REQUEST_BYTES_MAX = 64
PAGE_TIMEOUT_S = 30.0
ASKED_MAX = 16  # members that are asked in one go
LOOK_S = 10.0  # for a member to ask what was decided, when there are any; who finds none goes on alone


class History:
    """The decided rounds of a swarm, as far as the ledger has them."""

    def __init__(self, swarm: bytes, manifest: Manifest, ledger: Ledger, genesis: SwarmState | None = None) -> None:
        """Follow the ledger to its last round; raises P2pnetError when it is damaged.

        genesis: the state before the ledger's first round, where that is a branch's.
        """
        self.swarm, self.manifest, self.ledger = swarm, manifest, ledger
        self.genesis = genesis or SwarmState.genesis(swarm, manifest, volume_of(manifest))
        self.state = replay(self.genesis, ledger)
        self._passed = self.genesis  # where `rounds` was last, and goes on: who reduces what follows from the state
        self._work = trio.CapacityLimiter(1)  # pages made or checked at once: they cost a tenth of a second

    async def serve(self, stream: Stream) -> None:
        """Answer one request with a page."""
        request = decode((GetDecisions,), await stream.receive_frame(REQUEST_BYTES_MAX))
        if request.swarm != self.swarm:
            raise PeerError(stream.peer, "history-1/R1", "another swarm")
        page = await trio.to_thread.run_sync(self._page, request.round, limiter=self._work)
        with trio.fail_after(PAGE_TIMEOUT_S):  # who asks and does not read keeps neither the stream nor the bytes
            await stream.send_frame(page)

    async def fetch(
        self,
        host: Host,
        members: Sequence[PeerId],
        progress: Callable[[str], None],
        blame: Callable[[PeerId, str], None],
    ) -> bool:
        """Take from these members what they decided beyond this ledger; tells whether any of them answered."""
        has_answer = False
        for peer in members[:ASKED_MAX]:
            try:
                await self._fetch(host, peer, progress)
                has_answer = True
            except PeerError as error:
                log.warning("decided rounds: %s", error)
                blame(error.peer, error.rule)
            except NetworkError as error:
                log.info("decided rounds from %s: %s", peer_id_text(peer), error)
        return has_answer

    async def _fetch(self, host: Host, peer: PeerId, progress: Callable[[str], None]) -> None:
        while True:
            page = await ask_page(host, peer, self.swarm, self.state.round)
            if not page.decisions:
                return
            try:
                await trio.to_thread.run_sync(self._take, page.decisions, limiter=self._work)
            except WireError as error:
                raise PeerError(peer, error.rule, error.detail) from error
            progress(f"decided rounds: {self.state.round} of {max(page.rounds, self.state.round)} fetched and verified")

    def _take(self, decisions: Sequence[bytes]) -> None:
        """Write down what follows; raises WireError for the first that does not, after those before it are written."""
        state, steps, flaw = self.state, list[Step](), None
        for raw in decisions:
            try:
                steps.append(follow(state, raw, verify))
            except WireError as error:
                flaw = error
                break
            state = steps[-1].after
        with self.ledger.batch():
            for step in steps:
                self.ledger.append(entry_of(step.decision, step.after.lineage, step.roots))
        self.state = state
        if flaw is not None:
            raise flaw

    def _page(self, start: int) -> bytes:
        """The decided rounds from one on, as many as fit."""
        found: list[bytes] = []
        room = PAGE_BYTES_MAX - 64
        for entry in self.ledger.entries(start, start + DECISIONS_MAX):
            raw = encode(decision_of(entry))
            room -= len(raw) + 5
            if room < 0:
                break
            found.append(raw)
        return encode(Decisions(len(self.ledger), tuple(found)))

    def rounds(self, start: int, stop: int) -> Iterator[tuple[Entry, Decided]]:
        """The decided rounds of a span, each with what it says."""
        state = self._passed if self._passed.round <= start else self.genesis
        while state.round < stop:  # one at a time: an entry has up to 90 kB, of many groups more
            entry = self.ledger.entry(state.round)
            if entry is None:
                return
            decided = read_entry(state, entry, self.ledger)
            if state.round >= start:
                yield entry, decided
            self._passed = state = decided.after

    def outcomes(self, me: PeerId, start: int, stop: int) -> Iterator[br.Outcome]:
        """The outcomes of a span, for a learner that stopped at its start. Raises P2pnetError when one is not kept.

        Each says what of my update was taken: a learner that was stopped in mid-exchange still has it, and would send
        it a second time.
        """
        for entry, decided in self.rounds(start, stop):
            result = () if decided.void else self.ledger.result(entry.round)
            if result is None:
                raise P2pnetError(f"{self.ledger.path}: the result of round {entry.round} is not kept any more")
            data = b"" if decided.void else self._join(decided, result)
            named = None if decided.void else self._named(me, decided)
            yield br.Outcome(entry.round, entry.lineage, decided.void, data, named)

    def _join(self, decided: Decided, parts: Sequence[bytes]) -> bytes:
        codec, spans = self.manifest.codec, [(span.part.start, span.part.stop) for span in decided.spans]
        fmt = ChunkFormat(codec.k_result, codec.value_bits)
        return join_result(list(zip(spans, parts, strict=True)), self.manifest.chunks, fmt)

    def _named(self, me: PeerId, decided: Decided) -> tuple[bool, ...] | None:
        """By leaf, whether a decided round names this peer among the inputs; None when it took no part."""
        peers = [commit.peer for commit in decided.commits]
        if me not in peers:
            return None
        if decided.plan is not None:
            taken = takes(decided.plan, decided.columns, me)
        else:
            assert isinstance(decided.outcome, Outcome)
            reduced = (open_signed((Reduced,), raw, _trust).message for raw in decided.outcome.reduced)
            taken = [one.inputs[peers.index(me)] > 0 for one in reduced]
        named = [False] * self.state.volume.leaves
        for span, is_taken in zip(decided.spans, taken, strict=True):
            named[span.part.start : span.part.stop] = [is_taken] * (span.part.stop - span.part.start)
        return tuple(named)


async def ask_page(host: Host, peer: PeerId, swarm: bytes, start: int) -> Decisions:
    """Ask one member for the decided rounds from one on."""
    request = encode(GetDecisions(swarm, start))
    raw = await host.request(peer, PROTOCOL, request, PAGE_TIMEOUT_S, PAGE_BYTES_MAX)
    try:
        return decode((Decisions,), raw, PAGE_BYTES_MAX)
    except WireError as error:
        raise PeerError(peer, error.rule, error.detail) from error


async def count_rounds(host: Host, members: Sequence[PeerId], swarm: bytes) -> int:
    """How many rounds any of these members says it has decided, 0 when none answers."""
    counts = [0]
    for peer in members[:ASKED_MAX]:
        try:
            counts.append((await ask_page(host, peer, swarm, 2**32 - 1)).rounds)
        except (NetworkError, PeerError) as error:
            log.info("how many rounds has %s: %s", peer_id_text(peer), error)
    return max(counts)


def volume_of(manifest: Manifest) -> Volume:
    """What the payloads and results of a swarm take (codec-1); dense-1 makes both about as much shorter."""
    codec = manifest.codec
    sent, got = (ChunkFormat(k, codec.value_bits).payload_bytes(CHUNKS_PER_LEAF) for k in (codec.k, codec.k_result))
    return Volume(-(-manifest.chunks // CHUNKS_PER_LEAF), sent, got, WEIGHT_TIMES_K_MAX // codec.k_result)


def replay(genesis: SwarmState, ledger: Ledger) -> SwarmState:
    """Follow the decided rounds of a ledger from the state before its first one to the state that they lead to.

    What the ledger holds was verified before it was written; a damaged file is found by its lineage.
    """
    state, end = genesis, len(ledger)
    for start in range(genesis.round, end, 256):
        for entry in ledger.entries(start, start + 256):
            state = read_entry(state, entry, ledger).after
            if state.lineage != entry.lineage:
                raise P2pnetError(f"{ledger.path}: round {entry.round} does not lead to the lineage written beside it")
    return state


def read_entry(state: SwarmState, entry: Entry, ledger: Ledger) -> Decided:
    """Read a decided round of a ledger; raises P2pnetError when it is damaged."""
    try:
        return read_decided(state, entry.outcome, entry.commits)
    except WireError as error:
        raise P2pnetError(f"{ledger.path}: round {entry.round} is not what was decided: {error}") from error


def entry_of(decision: Decision | WideDecision, lineage: bytes, roots: tuple[bytes, ...]) -> Entry:
    """A decided round as the ledger keeps it.   lineage: after it."""
    certificate = encode(decision.certificate)
    return Entry(
        decision.certificate.round, lineage, decision.outcome, certificate, kept_of(decision), roots, int(time.time())
    )


def decision_of(entry: Entry) -> Decision | WideDecision:
    """A decided round as it travels. Raises P2pnetError when the disk has damaged it: nobody else's fault."""
    try:
        return decision_from(decode((Quorum,), entry.certificate), entry.outcome, entry.commits)
    except WireError as error:
        raise P2pnetError(f"the ledger's round {entry.round} is damaged: {error}") from error


def open_commits(raws: Sequence[bytes]) -> list[Signed[Commit]]:
    """The commits of a decided roster; their signatures were checked before."""
    return [open_signed((Commit,), raw, _trust) for raw in raws]


def _trust(_peer: PeerId, _data: bytes, _signature: bytes) -> bool:
    return True
