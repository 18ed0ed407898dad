"""Find the node that runs on this machine, and give it a command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from p2pnet.cli.folders import state_dir_or_default, swarm_folders
from p2pnet.errors import ConfigError, P2pnetError

POLL_S: Final = 0.05
Facts = dict[str, Any]


def find_running(state_dir: Path | None, prefix: str) -> tuple[Path, Facts]:
    """Return the folder and the status of the one node that runs; a killed one has left a trace, and does not count.

    Raises P2pnetError when none runs, ConfigError when there are several to choose from.
    """
    from p2pnet.node.commands import POINTER_NAME, ask_node

    place = state_dir_or_default(state_dir)
    answers: dict[Path, Facts] = {}
    reason = f"no node runs in {place}; `p2pnet join LINK` starts one"
    for folder in swarm_folders(place, POINTER_NAME, prefix):
        try:
            answers[folder] = ask_node(folder, "status")
        except P2pnetError as error:
            reason = str(error)
    if len(answers) > 1:
        names = ", ".join(folder.name for folder in answers)
        raise ConfigError(f"--swarm: {len(answers)} nodes run in {place}, name one of {names}")
    if not answers:
        raise P2pnetError(reason)
    return answers.popitem()


def wait_phase(folder: Path, is_there: str, wanted: bool, timeout_s: float) -> Facts:
    """Wait until the node is in this phase, or is no longer; returns its status. P2pnetError when it takes too long."""
    from p2pnet.node.commands import ask_node

    end_s = time.monotonic() + timeout_s
    while True:
        facts = ask_node(folder, "status")
        if (facts.get("phase") == is_there) is wanted:
            return facts
        if time.monotonic() >= end_s:
            raise P2pnetError(f"the node was told, and is still {facts.get('phase')}; `p2pnet status` says why")
        time.sleep(POLL_S)
