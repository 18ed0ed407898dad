"""`p2pnet leave`: end the node on this machine, in peace."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from p2pnet.cli.ask import POLL_S, find_running
from p2pnet.cli.folders import Prefix, StateDir
from p2pnet.cli.status import describe_contribution
from p2pnet.cli.terminal import say
from p2pnet.errors import ConfigError, P2pnetError

LEAVE_S = 120.0  # a large model takes its time to be saved
EXIT_S = 2.0


def leave(state_dir: StateDir = None, swarm: Prefix = "") -> None:
    """End the running node: it saves, leaves the swarm, and its process is gone.

    Prints what it contributed since it was started. `p2pnet join` with the same
    link goes on where it was.

    p2pnet leave
    """
    from p2pnet.node.commands import ask_node, find_node

    folder, _ = find_running(state_dir, swarm)
    pid = find_node(folder)[0]
    facts = ask_node(folder, "leave")
    if not _wait(lambda: not _is_locked(folder), LEAVE_S):
        raise P2pnetError(f"process {pid} was told to leave and has not ended; `kill {pid}` ends it within 5 s")
    _wait(lambda: not _is_alive(pid), EXIT_S)  # its parent may be slow to take notice
    say(f"left {facts.get('name', 'the swarm')}: {describe_contribution(facts)}")


def _wait(is_so: Callable[[], bool], timeout_s: float) -> bool:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() >= end_s:
            return False
        time.sleep(POLL_S)
    return True


def _is_locked(folder: Path) -> bool:
    """Tell whether a process has the swarm's folder, whatever it still has to save."""
    from p2pnet.ledger.lock import StateLock

    try:
        StateLock(folder).release()
    except ConfigError:
        return True
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's by now
        return False
    return True
