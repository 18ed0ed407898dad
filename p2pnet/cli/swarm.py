"""`p2pnet swarm`: write an example's settings, launch a swarm, read one back."""

from __future__ import annotations

import secrets
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from p2pnet.cli.folders import Json, KeyFile, StateDir, key_file_or_default, state_dir_or_default
from p2pnet.cli.show import describe_manifest, read_manifest, show
from p2pnet.cli.terminal import note, printable, say, write_json
from p2pnet.config import SwarmConfig
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity
from p2pnet.manifests import swarm_folder
from p2pnet.schema import load_file
from p2pnet.wire.manifest import BOOTSTRAP_MAX, Link, Manifest
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from torch import nn

EXAMPLE: Final = Path(__file__).with_name("swarm.toml")
OPEN: Final = "This swarm is open: anyone with the link can join it, until private swarms exist."

app = typer.Typer(no_args_is_help=True, help="Launch a swarm, or look at one.")
app.command()(show)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="swarm.toml", help="The file to write.")] = Path("swarm.toml"),
) -> None:
    """Write settings of a swarm to start from: every key, its default and where that comes from.

    p2pnet swarm init
    p2pnet swarm new swarm.toml
    """
    try:
        with open(file, "x", encoding="utf-8") as made:
            made.write(EXAMPLE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise ConfigError(f"{file}: exists already, and is not overwritten; name another file, or remove it") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot write it: {error.strerror}") from error
    say(str(file))
    note(f"change what you like, then: p2pnet swarm new {file}")


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="swarm.toml", help="Its settings; `p2pnet swarm init` writes some.")],
    key: KeyFile = None,
    bootstrap: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="A peer to start from, with /p2p/<peer id>; repeatable. In the link."),
    ] = None,
    state_dir: StateDir = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random initial parameters.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Launch a swarm: make its initial parameters, sign its manifest, print its link.

    The swarm begins when you join it yourself: until then nobody but you has the
    manifest and the parameters, and without its founders nothing is decided.
    It is open to anyone with the link, until private swarms exist.

    p2pnet swarm new swarm.toml --bootstrap /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW...
    p2pnet join 'p2pnet://...'
    """
    if not file.exists():
        raise ConfigError(f"{file}: no such file; `p2pnet swarm init {file}` writes an example")
    config = load_file(SwarmConfig, file)
    addrs = _checked_bootstrap(bootstrap or [])
    place = state_dir_or_default(state_dir)
    from p2pnet.node.content import MANIFEST_NAME
    from p2pnet.train.tasks import make_task

    model = make_task(config.task, seed=seed).model
    link, folder = _create(config, model, place, addrs, key_file_or_default(key, place))
    _tell(read_manifest(folder / MANIFEST_NAME, link.swarm), link, folder, state_dir, json)


def _checked_bootstrap(addrs: list[str]) -> tuple[str, ...]:
    from p2pnet.net.daemon import DaemonOptions
    from p2pnet.net.discovery import merge_bootstrap

    if len(addrs) > BOOTSTRAP_MAX:
        raise ConfigError(f"--bootstrap: found {len(addrs)} addresses; allowed are {BOOTSTRAP_MAX}, more fit no link")
    merge_bootstrap(addrs)
    for addr in addrs:
        try:
            DaemonOptions(relays=(addr,))  # the whole grammar of a multiaddr
        except ConfigError as error:
            raise ConfigError(str(error).replace("relays:", "--bootstrap:", 1)) from None
    return tuple(addrs)


def _create(
    config: SwarmConfig, model: nn.Module, place: Path, bootstrap: tuple[str, ...], key_file: Path
) -> tuple[Link, Path]:
    """Make the swarm beside its place, then move it there: only a whole one has a name by its id."""
    from p2pnet.founding import create
    from p2pnet.node.content import MANIFEST_NAME

    Identity.load_or_create(key_file)
    made = place / f".new-{secrets.token_hex(8)}"
    try:
        link = create(config, model, state_dir=made, bootstrap=bootstrap, key_file=key_file)
        folder = swarm_folder(place, link.swarm)
        if not (folder / MANIFEST_NAME).exists():  # made before, from the same settings and date: the same bytes
            made.rename(folder)
    except OSError as error:
        raise ConfigError(f"{place}: cannot write there: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return link, folder


def _tell(manifest: Signed[Manifest], link: Link, folder: Path, state_dir: Path | None, as_json: bool) -> None:
    """The link alone goes to stdout; what to do with it is for people."""
    if as_json:
        write_json({"link": str(link), "folder": str(folder), **describe_manifest(manifest)})
        return
    say(str(link))
    facts = manifest.message
    note(f"\n{printable(facts.name)}: {facts.params:,} parameters, signed and written to {folder}")
    note(OPEN)
    if not link.bootstrap:
        note("The link names no bootstrap peer: give --bootstrap ADDR, or nobody finds the swarm from it.")
    founders = "you are its only founder" if facts.founders == (manifest.peer,) else f"{len(facts.founders)} founders"
    note(f"Now join it yourself ({founders}, and the first to serve its manifest and parameters):")
    note(f"    p2pnet join '{link}'" + ("" if state_dir is None else f" --state-dir {shlex.quote(str(state_dir))}"))
