from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.pace import (
    BACK_OFF_MAX,
    PEERS_MAX,
    ROUND_TRIP_GROWTH,
    ROUND_TRIP_MAX_S,
    ROUND_TRIPS,
    SAFETY,
    SLOW_BYTES_PER_S,
    TOOK_KEPT,
    Pace,
    predict_s,
)
from p2pnet.core.shares import Volume
from p2pnet.identity import PeerId
from tests.core.voters import commit, genesis, peers

MEGABYTES_100 = Volume(382, 1312, 2592)  # 25 million parameters at k = 64 and 128: 500 kB, and 1 MB of result
BILLION = Volume(15_259, 1312, 2592)
GRACE_S = 2.0


def seen(*times_s: float) -> Pace:
    pace = Pace()
    for after_s in times_s:
        pace.arrived(after_s)
    return pace


class Swarm:
    def __init__(self, volume: Volume, *kbps: int) -> None:
        state = replace(genesis(1), volume=volume)
        self.volume = volume
        self.commits = [
            commit(state, each, up_kbps=rate, down_kbps=rate) for each, rate in zip(peers(len(kbps)), kbps, strict=True)
        ]
        self.parts = state.parts(self.commits, 0)

    def predict_s(self) -> float:
        return predict_s(self.volume, self.commits, self.parts)

    def timeout_s(self, pace: Pace, grace_s: float = GRACE_S) -> float:
        return pace.timeout_s(grace_s, self.volume, self.commits, self.parts)


def test_who_has_seen_nothing_waits_as_long_as_for_a_slow_link() -> None:
    swarm = Swarm(MEGABYTES_100, *[1_000_000] * 4)
    longest_s = GRACE_S + 2 * MEGABYTES_100.total_bytes / SLOW_BYTES_PER_S
    assert Pace().longest_s(GRACE_S, MEGABYTES_100) == pytest.approx(longest_s)
    assert swarm.timeout_s(Pace()) == pytest.approx(longest_s)


def test_on_fast_lines_an_exchange_is_given_grace_and_no_more() -> None:
    swarm = Swarm(MEGABYTES_100, *[1_000_000] * 4)
    assert swarm.timeout_s(seen(0.3)) == GRACE_S
    assert swarm.timeout_s(seen(0.3), 0.5) == pytest.approx(SAFETY * 0.3)


@pytest.mark.parametrize("volume", [MEGABYTES_100, BILLION], ids=["100 MB", "4 GB"])
@pytest.mark.parametrize("peers_", [2, 4, 8, 32])
def test_a_line_of_10_mbit_is_not_cut_off_whoever_else_is_there(volume: Volume, peers_: int) -> None:
    swarm = Swarm(volume, 10_000, *[1_000_000] * (peers_ - 1))
    needs_s = swarm.predict_s()
    assert needs_s >= volume.leaves * volume.payload_leaf_bytes / SLOW_BYTES_PER_S  # its slices alone
    assert swarm.timeout_s(seen(0.1), 0.5) >= 1.99 * needs_s
    everybody = Swarm(volume, *[10_000] * peers_)
    assert everybody.timeout_s(seen(0.1), 0.5) >= 1.2 * everybody.predict_s()


def test_what_exchanges_took_counts_where_it_is_more_than_what_rates_promise_and_is_forgotten() -> None:
    swarm, pace = Swarm(BILLION, *[10_000_000] * 4), seen(5.0, 1.0)
    longest_s = pace.longest_s(GRACE_S, BILLION)
    found = []
    for _ in range(20):
        found.append(swarm.timeout_s(pace))
        pace.next_round(longest_s)
    assert found[:2] == [pytest.approx(SAFETY * 5.0), pytest.approx(SAFETY * 5.0 * TOOK_KEPT)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == GRACE_S


def test_round_trips_are_given_time_and_a_busy_moment_little() -> None:
    swarm, pace = Swarm(MEGABYTES_100, *[1_000_000] * 4), seen(0.1)
    far, stranger = swarm.commits[2].peer, PeerId(bytes(32))
    pace.answered(far, 0.4)
    assert swarm.timeout_s(pace, 0.5) == pytest.approx(SAFETY * 0.1 + ROUND_TRIPS * 0.4)
    pace.answered(far, 30.0)
    assert swarm.timeout_s(pace, 0.5) == pytest.approx(SAFETY * 0.1 + ROUND_TRIPS * 0.4 * ROUND_TRIP_GROWTH)
    pace.answered(far, 0.1)
    pace.answered(stranger, 10.0)
    assert swarm.timeout_s(pace, 0.5) == pytest.approx(SAFETY * 0.1 + ROUND_TRIPS * 0.1)


def test_when_many_are_late_the_time_out_grows_and_when_one_is_it_does_not() -> None:
    swarm, pace = Swarm(BILLION, *[10_000_000] * 4), seen(0.1)
    longest_s = pace.longest_s(GRACE_S, BILLION)
    pace.missed(1, 4)
    assert swarm.timeout_s(pace) == GRACE_S
    for _ in range(2):  # in one round it grows once
        pace.missed(2, 4)
    assert swarm.timeout_s(pace) == 2 * GRACE_S
    pace.next_round(longest_s)
    pace.missed(2, 4)
    pace.next_round(longest_s)
    assert swarm.timeout_s(pace) == 4 * GRACE_S
    for _ in range(9):
        pace.missed(4, 4)
        pace.next_round(longest_s)
    assert swarm.timeout_s(pace) == min(longest_s, BACK_OFF_MAX * GRACE_S)
    for _ in range(5):
        pace.next_round(longest_s)
    assert swarm.timeout_s(pace) == GRACE_S


def test_nothing_makes_it_longer_than_what_a_slow_link_takes() -> None:
    swarm, pace = Swarm(MEGABYTES_100, *[1] * 4), seen(1e9)
    pace.answered(swarm.commits[0].peer, 1e9)
    pace.missed(4, 4)
    most_s = pace.longest_s(GRACE_S, MEGABYTES_100) + ROUND_TRIPS * ROUND_TRIP_MAX_S
    assert swarm.timeout_s(pace) == pytest.approx(most_s)
    pace.next_round(pace.longest_s(GRACE_S, MEGABYTES_100))
    fast = Swarm(MEGABYTES_100, *[1_000_000] * 4)
    assert fast.commits[0].peer == swarm.commits[0].peer
    for _ in range(12):
        pace.answered(fast.commits[0].peer, 0.001)
        pace.next_round(pace.longest_s(GRACE_S, MEGABYTES_100))
    assert fast.timeout_s(pace) == GRACE_S


def test_round_trips_are_kept_of_so_many_peers() -> None:
    pace = Pace()
    for number in range(PEERS_MAX + 10):
        pace.answered(PeerId(number.to_bytes(32, "big")), 1.0)
    assert len(pace._round_trips_s) == PEERS_MAX


def test_from_view_to_view_peers_that_saw_different_things_come_to_the_same_time_out() -> None:
    swarm = Swarm(MEGABYTES_100, *[1_000_000] * 4)
    longest_s = Pace().longest_s(0.5, swarm.volume)
    fast, fresh = seen(0.1), Pace()
    times_s = [fast.timeout_s(0.5, swarm.volume, swarm.commits, swarm.parts, view) for view in range(20)]
    assert times_s[0] < times_s[1] == min(longest_s, 2 * times_s[0])
    assert times_s[-1] == fresh.timeout_s(0.5, swarm.volume, swarm.commits, swarm.parts, 19) == longest_s
