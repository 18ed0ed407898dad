"""Times, counts and notes of the rounds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from p2pnet.core import events as ev
from p2pnet.node import bridge as br
from p2pnet.node.diary import NOTES_MAX, Diary, _json_number
from p2pnet.sim import POLICY
from p2pnet.wire.manifest import Policy
from tests.node.members import identity


@dataclass
class State:
    """As much of a SwarmState as a diary reads."""

    lineage: bytes = b"\5" * 32
    round: int = 0
    policy: Policy = POLICY


@dataclass
class Decision:
    commits: tuple[bytes, ...] = (b"a", b"b")


def update(loss: float) -> br.Submitted:
    return br.Submitted(0, bytes(820), None, 60, True, loss)  # type: ignore[arg-type]


def decide(number: int, accepted: tuple[bool, ...] = (True, False), void: bool = False) -> ev.Decide:
    return ev.Decide(number, Decision(), void, (), (), accepted, State())  # type: ignore[arg-type]


def test_a_round_is_told_with_its_times() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    diary = Diary(lambda kind, fields: told.append((kind, fields)))
    diary.training(10.0)
    diary.trained(update(2.5), 13.0)
    diary.decided(decide(0), 14.0, True, 1.0)  # the last commit came a second after mine
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
    diary.decided(decide(0, accepted=(False,), void=True), None, False, 1.0)
    diary.applied(0, math.nan, 4.0)
    assert (diary.sealed, diary.void, diary.credited) == (0, 1, 0)
    assert (diary.train_s, diary.exchange_s, diary.straggler_wait_s) == (0.0, 0.0, 0.0)
    assert math.isnan(diary.loss_first)


def test_what_is_applied_and_was_not_decided_here_is_not_counted() -> None:
    diary = Diary()
    diary.applied(3, 1.0, 1.0)
    diary.decided(decide(5), 1.0, True, 1.0)
    diary.applied(4, 1.0, 1.0)
    assert not diary.rounds
    diary.applied(5, 1.0, 2.0)
    assert len(diary.rounds) == 1


def test_a_round_that_was_decided_as_its_node_ended_is_told_when_there_is_one_again() -> None:
    told: list[int] = []
    diary = Diary(lambda _kind, fields: told.append(fields["round"]))
    diary.decided(decide(4), 1.0, True, 1.0)
    diary.state(State(round=5))
    diary.decided(decide(5), 2.0, True, 2.0)
    diary.applied(5, 1.0, 3.0)
    diary.state(State(round=6))
    assert told == [4, 5]
    assert [credit["round"] for credit in diary.credits] == [4, 5]  # none of them was decided while it was away


@pytest.mark.parametrize(
    ("accepted", "void", "trains", "listed", "credit"),
    [
        ((True, True), False, True, True, "credited"),
        ((True, False), False, True, True, "credited for 1 of 2 parts"),
        ((False, False), False, True, True, "not credited: my slices reached no reducer"),
        ((False, False), False, True, False, "not credited: my commit came after the roster"),
        ((False, False), False, False, False, "not credited: the others were done before"),
        ((), True, True, True, "void"),
    ],
)
def test_a_round_says_whether_it_has_my_update_and_why_not(
    accepted: tuple[bool, ...], void: bool, trains: bool, listed: bool, credit: str
) -> None:
    diary = Diary()
    diary.training(0.0)
    if trains:
        diary.trained(update(1.0), 1.0)
    diary.decided(decide(0, accepted, void), 1.0, listed, 1.0)
    diary.applied(0, 1.0, 2.0)
    assert diary.rounds[0].credit.startswith(credit)
    assert [one["credit"] for one in diary.credits] == [diary.rounds[0].credit]


def test_a_skipped_round_says_why_it_was_skipped() -> None:
    diary = Diary()
    diary.training(0.0)
    diary.note(ev.Note(0, "skipped", "NaN in the local model", (identity(1).peer,)))
    diary.decided(decide(0, (False,)), 1.0, False, 1.0)
    diary.applied(0, math.nan, 2.0)
    assert diary.rounds[0].credit == "not credited: skipped, NaN in the local model"


def test_rounds_that_were_decided_without_this_peer_are_counted() -> None:
    diary = Diary()
    diary.state(State(round=7))  # type: ignore[arg-type]
    diary.decided(decide(7), 1.0, True, 1.0)
    diary.applied(7, 1.0, 1.0)
    diary.state(State(round=8))  # type: ignore[arg-type]  # a pause within a round
    diary.state(State(round=10))  # type: ignore[arg-type]
    assert [(one["round"], one["credit"]) for one in diary.credits if "rounds" in one["credit"]] == [
        (6, "7 rounds were decided before this peer came"),
        (9, "2 rounds were decided while this peer was away"),
    ]


def test_what_was_given_is_added_up() -> None:
    diary = Diary()
    diary.trained(update(1.0), 1.0)
    diary.trained(update(1.0), 2.0)
    assert (diary.contributed, diary.samples, diary.payload_bytes) == (2, 120, 1640)


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
        diary.trained(update(loss), 0.0)
    assert (diary.loss_first, diary.loss_last) == (5.0, 3.0)


def test_a_loss_that_is_not_known_replaces_none_that_is() -> None:
    diary = Diary()
    for loss in (math.nan, 3.0, math.nan):  # sent again after a restart: trained by a process that is gone
        diary.trained(update(loss), 0.0)
    assert (diary.loss_first, diary.loss_last) == (3.0, 3.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(value: float) -> None:
    assert _json_number(value) is None
    assert _json_number(1.5) == 1.5


def test_with_overlap_the_next_rounds_training_is_not_counted_as_exchange() -> None:
    diary = Diary()
    diary.state(State(policy=replace(POLICY, overlap=1)))  # type: ignore[arg-type]
    diary.training(10.0)
    diary.trained(update(2.5), 13.0)
    diary.decided(decide(0), 14.0, True, 14.5)
    diary.applied(0, 2.0, 16.0)
    assert diary.rounds[-1].exchange_s == 0.5
    diary.training(16.0)
    diary.trained(update(2.5), 16.1)
    diary.decided(decide(1), 16.2, True, 16.4)
    diary.applied(1, 2.0, 19.0)
    assert diary.rounds[-1].train_s == pytest.approx(3.1)  # since the update before it was there
    assert diary.exchange_s == pytest.approx(0.7)
