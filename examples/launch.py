"""What the examples share: start a bootstrap peer and some replicas of an example on this machine, then compare them.

Nothing here is needed on several machines: there each of you runs `train` of an example with the same link.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import p2pnet
from p2pnet.config import NodeConfig, SwarmConfig
from p2pnet.identity import Identity

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NODE = NodeConfig(listen=(LOOPBACK,))  # all on this machine; leave it out to be reached from elsewhere


def run(
    description: str | None,
    settings: SwarmConfig,
    make_model: Callable[[], nn.Module],
    train: Callable[[str, str, int], None],
    rounds: int,
) -> None:
    """Be one replica when `--link` says of what, else start several here.   train: given link, state_dir, rounds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--link", help="take part in this swarm, as one replica")
    parser.add_argument("--state-dir", type=Path, default=Path("p2pnet-state"))
    given = parser.parse_args()
    if given.link:
        torch.set_num_threads(1)  # several replicas share this machine
        train(given.link, str(given.state_dir), given.rounds)
    else:
        launch(settings, make_model, given.replicas, given.rounds)


def part(swarm: p2pnet.Swarm) -> None:
    """Say with which parameters a replica ends, and leave together: a slower one may still need what this one has."""
    print("state", swarm.state_sha256(), flush=True)
    sys.stdin.read()


def launch(settings: SwarmConfig, make_model: Callable[[], nn.Module], replicas: int, rounds: int) -> None:
    """Start a bootstrap peer and the replicas, and compare what they end with."""
    with tempfile.TemporaryDirectory(prefix="p2pnet-example-") as folder:
        bootstrap = start(sys.executable, "-m", "p2pnet.cli", "bootstrap", "--listen", LOOPBACK, "--json", "--lifeline",
                          "--key", f"{folder}/bootstrap.key")  # fmt: skip
        running = [bootstrap]
        try:
            assert bootstrap.stdout is not None
            addrs = json.loads(bootstrap.stdout.readline())["addrs"]
            # All of them found the swarm, so that its first round waits for all: a lone founder would not.
            founders = tuple(Identity.load_or_create(Path(folder, str(i), "peer.key")).peer for i in range(replicas))
            settings = dataclasses.replace(settings, swarm=dataclasses.replace(settings.swarm, founders=founders))
            # Whoever makes the swarm does it once: its settings and this model's parameters are where all start from.
            link = p2pnet.create(settings, make_model(), state_dir=f"{folder}/0", bootstrap=addrs)
            print(link)
            again = (sys.executable, sys.argv[0], "--rounds", str(rounds), "--link", str(link), "--state-dir")
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
