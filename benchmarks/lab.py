"""Machines on a switch, for benchmarks: a network namespace each, with a link of a given rate; needs root and iproute2.

There is no way out of them: no route but to each other. They end with the block, whatever happened in it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BURST_BYTES = 65536  # of the token bucket: under it Linux cannot keep 100 Mbit/s with its clock
QUEUE_MS = 50


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs: what its command starts with, and the address to listen at."""

    prefix: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    namespace: str = ""

    @property
    def listen(self) -> str:
        """A multiaddr, with a port that is free."""
        return f"/ip4/{self.address}/tcp/0"

    def sent_bytes(self) -> int:
        """Bytes that went out of its link, all headers included."""
        read = [*self.prefix, "cat", "/sys/class/net/wire0/statistics/tx_bytes"]
        return int(subprocess.run(read, capture_output=True, text=True, check=True).stdout)


HERE = Place()


@contextmanager
def switched(machines: int, mbit: float) -> Iterator[list[Place]]:
    """So many machines, each on a link of `mbit` up and down; and one more, the first, whose link has no limit."""
    tag = f"p2{os.getpid() % 100_000}"
    hub = f"{tag}hub"
    with ExitStack() as stack:
        for name in (hub, *(f"{tag}m{number}" for number in range(machines))):
            _ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            _ip("-n", name, "link", "set", "dev", "lo", "up")
        _ip("-n", hub, "link", "add", "switch0", "type", "bridge")
        _ip("-n", hub, "addr", "add", "10.77.0.1/24", "dev", "switch0")
        _ip("-n", hub, "link", "set", "dev", "switch0", "up")
        places = [Place(_inside(hub), "10.77.0.1", hub)]
        for number in range(machines):
            name, port, address = f"{tag}m{number}", f"port{number}", f"10.77.0.{10 + number}"
            _ip("link", "add", "dev", "wire0", "netns", name, "type", "veth", "peer", "name", port, "netns", hub)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire0")
            _ip("-n", name, "link", "set", "dev", "wire0", "up")
            _ip("-n", hub, "link", "set", "dev", port, "master", "switch0", "up")
            for where, device in ((name, "wire0"), (hub, port)):  # up, and down
                limit = ["rate", f"{mbit}mbit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms"]
                subprocess.run(["tc", "-n", where, "qdisc", "add", "dev", device, "root", "tbf", *limit], check=True)
            places.append(Place(_inside(name), address, name))
        yield places


def can_switch() -> str | None:
    """Return why there can be no namespaces here, None when there can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [tool for tool in ("ip", "tc") if not any((Path(at) / tool).exists() for at in os.get_exec_path())]
    return f"{' and '.join(missing)} of iproute2 missing" if missing else None


def _inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
