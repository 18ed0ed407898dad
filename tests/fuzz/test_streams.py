"""Whole nodes under hostile streams: any protocol, any frames, half-open, cut, many at once, never read.

The members beside the hostile peers go on deciding rounds, and every stream and task that a hostile peer began ends.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from p2pnet.errors import NetworkError, PeerError
from p2pnet.identity import Identity
from p2pnet.net.framing import FramedStream
from p2pnet.net.host import Stream
from p2pnet.net.memory import MemoryHost
from p2pnet.node.content import INITIAL_NAME, MANIFEST_NAME
from p2pnet.node.links import GOSSIP, HELLO, ROUND
from p2pnet.node.telling import PROTOCOL as TOLD
from p2pnet.wire.bundles import AwaitColumn, Bundle, BundledSlice, GetColumn, GetGroupRoster, GetWideLeaf
from p2pnet.wire.codec import encode
from p2pnet.wire.evidence import DoubleSigned, GetEvidence
from p2pnet.wire.exchange import GetLeaf, GetOutput, Slice
from p2pnet.wire.gossip import Data, Graft, Have, Prune, Want
from p2pnet.wire.history import Decisions, GetDecisions
from p2pnet.wire.manifest import Get
from p2pnet.wire.membership import VERSION, Hello, HelloAnswer, PeerRecord
from p2pnet.wire.round import Ask, Commit, Decision, Endorsement, GroupRoster, Quorum, Reduced, Skip, Vote
from p2pnet.wire.signing import sign_message
from tests.fuzz.material import RUNS, mutate
from tests.node.living import Living, Place, open_place
from tests.node.members import until

EXCHANGE, CONTENT, HISTORY, EVIDENCE = (f"/p2pnet/{name}/1" for name in ("exchange", "swarm", "history", "evidence"))
PROTOCOLS = (HELLO, GOSSIP, ROUND, EXCHANGE, CONTENT, HISTORY, EVIDENCE, TOLD)
ATTACKERS = min(RUNS or 12, 100)
STREAMS = 10  # of each
MEMORY_BYTES_MAX = 64 << 20  # what both nodes may take more after it than before


class Attacker:
    """A peer with a name of its own that says what it likes."""

    def __init__(self, place: Place, host: MemoryHost, who: Identity, rng: random.Random) -> None:
        self.place, self.host, self.who, self.rng = place, host, who, rng
        self.target = rng.choice([member for member in place.members if member.host is not None])
        self.frames = frames_of(place.link.swarm, who, self.target, rng)

    async def run(self) -> None:
        """Say hello, mostly, then open streams, some at once; ends when all of them have."""
        assert self.target.host is not None
        with suppress(NetworkError):  # banned, or cut off
            await self.host.connect(self.target.peer, self.target.host.addrs(), 5)
            if self.rng.random() < 0.8:
                await self.host.request(self.target.peer, HELLO, self.frames[HELLO][0], 5, 1 << 20)
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(self._converse, self.rng.choice(PROTOCOLS), random.Random(self.rng.random()))
                if self.rng.random() < 0.5:
                    await trio.sleep(0.01)

    async def _converse(self, protocol: str, rng: random.Random) -> None:
        with suppress(NetworkError, PeerError, OSError), trio.move_on_after(rng.choice((0.05, 0.5))):
            async with await self.host.open_stream(self.target.peer, protocol, 2) as stream:
                for _ in range(rng.choice((0, 1, 1, 3, 30))):
                    await self._say(stream, protocol, rng)
                match rng.randrange(4):
                    case 0:
                        while True:
                            await stream.receive_frame(1 << 22)
                    case 1:
                        await trio.sleep_forever()  # half-open, and never read
                    case 2:
                        stream._transport.reset()  # type: ignore[attr-defined]  # the memory host's
                    case _:
                        pass

    async def _say(self, stream: FramedStream, protocol: str, rng: random.Random) -> None:
        valid = self.frames[protocol]
        frame = rng.choice(valid)
        match rng.randrange(6):
            case 0:
                frame = rng.choice(self.frames[rng.choice(PROTOCOLS)])
            case 1 | 2 | 3:
                frame = mutate(rng, frame, tuple(valid))
            case 4:  # no frame at all: lengths that lie, and cut bodies
                raw = memoryview(
                    rng.choice((b"\xff\xff\xff\x7f", b"\x80\x00", b"\xff" * 9, b"\x7fcut", rng.randbytes(40)))
                )
                await stream._transport.send_some(b"", raw)
                return
        await stream.send_frame(frame)


def frames_of(swarm: bytes, who: Identity, target: Living, rng: random.Random) -> dict[str, list[bytes]]:
    """Frames that this peer may send, by protocol, the first one always a good one."""
    round_id = target.swarm.round if target.swarm is not None else 0
    number = rng.choice((round_id, round_id, round_id + 1, max(0, round_id - 1), 2**31))
    digest = bytes(32)
    record = sign_message(PeerRecord(swarm, 1, (), 0, "x/1", 0, 0, 0), who.peer, who.sign).raw
    votes = [
        sign_message(message, who.peer, who.sign).raw
        for message in (
            Vote(swarm, number, 0, 1, digest),
            Commit(swarm, number, digest, digest, 8, digest, 0, 1, 0, 0, 0),
            Skip(swarm, number, digest),
            Reduced(swarm, number, 0, 0, 0, 1, digest, (257,), digest, digest),
        )
    ]
    roster = sign_message(GroupRoster(swarm, number, 0, digest, 0, (votes[1],)), who.peer, who.sign).raw
    quorum = Quorum(swarm, number, 0, 2, digest, (Endorsement(who.peer, bytes(64)),))
    proof = (digest,) * rng.choice((0, 1, 128))
    proofs = [encode(DoubleSigned(votes[0], one)) for one in votes] + [rng.randbytes(100)]
    return {
        HELLO: [encode(Hello(VERSION, swarm, rng.randbytes(8), "x/1", record))],
        GOSSIP: [
            *(encode(Data(rng.randrange(256), 0, "round", raw)) for raw in votes),
            encode(Data(0, 0, "record", record)),
            *(encode(Data(0, 0, "evidence", raw)) for raw in proofs),
            encode(Have(1, tuple(rng.randbytes(20) for _ in range(rng.choice((1, 512)))))),
            encode(Want(1, (bytes(20),) * 128)),
            encode(Graft(tuple(range(256)))),
            encode(Prune(0)),
        ],
        ROUND: [*votes, encode(quorum), encode(Ask(swarm, number, 0)), encode(Decision(quorum, b"\x90", (votes[1],)))],
        EXCHANGE: [
            encode(Slice(swarm, number, 0, digest, 0, proof)),
            encode(GetOutput(swarm, number, digest)),
            encode(GetLeaf(swarm, number, 0, 0, 0)),
            encode(Bundle(swarm, number, 0, digest, 0, 0, (BundledSlice(0, proof),))),
            encode(AwaitColumn(swarm, number, 0, digest, 0)),
            encode(GetColumn(swarm, number, digest)),
            encode(GetGroupRoster(swarm, number, digest)),
            encode(GetWideLeaf(swarm, number, 0, 0, 0)),
            rng.randbytes(1000),
        ],
        CONTENT: [encode(Get(swarm, swarm, offset, 2**32 - 1)) for offset in (0, 2**63 - 1)],
        HISTORY: [encode(GetDecisions(swarm, start)) for start in (0, number, 2**32 - 1)],
        EVIDENCE: [encode(GetEvidence(swarm, digest))],
        TOLD: [votes[1], roster, *votes],
    }


@asynccontextmanager
async def attacker(place: Place, number: int, rng: random.Random) -> AsyncIterator[Attacker]:
    who = Identity.from_seed(number.to_bytes(32, "big"))
    async with place.network.host(who.peer) as host:
        yield Attacker(place, host, who, rng)


async def attack(place: Place, number: int, seed: int) -> None:
    async with attacker(place, number, random.Random(seed)) as one:
        await one.run()


@pytest.mark.slow
async def test_members_go_on_beside_peers_that_send_anything(tmp_path: Path) -> None:
    seed = int(os.environ.get("P2PNET_SEED", "1"))
    print(f"seed {seed}, {ATTACKERS} attackers")
    numbers = itertools.count(1000)
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2)
        for member in members:
            await member.reach(1)
        gc.collect()
        tracemalloc.start()
        async with trio.open_nursery() as nursery:
            for number in itertools.islice(numbers, ATTACKERS):
                nursery.start_soon(attack, place, number, seed * 10_000 + number)
                await trio.sleep(0.02)
        # Streams linger until the remote has closed: here all of them were cut with the host.
        await until(lambda: all(m.host is not None and m.host.reception.open_streams <= 4 for m in members), 40)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert taken < MEMORY_BYTES_MAX, f"{taken >> 20} MiB"
        assert all(member.running and member.error is None for member in members)
        for member in members:
            assert member.host is not None
            assert member.host.reception.misbehaved
        done = max(member.reports[-1].round for member in members)
        for member in members:
            await member.reach(done + 3)
        assert members[0].states[done + 2] == members[1].states[done + 2]
        assert members[0].credited(done + 1)
        (late,) = await place.started(3, seed=3)  # and whoever comes now is served
        await until(lambda: bool(late.credited()), 40)


class LyingHost:
    """A member that answers what it is asked with anything but the truth."""

    def __init__(self, place: Place, host: MemoryHost, who: Identity, rng: random.Random) -> None:
        self.place, self.host, self.rng = place, host, rng
        self.asked = 0
        swarm = place.link.swarm
        record = sign_message(PeerRecord(swarm, 1, (), 0, "x/1", 0, 0, 0), who.peer, who.sign).raw
        self.hello = encode(HelloAnswer(1, 0, VERSION, rng.randbytes(8), record, b"", ()))
        honest = place.members[0].folder
        self.seeds = (
            (honest / MANIFEST_NAME).read_bytes(),
            (honest / INITIAL_NAME).read_bytes(),
            encode(Decisions(2**32 - 1, (b"\x90",) * 3)),
            encode(Decisions(5, ())),
        )

    async def run(self) -> None:
        """Be there, as a member that the DHT names."""
        for protocol in PROTOCOLS:
            await self.host.handle(protocol, self._answer)
        first = self.place.members[0]
        assert first.host is not None
        await self.host.connect(first.peer, first.host.addrs(), 5)
        await self.host.provide(self.place.link.swarm)
        await trio.sleep_forever()

    async def _answer(self, stream: Stream) -> None:
        rng = self.rng
        with suppress(NetworkError, PeerError):
            await stream.receive_frame(1 << 20)
            self.asked += 1
            if stream.protocol == HELLO:
                await stream.send_frame(self.hello)
            elif rng.random() < 0.98:
                await stream.send_frame(mutate(rng, rng.choice(self.seeds), self.seeds))
            if rng.random() < 0.02:
                await trio.sleep_forever()


@pytest.mark.slow
async def test_a_joiner_gets_what_it_needs_though_most_members_answer_with_lies(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place, trio.open_nursery() as nursery:
        (one, two) = await place.started(1, 2)
        for member in (one, two):
            await member.reach(2)
        liars: list[LyingHost] = []

        async def lie(number: int) -> None:
            who = Identity.from_seed(number.to_bytes(32, "big"))
            async with place.network.host(who.peer) as host:
                liars.append(LyingHost(place, host, who, random.Random(number)))
                await liars[-1].run()

        for number in range(4):
            nursery.start_soon(lie, 2000 + number)
        await until(lambda: len(liars) == 4)
        (late,) = await place.started(3, seed=3)
        await until(lambda: bool(late.credited()), 60)
        assert sum(liar.asked for liar in liars) > 5
        last = late.credited()[-1]
        await one.reach(last + 1)
        assert one.states[last] == late.states[last]
        nursery.cancel_scope.cancel()
