"""Wall clocks that are wrong or jump: rounds count on the monotonic clock, and what others write down is for people."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.node.living import open_place
from tests.node.members import until

HOUR_S, YEAR_S = 3600.0, 365 * 86400.0


class Wall:
    """The clock on the wall, which somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s, self._true = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: self._true() + self.ahead_s)


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S, 30 * YEAR_S, -60 * YEAR_S], ids=["+1h", "-1h", "+30y", "-60y"])
async def test_a_member_whose_clock_is_wrong_takes_part_and_so_it_does_when_the_clock_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    wall = Wall(monkeypatch)
    async with open_place(tmp_path) as place:
        (one,) = await place.started(1)
        wall.ahead_s = ahead_s
        (two,) = await place.started(2)
        await two.reach(2)
        assert two.credited()
        wall.ahead_s = -ahead_s  # and it jumps while both run
        await two.reach(4)
        await two.stop()
        wall.ahead_s = 0.0
        before = len(two.reports)
        await two.start()
        await until(lambda: any(report.credited for report in two.reports[before:]), 40)
        common = set(one.states) & set(two.states)
        assert all(one.states[number] == two.states[number] for number in common)


def test_no_deadline_of_a_node_counts_on_the_wall_clock(repository: Path) -> None:
    """time.time() is for records that people read; the folders swept and the hours are the two that are meant."""
    allowed = {"runner.py", "history.py", "process.py", "founding.py", "demo.py", "join.py"}
    for path in sorted((repository / "p2pnet").rglob("*.py")):
        if path.name not in allowed and re.search(r"\btime\.time\(\)", path.read_text()):
            pytest.fail(f"{path} reads the wall clock")
