"""Train a model together with others: `join` a swarm and call `step` in an ordinary PyTorch loop."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from p2pnet.config import NodeConfig, SwarmConfig, load_file
from p2pnet.errors import ConfigError, NotFiniteError, P2pnetError
from p2pnet.identity import Identity
from p2pnet.manifests import make_manifest
from p2pnet.node import bridge as br
from p2pnet.node.bulk import payload_tree
from p2pnet.node.content import Content, write_atomically
from p2pnet.node.runner import KEY_NAME
from p2pnet.node.snapshots import state_path
from p2pnet.numerics.codec import ChunkFormat
from p2pnet.opening import OnEvent, Opening
from p2pnet.train.assignment import Assignment
from p2pnet.train.batches import Batches
from p2pnet.train.learner import Learner
from p2pnet.train.moments import Moments
from p2pnet.wire.manifest import PPM, Link, swarm_id

LEARNER_NAME = "learner.safetensors"
REPORTS_MAX = 1000
SAVE_SHARE = 50  # saving may take this fraction of the time: what a killed process loses is seldom more than a round

Optimizers: TypeAlias = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None


@dataclass(frozen=True, slots=True)
class Report:
    """One decided round, as this peer saw it; times in seconds."""

    round: int
    void: bool  # decided without a result
    credited: bool  # my update is in it, at least in part
    loss: float  # mean over my steps of the round, nan when there were none
    steps: int
    train_s: float
    wait_s: float  # the loop stood still for the exchange
    lineage: str  # 64 hexadecimal digits; the same on every peer after this round


def join(
    link: str | Link,
    model: nn.Module,
    optimizer: Optimizers = None,
    *,
    state_dir: str | Path,
    config: NodeConfig | None = None,
    on_event: OnEvent = lambda _kind, _fields: None,
    timeout_s: float | None = None,
) -> Swarm:
    """Join a swarm with a model: resume where `state_dir` stopped, or catch up with the others. Use it as `with`.

    link: `p2pnet://<swarm id>?bootstrap=...`.   optimizer: the inner one, or a sequence of them; its state (never its
    hyperparameters) is saved and restored with the rest.   on_event: told (kind, fields) by the node's thread.
    Raises ConfigError: a model that does not match the manifest (with the list of differing names), a state directory
    in use, a missing daemon; NetworkError after `timeout_s` without the swarm's manifest.
    """
    opening = Opening(link, state_dir, config, on_event)
    try:
        opening.wait(timeout_s)
        return Swarm(opening, model, optimizer)
    except BaseException:
        opening.close()
        raise


def create(
    config: str | Path | SwarmConfig,
    model: nn.Module,
    *,
    state_dir: str | Path,
    bootstrap: Sequence[str] = (),
    key_file: str | Path | None = None,
) -> Link:
    """Make a swarm around a model: sign its manifest, keep it in `state_dir`, return the link that others join with.

    config: a swarm.toml, or what is in it.   model: its parameters are the initial ones.   bootstrap: full multiaddrs,
    `/ip4/.../tcp/4001/p2p/12D3KooW...`.   key_file: the creator's key; made in `state_dir` when it is not given.
    Whoever calls `join` with the same `state_dir` is the creator, and the first to serve manifest and parameters.
    Raises ConfigError for settings, a model or a key that will not do.
    """
    folder = Path(state_dir)
    settings = config if isinstance(config, SwarmConfig) else load_file(SwarmConfig, Path(config))
    content = Content(folder, b"")
    if content.manifest_path.exists():
        raise ConfigError(f"state_dir: {folder} holds a swarm already; give the new one a directory of its own")
    identity = Identity.load_or_create(folder / KEY_NAME if key_file is None else Path(key_file))
    if key_file is not None:
        identity.save(folder / KEY_NAME)
    learner = Learner(
        model,
        k=settings.codec.k,
        k_result=settings.codec.k_result,
        level_bias=settings.codec.level_bias,
        alpha_ppm=round(settings.outer.alpha * PPM),
        beta_ppm=round(settings.outer.beta * PPM),
    )
    initial = learner.initial_bytes()
    manifest = make_manifest(settings, learner.parameter_table(), initial, identity, int(time.time()))
    write_atomically(content.initial_path, initial)
    write_atomically(content.manifest_path, manifest.raw)
    return Link(swarm_id(manifest), tuple(bootstrap))


class Swarm:
    """A running membership. `batches` gives what the beacon assigns, `step` counts, exchanges and applies."""

    def __init__(self, opening: Opening, model: nn.Module, optimizer: Optimizers) -> None:
        """Take part with this model; its parameters become the swarm's. Raises ConfigError when it does not fit."""
        opened, node = opening.opened, opening.node
        self.manifest = opened.manifest.message
        self.moments = Moments(optimizer)
        self._node, self._bridge, self._folder = node, node.bridge, opening.folder
        codec, policy = self.manifest.codec, self.manifest.policy
        self._format = ChunkFormat(codec.k)
        self.learner = Learner(
            model,
            k=codec.k,
            k_result=codec.k_result,
            level_bias=codec.level_bias,
            alpha_ppm=policy.alpha_ppm,
            beta_ppm=policy.beta_ppm,
        )
        self.learner.check_table(self.manifest.parameters)
        self.reports: deque[Report] = deque(maxlen=REPORTS_MAX)  # the latest
        self._batches: list[Batches] = []
        self._task: br.RoundTask | None = None
        self._closed = False
        self._pending_samples = 0  # trained on for an update that was pending when the last process stopped
        self._next_round = self._restore(opened.initial)
        self._saved_s, self._saving_s, self._saved_round = time.monotonic(), 0.0, self._next_round
        self._save_rounds = max(1, node.settings.config.keep_results // 2)
        self._bridge.tell(br.Attached(self.learner.chunks, self._next_round))
        self._clear()
        self._begin_next()

    # For the loop ---------------------------------------------------------------------------------------------------

    def batches(self, dataset: Dataset[Any], *, batch_size: int = 1, **options: Any) -> Batches:
        """Batches of the samples that each round's beacon assigns to this peer; takes DataLoader's arguments.

        Never looks ahead beyond a round. Ends when the swarm is closed.
        """
        made = Batches(dataset, self._assignment, batch_size=batch_size, **options)
        self._batches.append(made)
        return made

    def step(self, loss: Tensor | float, samples: int) -> Report | None:
        """Count one inner step; at the end of a round exchange with the others, and return the round's report.

        loss: of this step, for the record.   samples: trained on in this step.   Cheap within a round. At its end it
        waits for the round's decision, after which the model's parameters are the swarm's. Raises P2pnetError when the
        node has failed.
        """
        if self._closed or self._task is None:
            raise P2pnetError("the swarm is closed")
        self._steps += 1
        self._samples += samples
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        early = self._bridge.poll()
        if isinstance(early, br.Outcome):
            return self._miss(early)
        window_s = self.manifest.policy.window_ms / 1000
        if self._steps < self.manifest.policy.h_steps and time.monotonic() - self._began_s < window_s:
            return None
        return self._exchange()

    @property
    def round(self) -> int:
        """The round that is being trained."""
        return self._next_round

    @property
    def round_step(self) -> int:
        """Inner steps taken in this round."""
        return self._steps

    def status(self) -> dict[str, Any]:
        """What `p2pnet status` shows."""
        return self._node.status()

    def state_sha256(self) -> str:
        """SHA-256 over the fp32 master parameters in name order, hexadecimal: equal on all peers after a round."""
        return self.learner.state_sha256().hex()

    def close(self) -> None:
        """Save, leave, and end the node with its daemon; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        for made in self._batches:
            made.close()
        try:
            self._save()
        finally:
            self._node.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside ---------------------------------------------------------------------------------------------------------

    def _assignment(self) -> Assignment | None:
        if self._closed or self._task is None:
            return None
        peer = bytes(self._node.peer)
        return Assignment(self._task.round_id, self._task.beacon, peer, self.manifest.policy.h_steps)

    def _exchange(self) -> Report:
        """Commit to what was trained, wait for the decision, apply it."""
        assert self._task is not None
        trained_s = time.monotonic()
        try:
            update = self.learner.encode(self._steps, self.manifest.policy.h_steps)
        except NotFiniteError as error:
            self._skip(self._task.round_id, error)
        else:
            tree = payload_tree(update.payload, self._format)
            assigned = bool(self._batches)
            self._bridge.tell(
                br.Submitted(self._task.round_id, update.payload, tree, self._samples, assigned, self._mean_loss())
            )
            if time.monotonic() - self._saved_s >= SAVE_SHARE * self._saving_s:
                self._save()  # while the others are waited for
        item = self._bridge.wait()
        if not isinstance(item, br.Outcome):
            raise P2pnetError(f"the node said {type(item).__name__} where a round's outcome was due")
        return self._finish(item, trained_s)

    def _miss(self, outcome: br.Outcome) -> Report:
        """The others decided without me: what I trained stays in the error feedback."""
        assert self._task is not None
        trained_s = time.monotonic()
        try:
            self.learner.encode(self._steps, self.manifest.policy.h_steps)
        except NotFiniteError as error:
            self._skip(self._task.round_id, error)
        return self._finish(outcome, trained_s)

    def _skip(self, round_id: int, error: NotFiniteError) -> None:
        """Send nothing this round, and let the next one begin well: one NaN in a moment would spoil every step."""
        healed = self.moments.forget_not_finite()
        detail = f"{error}; the optimizer's state of {healed} parameters is forgotten" if healed else str(error)
        self._bridge.tell(br.Skipped(round_id, detail))

    def _finish(self, outcome: br.Outcome, trained_s: float) -> Report:
        loss, steps, began_s = self._mean_loss(), self._steps, self._began_s
        self._apply(outcome, loss)
        self._begin_next()
        report = Report(
            outcome.round_id,
            outcome.void,
            outcome.named is not None,
            loss,
            steps,
            trained_s - began_s,
            time.monotonic() - trained_s,
            outcome.lineage.hex(),
        )
        self.reports.append(report)
        return report

    def _apply(self, outcome: br.Outcome, loss: float) -> None:
        if outcome.round_id != self._next_round:
            raise P2pnetError(f"round {outcome.round_id} was decided where round {self._next_round} is next")
        if outcome.void:
            self.learner.void()
        else:
            self.learner.apply(outcome.result, outcome.named)
        self._next_round += 1
        self._bridge.tell(br.Applied(outcome.round_id, loss))
        if self._next_round - self._saved_round >= self._save_rounds:  # the ledger must still have the results since
            self._save()

    def _begin_next(self) -> None:
        """Apply what is decided already, until there is a round to train."""
        while True:
            item = self._bridge.wait()
            if isinstance(item, br.Outcome):
                self._apply(item, math.nan)
                continue
            if isinstance(item, br.Snapshot):
                self._take_snapshot(item)
                continue
            if not isinstance(item, br.RoundTask):
                raise P2pnetError(f"the node said {type(item).__name__} where a round was due")
            self._clear()
            self._task = item
            state = self._keep_state() if item.state_wanted else b""
            self._bridge.tell(br.Began(item.round_id, self.learner.checksum(), state))
            if not self.learner.pending:
                return
            self._samples = self._pending_samples  # stopped in mid-exchange: the same payload again, it is committed to
            update = self.learner.pending_update()
            tree = payload_tree(update.payload, self._format)
            self._bridge.tell(br.Submitted(item.round_id, update.payload, tree, self._samples, False, math.nan))

    def _take_snapshot(self, item: br.Snapshot) -> None:
        """Go on from a state of the swarm that a member gave, or say why not."""
        refused = ""
        try:
            self.learner.load_state(item.path, item.sha256)
        except ConfigError as error:
            refused = str(error)
        else:
            self._next_round, self._pending_samples = item.round_id, 0
            self._save()
        self._bridge.tell(br.Attached(self.learner.chunks, self._next_round, refused))

    def _clear(self) -> None:
        self._steps = self._samples = 0
        self._losses: list[Tensor | float] = []
        self._began_s = time.monotonic()

    def _mean_loss(self) -> float:
        return sum(float(loss) for loss in self._losses) / len(self._losses) if self._losses else math.nan

    def _restore(self, initial: Path) -> int:
        """Set the learner to where this peer stopped, or to the initial parameters; returns the next round."""
        path = self._folder / LEARNER_NAME
        if not path.exists():
            self.learner.load_initial(_read(initial))
            return 0
        try:
            notes = self.learner.load(path, self.moments)
            round_id, self._pending_samples = int(notes.get("round", "-1")), int(notes.get("samples", "0"))
        except ConfigError as error:
            raise ConfigError(f"{error}; move it away and the run is replayed from its start") from error
        except ValueError:
            round_id = -1
        if round_id < 0:
            raise ConfigError(f"{path}: does not say its round; move it away and the run is replayed from its start")
        return round_id

    def _save(self) -> None:
        began_s = time.monotonic()
        notes = {"round": str(self._next_round), "samples": str(self._samples)}
        self.learner.save(self._folder / LEARNER_NAME, notes, self.moments)
        self._saved_s, self._saved_round = time.monotonic(), self._next_round
        self._saving_s = self._saved_s - began_s

    def _keep_state(self) -> bytes:
        """Write the parameters for who joins late, return their hash; the node drops those that nobody needs."""
        state = self.learner.state_sha256()
        if self._next_round:  # before round 0 they are the initial ones, which are a file already
            path = state_path(self._folder, state)
            path.parent.mkdir(exist_ok=True)
            self.learner.write_state(path)
        return state


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
