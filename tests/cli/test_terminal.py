from __future__ import annotations

import json
import math

import pytest

from p2pnet.cli.terminal import in_bytes, in_span, in_time, printable, show_fields, show_table, write_json


def test_a_strangers_text_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2Jname\r\n[bold]\u202e"
    assert printable(hostile) == "\\x1b[2Jname\\r\\n[bold]\\u202e"
    show_table(["name"], [[hostile]])
    show_fields([("name", hostile)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.count("[bold]") == 2


def test_json_is_valid_whatever_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"loss": math.nan, "rates": [1.5, math.inf], "deep": {"x": (-math.inf,)}})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rates": [1.5, None], "deep": {"x": [None]}}


def test_a_table_in_a_pipe_has_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["a", "b"], [["x" * 70, "y" * 70], [None, 3]])
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 70 in line and "y" * 70 in line for line in lines)


def test_fields_are_aligned_and_what_is_absent_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show_fields([("a", 1), ("long", "x\ny"), ("absent", None)])
    assert capsys.readouterr().out == "a     1\nlong  x\n      y\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_000, "90.0 kB"), (3_278_312, "3.3 MB")]
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    assert in_bytes(count) == text


@pytest.mark.parametrize(("span_s", "text"), [(0.25, "0.2 s"), (119, "119.0 s"), (600, "10.0 min"), (90_000, "25.0 h")])
def test_spans_as_people_read_them(span_s: float, text: str) -> None:
    assert in_span(span_s) == text


@pytest.mark.parametrize("unix_s", [2**62, 2**40, -(10**12)])
def test_a_moment_that_no_calendar_has_is_shown_as_its_number(unix_s: int) -> None:
    assert in_time(unix_s) == f"{unix_s} seconds after 1970"
    assert in_time(0).startswith(("1970-01-01", "1969-12-31"))
