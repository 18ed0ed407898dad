"""Links with a rate: bytes take their time, none appears or disappears, and no line carries more than it can."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.sim.clock import Clock
from p2pnet.sim.lines import SEGMENT_BYTES, Air, Station

RATE = 1_250_000.0  # bytes per second, 10 Mbit/s
LATENCY_S = 0.05


class World:
    """Stations, and when what arrived where."""

    def __init__(self, stations: int = 2, loss: float = 0.0, rate: float = RATE, kind: type[Air] = Air) -> None:
        self.clock = Clock()
        self.air = kind(self.clock, random.Random(7).random)
        self.stations = [Station(self.air, rate, rate, LATENCY_S / 2, loss) for _ in range(stations)]
        for station in self.stations:
            station.turn_on()
        self.arrived: dict[object, float] = {}

    def send(self, source: int, target: int, size_bytes: int, name: object, bulk: bool = True) -> None:
        one, other = self.stations[source], self.stations[target]
        self.air.send(one, other, size_bytes, bulk, 0.0, self.arrive, name)

    def arrive(self, name: object) -> None:
        self.arrived[name] = self.clock.now_s

    def run(self, limit_s: float = 1e6) -> None:
        self.clock.run(lambda: False, limit_s)

    def assert_conserved(self) -> None:
        tally = self.air.tally
        assert tally.sent == tally.received + tally.lost + tally.undelivered


def test_a_message_takes_its_bytes_over_both_lines_and_the_latency() -> None:
    world = World()
    world.send(0, 1, 12_500, "a", bulk=False)
    world.run()
    assert world.arrived["a"] == pytest.approx(2 * 12_500 / RATE + LATENCY_S)


def test_a_large_piece_flows_through_both_lines_at_once() -> None:
    world = World()
    world.send(0, 1, 100 * SEGMENT_BYTES, "a")
    world.run()
    assert world.arrived["a"] == pytest.approx(101 * SEGMENT_BYTES / RATE + LATENCY_S)


def test_streams_share_a_line_and_end_together() -> None:
    world = World(3)
    for target in (1, 2):
        world.send(0, target, 20 * SEGMENT_BYTES, target)
    world.run()
    assert 0 < world.arrived[2] - world.arrived[1] < 2.001 * SEGMENT_BYTES / RATE
    assert world.arrived[2] == pytest.approx(41 * SEGMENT_BYTES / RATE + LATENCY_S)


def test_a_small_message_waits_for_one_segment_of_bulk_at_most() -> None:
    world = World()
    for number in range(10):
        world.send(0, 1, 20 * SEGMENT_BYTES, number)
    world.clock.at(1.0, world.send, 0, 1, 100, "vote", False)
    world.run()
    assert world.arrived["vote"] - 1.0 <= 2 * (SEGMENT_BYTES + 100) / RATE + LATENCY_S + 1e-9
    assert world.arrived["vote"] < min(world.arrived[number] for number in range(10))


@given(
    sends=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 5 * SEGMENT_BYTES), st.booleans()),
        max_size=30,
    ),
    loss=st.sampled_from([0.0, 0.1, 0.5]),
    off_s=st.floats(0.0, 1.0),
)
def test_what_is_sent_is_received_or_lost_or_undelivered(
    sends: list[tuple[int, int, int, bool]], loss: float, off_s: float
) -> None:
    world = World(4, loss)
    for name, (source, target, size_bytes, bulk) in enumerate(sends):
        world.send(source, target, size_bytes, name, bulk)
    world.clock.at(off_s, world.stations[3].turn_off)
    world.run()
    world.assert_conserved()
    for station in world.stations:
        assert station.up.carried_bytes <= RATE * world.clock.now_s
    for name, (source, target, _, _) in enumerate(sends):
        assert name in world.arrived or 3 in (source, target)


@given(pieces=st.lists(st.integers(1, 10 * SEGMENT_BYTES), min_size=1, max_size=20), limit_s=st.floats(0.01, 3.0))
def test_no_line_ever_carries_more_than_its_rate_allows(pieces: list[int], limit_s: float) -> None:
    world = World(3)
    for name, size_bytes in enumerate(pieces):
        world.send(name % 2, 2, size_bytes, name, bulk=name % 3 > 0)
    world.run(limit_s)
    for station in world.stations:
        for line in (station.up, station.down):
            assert line.carried_bytes <= RATE * world.clock.now_s + 1e-6


def test_a_lost_segment_comes_a_round_trip_later_and_its_bytes_count_again() -> None:
    world = World(loss=0.5)
    world.send(0, 1, 50 * SEGMENT_BYTES, "a")
    world.run()
    assert "a" in world.arrived
    assert world.air.tally.sent == 50 * SEGMENT_BYTES + world.air.tally.lost
    assert world.air.tally.lost > 0
    world.assert_conserved()


def test_nothing_passes_a_cut_or_reaches_a_process_that_came_later() -> None:
    world = World(3)
    world.stations[1].side = 1
    world.send(0, 1, 1000, "over the cut")
    world.send(0, 2, 1000, "to who restarts")
    world.clock.at(LATENCY_S, world.stations[2].turn_off)
    world.clock.at(LATENCY_S, world.stations[2].turn_on)
    world.run()
    assert world.arrived == {}
    assert world.air.tally.undelivered == 2000
    world.assert_conserved()
