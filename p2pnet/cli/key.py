"""`p2pnet key`: who this machine is."""

from __future__ import annotations

from typing import Annotated

import typer

from p2pnet.cli.folders import Json, KeyFile, StateDir, key_file_or_default, state_dir_or_default
from p2pnet.cli.terminal import say, write_json
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity, peer_id_text


def key(
    key_file: KeyFile = None,
    state_dir: StateDir = None,
    create: Annotated[bool, typer.Option("--create", help="Make the key when there is none.")] = False,
    json: Json = False,
) -> None:
    """Show this machine's peer id: others need it to make you a founder of a swarm.

    Whoever has the key file is this peer: keep a copy of it, and give it to
    nobody.

    p2pnet key --create
    p2pnet key --key bootstrap.key
    """
    path = key_file_or_default(key_file, state_dir_or_default(state_dir))
    if not create and not path.exists():
        raise ConfigError(f"{path}: no such key file; --create makes one")
    identity = Identity.load_or_create(path) if create else Identity.load(path)
    if json:
        write_json({"peer": peer_id_text(identity.peer), "key": str(path)})
    else:
        say(peer_id_text(identity.peer))
