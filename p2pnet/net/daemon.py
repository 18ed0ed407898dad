"""Find the libp2p daemon (p2pd) and say how it is started: pure, save for looking at the disk.

It is go-libp2p-daemon 0.5 of November 2023, from the hivemind wheel. Only this module, `p2pd` and `process` know it.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from p2pnet.config import expand_home
from p2pnet.errors import ConfigError
from p2pnet.net.control import addr_to_bytes
from p2pnet.net.host import split_addr

DISTRIBUTION: Final = "hivemind"
VERSION: Final = "1.1.12"
BINARY_IN_WHEEL: Final = "hivemind/hivemind_cli/p2pd"
IDLE_TIMEOUT_S: Final = 30  # the daemon ends by itself when no node has taken hold of it by then


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How the daemon takes part in the network. It dials nobody but who it is told, or whom those name in the DHT."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)  # none: this peer only dials out
    announce: tuple[str, ...] = ()  # told to others in place of what the daemon finds out; behind a forwarded port
    relays: tuple[str, ...] = ()  # full addresses of the peers through which we are reached behind a NAT
    dht: Literal["auto", "server", "client"] = "auto"  # auto: server once AutoNAT says public, and on loopback
    reachability: Literal["auto", "public", "private"] = "auto"  # public by force makes a relay of 128 kB per circuit
    nat_port_map: bool = False  # ask the router for a port by UPnP or NAT-PMP
    autonat: bool = True  # dial others back when they ask whether they are reachable
    relay_service: bool = False  # carry others' traffic
    connections_low: int = 160  # kad-dht keeps about 100 peers in its table, a group has at most 64
    connections_high: int = 256
    connections_grace_s: int = 30

    def __post_init__(self) -> None:
        """Check every address; `ConfigError` names the option."""
        for name in ("listen", "announce"):
            for addr in getattr(self, name):
                _check(name, addr, addr_to_bytes, "a multiaddr such as /ip4/0.0.0.0/tcp/4001")
        for addr in self.relays:
            _check("relays", addr, check_full_addr, "a multiaddr with a peer id, /ip4/.../tcp/4001/p2p/12D3KooW...")
        if not 0 < self.connections_low <= self.connections_high:
            found = f"{self.connections_low} and {self.connections_high}"
            raise ConfigError(f"connections_low, connections_high: found {found}, allowed is 0 < low <= high")


def check_full_addr(text: str) -> None:
    """Raise `ValueError` unless `text` is a multiaddr that ends in an Ed25519 peer id."""
    addr_to_bytes(split_addr(text).addrs[0])


def daemon_arguments(options: DaemonOptions, key_file: Path, control_socket: Path) -> list[str]:
    """Return the daemon's arguments, without its own path.

    `-b` is never among them. With it and an empty list the daemon dials IPFS's public peers; with a list it ends when
    none of them answers and does not say why. Bootstrap peers are dialled through the control socket instead.
    """
    arguments = [
        "-q",
        f"-listen=/unix{control_socket}",
        f"-id={key_file}",
        f"-idleTimeout={IDLE_TIMEOUT_S}s",
        "-pubsub=0",
        _dht_argument(options),
        "-relay=1",
        f"-relayService={int(options.relay_service)}",
        "-relayDiscovery=0",  # relays are named or there are none: a discovered one never got a reservation
        f"-natPortMap={int(options.nat_port_map)}",
        f"-autonat={int(options.autonat)}",
        "-connManager=1",
        f"-connLo={options.connections_low}",
        f"-connHi={options.connections_high}",
        f"-connGrace={options.connections_grace_s}s",
    ]
    arguments.append(f"-hostAddrs={','.join(options.listen)}" if options.listen else "-noListenAddrs=1")
    if options.announce:
        arguments.append(f"-announceAddrs={','.join(options.announce)}")
    if options.relays:
        arguments += ["-autoRelay=1", f"-trustedRelays={','.join(options.relays)}"]
    if options.reachability == "public":
        arguments.append("-forceReachabilityPublic=1")
    elif options.reachability == "private":
        arguments.append("-forceReachabilityPrivate=1")
    return arguments


def find_daemon(configured: Path | None = None) -> Path:
    """Return the daemon's binary: the configured one, hivemind's, or what `p2pnet daemon install` put in place.

    Raises `ConfigError`, which names that command, when there is none.
    """
    if configured is not None:
        if not _runnable(configured):
            raise ConfigError(f"daemon: found {configured}, which is not an executable file; {_HOW}")
        return configured
    for find in (_in_distribution, installed_path):
        candidate = find()
        if candidate is not None and _runnable(candidate):
            return candidate
    raise ConfigError(f"the libp2p daemon p2pd is missing; {_HOW}")


def installed_path(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return where `p2pnet daemon install` puts the binary, the user's data folder."""
    if platform == "darwin":
        data = expand_home(Path("~/Library/Application Support"), "the daemon's place")
    else:
        named = Path(environment.get("XDG_DATA_HOME", ""))  # the specification says that a relative one is ignored
        data = named if named.is_absolute() else expand_home(Path("~/.local/share"), "the daemon's place")
    return data / "p2pnet" / f"p2pd-{VERSION}"


_HOW: Final = "run `p2pnet daemon install`, which puts it in place, or `pip install 'p2pnet[train]'`, which brings it"


def _in_distribution() -> Path | None:
    """Return the binary of an installed hivemind, found without importing it: that would import torch."""
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(BINARY_IN_WHEEL)))


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _dht_argument(options: DaemonOptions) -> str:
    if options.dht == "client":
        return "-dhtClient=1"
    # AutoNAT never calls a loopback address public, so `-dht` would stay a client there.
    if options.dht == "server" or (options.listen and all(_is_loopback(addr) for addr in options.listen)):
        return "-dhtServer=1"
    return "-dht=1"


def _is_loopback(addr: str) -> bool:
    parts = addr.split("/")
    return len(parts) > 2 and parts[1] in {"ip4", "ip6"} and ip_address(parts[2]).is_loopback


def _check(name: str, addr: str, check: Callable[[str], object], allowed: str) -> None:
    try:
        if "," in addr:
            raise ValueError("a comma")  # the daemon splits its lists there
        check(addr)
    except ValueError as error:
        raise ConfigError(f"{name}: found {addr!r} ({error}), allowed is {allowed}") from error
