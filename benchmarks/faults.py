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
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.allreduce import RESULTS, Process, rival_python, sides_of
from benchmarks.faults_hivemind import ROWS as RIVAL_ROWS
from benchmarks.faults_hivemind import measure_rival
from benchmarks.faults_rows import ROWS, VICTIM, Row
from benchmarks.faults_table import sum_up, table
from benchmarks.lab import Lab, Place, fill, is_possible, open_lab, small_disk
from p2pnet.identity import Identity, peer_id_text
from p2pnet.manifests import KEY_NAME

HERE = Path(__file__).resolve().parent
PEERS = 4
PATIENCE_S = 90.0  # for what takes seconds; who needs it has hung
NORMAL = 3  # rounds before a run, whose median is a normal round
AHEAD = 2  # rounds from the command to the strike
DISK_MB_FACTOR, DISK_MB = 8, 64
LOOK_S = 0.002


class Peer:
    """A peer's process, and what it says."""

    def __init__(self, folder: Path, spec: dict[str, Any], place: Place) -> None:
        self.folder, self.spec, self.place = folder, spec, place
        self.name = peer_id_text(Identity.load_or_create(folder / KEY_NAME).peer)
        self.events: list[dict[str, Any]] = []  # of all its processes
        self.news = threading.Condition()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process, again or for the first time."""
        command = [*self.place.prefix, sys.executable, str(HERE / "faults_peer.py"), json.dumps(self.spec)]
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith("{") and line.endswith("}\n"):  # the last one may be cut
                    with self.news:
                        self.events.append(json.loads(line) | {"heard_s": time.monotonic()})
                        self.news.notify_all()

    def tell(self, command: dict[str, Any]) -> None:
        """Give it a command; one that has just died does not mind."""
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()

    def wait_for(self, matches: Callable[[dict[str, Any]], bool], start: int = 0, timeout_s: float = PATIENCE_S) -> Any:
        """The first event from the `start`-th on that matches, None when it does not come."""

        def found() -> Any:
            return next((event for event in self.events[start:] if matches(event)), None)

        with self.news:
            self.news.wait_for(lambda: found() is not None, timeout_s)
            return found()

    def report(self, number: int, timeout_s: float = PATIENCE_S) -> Any:
        """The report of a round."""
        return self.wait_for(lambda event: event["event"] == "report" and event["round"] == number, 0, timeout_s)

    def credited(self, start: int) -> set[int]:
        """The rounds from `start` on that have its update."""
        reports = [event for event in list(self.events) if event["event"] == "report"]
        return {event["round"] for event in reports if event["credited"] and event["round"] >= start}

    @property
    def last_round(self) -> int:
        """The last round it has ended."""
        return max((event["round"] for event in list(self.events) if event["event"] == "report"), default=-1)

    def kill(self) -> None:
        """End the process; harmless when it has ended."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process = None


@dataclass
class Scene:
    """A swarm of four at work, and what can be done to it."""

    peers: list[Peer]
    lab: Lab | None = None
    ballast: Path | None = None
    stopped: list[int] = field(default_factory=list)  # processes that a signal has to wake

    def settle(self) -> int:
        """Wait until all four take part in one round from now on; returns it."""
        deadline_s = time.monotonic() + PATIENCE_S
        start = max(peer.last_round for peer in self.peers) + 1
        while time.monotonic() < deadline_s:
            common = set.intersection(*(peer.credited(start) for peer in self.peers))
            if common:
                return min(common)
            time.sleep(LOOK_S)
        raise SystemExit(f"not all take part again: {[peer.events[-2:] for peer in self.peers]}")

    def length_s(self, number: int, peers: list[Peer], timeout_s: float = PATIENCE_S) -> float | None:
        """Seconds from the end of the round before to the end of this one, of the slowest of these peers."""
        ends = [(peer.report(number, timeout_s), peer.report(number - 1)) for peer in peers]
        if not all(end and before for end, before in ends):
            return None
        return max(float(end["at_s"] - before["at_s"]) for end, before in ends)

    def act(self, what: str, victim: Peer) -> None:
        """Do to the struck peer's surroundings what it cannot do itself, and let it go on."""
        number = self.peers.index(victim)
        match what:
            case "restart":
                victim.kill()
                victim.start()
            case "fill":
                self.ballast = fill(victim.folder)
            case "throttle" | "mute" | "cut":
                assert self.lab is not None
                {"throttle": lambda it: self.lab.throttle(it, 1.0), "mute": self.lab.mute, "cut": self.lab.cut}[what](
                    number
                )  # type: ignore[union-attr]
        if what and what != "restart":
            victim.tell({"do": "go"})

    def bring_back(self, how: str, victims: list[Peer]) -> None:
        """End the fault."""
        if how in ("start", "space"):
            if self.ballast is not None:
                self.ballast.unlink()
                self.ballast = None
            self.restart(victims)
        elif how == "mend":
            assert self.lab is not None
            self.lab.mend(self.peers.index(victims[0]))
        self.wake()

    def restart(self, victims: list[Peer]) -> None:
        """Start peers again, and let the others not run away from them meanwhile."""
        others = [peer for peer in self.peers if peer not in victims]
        starts = [len(victim.events) for victim in victims]
        for peer in others:
            peer.tell({"do": "hold"})
        for victim in victims:
            victim.kill()
            victim.start()
        for victim, start in zip(victims, starts, strict=True):
            victim.wait_for(lambda event: event["event"] == "ready", start)
        for peer in others:
            peer.tell({"do": "free"})

    def wake(self) -> None:
        """Let frozen processes go on."""
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []


def run_once(scene: Scene, row: Row) -> dict[str, Any]:
    """Bring the fault once; returns what the others saw of it."""
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


def next_of(others: list[Peer], number: int) -> str:
    report = others[0].report(number + 1)
    return "none" if report is None else "void" if report["void"] else "result"


def equal(peers: list[Peer]) -> bool:
    """Tell whether all had the same parameters after every round of this swarm after which two or more were seen."""
    states: dict[int, set[str]] = {}
    for peer in peers:
        for event in list(peer.events):
            if event["event"] == "report":
                states.setdefault(event["after"], set()).add(event["state"])
    return all(len(found) == 1 for found in states.values())


@contextmanager
def open_scene(where: str, megabytes: float) -> Iterator[Scene]:
    """A bootstrap peer and a swarm that all four found, where the rows want it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(open_lab(PEERS)) if where == "lab" else None
        if where == "disk":
            size_mb = round(DISK_MB + DISK_MB_FACTOR * megabytes)
            stack.enter_context(small_disk(folder / f"peer-{VICTIM}", size_mb))
        places = lab.places if lab else [Place()] * PEERS
        hub = lab.bootstrap if lab else Place()
        sides = sides_of(megabytes)
        founders = [Identity.load_or_create(folder / f"peer-{number}" / KEY_NAME).peer for number in range(PEERS)]
        listen = ["--listen", hub.listen, "--key", str(folder / "key"), "--json", "--lifeline"]
        command = [*hub.prefix, sys.executable, "-m", "p2pnet.cli", "bootstrap", *listen]
        bootstrap = Process(command, folder / "bootstrap.log")
        stack.callback(bootstrap.close)
        spec: dict[str, Any] = {"sides": sides, "folder": str(folder / "peer-0"), "k": 64}
        spec |= {"founders": [bytes(peer).hex() for peer in founders], "bootstrap": bootstrap.hear()["addrs"]}
        maker = Process([sys.executable, str(HERE / "faults_peer.py"), json.dumps(spec)], folder / "create.log")
        link = maker.hear()["link"]
        maker.close()
        scene = Scene([], lab)
        for number, place in enumerate(places):
            home = folder / f"peer-{number}"
            clock_s = {1: 3600, 2: -3600}.get(number, 0) if where == "clocks" else 0
            spec = {"sides": sides, "seed": number + 1, "link": link, "folder": str(home)}
            scene.peers.append(Peer(home, spec | {"listen": place.listen, "clock_s": clock_s}, place))
            stack.callback(scene.peers[-1].kill)
        stack.callback(scene.wake)
        for peer in scene.peers:
            peer.start()
        yield scene


def measure(where: str, rows: list[Row], runs: int, megabytes: float) -> Iterator[dict[str, Any]]:
    """All runs of the rows of one place, in one swarm."""
    with open_scene(where, megabytes) as scene:
        for row in rows:
            yield {"row": row.name, "runs": [run_once(scene, row) for _ in range(runs if row.role else 1)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rows", nargs="*", help="parts of the names of the rows wanted")
    parser.add_argument("--no-rival", action="store_true", help="p2pnet alone: no record is written")
    options = parser.parse_args()
    wanted = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    measured: list[dict[str, Any]] = []

    def keep(found: dict[str, Any]) -> None:
        measured.append(found)
        print(table([sum_up(found)]).splitlines()[-1], flush=True)
        if not options.no_rival and not options.rows:
            write(measured, options.megabytes)

    for where in dict.fromkeys(row.where for row in wanted):
        if where in ("lab", "disk") and not is_possible():
            print(f"rows that need root and network namespaces are left out: {where}", flush=True)
            continue
        for found in measure(where, [row for row in wanted if row.where == where], options.runs, options.megabytes):
            keep(found)
    for name in () if options.no_rival else RIVAL_ROWS:
        keep(measure_rival(rival_python(), name, options.runs, options.megabytes, PEERS, VICTIM))
    print(table([sum_up(each) for each in measured]))


def write(measured: list[dict[str, Any]], megabytes: float) -> None:
    """Write the record; again after each row, as a run takes long."""
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "peers": PEERS,
        "megabytes": megabytes,
        "rows": [sum_up(each) | {"each": each["runs"]} for each in measured],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "faults.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
