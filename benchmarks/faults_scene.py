"""The swarm on which `faults.py` brings its faults: four processes, what they say, and what can be done to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.allreduce import Process, sides_of
from benchmarks.faults_rows import VICTIM
from benchmarks.lab import Lab, Place, fill, open_lab, small_disk
from p2pnet.identity import Identity, peer_id_text
from p2pnet.manifests import KEY_NAME

HERE = Path(__file__).resolve().parent
PEERS = 4
PATIENCE_S = 90.0  # for what takes seconds; who needs it has hung
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
        """The report of a round of the final chain."""
        return self.wait_for(lambda event: is_report(event) and event["round"] == number, 0, timeout_s)

    def branches(self, start: int) -> bool:
        """Tell whether it decides a round in a branch, from its `start`-th event on."""
        return self.wait_for(lambda event: event["event"] == "report" and event["branch"], start) is not None

    def credited(self, start: int) -> set[int]:
        """The rounds from `start` on that have its update."""
        reports = filter(is_report, list(self.events))
        return {event["round"] for event in reports if event["credited"] and event["round"] >= start}

    @property
    def last_round(self) -> int:
        """The last round of the final chain that it has ended."""
        return max((event["round"] for event in list(self.events) if is_report(event)), default=-1)

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


def is_report(event: dict[str, Any]) -> bool:
    """Tell whether an event is the report of a round, not one of a branch."""
    return event["event"] == "report" and not event["branch"]


def next_of(others: list[Peer], number: int) -> str:
    report = others[0].report(number + 1)
    return "none" if report is None else "void" if report["void"] else "result"


def equal(peers: list[Peer]) -> bool:
    """Tell whether all had the same parameters after every round of this swarm after which two or more were seen."""
    states: dict[int, set[str]] = {}
    for peer in peers:
        for event in list(peer.events):
            if is_report(event):
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
