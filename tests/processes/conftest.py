from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.processes.runs import SMALL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.processes)
            if sys.platform != "linux":
                item.add_marker(pytest.mark.skip(reason="looks for processes in /proc, which only Linux has"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A swarm.toml of a swarm that any machine can train."""
    path = tmp_path_factory.mktemp("settings") / "swarm.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text: this repository's own sources, read in no time."""
    folder = tmp_path_factory.mktemp("text")
    for path in (Path(__file__).parents[2] / "p2pnet" / "core").glob("*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
