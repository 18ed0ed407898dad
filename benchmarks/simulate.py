"""How a round's time and bytes grow with the members of a swarm, simulated: the node's machines on links with a rate.

    python benchmarks/simulate.py [--members 4 8 16 32 64] [--rounds 4]

1 B parameters at k = 64, 100 Mbit/s up and down, 50 ms from member to member, 30 s of training a round; each size once
without faults and once with 10 % of the members leaving in each round and coming back a round later. Writes
results/simulate.json and results/simulate.png. The first round, in which everybody meets everybody, is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from p2pnet.cli.curves import INK, MAIN, MUTED, OTHER
from p2pnet.sim.internet import Internet
from p2pnet.sim.scenario import Scenario

RESULTS = Path(__file__).parent / "results"
CONTROL_TARGET = 0.01  # of the payload
TRAFFIC_TARGET = 1.3  # times two payloads and a result
CHURN = 0.1
CHURN_MAX = 32  # members; 64 of them take ten minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--params", type=int, default=10**9)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    print(
        f"{'members':>8}{'churn':>7}{'sealed':>8}{'exchange':>10}{'sent':>10}{'of 2p+r':>9}{'control':>9}{'copies':>8}"
    )
    runs = [(members, options.rounds, options.params, 0.0) for members in options.members]
    runs += [(members, options.rounds, options.params, CHURN) for members in options.members if members <= CHURN_MAX]
    order = sorted(range(len(runs)), key=lambda place: -runs[place][0])  # the longest first
    with ProcessPoolExecutor(options.jobs) as pool:
        found = dict(zip(order, pool.map(measure, [runs[place] for place in order]), strict=True))
    rows = [found[place] for place in range(len(runs))]
    for row in rows:
        print(describe(row))
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "params": options.params,
        "targets": {"control_share": CONTROL_TARGET, "traffic_ratio": TRAFFIC_TARGET},
        "runs": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "simulate.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, RESULTS / "simulate.png")


def measure(run: tuple[int, int, int, float]) -> dict[str, Any]:
    """One run: members, rounds, parameters, churn; returns its figures without those of each round."""
    members, rounds, params, churn = run
    began_s = time.perf_counter()
    net = Internet(Scenario(members=members, rounds=rounds, params=params, churn=churn))
    found = net.play()
    del found["per_round"]
    return {"churn": churn, **found, "took_s": round(time.perf_counter() - began_s, 1)}


def describe(row: dict[str, Any]) -> str:
    rounds, bytes_ = row["rounds"], row["bytes_per_peer_and_round"]
    return (
        f"{row['members']:>8}{row['churn']:>7.0%}{rounds['sealed']:>4} of {rounds['decided']}"
        f"{row['exchange_s']['median']:>8.2f} s{bytes_['sent'] / 1e6:>7.1f} MB{row['traffic_ratio']:>9.2f}"
        f"{row['control_share']:>9.2%}{row['gossip']['steady']:>8.2f}"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4)
    for churn, colour, name in ((0.0, MAIN, "no faults"), (CHURN, OTHER, "10 % leave in each round")):
        runs = [row for row in rows if row["churn"] == churn]
        members = [row["members"] for row in runs]
        shown = (
            [row["exchange_s"]["median"] for row in runs],
            [row["bytes_per_peer_and_round"]["sent"] / 1e6 for row in runs],
            [100 * row["control_share"] for row in runs],
            [row["gossip"]["steady"] for row in runs],
        )
        for axes, values in zip(panels, shown, strict=True):
            axes.plot(members, values, "o-", color=colour, linewidth=2, markersize=5, label=name)
    titles = (
        "from roster to decided, s",
        "sent by a peer in a round, MB",
        "control bytes, % of the payload",
        "copies of a message in gossip",
    )
    panels[2].axhline(100 * CONTROL_TARGET, color=MUTED, linestyle="--", linewidth=1.4)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
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
