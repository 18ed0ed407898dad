"""One peer: the round machine in the middle, around it the network, the ledger and the user's learner."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import trio

from p2pnet.core import events as ev
from p2pnet.core.docket import Docket
from p2pnet.core.evidence import Ground, Offence
from p2pnet.core.gossip import Verdict
from p2pnet.core.pace import Pace
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.core.passing import judge, round_of
from p2pnet.core.rounds import Rounds
from p2pnet.core.slots import Context, Restored
from p2pnet.core.state import HashChain
from p2pnet.errors import BehindError, ConfigError, P2pnetError, WireError
from p2pnet.identity import Identity, verify
from p2pnet.ledger.damage import LedgerError, damaged
from p2pnet.ledger.evidence import EvidenceTable, Stored
from p2pnet.ledger.log import Held, Ledger
from p2pnet.net.host import Host
from p2pnet.node import bridge as br
from p2pnet.node.bulk import Bulk
from p2pnet.node.diary import Diary
from p2pnet.node.history import count_rounds, decision_of, entry_of, open_commits, replay
from p2pnet.node.inbox import Inbox
from p2pnet.node.links import Links
from p2pnet.node.proving import MINE, Proving
from p2pnet.node.proving import PROTOCOL as EVIDENCE
from p2pnet.node.snapshots import Snapshots
from p2pnet.numerics import native
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle
from p2pnet.wire.codec import encode
from p2pnet.wire.manifest import Manifest
from p2pnet.wire.round import Decision
from p2pnet.wire.signing import Signed

log = logging.getLogger(__name__)

GATHER_FAILURES = 3  # until it is asked how far the others are
SERVE_MAX = 32  # decisions sent in answer to one ask
BEACON_PURPOSE = b"p2pnet/beacon/1"


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a peer knows before it starts: the manifest and what the ledger holds."""

    swarm: bytes
    manifest: Manifest
    ledger: Ledger
    chunks: int
    snapshots: Snapshots


class Peer:
    """Performs what the round machine wants. Everything here runs in the node's one trio thread."""

    def __init__(
        self,
        swarm: Swarm,
        identity: Identity,
        host: Host,
        inbox: Inbox,
        links: Links,
        bridge: br.Bridge,
        diary: Diary,
        reach: Callable[[], int] = lambda: 0,
        caps_bps: tuple[int, int] = (0, 0),
    ) -> None:
        """caps_bps: what the operator allows, up and down; 0: no cap."""
        codec = swarm.manifest.codec
        if codec.coding and (why := native.missing()) is not None:
            raise ConfigError(f"this swarm sends dense-1, which only p2pnet's CPU library does: {why}")
        self._formats = (ChunkFormat(codec.k, codec.value_bits), ChunkFormat(codec.k_result, codec.value_bits))
        self.swarm, self.identity, self.host, self.bridge, self.diary = swarm, identity, host, bridge, diary
        self._reach = reach
        self._ledger, self._every = swarm.ledger, swarm.manifest.policy.snapshot_rounds
        self._rng = random.Random()
        self._roster_s: float | None = None  # when the latest exchange of this round began here
        self._failures = 0  # to gather a result that is decided elsewhere, in a row
        self.inbox, self.links = inbox, links
        self._clock = trio.lowlevel.current_clock()  # for those who ask from another thread
        now_s = trio.current_time()
        state = replay(swarm.swarm, swarm.manifest, self._ledger)
        self.bulk = Bulk(
            host, swarm.swarm, state.round, swarm.chunks, self._formats, bool(codec.coding), verify, inbox.put,
            links.misbehaved, self._ledger.part, lambda raw: self.proving.offer(MINE, raw), caps_bps,
        )  # fmt: skip
        self._table = EvidenceTable(self._ledger)
        ground = Ground(swarm.swarm, swarm.chunks, state.policy.round_samples)
        self.proving = Proving(host, ground, self._formats, self._table, inbox.put, links.misbehaved)
        links.offer = self.proving.offer
        chain = HashChain(identity.secret(BEACON_PURPOSE + swarm.swarm))
        context = Context(
            identity.peer, identity.sign, verify, chain, Pace(), self._rng, audits=True,
            docket=Docket(Offence(one.peer, one.round, one.digest, one.what) for one in self._table.all()),
        )  # fmt: skip
        try:
            self.rounds = Rounds(context, state, now_s, restored(self._ledger, state.round, self._formats[1]))
        except WireError as error:  # what we signed or held, and nobody else could have written there
            raise LedgerError(damaged(self._ledger.path, error)) from error
        diary.state(state)

    async def run(self) -> None:
        """Take part in the swarm until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.host.handle("/p2pnet/exchange/1", self.bulk.serve, concurrency_per_peer=64)
            await self.host.handle(EVIDENCE, self.proving.serve, concurrency_per_peer=4)
            nursery.start_soon(self.proving.run)
            await self._decide()

    def take(self, item: br.ToNode) -> None:
        """What the user's thread says."""
        match item:
            case br.Began(round_id, checksum, state):
                self.inbox.put(ev.Started(round_id, checksum, state))
            case br.Submitted():
                root = self.bulk.keep_payload(item.round_id, item.payload, item.tree)
                self.diary.trained(item, trio.current_time())
                up, down = self.bulk.lines.kbps
                self.inbox.put(ev.Encoded(item.round_id, root, item.samples, item.assigned, self._reach(), up, down))
            case br.Skipped(round_id, reason):
                self.inbox.put(ev.Skipped(round_id, reason))
            case br.Applied(round_id, loss):
                self.diary.applied(round_id, loss, trio.current_time())
                self.inbox.put(ev.Applied(round_id))
            case _:
                raise ValueError(f"{item} does not belong here")

    async def _decide(self) -> None:
        """Feed the machine one event at a time and perform what follows, in order."""
        while True:
            event = await self.inbox.take(self.rounds.deadline_s)
            self._mind(event)
            effects = self.rounds.handle(event, trio.current_time())
            if any(isinstance(effect, ev.Persist | ev.Hold | ev.Accuse | ev.Decide) for effect in effects):
                effects += self._handle_waiting()  # one write for all of them
                await trio.to_thread.run_sync(self._write, effects)
            for effect in effects:
                self._perform(effect)
            await trio.lowlevel.checkpoint()

    def _handle_waiting(self) -> list[ev.Effect]:
        """Hand the machine what waits for it; its effects come after those that are waiting to be written."""
        effects: list[ev.Effect] = []
        for event in self.inbox.take_waiting():
            self._mind(event)
            effects += self.rounds.handle(event, trio.current_time())
        return effects

    def _mind(self, event: ev.Event) -> None:
        """Count how often nobody gave a result of a round that is over elsewhere."""
        if isinstance(event, ev.Gathered):
            self._failures = 0
        elif isinstance(event, ev.GatherFailed) and self.rounds.round.undecided_certificate:
            self._failures += 1
            if self._failures % GATHER_FAILURES == 0:
                self._nursery.start_soon(self._see_behind, event.round)

    async def _see_behind(self, number: int) -> None:
        """End this node when the members have gone on for so long that they may have dropped what it lacks."""
        ahead = await count_rounds(self.host, self.links.membership.up, self.swarm.swarm)
        if ahead > number + self._every:
            raise BehindError(
                f"round {number} of {ahead}: this peer was away for so long that no member has the result any more; "
                "join again with the same state_dir, and it goes on from a later state"
            )

    def _write(self, effects: list[ev.Effect]) -> None:
        """Make durable, in one transaction, all that must be before anything of these effects is sent."""
        with self._ledger.batch():
            for effect in effects:
                match effect:
                    case ev.Persist(number, slot, raw):
                        self._ledger.sign_once(number, slot, raw)
                    case ev.Accuse(offence, raw):
                        stored = Stored(offence.digest, offence.peer, offence.round, offence.what)
                        self._table.keep(stored, raw)
                    case ev.Hold(number, value, outcome, commits, roots):
                        parts = self.bulk.outputs(number, roots)
                        self._ledger.hold(Held(number, value, outcome, commits, roots), parts)
                    case ev.Decide(number, decision, _, roots):
                        entry = entry_of(decision, effect.after.lineage, roots)
                        self._ledger.append(entry, self.bulk.outputs(number, roots))
        if any(isinstance(effect, ev.Decide) and effect.round % self._every == 0 for effect in effects):
            self.swarm.snapshots.keep()

    def _perform(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Train(number, beacon, state_wanted, end_s):
                now_s = trio.current_time()
                self.diary.training(now_s)
                self.bridge.give(br.RoundTask(number, beacon, state_wanted, time.monotonic() + end_s - now_s))
            case ev.Broadcast(raw):
                self.links.broadcast(raw)
            case ev.Send(to, raw):
                self.links.send(to, raw)
            case ev.Exchange():
                self._roster_s = trio.current_time()
                self.bulk.views.open(effect)
            case ev.Scatter():
                self._nursery.start_soon(self.bulk.scatter, effect)
            case ev.Reduce():
                self._nursery.start_soon(self.bulk.reduce, effect)
            case ev.Answer():
                self.bulk.answer(effect)
            case ev.Gather():
                if self.rounds.round.undecided_certificate:  # over elsewhere, perhaps long ago: anybody may have it
                    sources = dict.fromkeys((*effect.sources, *self.links.membership.up))
                    effect = replace(effect, sources=tuple(sources))
                self._nursery.start_soon(self.bulk.gather, effect)
            case ev.Audit():
                self._nursery.start_soon(self.bulk.audit, effect)
            case ev.Decide():
                self._finish(effect)
            case ev.Serve(to, start):
                for decision in self._decisions(start):
                    self.links.send(to, encode(decision))
            case ev.Note():
                self.diary.note(effect)
            case _:
                self._pursue(effect)

    def _pursue(self, effect: ev.Effect) -> None:
        """Pass evidence on, or look for it; what else there is was written already."""
        match effect:
            case ev.Accuse(raw=raw):
                self.links.accuse(raw)
            case ev.FetchEvidence():
                self._nursery.start_soon(self.proving.fetch, effect)

    def _finish(self, decide: ev.Decide) -> None:
        """The round is decided and logged: let the learner apply it."""
        commits = self.rounds.round.commits.held
        listed = [commit.peer for commit in open_commits(decide.decision.commits)]
        last_s = max((commits[peer][1] for peer in listed if peer in commits), default=None)
        self.diary.decided(decide, last_s, self.identity.peer in listed, trio.current_time())
        self.bridge.give(self._outcome(decide))
        is_out = self.identity.peer in listed and 2 * sum(decide.accepted) < len(decide.accepted)
        if is_out and self._roster_s is not None:
            self.bulk.left_out(decide.round, trio.current_time() - self._roster_s)
        self._roster_s = None
        self.bulk.forget(decide.round)

    def _outcome(self, decide: ev.Decide) -> br.Outcome:
        if decide.void:
            return br.Outcome(decide.round, decide.after.lineage, True, b"", None)
        parts = [self.bulk.output(decide.round, root) for root in decide.roots]
        if any(part is None for part in parts):
            raise P2pnetError(f"round {decide.round} was decided and its result is not held: the ledger is damaged")
        named = [False] * self.bulk.leaves
        for (start, stop), accepted in zip(decide.spans, decide.accepted, strict=True):
            named[start:stop] = [accepted] * (stop - start)
        result = b"".join(part for part in parts if part is not None)
        mine = tuple(named) if any(named) else None
        return br.Outcome(decide.round, decide.after.lineage, False, result, mine)

    def _decisions(self, start: int) -> list[Decision]:
        return [decision_of(entry) for entry in self._ledger.entries(start, start + SERVE_MAX)]

    def judge(self, heard: ev.Heard) -> Verdict:
        """Say what gossip does with a message of a round whose signature is right."""
        verdict, message = judge(heard, self.rounds), heard.message
        if (
            verdict is Verdict.IGNORE
            and isinstance(message, Signed)
            and round_of(heard) == self.rounds.state.round
            and self.rounds.witness.contradicts(message)
        ):
            self.inbox.put(heard)  # of use after all: evidence against its author
        return verdict

    def snapshot(self) -> dict[str, Any]:
        """What `p2pnet status` shows of the rounds."""
        network = self.diary.network(self.links, self.host)
        return network | self.diary.snapshot(self.rounds, self._clock.current_time())


def restored(ledger: Ledger, round_id: int, fmt: ChunkFormat) -> Restored:
    """What a stopped process of ours left of a round; raises WireError when bytes of a part are not what they were."""
    held = ledger.held(round_id)
    for root in {root for one in held for root in one.roots}:
        data = ledger.part(round_id, root) or b""
        if merkle.root(merkle.payload_leaves(data, fmt.payload_bytes(CHUNKS_PER_LEAF))) != root:
            raise WireError("exchange-1/R6", f"a part held for round {round_id} has another root")
    return Restored(ledger.slots_of_round(round_id), tuple((one.outcome, one.commits) for one in held))
