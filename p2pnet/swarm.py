"""Train a model together with others: `join` a swarm and call `step` in an ordinary PyTorch loop."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError, NotFiniteError, P2pnetError
from p2pnet.founding import find_folder
from p2pnet.node import bridge as br
from p2pnet.node.bulk import payload_tree
from p2pnet.node.runner import Node
from p2pnet.node.snapshots import state_path
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.opening import OnEvent, Opening
from p2pnet.relay import Relay
from p2pnet.train.assignment import Assignment
from p2pnet.train.batches import Batches
from p2pnet.train.learner import Learner
from p2pnet.train.moments import Moments
from p2pnet.train.pace import Pace
from p2pnet.train.ranks import Ranks
from p2pnet.train.savefile import SaveFile
from p2pnet.wire.manifest import Link

log = logging.getLogger(__name__)

REPORTS_MAX = 1000

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
        self._format = ChunkFormat(codec.k, codec.value_bits)
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
        self.reports: deque[Report] = deque(maxlen=REPORTS_MAX)  # the latest
        self._batches: list[Batches] = []
        self._pace, self._missed = Pace(), 0  # samples of a round that went on while I was training: they wait in e
        self._task: br.RoundTask | None = None
        self._closed = False
        self._torn = False  # theta, e and the round are being changed, and do not fit each other
        keep_results = self._node.settings.config.keep_results if self._node is not None else 2
        folder = opening.folder if opening is not None else None
        self._file = SaveFile(folder, self.learner, self.moments, ranks, rounds_max=max(1, keep_results // 2))
        initial = opening.opened.initial if opening is not None else Path()
        self._next_round, self._pending_samples = self._file.load(initial)  # samples of an update that is pending
        self._relay.tell(br.Attached(self.learner.chunks, self._next_round))
        self._clear()
        self._begin_next()

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
        it waits for the round's decision, after which the model's parameters are the swarm's. Collective where `join`
        is. Raises P2pnetError when the node has failed, ConfigError when the model's parameters were exchanged.
        """
        if self._closed or self._task is None:
            raise P2pnetError("the swarm is closed")
        self._steps += 1
        self._samples += samples
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        now_s, policy = time.monotonic(), self.manifest.policy
        self._pace.step(now_s)
        has_all = self._steps >= policy.h_steps and not policy.by_window
        early, over = self._relay.poll(has_all or not self._pace.fits(now_s))
        if isinstance(early, br.Outcome):
            return self._exchange(early)
        return self._exchange() if over else None

    @property
    def round(self) -> int:
        """The round that is being trained; several beyond the last report, where this peer had to catch up."""
        return self._next_round

    @property
    def round_step(self) -> int:
        """Inner steps taken in this round."""
        return self._steps

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
        self._file.save(self._next_round, self._samples)

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
            if self._torn:
                log.warning("interrupted between two rounds: what was saved before counts, and the rest is replayed")
            else:
                self._file.save(self._next_round, self._samples, alone=failed)
        finally:
            self._ranks.close()
            if self._node is not None:
                self._node.stop()

    # Inside ---------------------------------------------------------------------------------------------------------

    def _assignment(self) -> Assignment | None:
        if self._closed or self._task is None:
            return None
        return Assignment(self._task.round_id, self._task.beacon, self._relay.peer, self.manifest.policy.h_steps)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """What is interrupted in here (Ctrl-C, no memory) is not saved."""
        self._torn = True
        yield
        self._torn = False

    def _exchange(self, decided: br.Outcome | None = None) -> Report:
        """Commit to what was trained, wait for the decision, apply it.

        decided: the others went on without me; what I trained stays in the error feedback.
        """
        assert self._task is not None
        trained_s, number = time.monotonic(), self._task.round_id
        loss, samples = self._sum_up()
        try:
            with self._changing():
                payload = self.learner.encode(self._steps, self.manifest.policy.h_steps)
        except NotFiniteError as error:  # the learner is as it was
            self._torn = False
            self._skip(number, error)
        else:
            self._missed = samples if decided else 0
            if decided is None:
                assigned = any(made.is_used(number) for made in self._batches)
                self._submit(payload, samples, assigned, loss)
                self._pace.encoded(time.monotonic() - trained_s)
                if self._file.is_due(self._next_round):
                    self._file.save(self._next_round, samples)  # while the others are waited for
        item = decided or self._relay.wait()
        if not isinstance(item, br.Outcome):
            raise P2pnetError(f"the node said {type(item).__name__} where a round's outcome was due")
        return self._finish(item, loss, trained_s)

    def _submit(self, payload: bytes, samples: int, assigned: bool, loss: float) -> None:
        """Hand an update to the node."""
        assert self._task is not None
        if self._ranks.first:
            tree = payload_tree(payload, self._format)
            self._relay.tell(br.Submitted(self._task.round_id, payload, tree, samples, assigned, loss))

    def _skip(self, round_id: int, error: NotFiniteError) -> None:
        """Send nothing this round, and let the next one begin well: one NaN in a moment would spoil every step."""
        healed = self.moments.forget_not_finite()
        detail = f"{error}; the optimizer's state of {healed} parameters is forgotten" if healed else str(error)
        self._relay.tell(br.Skipped(round_id, detail))

    def _finish(self, outcome: br.Outcome, loss: float, trained_s: float) -> Report:
        steps, began_s = self._steps, self._began_s
        self._apply(outcome, loss)
        self._begin_next()
        report = Report(
            outcome.round_id, outcome.void, outcome.named is not None, loss, steps,
            trained_s - began_s, time.monotonic() - trained_s, outcome.lineage.hex(),
        )  # fmt: skip
        self.reports.append(report)
        return report

    def _apply(self, outcome: br.Outcome, loss: float) -> None:
        if outcome.round_id != self._next_round:
            raise P2pnetError(f"round {outcome.round_id} was decided where round {self._next_round} is next")
        with self._changing():
            if outcome.void:
                self.learner.void()
            else:
                self.learner.apply(outcome.result, outcome.named)
            self._next_round += 1
        self._relay.tell(br.Applied(outcome.round_id, loss))
        if self._file.is_overdue(self._next_round):
            self._file.save(self._next_round)

    def _begin_next(self) -> None:
        """Apply what is decided already, until there is a round to train."""
        while True:
            item = self._relay.wait()
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
            self._pace.begin(self._began_s, item.end_s)
            state = self._keep_state() if item.state_wanted else b""
            self._relay.tell(br.Began(item.round_id, self.learner.checksum(), state))
            if not self._make_up():
                return

    def _make_up(self) -> bool:
        """Commit at once to what an earlier round left; tells whether it left something that cannot wait.

        Who was stopped in mid-exchange is committed to its payload. Who was training when a round went on would be late
        again, and never be heard; only with room for a step in the window what it owes goes with what it trains now.
        """
        has_time = self.manifest.policy.by_window and self._pace.fits(time.monotonic())
        if self._ranks.agree(int(self.learner.pending)):
            payload, samples = self.learner.pending_update() if self._ranks.first else b"", self._pending_samples
        elif self._missed and self._ranks.agree(int(self._ranks.first and not has_time)):
            with self._changing():
                payload, samples, self._missed = self.learner.encode(1, 1), self._missed, 0  # no step: a = beta * e
        else:
            return False
        self._samples = samples if self._ranks.first else 0
        self._submit(payload, samples, False, math.nan)
        return True

    def _take_snapshot(self, item: br.Snapshot) -> None:
        """Go on from a state of the swarm that a member gave, or say why not."""
        refused = ""
        try:
            with self._changing():
                self.learner.load_state(item.path, item.sha256)
                self._next_round, self._pending_samples = item.round_id, 0
        except ConfigError as error:  # the learner is as it was
            refused, self._torn = str(error), False
        else:
            self._file.save(self._next_round)
        self._relay.tell(br.Attached(self.learner.chunks, self._next_round, refused))

    def _clear(self) -> None:
        self._steps = self._samples = 0
        self._losses: list[Tensor | float] = []
        self._began_s = time.monotonic()

    def _sum_up(self) -> tuple[float, int]:
        """Return the mean loss of the round, nan when there was no step, and the samples, of all ranks."""
        total = sum(float(loss) for loss in self._losses)
        total, steps, samples = self._ranks.total(total, len(self._losses), self._samples)
        return total / steps if steps else math.nan, int(samples)

    def _keep_state(self) -> bytes:
        """Write the parameters for who joins late, return their hash; the node drops those that nobody needs."""
        state = self.learner.state_sha256()
        if self._node is not None and self._next_round:  # before round 0 they are the initial ones, a file already
            path = state_path(self._node.settings.folder, state)
            path.parent.mkdir(exist_ok=True)
            self.learner.write_state(path)
        return state
