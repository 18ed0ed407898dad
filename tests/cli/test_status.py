from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnet.node.status import POINTER_NAME, serve_status
from tests.cli.conftest import Done, Run

FACTS: dict[str, Any] = {
    "peer": "12D3KooWme",
    "name": "evil\x1b[2J",
    "swarm": "ab" * 32,
    "round": 12,
    "phase": "exchange",
    "rounds_sealed": 11,
    "rounds_void": 1,
    "loss_first": 5.5,
    "loss": 2.25,
    "connected": ["12D3KooWa", "12D3KooWb"],
    "stalled_s": 180.0,
    "missing": ["12D3KooWc"],
    "wire_bytes_up": 1_500_000,
    "known_members": 4,
    "members": 2,
    "notes": [{"round": 3, "kind": "left-out", "detail": "too late", "peers": ["12D3KooWb"]}, "plain"],
    "of a later version": {"x": 1},
}


async def ask(run: Run, *arguments: str) -> Done:
    return await trio.to_thread.run_sync(partial(run, "status", "--state-dir", "s", *arguments))


@pytest.fixture
async def folder(home: Path, nursery: trio.Nursery) -> AsyncIterator[Path]:
    """The folder of a swarm whose node runs."""
    folder = home / "s" / ("ab" * 8)
    await start(folder, FACTS, nursery)
    yield folder
    nursery.cancel_scope.cancel()


async def start(folder: Path, facts: dict[str, Any], nursery: trio.Nursery) -> None:
    folder.mkdir(parents=True)  # noqa: ASYNC240 - a test
    nursery.start_soon(serve_status, folder, lambda: facts)
    with trio.fail_after(5):
        while not (folder / POINTER_NAME).exists():  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_a_volunteer_reads_how_it_goes(run: Run, folder: Path) -> None:
    shown = (await ask(run)).out
    for text in (
        "12, exchange",
        "11 sealed, 1 void",
        "2.2500, at first 5.5000",
        "1.5 MB up",
        "for 3.0 min",
        "12D3KooWc",
    ):
        assert text in shown
    assert "4 known, 2 have committed to this round" in shown
    assert "round 3, left-out: too late: 12D3KooWb" in shown
    assert "\x1b" not in shown


async def test_a_program_gets_all_that_the_node_says(run: Run, folder: Path) -> None:
    assert (await ask(run, "--json")).json == FACTS


async def test_what_a_node_does_not_say_is_left_out(run: Run, home: Path, nursery: trio.Nursery) -> None:
    await start(home / "s" / "0123", {"swarm": "01", "phase": "opening"}, nursery)
    assert (await ask(run)).out == "swarm  01\nround  opening\n"
    nursery.cancel_scope.cancel()


async def test_a_node_that_was_killed_does_not_hide_the_one_that_runs(run: Run, folder: Path) -> None:
    dead = folder.parent / "dead"
    dead.mkdir()
    (dead / POINTER_NAME).write_text(json.dumps({"pid": 1, "socket": str(dead / "gone")}))
    assert (await ask(run)).status == 0
    alone = await ask(run, "--swarm", "dead")
    assert alone.status == 1
    assert "does not answer" in alone.err


async def test_of_two_nodes_one_is_named(run: Run, folder: Path, nursery: trio.Nursery) -> None:
    await start(folder.parent / "cdef", {"round": 99}, nursery)
    both = await ask(run)
    assert (both.status, "2 nodes run" in both.err) == (2, True)
    assert (await ask(run, "--swarm", "cd", "--json")).json == {"round": 99}


def test_where_no_node_runs_it_says_so(run: Run) -> None:
    done = run("status")
    assert (done.status, done.out) == (1, "")
    assert "no node runs in" in done.err
    assert "p2pnet join LINK" in done.err
