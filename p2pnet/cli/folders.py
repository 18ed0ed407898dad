"""Where this machine keeps its key and its swarms: <state_dir>/peer.key, <state_dir>/<16 hex digits of the id>/.

A folder of one swarm may be given in place of the state directory: the Python API names such a folder itself.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from p2pnet.config import STATE_DIR, NodeConfig, expand_home
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity
from p2pnet.manifests import FOLDER_CHARS, KEY_NAME

DEFAULT_DIR = str(STATE_DIR)

StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="DIR", help=f"Where swarms are kept (default: {DEFAULT_DIR})."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help=f"Key file (default: {KEY_NAME} in the state directory)."),
]
Prefix = Annotated[
    str,
    typer.Option("--swarm", metavar="PREFIX", help="First digits of the swarm's id (default: the only one)."),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


def state_dir_or_default(state_dir: Path | None) -> Path:
    """Return the state directory that was given, or the default one."""
    return NodeConfig().state_dir if state_dir is None else expand_home(state_dir, "--state-dir")


def key_file_or_default(key: Path | None, state_dir: Path) -> Path:
    """Return the key file that was given, or the state directory's."""
    return state_dir / KEY_NAME if key is None else expand_home(key, "--key")


def swarm_folders(state_dir: Path, file_name: str, prefix: str = "") -> list[Path]:
    """Return the folders of swarms that hold a file of this name: the state directory itself, or those in it."""
    if (state_dir / file_name).exists():
        return [state_dir]
    try:
        found = sorted(path.parent for path in state_dir.glob(f"*/{file_name}"))
    except OSError as error:
        raise ConfigError(f"{state_dir}: cannot read it: {error.strerror}") from error
    return [folder for folder in found if folder.name.startswith(prefix.lower()[:FOLDER_CHARS])]


def choose_swarm(state_dir: Path, file_name: str, prefix: str, absent: str) -> Path:
    """Return the only swarm's folder that holds such a file; ConfigError says `absent`, or which to choose from."""
    found = swarm_folders(state_dir, file_name, prefix)
    if not found:
        there = [folder.name for folder in swarm_folders(state_dir, file_name)]
        raise ConfigError(f"--swarm: found {prefix!r}, here are {', '.join(there)}" if there else absent)
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise ConfigError(f"--swarm: {len(found)} swarms in {state_dir}, name one of {names}")
    return found[0]


def place_key(source: Path, folder: Path) -> Identity:
    """Give a swarm's folder the key of this machine, unless it has one already; returns the folder's identity."""
    identity, place = Identity.load_or_create(source), folder / KEY_NAME
    if place.exists():
        return Identity.load(place)
    with suppress(FileExistsError):
        identity.save(place)
    return Identity.load(place)
