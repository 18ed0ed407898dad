"""The exchange beside the next round's training, with a node that the test plays."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from p2pnet.node import bridge as br
from p2pnet.train.assignment import Assignment
from p2pnet.training import OVERLAP_TAG
from tests.test_swarm import CONFIG, Loop, other_payload, result, task, void

OVERLAP = replace(CONFIG, training=replace(CONFIG.training, overlap=True))


def fly(folder: Path, says: tuple[br.ToUser, ...] = ()) -> Loop:
    """A loop that has trained round 0, and trains round 1 while that is exchanged."""
    loop = Loop(folder, says=says, config=OVERLAP)
    assert loop.step() is None
    assert loop.step() is None
    return loop


def decide(loop: Loop, outcome: br.Outcome, *then: br.ToUser) -> None:
    """The round in exchange is decided now; then: what the node says when that is applied."""
    loop.bridge.says.put(outcome)
    loop.bridge.next = list(then)


def theta(loop: Loop) -> Tensor:
    return loop.swarm.learner._theta.clone()


def model_of(loop: Loop) -> Tensor:
    return loop.swarm.learner._layout.gather(dict(loop.model.named_parameters()))


def all_told(loop: Loop, kind: type) -> list[Any]:
    return [item for item in loop.bridge.told if isinstance(item, kind)]


def test_the_next_round_is_trained_from_the_same_parameters_while_one_is_exchanged(tmp_path: Path) -> None:
    loop = fly(tmp_path)
    assert (loop.swarm.round, loop.swarm.decided, loop.swarm.round_step) == (1, 0, 0)
    assert torch.equal(model_of(loop), theta(loop))
    loop.step()
    assert not torch.equal(model_of(loop), theta(loop))
    assert [item.round_id for item in all_told(loop, br.Submitted)] == [0]


def test_an_outcome_waits_for_the_end_of_the_training_and_both_are_taken_over_at_once(tmp_path: Path) -> None:
    loop = fly(tmp_path)
    before = theta(loop)
    decide(loop, result(0, loop.bridge.last(br.Submitted).payload, (True,)), task(1))
    assert loop.step() is None  # decided, and the training goes on
    assert torch.equal(theta(loop), before)
    report = loop.step()
    assert (report.round, report.credited, report.void, report.steps) == (0, True, False, 2)
    assert not torch.equal(theta(loop), before)
    assert torch.equal(model_of(loop), theta(loop))
    assert [item.round_id for item in all_told(loop, br.Submitted)] == [0, 1]
    assert loop.bridge.last(br.Began).checksum == loop.swarm.learner.checksum()
    assert (loop.swarm.round, loop.swarm.decided) == (2, 1)
    assert loop.bridge.last(br.Submitted).samples == 8
    assert not math.isnan(loop.bridge.last(br.Submitted).loss)


def test_who_is_too_late_for_a_round_sends_its_work_in_the_next_and_trains_the_one_after(tmp_path: Path) -> None:
    payload = other_payload(tmp_path / "other")
    loop = fly(tmp_path / "late")
    decide(loop, result(0, payload), result(1, payload), task(2))
    loop.step()
    assert loop.step().round == 0
    sent = all_told(loop, br.Submitted)
    assert [(item.round_id, item.samples, item.assigned) for item in sent] == [(0, 8, False), (2, 8, False)]
    assert [item.round_id for item in all_told(loop, br.Applied)] == [0, 1]
    assert (loop.swarm.round, loop.swarm.decided) == (3, 2)
    assert loop.e().abs().sum() > 0
    followed = Loop(tmp_path / "fresh", says=(result(0, payload), result(1, payload), task(2)), config=OVERLAP)
    assert followed.swarm.state_sha256() == loop.swarm.state_sha256()


def test_nan_beside_an_exchange_costs_the_round_that_it_is_in(tmp_path: Path) -> None:
    loop = fly(tmp_path)
    sent = loop.bridge.last(br.Submitted).payload
    loop.step()
    decide(loop, result(0, sent, (True,)), task(1))
    report = loop.step(spoil=True)
    assert (report.round, report.credited) == (0, True)
    assert [item.round_id for item in all_told(loop, br.Skipped)] == [1]
    assert (loop.swarm.round, loop.swarm.decided) == (1, 1)
    assert torch.equal(model_of(loop), theta(loop))
    decide(loop, void(1), task(2))  # the others do not wait; meanwhile it trains
    assert loop.step().round == 1
    assert bool(torch.isfinite(loop.e()).all())
    assert loop.bridge.last(br.Submitted).round_id == 2  # what it trained then, at once
    assert (loop.swarm.round, loop.swarm.decided) == (3, 2)


def test_a_loop_that_was_stopped_beside_an_exchange_goes_on_with_what_it_had_committed_to(tmp_path: Path) -> None:
    loop = fly(tmp_path)
    loop.step()
    sent, e = loop.bridge.last(br.Submitted), loop.e()
    loop.swarm.set_aside()
    assert not torch.equal(loop.e(), e)  # half a round of training is kept
    loop.swarm.close()
    again = Loop(tmp_path, says=(task(0),), config=OVERLAP)
    resent = again.bridge.last(br.Submitted)
    assert (resent.payload, resent.samples) == (sent.payload, sent.samples)
    assert (again.swarm.round, again.swarm.decided) == (1, 0)
    decide(again, void(0), task(1))
    again.step()
    assert again.step().round == 0


def test_the_beacon_before_chooses_the_samples_and_who_cannot_know_it_says_so(tmp_path: Path) -> None:
    loop = Loop(tmp_path, config=OVERLAP)
    batches = loop.swarm.batches(TensorDataset(torch.arange(1000)), batch_size=4)

    def drawn() -> list[int]:
        return [int(value) for value in next(batches)[0]]

    def chosen(beacon: bytes) -> list[int]:
        return Assignment(0, beacon, b"\1" * 32).batch(0, 4, 1000)

    assert drawn() == chosen(task(0).beacon)
    loop.step()
    loop.step()
    assert drawn() == chosen(hashlib.sha256(OVERLAP_TAG + task(0).beacon).digest())
    loop.step()
    decide(loop, void(0), task(1))
    loop.step()
    assert [item.assigned for item in all_told(loop, br.Submitted)] == [True, True]
    assert drawn() == chosen(hashlib.sha256(OVERLAP_TAG + task(1).beacon).digest())
    late = Loop(tmp_path / "late", says=(void(0), task(1)), config=OVERLAP)
    for _ in range(2):
        next(late.swarm.batches(TensorDataset(torch.arange(1000)), batch_size=4))
        late.step()
    assert not late.bridge.last(br.Submitted).assigned


@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_saved_in_mid_round_is_where_a_stopped_process_goes_on(tmp_path: Path, overlap: bool) -> None:
    loop = Loop(tmp_path, config=OVERLAP if overlap else CONFIG)
    loop.bridge.answers = [] if overlap else [void(0), task(1)]
    for _ in range(3):
        loop.step()
    loop.swarm.save()
    again = Loop(tmp_path, says=(task(loop.swarm.decided),), config=OVERLAP if overlap else CONFIG)
    assert again.swarm.decided == loop.swarm.decided
    assert torch.equal(again.e(), loop.e())


def test_with_overlap_a_loop_goes_back_from_a_branch_with_both_rounds_work(tmp_path: Path) -> None:
    loop, left = fly(tmp_path), tmp_path / "left"
    sent = loop.bridge.last(br.Submitted).payload
    decide(loop, br.Fork(0, left, "ab" * 32))
    assert loop.step() is None
    decide(loop, result(0, sent, (True,)), task(1))
    assert loop.step().round == 0
    assert (loop.swarm.branch, loop.swarm.decided) == ("ab" * 32, 1)
    loop.bridge.says.put(br.Return(0, left, None, sent, 8, ""))
    decide(loop, result(0, sent, (True,)), task(1))
    assert loop.step() is None
    assert (loop.swarm.branch, loop.swarm.decided) == ("", 1)
    assert torch.equal(model_of(loop), theta(loop))
    followed = Loop(tmp_path / "fresh", says=(result(0, sent), task(1)), config=OVERLAP)
    assert followed.swarm.state_sha256() == loop.swarm.state_sha256()
    assert loop.e().abs().sum() > 0


def test_with_overlap_an_outcome_of_a_branch_that_is_left_meanwhile_is_answered_too(tmp_path: Path) -> None:
    loop, left = fly(tmp_path), tmp_path / "left"
    sent = loop.bridge.last(br.Submitted).payload
    decide(loop, br.Fork(0, left, "ab" * 32))
    loop.step()
    decide(loop, result(0, sent, (True,)), task(1))
    assert loop.step().round == 0
    decide(loop, result(1, loop.bridge.last(br.Submitted).payload, (True,)))
    assert loop.step() is None  # it is there, and the training beside it goes on
    loop.bridge.says.put(br.Return(0, left, None, sent, 8, ""))
    decide(loop, result(0, sent, (True,)), task(1))
    assert loop.step() is None
    assert [item.round_id for item in all_told(loop, br.Applied)] == [0, 1, 0]
    assert (loop.swarm.branch, loop.swarm.decided) == ("", 1)
