"""When a member is to be there: signals, commands, hours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from datetime import datetime

import pytest

from p2pnet.hours import Hours
from p2pnet.presence import Presence


def clock(*moments: str) -> Iterator[datetime]:
    return iter(datetime.fromisoformat(f"2026-11-22 {moment}") for moment in moments)


def test_a_signal_ends_the_process_while_there_is_nothing_to_save() -> None:
    with Presence(), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_later_a_signal_only_calls_the_member_back() -> None:
    called: list[str] = []
    with Presence() as presence, presence.here(lambda: called.append("back")):
        presence.defer()
        signal.raise_signal(signal.SIGINT)
        assert (presence.signal, called) == (signal.SIGINT, ["back"])
        assert presence.is_over


def test_a_signal_that_came_before_there_was_anything_to_save_ends_it_then() -> None:
    presence = Presence()
    presence.signal = signal.SIGINT
    with pytest.raises(SystemExit):
        presence.defer()


def test_the_former_handlers_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Presence():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_who_is_paused_is_called_back_and_waits_until_it_is_resumed() -> None:
    called: list[str] = []
    presence = Presence()
    with presence.here(lambda: called.append("back")):
        presence.pause()
    assert called == ["back"]
    threading.Timer(0.01, presence.resume).start()
    assert presence.wait() is True


def test_who_was_paused_before_it_was_there_is_called_back_at_once() -> None:
    called: list[str] = []
    presence = Presence()
    presence.pause()
    with presence.here(lambda: called.append("back")):
        assert called == ["back"]


def test_who_leaves_while_paused_is_never_waited_for_again() -> None:
    presence = Presence()
    presence.pause()
    threading.Timer(0.01, presence.leave).start()
    assert presence.wait() is False
    presence.resume()
    assert not presence.is_wanted


@pytest.mark.parametrize(
    ("moment", "until"), [("23:00", None), ("03:00", None), ("12:00", "22:00"), ("07:00", "22:00"), ("22:00", None)]
)
def test_outside_the_hours_nobody_is_wanted_until_they_begin(moment: str, until: str | None) -> None:
    now = next(clock(moment))
    presence = Presence(Hours.parse("22-07"), now=lambda: now)
    assert presence.paused_until == until
    assert presence.is_wanted is (until is None)


def test_hours_that_begin_tomorrow_say_so() -> None:
    now = next(clock("18:00"))
    assert Presence(Hours.parse("9-17"), now=lambda: now).paused_until == "09:00 tomorrow"


def test_resuming_outside_the_hours_waits_for_them() -> None:
    now = next(clock("12:00"))
    presence = Presence(Hours.parse("22-07"), now=lambda: now)
    presence.pause()
    presence.resume()
    assert not presence.is_wanted
    assert presence.describe() == {"paused": False, "paused_until": "22:00", "hours": "22:00-07:00"}
