"""Members of a swarm in one process: real links, bulk and rounds over `MemoryNetwork`; a learner of a few lines."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import torch
import trio

from p2pnet.core import events as ev
from p2pnet.core.state import SwarmState
from p2pnet.identity import Identity, PeerId
from p2pnet.ledger.log import Ledger
from p2pnet.net.host import Limits
from p2pnet.net.memory import MemoryHost, MemoryNetwork
from p2pnet.node import bridge as br
from p2pnet.node.branches import Branches
from p2pnet.node.bulk import Bulk, payload_tree
from p2pnet.node.diary import Diary
from p2pnet.node.history import volume_of
from p2pnet.node.inbox import Inbox
from p2pnet.node.links import Links
from p2pnet.node.peer import Peer, Swarm
from p2pnet.node.snapshots import Snapshots
from p2pnet.numerics.codec import as_bytes, encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire.manifest import Codec, Manifest, ParameterRow, Policy, swarm_id
from p2pnet.wire.signing import Signed, sign_message

torch.set_num_threads(1)

CHUNKS = 192 + 10  # four leaves, the last one shorter
K, K_RESULT, LEVEL_BIAS = 8, 16, 32
FORMATS = ChunkFormat(K), ChunkFormat(K_RESULT)
GRACE_S = 0.4
WAIT_S = 60.0  # nothing here takes a second; a machine that is busy is not a failure


def identity(number: int) -> Identity:
    return Identity.from_seed(bytes([number]) * 32)


@cache
def payload(seed: int, round_id: int = 0) -> bytes:
    """What a learner would send."""
    generator = torch.Generator().manual_seed(1000 * round_id + seed)
    return as_bytes(encode(torch.randn(CHUNKS, 4096, generator=generator) / 100, FORMATS[0], LEVEL_BIAS))


def manifest(
    founders: tuple[PeerId, ...],
    name: str = "tests",
    initial: bytes = b"\1" * 32,
    group_size_max: int = 64,
    grace_s: float = GRACE_S,
) -> Signed[Manifest]:
    policy = Policy(
        h_steps=1, round_samples=8, window_ms=5000, grace_ms=int(1000 * grace_s), stall_ms=5000, alpha_ppm=1_000_000,
        beta_ppm=950_000, group_size_max=group_size_max, voters_max=100, service_rounds=1, reducers_min=2,
        snapshot_rounds=1000, overlap=0, by_window=0, exclude_rounds=100,
    )  # fmt: skip
    row = ParameterRow("weight", "float32", (CHUNKS, 4096), 1)
    message = Manifest(
        name, 1, b"", "open", "custom", (), "adamw", (), Codec(K, K_RESULT, LEVEL_BIAS, 2, 0), policy, (row,), initial,
        1, tuple(sorted(founders)),
    )  # fmt: skip
    author = identity(200)
    return sign_message(message, author.peer, author.sign)


class World:
    """A network in memory and the members that were opened on it; all ends with the nursery."""

    def __init__(
        self,
        nursery: trio.Nursery,
        folder: Path,
        founders: int = 3,
        group_size_max: int = 64,
        grace_s: float = GRACE_S,
    ) -> None:
        self.network = MemoryNetwork()
        names = tuple(identity(number).peer for number in range(1, founders + 1))
        self.manifest = manifest(names, group_size_max=group_size_max, grace_s=grace_s)
        self.swarm = swarm_id(self.manifest)
        self.folder, self._nursery = folder, nursery

    async def member(self, number: int, swarm: bytes | None = None) -> Member:
        """A member with links, not yet with rounds."""
        member: Member = await self._nursery.start(self._keep, number, swarm or self.swarm)
        return member

    async def _keep(self, number: int, swarm: bytes, task_status: trio.TaskStatus[Member]) -> None:
        async with open_member(self, number, swarm) as member:
            task_status.started(member)
            await trio.sleep_forever()

    async def members(self, *numbers: int) -> list[Member]:
        """Members that know each other."""
        opened = [await self.member(number) for number in numbers]
        for i, one in enumerate(opened):
            for other in opened[i + 1 :]:
                await one.meet(other)
        return opened

    async def stranger(self, number: int) -> MemoryHost:
        """A host without any p2pnet on it: the test says what it sends."""
        host: MemoryHost = await self._nursery.start(self._keep_host, number)
        return host

    async def _keep_host(self, number: int, task_status: trio.TaskStatus[MemoryHost]) -> None:
        async with self.network.host(identity(number).peer) as host:
            task_status.started(host)
            await trio.sleep_forever()


class Member:
    """One node without a daemon and without a user."""

    def __init__(self, world: World, number: int, host: MemoryHost, links: Links, inbox: Inbox) -> None:
        self.world, self.number, self.host, self.links, self.inbox = world, number, host, links, inbox
        self.identity = identity(number)
        self.bridge, self.diary = br.Bridge(), Diary()
        self.outcomes: list[br.Outcome] = []
        self.skips: set[int] = set()
        self.moves: list[br.Fork | br.Return] = []
        self.peer: Peer | None = None
        self.ledger: Ledger | None = None
        self.scope = trio.CancelScope()
        self.ended = False
        self.caps_bps = (0, 0)

    async def meet(self, other: Member | MemoryHost) -> None:
        """Connect, say hello, and wait until both are up."""
        host = other.host if isinstance(other, Member) else other
        await self.host.connect(host.peer, host.addrs(), 5)
        self.links.connected(next(found for found in await self.host.connected() if found.peer == host.peer))
        if isinstance(other, Member):
            await until(lambda: host.peer in self.links.membership.up and self.host.peer in other.links.membership.up)

    def score(self, peer: PeerId) -> int:
        """The standing of a peer here: 100 is clean."""
        return self.links.membership.standing.score(peer, trio.current_time())

    async def take_part(self, train: Callable[[Member, br.RoundTask], bytes | None] | None = None) -> None:
        """Run rounds with a learner that encodes noise, until cancelled."""
        train = train or (lambda member, task: payload(member.number, task.round_id))
        manifest = self.world.manifest.message
        genesis = SwarmState.genesis(self.world.swarm, manifest, volume_of(manifest)).lineage
        folder = self.world.folder / str(self.number)
        with self.scope, Ledger(folder / "ledger.db", self.world.swarm, genesis, keep_results=4) as self.ledger:
            snapshots = Snapshots(folder, self.world.manifest.message.policy.snapshot_rounds, self.ledger)
            manifest = self.world.manifest.message
            known = Swarm(self.world.swarm, manifest, self.ledger, CHUNKS, snapshots, Branches(folder))
            self.peer = Peer(
                known, self.identity, self.host, self.inbox, self.links, self.bridge, self.diary, caps_bps=self.caps_bps
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.peer.run)
                nursery.start_soon(self._learn, train)
        self.ended = True

    async def stop(self) -> None:
        """End the rounds, as when the process ends; the links stay."""
        self.scope.cancel()
        await until(lambda: self.ended)
        for protocol in ("/p2pnet/exchange/1", "/p2pnet/evidence/1", "/p2pnet/groups/1"):
            self.host.reception._entries.pop(protocol)

    async def _learn(self, train: Callable[[Member, br.RoundTask], bytes | None]) -> None:
        assert self.peer is not None
        while True:
            item = self.bridge.poll()
            match item:
                case br.RoundTask(number):
                    self.peer.take(br.Began(number, 0, b"\0" * 32 if item.state_wanted else b""))
                    if (data := train(self, item)) is not None:
                        tree = payload_tree(data, FORMATS[0])
                        self.peer.take(br.Submitted(number, data, tree, 8, True, 1.0))
                    else:
                        self.peer.take(br.Skipped(number, "NaN in weight"))
                case br.Outcome(number):
                    self.outcomes.append(item)
                    self.peer.take(br.Applied(number, math.nan))
                case br.Fork() | br.Return():
                    self.moves.append(item)
                case _:
                    await trio.sleep(0.005)  # the queue is the other thread's, which no test has


@asynccontextmanager
async def open_member(world: World, number: int, swarm: bytes) -> AsyncIterator[Member]:
    who = identity(number)
    told: list[Links] = []

    def misbehaved(peer: PeerId, rule: str) -> None:
        told[0].misbehaved(peer, rule)

    limits = Limits(first_frame_s=0.5)
    async with world.network.host(who.peer, limits, misbehaved) as host, trio.open_nursery() as nursery:
        inbox = Inbox()
        member: list[Member] = []

        def judge(heard: ev.Heard) -> object:
            from p2pnet.core.gossip import Verdict

            peer = member[0].peer
            return peer.judge(heard) if peer is not None else Verdict.IGNORE

        links = Links(host, swarm, who, inbox.put, judge, "test/1", 0.0, random.Random(number))  # type: ignore[arg-type]
        told.append(links)
        member.append(Member(world, number, host, links, inbox))
        await nursery.start(links.run)
        yield member[0]
        nursery.cancel_scope.cancel()


async def until(is_so: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    """Wait for something that comes by itself; fails when it does not."""
    with trio.fail_after(wait_s):
        while not is_so():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.005)


class Recorder:
    """What a Bulk reports, to be waited for."""

    def __init__(self) -> None:
        self.events: list[ev.Event] = []
        self.blamed: list[tuple[PeerId, str]] = []
        self.accused: list[bytes] = []

    async def wait(self, *kinds: type) -> ev.Event:
        """The first event of these kinds, taken out."""
        await until(lambda: any(isinstance(event, kinds) for event in self.events))
        event = next(event for event in self.events if isinstance(event, kinds))
        self.events.remove(event)
        return event


def make_bulk(world: World, host: MemoryHost, is_dense: bool = False) -> tuple[Bulk, Recorder]:
    """Bulk alone, for a host."""
    from p2pnet.identity import verify

    recorder = Recorder()
    bulk = Bulk(
        host, world.swarm, 0, CHUNKS, FORMATS, is_dense, verify, recorder.events.append,
        lambda peer, rule: recorder.blamed.append((peer, rule)), lambda _round, _root: None,
        recorder.accused.append,
    )  # fmt: skip
    return bulk, recorder
