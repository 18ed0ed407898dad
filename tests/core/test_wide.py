from __future__ import annotations

import pytest

from p2pnet.core.columns import Plan, judge_column, row_of
from p2pnet.core.events import Answer, Effect, Exchange, Scatter
from p2pnet.core.group_events import Forward, Give, PartReduced, PartReturned, ReducePart
from p2pnet.core.stages import ELSEWHERE_AT, FORWARD_AT, GIVE_AT, LATE_COLUMN, PATIENCE, PROPOSE_AT, REDUCE_AT, TURN_AT
from p2pnet.core.wide import BESIDE, WideExchange
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.round import WideRoster
from tests.core.test_columns import ROSTER, plan_of, reduced
from tests.core.voters import peer, signed

PLAN = plan_of(12, 4)
GROUP = 1
MEMBERS = PLAN.groups[GROUP]
COLUMN = PLAN.columns[GROUP][0]
COUNT = len(PLAN.groups)
NOBODY: frozenset[PeerId] = frozenset()
FULL = tuple(row_of(group, dict.fromkeys(group, 257)) for group in PLAN.groups)


def exchange(me: PeerId, plan: Plan = PLAN, contribute: bool = True) -> WideExchange:
    roster = signed(WideRoster(plan.swarm, plan.round, 0, b"l" * 32, (ROSTER, b"")), me)
    mine = WideExchange(me, roster, plan, 1.0, 0.0, fake_verify, 0.1)
    mine.begin(contribute)
    return mine


def of_kind(effects: list[Effect], kind: type) -> list:
    return [effect for effect in effects if isinstance(effect, kind)]


def collected(now_s: float = 0.0) -> WideExchange:
    """Who collects column 0 of its group, with all slices."""
    mine = exchange(COLUMN.reducer)
    for each in MEMBERS:
        mine.arrived(0, each, NOBODY, now_s)
    return mine


def returned(group: int, rows: tuple[bytes, ...] = FULL, author: PeerId | None = None) -> PartReturned:
    digest = reduced(PLAN, group, rows)
    found = digest if author is None else signed(digest.message, author)
    return PartReturned(PLAN.round, 0, found)


def given(mine: WideExchange, groups: range | list[int]) -> list[Effect]:
    return [effect for group in groups for effect in mine.returned(returned(group), 0.0)]


def test_each_member_sends_a_slice_of_each_column_to_its_own_group_and_begins_with_its_own_column() -> None:
    me = MEMBERS[1]
    roster = signed(WideRoster(PLAN.swarm, PLAN.round, 0, b"l" * 32, (ROSTER, b"")), me)
    mine = WideExchange(me, roster, PLAN, 1.0, 0.0, fake_verify, 0.1)
    effects = mine.begin(True)
    assert isinstance(effects[0], Exchange)
    scattered = of_kind(effects, Scatter)
    assert [effect.part.index for effect in scattered] == [1, 2, 0][: len(scattered)]
    assert {effect.to for effect in scattered} <= set(MEMBERS)
    assert not any(effect.listens for effect in scattered)


def test_who_has_no_payload_or_is_not_in_the_roster_waits_for_the_result_all_the_same() -> None:
    for me, contribute in ((MEMBERS[0], False), (peer(99), False)):
        roster = signed(WideRoster(PLAN.swarm, PLAN.round, 0, b"l" * 32, (ROSTER, b"")), me)
        effects = WideExchange(me, roster, PLAN, 1.0, 0.0, fake_verify, 0.1).begin(contribute)
        scattered = of_kind(effects, Scatter)
        assert len(scattered) == len(PLAN.columns[0])
        assert all(effect.listens for effect in scattered)


def test_a_bundle_goes_to_each_group_once_all_slices_of_mine_are_here_or_gone() -> None:
    mine = exchange(COLUMN.reducer)
    for each in MEMBERS[:-2]:
        assert mine.arrived(0, each, NOBODY, 0.0) == []
    effects = of_kind(mine.arrived(0, MEMBERS[-2], frozenset(MEMBERS[-1:]), 0.0), Forward)
    parts = PLAN.parts_of(0)
    assert {(effect.part, effect.to) for effect in effects} == {(part, part.reducer) for part in parts if part}
    assert all(effect.members == frozenset(MEMBERS[:-1]) and effect.group == GROUP for effect in effects)
    assert mine.arrived(0, MEMBERS[-1], NOBODY, 0.0) == []


def test_slices_of_another_group_or_of_strangers_are_not_bundled() -> None:
    mine = exchange(COLUMN.reducer)
    for each in (*PLAN.groups[0], peer(99)):
        mine.arrived(0, each, NOBODY, 0.0)
    [first, *_] = of_kind(mine.tick(FORWARD_AT, NOBODY), Forward)
    assert first.members == NOBODY
    assert mine.arrived(99, MEMBERS[0], NOBODY, 0.0) == mine.arrived(-1, MEMBERS[0], NOBODY, 0.0) == []


def test_once_most_slices_are_here_the_others_get_half_as_long_again() -> None:
    plan = plan_of(30, 11)
    column = plan.columns[0][0]
    mine, members = exchange(column.reducer, plan), plan.groups[0]
    for each in members[:-2]:
        mine.arrived(0, each, NOBODY, 0.2)
    due_s = mine.deadline_s()
    assert due_s is not None
    assert due_s == pytest.approx(PATIENCE * 0.2 + 0.05)
    assert due_s < FORWARD_AT
    assert of_kind(mine.tick(due_s - 0.01, NOBODY), Forward) == []
    assert {effect.members for effect in of_kind(mine.tick(due_s, NOBODY), Forward)} == {frozenset(members[:-2])}


def test_a_part_is_reduced_over_all_groups_and_late_ones_are_missing_openly() -> None:
    part = PLAN.parts[0]
    assert part is not None
    for late in (False, True):
        mine = exchange(part.reducer)
        effects: list[Effect] = []
        for group in range(COUNT - late):
            who = PLAN.columns[group][0].reducer
            effects += mine.reducing.bundled(0, group, who, frozenset(PLAN.groups[group]), 0.0)
        if late:
            assert effects == []
            effects = mine.tick(REDUCE_AT, NOBODY)
        [reduce] = of_kind(effects, ReducePart)
        wanted = [frozenset(group) for group in PLAN.groups]
        assert list(reduce.senders) == (wanted if not late else [*wanted[:-1], NOBODY])


def test_a_bundle_of_who_does_not_collect_or_of_others_members_is_not_taken() -> None:
    part = PLAN.parts[0]
    assert part is not None
    mine = exchange(part.reducer)
    collects = PLAN.columns[2][0].reducer
    stranger = next(each for each in PLAN.groups[2] if each not in (collects, PLAN.columns[2][0].backup))
    for number, group, who, members in (
        (0, 2, stranger, PLAN.groups[2]),
        (0, 2, collects, PLAN.groups[0]),
        (0, 99, collects, PLAN.groups[2]),
        (999, 2, collects, PLAN.groups[2]),
        (1, 2, collects, PLAN.groups[2]),
    ):
        assert mine.reducing.bundled(number, group, who, frozenset(members), 0.0) == []
    assert of_kind(mine.tick(REDUCE_AT, NOBODY), ReducePart) == []


def test_who_reduced_signs_the_rows_and_answers_every_bundle() -> None:
    part = PLAN.parts[0]
    assert part is not None
    mine = exchange(part.reducer)
    done = PartReduced(PLAN.round, 0, 0, FULL, b"o" * 32, b"n" * 32)
    message = mine.reducing.message(done)
    assert message == reduced(PLAN, 0, FULL).message
    own = signed(message, part.reducer)
    assert mine.reducing.answer(done, own) == [Answer(PLAN.round, 0, 0, b"o" * 32, own.raw)]


def test_a_column_goes_to_the_group_once_all_its_parts_are_back() -> None:
    mine = collected()
    assert given(mine, range(COUNT - 1)) == []
    [give] = of_kind(given(mine, [COUNT - 1]), Give)
    assert give.listing == tuple(reduced(PLAN, group, FULL).raw for group in range(COUNT))
    assert mine.columns[0].digest == give.digest
    assert mine.mask(mine.columns[0]) == (1 << COUNT) - 1


def test_a_part_by_somebody_else_or_of_nobody_is_not_taken() -> None:
    mine = collected()
    nobody = tuple(row_of(group, {}) for group in PLAN.groups)
    assert mine.returned(returned(0, nobody), 0.0) == []
    assert mine.returned(returned(0, author=peer(99)), 0.0) == []
    assert of_kind(given(mine, range(1, COUNT)), Give) == []


def test_a_broken_stream_is_tried_once_more_then_the_backup_then_the_part_is_void() -> None:
    mine = collected()
    part = PLAN.parts[0]
    assert part is not None
    given(mine, range(1, COUNT))
    [again] = of_kind(mine.forward_failed(0, part.reducer, 0.0), Forward)
    assert again.to == part.reducer
    [turned] = of_kind(mine.forward_failed(0, part.reducer, 0.0), Forward)
    assert turned.to == part.backup
    [give] = of_kind(mine.forward_failed(0, part.backup, 0.0), Give)
    assert give.listing[0] == b""
    assert all(give.listing[1:])
    assert mine.forward_failed(999, part.reducer, 0.0) == []


def test_bundles_turn_to_the_backups_of_late_parts_and_columns_go_out_without_them_at_last() -> None:
    mine = collected()
    late = PLAN.parts[0]
    assert late is not None
    given(mine, range(1, COUNT))
    turned = of_kind(mine.tick(TURN_AT, NOBODY), Forward)
    assert [(effect.part, effect.to) for effect in turned] == [(late, late.backup)]
    assert of_kind(mine.returned(returned(0, author=late.backup), 1.4), Give) != []
    other = collected()
    given(other, range(1, COUNT))
    [give] = of_kind(other.tick(GIVE_AT, NOBODY), Give)
    assert give.listing[0] == b""


def test_contributors_turn_to_the_backup_when_a_stream_breaks_and_elsewhere_when_a_column_is_late() -> None:
    me = MEMBERS[-1]
    mine = exchange(me)
    tries = [of_kind(mine.scatter_failed(0, to), Scatter) for to in (COLUMN.reducer, COLUMN.reducer)]
    assert [effect.to for effects in tries for effect in effects] == [COLUMN.reducer, COLUMN.backup]
    assert mine.scatter_failed(0, peer(99)) == []
    late = exchange(me)
    asked = of_kind(late.tick(LATE_COLUMN, NOBODY), Scatter)
    beside = PLAN.columns[(GROUP + 1) % COUNT]
    assert {(effect.part.index, effect.to) for effect in asked} == {(part.index, part.reducer) for part in beside}
    assert all(effect.listens for effect in asked)
    assert of_kind(late.tick(ELSEWHERE_AT, NOBODY), Scatter) != []
    assert BESIDE == 3


def test_there_is_a_result_once_all_columns_are_here_and_late_one_without_those_that_nobody_gave() -> None:
    me = MEMBERS[-1]
    mine = exchange(me)
    numbers = range(len(PLAN.columns[0]))
    listings = [tuple(reduced(PLAN, number * COUNT + group, FULL).raw for group in range(COUNT)) for number in numbers]
    columns = [judge_column(PLAN, number, listings[number], fake_verify) for number in numbers]
    assert mine.result() is None
    for column in columns[1:]:
        mine.show(column, 0.0)
    assert mine.result() is None
    mine.tick(PROPOSE_AT, NOBODY)
    found = mine.result()
    assert found is not None
    assert not any(found[0].listing)
    assert list(found[1:]) == columns[1:]
    mine.show(columns[0], 0.0)
    assert mine.result() == tuple(columns)
    assert mine.lacking(NOBODY)[0] in (0, len(MEMBERS))


def test_nobody_at_all_gave_anything_is_no_result() -> None:
    mine = exchange(MEMBERS[-1])
    mine.tick(PROPOSE_AT, NOBODY)
    assert mine.result() is None


def test_of_a_column_decided_otherwise_what_it_says_counts_as_taken() -> None:
    mine = exchange(MEMBERS[-1])
    listing = tuple(reduced(PLAN, group, FULL).raw for group in range(COUNT))
    shown = judge_column(PLAN, 0, listing, fake_verify)
    decided = judge_column(PLAN, 0, (b"", *listing[1:]), fake_verify)
    mine.show(shown, 0.0)
    assert mine.mask(decided) == mine.mask(shown) & ~1
