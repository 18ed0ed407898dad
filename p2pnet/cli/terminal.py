"""Words for people, JSON for programs; what strangers wrote is shown and never obeyed by the terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import typer

UNWRAPPED_CHARS = 240  # into a pipe or a file: one row, one line


def say(text: str) -> None:
    """Write a line to stdout at once, also into a pipe."""
    typer.echo(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line to stderr: for people, beside what a program reads from stdout."""
    typer.echo(text, err=True)


def write_json(value: object) -> None:
    """Write one JSON object on one line; what is not finite becomes null."""
    say(json.dumps(_finite(value), allow_nan=False))


def show_fields(rows: Iterable[tuple[str, object]]) -> None:
    """Write names and values, aligned; a value of several lines is indented. None leaves the row out."""
    shown = [(name, printable(str(value), lines=True)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{name:<{width}}  " + value.replace("\n", "\n" + " " * (width + 2)))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    rows = [list(row) for row in rows]
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable("-" if value is None else str(value))) for value in row))
    Console(width=None if sys.stdout.isatty() else UNWRAPPED_CHARS).print(table)


def printable(text: str, lines: bool = False) -> str:
    """Replace what would move the cursor, colour the screen or end the line; `lines` keeps line ends."""
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)


def in_bytes(count: float) -> str:
    """Return a size as people read it, in powers of 1000: "814 B", "33.2 kB"."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count) / 3), 5)
    return f"{count / 1000**power:.1f} {' kMGTP'[power]}B"


def in_rate(bps: float) -> str:
    """Return a rate as people read it, and as --max-up takes it: "5.0 Mbit/s"."""
    return in_bytes(bps)[:-1] + "bit/s"


def in_span(span_s: float) -> str:
    """Return a span of time as people read it: "4.2 s", "12.0 min", "3.5 h", "2.1 d"."""
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if span_s >= 2 * unit_s:
            return f"{span_s / unit_s:.1f} {unit}"
    return f"{span_s:.1f} s"


def in_time(unix_s: int) -> str:
    """Return a moment in the local time zone; what no calendar has, a stranger's nonsense, as the number it is."""
    try:
        return datetime.fromtimestamp(unix_s).astimezone().isoformat(sep=" ", timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{unix_s} seconds after 1970"


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list() | tuple():
            return [_finite(one) for one in value]
        case float() if not math.isfinite(value):
            return None
    return value
