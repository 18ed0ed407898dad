"""Loops of one's own as processes: how they end, and replicas that are themselves several processes."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from p2pnet.config import Codec, CustomTask, Policy, SwarmConfig, Training
from p2pnet.config import Swarm as SwarmSection
from p2pnet.founding import create
from p2pnet.identity import Identity, peer_id_text
from p2pnet.node.runner import KEY_NAME
from p2pnet.train.savefile import LEARNER_NAME
from p2pnet.train.storage import read_tensors
from p2pnet.wire.manifest import Link
from tests.processes.loop import make_model
from tests.processes.runs import Run

ROUNDS = 3


def make_swarm(folder: Path, members: int) -> tuple[Link, list[Path]]:
    """A swarm whose founders are all needed for a decision, so that none runs ahead; and a folder for each."""
    places = [folder / str(number) for number in range(members)]
    founders = tuple(Identity.load_or_create(place / KEY_NAME).peer for place in places)
    settings = SwarmConfig(
        SwarmSection("loops", founders=founders), CustomTask("custom", batch_size=8),
        Training(h_steps=2, window_s=2.0), Codec(k=8, k_result=16), policy=Policy(grace_s=1.0, stall_s=5.0),
    )  # fmt: skip
    return create(settings, make_model(), state_dir=places[0]), places


def start(link: Link, place: Path, log: Path, *more: str, rounds: int = ROUNDS) -> Run:
    return Run([sys.executable, "-m", "tests.processes.loop", str(link), str(place), str(rounds), *more], log)


def states(run: Run) -> dict[str, str]:
    """The state after each round that a process told."""
    return {line.split()[1]: line.split()[2] for line in run.lines if line.startswith("round")}


@pytest.mark.parametrize("end", ["error", "wait"])
def test_an_error_and_ctrl_c_in_the_loop_leave_the_swarm(tmp_path: Path, end: str) -> None:
    link, (place,) = make_swarm(tmp_path, 1)
    with start(link, place, tmp_path / "log", end) as run:
        run.wait_line(lambda line: line.startswith(f"round {ROUNDS - 1}"))
        status = run.wait() if end == "error" else run.kill(signal.SIGINT)
        assert status != 0
        assert run.left_after(1.0) == [], "the daemon is gone"
    assert ("in the user's own code" if end == "error" else "KeyboardInterrupt") in (tmp_path / "log").read_text()
    is_torn = end == "wait" and "interrupted between two rounds" in (tmp_path / "log").read_text()
    if not is_torn:  # Ctrl-C may come while theta is changed: then the rest is replayed
        _, notes = read_tensors(place / LEARNER_NAME)
        assert int(notes["round"]) >= ROUNDS - 1
    with start(link, place, tmp_path / "log", "done", rounds=1) as again:
        assert again.wait() == 0
        joined = next(line for line in again.lines if line.startswith("joined"))
        assert int(joined.split()[1]) >= ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_replica_of_two_processes_is_one_peer_among_others(tmp_path: Path, kind: str) -> None:
    link, places = make_swarm(tmp_path, 2)
    with start(link, places[0], tmp_path / "log", "wait") as alone:
        addr = alone.wait_line(lambda line: line.startswith("listening")).split()[1]
        peer = peer_id_text(Identity.load(places[0] / KEY_NAME).peer)
        here = Link(link.swarm, (f"{addr}/p2p/{peer}",))
        logs = [tmp_path / "log0", tmp_path / "log1"]
        folders = [places[1], tmp_path / "nowhere"]
        with (
            start(here, folders[0], logs[0], "done", "0", str(tmp_path), kind) as first,
            start(here, folders[1], logs[1], "done", "1", str(tmp_path), kind) as second,
        ):
            for run, log in zip((first, second), logs, strict=True):
                assert run.wait() == 0, log.read_text()[-3000:]
                assert run.lines[-1] == "left"
        assert states(first) == states(second)
        assert sum("True" in line for line in first.lines) == ROUNDS, "credited for each"
        last = max(states(first), key=int)
        alone.wait_line(lambda line: line.startswith(f"round {last} "))
        shared = states(first).keys() & states(alone).keys()
        assert len(shared) >= ROUNDS
        assert {number: states(alone)[number] for number in shared} == {
            number: states(first)[number] for number in shared
        }
        assert not folders[1].exists(), "only rank 0 has a state directory"
        assert alone.kill(signal.SIGINT) != 0
        assert alone.left_after(1.0) == []
