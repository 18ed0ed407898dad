from __future__ import annotations

import sys
from pathlib import Path

from tests.processes.runs import Run

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_replicas_of_a_plain_loop_learn_and_end_bit_identical(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "01_plain_loop.py"), "--replicas", "2", "--rounds", "12"]
    with Run(command, tmp_path / "log") as run:
        assert run.wait() == 0, (tmp_path / "log").read_text()[-3000:]
        assert run.left_after(1.0) == []
    losses = [float(line.split()[3]) for line in run.lines if line.startswith("round")]
    assert losses[-1] < losses[0] / 2
    assert run.lines[-1].startswith("2 replicas are bit-identical")
