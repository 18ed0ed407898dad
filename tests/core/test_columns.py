from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnet.core.columns import (
    Plan,
    bound_weights,
    judge_column,
    judge_reduced,
    missing_of,
    plan_columns,
    row_of,
    rows_root,
    taken_masks,
)
from p2pnet.core.shares import Volume
from p2pnet.errors import WireError
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import WideReduced
from p2pnet.wire.signing import Signed
from tests.core.test_groups import swarm
from tests.core.voters import commit, signed

ROSTER = b"r" * 32


def plan_of(members: int, size: int, leaves: int = 40, private: int = 0, rates: tuple[int, ...] = ()) -> Plan:
    state = replace(swarm(members, 3, size), volume=Volume(leaves, 1312, 2592), members={})
    who = sorted(swarm(members, 3, size).members)
    said = {
        peer: {
            "reach": int(Reach.PRIVATE if place < private else Reach.PUBLIC),
            "up_kbps": rates[place % len(rates)] if rates else 0,
        }
        for place, peer in enumerate(who)
    }
    return plan_columns(state, ROSTER, tuple(commit(state, peer, **said[peer]) for peer in who), 0)


def reduced(plan: Plan, number: int, rows: tuple[bytes, ...] = (), **changed: object) -> Signed[WideReduced]:
    part = plan.parts[number]
    assert part is not None
    inputs = rows_root(rows) if rows else b"i" * 32
    message = WideReduced(
        plan.swarm, plan.round, plan.view, number, part.start, part.stop, ROSTER, inputs,
        missing_of(plan, rows) if rows else b"", b"o" * 32, b"n" * 32,
    )  # fmt: skip
    return signed(replace(message, **changed), part.reducer)  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    members=st.integers(2, 70), size=st.integers(2, 12), leaves=st.integers(1, 300), private=st.integers(0, 70),
    rates=st.lists(st.integers(0, 10**7), max_size=5),
)  # fmt: skip
def test_parts_cover_every_leaf_once_and_each_column_has_one_collector_in_each_group(
    members: int, size: int, leaves: int, private: int, rates: list[int]
) -> None:
    plan = plan_of(members, size, leaves, private, tuple(rates))
    assert sorted(peer for group in plan.groups for peer in group) == [each.peer for each in plan.commits]
    covered = [leaf for part in plan.parts if part for leaf in range(part.start, part.stop)]
    assert covered == list(range(leaves))
    for number, part in enumerate(plan.parts):
        if part is not None:
            column, group = divmod(number, len(plan.groups))
            assert part.index == number
            assert part.reducer == plan.columns[group][column].reducer == plan.groups[group][column]
            assert part.backup in plan.groups[group] or len(plan.columns[0]) == 1
    for columns in plan.columns:
        assert [part.index for part in columns] == list(range(len(columns)))
        assert [(part.start, part.stop) for part in columns] == [(part.start, part.stop) for part in plan.columns[0]]
        assert len({part.reducer for part in columns}) == len(columns)
    assert {peer: plan.group_of(peer) for peer in plan.places} == {
        peer: group for peer, (group, _) in plan.places.items()
    }


@given(weights=st.lists(st.integers(1, 8), min_size=2, max_size=200), most=st.integers(0, 1000))
def test_weights_that_sum_to_too_much_come_closer_together_and_keep_their_order(weights: list[int], most: int) -> None:
    bound = bound_weights(weights, most)
    assert min(bound) >= 1
    assert all(1 <= one <= weight for one, weight in zip(bound, weights, strict=True))
    assert sorted(bound) == [one for _, one in sorted(zip(weights, bound, strict=True))]
    if not most or sum(weights) <= most:
        assert list(bound) == weights
    else:
        assert sum(bound) <= max(most, len(weights))


def test_the_members_of_a_column_have_lines_of_like_rates_and_slow_ones_get_less() -> None:
    plan = plan_of(24, 6, leaves=1000, rates=(100_000, 100_000, 10_000))
    rates = {each.peer: each.message.up_kbps for each in plan.commits}
    seen = [{rates[columns[number].reducer] for columns in plan.columns} for number in range(len(plan.columns[0]))]
    assert sum(len(found) > 1 for found in seen) <= 1
    lengths = [part.stop - part.start for part in plan.columns[0]]
    assert lengths == sorted(lengths, reverse=True)


def test_who_cannot_be_dialled_reduces_nothing_while_there_are_enough_others() -> None:
    plan = plan_of(24, 6, private=10)
    hidden = {each.peer for each in plan.commits if each.message.reach == Reach.PRIVATE}
    assert not hidden & {part.reducer for part in plan.parts if part}


def test_everybody_computes_the_same_object_once() -> None:
    state = swarm(24, 3, 6)
    commits = tuple(commit(replace(state, members={}), peer) for peer in sorted(state.members))
    assert plan_columns(state, ROSTER, commits, 1) is plan_columns(state, ROSTER, commits, 1)
    assert plan_columns(state, ROSTER, commits, 2) is not plan_columns(state, ROSTER, commits, 1)


@pytest.mark.parametrize(
    ("lie", "rule"),
    [({"roster": b"?" * 32}, "R20"), ({"view": 3}, "R20"), ({"start": 99}, "R20"), ({"part": 65_535}, "R20")],
)
def test_a_digest_of_another_part_is_refused(lie: dict[str, object], rule: str) -> None:
    plan = plan_of(12, 4)
    assert judge_reduced(plan, reduced(plan, 1)) is None
    assert judge_reduced(plan, reduced(plan, 1, **lie)) == f"groups-1/{rule}"


def test_a_digest_by_somebody_else_is_refused_and_the_backups_is_not() -> None:
    plan = plan_of(12, 4)
    part = plan.parts[1]
    assert part is not None
    own = reduced(plan, 1)
    assert judge_reduced(plan, signed(own.message, part.backup)) is None
    stranger = next(peer for peer in plan.places if peer not in (part.reducer, part.backup))
    assert judge_reduced(plan, signed(own.message, stranger)) == "groups-1/R21"


def test_a_column_may_have_void_parts_and_no_others() -> None:
    plan = plan_of(12, 4)
    count = len(plan.groups)
    listing = tuple(reduced(plan, number).raw for number in range(count))
    column = judge_column(plan, 0, listing, fake_verify)
    assert column is judge_column(plan, 0, listing, fake_verify)
    holed = judge_column(plan, 0, (b"", *listing[1:]), fake_verify)
    assert holed.reduced[0] is None
    assert holed.digest != column.digest
    for wrong in (listing[1:], listing[::-1], (b"?", *listing[1:])):
        with pytest.raises(WireError):
            judge_column(plan, 0, wrong, fake_verify)
    with pytest.raises(WireError):
        judge_column(plan, 1, listing, fake_verify)


def test_a_signed_digest_says_which_members_are_missing_from_a_part() -> None:
    plan = plan_of(13, 4)
    group, members = 1, plan.groups[1]
    late = members[2]
    full = tuple(row_of(each, dict.fromkeys(each, 257)) for each in plan.groups)
    holed = tuple(row_of(each, {peer: 257 for peer in each if peer != late}) for each in plan.groups)
    parts = range(len(plan.groups))
    listing = tuple(reduced(plan, number, holed if number == 2 else full).raw for number in parts)
    column = judge_column(plan, 0, listing, fake_verify)
    whole = (1 << len(parts)) - 1
    masks = taken_masks(plan, column, group)
    assert masks == tuple(whole & ~(1 << 2) if peer == late else whole for peer in members)
    for other in set(parts) - {group}:
        assert taken_masks(plan, column, other) == (whole,) * len(plan.groups[other])


@given(missing=st.sets(st.integers(0, 12), max_size=12))
def test_who_is_missing_is_written_as_a_bit_for_each_member_group_by_group(missing: set[int]) -> None:
    plan = plan_of(13, 4)
    order = [peer for group in plan.groups for peer in group]
    here = {peer: 257 for number, peer in enumerate(order) if number not in missing}
    rows = tuple(row_of(group, here) for group in plan.groups)
    told = missing_of(plan, rows)
    bits = "".join(f"{byte:08b}" for byte in told)
    assert {number for number, bit in enumerate(bits) if bit == "1"} == missing
    assert judge_reduced(plan, reduced(plan, 0, rows)) is None


@pytest.mark.parametrize("missing", [b"\x80\x00", b"\x00\x04", b"\x80\x00\x01", b"\xff\xf8"])
def test_who_is_missing_is_of_the_roster_and_never_all_and_written_one_way(missing: bytes) -> None:
    plan = plan_of(13, 4)
    assert judge_reduced(plan, reduced(plan, 0, missing=b"\xff\xf0")) is None
    assert judge_reduced(plan, reduced(plan, 0, missing=missing)) == "groups-1/R22"
