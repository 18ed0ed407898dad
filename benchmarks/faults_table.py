"""What `faults.py` says of its runs."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any


def sum_up(measured: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    runs = measured["runs"]
    outcomes = Counter(run["outcome"] for run in runs)
    row: dict[str, Any] = {"row": measured["row"], "runs": len(runs)}
    row["outcome"] = ", ".join(f"{name} ({count})" if len(outcomes) > 1 else name for name, count in outcomes.items())
    for name in ("extra_s", "next_extra_s", "said_after_s", "took_s", "normal_s"):
        values = [run[name] for run in runs if run.get(name) is not None]
        if values:
            row[name] = {"median": statistics.median(values), "max": max(values)}
    row["equal"] = all(run["equal"] for run in runs)
    row["finite"] = all(run.get("finite", True) for run in runs)
    row["next"] = ", ".join(sorted({run["next"] for run in runs if "next" in run}))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""

    def seconds(row: dict[str, Any], name: str) -> str:
        return f"{row[name]['median']:.1f} ({row[name]['max']:.1f})" if name in row else ""

    head = [
        "fault",
        "runs",
        "the round",
        "beyond a normal one, s (max)",
        "the next round",
        "beyond, s (max)",
        "replicas",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        extra = seconds(row, "extra_s") or (
            f"said after {seconds(row, 'said_after_s')}" if "said_after_s" in row else ""
        )
        if "took_s" in row:
            extra = f"took {seconds(row, 'took_s')}, normally {row['normal_s']['median']:.1f}"
        equal_ = "equal" if row["equal"] else "DIFFER"
        equal_ += "" if row["finite"] else ", NaN"
        lines.append(
            [row["row"], str(row["runs"]), row["outcome"], extra, row["next"], seconds(row, "next_extra_s"), equal_]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
