"""Feed a training loop with the samples that a round's beacon assigns, through PyTorch's own DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from p2pnet.errors import ConfigError
from p2pnet.train.assignment import Assignment

OURS = frozenset({"shuffle", "sampler", "batch_sampler", "drop_last", "persistent_workers"})


class Batches(Iterator[Any]):
    """Batches without end, each round's drawn by its beacon; iteration ends when there is no round any more.

    A round is one epoch of one DataLoader: workers live on from round to round and look ahead within a round only,
    for the next beacon is not known before the round is decided. What was prefetched when a round ends is thrown away.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        current: Callable[[], Assignment | None],
        *,
        batch_size: int = 1,
        rank: int = 0,
        ranks: int = 1,
        **options: Any,
    ) -> None:
        """dataset: map-style.   current: the round's assignment, None when the swarm has stopped; asked once per batch.

        rank, ranks: of a replica of several processes, each gets every `ranks`th batch.   options: DataLoader's, except
        those that choose samples. Raises ConfigError for those and for a dataset without a length.
        """
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ConfigError(
                f"batches: {type(dataset).__name__} has no random access, a map-style dataset with a length is needed "
                "(your own loader works too; its samples are marked unassigned)"
            )
        if forbidden := sorted(OURS & options.keys()):
            raise ConfigError(f"batches: {', '.join(forbidden)} cannot be set, the beacon picks the samples")
        if type(batch_size) is not int or batch_size < 1:
            raise ConfigError(f"batches: batch_size is {batch_size!r}, an integer of at least 1 is needed")
        population = len(dataset)
        if population < 1:
            raise ConfigError("batches: the dataset is empty")
        self._current = current
        self._sampler = _RoundSampler(population, batch_size, rank, ranks)
        self._loader: DataLoader[Any] | None = DataLoader(
            dataset, batch_sampler=self._sampler, persistent_workers=bool(options.get("num_workers")), **options
        )
        self._epoch: Iterator[Any] = iter(())
        self._round_id: int | None = None

    def is_used(self, round_id: int) -> bool:
        """Tell whether a batch of this round was given out."""
        return self._round_id == round_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        assignment = self._current()
        if assignment is None or self._loader is None:
            self.close()
            raise StopIteration
        if assignment.round_id != self._round_id:
            self._round_id = assignment.round_id
            self._sampler.expected = max(assignment.batches or 0, self._sampler.taken)  # last round: accumulation
            self._start_epoch(assignment, first=0)
        try:
            batch = next(self._epoch)
        except StopIteration:  # the round takes more batches than expected: go on where it left off
            self._sampler.expected += assignment.batches or 1
            self._start_epoch(assignment, first=self._sampler.taken)
            batch = next(self._epoch)
        self._sampler.taken += 1
        return batch

    def close(self) -> None:
        """End the worker processes. Harmless when called again."""
        self._epoch = iter(())
        self._loader = None  # the last reference to DataLoader's iterator, whose end shuts its workers down

    def _start_epoch(self, assignment: Assignment, first: int) -> None:
        assert self._loader is not None
        self._sampler.start(assignment, first)
        self._epoch = iter(self._loader)


class _RoundSampler(Sampler[list[int]]):
    """The batches of the round that was started last, from `taken` on."""

    def __init__(self, population: int, batch_size: int, rank: int, ranks: int) -> None:
        self._population = population
        self._batch_size = batch_size
        self._rank, self._ranks = rank, ranks
        self._assignment: Assignment | None = None
        self.taken = 0  # batches of this round that the loop has received
        self.expected = 0  # so many it is expected to take; 0: not known

    def start(self, assignment: Assignment, first: int) -> None:
        self._assignment = assignment
        self.taken = first

    def __iter__(self) -> Iterator[list[int]]:
        assignment = self._assignment
        assert assignment is not None
        left = self.expected - self.taken if assignment.batches else None
        for step in itertools.islice(itertools.count(self.taken), left):
            yield assignment.batch(step * self._ranks + self._rank, self._batch_size, self._population)
