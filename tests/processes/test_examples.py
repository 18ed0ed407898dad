from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.processes.runs import Run

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, folder: Path, rounds: int) -> list[str]:
    """Run an example with two replicas; returns what it printed."""
    command = [sys.executable, str(EXAMPLES / name), "--replicas", "2", "--rounds", str(rounds)]
    with Run(command, folder / "log") as run:
        assert run.wait() == 0, (folder / "log").read_text()[-3000:]
        assert run.left_after(1.0) == []
    assert run.lines[-1].startswith("2 replicas are bit-identical")
    return run.lines


def losses(lines: list[str]) -> list[float]:
    return [float(line.split()[3]) for line in lines if line.startswith("round")]


def test_replicas_of_a_plain_loop_learn_and_end_bit_identical(tmp_path: Path) -> None:
    found = losses(run_example("01_plain_loop.py", tmp_path, 12))
    assert found[-1] < found[0] / 2


@pytest.mark.slow
def test_replicas_learn_to_read_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra `examples` is not installed")
    lines = run_example("02_digits.py", tmp_path, 30)
    accuracy = next(float(line.split()[1]) for line in lines if line.startswith("accuracy"))
    assert accuracy > 0.95


@pytest.mark.slow
def test_replicas_train_a_language_model_with_hugging_faces_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `examples` is not installed")
    lines = run_example("03_trainer.py", tmp_path, 8)
    found = losses(lines)
    assert len(found) >= 7
    assert found[-1] < found[0] - 0.5
    assert all(line.split()[5] == "5" for line in lines if line.startswith("round"))
