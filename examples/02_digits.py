"""A vision model on scikit-learn's handwritten digits: a small convolutional network with batch norm.

    pip install 'p2pnet[train,examples]'
    python examples/02_digits.py                        # three replicas on this machine, each a process of its own

Parameters are the swarm's, bit for bit the same on every replica. Buffers, such as batch norm's running means, are each
replica's own; before measuring or exporting they are estimated once more, with the parameters as they are then.
"""

from __future__ import annotations

import torch
from launch import NODE, part, run
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import p2pnet
from p2pnet.config import Codec, CustomTask, Swarm, SwarmConfig, Training

BATCH_SIZE = 32
HELD_OUT = 360  # of 1797 images
SETTINGS = SwarmConfig(Swarm("digits"), CustomTask("custom", batch_size=BATCH_SIZE), Training(h_steps=10), Codec(k=512))


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),  # (B, 1, 8, 8) to (B, 16, 8, 8)
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),  # (B, 32, 4, 4)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def load_images() -> tuple[Tensor, Tensor]:
    """Return x, (1797, 1, 8, 8) float32 from 0 to 1, and y, (1797,) int64; mixed, since a writer's lie together."""
    images, labels = load_digits(return_X_y=True)
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the same on every replica
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[mixed] / 16, torch.tensor(labels)[mixed]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    right = (model(x).argmax(1) == y).float().mean().item()
    model.train()
    return right


def train(link: str, state_dir: str, rounds: int) -> None:
    """One replica."""
    x, y = load_images()
    data = TensorDataset(x[:-HELD_OUT], y[:-HELD_OUT])
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)

    with p2pnet.join(link, model, optimizer, state_dir=state_dir, config=NODE) as swarm:
        for images, labels in swarm.batches(data, batch_size=BATCH_SIZE):
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if report := swarm.step(loss, samples=len(images)):
                print(f"round {report.round:>3}  loss {report.loss:.3f}", flush=True)
                if report.round + 1 >= rounds:
                    break
        update_bn(DataLoader(data, batch_size=128), model)  # for the parameters that the swarm ended with
        print(
            f"accuracy {accuracy(model, x[-HELD_OUT:], y[-HELD_OUT:]):.3f} on images that nobody trained on", flush=True
        )
        part(swarm)


if __name__ == "__main__":
    run(__doc__, SETTINGS, make_model, train, rounds=20)
