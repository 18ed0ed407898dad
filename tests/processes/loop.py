"""A user's training loop as a process: alone, or as one rank of a replica of two.

    python -m tests.processes.loop <link> <state_dir> <rounds> <end> [<rank> <folder for the rendezvous> <ddp|fsdp>]

End: `done`, `error` (in the loop, after the rounds) or `wait` (it goes on until a signal comes).
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import p2pnet
from p2pnet.config import NodeConfig

WIDTH = 16


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 33), nn.Tanh(), nn.Linear(33, 3))


def hear(kind: str, fields: dict[str, Any]) -> None:
    if kind == "listening":
        print(kind, fields["addrs"][0], flush=True)


def train(link: str, state_dir: str, rounds: int, end: str, model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    credited = 0
    config = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",))
    with p2pnet.join(link, model, optimizer, state_dir=state_dir, config=config, on_event=hear) as swarm:
        print(f"joined {swarm.round}", flush=True)
        while end == "wait" or credited < rounds:
            x = torch.randn(8, WIDTH)
            loss = functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if report := swarm.step(loss, samples=len(x)):
                credited += report.credited
                print(f"round {swarm.round - 1} {swarm.state_sha256()} {report.credited}", flush=True)
        if end == "error":
            raise ZeroDivisionError("in the user's own code")
        print("left", flush=True)


def main() -> None:
    link, state_dir, rounds, end, *rank = sys.argv[1:]
    torch.set_num_threads(1)
    model = make_model()
    if rank:
        import torch.distributed as dist

        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        number, folder, kind = int(rank[0]), rank[1], rank[2]
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
        if kind == "fsdp":
            from torch.distributed.fsdp import fully_shard

            fully_shard(model)
        else:
            model = nn.parallel.DistributedDataParallel(model)
        train(link, state_dir, int(rounds), end, model)
        dist.destroy_process_group()
    else:
        train(link, state_dir, int(rounds), end, model)


if __name__ == "__main__":
    main()
