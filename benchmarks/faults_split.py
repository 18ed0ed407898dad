"""The rows of `faults.py` in which the network is cut in two, and healed."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.faults_rows import Row
from benchmarks.faults_scene import PATIENCE_S, PEERS, Peer, Scene, equal, next_of

ON = 3  # rounds that a side with a quorum has to decide


def run_split(scene: Scene, row: Row) -> dict[str, Any]:
    """Cut the network in two and heal it; returns what each side did."""
    assert scene.lab is not None
    scene.settle()
    side = [int(number) for number in row.act.split()]
    inside = [scene.peers[number] for number in side]
    outside = [peer for peer in scene.peers if peer not in inside]
    starts = {peer.name: len(peer.events) for peer in scene.peers}
    scene.lab.split(side)
    cut_s = time.monotonic()

    def stall(some: list[Peer], others: list[Peer]) -> list[float]:
        """When each of these said that it misses those."""
        names = {other.name for other in others}
        said = [
            peer.wait_for(lambda e: e.get("kind") == "stalled" and set(e["peers"]) >= names, starts[peer.name])
            for peer in some
        ]
        return [event["heard_s"] - cut_s for event in said if event]

    said_s, decides = stall(inside, outside), len(outside) > 2 * PEERS // 3
    last = max(peer.last_round for peer in inside)
    if decides:
        fine = len(said_s) == len(inside) and all(peer.report(last + ON) for peer in outside)
    else:
        said_s += stall(outside, inside)
        fine = len(said_s) == PEERS and max(peer.last_round for peer in scene.peers) <= last + 1  # sealed before
    branches = all(peer.branches(starts[peer.name]) for peer in (inside if decides else scene.peers))
    healed_s = time.monotonic()
    scene.lab.mend(side[0])
    back = scene.settle()
    outcome = f"{'three go on, one stalls' if decides else 'all stall'}, names the others" if fine else "silent"
    return {
        "outcome": outcome + (", goes on in a branch" if branches else ""),
        "said_after_s": max(said_s, default=PATIENCE_S),
        "back_after_s": time.monotonic() - healed_s,
        "next": next_of(scene.peers, back - 1),
        "equal": equal(scene.peers),
        "finite": True,
    }
