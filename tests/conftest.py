"""What all tests share: hypothesis without surprises, and where the repository is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# No deadline: a machine that is busy is not a failure. CI draws the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# A shell ignores Ctrl-C for what it starts in the background, and all children inherit that: then whatever waits for
# it in a test would wait for ever. CI may start us so.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


PROCESSES = "tests/processes/"
SCHEDULES = "tests/test_sim.py"  # minutes, and no two of its tests share anything


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, asked for with -n
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers a file's tests stay together, and one worker alone starts swarms of processes.

    Such a swarm wants all cores while its processes load torch, and has deadlines of its own: two of them at once are
    hardly faster than one after the other, and each may call the other's peers too late. Beside one there is room for
    tests that compute.
    """
    from xdist.scheduler import LoadFileScheduling

    class Lanes(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(PROCESSES):
                return PROCESSES
            return nodeid if nodeid.startswith(SCHEDULES) else str(super()._split_scope(nodeid))

    config.option.loadscopereorder = False  # they begin in the order of the collection
    return Lanes(config, log)


@pytest.hookimpl(trylast=True)  # when folders have given their tests marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, begin with what takes long: at the end all but one would wait for it."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not item.nodeid.startswith(PROCESSES), item.path not in slow))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent
