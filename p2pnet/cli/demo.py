"""`p2pnet demo`: see a swarm of real processes find each other, train and agree, on one machine."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnet.cli.terminal import in_bytes, note, say
from p2pnet.config import SwarmConfig
from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.ledger.lock import StateLock
from p2pnet.schema import load_file

if TYPE_CHECKING:
    from rich.table import Table

    from p2pnet.demo import DemoSettings, DemoView, PeerView

PREFIX: Final = "p2pnet-demo-"
SWEEP_AGE_S: Final = 60.0
PLOT: Final = Path("p2pnet-demo.png")
REFRESH_S: Final = 0.25


def demo(
    peers: Annotated[int, typer.Option(metavar="N", min=2, max=32, help="Peer processes.")] = 4,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds to decide.")] = 50,
    result: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what came of it there.")] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Train on the text in there. Without it: Python's own sources.")
    ] = None,
    plot: Annotated[Path, typer.Option(metavar="FILE.png", help="Draw the loss there.")] = PLOT,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep keys, ledgers, logs and the trained parameters there.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="swarm.toml", help="Settings of the swarm, in place of the defaults.")
    ] = None,
) -> None:
    """See a swarm at work on this machine: real peer processes find each other, train and end bit-identical.

    One bootstrap peer and N peers are started, each with its own key and libp2p daemon. Each peer is given nothing but
    the swarm's link: it finds the others through the DHT and fetches the swarm's manifest and parameters from them.
    Ctrl-C ends all of them.

    p2pnet demo
    p2pnet demo --peers 6 --rounds 100 --text ~/notes --json demo.json
    """
    from p2pnet.demo import DemoSettings

    made = None if config is None else load_file(SwarmConfig, config)
    with _folder(keep) as folder:
        settings = DemoSettings(peers, rounds, folder, None if text is None else text.resolve())
        if made is not None:
            settings = DemoSettings(peers, rounds, folder, settings.text, made)
        summary = _run(settings)
    if result is not None:
        _write(result, summary)
    _show_summary(summary)
    _draw(summary, plot)
    if not summary["is_identical"]:
        raise P2pnetError("the peers did NOT end with the same lineage and parameters: this is a bug")
    if summary["lost_peers"]:
        raise P2pnetError(f"these peers did not come to the end: {', '.join(map(str, summary['lost_peers']))}")


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A folder for everything: the one to keep, which must be new or empty, or one that goes away."""
    if keep is None:
        _sweep(Path(tempfile.gettempdir()))
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            with StateLock(made):
                yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise ConfigError(f"--keep: {keep} is not empty; allowed is a new folder or an empty one")
    except OSError as error:
        raise ConfigError(f"--keep: {keep}: {error.strerror}") from error
    yield keep.resolve()


def _sweep(root: Path) -> None:
    """Remove what demos have left that were killed: ours, not new, and no process holds it."""
    for folder in root.glob(f"{PREFIX}????????"):
        with suppress(OSError, ConfigError):
            status = folder.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > SWEEP_AGE_S:
                StateLock(folder).release()
                shutil.rmtree(folder, ignore_errors=True)


def _run(settings: DemoSettings) -> dict[str, Any]:
    """Run the demo in front of whoever looks; returns its summary."""
    import trio

    from p2pnet.demo import Demo, summarise
    from p2pnet.net.host import bare_errors

    screen = _LiveScreen() if sys.stdout.isatty() else _PlainScreen()
    note(f"making a swarm of {settings.peers} founders")
    demo = Demo(settings, screen.show)

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_on_signal, signals)
                nursery.start_soon(screen.refresh)
                await demo.run()
                nursery.cancel_scope.cancel()

    note(f"starting a bootstrap peer and {settings.peers} peers, each a process of its own")
    with bare_errors(), screen.open(demo.view):
        trio.run(run)
    return summarise(demo.view)


async def _stop_on_signal(signals: Any) -> None:
    async for number in signals:
        raise SystemExit(128 + number)


class _PlainScreen:
    """One line per round, when all peers have decided it, and one per event that matters."""

    def __init__(self) -> None:
        self._shown, self._ready, self._phases, self._named = 0, False, dict[int, str](), set[int]()

    @contextmanager
    def open(self, view: DemoView) -> Iterator[None]:
        """Show this from now on."""
        self._view = view
        yield

    def show(self, peer: PeerView) -> None:
        """Write what is new."""
        if peer.peer and peer.index not in self._named:
            self._named.add(peer.index)
            say(f"peer {peer.index} is {peer.peer}, process {peer.pid}")
        if not self._ready and not any(math.isnan(one.ready_s) for one in self._view.peers):
            self._ready = True
            say("all peers are ready")
        if peer.phase.startswith(("stalled", "ended", "no bootstrap")) and peer.phase != self._phases.get(peer.index):
            say(f"peer {peer.index}  {peer.phase}")
        self._phases[peer.index] = peer.phase
        while self._shown < self._view.rounds_everywhere():
            say(describe_round(self._view, self._shown))
            self._shown += 1

    async def refresh(self) -> None:
        """Lines stay as they are."""


class _LiveScreen:
    """A table with a row per peer, drawn again a few times a second."""

    @contextmanager
    def open(self, view: DemoView) -> Iterator[None]:
        """Show this from now on."""
        from rich.live import Live

        self._view = view
        with Live(auto_refresh=False, transient=True) as self._live:
            yield

    def show(self, peer: PeerView) -> None:
        """It is drawn soon anyway."""

    async def refresh(self) -> None:
        """Draw, until cancelled."""
        import trio

        while True:
            self._live.update(progress_table(self._view), refresh=True)
            await trio.sleep(REFRESH_S)


def describe_round(view: DemoView, position: int) -> str:
    """Return one line about a round that all peers have decided."""
    told = [peer.rounds[position] for peer in view.peers if len(peer.rounds) > position]
    losses = view.losses(position)
    loss = f"loss {sum(losses) / len(losses):.3f}" if losses else "no loss"
    speed = sum(one["tokens_per_s"] for one in told) / 1000
    up, down = (sum(one[f"wire_bytes_{way}"] for one in told) / len(told) for way in ("up", "down"))
    return (
        f"round {position + 1:>3}/{view.settings.rounds}  {loss}  {speed:6.1f} k tokens/s  "
        f"{max(one['members'] for one in told)} members  up {in_bytes(up)}  down {in_bytes(down)} per peer"
    )


def progress_table(view: DemoView) -> Table:
    """Return the table of what each peer does now."""
    from rich import box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done, wanted = view.rounds_everywhere(), view.settings.rounds
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"p2pnet demo   round {done} of {wanted}")
    for column in ("peer", "id", "state"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for column in ("round", "loss", "tokens/s", "up", "down", "members"):
        table.add_column(column, justify="right")
    for peer in view.peers:
        last = peer.last
        loss = last.get("loss")
        table.add_row(
            str(peer.index),
            f"…{peer.peer[-6:]}" if peer.peer else "",
            Text(peer.phase[:60], style={"training": "green", "done": "bold green"}.get(peer.phase, "yellow")),
            str(len(peer.rounds)),
            f"{loss:.3f}" if loss is not None else "",
            f"{last['tokens_per_s']:,.0f}" if last else "",
            in_bytes(last["wire_bytes_up"]) if last else "",
            in_bytes(last["wire_bytes_down"]) if last else "",
            str(last["seen"]) if last else "",
        )
    table.caption = ProgressBar(total=wanted, completed=done, width=60)  # type: ignore[assignment]  # rich renders it
    return table


def _show_summary(summary: dict[str, Any]) -> None:
    from p2pnet.cli.terminal import show_table

    rows = [
        (
            f"…{one['peer'][-6:]}", one["rounds_sealed"], one["rounds_void"],
            f"{_number(one['loss_first'])} to {_number(one['loss_last'])}",
            in_bytes(one["wire_bytes_up"]), in_bytes(one["wire_bytes_down"]),
            round(one["train_s"], 1), round(one["straggler_wait_s"], 1), round(one["exchange_s"], 1),
            one["state_sha256"][:12],
        )
        for one in summary["peers"]
    ]  # fmt: skip
    columns = ("peer", "decided", "void", "loss", "up", "down", "train s", "wait s", "exchange s", "state")
    show_table(columns, rows)
    same = "bit-identical on all peers" if summary["is_identical"] else "NOT the same on all peers"
    share = summary["exchange_share"]
    say(
        f"parameters and lineage: {same}\n"
        f"{summary['params']:,} parameters, {in_bytes(summary['payload_bytes_per_round'])} a round per peer: "
        f"{summary['compression_vs_fp32']:.1f}x less than fp32, once every {summary['h_steps']} steps\n"
        f"{summary['wall_s']:.1f} s in all, {summary['first_round_s']:.1f} s from the last peer's start to the first "
        f"decided round, {0 if share is None else share:.1%} of the time in the exchange"
    )


def _number(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _write(path: Path, summary: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(summary, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--json: {path}: {error.strerror}") from error


def _draw(summary: dict[str, Any], plot: Path) -> None:
    from p2pnet.cli.curves import draw_curves

    try:
        draw_curves(summary, plot)
    except OSError as error:
        raise ConfigError(f"--plot: {plot}: {error.strerror}") from error
    say(f"loss against tokens and bytes: {plot}")
