"""Bring faults on one peer of four, each at a named moment of a round, and beside it on hivemind; a table, JSON.

python benchmarks/faults.py [--runs 3] [--megabytes 100] [--rows reducer-frozen ...] [--no-rival]

Each peer is a process of its own with its own libp2p daemon, on loopback; rows about links have a network namespace for
each peer. All train for 0.3 s a round and exchange 100 MB of fp32 parameters at k = 64. The struck peer strikes itself
when its own round machine reaches the phase, with the kernel's signal (`faults_peer.py`). What a round took beyond a
normal one is seen by those that were not struck. After each run the struck peer comes back and takes part again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.allreduce import RESULTS, rival_python
from benchmarks.faults_hivemind import ROWS as RIVAL_ROWS
from benchmarks.faults_hivemind import measure_rival
from benchmarks.faults_rows import ROWS, VICTIM, Row
from benchmarks.faults_scene import LOOK_S, PATIENCE_S, PEERS, Peer, Scene, equal, next_of, open_scene
from benchmarks.faults_split import run_split
from benchmarks.faults_table import sum_up, table
from benchmarks.lab import is_possible

NORMAL = 3  # rounds before a run, whose median is a normal round
AHEAD = 2  # rounds from the command to the strike


def run_once(scene: Scene, row: Row) -> dict[str, Any]:
    """Bring the fault once; returns what the others saw of it."""
    if row.fault == "split":
        return run_split(scene, row)
    if not row.role:
        first = scene.settle() + 1
        return judge(scene, row, scene.peers, [], first, first)
    begin = scene.settle() + 1  # the first round of a swarm has none before it
    normal_s = statistics.median(
        length_s for number in range(begin, begin + NORMAL) if (length_s := scene.length_s(number, scene.peers))
    )
    number = max(peer.last_round for peer in scene.peers) + AHEAD
    hit = scene.peers if row.role != "anybody" else [scene.peers[VICTIM]]
    starts = {peer.name: len(peer.events) for peer in scene.peers}
    wanted = 2 if row.role == "two others" else 1
    if row.fault == "nan":
        hit[0].tell({"do": "nan"})
        note = hit[0].wait_for(lambda event: event.get("kind") == "skipped", starts[hit[0].name])
        number, victims = note["round"], hit
    else:
        for peer in hit:
            peer.tell({"do": "arm", "round": number, "role": row.role, "phase": row.phase, "fault": row.fault})
        victims = wait_struck(scene, starts, wanted)
    scene.act(row.act, victims[0])
    if row.fault == "freeze":
        event = victims[0].events[-1]
        assert victims[0].process is not None
        scene.stopped = [event["daemon"], victims[0].process.pid]
    others = [peer for peer in scene.peers if peer not in victims]
    found = judge(scene, row, others, victims, number, normal_s)
    if len(victims) == 1:  # otherwise the round needed them
        scene.bring_back(row.back, victims)
    back = scene.settle()
    found["equal"] = equal(scene.peers)
    found["rounds_until_back"] = back - number
    found["finite"] = all(
        event["finite"] for peer in scene.peers for event in peer.events if event["event"] == "report"
    )
    return found


def wait_struck(scene: Scene, starts: dict[str, int], wanted: int) -> list[Peer]:
    """Who was struck."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        struck = [peer for peer in scene.peers if any(e["event"] == "struck" for e in peer.events[starts[peer.name] :])]
        if len(struck) == wanted:
            return struck
        time.sleep(LOOK_S)
    raise SystemExit("nobody was struck")


def judge(
    scene: Scene, row: Row, others: list[Peer], victims: list[Peer], number: int, normal_s: float
) -> dict[str, Any]:
    """What the others saw of the round that was hit and of the next one."""
    if not row.role:  # nothing is struck: a few rounds of a swarm whose clocks differ
        numbers = range(number, number + 2 * NORMAL)
        lengths = [scene.length_s(each, others) for each in numbers]
        reports = [peer.report(each) for peer in others for each in numbers]
        fine = all(report and report["credited"] and not report["void"] for report in reports)
        found = {"outcome": "result" if fine else "not all took part", "normal_s": min(filter(None, lengths))}
        return found | {"extra_s": 0.0, "next": "result", "next_extra_s": 0.0, "equal": equal(others), "finite": True}
    if len(victims) > 1:
        names = {victim.name for victim in victims}
        said = [
            peer.wait_for(lambda event: event.get("kind") == "stalled" and set(event["peers"]) == names)
            for peer in others
        ]
        outcome = "stalled, names both" if all(said) else "silent"
        outcome += ", goes on in a branch" if all(peer.branches(0) for peer in others) else ""
        scene.bring_back(row.back, victims)
        reports = [peer.report(number) for peer in others]
        outcome += "; then void" if reports[0] and reports[0]["void"] else "; then a result" if reports[0] else ""
        said_s = max(event["heard_s"] for event in said if event) - struck_s(victims[0])
        return {"outcome": outcome, "normal_s": normal_s, "said_after_s": said_s, "next": next_of(others, number)}
    length_s, next_s = (scene.length_s(each, others) for each in (number, number + 1))
    report = others[0].report(number)
    outcome = "hung" if length_s is None else "void" if report["void"] else "result"
    found = {"outcome": outcome, "normal_s": normal_s, "next": next_of(others, number)}
    found["extra_s"] = None if length_s is None else length_s - normal_s
    found["next_extra_s"] = None if next_s is None else next_s - normal_s
    return found


def struck_s(victim: Peer) -> float:
    return float(max(event["heard_s"] for event in victim.events if event["event"] == "struck"))


def measure(where: str, rows: list[Row], runs: int, megabytes: float) -> Iterator[dict[str, Any]]:
    """All runs of the rows of one place, in one swarm."""
    with open_scene(where, megabytes) as scene:
        for row in rows:
            yield {"row": row.name, "runs": [run_once(scene, row) for _ in range(runs if row.role else 1)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rows", nargs="*", help="parts of the names of the rows wanted; the record keeps its others")
    parser.add_argument("--no-rival", action="store_true", help="p2pnet alone: no record is written")
    options = parser.parse_args()
    wanted = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    measured: list[dict[str, Any]] = []

    def keep(found: dict[str, Any]) -> None:
        measured.append(found)
        print(table([sum_up(found)]).splitlines()[-1], flush=True)
        if not options.no_rival:
            write(measured, options.megabytes, keep_others=bool(options.rows))

    for where in dict.fromkeys(row.where for row in wanted):
        if where in ("lab", "disk") and not is_possible():
            print(f"rows that need root and network namespaces are left out: {where}", flush=True)
            continue
        for found in measure(where, [row for row in wanted if row.where == where], options.runs, options.megabytes):
            keep(found)
    for name in () if options.no_rival or options.rows else RIVAL_ROWS:
        keep(measure_rival(rival_python(), name, options.runs, options.megabytes, PEERS, VICTIM))
    print(table([sum_up(each) for each in measured]))


def write(measured: list[dict[str, Any]], megabytes: float, keep_others: bool) -> None:
    """Write the record; again after each row, as a run takes long.   keep_others: rows that it has already."""
    path, rows = RESULTS / "faults.json", [sum_up(each) | {"each": each["runs"]} for each in measured]
    if keep_others and path.exists():
        names, found = {row["row"] for row in rows}, json.loads(path.read_text())
        if found["megabytes"] == megabytes:
            rows = [row for row in found["rows"] if row["row"] not in names] + rows
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "peers": PEERS,
        "megabytes": megabytes,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
