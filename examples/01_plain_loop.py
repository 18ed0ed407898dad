"""A training loop of your own, run by several replicas that end with the same parameters, bit for bit.

    python examples/01_plain_loop.py                    # three replicas on this machine, each a process of its own

The loop is `train` below: an ordinary model, an ordinary optimizer, and two calls to p2pnet. `launch.py` only starts
the replicas on one machine; on several machines each of you would run `train` with the same link.
"""

from __future__ import annotations

import torch
from launch import NODE, part, run
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import p2pnet
from p2pnet.config import Codec, CustomTask, Swarm, SwarmConfig, Training

BATCH_SIZE = 32
SETTINGS = SwarmConfig(
    Swarm("plain loop"), CustomTask("custom", batch_size=BATCH_SIZE), Training(h_steps=10), Codec(k=512)
)


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
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    with p2pnet.join(link, model, optimizer, state_dir=state_dir, config=NODE) as swarm:
        for x, y in swarm.batches(make_dataset(), batch_size=BATCH_SIZE):
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if report := swarm.step(loss, samples=len(x)):  # a round is over, and the model is everybody's again
                print(f"round {report.round:>3}  loss {report.loss:.3f}  waited {report.wait_s:.2f} s", flush=True)
                if report.round + 1 >= rounds:
                    break
        part(swarm)


if __name__ == "__main__":
    run(__doc__, SETTINGS, make_model, train, rounds=20)
