"""Members whose quorum is gone: a branch begins, is written down, is left; with real links, ledgers and bulk data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnet.core import events as ev
from p2pnet.core.state import SwarmState
from p2pnet.errors import NetworkError
from p2pnet.ledger.log import Ledger
from p2pnet.net.memory import MemoryHost
from p2pnet.node import bridge as br
from p2pnet.node.branches import RECORD_NAME, Branches, follow
from p2pnet.node.bulk import PROTOCOL
from p2pnet.node.history import replay, volume_of
from p2pnet.wire.branch import Branch, BranchCertificate
from p2pnet.wire.codec import encode, pack, unpack
from p2pnet.wire.exchange import GetOutput
from p2pnet.wire.manifest import swarm_id
from p2pnet.wire.signing import sign_message
from tests.node.members import Member, World, identity, manifest, payload, until


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    return World(nursery, tmp_path)


def hasten(world: World, founders: int) -> None:
    """Let the swarm have so many founders, and call a round stalled after a second and a half."""
    signed = manifest(tuple(identity(number).peer for number in range(1, founders + 1)))
    policy = replace(signed.message.policy, stall_ms=1500)
    author = identity(200)
    world.manifest = sign_message(replace(signed.message, policy=policy), author.peer, author.sign)
    world.swarm = swarm_id(world.manifest)


async def begin(world: World, nursery: trio.Nursery, founders: int) -> list[Member]:
    """Members that have decided three rounds."""
    hasten(world, founders)
    members = await world.members(*range(1, founders + 1))
    for member in members:
        nursery.start_soon(member.take_part)
    await until(lambda: all(len(member.outcomes) >= 3 for member in members))
    return members


def in_branch(member: Member, rounds: int = 2) -> bool:
    """Tell whether a member is in a branch, so many rounds on."""
    assert member.peer is not None
    line = member.peer.course.lines[-1]
    return line.certificate is not None and line.round >= line.certificate.round + rounds


async def test_of_two_the_survivor_goes_on_and_goes_back_when_the_other_is_there(
    world: World, nursery: trio.Nursery
) -> None:
    stays, leaves = await begin(world, nursery, 2)
    await leaves.stop()  # its host stays connected, and is silent, as of a process that is frozen
    await until(lambda: in_branch(stays))
    fork = stays.moves[0]
    assert isinstance(fork, br.Fork)
    assert stays.peer is not None
    assert fork.line == stays.peer.course.lines[-1].id.hex()
    final = stays.peer.course.final.state.round
    assert fork.round_id == final
    branch = [outcome for outcome in stays.outcomes if outcome.round_id >= final]
    assert [outcome.void for outcome in branch[:2]] == [False, False]
    assert branch[0].named  # the update that it had when the round was stalled goes with the branch

    back = leaves
    back.bridge, back.scope, back.ended = br.Bridge(), trio.CancelScope(), False
    nursery.start_soon(back.take_part)
    assert stays.ledger is not None
    await until(lambda: len(stays.ledger) >= final + 3)  # type: ignore[arg-type]
    home = stays.moves[-1]
    assert isinstance(home, br.Return)
    assert (home.round_id, home.line, home.payload) == (final, "", payload(1, final))
    assert not list((world.folder / "1" / "branches").iterdir())
    kept = stays.outcomes[-1]
    await until(lambda: any(outcome.round_id == kept.round_id for outcome in back.outcomes))
    assert next(one for one in back.outcomes if one.round_id == kept.round_id).lineage == kept.lineage


async def test_a_branch_of_two_decides_the_same_and_a_killed_member_goes_on_in_it(
    world: World, nursery: trio.Nursery
) -> None:
    members = await begin(world, nursery, 4)
    rest = members[:2]
    for gone in members[2:]:
        await gone.stop()
    await until(lambda: all(in_branch(member) for member in rest), 60)
    lines = {member.peer.course.lines[-1].id for member in rest if member.peer is not None}
    assert len(lines) == 1
    (branch,) = lines
    first, second = (
        {
            outcome.round_id: outcome.lineage
            for outcome in member.outcomes
            if outcome.round_id >= member.moves[0].round_id
        }
        for member in rest
    )
    both = first.keys() & second.keys()
    assert len(both) >= 2
    assert all(first[number] == second[number] for number in both)

    await rest[1].stop()
    kept = Branches(world.folder / "2").load()
    assert [one.id for one in kept] == [branch]
    assert kept[0].update is not None
    assert kept[0].payload == payload(2, kept[0].certificate.round)
    ((going, genesis, ledger),) = follow(kept, decided(world, 2), 4)
    with ledger:
        assert (going.id, genesis.swarm) == (branch, branch)
        assert len(ledger) >= genesis.round + 2


def decided(world: World, number: int) -> SwarmState:
    """Where the final chain of a stopped member stands."""
    message = world.manifest.message
    genesis = SwarmState.genesis(world.swarm, message, volume_of(message))
    with Ledger(world.folder / str(number) / "ledger.db", world.swarm, genesis.lineage, keep_results=4) as ledger:
        return replay(genesis, ledger)


def written_down(folder: Path, *nonces: bytes) -> tuple[Branches, SwarmState]:
    """Branches of the first round of a swarm of two, one for each nonce, and where its final chain stands."""
    signed = manifest((identity(1).peer, identity(2).peer))
    state = SwarmState.genesis(swarm_id(signed), signed.message, volume_of(signed.message))
    branches = Branches(folder)
    for nonce in nonces:
        about = state.swarm, state.round, state.lineage, (identity(1).peer,)
        certificate = BranchCertificate(*about, (b"\x80",), (nonce,), (b"g" * 64,))
        update = ev.Encoded(0, b"r" * 32, 8, True, 1, 1000, 1000)
        branch = certificate.branch_id()
        genesis = state.fork(branch, certificate.voters)
        fork = ev.Fork(0, certificate, branch, genesis, ev.Started(0, 1, b""), update)
        branches.create(0, fork, b"payload")
    return branches, state


def test_what_cannot_be_read_is_not_gone_on_with_and_stays_on_the_disk(tmp_path: Path) -> None:
    branches, final = written_down(tmp_path, b"n" * 8)
    (kept,) = branches.load()
    path = kept.folder / RECORD_NAME
    data = path.read_bytes()
    id_at = data.index(kept.certificate.swarm)
    another = data[:id_at] + bytes([data[id_at] ^ 255]) + data[id_at + 1 :]  # readable, and of a line that is not here
    raw, about, sent, sent_payload = unpack(data, len(data))
    records = [[raw, [b"1", b""], sent, sent_payload], [raw, about, sent[:-1], sent_payload], [raw, about], raw]
    for damaged in (b"", data[:-1], another, b"\xff" * 64, *map(pack, records)):
        path.write_bytes(damaged)
        assert follow(branches.load(), final, 4) == []
        assert path.read_bytes() == damaged
    path.write_bytes(data)
    ((_, _, ledger),) = follow(branches.load(), final, 4)
    ledger.close()
    path.unlink()  # as when the process ends before the branch is written down
    assert branches.load() == []
    assert not kept.folder.exists()


def test_a_branch_that_is_damaged_does_not_hide_another_one_of_the_same_round(tmp_path: Path) -> None:
    branches, final = written_down(tmp_path, b"1" * 8, b"2" * 8)
    best, other = sorted(branches.load(), key=lambda kept: kept.id)
    ((going, _, ledger),) = follow([other, best], final, 4)
    ledger.close()
    assert going == best
    (best.folder / "ledger.db").write_bytes(b"no database" * 100)
    ((going, _, ledger),) = follow([best, other], final, 4)
    ledger.close()
    assert going == other


async def test_a_request_about_a_line_that_is_not_followed_is_not_answered_and_costs_nothing(
    world: World, nursery: trio.Nursery
) -> None:
    one, _ = await begin(world, nursery, 2)
    host: MemoryHost = await world.stranger(77)
    await host.connect(one.host.peer, one.host.addrs(), 5)
    with pytest.raises(NetworkError):
        await host.request(one.host.peer, PROTOCOL, encode(GetOutput(b"\7" * 32, 0, b"\1" * 32)), 5, 100)
    assert one.score(host.peer) == 100


async def test_a_certificate_that_its_voters_have_not_signed_changes_nothing(
    world: World, nursery: trio.Nursery
) -> None:
    one, other = await begin(world, nursery, 2)
    assert one.peer is not None
    state = one.peer.course.final.state
    liar = identity(2)
    branch = Branch(state.swarm, state.round, state.lineage, (identity(1).peer,), b"\xff", b"\0" * 8)
    signature = sign_message(branch, liar.peer, liar.sign).signature
    certificate = BranchCertificate(
        state.swarm, state.round, state.lineage, (identity(1).peer,), (b"\xff",), (b"\0" * 8,), (signature,)
    )
    one.inbox.put(ev.Heard(other.host.peer, certificate))
    reached = len(one.outcomes)
    await until(lambda: len(one.outcomes) >= reached + 2)
    assert len(one.peer.course.lines) == 1
    assert one.moves == []
