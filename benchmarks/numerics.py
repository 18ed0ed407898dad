"""Measure what one round of 100 MB of fp32 costs a peer: encode, reduce its share, apply. One thread, medians, JSON.

python benchmarks/numerics.py [--runs 7] [--peers 8] [--k 64]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from p2pnet.config import Codec
from p2pnet.numerics.codec import as_bytes, decode, encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.levels import LEVEL_BIAS_DEFAULT
from p2pnet.numerics.outer import apply_result
from p2pnet.numerics.reduce import reduce_part

RESULTS = Path(__file__).resolve().parent / "results"
CHUNKS = 6400  # 6400 * 4096 * 4 bytes = 105 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--k", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    codec = Codec(options.k)
    formats = ChunkFormat(codec.k, codec.value_bits), ChunkFormat(codec.k_result, codec.value_bits)
    share = CHUNKS // options.peers  # what this peer reduces of everybody's payload
    draw = torch.distributions.Laplace(0.0, 1e-3)
    updates = [draw.sample((CHUNKS if peer == 0 else share, 4096)) for peer in range(options.peers)]
    sent = [as_bytes(encode(each[:share], formats[0], LEVEL_BIAS_DEFAULT)) for each in updates]
    theta = torch.zeros(CHUNKS, 4096)
    result = encode(updates[0], formats[1], LEVEL_BIAS_DEFAULT)
    weights = [8] * options.peers
    steps: dict[str, Callable[[], Any]] = {
        "topk": lambda: updates[0].abs().topk(options.k, dim=1, sorted=False),
        "encode": lambda: encode(updates[0], formats[0], LEVEL_BIAS_DEFAULT),
        "reduce": lambda: reduce_part(sent, weights, sum(weights), *formats),
        "apply": lambda: apply_result(
            theta, decode(result, formats[1], CHUNKS), formats[1], LEVEL_BIAS_DEFAULT, 1_000_000
        ),
    }
    medians = {name: measure(step, options.runs) for name, step in steps.items()}
    medians["round"] = medians["encode"] + medians["reduce"] + medians["apply"]
    medians["encode / topk"] = medians["encode"] / medians["topk"]
    for name, value in medians.items():
        print(f"{name:16} {value:8.3f}" + ("" if "/" in name else " CPU s"))
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "values": CHUNKS * 4096,
        "peers": options.peers,
        "k": options.k,
        "cpu_s": medians,
    }
    (RESULTS / "numerics.json").write_text(json.dumps(record, indent=1) + "\n")


def measure(step: Callable[[], Any], runs: int) -> float:
    """Median CPU seconds of a step, after one that is not counted."""
    step()
    times = []
    for _ in range(runs):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
