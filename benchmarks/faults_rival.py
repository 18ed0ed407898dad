"""One peer of hivemind's side of `faults.py`; runs in a venv of hivemind's own, where p2pnet is not installed.

Its one argument is JSON: seed, peers, sides (of square matrices), initial (addresses of the first peer). An armed one
strikes its whole process group in mid all-reduce, when it has sent a part to another peer and not yet the second one.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import hivemind
import torch
from hivemind.averaging.allreduce import AllReduceRunner

ARMED = mp.Value("i", 0)  # the signal; the averager is a forked process
STEP_TIMEOUT_S = 50.0
NOISE = 1e-3


def main() -> None:
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(1)  # all peers share a few cores
    set_trap()
    dht = hivemind.DHT(initial_peers=spec["initial"], host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True, use_ipfs=False)
    torch.manual_seed(0)  # all begin with the same
    tensors = [torch.randn(side, side) for side in spec["sides"]]
    averager = hivemind.averaging.DecentralizedAverager(
        tensors, dht, prefix="faults", start=True, target_group_size=spec["peers"], min_group_size=2
    )
    say({"addrs": [str(addr) for addr in dht.get_visible_maddrs()]})
    torch.manual_seed(spec["seed"])
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "nan":
                with averager.get_tensors() as found:
                    found[0][0, 0] = float("nan")
                say({})
            case "arm":
                ARMED.value = signal.SIGKILL if command["fault"] == "kill" else signal.SIGSTOP
                say({})
            case "step":
                say(step(averager))
    os._exit(0)  # its own shutdown takes seconds, and nothing is measured any more


def step(averager: Any) -> dict[str, Any]:
    """One averaging of values that noise has moved."""
    with averager.get_tensors() as tensors:
        for tensor in tensors:
            tensor.add_(torch.randn_like(tensor), alpha=NOISE)
    began_s = time.monotonic()
    try:
        group = averager.step(timeout=STEP_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - whatever it is: it says that the round failed
        group = None
        print(repr(error), file=sys.stderr)
    took_s = time.monotonic() - began_s
    with averager.get_tensors() as tensors:
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes())
        finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
    return {"success": group is not None, "took_s": took_s, "state": digest.hexdigest(), "finite": finite}


def set_trap() -> None:
    """Strike when the second part for another peer is about to be sent."""
    generate = AllReduceRunner._generate_input_for_peer

    async def watched(runner: Any, peer_index: int) -> AsyncIterator[Any]:
        sent = 0
        async for part in generate(runner, peer_index):
            if sent == 1 and ARMED.value:
                os.killpg(os.getpgrp(), ARMED.value)
            yield part
            sent += 1

    AllReduceRunner._generate_input_for_peer = watched


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
