"""`p2pnet bootstrap`: host a peer that others start from."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnet.cli.folders import Json
from p2pnet.cli.lifeline import Lifeline, hold_lifeline
from p2pnet.cli.settings import merge_settings
from p2pnet.cli.terminal import note, say, write_json
from p2pnet.config import BootstrapConfig

if TYPE_CHECKING:
    from p2pnet.net.bootstrap import BootstrapConfig as HostConfig
    from p2pnet.net.bootstrap import BootstrapStarted


def bootstrap(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Settings; options below go before them.")
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="Listen here; repeatable (default: /ip4/0.0.0.0/tcp/4001)."),
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="Tell others this address, that of a forwarded port or a name."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key file, made when missing (default: bootstrap.key).")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="N", help="Serve Prometheus metrics on this port; 0 for none.")
    ] = None,
    metrics_host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Serve them on this address (default: 127.0.0.1).")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--bootstrap", metavar="ADDR", help="Another bootstrap peer, with /p2p/<peer id>; repeatable."),
    ] = None,
    lifeline: Lifeline = False,
    json: Json = False,
) -> None:
    """Host a peer that others start from: a server of the DHT and a relay. No GPU, no torch.

    Prints its full addresses, one per line: one of them goes into every link.
    The runbook for who hosts one is the folder bootstrap of the sources.

    p2pnet bootstrap --listen /ip4/0.0.0.0/tcp/4001 --key bootstrap.key --metrics-port 9100
    p2pnet bootstrap /etc/p2pnet/bootstrap.toml
    """
    if lifeline:
        hold_lifeline()
    settings = merge_settings(
        BootstrapConfig,
        config,
        listen=listen or None,
        announce=announce or None,
        key=None if key is None else str(key),
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        bootstrap=peer or None,
    )
    import trio

    trio.run(_run, _host_config(settings), json)


def _host_config(settings: BootstrapConfig) -> HostConfig:
    from p2pnet.net.bootstrap import BootstrapConfig as HostConfig

    return HostConfig(
        key_file=settings.key,
        listen=settings.listen,
        announce=settings.announce,
        peers=settings.bootstrap,
        metrics_address=settings.metrics_host,
        metrics_port=settings.metrics_port or None,
        daemon_path=settings.daemon,
    )


async def _run(config: HostConfig, as_json: bool) -> None:
    """Run until Ctrl-C or SIGTERM, which both end it as they should."""
    import trio

    from p2pnet.net.bootstrap import run_bootstrap
    from p2pnet.net.host import bare_errors

    def on_started(started: BootstrapStarted) -> None:
        _tell(started, config.metrics_address, as_json)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, bare_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, signals, nursery.cancel_scope)
            await run_bootstrap(config, on_started, note)


async def _stop_on_signal(signals: Any, scope: Any) -> None:
    async for _ in signals:
        note("stopping")
        scope.cancel()
        return


def _tell(started: BootstrapStarted, metrics_host: str, as_json: bool) -> None:
    host = f"[{metrics_host}]" if ":" in metrics_host else metrics_host
    metrics = None if started.metrics_port is None else f"http://{host}:{started.metrics_port}/metrics"
    if as_json:
        peer = started.addrs[0].rpartition("/p2p/")[2]
        write_json({"peer": peer, "addrs": list(started.addrs), "metrics": metrics})
        return
    for addr in started.addrs:
        say(addr)
    note("this peer is up; Ctrl-C ends it" + (f"; metrics at {metrics}" if metrics else ""))
