"""A bootstrap peer: a server of the DHT and a relay, from which others start. No torch, no swarm, no trust in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from p2pnet.identity import Identity
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.discovery import Discovery, merge_bootstrap
from p2pnet.net.host import join_addr
from p2pnet.net.libp2p import open_libp2p_host
from p2pnet.net.metrics import HostMetrics, serve_metrics

MEETING_KEY: Final = hashlib.sha256(b"p2pnet/bootstrap/1").digest()
"""Under this key in the DHT bootstrap peers find each other."""


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """What the operator decides."""

    key_file: Path  # made when it is not there: the identity, and with it the multiaddr, lasts
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    announce: tuple[str, ...] = ()  # where others reach it, behind a forwarded port or a name
    peers: tuple[str, ...] = ()  # other bootstrap peers, with /p2p/<peer id>
    metrics_address: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no metrics; 0: any port
    connections_low: int = 800  # guess: the daemon takes about 65 MB alone and tens of kB for each connection
    connections_high: int = 1000
    daemon_path: Path | None = None

    def daemon_options(self) -> DaemonOptions:
        """Return how the daemon is run: as a server of the DHT and a relay.

        That it is public is left to AutoNAT. When forced, the daemon's relay of libp2p's small default limits takes
        the place of its large one, and circuits break after 128 kB (measured, in network namespaces).
        """
        return DaemonOptions(
            listen=self.listen,
            announce=self.announce,
            dht="server",
            relay_service=True,
            connections_low=self.connections_low,
            connections_high=self.connections_high,
        )


@dataclass(frozen=True, slots=True)
class BootstrapStarted:
    """What the operator is told once it runs."""

    addrs: tuple[str, ...]  # full multiaddrs, to be put into links
    metrics_port: int | None


async def run_bootstrap(
    config: BootstrapConfig,
    on_started: Callable[[BootstrapStarted], None],
    on_trouble: Callable[[str], None] = lambda _message: None,
) -> None:
    """Run a bootstrap peer until cancelled.

    on_started: told the addresses.   on_trouble: told when none of the other bootstrap peers answers.
    Raises `ConfigError` for whatever the operator has to put right.
    """
    merge_bootstrap(config.peers)
    Identity.load_or_create(config.key_file)
    lost: list[Callable[[], None]] = []

    def restart() -> None:
        for renew in lost:
            renew()

    async with open_libp2p_host(
        config.daemon_options(), config.key_file, daemon_path=config.daemon_path, on_restart=restart
    ) as host:
        metrics, discovery = HostMetrics(host), Discovery(host, MEETING_KEY, config.peers, on_trouble=on_trouble)
        lost.append(discovery.renew)
        served = (
            serve_metrics(metrics, config.metrics_address, config.metrics_port)
            if config.metrics_port is not None
            else nullcontext()
        )
        with served as port:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(metrics.watch)
                nursery.start_soon(discovery.run)
                on_started(BootstrapStarted(tuple(join_addr(addr, host.peer) for addr in host.addrs()), port))
