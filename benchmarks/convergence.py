"""Loss at equal tokens: synchronous data-parallel AdamW and Muon, dense DiLoCo, and p2pnet, on the byte-level LM.

python benchmarks/convergence.py sweep [--jobs 2]    600 steps of every setting that was tried, in one process
python benchmarks/convergence.py final [--jobs 2]    the winners: 2,400 steps, three seeds
python benchmarks/convergence.py real                the final setting over the real stack, 4 processes, wire bytes
python benchmarks/convergence.py plot                table and plots from what is there
python benchmarks/convergence.py run 'p2pnet muon h=5 k=512 steps=600'

Without a verb: all of them. A run that is in results/convergence.json is not repeated, so that each can be stopped and
started again; `--again` forgets the verb's runs first. A step is one batch on each of 4 peers. On the two cores of the
machine that this was measured on a run takes about 0.07 s per peer and step: 3 minutes for 600 steps, 11 for 2,400.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from p2pnet.config import BytesLmTask, Outer, Swarm, SwarmConfig, Training
from p2pnet.train.models import ByteTransformer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.arms import END_SAMPLES, GRID_SAMPLES, Arm, Bench, learner_chunks, run

RESULTS: Final = Path(__file__).resolve().parent / "results"
LINK_BPS: Final = 100e6  # the modelled link, each way
SEEDS: Final = 3
FINAL_STEPS: Final = 2400
STEP_S: Final = {"adamw": 0.100, "muon": 0.120}  # a peer's, fp32, one thread of the machine; measured
CONTEXT: Final = 128  # bytes of a sequence

SWEEP: Final[dict[str, tuple[str, ...]]] = {
    "data-parallel": (
        "data-parallel adamw lr=0.004",
        "data-parallel muon",
        "data-parallel muon momentum=0.9",
        "data-parallel muon momentum=0.9 adamw_lr=0.01",
    ),
    "dense DiLoCo; without outer momentum it is plain averaging": (
        "diloco muon h=10 outer_lr=1.2 outer_momentum=0.0",
        "diloco muon momentum=0.9 h=5 outer_lr=1.2 outer_momentum=0.0",
        "diloco muon momentum=0.9 h=5 outer_lr=1.6 outer_momentum=0.0",
    ),
    "p2pnet at two levels and up to 1,024 values in a result: H and k": (
        "p2pnet muon h=10 k=512 k_result=1024 value_bits=2",
        "p2pnet muon h=8 k=1024 k_result=1024 value_bits=2",
        "p2pnet muon h=5 k=512 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=6 k=1024 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 alpha=1.1 beta=1.0 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=3 k=256 alpha=1.1 beta=1.0 k_result=512 value_bits=2",
    ),
    "the same: Muon's momentum": (
        "p2pnet muon h=10 k=512 momentum=0.98 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.85 h=8 k=1024 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.8 h=5 k=512 k_result=1024 value_bits=2",
    ),
    "the same: alpha, beta and the rates": (
        "p2pnet muon h=10 k=512 alpha=1.6 k_result=1024 value_bits=2",
        "p2pnet muon h=10 k=512 beta=0.8 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 alpha=1.5 beta=0.6 k_result=1024 value_bits=2",
        "p2pnet muon h=5 k=512 lr=0.012 alpha=2.0 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 lr=0.03 alpha=1.0 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=768 alpha=1.1 beta=1.0 lr=0.03 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 alpha=1.1 beta=1.0 adamw_lr=0.01 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 alpha=0.85 beta=1.0 adamw_lr=0.01 k_result=1024 value_bits=2",
        "p2pnet muon momentum=0.9 h=5 k=512 alpha=0.85 beta=1.0 adamw_lr=0.02 lr=0.03 k_result=1024 value_bits=2",
        "p2pnet muon h=5 k=512 momentum=0.85 decay=0.8 floor=0.02 k_result=1024 value_bits=2",
    ),
    "p2pnet at one level and 3 k values in a result": (
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=5 alpha=1.1 beta=1.0",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=5 alpha=1.1 beta=1.0 k_result=1024",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=5 alpha=1.1 beta=1.0 value_bits=2",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.1 beta=1.0",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.6 beta=1.0",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=8 alpha=1.1 beta=1.0",
    ),
    "p2pnet at equal bytes: one, two and four levels, fewer values for more bits": (
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.3 beta=1.0 k=344 k_result=1032 value_bits=2",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.3 beta=1.0 k=288 k_result=864 value_bits=3",
    ),
    "the batch of a peer, as many samples and bytes in a round": (
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=8 alpha=1.3 beta=1.0 batch=4 steps=1200 lr=0.014",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=2 alpha=1.3 beta=1.0 batch=16 steps=300 lr=0.028",
    ),
    "the final settings, and both in fp32 throughout": (
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.3 beta=1.0",
        "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.3 beta=1.0 fp32=1",
        "data-parallel muon momentum=0.9 adamw_lr=0.01 fp32=1",
    ),
}
FINAL: Final[dict[str, str]] = {  # those that the targets compare come first
    "p2pnet": "p2pnet muon momentum=0.9 adamw_lr=0.01 h=4 alpha=1.3 beta=1.0",
    "adamw": "data-parallel adamw lr=0.004",
    "muon": "data-parallel muon momentum=0.9 adamw_lr=0.01",
    "diloco-adamw": "diloco adamw lr=0.004 h=30",
    "diloco": "diloco muon momentum=0.9 adamw_lr=0.01 h=30",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=("all", "sweep", "final", "real", "plot", "run"), default="all")
    parser.add_argument("arms", nargs="*", metavar="ARM", help="for `run`")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each (default 2)")
    parser.add_argument("--again", action="store_true", help="repeat the verb's runs")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_intermixed_args()
    store = Store(options.results / "convergence.json")
    sweep = [arm for arms in SWEEP.values() for arm in arms]
    first, rest = list(FINAL.values())[:3], list(FINAL.values())[3:]  # what the targets compare, the others
    order = [(arm, 0) for arm in first + rest]
    order += [(arm, seed) for arms in (first, rest) for seed in range(1, SEEDS) for arm in arms]
    final = [f"{arm} steps={FINAL_STEPS} seed={seed}" for arm, seed in order]
    wanted = {"all": sweep + final, "sweep": sweep, "final": final, "run": options.arms}.get(options.verb, [])
    arms = [str(Arm.parse(text)) for text in wanted]
    if options.again:
        for arm in arms:
            store.runs.pop(arm, None)
    run_all(arms, store, options.jobs)
    if options.verb == "real" or (options.verb == "all" and (options.again or "real" not in store.all)):
        store.all["real"] = real()
        store.save()
    print_tables(store)
    plot(store, options.results / "convergence.png")


class Store:
    """The results file: rewritten whole after every run, so that nothing is lost. One process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
        for arm, record in self.runs.items():  # what is counted may have changed since it ran
            record["bytes_per_step"] = Arm.parse(arm).bytes_per_step(*model_size())

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """What each run came to, by the text of its arm."""
        found: dict[str, dict[str, Any]] = self.all["runs"]
        return found

    def save(self) -> None:
        """Replace the file; one line for each run."""
        parts = [f'"{key}": {json.dumps(part)}' for key, part in self.all.items() if key != "runs"]
        lines = ",\n ".join(f"{json.dumps(arm)}: {json.dumps(record)}" for arm, record in self.runs.items())
        parts.append(f'"runs": {{\n {lines}\n}}')
        draft = self.path.with_suffix(".new")
        draft.write_text("{" + ",\n".join(parts) + "}\n")
        draft.replace(self.path)


# Runs ---------------------------------------------------------------------------------------------------------------


def run_all(arms: Sequence[str], store: Store, jobs: int) -> None:
    """Run what is not there yet, `jobs` at a time."""
    missing = [arm for arm in dict.fromkeys(arms) if arm not in store.runs]
    if not missing:
        return
    began_s = time.monotonic()
    print(f"{len(missing)} runs to do, {len(set(arms)) - len(missing)} are there", flush=True)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
        running = {pool.submit(run_one, arm): arm for arm in missing}
        for done, future in enumerate(as_completed(running), start=1):
            record = future.result()
            store.runs[running[future]] = record
            store.save()
            spent_s = time.monotonic() - began_s
            print(
                f"{done}/{len(missing)} held-out {record['held_out_loss']:.4f}  {running[future]}  "
                f"({record['wall_s']:.0f} s; about {spent_s / done * (len(missing) - done) / 60:.0f} min left)",
                flush=True,
            )


def run_one(arm: str) -> dict[str, Any]:
    """One run, in a process of the pool."""
    began_s = time.monotonic()
    record = run(_bench(), Arm.parse(arm), say=lambda text: print(text, file=sys.stderr, flush=True))
    return record | {"wall_s": time.monotonic() - began_s}


@functools.cache
def model_size() -> tuple[int, int]:
    """Parameters and chunks of the model that every arm trains."""
    its = BytesLmTask("bytes-lm")
    model = ByteTransformer(its.width, its.layers, its.heads, its.context)
    return sum(p.numel() for p in model.parameters()), learner_chunks(model)


@functools.cache
def _bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(BytesLmTask("bytes-lm"))


def real() -> dict[str, Any]:
    """Train with the final setting over the real stack: processes, daemons, every byte on the wire counted."""
    import trio

    from p2pnet.demo import Demo, DemoSettings, PeerView, summarise

    arm = replace(Arm.parse(FINAL["p2pnet"]), steps=FINAL_STEPS)
    rounds = FINAL_STEPS // arm.h
    config = SwarmConfig(
        Swarm("convergence"),
        BytesLmTask("bytes-lm", batch_size=arm.batch),
        Training(h_steps=arm.h, inner=arm.inner_settings()),
        arm.codec(),
        Outer(arm.alpha, arm.beta),
    )

    def show(peer: PeerView) -> None:
        if peer.index == 0 and peer.held_out and len(peer.rounds) % 10 == 0:
            print(f"round {len(peer.rounds)} of {rounds}: {peer.phase}, held-out {peer.held_out[-1]['loss']:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(DemoSettings(arm.peers, rounds, Path(folder), config=config), show)
        trio.run(demo.run)
        return summarise(demo.view) | {"arm": str(arm)}


# Tables and plots ---------------------------------------------------------------------------------------------------

NAMES: Final = {
    "adamw": "data-parallel AdamW",
    "muon": "data-parallel Muon",
    "diloco-adamw": "DiLoCo, AdamW inside",
    "diloco": "DiLoCo, Muon inside",
    "p2pnet": "p2pnet, Muon inside",
}
COLOURS: Final = {
    "adamw": "#8a93a6", "muon": "#1f2430", "diloco-adamw": "#f2a65a", "diloco": "#d9480f", "p2pnet": "#1b6ef3",
}  # fmt: skip


def of_seeds(store: Store, name: str) -> list[dict[str, Any]]:
    """The records of a final arm, by seed, as far as they are there."""
    arms = [str(replace(Arm.parse(FINAL[name]), steps=FINAL_STEPS, seed=seed)) for seed in range(SEEDS)]
    return [store.runs[arm] for arm in arms if arm in store.runs]


def mean_of(records: Sequence[dict[str, Any]], key: str) -> float:
    """The mean over the seeds."""
    return statistics.fmean(record[key] for record in records)


def print_tables(store: Store) -> None:
    """Say what the sweep and the final runs came to."""
    for section, arms in SWEEP.items():
        print(f"\n{section}")
        there = [store.runs[arm] for arm in map(str, map(Arm.parse, arms)) if arm in store.runs]
        for record in sorted(there, key=lambda one: one["held_out_loss"]):
            print(f"  {record['held_out_loss']:.4f}  {record['bytes_per_step'] / 1e3:8.1f} kB a step  {record['arm']}")
    there = {name: records for name in FINAL if (records := of_seeds(store, name))}
    if not {"adamw", "muon"} <= there.keys():
        return
    adamw, muon = (mean_of(there[name], "held_out_loss") for name in ("adamw", "muon"))
    ring = there["adamw"][0]["bytes_per_step"]
    print(f"\n{FINAL_STEPS} steps, held-out loss: mean of seeds (each)    to AdamW   to Muon   fewer bytes")
    for name, records in there.items():
        loss, each = mean_of(records, "held_out_loss"), " ".join(f"{one['held_out_loss']:.4f}" for one in records)
        fewer = ring / records[0]["bytes_per_step"]
        print(
            f"  {NAMES[name]:24} {loss:.4f} ({each})  {loss / adamw - 1:+7.1%}  {loss / muon - 1:+7.1%}  {fewer:9.0f}x"
        )
    if "real" in store.all:
        told, sent = store.all["real"], real_bytes(store.all["real"])
        alone = dict(there["p2pnet"][0]["held_out"][:-1])  # the end has other passages
        rows = [
            (step, alone[step], loss)
            for number, loss in told["held_out"]
            if (step := number * told["h_steps"]) in alone
        ]
        step, loss, real_loss = rows[-1]
        print(
            f"  over the real stack {real_loss:.4f} after {step} steps, in one process {loss:.4f} on the same passages"
        )
        print(f"  {sent / 1e3:.0f} kB sent per peer and round, everything counted")


def real_bytes(told: dict[str, Any]) -> float:
    """What a peer of the real run sent per round, in bytes: everything on the wire, without the start."""
    first, last = told["curve"][0], told["curve"][-1]
    rounds = last["round"] - first["round"]
    return float((last["wire_bytes_up_per_peer"] - first["wire_bytes_up_per_peer"]) / rounds)


def plot(store: Store, path: Path) -> None:
    """Draw held-out loss against tokens, bytes sent per peer, and time on the modelled link."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    by_tokens, by_bytes, by_time = panels = figure.subplots(1, 3, sharey=True)
    for name in FINAL:
        if not (records := of_seeds(store, name)):
            continue
        style = {"color": COLOURS[name], "label": NAMES[name], "linewidth": 2.2 if name == "p2pnet" else 1.6}
        arm = Arm.parse(records[0]["arm"])
        losses = [
            statistics.fmean(loss for _, loss in each)
            for each in zip(*(one["held_out"][1:] for one in records), strict=True)
        ]
        steps = [step for step, _ in records[0]["held_out"][1:]]
        sent = [step * records[0]["bytes_per_step"] for step in steps]
        by_tokens.plot([step * arm.peers * arm.batch * CONTEXT / 1e6 for step in steps], losses, **style)
        by_bytes.plot([one / 1e6 for one in sent], losses, **style)
        seconds = [step * STEP_S[arm.inner] + one * 8 / LINK_BPS for step, one in zip(steps, sent, strict=True)]
        by_time.plot([one / 60 for one in seconds], losses, **style)
    if "real" in store.all:
        told = store.all["real"]
        at = {row["round"] + 1: row for row in told["curve"]}
        points = [(at[number], loss) for number, loss in told["held_out"] if number in at]
        style = {"color": COLOURS["p2pnet"], "marker": ".", "linestyle": "", "label": "p2pnet, real stack"}
        losses = [loss for _, loss in points]
        by_tokens.plot([row["tokens"] / 1e6 for row, _ in points], losses, **style)
        by_bytes.plot([row["wire_bytes_up_per_peer"] / 1e6 for row, _ in points], losses, **style)
    labels = (
        "text read by all peers, million bytes",
        "sent per peer, MB",
        f"minutes at {LINK_BPS / 1e6:.0f} Mbit/s (compute measured, link modelled)",
    )
    for axes, label in zip(panels, labels, strict=True):
        axes.set_xlabel(label)
        axes.grid(True, color="#e6e8ee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    by_bytes.set_xscale("log")
    by_time.set_xscale("log")
    by_tokens.set_ylabel("held-out loss, nats per byte")
    by_tokens.set_ylim(top=2.2)
    by_tokens.legend(frameon=False)
    seeds = ", ".join(f"{NAMES[name]} {len(of_seeds(store, name))}" for name in FINAL)
    figure.suptitle(
        f"4 peers, 0.82 M parameters, {FINAL_STEPS} steps; seeds: {seeds}\n"
        f"held-out passages: {GRID_SAMPLES}, at the curves' ends {END_SAMPLES}, which are easier",
        fontsize=10,
    )
    figure.savefig(path, format="png", facecolor="white")


if __name__ == "__main__":
    main()
