"""Train a model together with others: `join` a swarm and call `step` in an ordinary PyTorch loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from p2pnet.config import NodeConfig
from p2pnet.errors import P2pnetError
from p2pnet.founding import find_folder
from p2pnet.node.runner import Node
from p2pnet.opening import OnEvent, Opening
from p2pnet.relay import Relay
from p2pnet.train.assignment import Assignment
from p2pnet.train.batches import Batches
from p2pnet.train.learner import Learner
from p2pnet.train.moments import Moments
from p2pnet.train.ranks import Ranks
from p2pnet.train.savefile import SaveFile
from p2pnet.training import Report, Training
from p2pnet.wire.manifest import Link

__all__ = ["Report", "Swarm", "join"]

log = logging.getLogger(__name__)

Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


def join(
    link: str | Link,
    model: nn.Module,
    optimizer: Optimizers = None,
    *,
    state_dir: str | Path | None = None,
    config: NodeConfig | None = None,
    on_event: OnEvent = lambda _kind, _fields: None,
    timeout_s: float | None = None,
    collective: bool = True,
) -> Swarm:
    """Join a swarm with a model: resume where `state_dir` stopped, or catch up with the others. Use it as `with`.

    link: `p2pnet://<swarm id>?bootstrap=...`.   model: any nn.Module with the manifest's parameters; they become the
    swarm's.   optimizer: the inner one, or a sequence of them; its state (never its hyperparameters) is saved and
    restored with the rest.   state_dir: what this peer must not forget, a folder of this swarm's own; by default one in
    `config.state_dir`, where `create` and the command line keep theirs.   on_event: told (kind, fields) by the node's
    thread.   timeout_s: for finding the swarm; None: as long as it takes.

    Where torch.distributed is initialised (torchrun), all ranks together are one peer and call this together, with DDP,
    FSDP2 or a bare model; only rank 0 needs the daemon and `state_dir`. collective=False: each rank is a peer alone.

    Raises ConfigError: a model that does not match the manifest (with the list of differing names), a state directory
    in use, a missing daemon; NetworkError after `timeout_s` without the swarm's manifest; BehindError.
    """
    ranks = Ranks.of_this_job() if collective else Ranks()
    opening: Opening | None = None

    def open_swarm() -> bytes:
        nonlocal opening
        where = find_folder(link, state_dir, config)
        opening = Opening(link, where, config, on_event)
        opening.wait(timeout_s)
        return b""

    try:
        ranks.from_first(open_swarm)
        return Swarm(opening, model, optimizer, ranks)
    except BaseException:
        ranks.abandon()
        if opening is not None:
            opening.close()
        raise


class Swarm:
    """A running membership. `batches` gives what the beacon assigns, `step` counts, exchanges and applies."""

    def __init__(
        self, opening: Opening | None, model: nn.Module, optimizer: Optimizers, ranks: Ranks | None = None
    ) -> None:
        """Take part with this model; its parameters become the swarm's. Raises ConfigError when it does not fit.

        opening: open; None on the ranks of a replica that follow rank 0.   Collective.
        """
        self._ranks = ranks = ranks or Ranks()
        self._relay = Relay(opening, ranks)
        self._node: Node | None = opening.node if opening is not None else None
        self.manifest = self._relay.manifest.message
        self.moments = Moments(optimizer)
        codec, policy = self.manifest.codec, self.manifest.policy
        self.learner = Learner(
            model,
            k=codec.k,
            k_result=codec.k_result,
            value_bits=codec.value_bits,
            level_bias=codec.level_bias,
            alpha_ppm=policy.alpha_ppm,
            beta_ppm=policy.beta_ppm,
            ranks=ranks,
        )
        self.learner.replica.check_table(self.manifest.parameters)
        self._batches: list[Batches] = []
        self._closed = False
        keep_results = self._node.settings.config.keep_results if self._node is not None else 2
        folder = opening.folder if opening is not None else None
        file = SaveFile(folder, self.learner, self.moments, ranks, rounds_max=max(1, keep_results // 2))
        initial = opening.opened.initial if opening is not None else Path()
        self._training = Training(
            self._relay, self.manifest, self.learner, self.moments, file, folder, ranks, initial, self._is_assigned
        )

    # For the loop ---------------------------------------------------------------------------------------------------

    def batches(self, dataset: Dataset[Any], *, batch_size: int = 1, **options: Any) -> Batches:
        """Batches of the samples that each round's beacon assigns to this peer; takes DataLoader's arguments.

        dataset: map-style, the same for all peers.   batch_size: of this process; on several ranks each has its own
        batches.   Never looks ahead beyond a round. Ends when the swarm is closed. Raises ConfigError for options that
        choose samples. A loader of your own works too; the samples of its rounds are marked unassigned.
        """
        ranks = self._ranks
        made = Batches(dataset, self._assignment, batch_size=batch_size, rank=ranks.rank, ranks=ranks.size, **options)
        self._batches.append(made)
        return made

    def step(self, loss: Tensor | float, samples: int) -> Report | None:
        """Count one inner step; at the end of a round exchange with the others, and return the round's report.

        Call it after each `optimizer.step()`: that is an inner step, however many backward passes went into it. A round
        has `h_steps` of them, or as many as fit into its window; with `by_window` as many as fit, be it more.
        loss: of this step, for the record, (); not read before the round's end, so that no device is waited for.
        samples: this process trained on in this step, all backward passes together.   Cheap within a round. At its end
        it waits for the round's decision, after which the model's parameters are the swarm's. In a swarm with overlap
        it waits for the round before, which was exchanged meanwhile, and returns that one's report. Collective where
        `join` is. Raises P2pnetError when the node has failed, ConfigError when the model's parameters were exchanged.
        """
        if self._closed:
            raise P2pnetError("the swarm is closed")
        return self._training.step(loss, samples)

    @property
    def reports(self) -> deque[Report]:
        """The latest rounds, as this peer saw them."""
        return self._training.reports

    @property
    def round(self) -> int:
        """The round that is being trained; several beyond the last report, where this peer had to catch up."""
        return self._training.round

    @property
    def decided(self) -> int:
        """Rounds that are decided and taken over. With overlap the one behind them is exchanged meanwhile."""
        return self._training.decided

    @property
    def branch(self) -> str:
        """The degraded branch that these rounds are of, by its id in hexadecimal digits; empty: the final chain."""
        return self._training.branch

    @property
    def round_step(self) -> int:
        """Inner steps taken in this round."""
        return self._training.steps

    def status(self) -> dict[str, Any]:
        """What `p2pnet status` shows; nothing on the ranks that follow rank 0."""
        return self._node.status() if self._node is not None else {}

    def state_sha256(self) -> str:
        """SHA-256 over the fp32 master parameters in name order, hexadecimal: equal on all peers after a round.

        Collective where `join` is.
        """
        return self.learner.state_sha256().hex()

    def export(self, path: str | Path) -> None:
        """Write the swarm's model as safetensors: fp32 masters, frozen parameters and this peer's buffers, by name.

        Loads with `model.load_state_dict(..., strict=False)` (tied parameters are there once). Collective where `join`
        is. Raises ConfigError when the file cannot be written.
        """
        self.learner.export(Path(path))

    def save(self) -> None:
        """Save now what a stopped process goes on from; not while `step` runs. Collective where `join` is."""
        self._training.save()

    def set_aside(self) -> None:
        """Keep what was trained of the unfinished round, to be sent with a later update; for a loop that is to end."""
        self._training.set_aside()

    def close(self) -> None:
        """Save, leave, and end the node with its daemon; harmless when called again. Collective where `join` is."""
        self._close(failed=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=kind is not None)

    def _close(self, failed: bool) -> None:
        """failed: this rank is alone with its error; the others are told, and nothing is waited for that takes them."""
        if self._closed:
            return
        self._closed = True
        for made in self._batches:
            made.close()
        try:
            if failed:
                self._ranks.abandon()
            else:
                self._ranks.leave()
            if self._training.torn:
                log.warning("interrupted between two rounds: what was saved before counts, and the rest is replayed")
            else:
                self._training.save(alone=failed)
        finally:
            self._ranks.close()
            if self._node is not None:
                self._node.stop()

    def _assignment(self) -> Assignment | None:
        return None if self._closed else self._training.assignment()

    def _is_assigned(self, round_id: int) -> bool:
        return any(made.is_used(round_id) for made in self._batches)
