"""`p2pnet pause`: let the node on this machine save, leave the swarm, and wait."""

from __future__ import annotations

from p2pnet.cli.ask import find_running, wait_phase
from p2pnet.cli.folders import Prefix, StateDir
from p2pnet.cli.terminal import say

PAUSE_S = 120.0  # a large model takes its time to be saved


def pause(state_dir: StateDir = None, swarm: Prefix = "") -> None:
    """Pause the running node: it saves and leaves the swarm, and its process waits.

    The step it is in comes to its end. What it has trained and not sent is kept,
    and sent later. Nothing is trained, sent or received until `p2pnet resume`.

    p2pnet pause
    """
    from p2pnet.node.commands import ask_node

    folder, _ = find_running(state_dir, swarm)
    ask_node(folder, "pause")
    wait_phase(folder, "paused", True, PAUSE_S)
    say("paused; `p2pnet resume` goes on, `p2pnet leave` ends it")
