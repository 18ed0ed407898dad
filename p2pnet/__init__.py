"""Train neural networks peer to peer, over the open internet, with no central part.

    with p2pnet.join(link, model, optimizer, state_dir="run1") as swarm:
        for batch in swarm.batches(dataset, batch_size=8):
            loss = loss_fn(model(batch["x"]), batch["y"])
            loss.backward()
            optimizer.step(); optimizer.zero_grad()
            if report := swarm.step(loss, samples=8):
                print(report.round, report.loss, report.wait_s)

Importing this package loads neither torch nor anything else that is heavy; the names below come when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pnet.errors import BehindError, ConfigError, NetworkError, NotFiniteError, P2pnetError, PeerError

if TYPE_CHECKING:
    from p2pnet.callback import SwarmCallback
    from p2pnet.config import NodeConfig, SwarmConfig
    from p2pnet.founding import create
    from p2pnet.swarm import Report, Swarm, join
    from p2pnet.wire.manifest import Link

__version__ = "0.1.0"

__all__ = [
    "BehindError", "ConfigError", "Link", "NetworkError", "NodeConfig", "NotFiniteError", "P2pnetError", "PeerError",
    "Report", "Swarm", "SwarmCallback", "SwarmConfig", "create", "join",
]  # fmt: skip

_HOME = {
    "Link": "p2pnet.wire.manifest",
    "NodeConfig": "p2pnet.config",
    "SwarmConfig": "p2pnet.config",
    "Report": "p2pnet.swarm",
    "Swarm": "p2pnet.swarm",
    "SwarmCallback": "p2pnet.callback",
    "create": "p2pnet.founding",
    "join": "p2pnet.swarm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'p2pnet' has no attribute {name!r}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return found
