"""Take part in a swarm whose task is built in: open it, build what its manifest says, train until it is time to leave.

`p2pnet join` is this with words around it, and so is each peer of the demo. torch is loaded while the swarm is opened.
A member that is paused, or outside its hours, has saved and closed everything but its process and its command socket.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from p2pnet.config import NodeConfig
from p2pnet.errors import BehindError, ConfigError, P2pnetError
from p2pnet.ledger.lock import StateLock
from p2pnet.manifests import codec_sizes, needed_bytes
from p2pnet.node.commands import CommandSocket
from p2pnet.node.diary import Diary
from p2pnet.node.snapshots import used_bytes
from p2pnet.opening import Opening
from p2pnet.presence import Presence
from p2pnet.train.options import read_inner, read_task
from p2pnet.wire.manifest import Link, Manifest

if TYPE_CHECKING:
    from p2pnet.swarm import Report, Swarm
    from p2pnet.train.optimizer import InnerOptimizer
    from p2pnet.train.tasks import Task

CONTENT: Final = "/p2pnet/swarm/1"  # manifest and initial parameters for those who join
HELD_OUT_ROUNDS: Final = 20  # 0.3 s each at the demo's size
BEHIND_MAX: Final = 3  # openings in a row that come too late for the results that members keep
RESCUE_WAIT_S: Final = 1.0
MOMENTARY: Final = frozenset(
    {"addrs", "connected", "connections", "known_members", "missing", "rate_bps", "relayed", "stalled_s", "trouble"}
)  # of a node's status: not true any more when it has ended

Tell = Callable[[str, dict[str, Any]], None]
"""Told (event, fields): listening, progress, ready, round, held_out, note, trouble, paused, end. From two threads."""


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """What the operator wants of this membership."""

    link: Link
    folder: Path  # of this swarm on this machine
    config: NodeConfig
    text: Path | None = None  # a folder; None: the standard library's sources
    rounds: int = 0  # leave after taking part in so many decided rounds; 0: stay
    until_round: int = 0  # leave when the swarm has decided so many; 0: stay
    held_out_rounds: int = HELD_OUT_ROUNDS  # between two measurements on text that nobody trains on; 0: never


class _Work(NamedTuple):
    task: Task
    optimizer: InnerOptimizer
    batch_size: int


class Member:
    """One membership, from the first look for the swarm to the summary at its end."""

    def __init__(self, settings: MemberSettings, tell: Tell) -> None:
        self.settings, self.tell = settings, tell
        self.presence = Presence(settings.config.hours, self._rescue)
        self._diary = Diary(self._on_event)
        self._rounds: dict[tuple[str, int], dict[str, Any]] = {}  # by branch and number, as decided: not yet told
        self._telling = threading.Lock()
        self._trains = False
        self._ready: dict[str, Any] = {}
        self._done = {"steps": 0, "tokens": 0, "tokens_per_s": 0.0}
        self._opening: Opening | None = None
        self._work: _Work | None = None  # built once
        self._swarm: Swarm | None = None
        self._first_round: int | None = None
        self._behind = 0
        self._loops = threading.Lock()  # held by the loop, except in a step of its own, when nobody changes the learner
        self._left: dict[str, Any] = {}  # what the node said last, while there is none
        self._started_s = time.monotonic()

    def run(self, linger: Callable[[], None] = lambda: None) -> int:
        """Take part until it is time to leave; returns the exit status: 0, or 128 + the signal that ended it.

        linger: called when all wanted rounds are decided and the summary is told, before leaving; others may still need
        what this peer has. Raises ConfigError and NetworkError as `p2pnet.join` does.
        """
        commands = {"status": self._status, "pause": self._pause, "resume": self._resume, "leave": self._leave}
        presence, folder = self.presence, self.settings.folder
        with presence, StateLock(folder), CommandSocket(folder, commands):
            while True:
                if not presence.is_wanted and not presence.is_over:
                    self.tell("paused", presence.describe())
                if not presence.wait():
                    return 128 + presence.signal if presence.signal else 0
                if self._stay(linger):
                    return 0

    def _stay(self, linger: Callable[[], None]) -> bool:
        """Be a member until it is time to leave or to pause; tells whether all wanted rounds are decided."""
        settings, presence = self.settings, self.presence
        self._opening = opening = Opening(settings.link, settings.folder, settings.config, self._on_event, self._diary)
        try:
            with presence.here(opening.leave):
                import torch  # takes seconds, while the node looks for the swarm

                if settings.config.threads:
                    torch.set_num_threads(settings.config.threads)
                manifest = opening.wait()
                self._work = work = self._work or self._build(manifest)
                presence.defer()
                return self._take_part(opening, work, linger)
        except BehindError as error:
            self._behind += 1
            if self._behind >= BEHIND_MAX:
                raise
            self.tell("progress", {"text": f"{error}: opening the swarm anew"})
            return False
        except P2pnetError:
            if presence.is_wanted:
                raise
            return False  # called back while it waited for the others
        finally:
            opening.close()
            self._left = {key: value for key, value in opening.node.status().items() if key not in MOMENTARY}
            self._opening = None

    def _build(self, manifest: Manifest) -> _Work:
        """Build model, data and optimizer as the manifest says."""
        self._check_disk(needed_bytes(manifest, self.settings.config.keep_results), "the swarm needs")
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
        """Train; tells whether it came to the wanted end, and was not called back."""
        from p2pnet.swarm import Swarm

        presence = self.presence
        self._swarm = swarm = Swarm(opening, work.task.model, work.optimizer.optimizers)
        try:
            with swarm, self._loops:
                try:
                    self._train(swarm, work)
                except BehindError:
                    raise
                except P2pnetError:
                    if presence.is_wanted:
                        raise
                finally:
                    self._trains = False
                    self._tell_rounds()  # of those that the loop was not there for
                finished = presence.is_wanted
                if not finished:
                    self._set_aside(swarm)
                if finished or presence.is_over:
                    self.tell("end", self._summary(swarm, work))
                if finished:
                    linger()
        finally:
            self._swarm = None
        return finished

    def _train(self, swarm: Swarm, work: _Work) -> None:
        """Run the loop until enough rounds are decided or the member is called back."""
        h_steps = swarm.manifest.policy.h_steps
        self._first_round = swarm.decided if self._first_round is None else self._first_round
        if self._is_over(swarm):
            return
        self._trains = True
        for batch in swarm.batches(work.task.dataset, batch_size=work.batch_size):
            if not self.presence.is_wanted:
                return
            with self._own_step():
                loss = work.task.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
                work.optimizer.step(swarm.round * h_steps + min(swarm.round_step, h_steps - 1))
            self._done["steps"] += 1
            report = swarm.step(loss, work.batch_size)
            if report is None:
                continue
            self._report(report, work)
            if self._is_over(swarm):
                return
            every = self.settings.held_out_rounds
            if every and swarm.decided % every == 0:
                with self._own_step():
                    held_out = work.task.held_out_loss()
                self.tell("held_out", {"round": report.round, "loss": held_out})

    @contextmanager
    def _own_step(self) -> Iterator[None]:
        """The loop is busy for itself: theta and e stand as the last round left them."""
        self._loops.release()
        try:
            yield
        finally:
            self._loops.acquire()

    def _rescue(self) -> None:
        """SIGTERM, and the loop is in a step that takes long: save for it what the last round left."""
        if self._loops.acquire(timeout=RESCUE_WAIT_S) and self._swarm is not None:
            self._swarm.save()

    def _set_aside(self, swarm: Swarm) -> None:
        """Keep what was trained of the unfinished round, to be sent later: it becomes this peer's next update."""
        if self.presence.signal != signal.SIGTERM:
            swarm.set_aside()

    def _is_over(self, swarm: Swarm) -> bool:
        """Tell whether all wanted rounds are decided; what the swarm decides, it decides in the final chain."""
        wanted, round_id = self.settings, swarm.decided
        has_all = 0 < wanted.until_round <= round_id and not swarm.branch
        return has_all or 0 < wanted.rounds <= round_id - (self._first_round or 0)

    def _check_disk(self, wanted: int, what: str) -> None:
        """Raise ConfigError when more is wanted than the operator allows."""
        allowed = self.settings.config.disk_bytes
        if allowed and wanted > allowed:
            raise ConfigError(
                f"disk: {what} {wanted / 1e9:.2f} GB in {self.settings.folder}, allowed are {allowed / 1e9:.2f} GB; "
                "allow more with --disk, and the same command goes on"
            )

    # Commands, each in a thread of its own --------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        opening = self._opening
        facts = opening.node.status() if opening is not None else self._left | {"phase": "paused"}
        own = {"swarm": self.settings.link.swarm.hex(), "uptime_s": round(time.monotonic() - self._started_s, 1)}
        return facts | own | self._done | self.presence.describe()

    def _pause(self) -> dict[str, Any]:
        self.presence.pause()
        return self._status()

    def _resume(self) -> dict[str, Any]:
        self.presence.resume()
        return self._status()

    def _leave(self) -> dict[str, Any]:
        facts = self._status()
        self.presence.leave()
        return facts

    # What is told ---------------------------------------------------------------------------------------------------

    def _report(self, report: Report, work: _Work) -> None:
        """Tell a round that was trained, with what the loop knows of it, after those before it."""
        self._behind = 0
        tokens = work.batch_size * work.task.settings.context * report.steps
        tokens_per_s = round(tokens / max(report.train_s + report.wait_s, 1e-9), 1)
        self._done |= {"tokens": self._done["tokens"] + tokens, "tokens_per_s": tokens_per_s}
        key = report.branch, report.round
        if key in self._rounds:  # not told before the loop began
            self._rounds[key] |= {
                "credited": report.credited,
                "steps": report.steps,
                "tokens": tokens,
                "tokens_per_s": tokens_per_s,
                "wait_s": report.wait_s,
            }
            self._tell_rounds(up_to=key)
        if self.settings.config.disk_bytes:
            self._check_disk(used_bytes(self.settings.folder), "the decided rounds have grown to")

    def _tell_rounds(self, up_to: tuple[str, int] | None = None) -> None:
        """Tell the rounds that wait to be told, in order, from whichever thread; those after `up_to` go on waiting."""
        with self._telling:
            while self._rounds:
                first = next(iter(self._rounds))
                self.tell("round", self._rounds.pop(first))
                if first == up_to:
                    return

    def _summary(self, swarm: Swarm, work: _Work) -> dict[str, Any]:
        status = swarm.status()
        same = (
            "peer", "rounds_sealed", "rounds_void", "rounds_credited", "lineage", "wire_bytes_up", "wire_bytes_down",
            "loss_first", "train_s", "exchange_s", "straggler_wait_s",
        )  # fmt: skip
        held_out = work.task.held_out_loss() if self.settings.held_out_rounds and not self.presence.is_over else None
        return {name: status[name] for name in same} | {
            "loss_last": status["loss"],
            "rounds": swarm.decided,
            "state_sha256": swarm.state_sha256(),
            "held_out_loss": held_out,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
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
                "credited": fields["mine"],
                "steps": 0,
                "tokens": 0,
                "tokens_per_s": 0.0,
                "wait_s": 0.0,
            }
            self._rounds[fields["branch"], fields["round"]] = fields
            if not self._trains:  # or the loop tells it, with what it knows
                self._tell_rounds()
            return
        self.tell(kind, fields)


def choose_device(wanted: str) -> Any:
    """Return the torch device for `auto`, `cpu` or `cuda`. Raises ConfigError when there is no such device here."""
    import torch

    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise ConfigError("device: found 'cuda', and torch sees no CUDA device here; allowed are 'cpu' and 'auto'")
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")
