"""A training loop of your own, run by several replicas that end with the same parameters, bit for bit.

    python examples/01_plain_loop.py                    # three replicas on this machine, each a process of its own

The loop is `train` below: an ordinary model, an ordinary optimizer, and two calls to p2pnet. Everything after it only
starts the replicas on one machine; on several machines each of you would run `train` with the same link.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import p2pnet
from p2pnet.config import Codec, CustomTask, NodeConfig, Swarm, SwarmConfig, Training

BATCH_SIZE = 32
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))


def make_dataset(points: int = 3000) -> TensorDataset:
    """Three arms of a spiral: x is (points, 2) float32, y the arm, (points,) int64. The same on every replica."""
    generator = torch.Generator().manual_seed(1)
    arm: Tensor = torch.randint(0, 3, (points,), generator=generator)
    radius = torch.rand(points, generator=generator)
    angle = 4 * radius + 2.1 * arm + 0.1 * torch.randn(points, generator=generator)
    return TensorDataset(torch.stack([radius * angle.sin(), radius * angle.cos()], dim=1), arm)


def train(link: str, state_dir: str, rounds: int) -> None:
    """One replica: the whole of what p2pnet asks of your loop."""
    torch.set_num_threads(1)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    config = NodeConfig(listen=(LOOPBACK,))

    with p2pnet.join(link, model, optimizer, state_dir=state_dir, config=config) as swarm:
        for x, y in swarm.batches(make_dataset(), batch_size=BATCH_SIZE):
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if report := swarm.step(loss, samples=len(x)):  # a round is over, and the model is everybody's again
                print(f"round {report.round:>3}  loss {report.loss:.3f}  waited {report.wait_s:.2f} s", flush=True)
                if report.round + 1 >= rounds:
                    break
        print("state", swarm.state_sha256(), flush=True)
        sys.stdin.read()  # a slower replica may still need what this one has: leave together


def launch(replicas: int, rounds: int) -> None:
    """Start a bootstrap peer and the replicas, and compare what they end with."""
    with tempfile.TemporaryDirectory(prefix="p2pnet-example-") as folder:
        bootstrap = start(sys.executable, "-m", "p2pnet.cli", "bootstrap", "--listen", LOOPBACK, "--json", "--lifeline",
                          "--key", f"{folder}/bootstrap.key")  # fmt: skip
        running = [bootstrap]
        try:
            assert bootstrap.stdout is not None
            addrs = json.loads(bootstrap.stdout.readline())["addrs"]
            # Whoever makes the swarm does it once: its settings and this model's parameters are where all start from.
            settings = SwarmConfig(
                Swarm("plain loop"), CustomTask("custom", batch_size=BATCH_SIZE), Training(h_steps=10), Codec(k=512)
            )
            link = p2pnet.create(settings, make_model(), state_dir=f"{folder}/0", bootstrap=addrs)
            print(link)
            again = (sys.executable, __file__, "--rounds", str(rounds), "--link", str(link), "--state-dir")
            running += [start(*again, f"{folder}/{index}") for index in range(replicas)]
            states = [follow(index, process) for index, process in enumerate(running[1:])]
        finally:
            for process in reversed(running):  # the bootstrap peer last
                stop(process)
    if len(set(states)) != 1:
        sys.exit(f"the replicas differ: {states}")
    print(f"{replicas} replicas are bit-identical: {states[0][:16]}")


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def follow(index: int, process: subprocess.Popen[str]) -> str:
    """Wait until a replica says its state; of what they say before, the first one's is enough to see."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("state "):
            return line.split()[1]
        if index == 0:
            print(line, end="", flush=True)
    sys.exit(f"replica {index} ended early")


def stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()  # then it leaves
    process.wait()
    process.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--link", help="take part in this swarm, as one replica")
    parser.add_argument("--state-dir", type=Path, default=Path("p2pnet-state"))
    given = parser.parse_args()
    if given.link:
        train(given.link, given.state_dir, given.rounds)
    else:
        launch(given.replicas, given.rounds)


if __name__ == "__main__":
    main()
