"""Draw how a run went: the loss against what it cost, in text read and in bytes sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

INK: Final = "#1f2430"
MUTED: Final = "#8a93a6"
MAIN: Final = "#1b6ef3"
OTHER: Final = "#d9480f"


def draw_curves(summary: dict[str, Any], path: Path) -> None:
    """Write a PNG of a demo's summary (`p2pnet.demo.summarise`). Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in summary["curve"] if row["loss"] is not None]
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    by_tokens, by_bytes = figure.subplots(1, 2, sharey=True)
    _draw_tokens(by_tokens, rows, summary)
    _draw_bytes(by_bytes, rows, summary)
    for axes in (by_tokens, by_bytes):
        axes.grid(True, color="#e6e8ee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=INK, labelsize=9)
    by_tokens.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right")
    same = "bit-identical" if summary["is_identical"] else "NOT identical"
    figure.suptitle(
        f"{len(summary['peers'])} peers, {summary['rounds']} rounds of {summary['h_steps']} steps, "
        f"{summary['params'] / 1e6:.2f} M parameters: {same} at the end",
        fontsize=12,
        color=INK,
    )
    figure.savefig(path, format="png", facecolor="white")


def _draw_tokens(axes: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    tokens = [row["tokens"] / 1e6 for row in rows]
    for position in range(max(len(row["losses"]) for row in rows)):
        points = [
            (t, row["losses"][position]) for t, row in zip(tokens, rows, strict=True) if len(row["losses"]) > position
        ]
        axes.plot(*zip(*points, strict=True), color=MAIN, alpha=0.25, linewidth=1)
    axes.plot(tokens, [row["loss"] for row in rows], color=MAIN, linewidth=2.2, label="training, mean of the peers")
    after = {row["round"] + 1: t for row, t in zip(rows, tokens, strict=True)}
    held_out = [(after[rounds], loss) for rounds, loss in summary["held_out"] if rounds in after]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o", color=OTHER, markersize=6, label="held-out text")
    axes.set_xlabel("text read by all peers, million bytes", color=INK)
    axes.set_ylabel("loss, nats per byte", color=INK)


def _draw_bytes(axes: Any, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    losses = [row["loss"] for row in rows]
    sent = [max(row["wire_bytes_up_per_peer"], 1) / 1e6 for row in rows]
    # What a ring all-reduce of fp32 gradients sends: 2 (n-1)/n of them, at every step.
    n, step_bytes = len(summary["peers"]), 4 * summary["params"]
    plain = [(row["round"] + 1) * summary["h_steps"] * 2 * (n - 1) / n * step_bytes / 1e6 for row in rows]
    axes.plot(sent, losses, color=MAIN, linewidth=2.2)
    axes.plot(plain, losses, color=MUTED, linewidth=1.6, linestyle="--")
    high, low = 0.85 * max(losses) + 0.15 * min(losses), 0.6 * max(losses) + 0.4 * min(losses)
    for points, level, text, colour, side in (
        (sent, high, "p2pnet,\nmeasured on the wire", MAIN, 1),
        (plain, low, "fp32 gradients\nat every step, computed", MUTED, -1),
    ):  # beside its line, where no legend could hide either
        distances = [abs(loss - level) for loss in losses]
        nearest = distances.index(min(distances))
        axes.annotate(
            text,
            (points[nearest], losses[nearest]),
            xytext=(10 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            color=colour,
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.set_xlabel("sent by each peer in the rounds, million bytes", color=INK)
