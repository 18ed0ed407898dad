"""Pages of decided rounds: given, fetched, and refused when they are not what they claim to be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from p2pnet.core.certificates import bundle
from p2pnet.core.state import SwarmState
from p2pnet.errors import NetworkError
from p2pnet.identity import PeerId
from p2pnet.ledger.log import Ledger
from p2pnet.net.host import Stream
from p2pnet.net.memory import MemoryHost
from p2pnet.node import history as history_module
from p2pnet.node.history import PROTOCOL, History, ask_page, count_rounds, decision_of, entry_of, volume_of
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.history import Decisions, GetDecisions
from p2pnet.wire.round import Decision, Phase, Vote, decode_outcome, outcome_digest
from p2pnet.wire.signing import sign_message
from tests.node.members import World, identity


class Scene:
    """A swarm that has decided, a member that gives its history, and one that lacks it."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.world, self.folder = World(nursery, folder), folder
        self.said: list[str] = []
        self.blamed: list[tuple[PeerId, str]] = []

    def decided(self, rounds: int) -> History:
        """What a member has after so many rounds; all VOID, which takes no learner."""
        found = self.open("full")
        state = found.state
        for number in range(rounds):
            hashed = b"s" * 32 if number % state.policy.snapshot_rounds == 0 else b""
            void = encode(state.outcome(b"", 0, (), (), hashed))
            value = outcome_digest(void)
            ballot = Vote(state.swarm, number, 1, 2, value)
            voters = [identity(voter) for voter in (1, 2, 3)]
            seals = {who.peer: sign_message(ballot, who.peer, who.sign).signature for who in voters}
            decision = Decision(bundle(state, 1, Phase.SEAL, value, seals), void, ())
            state = state.advance(void, decode_outcome(void), ())
            found.ledger.append(entry_of(decision, state.lineage, ()))
        found.ledger.close()
        return self.open("full")

    def open(self, name: str) -> History:
        manifest = self.world.manifest.message
        path = self.folder / name / "ledger.db"
        genesis = SwarmState.genesis(self.world.swarm, manifest, volume_of(manifest)).lineage
        ledger = Ledger(path, self.world.swarm, genesis)
        return History(self.world.swarm, manifest, ledger)

    async def served(self, number: int, handler: Callable[[Stream], object]) -> MemoryHost:
        host = await self.world.stranger(number)
        await host.handle(PROTOCOL, handler, concurrency_per_peer=2)  # type: ignore[arg-type]
        return host

    async def fetch(self, history: History, asker: MemoryHost, *givers: MemoryHost) -> bool:
        for giver in givers:
            await asker.connect(giver.peer, giver.addrs(), 5)
        names = [giver.peer for giver in givers]
        return await history.fetch(asker, names, self.said.append, lambda *told: self.blamed.append(told))


@pytest.fixture
def scene(nursery: trio.Nursery, tmp_path: Path) -> Scene:
    return Scene(nursery, tmp_path)


async def test_what_a_member_has_decided_comes_in_pages_and_leads_to_the_same_state(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = scene.decided(5)
    monkeypatch.setattr(history_module, "DECISIONS_MAX", 2)
    giver, asker = await scene.served(11, full.serve), await scene.world.stranger(12)
    late = scene.open("late")
    assert await scene.fetch(late, asker, giver)
    assert late.state == full.state
    assert late.ledger.lineage() == full.ledger.lineage()
    assert late.ledger.tree().root() == full.ledger.tree().root()
    assert len(scene.said) >= 3
    assert scene.said[-1] == f"decided rounds: {full.state.round} of {full.state.round} fetched and verified"
    assert await scene.fetch(late, asker, giver)  # once more: nothing new
    assert scene.blamed == []
    assert await count_rounds(asker, [giver.peer], scene.world.swarm) == full.state.round
    page = await ask_page(asker, giver.peer, scene.world.swarm, 2**32 - 1)
    assert page == Decisions(full.state.round, ())
    assert [outcome.void for outcome in late.outcomes(asker.peer, 0, 9)] == [True] * 5
    full.ledger.close()
    late.ledger.close()


async def test_a_liar_gives_no_round_that_was_not_decided_and_costs_none_that_was(scene: Scene) -> None:
    full = scene.decided(4)
    decisions = [encode(decision_of(entry)) for entry in full.ledger.entries(0, 4)]
    flipped = bytearray(decisions[2])
    flipped[random.Random(1).randrange(200, len(flipped))] ^= 1
    lies = {
        "flipped": (*decisions[:2], bytes(flipped)),
        "gap": (decisions[0], decisions[2]),
        "again": (decisions[0], decisions[0]),
        "garbage": (b"\x93\x01\x02\x03",),
    }
    asker = await scene.world.stranger(12)
    for number, (name, lie) in enumerate(lies.items()):

        async def serve(stream: Stream, lie: tuple[bytes, ...] = lie) -> None:
            decode((GetDecisions,), await stream.receive_frame(1000))
            await stream.send_frame(encode(Decisions(2**32 - 1, lie)))

        late, liar = scene.open(name), await scene.served(20 + number, serve)
        assert not await scene.fetch(late, asker, liar)
        assert scene.blamed.pop()[0] == liar.peer
        assert late.ledger.entries(0, 9) == [
            entry for entry in late.ledger.entries(0, 9) if encode(decision_of(entry)) in decisions
        ]
        assert len(late.ledger) == late.state.round == {"flipped": 2, "gap": 1, "again": 1, "garbage": 0}[name]
        giver = await scene.served(40 + number, full.serve)
        assert await scene.fetch(late, asker, liar, giver)
        assert late.state == full.state
        scene.blamed.clear()
        late.ledger.close()
    full.ledger.close()


@pytest.mark.parametrize("answer", [b"", b"\xc0", b"\x93\x02\x00", b"x" * 2000])
async def test_an_answer_that_is_no_page_is_the_givers_fault_and_not_ours(scene: Scene, answer: bytes) -> None:
    async def serve(stream: Stream) -> None:
        await stream.receive_frame(1000)
        await stream.send_frame(answer)

    late, liar, asker = scene.open("late"), await scene.served(20, serve), await scene.world.stranger(12)
    assert not await scene.fetch(late, asker, liar)
    assert [peer for peer, _ in scene.blamed] == [liar.peer]
    assert len(late.ledger) == 0
    late.ledger.close()


async def test_nonsense_is_not_answered_and_the_next_one_is(scene: Scene) -> None:
    empty = scene.open("empty")
    giver, asker = await scene.served(11, empty.serve), await scene.world.stranger(12)
    await asker.connect(giver.peer, giver.addrs(), 5)
    for frame in (b"", b"\xc0", encode(GetDecisions(b"?" * 32, 0)), b"x" * 1000):
        with pytest.raises(NetworkError):
            await asker.request(giver.peer, PROTOCOL, frame, 5, 1000)
    assert giver.reception.misbehaved == 4
    assert await ask_page(asker, giver.peer, scene.world.swarm, 0) == Decisions(0, ())
    empty.ledger.close()
