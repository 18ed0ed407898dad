"""Measure the memory of a node beyond torch and the model: its process's growth plus its libp2p daemon, at most 150 MB.

python benchmarks/node_memory.py [--peers 4] [--rounds 10]

Each peer is a process of its own, all in one swarm on loopback. The baseline is taken after torch is imported and the
model was trained for 60 steps with its optimizer: what the user's loop costs with no p2pnet in it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT_MB = 150.0
LISTEN = "/ip4/127.0.0.1/tcp/0"
SETTINGS = """
[swarm]
name = "node-memory"
[task]
kind = "bytes-lm"
[policy]
grace_s = 1.0
"""
COLUMNS = {
    "baseline_mb": "torch, model",
    "node_idle_mb": "node, idle",
    "daemon_idle_mb": "daemon, idle",
    "beyond_idle_mb": "beyond, idle",
    "node_trained_mb": "node, trained",
    "daemon_trained_mb": "daemon, trained",
    "beyond_trained_mb": "beyond, trained",
    "beyond_peak_mb": "beyond, peak",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        run_peer(options.peer, options.folder, options.rounds)
        return
    rows = measure(options.peers, options.rounds)
    print("".join(f"{title:>17}" for title in COLUMNS.values()), "   MB per peer")
    for row in rows:
        print("".join(f"{row[name]:>17.1f}" for name in COLUMNS))
    worst = max(row[name] for row in rows for name in ("beyond_idle_mb", "beyond_trained_mb"))
    print(f"at most {worst:.1f} MB beyond torch and the model; the limit is {LIMIT_MB:g}")
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "peers": rows,
        "params": rows[0]["params"],
        "rounds": options.rounds,
        "beyond_max_mb": worst,
        "limit_mb": LIMIT_MB,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "node_memory.json").write_text(json.dumps(record, indent=1) + "\n")
    if worst > LIMIT_MB:
        raise SystemExit("over the limit")


def measure(peers: int, rounds: int) -> list[dict[str, Any]]:
    """Run a swarm; returns a row for each peer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bootstrap = subprocess.Popen(
            [sys.executable, "-m", "p2pnet.cli", "bootstrap", "--listen", LISTEN, "--key", str(folder / "key")],
            stdout=subprocess.PIPE,
            text=True,
        )
        running: list[subprocess.Popen[str]] = []
        try:
            assert bootstrap.stdout is not None
            addr = next(word for line in bootstrap.stdout for word in line.split() if "/p2p/12D3" in word)
            (folder / "bootstrap").write_text(addr)
            for number in range(peers):
                command = [sys.executable, __file__, "--peer", str(number), "--folder", name, "--rounds", str(rounds)]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                running.append(process)
                if number == 0:
                    read_row(process)  # the swarm is made: the others may join it
            for process in running[1:]:
                read_row(process)
            for process in running:  # all are built: let them join at once
                tell(process)
            rows = [read_row(process) for process in running]
            for process in running:  # all have measured
                tell(process)
            for process in running:
                process.wait(60)
            return rows
        finally:
            for process in [*running, bootstrap]:
                process.terminate()
                process.wait(10)


def read_row(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    row: dict[str, Any] = json.loads(process.stdout.readline())
    return row


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def run_peer(name: str, folder: Path, rounds: int) -> None:
    """One peer: build the model, take the baseline, join, take rounds; writes one line of JSON for each stage."""
    import torch

    from p2pnet.train.models import ByteTransformer  # nothing but torch

    torch.set_num_threads(1)
    model = ByteTransformer(width=128, layers=4, heads=4, context=128)  # the demo's
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = take_steps(model, optimizer)
    for _ in range(60):  # until the allocator has settled
        next(step)
    baseline_mb = resident_mb("self")
    import tomllib

    from p2pnet.config import NodeConfig, SwarmConfig, load
    from p2pnet.founding import create
    from p2pnet.swarm import join

    state, addr = folder / name, (folder / "bootstrap").read_text()
    if name == "0":
        settings = load(SwarmConfig, tomllib.loads(SETTINGS), "settings")
        (folder / "link").write_text(str(create(settings, model, state_dir=state, bootstrap=[addr])))
    print(json.dumps({"built": name}), flush=True)
    sys.stdin.readline()
    link = (folder / "link").read_text()
    with join(link, model, optimizer, state_dir=state, config=NodeConfig(listen=(LISTEN,))) as swarm:
        idle = resident_mb("self"), resident_mb(str(swarm._node.daemon_pid))
        while swarm.round < rounds or len(swarm.reports) < rounds // 2:
            swarm.step(next(step), samples=8)
        trained = resident_mb("self"), resident_mb(str(swarm._node.daemon_pid))
        peak_mb = resident_mb("self", "VmHWM") + resident_mb(str(swarm._node.daemon_pid), "VmHWM") - baseline_mb
        row = {
            "params": swarm.learner.params,
            "baseline_mb": baseline_mb,
            "node_idle_mb": idle[0] - baseline_mb,
            "daemon_idle_mb": idle[1],
            "beyond_idle_mb": sum(idle) - baseline_mb,
            "node_trained_mb": trained[0] - baseline_mb,
            "daemon_trained_mb": trained[1],
            "beyond_trained_mb": sum(trained) - baseline_mb,
            "beyond_peak_mb": peak_mb,
            "rounds": len(swarm.reports),
            "credited": sum(report.credited for report in swarm.reports),
        }
        print(json.dumps(row), flush=True)
        sys.stdin.readline()


def take_steps(model: Any, optimizer: Any) -> Any:
    """Train on random bytes; gives the loss of each step."""
    import torch

    while True:
        text = torch.randint(0, 256, (8, 129))
        loss = torch.nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def resident_mb(process: str, field: str = "VmRSS") -> float:
    """The resident memory of a process, in MB of 10^6 bytes, as the kernel counts it."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"{field} of {process} is not known")


if __name__ == "__main__":
    main()
