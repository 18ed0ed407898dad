"""Measure the exchange beside hivemind's, from "updates ready" to "result applied", in turn, on loopback; writes JSON.

python benchmarks/allreduce.py [--peers 2 4 8] [--megabytes 10 100] [--rounds 7]

Every peer is a process with a libp2p daemon of its own. On p2pnet's side it is the real node (`allreduce_peer.py`):
commit, roster, exchange and decision are in the time. On hivemind's side it is `DecentralizedAverager`
(`allreduce_rival.py`) with the size of the group given, its best case: matchmaking is in the time. What it takes when
nothing is said stands beside it. All peers have their updates before the clock starts and are let go at once, so that
stragglers count for nobody.

hivemind runs in a venv of its own, made once in ~/.cache/p2pnet: its 8-bit codecs fail silently with numpy >= 2.4.
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
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.lab import Place
from p2pnet.identity import Identity
from p2pnet.manifests import KEY_NAME
from p2pnet.node.content import INITIAL_NAME, MANIFEST_NAME

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CONSTRAINTS = HERE.parent / "constraints.txt"
RIVAL, RIVAL_NUMPY = "hivemind==1.1.12", "numpy<2.4"
RIVAL_FOLDER = Path("~/.cache/p2pnet/hivemind-1.1.12").expanduser()
CODECS = ("fp16", "8-bit")
K = 64  # the setting for large models
WARM_UP = 2  # rounds that are not counted: connections, allocators
PROFILED = 3  # rounds with a sampler in them, not counted
BESIDE = 1  # rounds with hivemind's default settings
BESIDE_MB_MAX = 20.0  # of larger ones: they only wait as long, and memory is short with 8 peers
ANSWER_S = 300.0
SETTLE_S = 0.5  # what still goes on after the last peer has its result is charged to who does it
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PHASES = ("encode", "roster", "scatter and reduce", "gather", "propose", "check", "prepare", "seal", "apply")
MILESTONES = ("encoded", "roster", "reduced", "gathered", "proposed", "checked", "prepared", "decided")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-rival", action="store_true", help="p2pnet alone: the record goes to standard error")
    options = parser.parse_args()
    rival = None if options.no_rival else rival_python()
    cases = []
    for megabytes in options.megabytes:
        for peers in options.peers:
            case = measure(peers, megabytes, options.rounds, rival)
            cases.append(case)
            print(describe(case), flush=True)
    if rival is None:
        print(json.dumps(cases, indent=1), file=sys.stderr)
        return
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "k": K,
        "rounds": options.rounds,
        "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "allreduce.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "allreduce.md").write_text(table(cases))


def measure(
    peers: int, megabytes: float, rounds: int, rival: Path | None, places: Sequence[Place] = ()
) -> dict[str, Any]:
    """Run both sides with so many peers, a round of each in turn.

    places: of the bootstrap peer and of each peer; all on loopback when there are none.
    """
    sides = sides_of(megabytes)
    case: dict[str, Any] = {"peers": peers, "megabytes": 4e-6 * sum(side * side for side in sides)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(open_peers(folder, peers, sides, places))
        theirs = stack.enter_context(open_rivals(rival, peers, sides, places)) if rival else []
        arms: dict[str, tuple[list[Process], dict[str, Any]]] = {"p2pnet": (ours, {"profile": 0})}
        if theirs:
            arms |= {f"hivemind {codec}": (theirs, {"codec": codec}) for codec in CODECS}
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
        for number in range(WARM_UP + rounds):
            for name, (group, more) in arms.items():
                one = take_round(group, more, f"{name}, {peers} peers")
                if number >= WARM_UP:
                    taken[name].append(one)
        case["arms"] = {name: sum_up(each) for name, each in taken.items()}
        case["phases_ms"] = phases(taken["p2pnet"])
        profiled = [take_round(ours, {"profile": 1}, "p2pnet, profiled") for _ in range(PROFILED)]
        case["cpu_ms_by_function"] = by_function(profiled)
        case["memory_mb"] = ours[0].ask({"do": "memory"})
        if theirs and megabytes <= BESIDE_MB_MAX:
            beside = [take_round(theirs, {"codec": "default"}, "hivemind, default") for _ in range(BESIDE)]
            case["default"] = sum_up(beside) | {
                "optimizer_matchmaking_s": theirs[0].greeting["optimizer_matchmaking_s"]
            }
    return case


def take_round(group: list[Process], more: dict[str, Any], what: str) -> dict[str, Any]:
    """Give every peer an update and let all go at once; returns seconds to the last and the median peer, and of CPU."""
    for peer in group:
        peer.tell({"do": "update", **more})
    for peer in group:
        peer.hear()
    before_s = [cpu_s(peer.process.pid) for peer in group]
    own_before_s = [cpu_s(peer.process.pid, children=False) for peer in group]
    for peer in group:
        peer.tell({"do": "round", **more})
    answers = [peer.hear() for peer in group]
    time.sleep(SETTLE_S)
    spent_s = [cpu_s(peer.process.pid) - before for peer, before in zip(group, before_s, strict=True)]
    own_s = [cpu_s(peer.process.pid, children=False) for peer in group]
    if not all(answer["fine"] for answer in answers) or len({answer["state"] for answer in answers}) != 1:
        raise SystemExit(f"{what}: a round failed or left different results: {answers}")
    ready_s = max(answer["began_s"] for answer in answers)
    ended_s = sorted(answer["ended_s"] - ready_s for answer in answers)
    return {
        "last_s": ended_s[-1],
        "median_s": statistics.median(ended_s),
        "cpu_s": statistics.mean(spent_s),
        "own_cpu_s": statistics.mean(own_s) - statistics.mean(own_before_s),
        "answers": answers,
    }


def sum_up(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, and the range of the slowest peer's."""
    times = sorted(one["last_s"] for one in rounds)
    return {
        "seconds": statistics.median(times),
        "range": [times[0], times[-1]],
        "median_peer_s": statistics.median(one["median_s"] for one in rounds),
        "cpu_s_per_peer": statistics.mean(one["cpu_s"] for one in rounds),
        "cpu_s_without_children": statistics.mean(one["own_cpu_s"] for one in rounds),
    }


def phases(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of each phase of a round, medians over peers and rounds."""
    found: dict[str, list[float]] = {name: [] for name in PHASES}
    for one in rounds:
        for answer in one["answers"]:
            times = [answer["began_s"], *(answer["reached"][name] for name in MILESTONES), answer["ended_s"]]
            for phase, (start, stop) in zip(PHASES, pairwise(times), strict=True):
                if start is not None and stop is not None:
                    found[phase].append(1000 * max(0.0, stop - start))
    return {phase: round(statistics.median(values), 1) for phase, values in found.items() if values}


def by_function(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """CPU milliseconds per peer and round by function, those of a hundredth or more."""
    spent: Counter[str] = Counter()
    answers = [answer for one in rounds for answer in one["answers"]]
    for answer in answers:
        spent.update(answer["cpu"])
    total = spent.total()
    return {name: round(1000 * each / len(answers), 2) for name, each in spent.most_common() if each >= total / 100}


class Process:
    """A child that takes JSON commands, a line each, and answers each with one."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        self.log = log
        self.greeting: dict[str, Any] = {}

    def tell(self, command: dict[str, Any]) -> None:
        """Give it a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Return its next answer."""
        assert self.process.stdout is not None
        late = threading.Timer(ANSWER_S, self.process.kill)  # a peer that waits for one that is dead waits for ever
        late.start()
        try:
            for line in self.process.stdout:
                if line.startswith("{"):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        finally:
            late.cancel()
        raise SystemExit(f"a peer ended: {self.log.read_text()[-2000:]}")

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Give it a command and return its answer."""
        self.tell(command)
        return self.hear()

    def close(self) -> None:
        """End it: it stops at the end of its input."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(ProcessLookupError):  # hivemind's children outlive it by ten minutes
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdout.close()


@contextmanager
def open_peers(
    folder: Path, peers: int, sides: list[int], places: Sequence[Place] = (), overlap: bool = False
) -> Iterator[list[Process]]:
    """A bootstrap peer and a swarm that all peers found."""
    places = places or [Place()] * (peers + 1)
    script = [sys.executable, str(HERE / "allreduce_peer.py")]
    founders = [Identity.load_or_create(folder / f"peer-{number}" / KEY_NAME).peer for number in range(peers)]
    with ExitStack() as stack:
        key = folder / "bootstrap.key"
        listen = ["--listen", places[0].listen, "--key", str(key), "--json", "--lifeline"]
        command = [*places[0].prefix, sys.executable, "-m", "p2pnet.cli", "bootstrap", *listen]
        bootstrap = Process(command, folder / "bootstrap.log")
        stack.callback(bootstrap.close)
        spec: dict[str, Any] = {"sides": sides, "folder": str(folder / "peer-0"), "k": K, "overlap": overlap}
        spec |= {"founders": [bytes(peer).hex() for peer in founders], "bootstrap": bootstrap.hear()["addrs"]}
        maker = Process([*script, json.dumps(spec)], folder / "create.log")
        link = maker.hear()["link"]
        maker.close()
        for number in range(1, peers):  # or a gigabyte of initial parameters goes over thin links first
            for name in (MANIFEST_NAME, INITIAL_NAME):
                os.link(folder / "peer-0" / name, folder / f"peer-{number}" / name)
        group: list[Process] = []
        for number in range(peers):
            place = folder / f"peer-{number}"
            spec = {"sides": sides, "seed": number + 1, "link": link, "folder": str(place)}
            spec["listen"] = places[number + 1].listen
            group.append(Process([*places[number + 1].prefix, *script, json.dumps(spec)], place / "log"))
            stack.callback(group[-1].close)
        for peer in group:
            peer.greeting = peer.hear()
        yield group


@contextmanager
def open_rivals(python: Path, peers: int, sides: list[int], places: Sequence[Place] = ()) -> Iterator[list[Process]]:
    """Peers of hivemind's: the first one's addresses are given to the others."""
    places = places or [Place()] * (peers + 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        group: list[Process] = []
        for number in range(peers):
            initial = group[0].greeting["addrs"] if group else []
            spec = {"seed": number + 1, "peers": peers, "sides": sides, "codecs": CODECS, "initial": initial}
            spec["listen"] = places[number + 1].listen
            script = [str(python), str(HERE / "allreduce_rival.py"), json.dumps(spec)]
            group.append(Process([*places[number + 1].prefix, *script], folder / f"rival-{number}.log"))
            stack.callback(group[-1].close)
            if number == 0:
                group[0].greeting = group[0].hear()
        for peer in group[1:]:
            peer.greeting = peer.hear()
        yield group


def rival_python() -> Path:
    """The Python of hivemind's venv; made when it is not there, with the tested torch and an older numpy."""
    python = RIVAL_FOLDER / "bin" / "python"
    if (RIVAL_FOLDER / "ready").exists():
        return python
    print(f"making a venv for {RIVAL} in {RIVAL_FOLDER}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", RIVAL_FOLDER], check=True)
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("numpy==")]
    limits = RIVAL_FOLDER / "constraints.txt"
    limits.write_text("\n".join([*lines, RIVAL_NUMPY]) + "\n")
    torch = next(line for line in lines if line.startswith("torch=="))
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", limits, torch, RIVAL], check=True)
    (RIVAL_FOLDER / "ready").touch()
    return python


def cpu_s(pid: int, children: bool = True) -> float:
    """CPU seconds of a process and of all its descendants, those included that have ended and were waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        tasks = list(Path(f"/proc/{pid}/task").iterdir()) if children else []
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return 0.0  # it has just ended
    return sum(map(int, fields[11 : 15 if children else 13])) / TICKS_PER_S + sum(map(cpu_s, found))


def sides_of(megabytes: float) -> list[int]:
    """Square matrices, about 25 of them, with so many bytes of fp32 in all."""
    side = max(8, round((megabytes * 1e6 / 4 / 25) ** 0.5))
    return [side] * 25


def describe(case: dict[str, Any]) -> str:
    """A case as a few lines for a person."""
    lines = [f"{case['peers']} peers, {case['megabytes']:.0f} MB"]
    for name, arm in case["arms"].items():
        spread = "{:.3f} .. {:.3f}".format(*arm["range"])
        lines.append(
            f"  {name:16} {arm['seconds']:7.3f} s ({spread})   CPU {arm['cpu_s_per_peer']:6.3f} s per peer, "
            f"{arm['cpu_s_without_children']:.3f} of it in the process itself"
        )
    ratios = compare(case)
    if ratios:
        lines.append(f"  {ratios['speed']:.2f}x faster than {ratios['rival']}, {ratios['cpu']:.2f} of its CPU")
    lines.append("  " + "  ".join(f"{name} {ms:.0f}" for name, ms in case["phases_ms"].items()) + "  (ms)")
    return "\n".join(lines)


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """Ours against the faster one of hivemind's codecs."""
    rivals = {name: arm for name, arm in case["arms"].items() if name != "p2pnet"}
    if not rivals:
        return {}
    name = min(rivals, key=lambda each: rivals[each]["seconds"])
    ours, theirs = case["arms"]["p2pnet"], rivals[name]
    return {
        "rival": name,
        "speed": theirs["seconds"] / ours["seconds"],
        "cpu": ours["cpu_s_per_peer"] / min(arm["cpu_s_per_peer"] for arm in rivals.values()),
    }


def table(cases: list[dict[str, Any]]) -> str:
    """All cases as a table in Markdown."""
    head = [
        "peers",
        "MB",
        "p2pnet, s",
        *(f"hivemind {codec}, s" for codec in CODECS),
        "faster",
        "hivemind's defaults, s",
    ]
    head += ["CPU s per peer", "of hivemind's"]
    rows = [head, ["---"] * len(head)]
    for case in cases:
        arms, ratios = case["arms"], compare(case)
        row = [str(case["peers"]), f"{case['megabytes']:.0f}", *(f"{arm['seconds']:.3f}" for arm in arms.values())]
        row += [f"{ratios['speed']:.2f}x", f"{case['default']['seconds']:.1f}" if "default" in case else ""]
        rows.append([*row, f"{arms['p2pnet']['cpu_s_per_peer']:.3f}", f"{ratios['cpu']:.2f}"])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


if __name__ == "__main__":
    main()
