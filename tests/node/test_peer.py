"""Whole rounds between members in one process: decided, the same everywhere, over restarts and with some missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from p2pnet.core import events as ev
from p2pnet.core.gossip import Verdict
from p2pnet.core.passing import is_of_use
from p2pnet.core.state import SwarmState
from p2pnet.errors import P2pnetError
from p2pnet.identity import PeerId, verify
from p2pnet.ledger.log import Ledger
from p2pnet.ledger.reader import LedgerReader
from p2pnet.node import bridge as br
from p2pnet.node.history import History, replay, volume_of
from p2pnet.wire.branch import open_spoken
from p2pnet.wire.codec import encode
from p2pnet.wire.round import (
    Commit,
    Endorsement,
    Proposal,
    Quorum,
    Roster,
    Vote,
    decode_outcome,
)
from p2pnet.wire.signing import sign_message
from tests.node.members import FORMATS, Member, World, identity, payload, until

CAPS_BPS = ((100_000, 0), (100_000, 100_000), (5_000, 100_000))


@pytest.fixture
def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    return World(nursery, tmp_path)


async def decided(members: list[Member], rounds: int) -> None:
    await until(lambda: all(len(member.outcomes) >= rounds for member in members))


def lineages(member: Member) -> list[bytes]:
    return [outcome.lineage for outcome in member.outcomes]


async def test_three_members_decide_the_same_rounds_and_free_what_is_over(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(1, 2, 3)
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 4)
    first = members[0].outcomes[:4]
    for member in members:
        assert [outcome.lineage for outcome in member.outcomes[:4]] == [outcome.lineage for outcome in first]
        assert [outcome.result for outcome in member.outcomes[:4]] == [outcome.result for outcome in first]
        assert not any(outcome.void for outcome in member.outcomes[:4])
        assert all(outcome.named is not None for outcome in member.outcomes[:4])
        assert member.peer is not None
        assert len(member.peer.bulk._payloads) <= 3
        assert len({key[0] for key in member.peer.bulk.views._views}) <= 3
        assert len({key[0] for key in member.peer.bulk._outputs}) <= 3
    assert all(len(outcome.result) == FORMATS[1].payload_bytes(202) for outcome in first)
    snapshot = members[0].peer.snapshot()  # type: ignore[union-attr]
    assert snapshot["rounds_sealed"] >= 3
    assert snapshot["refused"] == {}


async def test_a_member_with_a_cap_says_so_in_its_commits_and_reduces_less(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(1, 2, 3)
    for member, caps_bps in zip(members, CAPS_BPS, strict=True):
        member.caps_bps = caps_bps
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 1)
    assert members[0].ledger is not None
    [entry] = members[0].ledger.entries(0, 1)
    commits = [open_spoken(raw, verify) for raw in entry.commits]
    rates = {commit.peer: (commit.message.up_kbps, commit.message.down_kbps) for commit in commits}  # type: ignore[union-attr]
    said = zip(members, CAPS_BPS, strict=True)  # nothing is measured yet
    assert rates == {member.identity.peer: (up // 1000, down // 1000) for member, (up, down) in said}
    outcome = decode_outcome(entry.outcome)
    reducers = {open_spoken(raw, verify).peer for raw in outcome.reduced}  # type: ignore[union-attr]
    assert members[2].identity.peer not in reducers


async def test_a_member_without_an_update_skips_the_round_says_so_and_goes_on(
    world: World, nursery: trio.Nursery
) -> None:
    members = await world.members(1, 2, 3)

    def train(member: Member, task: br.RoundTask) -> bytes | None:
        return None if member.number == 3 and task.round_id == 1 else payload(member.number, task.round_id)

    for member in members:
        nursery.start_soon(member.take_part, train)
    await decided(members, 3)
    third = members[2]
    assert [note["kind"] for note in third.diary.notes if note["round"] == 1] == ["skipped"]
    assert third.outcomes[0].named is not None
    assert third.outcomes[1].named is None
    assert third.outcomes[2].named is not None
    assert not third.outcomes[1].void
    assert lineages(third)[:3] == lineages(members[0])[:3]


async def test_two_go_on_without_the_third_and_it_catches_up_from_what_they_decided(
    world: World, nursery: trio.Nursery
) -> None:
    members = await world.members(1, 2, 3)
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 1)
    third = members[2]
    await third.stop()
    third.host.drop_connections()
    before = len(third.outcomes)
    await decided(members[:2], before + 2)
    back = Member(world, 3, third.host, third.links, third.inbox)
    nursery.start_soon(back.take_part)
    await back.meet(members[0])
    await back.meet(members[1])
    await until(lambda: len(back.outcomes) >= 1 and len(lineages(back)) + before >= len(members[0].outcomes) - 1)
    found = {outcome.round_id: outcome.lineage for outcome in members[0].outcomes}
    assert all(found[outcome.round_id] == outcome.lineage for outcome in back.outcomes if outcome.round_id in found)


async def test_a_peer_that_is_made_again_on_its_ledger_never_signs_two_things_for_one_slot(
    world: World, nursery: trio.Nursery
) -> None:
    """Alone of three founders it cannot decide; it commits, is killed, and commits to another payload."""
    one, _two = await world.members(1, 2)
    heard: list[bytes] = []
    send = one.links.broadcast
    one.links.broadcast = lambda raw: (heard.append(raw), send(raw))[1]  # type: ignore[method-assign]
    nursery.start_soon(one.take_part)

    def commits() -> set[bytes]:
        from p2pnet.identity import verify

        opened = [open_spoken(raw, verify) for raw in heard]
        return {each.raw for each in opened if isinstance(getattr(each, "message", None), Commit)}  # type: ignore[union-attr]

    await until(lambda: len(commits()) == 1)
    await one.stop()
    again = Member(world, 1, one.host, one.links, one.inbox)
    nursery.start_soon(again.take_part, lambda member, task: payload(77))
    heard_before = len(heard)
    await until(lambda: len(heard) > heard_before)
    assert len(commits()) == 1


async def test_a_ledger_leads_back_to_the_state_and_a_damaged_one_is_found(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(1, 2, 3)
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 6)
    for member in members:
        await member.stop()
    genesis = SwarmState.genesis(world.swarm, world.manifest.message, volume_of(world.manifest.message))
    path = world.folder / "1" / "ledger.db"
    with Ledger(path, world.swarm, genesis.lineage, keep_results=4) as ledger:
        state = replay(genesis, ledger)
        assert state.round == len(ledger) >= 6
        assert state.lineage == ledger.lineage()
        history, me = History(world.swarm, world.manifest.message, ledger), members[0].identity.peer
        outcomes = list(history.outcomes(me, len(ledger) - 3, len(ledger)))
        live = {outcome.round_id: outcome for outcome in members[0].outcomes}
        assert all(outcome == live.get(outcome.round_id, outcome) for outcome in outcomes)  # what was taken of me too
        assert outcomes[0].result == live[len(ledger) - 3].result
        assert any(outcome.named for outcome in outcomes)
        assert list(history.outcomes(me, len(ledger), len(ledger))) == []
        ledger.drop_results(1)
        with pytest.raises(P2pnetError, match="round 0 is not kept any more"):
            list(history.outcomes(me, 0, 1))
        ledger._db.execute("UPDATE entries SET lineage = ? WHERE round = 2", (b"\0" * 32,))
        with pytest.raises(P2pnetError, match="round 2 does not lead to the lineage written beside it"):
            replay(genesis, ledger)
    with LedgerReader(path) as reader:
        assert len(reader) == state.round


async def test_gossip_passes_on_only_what_can_change_the_round(world: World, nursery: trio.Nursery) -> None:
    one, _two = await world.members(1, 2)  # two of three founders: nothing is decided before the window is over
    nursery.start_soon(one.take_part)
    await until(lambda: one.peer is not None and len(one.peer.rounds.round.commits.held) == 1)
    peer = one.peer
    assert peer is not None
    state = peer.rounds.state

    def judged(message: object, number: int) -> Verdict:
        signed = sign_message(message, identity(number).peer, identity(number).sign)  # type: ignore[type-var]
        return peer.judge(ev.Heard(identity(5).peer, signed))  # type: ignore[arg-type]

    def commit(number: int, **changes: object) -> Commit:
        fields: dict[str, object] = {
            "swarm": world.swarm, "round": 0, "lineage": state.lineage, "payload_root": b"\2" * 32, "samples": 8,
            "preimage": bytes([number]) * 32, "checksum": 0, "assigned": 1, "reach": 0, "up_kbps": 0, "down_kbps": 0,
        }  # fmt: skip
        return Commit(**(fields | changes))  # type: ignore[arg-type]

    proposer = next(number for number in (1, 2, 3) if identity(number).peer == state.proposer(0))
    other = next(number for number in (1, 2, 3) if number != proposer)
    vote = Vote(world.swarm, 0, 0, 1, b"\3" * 32)
    roster = Roster(world.swarm, 0, 0, state.lineage, (b"x",))
    assert judged(commit(7), 7) is Verdict.ACCEPT  # anybody may train
    assert judged(commit(7, lineage=b"\0" * 32), 7) is Verdict.IGNORE
    assert judged(commit(1), 1) is Verdict.IGNORE  # another one of somebody whose commit is here
    mine = next(iter(peer.rounds.round.commits.held.values()))[0]
    assert peer.judge(ev.Heard(identity(5).peer, mine)) is Verdict.ACCEPT
    assert judged(vote, 2) is Verdict.ACCEPT
    assert judged(vote, 7) is Verdict.IGNORE
    assert judged(roster, proposer) is Verdict.ACCEPT
    assert judged(roster, other) is Verdict.IGNORE
    assert judged(Proposal(world.swarm, 0, 0, 0, b"x"), other) is Verdict.IGNORE
    assert judged(Vote(world.swarm, 3, 0, 1, b""), 2) is Verdict.IGNORE
    assert judged(Vote(world.swarm, 1, 0, 1, b""), 7) is Verdict.ACCEPT  # who votes then is not known yet
    assert is_of_use(mine, peer.rounds)
    false = Quorum(world.swarm, 0, 0, 1, b"\1" * 32, (Endorsement(PeerId(identity(2).peer), b"\0" * 64),))
    assert peer.judge(ev.Heard(identity(5).peer, false)) is Verdict.REJECT
    signature = identity(2).sign(false.vote_bytes())
    true = Quorum(world.swarm, 0, 0, 1, b"\1" * 32, (Endorsement(identity(2).peer, signature),))
    assert peer.judge(ev.Heard(identity(5).peer, true)) is Verdict.ACCEPT


async def test_hostile_messages_of_a_round_do_not_stop_it(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(1, 2, 3)
    stranger = await world.member(9)
    for member in members:
        await stranger.meet(member)
    for member in members:
        nursery.start_soon(member.take_part)
    who = identity(9)
    for round_id in range(3):
        for view in (0, 1, 2**16 - 1):
            lies = [
                Vote(world.swarm, round_id, view, 1, b"\3" * 32),
                Roster(world.swarm, round_id, view, b"\1" * 32, (b"garbage", b"x" * 500)),
                Proposal(world.swarm, round_id, view, view, b"garbage"),
            ]
            for lie in lies:
                raw = sign_message(lie, who.peer, who.sign).raw
                stranger.links.broadcast(raw)
                for member in members:
                    stranger.links.send(member.host.peer, raw)
        forged = Quorum(world.swarm, round_id, 0, 2, b"\1" * 32, (Endorsement(identity(1).peer, b"\0" * 64),))
        for member in members:
            stranger.links.send(member.host.peer, encode(forged))
    await decided(members, 3)
    assert len({tuple(lineages(member)[:3]) for member in members}) == 1
