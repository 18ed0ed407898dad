"""What p2pnet costs between rounds: the same training loop with `swarm.step` in it and without, in turn.

    python benchmarks/overhead.py [--device cuda] [--pairs 40] [--steps 20]

One process, a real node alone in a swarm of its own, H larger than all steps: no round ends while it is measured.
Blocks of steps with and without the call alternate, and the medians of their times are compared. On a device each block
ends with one synchronisation, so that a call that waits for it would show.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import p2pnet
from p2pnet.config import BytesLmTask, CustomTask, NodeConfig, Swarm, SwarmConfig, Training
from p2pnet.train.tasks import make_task

RESULTS = Path(__file__).parent / "results" / "overhead.json"
TARGET = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = make_task(BytesLmTask("bytes-lm", batch_size=given.batch_size))
    model = task.model.to(given.device)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = next(iter(torch.utils.data.DataLoader(task.dataset, given.batch_size)))
    custom = CustomTask("custom", batch_size=given.batch_size)
    settings = SwarmConfig(Swarm("overhead"), custom, Training(h_steps=100_000, window_s=86_400.0))

    def step() -> torch.Tensor:
        loss = task.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def measure(swarm: p2pnet.Swarm | None) -> float:
        began_s = time.perf_counter()
        for _ in range(given.steps):
            loss = step()
            if swarm is not None:
                swarm.step(loss, samples=given.batch_size)
        if given.device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - began_s) / given.steps

    with tempfile.TemporaryDirectory(prefix="p2pnet-overhead-") as folder:
        link = p2pnet.create(settings, model, state_dir=folder)
        config = NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",))
        with p2pnet.join(link, model, optimizer, state_dir=folder, config=config) as swarm:
            measure(swarm), measure(None)  # warm
            pairs = [(measure(swarm), measure(None)) for _ in range(given.pairs)]
            loss = step().detach()
            empty_s = min(_empty_call(swarm, loss) for _ in range(5))
    with_s, without_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b - 1 for a, b in pairs)
    found = {
        "device": given.device,
        "params": sum(p.numel() for p in model.parameters()),
        "step_s": without_s,
        "step_with_p2pnet_s": with_s,
        "overhead": with_s / without_s - 1,
        "overhead_of_pairs": {"median": statistics.median(ratios), "first": ratios[0], "last": ratios[-1]},
        "call_s": empty_s,
        "call_share": empty_s / without_s,
        "target": TARGET,
    }
    print(f"a step: {1e3 * without_s:.2f} ms; with p2pnet: {1e3 * with_s:.2f} ms ({100 * found['overhead']:+.2f} %)")
    print(f"swarm.step alone: {1e6 * empty_s:.1f} us, {100 * found['call_share']:.3f} % of a step")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _empty_call(swarm: p2pnet.Swarm, loss: torch.Tensor, calls: int = 1000) -> float:
    began_s = time.perf_counter()
    for _ in range(calls):
        swarm.step(loss, samples=1)
    return (time.perf_counter() - began_s) / calls


if __name__ == "__main__":
    main()
