"""Write a swarm's model for use elsewhere out of what a peer has saved; no node, no daemon and no model is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from p2pnet.errors import ConfigError
from p2pnet.numerics.layout import Layout
from p2pnet.numerics.state import state_sha256
from p2pnet.train.storage import check_tensors, read_tensors, write_tensors
from p2pnet.wire.manifest import ParameterRow


def export_saved(
    saved: Path, table: Iterable[ParameterRow], target: Path, about: Callable[[int, str], Mapping[str, str]]
) -> dict[str, str]:
    """Write the trained parameters of a saved learner by name, float32, as safetensors; returns the file's header.

    saved: a peer's learner.safetensors, also that of a node that runs: it is replaced as a whole.   table: the
    manifest's; frozen parameters and buffers are not in the saved file, and so not in the new one.
    about: asked with the round and the degraded branch, its id in hexadecimal digits or empty for the final chain, for
    what stands in the header beside `format`, `round` and `state_sha256`.
    Raises ConfigError for files that do not fit.
    """
    tensors, notes = read_tensors(saved)
    layout = Layout((row.name, row.shape) for row in table if row.trained)
    theta = {"theta": tensors["theta"]} if "theta" in tensors else {}
    check_tensors(theta, {"theta": (torch.float32, tuple(layout.empty("meta").shape))}, str(saved))
    named = layout.views(theta["theta"])
    try:
        round_id = int(notes["round"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{saved}: does not say its round; is it the learner's file of a swarm's folder?") from error
    rest = {"round": str(round_id), "state_sha256": state_sha256(named).hex(), "format": "pt"}
    header = {**about(round_id, notes.get("line", "")), **rest}
    write_tensors(target, {name: tensor.clone() for name, tensor in named.items()}, header)
    return header
