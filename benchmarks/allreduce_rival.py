"""One peer of hivemind's side of `allreduce.py`; runs in a venv of hivemind's own, where p2pnet is not installed.

Its one argument is JSON: seed, peers, sides (of square matrices), codecs, initial (addresses of the first peer). One
DHT node, and for each codec an averager with tensors of its own. It takes a JSON command per line and answers each.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from typing import Any

import hivemind
import torch
from hivemind.compression import Float16Compression, NoCompression, Uniform8BitQuantization

CODECS = {"none": NoCompression, "fp16": Float16Compression, "8-bit": Uniform8BitQuantization}
STEP_TIMEOUT_S = 120.0
NOISE = 1e-3
MARK = 0.01  # times the peer's number: what each value is moved by before a round, so that averaging shows


def main() -> None:
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(1)  # all peers share a few cores
    dht = hivemind.DHT(initial_peers=spec["initial"], host_maddrs=[spec["listen"]], start=True, use_ipfs=False)
    averagers = {codec: make_averager(dht, spec, codec) for codec in spec["codecs"]}
    optimizer_s = inspect.signature(hivemind.Optimizer).parameters["matchmaking_time"].default
    say({"addrs": [str(addr) for addr in dht.get_visible_maddrs()], "optimizer_matchmaking_s": optimizer_s})
    torch.manual_seed(spec["seed"])
    for line in sys.stdin:
        command = json.loads(line)
        codec = command["codec"]
        if codec == "default" and codec not in averagers:  # late, as it takes memory
            averagers[codec] = make_averager(dht, spec, spec["codecs"][0], default=True)
        averager = averagers[codec]
        if command["do"] == "update":
            with averager.get_tensors() as tensors:
                averaged = mean(tensors) + MARK * (spec["peers"] + 1) / 2
                for tensor in tensors:
                    tensor.add_(torch.randn_like(tensor), alpha=NOISE).add_(MARK * spec["seed"])
            say({})
        else:
            began_s = time.monotonic()
            group = averager.step(timeout=STEP_TIMEOUT_S)
            ended_s = time.monotonic()
            with averager.get_tensors() as tensors:  # a codec may fail, and nothing says so
                is_averaged = abs(mean(tensors) - averaged) < MARK / 4
            fine = len(group or ()) == spec["peers"] and is_averaged
            say({"began_s": began_s, "ended_s": ended_s, "fine": fine, "state": ""})
    os._exit(0)  # its own shutdown takes seconds, and nothing is measured any more


def make_averager(dht: Any, spec: dict[str, Any], codec: str, default: bool = False) -> Any:
    """An averager: with the size of the group given, or left to what hivemind does when nothing is said."""
    torch.manual_seed(0)  # all begin with the same
    tensors = [torch.randn(side, side) for side in spec["sides"]]
    group = {} if default else {"target_group_size": spec["peers"], "min_group_size": spec["peers"]}
    prefix = f"{'default' if default else 'given'}-{codec}"
    return hivemind.averaging.DecentralizedAverager(
        tensors, dht, prefix=prefix, compression=CODECS[codec](), start=True, **group
    )


def mean(tensors: Any) -> float:
    return float(torch.stack([tensor.mean() for tensor in tensors]).mean())


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
