"""Rounds of many groups between members in one process: one exact result, the same everywhere, over restarts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from p2pnet.core import events as ev
from p2pnet.core.decided import listed_spans, split_listings
from p2pnet.core.parts import Part
from p2pnet.core.state import SwarmState
from p2pnet.errors import P2pnetError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.ledger.log import Held, Ledger, _pack
from p2pnet.node.bulk import PROTOCOL
from p2pnet.node.history import History, open_commits, replay, volume_of
from p2pnet.node.views import Piece
from p2pnet.numerics.reduce import reduce_part
from p2pnet.wire.bundles import GetColumn
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.history import Decisions
from p2pnet.wire.merkle import leaf_hash
from p2pnet.wire.round import Listing, WideOutcome, decode_value, listing_digest, outcome_digest
from tests.node.members import CHUNKS, FORMATS, WAIT_S, Member, World, identity, payload, until

MEMBERS, SIZE = 6, 3  # three groups of two
GRACE_S = 1.5  # six members and their audits in one process: on a busy machine they have less time than they seem to
LEAF_CHUNKS = 16


@pytest.fixture
def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    return World(nursery, tmp_path, founders=MEMBERS, group_size_max=SIZE, grace_s=GRACE_S)


def describe(member: Member) -> str:
    """Where a member stands."""
    names = "round", "phase", "view", "members", "stalled_s", "missing", "behind", "branch", "notes"
    facts = member.peer.snapshot() if member.peer is not None else {}
    found = {name: facts.get(name) for name in names}
    return f"{member.number}: {len(member.outcomes)} rounds, {found}"


async def decided(members: list[Member], rounds: int) -> None:
    with trio.move_on_after(WAIT_S):
        await until(lambda: all(len(member.outcomes) >= rounds for member in members), math.inf)
    assert all(len(member.outcomes) >= rounds for member in members), "\n".join(map(describe, members))


def reduced_directly(member: Member, number: int) -> bytes:
    """The result of a round in which every member's update is whole, from the payloads."""
    assert member.ledger is not None
    entry = member.ledger.entry(number)
    assert entry is not None
    outcome = decode_value(entry.outcome)
    assert isinstance(outcome, WideOutcome)
    groups, columns = split_listings(outcome, entry.commits)
    commits = open_commits([raw for listing in groups for raw in listing.items])
    assert len(commits) == MEMBERS
    numbers = {identity(each).peer: each for each in range(1, MEMBERS + 1)}
    found = b""
    for span in (span for column in columns for span in listed_spans(column)):
        if span is None:
            continue
        low, high = (FORMATS[0].payload_bytes(min(at * LEAF_CHUNKS, CHUNKS)) for at in span[:2])
        slices = [payload(numbers[commit.peer], number)[low:high] for commit in commits]
        found += reduce_part(slices, [8] * MEMBERS, 8 * MEMBERS, *FORMATS).output
    return found


def whole_round(members: list[Member]) -> int | None:
    """A round that has every member's update whole: nobody was late, as may happen where a machine is busy."""
    told = zip(*(member.outcomes for member in members), strict=False)
    whole = (all(one.named is not None and all(one.named) for one in outcomes) for outcomes in told)
    return next((number for number, is_whole in enumerate(whole) if is_whole), None)


async def test_six_members_in_three_groups_get_one_exact_result(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(*range(1, MEMBERS + 1))
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 2)
    await until(lambda: whole_round(members) is not None)
    number = whole_round(members)
    assert number is not None
    for outcomes in zip(*(member.outcomes for member in members), strict=False):
        assert len({(outcome.lineage, outcome.result) for outcome in outcomes}) == 1
    assert members[0].outcomes[number].result == reduced_directly(members[0], number)
    kinds = {note["kind"] for member in members for note in member.diary.notes}
    assert not kinds & {"wrong-part", "refused-column", "evidence", "impossible-decision"}
    assert {member.score(other.identity.peer) for member in members for other in members} == {100}


async def test_who_reduces_a_part_to_something_else_is_caught_by_audits(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(*range(1, MEMBERS + 1))
    for member in members:
        nursery.start_soon(member.take_part)
    await until(lambda: all(member.peer is not None for member in members))
    liar, honest = members[0], members[1:]
    assert liar.peer is not None
    bulk = liar.peer.bulk
    reduce_pieces = bulk.reduce_pieces

    async def lie(
        exchange: ev.Exchange, part: Part, pieces: Mapping[PeerId, Piece]
    ) -> tuple[bytes, tuple[int, ...], bytes] | None:
        """Say that it is of all slices, and give what comes of one."""
        done = await reduce_pieces(exchange, part, pieces)
        other = await reduce_pieces(exchange, part, dict(list(pieces.items())[:1]))
        return (other[0], done[1], done[2]) if done is not None and other is not None else None

    bulk.reduce_pieces = lie  # type: ignore[method-assign]

    def caught() -> set[str]:
        notes = [note for member in honest for note in member.diary.notes if note["kind"] == "wrong-part"]
        return {name for note in notes for name in note["peers"]}

    await until(lambda: bool(caught()))
    assert caught() == {peer_id_text(liar.identity.peer)}


async def test_who_was_away_catches_up_and_all_have_the_same_results(world: World, nursery: trio.Nursery) -> None:
    members = await world.members(*range(1, MEMBERS + 1))
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 1)
    gone = members[-1]
    await gone.stop()
    gone.host.drop_connections()
    before = len(gone.outcomes)
    await decided(members[:-1], before + 2)
    back = Member(world, MEMBERS, gone.host, gone.links, gone.inbox)
    nursery.start_soon(back.take_part)
    await until(lambda: back.peer is not None)
    gone.peer = back.peer  # whom its links ask what gossip brings
    for member in members[:-1]:
        await back.meet(member)
    await until(lambda: any(outcome.named for outcome in back.outcomes))  # and takes part again
    await decided(members[:-1], back.outcomes[-1].round_id + 1)
    found = {outcome.round_id: outcome for outcome in members[0].outcomes}
    assert back.outcomes[0].round_id == before
    for outcome in (one for one in back.outcomes if one.round_id in found):
        assert (outcome.lineage, outcome.result) == (found[outcome.round_id].lineage, found[outcome.round_id].result)
    assert members[0].ledger is not None
    kinds = set()
    for entry in members[0].ledger.entries(before, before + 2):
        outcome = decode_value(entry.outcome)
        if isinstance(outcome, WideOutcome):
            groups, columns = split_listings(outcome, entry.commits)
            kinds.add((len(groups), len(columns[0].items)))
    assert (3, 2) in kinds  # six were expected, and five came: they exchanged in two groups


async def test_a_ledger_leads_back_to_the_state_and_to_what_the_learner_was_told(
    world: World, nursery: trio.Nursery
) -> None:
    members = await world.members(*range(1, MEMBERS + 1))
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 3)
    for member in members:
        await member.stop()
    genesis = SwarmState.genesis(world.swarm, world.manifest.message, volume_of(world.manifest.message))
    with Ledger(world.folder / "1" / "ledger.db", world.swarm, genesis.lineage, keep_results=4) as ledger:
        history = History(world.swarm, world.manifest.message, ledger)
        assert history.state.round == len(ledger) >= 3
        assert history.state.lineage == ledger.lineage()
        live = {outcome.round_id: outcome for outcome in members[0].outcomes}
        told = list(history.outcomes(members[0].identity.peer, len(ledger) - 2, len(ledger)))
        assert any(outcome.named for outcome in told)
        assert all(outcome == live.get(outcome.round_id, outcome) for outcome in told)
        with Ledger(world.folder / "new" / "ledger.db", world.swarm, genesis.lineage) as empty:
            joiner = History(world.swarm, world.manifest.message, empty)
            joiner._take(decode((Decisions,), history._page(0)).decisions)
            assert joiner.state == history.state
            assert [entry.leaf() for entry in empty.entries(0, 99)] == [entry.leaf() for entry in ledger.entries(0, 99)]
            assert [entry.roots for entry in empty.entries(0, 99)] == [entry.roots for entry in ledger.entries(0, 99)]
        commits = ledger.entries(1, 2)[0].commits
        ledger._db.execute("UPDATE entries SET commits = ? WHERE round = 2", (_pack(list(commits)),))
        ledger._db.execute("UPDATE nodes SET hash = ? WHERE level = 0 AND position = 2", (leaf(ledger, commits),))
        with pytest.raises(P2pnetError, match="round 2 is not what was decided"):
            replay(genesis, ledger)


async def test_who_was_stopped_with_a_result_in_its_hands_takes_it_up_again(
    world: World, nursery: trio.Nursery
) -> None:
    members = await world.members(*range(1, MEMBERS + 1))
    for member in members:
        nursery.start_soon(member.take_part)
    await decided(members, 2)
    for member in members:
        await member.stop()
    genesis = SwarmState.genesis(world.swarm, world.manifest.message, volume_of(world.manifest.message))
    with Ledger(world.folder / "1" / "ledger.db", world.swarm, genesis.lineage, keep_results=4) as ledger:
        first, second = ledger.entries(0, 2)
        parts = {root: ledger.part(1, root) or b"" for root in second.roots}
    world.folder = world.folder / "again"
    value = outcome_digest(second.outcome)
    with Ledger(world.folder / "1" / "ledger.db", world.swarm, genesis.lineage, keep_results=4) as ledger:
        ledger.append(first)
        ledger.hold(Held(1, value, second.outcome, second.commits, second.roots), parts)
    one = members[0]
    again = Member(world, 1, one.host, one.links, one.inbox)
    nursery.start_soon(again.take_part)
    await until(lambda: again.peer is not None)
    assert again.peer is not None
    round_ = again.peer.rounds.round
    assert (round_.state.round, round_.state.lineage) == (1, first.lineage)
    candidate = round_.candidates.found[value]
    assert candidate.checked
    assert round_.candidates.missing(candidate) == []
    asked = GetColumn(world.swarm, 1, candidate.roots[0])  # and gives it to who lacks it
    raw = await members[1].host.request(one.host.peer, PROTOCOL, encode(asked), 5.0, 1 << 20)
    assert listing_digest(decode((Listing,), raw).items) == candidate.roots[0]


def leaf(ledger: Ledger, commits: tuple[bytes, ...]) -> bytes:
    """What the log's tree would have of round 2 with these commits."""
    outcome = ledger._db.execute("SELECT outcome FROM entries WHERE round = 2").fetchone()[0]
    return leaf_hash(_pack([2, outcome, list(commits)]))
