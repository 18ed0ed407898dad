"""A volunteer's node through a day: paused, resumed, told to leave, ended by SIGTERM in every phase it can be in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from p2pnet.config import SwarmConfig
from p2pnet.demo import DemoSettings, peer_command, prepare
from p2pnet.manifests import swarm_folder
from p2pnet.schema import load_file
from p2pnet.wire.manifest import Link
from tests.processes.runs import COMMAND, Run, crowding

SIGTERM_S = 5.0  # from SIGTERM to the end of the process, whatever it was doing, on a quiet machine
EVER = 10**6  # rounds

# A step without end in the place of the task's own. It says so, and a signal's handler can run in it.
STANDING = """
import sys, threading
from p2pnet.train.tasks import Task
def stand(self, batch):
    print('{"event": "standing"}', flush=True)
    threading.Event().wait()
Task.loss = stand
from p2pnet.cli import main
main()
"""

Start = Callable[..., Run]


class Place:
    """The state directory of the first founder of a swarm, of which nobody else is there."""

    def __init__(self, founders: int, folder: Path, small: Path, text: Path) -> None:
        settings = DemoSettings(founders, EVER, folder, text, load_file(SwarmConfig, small))
        self.link: Link = prepare(settings)[0]
        self.state_dir, self.text = folder / "peer-0", text

    @property
    def saved(self) -> Path:
        return swarm_folder(self.state_dir, self.link.swarm) / "learner.safetensors"

    def start(self, *options: str, program: str | None = None) -> Run:
        command = peer_command(self.link, self.state_dir, EVER, self.text, "--held-out-rounds", "0", *options)
        if program is not None:
            command = [sys.executable, "-c", program, *command[len(COMMAND) :]]
        return Run(command, self.state_dir / "log")

    def tell(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, verb, *options, "--state-dir", str(self.state_dir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def alone(small: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(1, tmp_path_factory.mktemp("alone"), small, text)


def end(run: Run) -> float:
    """Send SIGTERM; returns how long the process took to end by it, less the time that others took from it."""
    crowd, began_s = crowding(), time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == 143
    took_s = time.monotonic() - began_s
    assert run.left_after(3.0) == []
    run.wait()
    return took_s / crowd


def test_a_node_rests_when_it_is_told_to_goes_on_where_it_was_and_leaves_in_peace(alone: Place, tmp_path: Path) -> None:
    with alone.start("--max-up", "5M", "--disk", "1G") as run:
        run.wait_round(1)
        assert alone.tell("pause").stdout.startswith("paused; ")
        assert len(run.left_after(0.0)) == 1  # its daemon is gone
        rested = run.last_round
        status = alone.tell("status")
        assert "paused by you" in status.stdout
        assert "credited" in status.stdout
        assert alone.tell("export", str(tmp_path / "m.safetensors")).stdout.startswith(str(tmp_path))
        assert alone.tell("resume").stdout.startswith("resumed")
        run.wait_round(rested + 2)
        status = json.loads(alone.tell("status", "--json").stdout)
        assert (status["cap_bps"], status["paused"]) == ({"up": 5_000_000, "down": None}, False)
        assert status["rounds_credited"] > rested
        left = alone.tell("leave")
        assert "updates in the result" in left.stdout
        assert run.wait() == 0
    numbers = [event["round"] for event in run.events if event["event"] == "round"]
    assert numbers == list(range(len(numbers)))  # none twice, none left out
    assert [event["paused"] for event in run.events if event["event"] == "paused"] == [True]


def test_sigterm_in_training_saves_and_ends_the_process(alone: Place) -> None:
    before = alone.saved.stat().st_mtime_ns
    with alone.start() as run:
        first = run.wait_for(lambda event: event["event"] == "round")
        assert end(run) < SIGTERM_S
        assert run.events[-1]["event"] == "end"
    assert first["round"] > 0  # it went on where it was
    assert alone.saved.stat().st_mtime_ns > before


def test_sigterm_in_a_step_that_does_not_end_saves_what_the_last_round_left(alone: Place) -> None:
    before = alone.saved.stat().st_mtime_ns
    with alone.start(program=STANDING) as run:
        run.wait_for(lambda event: event["event"] == "standing")
        assert end(run) < SIGTERM_S
    assert alone.saved.stat().st_mtime_ns > before
    with alone.start() as run:
        run.wait_for(lambda event: event["event"] == "round")
        assert end(run) < SIGTERM_S


def test_sigterm_outside_its_hours_and_while_paused_ends_it_at_once(alone: Place) -> None:
    hour = datetime.now().hour  # noqa: DTZ005 - the wall's
    with alone.start("--hours", f"{(hour + 2) % 24}-{(hour + 4) % 24}") as run:
        paused = run.wait_for(lambda event: event["event"] == "paused")
        assert paused["paused_until"].startswith(f"{(hour + 2) % 24:02}:00")
        assert len(run.left_after(0.0)) == 1  # no daemon
        assert "paused until" in alone.tell("status").stdout
        assert end(run) < SIGTERM_S


def test_sigterm_while_the_others_are_waited_for_ends_it(small: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "swarm.toml"  # or the other founder would be waited for as long as a round may take
    short.write_text(small.read_text().replace("h_steps = 2", "h_steps = 2\nwindow_s = 1.0"))
    place = Place(2, tmp_path / "swarm", short, text)
    with place.start() as run:
        run.wait_for(lambda event: event["event"] == "note" and event["kind"] == "stalled")
        assert end(run) < SIGTERM_S
    assert place.saved.exists()
