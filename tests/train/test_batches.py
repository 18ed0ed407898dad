from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from p2pnet.errors import ConfigError
from p2pnet.train.assignment import Assignment, sample_indices
from p2pnet.train.batches import Batches

PEER = b"p" * 32
POPULATION = 1000


class Numbers(Dataset[Tensor]):
    """Sample i is (i, process id of who read it)."""

    def __len__(self) -> int:
        return POPULATION

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, os.getpid()])


class Rounds:
    """What a swarm tells: the round it is in, None when it has stopped."""

    def __init__(self, batches: int | None = None) -> None:
        self.batches = batches
        self.current: Assignment | None = None
        self.start(0)

    def __call__(self) -> Assignment | None:
        return self.current

    def start(self, round_id: int) -> None:
        self.current = Assignment(round_id, bytes([round_id]) * 32, PEER, self.batches)

    def expected(self, count: int) -> list[int]:
        assert self.current is not None
        return sample_indices(self.current.beacon, PEER, count, POPULATION)


def take(batches: Iterator[Tensor], count: int) -> list[int]:
    return [int(index) for _ in range(count) for index in next(batches)[:, 0]]


@pytest.mark.parametrize("known", [None, 3, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_round_trains_on_what_its_beacon_assigns(workers: int, known: int | None) -> None:
    rounds = Rounds(known)
    options = {"prefetch_factor": 3} if workers else {}
    batches = Batches(Numbers(), rounds, batch_size=4, num_workers=workers, **options)
    for round_id, count in enumerate([3, 1, 5, 3]):  # as expected, cut short, longer than expected
        rounds.start(round_id)
        assert take(batches, count) == rounds.expected(4 * count)
    batches.close()


def test_workers_live_on_from_round_to_round_and_end_with_the_swarm() -> None:
    rounds = Rounds()
    batches = Batches(Numbers(), rounds, batch_size=4, num_workers=2)
    readers = set()
    for round_id in range(4):
        rounds.start(round_id)
        readers |= {int(next(batches)[0, 1]) for _ in range(3)}
    assert len(readers) == 2
    assert os.getpid() not in readers
    rounds.current = None
    with pytest.raises(StopIteration):
        next(batches)
    assert not readers & {child.pid for child in multiprocessing.active_children()}


def test_the_loop_ends_when_the_swarm_stops_and_stays_ended() -> None:
    rounds = Rounds()
    seen = 0
    batches = Batches(Numbers(), rounds, batch_size=2)
    for _ in batches:
        seen += 1
        if seen == 5:
            rounds.current = None
    assert seen == 5
    rounds.start(1)
    assert list(batches) == []


def test_nothing_is_drawn_before_the_beacon_is_known() -> None:
    drawn: list[int] = []

    class Recorder(Numbers):
        def __getitem__(self, index: int) -> Tensor:
            drawn.append(index)
            return super().__getitem__(index)

    rounds = Rounds()
    batches = Batches(Recorder(), rounds, batch_size=2)
    assert drawn == []
    take(batches, 2)
    assert drawn == rounds.expected(4)


def test_the_users_collate_function_is_kept() -> None:
    batches = Batches(Numbers(), Rounds(), batch_size=2, collate_fn=len)
    assert next(batches) == 2


@pytest.mark.parametrize("option", ["shuffle", "sampler", "batch_sampler", "drop_last"])
def test_options_that_choose_samples_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} cannot be set"):
        Batches(Numbers(), Rounds(), **{option: True})


def test_a_stream_and_an_empty_dataset_are_refused() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            yield from ()

    class Empty(Numbers):
        def __len__(self) -> int:
            return 0

    with pytest.raises(ConfigError, match="Stream has no random access"):
        Batches(Stream(), Rounds())
    with pytest.raises(ConfigError, match="empty"):
        Batches(Empty(), Rounds())
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Batches(Numbers(), Rounds(), batch_size=0)
