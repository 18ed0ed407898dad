"""Measure what the README says of the demo: `p2pnet demo` with its defaults, several times; medians, JSON, a plot.

python benchmarks/demo.py [--runs 3] [--peers 4] [--rounds 50]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
FIGURES = {
    "wall_s": "whole run, s",
    "first_round_s": "last peer ready to first decided round, s",
    "exchange_share": "share of a round spent in the exchange",
    "straggler_share": "share of a round spent waiting for the slowest",
    "loss_first": "training loss of the first round, nats per byte",
    "loss_last": "training loss of the last round",
    "held_out": "held-out loss at the end",
    "payload_bytes_per_round": "payload per peer and round, bytes",
    "compression_vs_fp32": "fp32 parameters / payload",
    "wire_bytes_per_round": "sent per peer and round, headers and control included, bytes",
    "wire_saving_vs_data_parallel": "fp32 gradients at every step / sent",
    "cpu_s_per_peer": "CPU of a peer, its daemon included, s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    runs = [measure(options.peers, options.rounds, RESULTS / "demo.png") for _ in range(options.runs)]
    medians = {name: statistics.median(run[name] for run in runs) for name in FIGURES}
    for name, what in FIGURES.items():
        values = sorted(run[name] for run in runs)
        print(f"{what:70} {medians[name]:>12.4g}   ({values[0]:.4g} .. {values[-1]:.4g})")
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}",
        "peers": options.peers,
        "rounds": options.rounds,
        "is_identical": all(run["is_identical"] for run in runs),
        "medians": medians,
        "runs": runs,
    }
    (RESULTS / "demo.json").write_text(json.dumps(record, indent=1) + "\n")


def measure(peers: int, rounds: int, plot: Path) -> dict[str, Any]:
    """Run the demo once; returns its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "p2pnet.cli", "demo", "--peers", str(peers), "--rounds", str(rounds)]
        subprocess.run([*command, "--json", str(out), "--plot", str(plot)], check=True)
        demo = json.loads(out.read_text())
    curve, each = demo["curve"], demo["peers"]
    spent_s = statistics.median(one["train_s"] + one["exchange_s"] + one["straggler_wait_s"] for one in each)
    sent = (curve[-1]["wire_bytes_up_per_peer"] - curve[0]["wire_bytes_up_per_peer"]) / (len(curve) - 1)
    data_parallel = 2 * (peers - 1) / peers * 4 * demo["params"] * demo["h_steps"]
    return {
        "wall_s": demo["wall_s"],
        "first_round_s": demo["first_round_s"],
        "exchange_share": demo["exchange_share"],
        "straggler_share": statistics.median(one["straggler_wait_s"] for one in each) / spent_s,
        "loss_first": curve[0]["loss"],
        "loss_last": curve[-1]["loss"],
        "held_out": demo["held_out"][-1][1],
        "payload_bytes_per_round": demo["payload_bytes_per_round"],
        "compression_vs_fp32": demo["compression_vs_fp32"],
        "wire_bytes_per_round": sent,
        "wire_saving_vs_data_parallel": data_parallel / sent,
        "cpu_s_per_peer": demo["children_cpu_s"] / peers,
        "is_identical": demo["is_identical"],
    }


def cores() -> int:
    """Cores this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
