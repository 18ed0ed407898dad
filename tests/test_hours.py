from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.hours import Hours

NIGHT = Hours.parse("22-07")
BERLIN = ZoneInfo("Europe/Berlin")
MINUTES = st.integers(0, 24 * 60 - 1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-22 {text}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("22-07", "22:00-07:00"), ("9-17:30", "09:00-17:30"), (" 0-6 ", "00:00-06:00"), ("18-24", "18:00-00:00")],
)
def test_hours_are_read_as_people_write_them(text: str, shown: str) -> None:
    assert str(Hours.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "22", "22-", "7-7", "0-24", "25-3", "22:60-7", "22-07 UTC", "-1-5", "24:30-2"])
def test_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Hours.parse(text)


@pytest.mark.parametrize(
    ("moment", "within"),
    [("21:59:59", False), ("22:00", True), ("23:59:59", True), ("00:00", True), ("06:59:59", True), ("07:00", False)],
)
def test_hours_over_midnight_begin_with_their_first_minute_and_end_before_their_last(moment: str, within: bool) -> None:
    assert NIGHT.include(at(moment)) is within


@given(MINUTES, MINUTES, MINUTES)
def test_a_moment_is_in_the_hours_or_in_those_that_are_left(start: int, stop: int, moment: int) -> None:
    if start == stop:
        return

    def clock(minutes: int) -> str:
        return f"{minutes // 60}:{minutes % 60:02}"

    now = at("00:00") + timedelta(minutes=moment)
    inside = Hours.parse(f"{clock(start)}-{clock(stop)}")
    outside = Hours.parse(f"{clock(stop)}-{clock(start)}")
    assert inside.include(now) is not outside.include(now)
    assert inside.next_start(now) > now
    assert inside.include(inside.next_start(now))


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])  # the clocks go forward, and back
def test_a_night_of_the_changing_clocks_begins_and_ends_when_the_clock_on_the_wall_says_so(day: str) -> None:
    midnight = datetime.fromisoformat(f"{day} 00:00").replace(tzinfo=BERLIN).astimezone(UTC)
    for quarter in range(25 * 4):  # real time goes on evenly
        wall = (midnight + timedelta(minutes=15 * quarter)).astimezone(BERLIN)
        assert NIGHT.include(wall) is (wall.hour >= 22 or wall.hour < 7)


def test_the_next_beginning_is_today_or_tomorrow() -> None:
    assert NIGHT.next_start(at("12:00")) == at("22:00")
    assert NIGHT.next_start(at("22:00")) == at("22:00") + timedelta(days=1)
