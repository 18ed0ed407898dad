"""Show a host's counters to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.net.libp2p import Libp2pHost
from p2pnet.net.sockets import close_in_children, let_children_have

LOOK_S: Final = 5.0  # Prometheus asks every 15 s by default


class HostMetrics(Collector):
    """What one host has done; read by Prometheus' thread, so it only looks at counters."""

    def __init__(self, host: Libp2pHost) -> None:
        """host: whose counters to show."""
        self._host, self._started_s = host, time.monotonic()
        self._connected = 0

    async def watch(self) -> None:
        """Count the connected peers now and then; works until cancelled."""
        while True:
            try:
                self._connected = len(await self._host.connected())
            except NetworkError:
                self._connected = 0  # the daemon is away, and with it the connections
            await trio.sleep(LOOK_S)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        host, reception, flow = self._host, self._host.reception, self._host.traffic.total
        uptime_s = time.monotonic() - self._started_s
        yield GaugeMetricFamily("p2pnet_connected_peers", "Peers connected now", self._connected)
        yield GaugeMetricFamily("p2pnet_streams_open", "Inbound streams open now", reception.open_streams)
        yield GaugeMetricFamily("p2pnet_uptime_seconds", "Since this peer was started", uptime_s)
        yield GaugeMetricFamily("p2pnet_daemon_up", "Whether the libp2p daemon runs", int(host.daemon_pid is not None))
        yield CounterMetricFamily("p2pnet_streams_served", "Inbound streams served", reception.served)
        yield CounterMetricFamily("p2pnet_streams_refused", "Inbound streams over a bound", reception.refused)
        yield CounterMetricFamily("p2pnet_misbehaviour", "Rules that remote peers broke", reception.misbehaved)
        yield CounterMetricFamily("p2pnet_daemon_restarts", "Times the libp2p daemon died", host.restarts)
        traffic = CounterMetricFamily("p2pnet_traffic_bytes", "Bytes on application streams", labels=["direction"])
        traffic.add_metric(["up"], flow.bytes_up)
        traffic.add_metric(["down"], flow.bytes_down)
        yield traffic


@contextmanager
def serve_metrics(collector: Collector, address: str, port: int) -> Iterator[int]:
    """Serve the metrics over HTTP from a thread of its own; yields the port.

    address: loopback, unless the operator says otherwise: whoever can reach it can read it.   port: 0 for any.
    Raises `ConfigError` when the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        found = f"{address}:{port}, which cannot be had ({error.strerror or error})"
        raise ConfigError(f"metrics: found {found}; allowed is a free port, or 0 for any") from error
    close_in_children(server.socket)
    try:
        yield int(server.server_port)
    finally:
        let_children_have(server.socket)
        server.shutdown()
        server.server_close()
        thread.join()
