"""Join in mid-run, come back after long, come back from an old copy: whole members over a network in memory."""

from __future__ import annotations

from pathlib import Path

from p2pnet.errors import BehindError
from p2pnet.net.memory import Link
from tests.node.living import EVERY, Living, open_place
from tests.node.members import until


def agree(*members: Living) -> set[int]:
    """All have the same parameters after each round that they all saw; returns those rounds."""
    common = set.intersection(*(set(member.states) for member in members))
    assert all(len({member.states[number] for member in members}) == 1 for number in common)
    return common


async def test_a_late_joiner_starts_from_a_members_state_and_contributes_within_two_rounds(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        founders = await place.started(1, 2)
        for founder in founders:
            await founder.reach(3 * EVERY)
        (late,) = await place.started(3, seed=9)
        await until(lambda: bool(late.credited()), 30)
        start = late.ready()
        assert start >= 3 * EVERY
        assert late.credited()[0] <= start + 2
        await late.reach(start + 4)
        assert len(agree(late, *founders)) >= 3
        texts = late.texts()
        assert any(text.startswith("state before round ") and text.endswith(" bytes") for text in texts)
        assert not any(text.startswith("catching up: round 1 of") for text in texts)


async def test_who_was_away_for_longer_than_results_are_kept_goes_on_from_a_later_state(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(3)
        away = members[2]
        await away.stop()
        left = away.reports[-1].round
        await members[0].reach(left + 3 * EVERY)
        before = len(away.said)
        await away.start()
        await until(lambda: bool(away.credited(left + 3 * EVERY)), 30)
        await members[0].reach(away.credited(left + 3 * EVERY)[0] + 1)
        assert any(text.startswith("state before round ") for text in away.texts(before))
        agree(*members)


async def test_who_stands_still_for_too_long_is_told_to_join_again_and_then_catches_up(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(2)
        asleep, others = members[2], members[:2]
        for other in others:
            place.network.set_link(asleep.peer, other.peer, Link(partitioned=True))
            place.network.find(other.peer)._drop(asleep.peer)
        await others[0].reach(asleep.reports[-1].round + 4 * EVERY)
        for other in others:
            place.network.set_link(asleep.peer, other.peer, Link())
        await until(lambda: asleep.error is not None, 30)
        assert isinstance(asleep.error, BehindError)
        assert "join again with the same state_dir" in str(asleep.error)
        await until(lambda: not asleep.running)
        await asleep.start()
        start = others[0].reports[-1].round
        await until(lambda: bool(asleep.credited(start)), 30)
        await others[0].reach(asleep.credited(start)[0] + 1)
        agree(*members)


async def test_who_was_away_for_longer_than_results_are_kept_goes_on_from_a_later_state(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(3)
        away = members[2]
        await away.stop()
        left = away.reports[-1].round
        await members[0].reach(left + 3 * EVERY)
        before = len(away.said)
        await away.start()
        await until(lambda: bool(away.credited(left + 3 * EVERY)), 30)
        await members[0].reach(away.credited(left + 3 * EVERY)[0] + 1)
        assert any(text.startswith("state before round ") for text in away.texts(before))
        agree(*members)


async def test_who_stands_still_for_too_long_is_told_to_join_again_and_then_catches_up(tmp_path: Path) -> None:
    async with open_place(tmp_path) as place:
        members = await place.started(1, 2, 3)
        for member in members:
            await member.reach(2)
        asleep, others = members[2], members[:2]
        for other in others:
            place.network.set_link(asleep.peer, other.peer, Link(partitioned=True))
            place.network.find(other.peer)._drop(asleep.peer)
        await others[0].reach(asleep.reports[-1].round + 4 * EVERY)
        for other in others:
            place.network.set_link(asleep.peer, other.peer, Link())
        await until(lambda: asleep.error is not None, 30)
        assert isinstance(asleep.error, BehindError)
        assert "join again with the same state_dir" in str(asleep.error)
        await until(lambda: not asleep.running)
        await asleep.start()
        start = others[0].reports[-1].round
        await until(lambda: bool(asleep.credited(start)), 30)
        await others[0].reach(asleep.credited(start)[0] + 1)
        agree(*members)
