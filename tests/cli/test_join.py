"""What `p2pnet join` writes; that it joins is in tests/processes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pnet.cli.join import WORDS, _as_json, _as_words

ROUND: dict[str, Any] = {
    "round": 7, "void": False, "mine": True, "members": 4, "loss": 2.25, "train_s": 1.5, "straggler_wait_s": 0.0,
    "exchange_s": 0.1, "wire_bytes_up": 123_456, "wire_bytes_down": 2_000_000, "seen": 4, "credited": True, "steps": 12,
    "tokens": 1000, "tokens_per_s": 3400.0, "wait_s": 0.2,
}  # fmt: skip


def test_a_round_is_one_line_with_what_a_volunteer_wants_to_know() -> None:
    line = WORDS["round"](ROUND)
    for part in (
        "round     7",
        "loss 2.250",
        "3.4 k tokens/s",
        "4 members",
        "up 123.5 kB",
        "down 2.0 MB",
        "wait 0.20 s",
    ):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"void": True}, "void"), ({"credited": False}, "not in it"), ({"steps": 0, "loss": None}, "taken over")],
)
def test_a_round_that_did_not_take_my_update_says_so(changed: dict[str, Any], words: str) -> None:
    assert words in WORDS["round"](ROUND | changed)


def test_a_stalled_round_says_who_is_missing() -> None:
    note = {
        "round": 3,
        "kind": "stalled",
        "detail": "2 of 4 voters are here, 3 are needed",
        "peers": ["12D3a", "12D3b"],
    }
    assert WORDS["note"](note).endswith("3 are needed; missing: 12D3a, 12D3b")


def test_each_event_is_one_json_object_on_a_line_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    _as_json()("round", ROUND | {"loss": float("nan")})
    (line,) = capsys.readouterr().out.splitlines()
    event = json.loads(line)
    assert (event["event"], event["loss"], event["round"]) == ("round", None, 7)
    assert event["unix_s"] > 0


def test_what_a_stranger_wrote_never_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    _as_words()("progress", {"text": "manifest of '\x1b[2J'"})
    assert "\x1b" not in capsys.readouterr().err
