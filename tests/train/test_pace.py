from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pnet.train.pace import Pace


def steps_that_fit(pace: Pace, step_s: float, now_s: float) -> int:
    """Steps of a loop that ends its round when no other fits."""
    steps = 0
    while True:
        now_s += step_s
        pace.step(now_s)
        steps += 1
        if not pace.fits(now_s):
            return steps


@given(st.integers(1, 50), st.integers(1, 200))
def test_a_window_has_as_many_steps_as_fit_and_one_at_least(step: int, window: int) -> None:
    pace = Pace()
    pace.begin(0.0, float(window))
    assert steps_that_fit(pace, float(step), 0.0) == max(1, window // step)


def test_who_begins_late_has_what_is_left_of_the_window() -> None:
    pace = Pace()
    pace.begin(7.0, 10.0)
    assert steps_that_fit(pace, 1.0, 7.0) == 3
    pace.begin(20.0, 10.0)
    assert not pace.fits(20.0)
    assert steps_that_fit(pace, 1.0, 20.0) == 1


def test_one_slow_step_says_little_and_three_say_it() -> None:
    pace = Pace()
    pace.begin(0.0, 100.0)
    for now_s in (1.0, 2.0, 62.0):  # the third measured the loss, and saved
        pace.step(now_s)
    assert pace.fits(98.0)
    for now_s in (70.0, 80.0, 90.0):
        pace.step(now_s)
    assert not pace.fits(95.0)


def test_making_the_update_takes_its_share_of_the_window() -> None:
    pace = Pace()
    pace.begin(0.0, 10.0)
    pace.encoded(3.0)
    assert steps_that_fit(pace, 1.0, 0.0) == 7


def test_before_the_first_step_one_fits_while_the_window_lasts() -> None:
    pace = Pace()
    pace.begin(0.0, 10.0)
    assert pace.fits(10.0)
    assert not pace.fits(10.1)
