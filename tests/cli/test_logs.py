from __future__ import annotations

import json
import logging
import sys

import pytest

from p2pnet.cli.logs import JsonFormatter
from tests.cli.conftest import Run


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("p2pnet.net", logging.WARNING, "x.py", 1, message, arguments, None)


def test_a_record_is_one_line_of_json_with_its_time_level_logger_and_message() -> None:
    line = JsonFormatter().format(record("two\nlines of %s", "\x1b[2J"))
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "p2pnet.net", "two\nlines of \x1b[2J")
    assert found["time"].endswith("+00:00")


def test_an_error_brings_its_traceback() -> None:
    failed = record("failed")
    try:
        raise ValueError("odd")
    except ValueError:
        failed.exc_info = sys.exc_info()
    assert "ValueError: odd" in json.loads(JsonFormatter().format(failed))["error"]


def test_it_is_an_option_of_every_verb(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run("--log-json", "key", "--create").status == 0
    [handler] = logging.getLogger().handlers
    assert isinstance(handler.formatter, JsonFormatter)
    logging.captureWarnings(False)
