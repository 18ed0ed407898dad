from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError, NetworkError, P2pnetError
from p2pnet.hours import Hours
from p2pnet.opening import Opening

LINK = f"p2pnet://{'ab' * 32}"
ALONE = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",))


def test_a_swarm_is_looked_for_before_torch_is_loaded() -> None:
    program = "import sys, p2pnet.opening, p2pnet.member; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_link_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="link"):
        Opening("https://example.org", tmp_path)
    assert not list(tmp_path.iterdir())


def test_hours_that_nobody_would_keep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hours: only `p2pnet join` keeps them"):
        Opening(LINK, tmp_path, NodeConfig(hours=Hours.parse("22-07")))


def test_a_swarm_that_nobody_has_is_waited_for_until_the_time_is_over(tmp_path: Path) -> None:
    opening = Opening(LINK, tmp_path, ALONE)
    try:
        with pytest.raises(NetworkError, match="within"):
            opening.wait(0.01)
        with pytest.raises(ValueError, match="wait"):
            _ = opening.opened
    finally:
        opening.close()
    assert not opening.node.is_running()


def test_who_leaves_early_is_told_that_the_node_has_ended(tmp_path: Path) -> None:
    def leave(kind: str, _fields: object) -> None:
        if kind == "listening":
            opening.leave()

    opening = Opening(LINK, tmp_path, ALONE, leave)
    with pytest.raises(P2pnetError, match="has ended"):
        opening.wait(30)
    opening.close()


def test_a_directory_in_use_names_who_uses_it(tmp_path: Path) -> None:
    listens = threading.Event()
    first = Opening(LINK, tmp_path, ALONE, lambda kind, _fields: listens.set() if kind == "listening" else None)
    try:
        assert listens.wait(30)
        second = Opening(LINK, tmp_path, ALONE)
        with pytest.raises(ConfigError, match="in use by process"):
            second.wait(30)
        second.close()
    finally:
        first.close()
