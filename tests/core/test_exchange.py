from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.events import Effect, Exchange, Gather, Reduce, ReduceDone, Scatter
from p2pnet.core.exchange import LATE_BACKUP, LATE_REDUCE, RosterExchange
from p2pnet.core.parts import Piece
from p2pnet.identity import PeerId
from p2pnet.wire.round import Reduced, Roster
from p2pnet.wire.signing import Signed
from tests.core.voters import commit, genesis, peer, peers, signed

STATE = genesis(4)
VOTERS = peers(4)
COMMITS = tuple(commit(STATE, each) for each in VOTERS)
ROSTER = signed(Roster(STATE.swarm, 0, 0, STATE.lineage, tuple(each.raw for each in COMMITS)), STATE.proposer(0))
PARTS = STATE.parts(COMMITS, 0)
PART = PARTS[0]
NOBODY: frozenset[PeerId] = frozenset()


def exchange(me: PeerId) -> RosterExchange:
    return RosterExchange(me, ROSTER, COMMITS, PARTS, (8,) * 4, 1.0, 0.0)


def reduced(author: PeerId, **changed: object) -> Signed[Reduced]:
    message = Reduced(
        STATE.swarm, 0, 0, PART.index, PART.start, PART.stop, ROSTER.message.digest(), (257,) * 4, b"r" * 32, b"n" * 32
    )
    return signed(replace(message, **changed), author)  # type: ignore[arg-type]


def of_kind(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def outsider() -> PeerId:
    return next(each for each in VOTERS if each not in (PART.reducer, PART.backup))


def test_each_contributor_sends_each_reducer_its_slice_and_who_holds_no_payload_sends_none() -> None:
    effects = exchange(VOTERS[0]).begin(True)
    assert isinstance(effects[0], Exchange)
    assert [effect.to for effect in effects[1:] if isinstance(effect, Scatter)] == [part.reducer for part in PARTS]
    assert of_kind(exchange(VOTERS[0]).begin(False), Scatter) == []


def test_a_reducer_reduces_when_all_are_here_or_gone() -> None:
    mine = exchange(PART.reducer)
    mine.begin(True)
    for each in VOTERS[:2]:
        assert mine.arrived(PART.index, each, NOBODY) == []
    assert mine.arrived(PART.index, VOTERS[2], frozenset(VOTERS[3:])) == [Reduce(0, 0, PART, frozenset(VOTERS[:3]))]
    assert mine.arrived(PART.index, VOTERS[3], NOBODY) == []


def test_a_reducer_does_not_wait_for_who_rests() -> None:
    mine = RosterExchange(PART.reducer, ROSTER, COMMITS, PARTS, (8,) * 4, 1.0, 0.0, frozenset(VOTERS[3:]))
    mine.begin(True)
    for each in VOTERS[:2]:
        assert mine.arrived(PART.index, each, NOBODY) == []
    assert mine.arrived(PART.index, VOTERS[2], NOBODY) == [Reduce(0, 0, PART, frozenset(VOTERS[:3]))]


def test_a_reducer_stops_waiting_at_the_deadline_and_the_backup_later() -> None:
    for me, late in ((PART.reducer, LATE_REDUCE), (PART.backup, LATE_BACKUP)):
        mine = exchange(me)
        mine.begin(True)
        mine.arrived(PART.index, VOTERS[0], NOBODY)
        assert of_kind(mine.tick(late - 0.01, NOBODY), Reduce) == []
        assert Reduce(0, 0, PART, frozenset(VOTERS[:1])) in mine.tick(late, NOBODY)


def test_a_backup_does_not_wait_for_the_slice_of_a_reducer_that_is_late() -> None:
    mine, others = exchange(PART.backup), [each for each in VOTERS if each != PART.reducer]
    mine.begin(True)
    for each in others[:2]:
        mine.arrived(PART.index, each, NOBODY)
    mine.tick(LATE_REDUCE, NOBODY)
    assert mine.arrived(PART.index, others[2], NOBODY) == [Reduce(0, 0, PART, frozenset(others))]


def test_before_the_deadline_a_backup_waits_for_everybody() -> None:
    mine = exchange(PART.backup)
    mine.begin(True)
    for each in VOTERS:
        if each != PART.reducer:
            assert mine.arrived(PART.index, each, NOBODY) == []
    assert mine.arrived(PART.index, PART.reducer, NOBODY) == [Reduce(0, 0, PART, frozenset(VOTERS))]


def test_what_a_reducer_lacks_are_slices_of_those_that_are_there_and_what_others_lack_are_digests() -> None:
    mine = exchange(PART.reducer)
    mine.begin(True)
    assert mine.lacking(NOBODY) == (4, 4)
    mine.arrived(PART.index, PART.reducer, NOBODY)
    assert mine.lacking(NOBODY) == (3, 4)
    assert mine.lacking(frozenset([PART.backup])) == (2, 3)
    alone = RosterExchange(peer(99), ROSTER, COMMITS, PARTS, (8,) * 4, 1.0, 0.0)
    assert alone.lacking(NOBODY) == (len(PARTS), len(PARTS))
    alone.add(reduced(PART.backup), held=True)
    assert alone.lacking(NOBODY) == (len(PARTS) - 1, len(PARTS))


def test_contributors_turn_to_the_backup_when_a_reducer_is_late_or_cannot_be_reached() -> None:
    mine = exchange(outsider())
    mine.begin(True)
    assert Scatter(0, 0, PART, PART.backup) in mine.tick(LATE_REDUCE, NOBODY)
    mine = exchange(outsider())
    mine.begin(True)
    assert mine.scatter_failed(PART.index, PART.reducer) == [Scatter(0, 0, PART, PART.backup)]
    assert mine.scatter_failed(PART.index, PART.reducer) == []


def test_a_result_that_a_broken_stream_did_not_bring_is_fetched() -> None:
    mine = exchange(outsider())
    mine.begin(True)
    found = reduced(PART.reducer)
    assert mine.add(found, held=False) == []
    pieces = [Piece(found.message.root, PART, found.peer)]
    assert mine.expected(pieces) == {b"r" * 32}
    effects = mine.scatter_failed(PART.index, PART.reducer)
    assert isinstance(effects[0], Gather)
    assert mine.expected(pieces) == set()


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        ({"roster": b"?" * 32}, "R30"),
        ({"view": 1}, "R30"),
        ({"part": 63}, "R30"),
        ({"inputs": (257,) * 3}, "R32"),
        ({"inputs": (0,) * 4}, "R32"),
    ],
)
def test_a_digest_of_something_else_is_not_counted(lie: dict[str, object], rule: str) -> None:
    assert exchange(VOTERS[0]).judge(reduced(PART.reducer, **lie)) == f"round-1/{rule}"


def test_a_digest_by_somebody_else_is_not_counted() -> None:
    assert exchange(VOTERS[0]).judge(reduced(outsider())) == "round-1/R31"
    assert exchange(VOTERS[0]).judge(reduced(peer(99))) == "round-1/R31"


def test_the_result_takes_the_reducers_digest_before_its_backups() -> None:
    mine = exchange(VOTERS[0])
    for part in PARTS:
        for author in (part.backup, part.reducer):
            assert mine.result() is None or author == part.reducer
            mine.add(reduced(author, part=part.index), held=True)
    found = mine.result()
    assert found is not None
    assert [each.peer for each in found] == [part.reducer for part in PARTS]


def test_slices_of_strangers_and_of_parts_that_do_not_exist_change_nothing() -> None:
    mine = exchange(PART.reducer)
    mine.begin(True)
    assert mine.arrived(99, VOTERS[0], NOBODY) == mine.arrived(-1, VOTERS[0], NOBODY) == []
    assert mine.arrived(PART.index, peer(99), NOBODY) == []
    assert mine.tick(LATE_REDUCE, NOBODY) == [] or not of_kind(mine.tick(LATE_REDUCE, NOBODY), Reduce)
    assert mine.answer(ReduceDone(0, 0, PART.index, (257,) * 4, b"r" * 32, b"n" * 32), reduced(PART.reducer))
