"""One peer: the round machine in the middle, around it the network, the ledger and the user's learner."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio

from p2pnet.core import events as ev
from p2pnet.core.course import DEPTH_MAX, Course, Resumed, Tagged
from p2pnet.core.docket import Docket
from p2pnet.core.evidence import Ground, Offence
from p2pnet.core.gossip import Verdict
from p2pnet.core.group_events import Tell
from p2pnet.core.pace import Pace
from p2pnet.core.passing import judge_course, round_of, swarm_of
from p2pnet.core.rounds import Rounds
from p2pnet.core.slots import Context
from p2pnet.core.state import HashChain, SwarmState
from p2pnet.errors import BehindError, ConfigError, WireError
from p2pnet.identity import Identity, peer_id_text, verify
from p2pnet.ledger.damage import LedgerError, damaged
from p2pnet.ledger.evidence import EvidenceTable, Stored
from p2pnet.ledger.log import Ledger
from p2pnet.net.host import Host, Stream
from p2pnet.node import bridge as br
from p2pnet.node.branches import Branches, Kept
from p2pnet.node.bulk import Bulk, payload_tree
from p2pnet.node.diary import Diary
from p2pnet.node.groups import Groups, read_request
from p2pnet.node.history import count_rounds, open_commits, replay, volume_of
from p2pnet.node.inbox import Inbox
from p2pnet.node.lines import Lines
from p2pnet.node.links import Links
from p2pnet.node.proving import MINE, Proving
from p2pnet.node.proving import PROTOCOL as EVIDENCE
from p2pnet.node.site import Site, listing_of
from p2pnet.node.snapshots import Snapshots
from p2pnet.node.telling import PROTOCOL as TOLD
from p2pnet.node.telling import Telling
from p2pnet.numerics import native
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire.manifest import Manifest
from p2pnet.wire.round import GroupRoster
from p2pnet.wire.signing import Signed

log = logging.getLogger(__name__)

EXCHANGE = "/p2pnet/exchange/1"
DURABLE = (ev.Persist, ev.Hold, ev.Accuse, ev.Decide, ev.Fork)
GATHER_FAILURES = 3  # until it is asked how far the others are
BEACON_PURPOSE = b"p2pnet/beacon/1"


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a peer knows before it starts: the manifest and what the ledger holds."""

    swarm: bytes
    manifest: Manifest
    ledger: Ledger
    chunks: int
    snapshots: Snapshots
    branches: Branches | None = None  # None: it never goes on without a quorum
    lines: tuple[tuple[Kept, SwarmState, Ledger], ...] = ()  # the branches that a stopped process was in
    over: tuple[Kept, ...] = ()  # those that are over


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
        self._reach, self._caps_bps = reach, caps_bps
        self._ledger, self._every = swarm.ledger, swarm.manifest.policy.snapshot_rounds
        self._rng = random.Random()
        self._roster_s: float | None = None  # when the latest exchange of this round began here
        self._failures = 0  # to gather a result that is decided elsewhere, in a row
        self._trains = swarm.swarm  # the line that the learner trains in
        self._closing: list[Ledger] = []  # of branches that are left: streams may still ask for a part
        self._over = list(swarm.over)  # branches that the learner is told to come back from before the next outcome
        self._given: deque[tuple[bytes, list[Kept]]] = deque()  # of each outcome: its line, and whence it comes back
        self.inbox, self.links, self._telling = inbox, links, Telling(host, links, inbox)
        self._clock = trio.lowlevel.current_clock()  # for those who ask from another thread
        state = replay(SwarmState.genesis(swarm.swarm, swarm.manifest, volume_of(swarm.manifest)), swarm.ledger)
        self._pace, self._rates = Pace(), Lines(sum(fmt.payload_bytes(swarm.chunks) for fmt in self._formats), caps_bps)
        self.sites = {swarm.swarm: self._site(swarm.swarm, state.round, self._ledger)}
        self._table = EvidenceTable(self._ledger)
        ground = Ground(swarm.swarm, swarm.chunks, state.policy.round_samples)
        self.proving = Proving(host, ground, self._formats, self._table, inbox.put, links.misbehaved)
        links.offer = self.proving.offer
        try:
            lines = [self._resume(state, None)]
            for kept, genesis, ledger in swarm.lines:
                state = replay(genesis, ledger)
                self.sites[kept.id] = self._site(kept.id, state.round, ledger, kept)
                lines[-1] = replace(lines[-1], started=kept.started, update=kept.update)
                lines.append(self._resume(state, kept))
                if kept.payload:  # the update of the round that the branch begins in
                    tree = payload_tree(kept.payload, self._formats[0])
                    for site in list(self.sites.values())[-2:]:
                        site.bulk.keep_payload(genesis.round, kept.payload, tree)
            depth_max = DEPTH_MAX if swarm.branches is not None else 0
            self.course = Course(self._context, lines, trio.current_time(), depth_max)
        except WireError as error:  # what we signed or held, and nobody else could have written there
            raise LedgerError(damaged(self._ledger.path, error)) from error
        diary.state(self.rounds.state)

    @property
    def rounds(self) -> Rounds:
        """The line in which the learner trains."""
        return self.course.active

    @property
    def bulk(self) -> Bulk:
        """The bulk data of that line."""
        return self.sites[self.rounds.state.swarm].bulk

    def _site(self, line: bytes, round_id: int, ledger: Ledger, kept: Kept | None = None) -> Site:
        """Where a line is worked at."""

        def report(event: ev.Event) -> None:
            self.inbox.put(ev.About(line, event))

        def accuse(raw: bytes) -> None:
            if kept is None:  # in a branch nobody is excluded
                self.proving.offer(MINE, raw)

        is_dense = bool(self.swarm.manifest.codec.coding)
        bulk = Bulk(
            self.host, line, round_id, self.swarm.chunks, self._formats, is_dense, verify, report,
            self.links.misbehaved, ledger.part, accuse, self._rates,
        )  # fmt: skip

        def roster(digest: bytes) -> Signed[GroupRoster] | None:
            followed = self.course.find(line)
            return followed.rounds.round.group_roster(digest) if followed is not None else None

        groups = Groups(self.host, line, bulk, verify, report, roster, partial(listing_of, ledger))
        return Site(ledger, bulk, groups, kept)

    def _resume(self, state: SwarmState, kept: Kept | None) -> Resumed:
        """What a stopped process left of a line's round."""
        left = self.sites[state.swarm].restored(state.round, self._formats[1])
        return Resumed(state, left, kept.certificate if kept is not None else None)

    def _context(self, line: bytes) -> Context:
        """What this peer brings into the rounds of a line."""
        held = (Offence(one.peer, one.round, one.digest, one.what) for one in self._table.all())
        return Context(
            self.identity.peer, self.identity.sign, verify, HashChain(self.identity.secret(BEACON_PURPOSE + line)),
            self._pace, self._rng, audits=True,
            docket=Docket(held) if line == self.swarm.swarm else Docket(held_max=0), groups=line == self.swarm.swarm,
        )  # fmt: skip

    async def run(self) -> None:
        """Take part in the swarm until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self.host.handle(EXCHANGE, self._serve, concurrency_per_peer=64)
            await self.host.handle(EVIDENCE, self.proving.serve, concurrency_per_peer=4)
            await self.host.handle(TOLD, self._telling.serve, concurrency_per_peer=4)
            nursery.start_soon(self.proving.run)
            try:
                await self._decide()
            finally:
                for ledger in (*self._closing, *(site.ledger for site in self.sites.values() if site.kept is not None)):
                    ledger.close()

    def take(self, item: br.ToNode) -> None:
        """What the user's thread says."""
        match item:
            case br.Began(round_id, checksum, state):
                self._tell(ev.Started(round_id, checksum, state))
            case br.Submitted():
                self._take_update(item)
            case br.Skipped(round_id, reason):
                self._tell(ev.Skipped(round_id, reason))
            case br.Applied(round_id, loss):
                self.diary.applied(round_id, loss, trio.current_time())
                line, over = self._given.popleft()  # each outcome is answered once, in their order
                self.inbox.put(ev.About(line, ev.Applied(round_id)))
                for kept in over:
                    kept.remove()
            case _:
                raise ValueError(f"{item} does not belong here")

    def _tell(self, event: ev.Event) -> None:
        """Tell the machine what the learner says of the round that it was told to train."""
        self.inbox.put(ev.About(self._trains, event))

    def _take_update(self, item: br.Submitted) -> None:
        line = self.course.find(self._trains)
        if line is None:
            return  # of a branch that is left
        root = item.tree.root()
        for each in (line, *self.course.forked_at(line, item.round_id)):
            if each.id in self.sites:  # else it is just being written down, and takes the payload over then
                self.sites[each.id].bulk.keep_payload(item.round_id, item.payload, item.tree)
        self.diary.trained(item, trio.current_time())
        up, down = self._rates.kbps
        self._tell(ev.Encoded(item.round_id, root, item.samples, item.assigned, self._reach(), up, down))

    async def _serve(self, stream: Stream) -> None:
        """Answer one stream of exchange-1, if it is about a line that is followed here."""
        request = await read_request(stream)
        site = self.sites.get(request.swarm)
        if site is None:
            await stream.aclose()
        else:
            await site.serve(stream, request)

    async def _decide(self) -> None:
        """Feed the machine one event at a time and perform what follows, in order."""
        while True:
            event = await self.inbox.take(self.course.deadline_s)
            effects = self._handle(event)
            if any(isinstance(effect, DURABLE) for _, effect in effects):
                for waiting in self.inbox.take_waiting():  # one write for all of them
                    effects += self._handle(waiting)
                for line, effect in effects:
                    if isinstance(effect, ev.Fork):
                        await self._begin_branch(line, effect)
                await trio.to_thread.run_sync(self._write, effects)
            for line, effect in effects:
                self._perform(line, effect)
            await trio.lowlevel.checkpoint()

    def _handle(self, event: ev.Event | ev.About) -> list[Tagged]:
        """Hand the machine an event, and count how often nobody gave a result of a round that is over elsewhere."""
        told, found = event.event if isinstance(event, ev.About) else event, list[Tagged]()
        if isinstance(told, ev.Gathered):
            self._failures = 0
        elif isinstance(told, ev.GatherFailed) and self.rounds.round.undecided_certificate:
            self._failures += 1
            if self._failures % GATHER_FAILURES == 0:
                if len(self.course.lines) > 1:
                    found += self.course.give_up(self.rounds.state.swarm)
                else:
                    self._nursery.start_soon(self._see_behind, told.round)
        return [*found, *self.course.handle(event, trio.current_time(), self.swarm.swarm)]

    async def _begin_branch(self, line: bytes, fork: ev.Fork) -> None:
        """Write down, durably, a branch that begins, and open its ledger."""
        branches, base, genesis = self.swarm.branches, self.sites[line], fork.genesis
        assert branches is not None
        sent, depth, keep_results = base.bulk.payload(fork.round), len(self.sites), self._ledger.keep_results

        def write() -> tuple[Kept, Ledger]:
            kept = branches.create(depth, fork, sent[0] if sent is not None and fork.update is not None else b"")
            return kept, kept.open_ledger(genesis, keep_results)

        kept, ledger = await trio.to_thread.run_sync(write)
        site = self.sites[kept.id] = self._site(kept.id, genesis.round, ledger, kept)
        if (sent := base.bulk.payload(fork.round)) is not None:  # it may have come meanwhile
            site.bulk.keep_payload(fork.round, *sent)

    async def _see_behind(self, number: int) -> None:
        """End this node when the members have gone on for so long that they may have dropped what it lacks."""
        ahead = await count_rounds(self.host, self.links.membership.up, self.swarm.swarm)
        if ahead > number + self._every:
            raise BehindError(
                f"round {number} of {ahead}: this peer was away for so long that no member has the result any more; "
                "join again with the same state_dir, and it goes on from a later state"
            )

    def _write(self, effects: list[Tagged]) -> None:
        """Make durable, in one transaction for each line, all that must be before anything of these effects is sent."""
        for line in dict.fromkeys(line for line, _ in effects):
            site = self.sites[line]
            with site.ledger.batch():
                for effect in (effect for each, effect in effects if each == line):
                    if isinstance(effect, ev.Accuse):
                        offence = effect.offence
                        stored = Stored(offence.digest, offence.peer, offence.round, offence.what)
                        self._table.keep(stored, effect.raw)
                    else:
                        site.write(effect)
        if any(isinstance(effect, ev.Decide) and effect.round % self._every == 0 for _, effect in effects):
            self.swarm.snapshots.keep()

    def _perform(self, line: bytes, effect: ev.Effect) -> None:
        site = self.sites.get(line)
        if site is None:
            return  # of a branch that is left
        match effect:
            case ev.Train(number, beacon, state_wanted, end_s):
                now_s, self._trains = trio.current_time(), line
                self.diary.training(now_s)
                self.bridge.give(br.RoundTask(number, beacon, state_wanted, time.monotonic() + end_s - now_s))
            case ev.Broadcast(raw):
                self.links.broadcast(raw)
            case ev.Send(to, raw):
                self.links.send(to, raw)
            case Tell(to, raw):
                self._telling.tell(to, raw, self._nursery)
            case ev.Decide():
                self._finish(line, site, effect)
            case ev.Serve(to, start):
                for raw in site.decisions(start):
                    self.links.send(to, raw)
            case ev.Note():
                self.diary.note(effect)
            case ev.Accuse(raw=raw):
                self.links.accuse(raw)
            case ev.FetchEvidence():
                self._nursery.start_soon(self.proving.fetch, effect)
            case ev.Fork() | ev.Leave():
                self._change_line(effect)
            case _:
                if isinstance(effect, ev.Exchange):
                    self._roster_s = trio.current_time()
                followed = self.course.find(line)  # None: left by a later effect of the same batch
                is_over = followed is not None and followed.rounds.round.undecided_certificate is not None
                site.move(effect, self._nursery, self.links.membership.up if is_over else ())

    def _change_line(self, effect: ev.Fork | ev.Leave) -> None:
        """Have the learner keep where it stands, or go back to the line from which the first of these branches went."""
        if isinstance(effect, ev.Fork):
            kept = self.sites[effect.branch].kept
            assert kept is not None
            self.bridge.give(kept.fork)
            return
        kept = self.sites[effect.branches[0]].kept
        assert kept is not None
        self.bridge.give(kept.back(self.swarm.swarm))
        for branch in effect.branches:
            site = self.sites.pop(branch)
            self._closing.append(site.ledger)
            if site.kept is not None:
                self._over.append(site.kept)

    def _finish(self, line: bytes, site: Site, decide: ev.Decide) -> None:
        """The round is decided and logged: let the learner apply it."""
        followed = self.course.find(line)
        commits = followed.rounds.round.commits.held if followed is not None else {}
        listed = [commit.peer for commit in open_commits(decide.decision.commits)]
        last_s = max((commits[peer][1] for peer in listed if peer in commits), default=None)
        self.diary.decided(decide, last_s, self.identity.peer in listed, trio.current_time(), site.branch)
        self.bridge.give(site.outcome(decide))
        self._given.append((line, self._over))
        self._over = []
        is_out = self.identity.peer in listed and 2 * decide.shares[0] < decide.shares[1]
        if is_out and self._roster_s is not None:
            site.bulk.left_out(decide.round, trio.current_time() - self._roster_s)
        self._roster_s = None
        site.forget(decide.round)

    def judge(self, heard: ev.Heard) -> Verdict:
        """Say what gossip does with a message of a round whose signature is right."""
        verdict, message, final = judge_course(heard, self.course), heard.message, self.course.final
        if (
            verdict is Verdict.IGNORE
            and isinstance(message, Signed)
            and swarm_of(heard) == self.swarm.swarm
            and round_of(heard) == final.state.round
            and final.witness.contradicts(message)  # type: ignore[arg-type]
        ):
            self.inbox.put(heard)  # of use after all: evidence against its author
        return verdict

    def snapshot(self) -> dict[str, Any]:
        """What `p2pnet status` shows of the rounds."""
        network = self.diary.network(self.links, self.host)
        facts = self.diary.snapshot(self.rounds, self._clock.current_time())
        return network | facts | {"branch": self._describe_branch()}

    def _describe_branch(self) -> dict[str, Any] | None:
        """What is said of the branch that this peer is in, None in the final chain."""
        line = self.course.lines[-1]
        if line.certificate is None:
            return None
        voters = [peer_id_text(peer) for peer in line.certificate.voters]
        facts = {"id": line.id.hex(), "since_round": line.certificate.round, "voters": voters}
        return facts | {"final_round": self.course.final.state.round, "depth": len(self.course.lines) - 1}
