"""`p2pnet join`: take part in a swarm with what its link says, and nothing else."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnet.cli.folders import Json, StateDir, place_key
from p2pnet.cli.lifeline import Lifeline, hold_lifeline
from p2pnet.cli.settings import merge_settings
from p2pnet.cli.terminal import in_bytes, note, printable, say, write_json
from p2pnet.config import ANY_PORT, NodeConfig
from p2pnet.manifests import KEY_NAME, swarm_folder
from p2pnet.wire.manifest import Link

if TYPE_CHECKING:
    from p2pnet.member import MemberSettings, Tell


Device = Annotated[str | None, typer.Option(metavar="cuda|cpu|auto", help="Train there; auto: cuda if there is one.")]
Listen = Annotated[
    list[str] | None,
    typer.Option(metavar="ADDR", help="Listen here, in place of --port; may be repeated. Without both: any port."),
]
Bootstrap = Annotated[
    list[str] | None,
    typer.Option(metavar="ADDR", help="A peer to start from beside those in the link; may be repeated."),
]
Rounds = Annotated[int, typer.Option(metavar="N", min=0, help="Leave after N rounds; 0 to stay.")]
UntilRound = Annotated[int, typer.Option(metavar="N", min=0, help="Leave when the swarm has decided N; 0 to stay.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads that train; 0 for torch's own choice.")]
Port = Annotated[int | None, typer.Option(metavar="N", help="Listen on this TCP port; open it in your router.")]
MaxUp = Annotated[
    str | None, typer.Option("--max-up", metavar="RATE", help="Send at most this: 5M, 800k (bits per second).")
]
MaxDown = Annotated[str | None, typer.Option("--max-down", metavar="RATE", help="Receive at most this, on average.")]
Disk = Annotated[str | None, typer.Option(metavar="SIZE", help="Take at most this on the disk: 20G, 500M (bytes).")]
DailyHours = Annotated[
    str | None, typer.Option(metavar="22-07", help="Work only in these hours of the day, local time; else wait.")
]
Text = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Train on the text in there; without it: Python's own sources.")
]
HeldOut = Annotated[int, typer.Option(metavar="N", min=0, help="Measure on held-out text every N rounds; 0 for never.")]
Config = Annotated[Path | None, typer.Option(metavar="node.toml", help="Settings; the options here go before them.")]
MetricsPort = Annotated[int | None, typer.Option(metavar="N", help="Serve Prometheus metrics on this port; 0: none.")]
ExitWhenUnreachable = Annotated[
    bool, typer.Option("--exit-when-unreachable", help="End when no bootstrap peer answers, and do not try again.")
]


def join(
    link: Annotated[str, typer.Argument(metavar="LINK", help="p2pnet://<swarm id>?bootstrap=...")],
    state_dir: StateDir = None,
    device: Device = None,
    threads: Threads = None,
    max_up: MaxUp = None,
    max_down: MaxDown = None,
    disk: Disk = None,
    hours: DailyHours = None,
    port: Port = None,
    listen: Listen = None,
    bootstrap: Bootstrap = None,
    rounds: Rounds = 0,
    until_round: UntilRound = 0,
    text: Text = None,
    held_out_rounds: HeldOut = 20,
    config: Config = None,
    metrics_port: MetricsPort = None,
    exit_when_unreachable: ExitWhenUnreachable = False,
    lifeline: Lifeline = False,
    json: Json = False,
) -> None:
    """Join a swarm and train: fetch what it is from its members, catch up, take part in its rounds.

    Ctrl-C or `p2pnet leave` saves and leaves; the same command goes on where it was, also after a crash.
    `p2pnet status` asks the node while it runs; `p2pnet pause` and `p2pnet resume` let it rest.
    With --json each line on standard output is one event.

    p2pnet join 'p2pnet://...'
    p2pnet join 'p2pnet://...' --threads 4 --max-up 5M --max-down 20M --disk 20G --hours 22-07
    p2pnet join 'p2pnet://...' --device cuda --port 4001
    p2pnet join 'p2pnet://...' --config node.toml      (max_up_bps = "5M", hours = "22-07", ...)
    """
    lost = hold_lifeline() if lifeline else None
    settings = merge_settings(
        NodeConfig,
        config,
        state_dir=None if state_dir is None else str(state_dir),
        device=device,
        threads=threads,
        max_up_bps=max_up,
        max_down_bps=max_down,
        disk_bytes=disk,
        hours=hours,
        port=0 if listen and port is None else port,  # the command line goes before the file
        listen=[ANY_PORT] if port and not listen else listen or None,
        bootstrap=bootstrap or None,
        metrics_port=metrics_port,
        exit_when_unreachable=exit_when_unreachable or None,
    )
    where = Link.parse(link)
    folder = swarm_folder(settings.state_dir, where.swarm)
    place_key(settings.state_dir / KEY_NAME, folder)
    from p2pnet.member import MemberSettings

    wanted = MemberSettings(where, folder, settings, text, rounds, until_round, held_out_rounds)
    _run(wanted, _as_json() if json else _as_words(), _nothing if lost is None else lambda: _wait(lost))


def _run(wanted: MemberSettings, tell: Tell, linger: Callable[[], None]) -> None:
    """Be a member, then end the process: all is saved by then, and to unload torch took 3 to 8 s on a busy machine."""
    from p2pnet.member import Member

    try:
        status = Member(wanted, tell).run(linger)
    except SystemExit as ended:  # a signal, and there was nothing to save
        status = int(ended.code or 0)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _nothing() -> None:
    """Leave at once."""


def _wait(ended: threading.Event) -> None:
    """Keep serving until the lifeline ends."""
    ended.wait()


def _as_json() -> Tell:
    """Return what writes each event as one line; two threads use it."""
    lock = threading.Lock()

    def tell(event: str, fields: dict[str, Any]) -> None:
        with lock:
            _heard(lambda: write_json({"event": event, "unix_s": round(time.time(), 3), **fields}))

    return tell


def _as_words() -> Tell:
    """Return what writes each event as a person reads it; two threads use it."""
    lock = threading.Lock()

    def tell(event: str, fields: dict[str, Any]) -> None:
        line = printable(WORDS[event](fields))
        with lock:
            _heard(lambda: say(line) if event in {"round", "end"} else note(line))

    return tell


def _heard(write: Callable[[], None]) -> None:
    """Write; when nobody reads it any more, leave as on Ctrl-C."""
    try:
        write()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)


def _round(fields: dict[str, Any]) -> str:
    """One round on one line."""
    members = f"{fields['members']} members"
    if not fields["steps"]:
        return f"round {fields['round']:>5}  {'void' if fields['void'] else 'taken over':<12} {members}"
    trained = "" if math.isnan(fields["train_s"]) else f"train {fields['train_s']:.2f} s  "  # cut short by the decision
    result = "void" if fields["void"] else "" if fields["credited"] else "not in it"
    return (
        f"round {fields['round']:>5}  loss {fields['loss']:.3f}  {fields['tokens_per_s'] / 1000:>6.1f} k tokens/s  "
        f"{members}  up {in_bytes(fields['wire_bytes_up'])}  down {in_bytes(fields['wire_bytes_down'])}  "
        f"{trained}wait {fields['wait_s']:.2f} s  {result}".rstrip()
    )


def _note(fields: dict[str, Any]) -> str:
    """What the node noticed, with the peers that it is about."""
    about = f": {', '.join(fields['peers'])}" if fields["peers"] else ""
    missing = "; missing" if fields["kind"] == "stalled" and about else ""
    return f"round {fields['round']:>5}  {fields['kind']}: {fields['detail']}{missing}{about}"


def _end(fields: dict[str, Any]) -> str:
    """The summary on one line."""
    loss = "" if fields["loss_first"] is None else f"loss {fields['loss_first']:.3f} to {fields['loss_last']:.3f}, "
    return (
        f"{fields['rounds_sealed']} rounds with a result, {fields['rounds_void']} void, {loss}"
        f"up {in_bytes(fields['wire_bytes_up'])}, down {in_bytes(fields['wire_bytes_down'])}, "
        f"state {fields['state_sha256'][:16]}"
    )


def _ready(fields: dict[str, Any]) -> str:
    """What is trained, and where."""
    return (
        f"{fields['name']}: {fields['params']:,} parameters on {fields['device']}, "
        f"{in_bytes(fields['payload_bytes_per_round'])} a round ({fields['compression_vs_fp32']:.0f}x less than fp32)"
    )


WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "listening": lambda fields: f"peer {fields['peer']} at {', '.join(fields['addrs'])}",
    "progress": lambda fields: str(fields["text"]),
    "ready": _ready,
    "round": _round,
    "held_out": lambda fields: f"round {fields['round']:>5}  held-out loss {fields['loss']:.3f}",
    "note": _note,
    "trouble": lambda fields: f"{fields['text']}; trying again",
    "paused": lambda fields: (
        f"outside {fields['hours']}: paused until {fields['paused_until']}"
        if fields["paused_until"] and not fields["paused"]
        else "paused: all is saved; `p2pnet resume` goes on"
    ),
    "end": _end,
}
