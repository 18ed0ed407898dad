"""Machines of unequal speed: rounds by window beside fixed H, 4 peers of which one is 10x slower and one comes late.

python benchmarks/unequal.py played [--jobs 2]   loss against time: the byte-level LM, a played clock, three seeds
python benchmarks/unequal.py real [--runs 3]     the real stack: processes and daemons; a step sleeps for what it takes
python benchmarks/unequal.py plot                table and plot from what is there

Without a verb: all of them. In the played runs a step takes 0.12 s, of the slow peer 1.2 s, and an exchange 0.2 s; what
is trained and sent is real (`paces.py`). In the real runs a step takes 0.06 and 0.6 s, nearly all of it asleep, so that
four peers fit on two cores; what is measured there is the rounds, not the learning.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.children import Child, say
from benchmarks.paces import WAYS, Setting, run
from p2pnet.config import BytesLmTask, Codec, CustomTask, NodeConfig, Policy, Swarm, SwarmConfig, Training
from p2pnet.core.state import SwarmState
from p2pnet.errors import P2pnetError
from p2pnet.identity import Identity, PeerId
from p2pnet.ledger.reader import LedgerReader
from p2pnet.node.content import MANIFEST_NAME
from p2pnet.node.history import open_commits
from p2pnet.node.runner import KEY_NAME, LEDGER_NAME
from p2pnet.opening import Opening
from p2pnet.wire.manifest import Link, open_manifest

RESULTS: Final = Path(__file__).resolve().parent / "results"
SEEDS: Final = 3
TASK: Final = BytesLmTask("bytes-lm", layers=2, width=96, heads=3, context=64)  # 0.25 M parameters
LISTEN: Final = "/ip4/127.0.0.1/tcp/0"
WIDTH, BATCH, H_STEPS, WINDOW_S, GRACE_S = 64, 4, 30, 1.8, 1.0
STEPS_S: Final = (0.06, 0.06, 0.06, 0.6)  # a step of each peer
LATE, LATE_S, REAL_S = 2, 10.0, 40.0  # which peer comes late, when, and how long a run is
PATIENCE_S: Final = 60.0
MODES: Final = {"window": True, "fixed": False}


def main() -> None:
    """Measure what is wanted, say it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", default="all", choices=["all", "played", "real", "plot"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step-s", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        train(options.peer, options.folder, options.step_s)
        return
    path = RESULTS / "unequal.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    record |= {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    if options.verb in ("all", "played"):
        record["played"] = play(options.jobs)
    if options.verb in ("all", "real"):
        record["real"] = {mode: [] for mode in MODES}
        for number in range(options.runs):
            for mode in MODES:  # in turn, so that both see the same machine
                with tempfile.TemporaryDirectory() as folder:
                    record["real"][mode].append(measure(Path(folder), mode))
                print(f"run {number + 1}, {mode}: {record['real'][mode][-1]}", flush=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print_tables(record)
    if "played" in record:
        plot(record["played"], RESULTS / "unequal.png")


# Played -------------------------------------------------------------------------------------------------------------


def play(jobs: int) -> list[dict[str, Any]]:
    """Every way with every seed, some at a time."""
    settings = [Setting(way, seed) for seed in range(SEEDS) for way in WAYS]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running = {pool.submit(play_one, setting): setting for setting in settings}
        for done, future in enumerate(as_completed(running), start=1):
            setting, found = running[future], future.result()
            print(f"{done}/{len(settings)} {setting.way}, seed {setting.seed}: {found['curve'][-1]}", flush=True)
    return [future.result() for future in running]


def play_one(setting: Setting) -> dict[str, Any]:
    """One run, in a process of the pool."""
    import torch

    from benchmarks.arms import Bench

    torch.set_num_threads(1)
    return run(Bench(TASK, is_compiled=False), setting, say=lambda text: print(text, file=sys.stderr, flush=True))


# Real ---------------------------------------------------------------------------------------------------------------


def make_model() -> Any:
    """A model that costs nothing, the same in every process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, WIDTH)


def train(link: str, folder: Path, step_s: float) -> None:
    """Take part until killed: what a volunteer's process does, on a machine whose step takes this long."""
    opening = Opening(link, folder, NodeConfig(listen=(LISTEN,)), say)
    try:
        import torch

        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        opening.wait()
        from p2pnet.swarm import Swarm as Membership

        with Membership(opening, model, optimizer) as swarm:
            while True:
                began_s = time.monotonic()
                loss = model(torch.randn(BATCH, WIDTH)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                time.sleep(max(0.0, step_s - (time.monotonic() - began_s)))  # stands for training
                if report := swarm.step(loss, samples=BATCH):
                    fields = {"round": report.round, "steps": report.steps, "wait_s": report.wait_s}
                    say("report", fields | {"stands": swarm.round, "state": swarm.state_sha256()})
    except P2pnetError as error:
        say("end", {"error": str(error)})
    finally:
        opening.close()


def measure(folder: Path, mode: str) -> dict[str, Any]:
    """One run of the real stack; returns what its rounds were like, from the second one on."""
    from p2pnet.founding import create

    peers = [Identity.load_or_create(folder / str(index) / KEY_NAME).peer for index in range(len(STEPS_S))]
    config = SwarmConfig(
        Swarm("unequal", founders=tuple(sorted(peer for index, peer in enumerate(peers) if index != LATE))),
        CustomTask("custom", batch_size=BATCH),
        Training(h_steps=H_STEPS, window_s=WINDOW_S if MODES[mode] else 600.0, by_window=MODES[mode]),
        Codec(k=64),
        policy=Policy(grace_s=GRACE_S, stall_s=10.0, service_rounds=2),
    )
    made = create(config, make_model(), state_dir=folder / "0")
    with ExitStack() as stack:
        command = [sys.executable, "-m", "p2pnet.cli", "bootstrap", "--listen", LISTEN, "--json"]
        bootstrap = subprocess.Popen([*command, "--key", str(folder / "key")], stdout=subprocess.PIPE, text=True)
        stack.callback(bootstrap.wait)
        stack.callback(bootstrap.terminate)
        assert bootstrap.stdout is not None
        stack.callback(bootstrap.stdout.close)
        link = Link(made.swarm, tuple(json.loads(bootstrap.stdout.readline())["addrs"]))
        children: dict[int, Child] = {}
        for index in (0, 1, 3):
            children[index] = Child(__file__, link, folder / str(index), PATIENCE_S, "--step-s", str(STEPS_S[index]))
            stack.callback(children[index].kill)
        children[0].wait_for("report")
        time.sleep(LATE_S)
        children[LATE] = Child(__file__, link, folder / str(LATE), PATIENCE_S, "--step-s", str(STEPS_S[LATE]))
        stack.callback(children[LATE].kill)
        time.sleep(REAL_S - LATE_S)
        with LedgerReader(folder / "0" / LEDGER_NAME) as ledger:
            entries = ledger.entries(0, len(ledger))
        reports = children[0].of("report")
        ready = next((event["round"] for event in children[LATE].of("ready")), None)
        states: dict[int, set[str]] = {}
        for event in (event for child in children.values() for event in child.of("report")):
            states.setdefault(event["stands"], set()).add(event["state"])
    raw = (folder / "0" / MANIFEST_NAME).read_bytes()
    state = SwarmState.genesis(made.swarm, open_manifest(raw, made.swarm, lambda *_: True).message)
    rosters = [{one.peer: state.weight(one.message) for one in open_commits(entry.commits)} for entry in entries]
    is_identical = all(len(one) == 1 for one in states.values())
    return summarise(rosters[1:], reports, peers, ready) | {"is_identical": is_identical}


def summarise(
    rosters: Sequence[dict[PeerId, int]], reports: Sequence[dict[str, Any]], peers: Sequence[PeerId], ready: int | None
) -> dict[str, Any]:
    """What the table shows of a run. rosters: of each round but the first, who took part with what weight."""
    times_s = [event["monotonic_s"] for event in reports]
    rounds_s = [after - before for before, after in itertools.pairwise(times_s)]
    late = next((number for number, roster in enumerate(rosters, start=1) if peers[LATE] in roster), None)
    weights = {index: [roster[peer] for roster in rosters if peer in roster] for index, peer in enumerate(peers)}
    return {
        "rounds_per_min": 60 / statistics.fmean(rounds_s),
        "round_s": statistics.median(rounds_s),
        "round_max_s": max(rounds_s),
        "fast_steps": statistics.median(event["steps"] for event in reports),
        "slow_share": len(weights[3]) / len(rosters),
        "weights": [statistics.median(weights[index]) if weights[index] else 0 for index in range(len(peers))],
        "late_waited_rounds": late - ready if late is not None and ready is not None else None,
    }


# Tables and plots ---------------------------------------------------------------------------------------------------


def print_tables(record: dict[str, Any]) -> None:
    """Say what was measured."""
    for way in WAYS if "played" in record else ():
        runs = [one for one in record["played"] if one["way"] == way]
        loss = statistics.median(one["curve"][-1][1] for one in runs)
        each = " ".join(f"{one['curve'][-1][1]:.3f}" for one in runs)
        one = runs[0]
        print(
            f"{way:28} held-out {loss:.3f} ({each})  {one['rounds']} rounds of {one['round_s']:.2f} s, "
            f"steps {one['steps']}, rounds with each {one['credited']}"
        )
    for mode, runs in record.get("real", {}).items():
        medians = {name: statistics.median(one[name] for one in runs) for name in runs[0] if name not in NOT_NUMBERS}
        text = "  ".join(f"{name} {value:.3g}" for name, value in medians.items())
        print(f"real, {mode:8} {text}  weights {[one['weights'] for one in runs]}")
        print(f"    late {[one['late_waited_rounds'] for one in runs]}, equal {[one['is_identical'] for one in runs]}")


NOT_NUMBERS: Final = ("weights", "late_waited_rounds", "is_identical")
COLOURS: Final = dict(zip(WAYS, ("#1b6ef3", "#d9480f", "#8a93a6", "#1f2430"), strict=True))


def plot(played: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw held-out loss against the played time: the median of the seeds, and each of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for way in WAYS:
        runs = [one for one in played if one["way"] == way]
        for number, one in enumerate(runs):
            at_s, losses = zip(*one["curve"], strict=True)
            label = f"{way}: {one['rounds']} rounds" if number == 0 else None
            axes.plot(at_s, losses, color=COLOURS[way], label=label, linewidth=1.4, alpha=0.9 if number == 0 else 0.35)
    late_s = Setting(WAYS[0]).horizon_s / 4
    axes.axvline(late_s, color="#c5c9d3", linewidth=1.0, linestyle=":")
    axes.text(late_s, 4.4, " one peer comes", color="#8a93a6", fontsize=9)
    axes.set_xlabel("time, s (played: a step takes 0.12 s, of the slow peer 1.2 s, an exchange 0.2 s)")
    axes.set_ylabel("held-out loss, nats per byte")
    axes.grid(True, color="#e6e8ee", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(f"4 peers, one 10x slower, one late; 0.25 M parameters, H = 10; {SEEDS} seeds", fontsize=10)
    figure.savefig(path, format="png", facecolor="white")


if __name__ == "__main__":
    main()
