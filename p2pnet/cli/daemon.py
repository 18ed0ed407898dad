"""`p2pnet daemon`: put the libp2p daemon in place, or say where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pnet.cli.terminal import note, say

app = typer.Typer(no_args_is_help=True, help="Install or find the libp2p daemon that carries all traffic.")


@app.command()
def install(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Where to (default: where p2pnet looks for it).")
    ] = None,
) -> None:
    """Download the daemon, check it against its SHA-256 and install it.

    It comes out of the hivemind wheel, through pip; none of hivemind's Python
    code is installed or run. Not needed where p2pnet's extra train is installed.

    p2pnet daemon install
    """
    from p2pnet.net.install import install_daemon

    note("downloading with pip: 10 to 40 MB, unless it is there already")
    say(str(install_daemon(to)))


@app.command()
def path() -> None:
    """Print where the daemon is that would be started.

    p2pnet daemon path
    """
    from p2pnet.net.daemon import find_daemon

    say(str(find_daemon()))
