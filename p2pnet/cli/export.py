"""`p2pnet export`: the swarm's model as a file, from what this machine has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pnet.cli.folders import Json, Prefix, StateDir, choose_swarm, state_dir_or_default
from p2pnet.cli.show import read_manifest
from p2pnet.cli.terminal import say, write_json
from p2pnet.config import expand_home


def export(
    target: Annotated[Path, typer.Argument(metavar="model.safetensors", help="Where to write it.")],
    state_dir: StateDir = None,
    swarm: Prefix = "",
    json: Json = False,
) -> None:
    """Write the swarm's model as safetensors: its parameters by name, in fp32, as this machine saved them last.

    Works while the node runs, and after. The header names the swarm, the round, its
    lineage and the hash that all peers have after the same round; of a degraded branch
    it names the branch, and only the peers in it have the same. In plain PyTorch:

    p2pnet export model.safetensors
    model.load_state_dict(safetensors.torch.load_file("model.safetensors"), strict=False)

    strict=False, since tied parameters are there once, and buffers are not.
    """
    from p2pnet.ledger.log import FILE_NAME
    from p2pnet.ledger.reader import LedgerReader
    from p2pnet.node.content import MANIFEST_NAME
    from p2pnet.train.export import export_saved
    from p2pnet.train.savefile import LEARNER_NAME
    from p2pnet.wire.manifest import swarm_id

    place, target = state_dir_or_default(state_dir), expand_home(target, "export")
    absent = f"nothing trained is saved in {place}; `p2pnet join LINK` trains, and saves after the first round"
    folder = choose_swarm(place, LEARNER_NAME, swarm, absent)
    manifest, saved = read_manifest(folder / MANIFEST_NAME), folder / LEARNER_NAME

    def about(round_id: int, branch: str) -> dict[str, str]:
        named = {"swarm": swarm_id(manifest).hex(), "name": manifest.message.name}
        if branch:
            return {**named, "branch": branch}
        with LedgerReader(folder / FILE_NAME) as ledger:
            entry = ledger.entry(round_id - 1) if round_id else None
            lineage = entry.lineage if entry is not None else ledger.genesis()
        return {**named, "lineage": lineage.hex()}

    header = export_saved(saved, manifest.message.parameters, target, about)
    if json:
        write_json({**header, "round": int(header["round"]), "file": str(target)})
        return
    say(f"{target}  {header['name']} at the beginning of round {header['round']}, state {header['state_sha256'][:16]}")
    if "branch" in header:
        say(
            f"of degraded branch {header['branch'][:16]}: when the final chain goes on, it does so without these rounds"
        )
    if frozen := sum(1 - row.trained for row in manifest.message.parameters):
        say(f"left out: {frozen} frozen parameters, which are those that the swarm began with")
