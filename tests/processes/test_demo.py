from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2pnet.config import Training as SwarmTraining
from tests.processes.runs import COMMAND, Run, crowding

PEERS, ROUNDS = 4, 12


@dataclass(frozen=True)
class Shown:
    """A demo that has ended."""

    status: int
    lines: list[str]
    left: list[str]  # processes
    result: dict[str, Any]
    plot: bytes
    folder: Path
    crowd: float  # the machine's crowding, at its most


@pytest.fixture(scope="module")
def shown(small: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    where = tmp_path_factory.mktemp("demo")
    options = ["--peers", str(PEERS), "--rounds", str(ROUNDS), "--config", str(small), "--text", str(text)]
    places = ["--json", str(where / "demo.json"), "--plot", str(where / "demo.png"), "--keep", str(where / "kept")]
    before = crowding()
    with Run([*COMMAND, "demo", *options, *places], where / "log") as run:
        status = run.wait()
        assert status == 0, [*run.lines[-10:], (where / "log").read_text()[-3000:]]
        left = run.left_after(0.0)
    result = json.loads((where / "demo.json").read_text())
    plot, crowd = (where / "demo.png").read_bytes(), max(before, crowding())
    return Shown(status, run.lines, left, result, plot, where / "kept", crowd)


def of(shown: Shown, name: str) -> list[Any]:
    return [peer[name] for peer in shown.result["peers"]]


def test_all_peers_end_with_the_same_lineage_and_parameters(shown: Shown) -> None:
    assert len(set(of(shown, "peer"))) == PEERS
    assert len(set(of(shown, "lineage"))) == len(set(of(shown, "state_sha256"))) == 1
    assert all(len(bytes.fromhex(one)) == 32 for one in of(shown, "lineage") + of(shown, "state_sha256"))
    assert any("bit-identical on all peers" in line for line in shown.lines)


def test_every_round_is_decided_on_every_peer_and_nearly_all_have_a_result(shown: Shown) -> None:
    assert {a + b for a, b in zip(of(shown, "rounds_sealed"), of(shown, "rounds_void"), strict=True)} == {ROUNDS}
    assert min(of(shown, "rounds_sealed")) >= ROUNDS - 1


def test_the_loss_falls_on_every_peer(shown: Shown) -> None:
    for first, last in zip(of(shown, "loss_first"), of(shown, "loss_last"), strict=True):
        assert last < first - 0.5


def test_an_update_is_a_hundredth_of_its_steps_gradients_in_fp32(shown: Shown) -> None:
    payload, params = shown.result["payload_bytes_per_round"], shown.result["params"]
    assert shown.result["compression_vs_fp32"] == pytest.approx(4 * params / payload)
    assert shown.result["compression_vs_fp32"] * SwarmTraining().h_steps > 100


def test_the_wire_carries_the_rounds_and_little_else(shown: Shown) -> None:
    payload = shown.result["payload_bytes_per_round"]
    rounds = shown.result["curve"][-1]["wire_bytes_up_per_peer"] / ROUNDS
    # Out of 4 peers each sends 3/4 of its payload and, for its part, a result of twice the density to 3 others.
    assert 0.75 * payload < rounds < 8 * payload
    assert sum(of(shown, "wire_bytes_up")) == pytest.approx(sum(of(shown, "wire_bytes_down")), rel=0.05)
    assert shown.result["peers"][0]["wire_bytes_up"] > 4 * shown.result["params"]  # it alone had the initial parameters


def test_the_times_add_up(shown: Shown) -> None:
    for peer in shown.result["peers"]:
        assert 0 < peer["train_s"] + peer["exchange_s"] + peer["straggler_wait_s"] < shown.result["wall_s"]
    assert 0 < shown.result["first_round_s"] < 5 * shown.crowd


def test_a_picture_is_drawn(shown: Shown) -> None:
    assert shown.plot.startswith(b"\x89PNG\r\n")
    assert len(shown.plot) > 10_000


def test_nothing_is_left_running(shown: Shown) -> None:
    assert shown.left == []


def test_what_is_kept_can_be_read_afterwards(shown: Shown) -> None:
    assert len(list(shown.folder.glob("peer-*/*/ledger.db"))) == PEERS
    assert len(list(shown.folder.glob("peer-*/*/learner.safetensors"))) == PEERS


def started(small: Path, text: Path, tmp_path: Path, until: str = "round") -> Run:
    """Start a demo that goes on for long, and wait until a line begins like this."""
    options = ["--peers", "2", "--rounds", "100000", "--config", str(small), "--text", str(text)]
    options += ["--keep", str(tmp_path / "kept")]  # killed, it could not clean up
    run = Run([*COMMAND, "demo", *options, "--plot", str(tmp_path / "demo.png")], tmp_path / "log")
    run.wait_line(lambda line: line.startswith(until))
    return run


def test_kill_9_of_the_demo_ends_every_process_within_3_s(small: Path, text: Path, tmp_path: Path) -> None:
    with started(small, text, tmp_path) as run:
        assert len(run.left_after(0.0)) >= 7  # itself; bootstrap and two peers, a daemon each
        run.process.kill()
        assert run.left_after(3.0) == []


def test_ctrl_c_ends_every_process_within_3_s(small: Path, text: Path, tmp_path: Path) -> None:
    with started(small, text, tmp_path) as run:
        run.process.send_signal(signal.SIGINT)
        assert run.left_after(3.0) == []
        assert run.wait() == 130


def test_ctrl_c_while_the_peers_are_loading_ends_them_too(small: Path, text: Path, tmp_path: Path) -> None:
    with started(small, text, tmp_path, until="peer 1 is") as run:
        run.process.send_signal(signal.SIGINT)
        assert run.left_after(3.0) == []
        assert run.wait() == 130


def test_a_demo_without_text_says_so_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = ["--config", str(small), "--text", str(tmp_path / "empty"), "--plot", str(tmp_path / "demo.png")]
    with Run([*COMMAND, "demo", *options], tmp_path / "log") as run:
        assert run.wait() == 2
        assert run.left_after(1.0) == []
    assert "no text found" in (tmp_path / "log").read_text()
