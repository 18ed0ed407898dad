"""What a person reads of a node's status; what a node says is in tests/node and tests/test_member."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pnet.node.commands import POINTER_NAME, CommandSocket
from tests.cli.conftest import Run

Start = Callable[..., Path]
SWARM = "ab" * 32
FACTS: dict[str, Any] = {
    "peer": "12D3KooWme",
    "name": "evil\x1b[2J",
    "swarm": SWARM,
    "round": 12,
    "phase": "exchange",
    "rounds_sealed": 11,
    "rounds_void": 1,
    "rounds_contributed": 12,
    "rounds_credited": 10,
    "steps": 60,
    "tokens": 7680,
    "payload_bytes": 33_200,
    "tokens_per_s": 3400.0,
    "loss_first": 5.5,
    "loss": 2.25,
    "connected": ["12D3KooWa", "12D3KooWb"],
    "relayed": ["12D3KooWb"],
    "connections": 3,
    "known_members": 4,
    "credits": [{"round": 10, "credit": "credited"}, {"round": 11, "credit": "not credited: my commit came late"}],
    "stalled_s": 180.0,
    "missing": ["12D3KooWc"],
    "wire_bytes_up": 1_500_000,
    "rate_bps": {"up": 4_800_000, "down": 0},
    "cap_bps": {"up": 5_000_000, "down": None},
    "disk_bytes": {"used": 19_000_000_000, "allowed": 20_000_000_000},
    "notes": [{"round": 3, "kind": "left-out", "detail": "too late", "peers": ["12D3KooWb"]}, "plain"],
    "of a later version": {"x": 1},
}


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Let a node say this in the folder of a swarm."""
    with ExitStack() as stack:

        def start(facts: dict[str, Any], name: str = "ab" * 8) -> Path:
            folder = home / "s" / name
            folder.mkdir(parents=True)
            stack.enter_context(CommandSocket(folder, {"status": lambda: facts}))
            return folder

        yield start


def shown(run: Run, *arguments: str) -> str:
    done = run("status", "--state-dir", "s", *arguments)
    assert done.status == 0
    return done.out


@pytest.mark.parametrize(
    "text",
    [
        "round 12, exchanging updates",
        "to 2 members (1 directly, 1 through a relay, 4 known, 1 other peers)",
        "10 of 12 updates in the result, 60 steps, 7,680 tokens, 33.2 kB of updates",
        "round 11  not credited: my commit came late",
        "3,400 tokens/s",
        "2.2500, at first 5.5000",
        "11 with a result, 1 void",
        "1.5 MB up, now 4.8 Mbit/s of 5.0 Mbit/s allowed",
        "19.0 GB of 20.0 GB allowed",
        "for 3.0 min; missing are",
        "12D3KooWc",
        "round 3, left-out: too late: 12D3KooWb",
        "too few voters are here to decide",
    ],
)
def test_a_volunteer_reads_how_it_goes(run: Run, start: Start, text: str) -> None:
    start(FACTS)
    assert text in shown(run)
    assert "\x1b" not in shown(run)


@pytest.mark.parametrize(
    ("facts", "doing", "advice"),
    [
        ({"phase": "paused", "paused": True}, "paused by you", "`p2pnet resume` goes on"),
        (
            {"phase": "paused", "paused": False, "paused_until": "22:00", "hours": "22:00-07:00"},
            "paused until 22:00 (its hours are 22:00-07:00)",
            "",
        ),
        (
            {"phase": "opening", "progress": "looking for a member", "trouble": "no bootstrap peer answers; tried x"},
            "looking for the swarm, looking for a member",
            "check that this machine is online",
        ),
        ({"phase": "opening", "connected": []}, "looking for the swarm", "nobody who has the swarm is found yet"),
        ({"phase": "catching up", "progress": "round 3 of 9"}, "taking over what was decided, round 3 of 9", ""),
        ({"phase": "train", "disk_bytes": {"used": 95, "allowed": 100}}, "training", "start it again with a larger"),
        (
            {"phase": "train", "round": 9, "branch": {"final_round": 7, "voters": ["12D3one"]}},
            "since round 7 of the final chain; its voters are",
            "their work is kept when the others are back",
        ),
    ],
)
def test_what_it_does_and_what_to_do_about_it_is_said(
    run: Run, start: Start, facts: dict[str, Any], doing: str, advice: str
) -> None:
    start(facts)
    lines = shown(run)
    assert doing in lines
    assert advice in lines


def test_a_program_gets_all_that_the_node_says(run: Run, start: Start) -> None:
    start(FACTS)
    assert json.loads(shown(run, "--json")) == FACTS


def test_what_a_node_does_not_say_is_left_out(run: Run, start: Start) -> None:
    start({"swarm": "01", "phase": "opening"})
    assert shown(run) == "swarm  01\ndoing  looking for the swarm\n"


def test_a_node_that_was_killed_does_not_hide_the_one_that_runs(run: Run, start: Start) -> None:
    dead = start(FACTS).parent / "dead"
    dead.mkdir()
    (dead / POINTER_NAME).write_text(json.dumps({"pid": 1, "socket": str(dead / "gone")}))
    assert shown(run)
    alone = run("status", "--state-dir", "s", "--swarm", "dead")
    assert alone.status == 1
    assert "does not answer" in alone.err


def test_of_two_nodes_one_is_named(run: Run, start: Start) -> None:
    start(FACTS)
    start({"round": 99}, "cdef")
    both = run("status", "--state-dir", "s")
    assert (both.status, "2 nodes run" in both.err) == (2, True)
    assert json.loads(shown(run, "--swarm", "cd", "--json")) == {"round": 99}


def test_where_no_node_runs_it_says_so(run: Run) -> None:
    done = run("status")
    assert (done.status, done.out) == (1, "")
    assert "no node runs in" in done.err
    assert "p2pnet join LINK" in done.err
