"""Lines without segments, for very large swarms: the same bytes arrive, at times that a line with a rate allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.sim.flow import Flow
from tests.sim.test_lines import LATENCY_S, RATE
from tests.sim.test_lines import World as Lines


class World(Lines):
    """The same stations, on lines without segments."""

    def __init__(self, stations: int = 3, loss: float = 0.0) -> None:
        super().__init__(stations, loss, kind=Flow)


def test_a_piece_takes_its_bytes_and_the_latency_and_is_received_while_it_is_sent() -> None:
    world = World()
    world.send(0, 1, 1_250_000, "a")
    world.run()
    assert world.arrived["a"] == pytest.approx(1.0 + LATENCY_S)


def test_bulk_goes_one_after_the_other_and_what_is_small_passes_between() -> None:
    world = World()
    world.send(0, 1, 1_250_000, "a")
    world.send(0, 2, 1_250_000, "b")
    world.send(0, 2, 12_500, "small", bulk=False)
    world.run()
    assert world.arrived["small"] == pytest.approx(0.01 + LATENCY_S)
    assert world.arrived["a"] == pytest.approx(1.0 + LATENCY_S)
    assert world.arrived["b"] == pytest.approx(2.0 + LATENCY_S, abs=0.02)


def test_two_that_send_to_one_share_its_line() -> None:
    world = World()
    world.send(0, 2, 1_250_000, "a")
    world.send(1, 2, 1_250_000, "b")
    world.run()
    assert sorted(world.arrived.values()) == pytest.approx([1.0 + LATENCY_S, 2.0 + LATENCY_S])


def test_what_a_process_did_not_get_to_send_before_it_ended_never_arrives_and_what_it_sent_does() -> None:
    world = World()
    world.send(0, 1, 1_250_000, "sent")
    world.send(0, 1, 1_250_000, "not sent")
    world.clock.at(1.02, world.stations[0].turn_off)
    world.run()
    assert world.arrived.keys() == {"sent"}
    assert world.air.tally.sent == 1_250_000


def test_what_comes_to_a_process_that_was_started_again_is_not_for_it() -> None:
    world = World()
    world.send(0, 1, 1_250_000, "a")
    world.clock.at(0.5, world.stations[1].turn_off)
    world.clock.at(0.6, world.stations[1].turn_on)
    world.run()
    assert not world.arrived
    assert world.air.tally.undelivered == 1_250_000


def test_what_is_lost_is_sent_again_and_comes_later() -> None:
    times = []
    for loss in (0.0, 0.3):
        world = World(loss=loss)
        world.send(0, 1, 12_500_000, "a")
        world.run()
        world.assert_conserved()
        times.append(world.arrived["a"])
    assert times[1] > 1.1 * times[0]


def test_what_many_were_asked_for_comes_with_the_last_of_it_over_all_their_lines() -> None:
    world = World()
    world.send(1, 0, 12_500, "before", bulk=False)
    pieces = [(world.stations[1], 125_000), (world.stations[2], 125_000)]
    world.air.collect(world.stations[0], pieces, 40, world.arrive, "all")
    world.run()
    assert world.arrived["all"] == pytest.approx(0.01 + 0.1 + LATENCY_S, abs=0.12)
    assert world.arrived["all"] >= 0.2
    world.assert_conserved()


ends, times_s = st.integers(0, 2), st.floats(0, 5, width=16)
bulk_or_small = st.one_of(
    st.tuples(ends, ends, st.integers(1, 3_000_000), st.just(True), times_s),
    st.tuples(ends, ends, st.integers(1, 20_000), st.just(False), times_s),
)


@given(st.lists(bulk_or_small, max_size=20))
def test_every_byte_is_accounted_for_and_no_line_carries_more_than_it_can_but_what_is_small(
    pieces: list[tuple[int, int, int, bool, float]],
) -> None:
    """What is small passes between packets that may have passed already: so much more, at the most, was on the line."""
    world = World()
    for name, (source, target, size, bulk, at_s) in enumerate(pieces):
        if source != target:
            world.clock.at(at_s, world.send, source, target, size, name, bulk)
    world.run()
    world.assert_conserved()
    assert len(world.arrived) == sum(source != target for source, target, *_ in pieces)
    last_s = max(world.arrived.values(), default=0.0)
    small = sum(size for *_, size, bulk, _ in pieces if not bulk)
    for station in world.stations:
        for line in (station.up, station.down):
            assert line.carried_bytes <= RATE * last_s + small + 1


def test_bulk_waits_for_what_is_small_and_came_first() -> None:
    world = World()
    world.send(0, 1, 125_000, "small", bulk=False)
    world.send(0, 1, 1_250_000, "bulk")
    world.run()
    assert world.arrived["bulk"] == pytest.approx(1.1 + LATENCY_S)
