"""Make a swarm around a model, and know where a swarm is kept on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from p2pnet.config import NodeConfig, SwarmConfig, load_file
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity
from p2pnet.manifests import make_manifest, swarm_folder
from p2pnet.node.content import Content, write_atomically
from p2pnet.node.runner import KEY_NAME, LEDGER_NAME
from p2pnet.train.learner import Learner
from p2pnet.train.ranks import Ranks
from p2pnet.wire.manifest import PPM, Link, swarm_id


def create(
    config: str | Path | SwarmConfig,
    model: nn.Module,
    *,
    state_dir: str | Path | None = None,
    bootstrap: Sequence[str] = (),
    key_file: str | Path | None = None,
    collective: bool = True,
) -> Link:
    """Make a swarm around a model: sign its manifest, keep it in `state_dir`, return the link that others join with.

    config: a swarm.toml, or what is in it.   model: its parameters are the initial ones.   state_dir: as in `join`,
    which wants the same.   bootstrap: full multiaddrs, `/ip4/.../tcp/4001/p2p/12D3KooW...`; without any, others find
    the swarm only through the creator's own address.   key_file: the creator's key; by default this machine's, or with
    a `state_dir` one of its own, made when there is none.
    Whoever calls `join` with the same `state_dir` is the creator, and the first to serve manifest and parameters.
    Collective where `join` is; collective=False: this process alone.
    Raises ConfigError for settings, a model or a key that will not do.
    """
    ranks = Ranks.of_this_job() if collective else Ranks()
    try:
        settings = config if isinstance(config, SwarmConfig) else load_file(SwarmConfig, Path(config))
        learner = Learner(
            model,
            k=settings.codec.k,
            k_result=settings.codec.k_result,
            value_bits=settings.codec.value_bits,
            level_bias=settings.codec.level_bias,
            alpha_ppm=round(settings.outer.alpha * PPM),
            beta_ppm=round(settings.outer.beta * PPM),
            ranks=ranks,
        )

        def write() -> bytes:
            return _create(settings, learner, state_dir, tuple(bootstrap), key_file)

        return Link.parse(ranks.from_first(write).decode())
    except BaseException:
        ranks.abandon()
        raise
    finally:
        ranks.close()


def _create(
    settings: SwarmConfig,
    learner: Learner,
    state_dir: str | Path | None,
    bootstrap: tuple[str, ...],
    key_file: str | Path | None,
) -> bytes:
    home = NodeConfig().state_dir
    key = Path(key_file) if key_file is not None else (home if state_dir is None else Path(state_dir)) / KEY_NAME
    if state_dir is not None:
        _refuse_swarm(Path(state_dir))
    identity = Identity.load_or_create(key)
    initial = learner.initial_bytes()
    manifest = make_manifest(settings, learner.replica.table(), initial, identity, int(time.time()))
    link = Link(swarm_id(manifest), bootstrap)
    folder = swarm_folder(home, link.swarm) if state_dir is None else Path(state_dir)
    _refuse_swarm(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if folder / KEY_NAME != key:
        identity.save(folder / KEY_NAME)
    content = Content(folder, link.swarm)
    write_atomically(content.initial_path, initial)
    write_atomically(content.manifest_path, manifest.raw)
    return str(link).encode()


def _refuse_swarm(folder: Path) -> None:
    if Content(folder, b"").manifest_path.exists():
        raise ConfigError(f"state_dir: {folder} holds a swarm already; give the new one a directory of its own")


def find_folder(link: str | Link, state_dir: str | Path | None, config: NodeConfig | None) -> Path:
    """Where a swarm is kept. Raises ConfigError when its creator's folder is elsewhere than the one that was given."""
    swarm = (Link.parse(link) if isinstance(link, str) else link).swarm
    usual = swarm_folder((config or NodeConfig()).state_dir, swarm)
    if state_dir is None:
        return usual
    given = Path(state_dir)
    made_here = Content(usual, swarm).manifest_path.exists() and not (usual / LEDGER_NAME).exists()
    if made_here and not Content(given, swarm).manifest_path.exists() and given.resolve() != usual.resolve():
        raise ConfigError(
            f"state_dir: this swarm was created in {usual} and waits there for its creator; leave state_dir out, "
            "or give the same one to create and join"
        )
    return given
