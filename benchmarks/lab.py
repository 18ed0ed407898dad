"""A laboratory: a network namespace for each peer, joined by a bridge in one more, no route outside. For root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NET = "10.77.0"
BRIDGE = "p2pf-b"
TICK_S = 0.005


def is_possible() -> bool:
    """Tell whether namespaces can be made here."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "p2pf-try"], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", "p2pf-try"], capture_output=True, check=False)
    return made


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs."""

    prefix: tuple[str, ...] = ()  # of its command line
    ip: str = "127.0.0.1"

    def sent_bytes(self) -> int:
        """Bytes that went out of its link, all headers included."""
        read = [*self.prefix, "cat", "/sys/class/net/up0/statistics/tx_bytes"]
        return int(subprocess.run(read, capture_output=True, text=True, check=True).stdout)

    @property
    def listen(self) -> str:
        """Its listen address, of any port."""
        return f"/ip4/{self.ip}/tcp/0"


class Lab:
    """Namespaces without any route outside, one for each peer; the bootstrap peer is on the bridge."""

    def __init__(self, peers: int) -> None:
        self.places = [
            Place(("ip", "netns", "exec", f"p2pf-{number}"), f"{NET}.{number + 1}") for number in range(peers)
        ]
        self.bootstrap = Place(("ip", "netns", "exec", BRIDGE), f"{NET}.100")

    def set_up(self) -> None:
        """Make them."""
        _ip("netns", "add", BRIDGE)
        _in(BRIDGE, "ip", "link", "add", "name", "br0", "type", "bridge")
        _in(BRIDGE, "ip", "addr", "add", f"{self.bootstrap.ip}/24", "dev", "br0")
        _in(BRIDGE, "ip", "link", "set", "dev", "lo", "up")
        _in(BRIDGE, "ip", "link", "set", "dev", "br0", "up")
        for number, place in enumerate(self.places):
            name = f"p2pf-{number}"
            _ip("netns", "add", name)
            _in(BRIDGE, "ip", "link", "add", "name", f"v{number}", "type", "veth", "peer", "name", "up0", "netns", name)
            _in(BRIDGE, "ip", "link", "set", "dev", f"v{number}", "master", "br0")
            _in(BRIDGE, "ip", "link", "set", "dev", f"v{number}", "up")
            _in(name, "ip", "addr", "add", f"{place.ip}/24", "dev", "up0")
            _in(name, "ip", "link", "set", "dev", "lo", "up")
            _in(name, "ip", "link", "set", "dev", "up0", "up")

    def tear_down(self) -> None:
        """Remove them."""
        for name in (BRIDGE, *(f"p2pf-{number}" for number in range(len(self.places)))):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def mute(self, number: int) -> None:
        """Let nothing of what this peer sends arrive anywhere; what others send arrives."""
        for other in (*self.places, self.bootstrap):
            if other is not self.places[number]:
                _in(f"p2pf-{number}", "ip", "route", "add", "blackhole", f"{other.ip}/32")

    def cut(self, number: int) -> None:
        """Let nothing pass to or from this peer; no connection is closed, both ends believe in all of them."""
        self.mute(number)
        for name in (BRIDGE, *(f"p2pf-{other}" for other in range(len(self.places)) if other != number)):
            _in(name, "ip", "route", "add", "blackhole", f"{self.places[number].ip}/32")

    def split(self, side: Collection[int]) -> None:
        """Cut the network in two: nothing passes between these peers and the others, who keep the bootstrap peer."""
        others = [number for number in range(len(self.places)) if number not in side]
        for inside in side:
            for place in (*(self.places[number] for number in others), self.bootstrap):
                _in(f"p2pf-{inside}", "ip", "route", "add", "blackhole", f"{place.ip}/32")
            for name in (BRIDGE, *(f"p2pf-{number}" for number in others)):
                _in(name, "ip", "route", "add", "blackhole", f"{self.places[inside].ip}/32")

    def throttle(self, number: int, mbit: float) -> None:
        """Let this peer's link carry so much each way."""
        burst_bytes = max(2048, round(mbit * 1e6 / 8 * TICK_S))  # with less Linux cannot keep the rate
        shape = ("root", "tbf", "rate", f"{mbit:g}mbit", "burst", str(burst_bytes), "latency", "400ms")
        _in(f"p2pf-{number}", "tc", "qdisc", "add", "dev", "up0", *shape)
        _in(BRIDGE, "tc", "qdisc", "add", "dev", f"v{number}", *shape)

    def mend(self, number: int) -> None:
        """End whatever was done to this peer's link."""
        for name in (BRIDGE, *(f"p2pf-{other}" for other in range(len(self.places)))):
            subprocess.run(["ip", "netns", "exec", name, "ip", "route", "flush", "type", "blackhole"], check=True)
        for name, device in ((f"p2pf-{number}", "up0"), (BRIDGE, f"v{number}")):
            command = ["ip", "netns", "exec", name, "tc", "qdisc", "del", "dev", device, "root"]
            subprocess.run(command, capture_output=True, check=False)


@contextmanager
def open_lab(peers: int) -> Iterator[Lab]:
    """A laboratory for so many peers, removed at the end."""
    lab = Lab(peers)
    try:
        lab.set_up()
        yield lab
    finally:
        lab.tear_down()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of its own at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a disk; returns the file that takes it."""
    ballast = folder / "ballast"
    disk = os.statvfs(folder)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
    return ballast


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _in(name: str, *words: str) -> None:
    _ip("netns", "exec", name, *words)
