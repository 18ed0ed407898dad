"""A network of state machines in one thread, its own clock and one seed: delays, loss, cuts, crashes.

A machine is anything with `handle(event, now_s) -> effects` and `deadline_s`. What an effect means is for the test to
say (`perform`); `send` carries a payload over the link between two peers. `P2PNET_SEED=17 pytest ...` replays one seed.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


def seeds(count: int, first: int = 0) -> list[int]:
    """The seeds to run: `count` of them, or just the one in P2PNET_SEED."""
    chosen = os.environ.get("P2PNET_SEED")
    return [int(chosen)] if chosen else list(range(first, first + count))


@contextmanager
def replayable(seed: int) -> Iterator[None]:
    """Say how to run a failing seed again."""
    try:
        yield
    except BaseException:
        print(f"failed with seed {seed}: run again with P2PNET_SEED={seed}")
        raise


class Machine(Protocol):
    @property
    def deadline_s(self) -> float | None: ...

    def handle(self, event: Any, now_s: float) -> list[Any]: ...


class Network:
    """Machines by peer, and a heap of what happens when."""

    def __init__(self, seed: int, *, delay_s: tuple[float, float] = (0.005, 0.05), loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.now_s = 1000.0  # a monotonic clock starts anywhere
        self.delay_s, self.loss = delay_s, loss
        self.machines: dict[Any, Machine] = {}
        self.crashed: set[Hashable] = set()
        self.cut: set[frozenset[Hashable]] = set()  # links that swallow everything
        self.carried = 0
        self.perform: Callable[[Any, Any], None] = lambda peer, effect: None
        self.arrive: Callable[[Any, Any, Any], None] = lambda peer, sender, payload: None
        self.tick: Callable[[], Any] = lambda: None
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._ticks: dict[Any, float] = {}

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time_s, self._count, action))

    def after(self, wait_s: float, action: Callable[[], None]) -> None:
        self.at(self.now_s + wait_s, action)

    def send(self, sender: Any, peer: Any, payload: Any) -> None:
        if self.loss and self.rng.random() < self.loss:
            return
        low, high = self.delay_s
        self.after(low + (high - low) * self.rng.random(), lambda: self._arrive(sender, peer, payload))

    def handle(self, peer: Any, event: Any) -> list[Any]:
        """Give a machine an event, perform its effects, and wake it at its deadline."""
        if peer in self.crashed:
            return []
        machine = self.machines[peer]
        effects = machine.handle(event, self.now_s)
        for effect in effects:
            self.perform(peer, effect)
        deadline_s = machine.deadline_s
        if deadline_s is not None and not self.now_s < self._ticks.get(peer, -1.0) <= deadline_s:
            time_s = max(deadline_s, self.now_s)
            self._ticks[peer] = time_s
            self.at(time_s, lambda: self._tick(peer, time_s))
        return effects

    def run(self, until_s: float, steps_max: int = 10_000_000) -> None:
        """Let time pass; `until_s` counts from the start of the clock's current reading."""
        end_s = self.now_s + until_s
        for _ in range(steps_max):
            if not self._heap or self._heap[0][0] > end_s:
                self.now_s = end_s
                return
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
        raise AssertionError(f"more than {steps_max} events: somebody never stops talking")

    def _arrive(self, sender: Any, peer: Any, payload: Any) -> None:
        if peer in self.crashed or sender in self.crashed or frozenset((sender, peer)) in self.cut:
            return
        self.carried += 1
        self.arrive(peer, sender, payload)

    def _tick(self, peer: Any, time_s: float) -> None:
        if self._ticks.get(peer) == time_s:
            del self._ticks[peer]
            self.handle(peer, self.tick())
