"""How a round's time and bytes grow with the members of a swarm, simulated: the node's machines on links with a rate.

    python benchmarks/simulate.py [--members 4 8 16 32 64 ...] [--churned 8 16 32 ...] [--rounds 4] [--keep]

1 B parameters at k = 64, 100 Mbit/s up and down, 50 ms from member to member, 30 s of training a round; each size of
--members without faults, each of --churned with 10 % of the members leaving in each round and coming back a round
later. Writes results/simulate.json and results/simulate.png; with --keep the runs of other sizes stay in them. The
first round, in which everybody meets everybody, is left out of bytes and times. From 512 members on gossip is played.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from p2pnet.cli.curves import INK, MAIN, MUTED, OTHER
from p2pnet.sim.flood import PLAYED_FROM
from p2pnet.sim.internet import Internet
from p2pnet.sim.scenario import Scenario

RESULTS = Path(__file__).parent / "results"
CONTROL_TARGET = 0.01  # of the payload
TRAFFIC_TARGET = 1.3  # times two payloads and a result
CHURN = 0.1

Run = tuple[int, int, int, float]  # members, rounds, parameters, churn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="*", default=[4, 8, 16, 32, 64, 128, 256, 512, 1000])
    parser.add_argument("--churned", type=int, nargs="*", default=[4, 8, 16, 32, 64, 128, 256, 512, 1000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--params", type=int, default=10**9)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--keep", action="store_true", help="add to the runs of results/simulate.json")
    options = parser.parse_args()
    print(
        f"{'members':>8}{'churn':>7}{'sealed':>11}{'exchange':>10}{'sent':>10}{'of 2p+r':>9}{'control':>9}{'copies':>8}"
        f"{'CPU':>10}"
    )
    runs = [(members, options.rounds, options.params, 0.0) for members in options.members]
    runs += [(members, options.rounds, options.params, CHURN) for members in options.churned]
    order = sorted(runs, key=lambda run: -run[0])  # the longest first
    if options.jobs > 1:
        with ProcessPoolExecutor(options.jobs) as pool:
            found = list(pool.map(measure, order))
    else:
        found = [measure(run) for run in order]
    rows = {(row["members"], row["churn"]): row for row in [*(kept_rows() if options.keep else ()), *found]}
    listed = [rows[key] for key in sorted(rows, key=lambda key: (key[1], key[0]))]
    for row in listed:
        print(describe(row))
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "params": options.params,
        "targets": {"control_share": CONTROL_TARGET, "traffic_ratio": TRAFFIC_TARGET},
        "runs": listed,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "simulate.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(listed, RESULTS / "simulate.png")


def kept_rows() -> list[dict[str, Any]]:
    """The runs that were measured before."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / "simulate.json").read_text())["runs"]
    return rows


def measure(run: Run) -> dict[str, Any]:
    """One run; returns its figures, of each round only how it ended."""
    members, rounds, params, churn = run
    began_s, cpu_s = time.perf_counter(), time.process_time()
    found = Internet(Scenario(members=members, rounds=rounds, params=params, churn=churn)).play()
    found["per_round"] = [
        {key: each[key] for key in ("round", "void", "view", "members", "exchange_s")} for each in found["per_round"]
    ]
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return {"churn": churn, **found, "took_s": round(took_s, 1), "cpu_s": round(cpu_s, 1)}


def describe(row: dict[str, Any]) -> str:
    rounds, bytes_ = row["rounds"], row["bytes_per_peer_and_round"]
    copies = "played" if row["members"] >= PLAYED_FROM else f"{row['gossip']['steady']:.2f}"
    return (
        f"{row['members']:>8}{row['churn']:>7.0%}{rounds['sealed']:>7} of {rounds['decided']}"
        f"{row['exchange_s']['median']:>8.2f} s{bytes_['sent'] / 1e6:>7.1f} MB{row['traffic_ratio']:>9.2f}"
        f"{row['control_share']:>9.2%}{copies:>8}{row.get('cpu_s', row['took_s']):>8.1f} s"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4)
    for churn, colour, name in ((0.0, MAIN, "no faults"), (CHURN, OTHER, "10 % leave in each round")):
        runs = [row for row in rows if row["churn"] == churn]
        gossiped = [row for row in runs if row["members"] < PLAYED_FROM]  # beyond, gossip is played
        shown = (
            (runs, [row["exchange_s"]["median"] for row in runs]),
            (runs, [row["bytes_per_peer_and_round"]["sent"] / 1e6 for row in runs]),
            (runs, [100 * row["control_share"] for row in runs]),
            (gossiped, [row["gossip"]["steady"] for row in gossiped]),
        )
        for axes, (of, values) in zip(panels, shown, strict=True):
            members = [row["members"] for row in of]
            axes.plot(members, values, "o-", color=colour, linewidth=2, markersize=5, label=name)
    titles = (
        "from roster to decided, s",
        "sent by a peer in a round, MB",
        "control bytes, % of the payload",
        "copies of a message in gossip",
    )
    panels[2].axhline(100 * CONTROL_TARGET, color=MUTED, linestyle="--", linewidth=1.4)
    if rows:
        least = (2 * rows[0]["payload_bytes"] + rows[0]["result_bytes"]) / 1e6
        panels[1].axhline(TRAFFIC_TARGET * least, color=MUTED, linestyle="--", linewidth=1.4)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:,.0f}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("members", color=INK)
        axes.grid(True, color="#e6e8ee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=INK, labelsize=9)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    figure.suptitle(
        "simulated: 1 B parameters at k = 64, 100 Mbit/s, 50 ms; the node's own state machines", fontsize=12, color=INK
    )
    figure.savefig(path, format="png", facecolor="white")


if __name__ == "__main__":
    main()
