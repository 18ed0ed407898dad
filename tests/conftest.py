"""What all tests share: hypothesis without surprises, and where the repository is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent
