"""Take part in a swarm whose task is built in: open it, build what its manifest says, train until it is time to leave.

`p2pnet join` is this with words around it, and so is each peer of the demo. torch is loaded while the swarm is opened.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.manifests import codec_sizes
from p2pnet.opening import Opening
from p2pnet.train.options import read_inner, read_task
from p2pnet.wire.manifest import Link

if TYPE_CHECKING:
    from p2pnet.swarm import Report, Swarm
    from p2pnet.train.optimizer import InnerOptimizer
    from p2pnet.train.tasks import Task

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
CONTENT: Final = "/p2pnet/swarm/1"  # manifest and initial parameters for those who join
HELD_OUT_ROUNDS: Final = 20  # 0.3 s each at the demo's size

Tell = Callable[[str, dict[str, Any]], None]
"""Told (event, fields): listening, progress, ready, round, held_out, note, trouble, end. From two threads."""


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What the operator wants of this membership."""

    link: Link
    folder: Path  # of this swarm on this machine
    config: NodeConfig
    text: Path | None = None  # a folder; None: the standard library's sources
    rounds: int = 0  # leave after taking part in so many decided rounds; 0: stay
    until_round: int = 0  # leave when the swarm has decided so many; 0: stay
    threads: int = 0  # torch's; 0: its own choice
    held_out_rounds: int = HELD_OUT_ROUNDS  # between two measurements on text that nobody trains on; 0: never


class Stop:
    """SIGINT and SIGTERM: they end the process while there is nothing to save, and later they end the loop.

    Never by an exception out of nowhere: an update of the parameters that is cut in two could not be saved.
    """

    def __init__(self) -> None:
        self.signal = 0  # the one that came
        self._leave: Callable[[], None] | None = None

    def defer(self, leave: Callable[[], None]) -> None:
        """From now on a signal calls `leave`, which makes the loop end; a second one ends the process at once."""
        self._leave = leave
        if self.signal:
            raise SystemExit(128 + self.signal)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        again, self.signal = self.signal, number
        if again:
            os._exit(128 + number)
        if self._leave is None:
            raise SystemExit(128 + number)
        self._leave()

    def __enter__(self) -> Self:
        self._before = [(number, signal.signal(number, self._take)) for number in SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)


class _Work(NamedTuple):
    task: Task
    optimizer: InnerOptimizer
    batch_size: int


class Member:
    """One membership, from the first look for the swarm to the summary at its end."""

    def __init__(self, settings: MemberSettings, tell: Tell) -> None:
        self.settings, self.tell = settings, tell
        self._stop = Stop()
        self._rounds: dict[int, dict[str, Any]] = {}  # what the node's thread wrote down about them, not yet told
        self._trains = False
        self._ready: dict[str, Any] = {}
        self._opening: Opening | None = None

    def run(self, linger: Callable[[], None] = lambda: None) -> int:
        """Take part until it is time to leave; returns the exit status: 0, or 128 + the signal that ended it.

        linger: called when all wanted rounds are decided and the summary is told, before leaving; others may still need
        what this peer has. Raises ConfigError and NetworkError as `p2pnet.join` does.
        """
        with self._stop:
            settings = self.settings
            self._opening = opening = Opening(settings.link, settings.folder, settings.config, self._on_event)
            try:
                import torch  # takes seconds, while the node looks for the swarm

                if settings.threads:
                    torch.set_num_threads(settings.threads)
                work = self._build(opening)
                self._stop.defer(opening.leave)
                finished = self._take_part(opening, work, linger)
            finally:
                opening.close()
        return 0 if finished else 128 + self._stop.signal

    def _build(self, opening: Opening) -> _Work:
        """Build model, data and optimizer as the manifest says."""
        manifest = opening.wait()
        from p2pnet.train.optimizer import InnerOptimizer
        from p2pnet.train.tasks import make_task

        settings = read_task(manifest.task, manifest.task_options)
        inner = read_inner(manifest.inner, manifest.inner_options)
        device = choose_device(self.settings.config.device)
        self.tell("progress", {"text": f"building {manifest.task} with {manifest.params:,} parameters on {device}"})
        task = make_task(dataclasses.replace(settings, text=self.settings.text))
        task.model.to(device)
        sizes = codec_sizes(manifest)
        self._ready = {
            "name": manifest.name,
            "params": manifest.params,
            "payload_bytes_per_round": sizes.payload_bytes,
            "compression_vs_fp32": round(sizes.compression, 3),
            "text_bytes": task.corpus.bytes,
            "text_sha256": task.corpus.sha256.hex(),
            "device": str(device),
        }
        return _Work(task, InnerOptimizer(task.model, inner), settings.batch_size)

    def _take_part(self, opening: Opening, work: _Work, linger: Callable[[], None]) -> bool:
        """Train; tells whether it came to the wanted end, and not to a signal."""
        from p2pnet.swarm import Swarm

        try:
            swarm = Swarm(opening, work.task.model, work.optimizer.optimizers)
        except P2pnetError:
            if self._stop.signal:
                return False  # nothing was trained yet
            raise
        with swarm:
            try:
                self._train(swarm, work)
            except P2pnetError:
                if not self._stop.signal:
                    raise
            finished = not self._stop.signal
            self.tell("end", self._summary(swarm, work))
            if finished:
                linger()
        return finished

    def _train(self, swarm: Swarm, work: _Work) -> None:
        """Run the loop until enough rounds are decided or a signal came."""
        h_steps, first = swarm.manifest.policy.h_steps, swarm.round
        if self._is_over(swarm.round, first):
            return
        self._trains = True
        for batch in swarm.batches(work.task.dataset, batch_size=work.batch_size):
            if self._stop.signal:
                return
            loss = work.task.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
            work.optimizer.step(swarm.round * h_steps + swarm.round_step)
            report = swarm.step(loss, work.batch_size)
            if report is None:
                continue
            self._report(report, work)
            if self._is_over(swarm.round, first):
                return
            every = self.settings.held_out_rounds
            if every and swarm.round % every == 0:
                self.tell("held_out", {"round": report.round, "loss": work.task.held_out_loss()})

    def _is_over(self, round_id: int, first: int) -> bool:
        wanted = self.settings
        return 0 < wanted.rounds <= round_id - first or 0 < wanted.until_round <= round_id

    def _report(self, report: Report, work: _Work) -> None:
        """Tell a round that was trained, and those that were decided meanwhile, with what the loop knows of them."""
        tokens = work.batch_size * work.task.settings.context * report.steps
        self._rounds[report.round] |= {
            "credited": report.credited,
            "steps": report.steps,
            "tokens": tokens,
            "tokens_per_s": round(tokens / max(report.train_s + report.wait_s, 1e-9), 1),
            "wait_s": report.wait_s,
        }
        for number in sorted(self._rounds):
            self.tell("round", self._rounds.pop(number))

    def _summary(self, swarm: Swarm, work: _Work) -> dict[str, Any]:
        status = swarm.status()
        same = (
            "peer", "rounds_sealed", "rounds_void", "rounds_credited", "lineage", "wire_bytes_up", "wire_bytes_down",
            "loss_first", "train_s", "exchange_s", "straggler_wait_s",
        )  # fmt: skip
        held_out = work.task.held_out_loss() if self.settings.held_out_rounds and not self._stop.signal else None
        return {name: status[name] for name in same} | {
            "loss_last": status["loss"],
            "rounds": swarm.round,
            "state_sha256": swarm.state_sha256(),
            "held_out_loss": held_out,
            "uptime_s": status["uptime_s"],
            "cpu_s": round(time.process_time(), 2),
        }

    def _on_event(self, kind: str, fields: dict[str, Any]) -> None:
        """Take what the node says, in its thread."""
        if kind == "ready":
            fields = fields | self._ready
        elif kind == "round":
            assert self._opening is not None
            status = self._opening.node.snapshot()  # in its own thread
            fields = fields | {
                "wire_bytes_up": status["wire_bytes_up"],
                "wire_bytes_down": status["wire_bytes_down"],
                "content_bytes_up": status["wire_bytes"].get(CONTENT, (0, 0))[0],
                "seen": len(status["connected"]) + 1,
                "credited": False,
                "steps": 0,
                "tokens": 0,
                "tokens_per_s": 0.0,
                "wait_s": 0.0,
            }
            if self._trains:
                self._rounds[fields["round"]] = fields  # the loop tells it, with what it knows
                return
        self.tell(kind, fields)


def choose_device(wanted: str) -> Any:
    """Return the torch device for `auto`, `cpu` or `cuda`. Raises ConfigError when there is no such device here."""
    import torch

    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ConfigError("device: found 'cuda', and torch sees no CUDA device here; allowed are 'cpu' and 'auto'")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")
