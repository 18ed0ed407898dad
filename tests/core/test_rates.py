from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.pace import SLOW_BYTES_PER_S
from p2pnet.core.rates import BUSY_MAX_S, LATENCY_S, QUICK_S, SAMPLE_BYTES_MIN, SAMPLES, SILENT_ROUNDS, Line

MBIT = 125_000  # bytes
LARGE = 10**9  # bytes of a payload and a result


def transfer(line: Line, at_s: float, takes_s: float, count: int) -> float:
    line.begin(at_s)
    line.end(at_s + takes_s, count)
    return at_s + takes_s


@pytest.mark.parametrize("mbps", [1, 10, 100, 1000])
def test_a_line_is_measured_to_a_third_whatever_lies_between_its_transfers(mbps: int) -> None:
    line, at_s, rng = Line(LARGE), 0.0, random.Random(1)
    for _ in range(5):
        at_s = transfer(line, at_s, 1.0, mbps * MBIT) + rng.uniform(0, 1000)
    assert 0.65 * mbps < line.kbps / 1000 <= mbps


def test_transfers_that_share_the_line_are_counted_together() -> None:
    line = Line(LARGE)
    for round_s in (0.0, 100.0):
        for _ in range(4):
            line.begin(round_s)
        for place in range(1, 5):
            line.end(round_s + place, 10 * MBIT)
    assert 6.5 < line.kbps / 1000 <= 10


def test_one_peer_that_takes_its_bytes_slowly_says_nothing_of_the_line() -> None:
    line = Line(LARGE)
    for round_s in (0.0, 100.0):
        for _ in range(4):
            line.begin(round_s)
        for place in range(3):
            line.end(round_s + 0.1 * (place + 1), 10 * MBIT)
        line.end(round_s + 30, 10 * MBIT)
    assert 65 < line.kbps / 1000 <= 100


def test_one_peer_that_hangs_up_at_once_says_little_of_the_line() -> None:
    line = Line(LARGE)
    for round_s in (0.0, 100.0):
        for _ in range(4):
            line.begin(round_s)
        line.end(round_s, 10 * MBIT)
        for place in range(1, 4):
            line.end(round_s + place, 10 * MBIT)
    assert line.kbps / 1000 <= 20


def test_few_bytes_are_no_sample_and_quick_ones_are_worth_what_their_latency_allows() -> None:
    line = Line(LARGE)
    transfer(line, 0.0, 1e-6, SAMPLE_BYTES_MIN - 1)
    assert line.kbps == 0
    transfer(line, 1.0, 1e-6, SAMPLE_BYTES_MIN)
    assert 0 < line.kbps <= 8 * SAMPLE_BYTES_MIN / LATENCY_S / 1000


def test_what_failed_counts_for_nothing() -> None:
    line = Line(LARGE)
    transfer(line, 0.0, 5.0, 0)
    assert line.kbps == 0
    line.begin(10.0)
    line.begin(10.0)
    line.end(11.0, 10 * MBIT)
    line.end(60.0, 0)
    assert 6.5 < line.kbps / 1000 <= 10


def test_one_lucky_sample_does_not_count_and_a_line_that_got_slower_is_seen_in_a_few_rounds() -> None:
    line, at_s = Line(LARGE), 0.0
    for mbps in (10, 10, 1000, 10):
        at_s = transfer(line, at_s, 1.0, mbps * MBIT) + 1
    assert line.kbps < 10_000
    for _ in range(SAMPLES):
        at_s = transfer(line, at_s, 1.0, 2 * MBIT) + 1
    assert line.kbps < 2_000


def test_a_line_that_carries_nothing_for_long_is_forgotten() -> None:
    line = Line(LARGE)
    for at_s in range(0, 2 * SAMPLES, 2):
        transfer(line, at_s, 1.0, 10 * MBIT)
        line.next_round()
    rounds = 0
    while line.kbps:
        line.next_round()
        rounds += 1
    assert SILENT_ROUNDS * (SAMPLES - 1) <= rounds <= SILENT_ROUNDS * SAMPLES


def test_a_line_that_is_never_idle_is_measured_too() -> None:
    line = Line(LARGE)
    line.begin(0.0)
    for second in range(1, 200):
        line.begin(float(second))
        line.end(second + 0.5, 10 * MBIT)
    assert BUSY_MAX_S < 199
    assert 6.5 < line.kbps / 1000 <= 10


def test_lines_on_which_everything_is_quick_are_all_equal() -> None:
    total = 25 * MBIT  # in a quarter of a second: 100 Mbit/s
    found = []
    for mbps in (50, 150, 1000, 10_000):
        line = Line(total)
        for at_s in (0.0, 10.0):
            transfer(line, at_s, total / mbps / MBIT, total)
        found.append(line.kbps)
    assert found[0] < found[1] == found[2] == found[3] == int(8 * total / QUICK_S / 1000)
    assert Line(total, 10**9).kbps == found[1]


def test_what_came_too_late_bounds_a_line_that_nothing_else_is_known_of_until_it_is_forgotten() -> None:
    line = Line(25 * MBIT)
    line.late(100 * MBIT, 2.0)
    assert 49_000 < line.kbps < 50_000
    line.late(100 * MBIT, 5.0)
    line.late(100 * MBIT, 2.0)
    assert 19_000 < line.kbps < 20_000
    line.late(1, 1000.0)
    assert line.kbps == 4 * SLOW_BYTES_PER_S / 1000
    rounds = 0
    while line.kbps:
        line.next_round()
        rounds += 1
    assert 40 < rounds < 80


@given(
    total=st.integers(1, 10**12),
    cap_bps=st.integers(0, 10**10),
    transfers=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.integers(0, 2**30)), max_size=30),
)
def test_a_rate_never_exceeds_the_cap_and_fits_the_commit(
    total: int, cap_bps: int, transfers: list[tuple[float, float, int]]
) -> None:
    line, at_s = Line(total, cap_bps), 0.0
    assert line.kbps <= cap_bps // 1000
    for idle_s, takes_s, count in transfers:
        at_s = transfer(line, at_s + idle_s, takes_s, count)
        assert 0 <= line.kbps < 2**32
        assert not cap_bps // 1000 or line.kbps <= cap_bps // 1000
