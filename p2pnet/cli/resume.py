"""`p2pnet resume`: let a paused node go on."""

from __future__ import annotations

from p2pnet.cli.ask import find_running, wait_phase
from p2pnet.cli.folders import Prefix, StateDir
from p2pnet.cli.terminal import say

RESUME_S = 10.0


def resume(state_dir: StateDir = None, swarm: Prefix = "") -> None:
    """Let a paused node go on: it joins again, takes over what was decided meanwhile, and trains.

    Outside the node's hours it goes on when they begin.

    p2pnet resume
    """
    from p2pnet.node.commands import ask_node

    folder, _ = find_running(state_dir, swarm)
    if until := ask_node(folder, "resume").get("paused_until"):
        say(f"resumed, and outside its hours, which begin at {until}")
        return
    wait_phase(folder, "paused", False, RESUME_S)
    say("resumed; `p2pnet status` shows how it goes")
