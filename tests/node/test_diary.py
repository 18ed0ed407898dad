"""Times, counts and notes of the rounds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from p2pnet.core import events as ev
from p2pnet.node.diary import NOTES_MAX, Diary, _json_number
from tests.node.members import identity


@dataclass
class State:
    """As much of a SwarmState as a diary reads."""

    lineage: bytes = b"\5" * 32


@dataclass
class Decision:
    commits: tuple[bytes, ...] = (b"a", b"b")


def decide(number: int, accepted: tuple[bool, ...] = (True, False), void: bool = False) -> ev.Decide:
    return ev.Decide(number, Decision(), void, (), (), accepted, State())  # type: ignore[arg-type]


def test_a_round_is_told_with_its_times() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    diary = Diary(lambda kind, fields: told.append((kind, fields)))
    diary.training(10.0)
    diary.trained(2.5, 13.0)
    diary.decided(decide(0), 14.0)  # the last commit came a second after mine
    diary.applied(0, 2.5, 14.5)
    times = diary.rounds[0]
    assert (times.train_s, times.straggler_wait_s, times.exchange_s) == pytest.approx((3.0, 1.0, 0.5))
    assert (times.mine, times.void, times.members) == (True, False, 2)
    assert (diary.sealed, diary.void, diary.credited) == (1, 0, 1)
    assert diary.lineage == b"\5" * 32
    [(kind, fields)] = told
    assert kind == "round"
    assert fields["lineage"] == "05" * 32


def test_a_round_without_an_update_of_ours_spoils_no_sum() -> None:
    diary = Diary()
    diary.training(1.0)
    diary.decided(decide(0, accepted=(False,), void=True), None)
    diary.applied(0, math.nan, 4.0)
    assert (diary.sealed, diary.void, diary.credited) == (0, 1, 0)
    assert (diary.train_s, diary.exchange_s, diary.straggler_wait_s) == (0.0, 0.0, 0.0)
    assert math.isnan(diary.loss_first)


def test_what_is_applied_and_was_not_decided_here_is_not_counted() -> None:
    diary = Diary()
    diary.applied(3, 1.0, 1.0)
    diary.decided(decide(5), 1.0)
    diary.applied(4, 1.0, 1.0)
    assert not diary.rounds
    diary.applied(5, 1.0, 2.0)
    assert len(diary.rounds) == 1


def test_notes_are_the_latest_ones_and_name_peers_as_people_do() -> None:
    told: list[dict[str, Any]] = []
    diary = Diary(lambda _kind, fields: told.append(fields))
    for number in range(NOTES_MAX + 10):
        diary.note(ev.Note(number, "stalled", "who is missing", (identity(1).peer,)))
    assert len(diary.notes) == NOTES_MAX
    assert len(told) == NOTES_MAX + 10
    assert diary.notes[-1]["round"] == NOTES_MAX + 9
    assert diary.notes[-1]["peers"][0].startswith("12D3Koo")
    json.dumps(list(diary.notes))


def test_the_first_and_the_last_loss_are_kept() -> None:
    diary = Diary()
    for loss in (5.0, 4.0, 3.0):
        diary.trained(loss, 0.0)
    assert (diary.loss_first, diary.loss_last) == (5.0, 3.0)


def test_a_loss_that_is_not_known_replaces_none_that_is() -> None:
    diary = Diary()
    for loss in (math.nan, 3.0, math.nan):  # sent again after a restart: trained by a process that is gone
        diary.trained(loss, 0.0)
    assert (diary.loss_first, diary.loss_last) == (3.0, 3.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(value: float) -> None:
    assert _json_number(value) is None
    assert _json_number(1.5) == 1.5
