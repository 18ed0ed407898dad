"""The benchmark of the exchange, at a small size: its figures are of rounds in which all took part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "allreduce.py"


@pytest.mark.processes
@pytest.mark.slow
def test_the_benchmark_of_the_exchange_runs_and_accounts_for_its_time() -> None:
    command = [sys.executable, str(SCRIPT), "--peers", "2", "--megabytes", "0.5", "--rounds", "2", "--no-rival"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    (case,) = json.loads(run.stderr[run.stderr.index("[\n") :])
    ours = case["arms"]["p2pnet"]
    assert 0 < ours["median_peer_s"] <= ours["seconds"]
    assert ours["cpu_s_per_peer"] > 0
    phases = sum(case["phases_ms"].values()) / 1000
    assert phases < 2 * ours["seconds"]
    assert case["memory_mb"]["state_mb"] >= 3 * case["memory_mb"]["params_mb"] > 0
