"""Go from round to round in the user's thread: count steps, encode, wait for the decision, apply it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from p2pnet.errors import ConfigError, NotFiniteError, P2pnetError
from p2pnet.node import bridge as br
from p2pnet.node.bulk import payload_tree
from p2pnet.node.snapshots import state_path
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.relay import Relay
from p2pnet.train.assignment import Assignment
from p2pnet.train.learner import Learner
from p2pnet.train.moments import Moments
from p2pnet.train.pace import Pace
from p2pnet.train.ranks import Ranks
from p2pnet.train.savefile import SaveFile
from p2pnet.wire.manifest import Manifest

REPORTS_MAX = 1000
OVERLAP_TAG = b"p2pnet/overlap/1\n"


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
    branch: str = ""  # decided in this degraded branch, by its id in hexadecimal digits; empty: in the final chain


@dataclass(frozen=True, slots=True)
class Trained:
    """The training of one round, of all ranks."""

    loss: float  # mean over the steps, nan when it is not known
    samples: int
    steps: int
    train_s: float
    assigned: bool  # the beacon chose the samples


class Training:
    """One member's rounds. All of it is collective where the member is a job of several processes."""

    def __init__(
        self,
        relay: Relay,
        manifest: Manifest,
        learner: Learner,
        moments: Moments,
        file: SaveFile,
        folder: Path | None,
        ranks: Ranks,
        initial: Path,
        is_assigned: Callable[[int], bool],
    ) -> None:
        """folder: of this swarm on this machine; None: on a rank that follows rank 0.

        initial: the parameters to start from when nothing was saved.
        is_assigned: whether batches that the beacon chose were given out for a round.
        """
        self.reports: deque[Report] = deque(maxlen=REPORTS_MAX)  # the latest
        self.torn = False  # theta, e and the round are being changed, and do not fit each other
        self._relay, self._manifest, self._learner, self._moments = relay, manifest, learner, moments
        self._file, self._folder, self._ranks, self._is_assigned = file, folder, ranks, is_assigned
        self._format = ChunkFormat(manifest.codec.k, manifest.codec.value_bits)
        self._flying: Trained | None = None  # with overlap: the round that is exchanged while the next one is trained
        self._landed: br.Outcome | None = None  # and what was decided about it
        self._pace, self._missed = Pace(), 0  # samples of rounds that went on without them: they wait in e
        self.decided, samples, self._line = file.load(initial)  # samples: of an update that is pending
        self._pending = Trained(math.nan, samples, 0, 0.0, assigned=False)
        relay.tell(br.Attached(learner.chunks, self.decided, line=self._line))
        self._clear()
        self._begin_next()

    @property
    def round(self) -> int:
        """The round that is being trained."""
        return self.decided + (self._flying is not None)

    @property
    def branch(self) -> str:
        """The branch that is trained in, by its id in hexadecimal digits; empty: the final chain."""
        return self._line

    @property
    def steps(self) -> int:
        """Inner steps taken in it."""
        return self._steps

    def assignment(self) -> Assignment:
        """What is drawn in the round that is being trained."""
        return Assignment(self.round, self._beacon, self._relay.peer, self._manifest.policy.h_steps)

    def step(self, loss: Tensor | float, samples: int) -> Report | None:
        """See `Swarm.step`."""
        self._steps += 1
        self._samples += samples
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        now_s, policy = time.monotonic(), self._manifest.policy
        self._pace.step(now_s)
        has_all = self._steps >= policy.h_steps and not policy.by_window
        early, over = self._relay.poll(has_all or not self._pace.fits(now_s))
        if isinstance(early, br.Fork):
            self._keep_fork(early)
        if isinstance(early, br.Return) and self._go_back(early):
            self._begin_next()
            return None
        if isinstance(early, br.Outcome):
            if self._flying is None:
                return self._exchange(early)
            self._landed = early
        return self._exchange() if over else None

    def save(self, alone: bool = False) -> None:
        """Save what a stopped process goes on from.   alone: see `SaveFile.save`."""
        pending = self._flying.samples if self._flying is not None else self._samples
        self._file.save(self.decided, pending, self._line, alone)

    def set_aside(self) -> None:
        """See `Swarm.set_aside`."""
        if self._steps == 0 or self.torn:
            return
        with contextlib.suppress(NotFiniteError), self._changing():
            if self._flying is not None:
                self._learner.keep(self._steps, self._manifest.policy.h_steps)
            elif not self._learner.pending:
                self._learner.encode(self._steps, self._manifest.policy.h_steps)
        self.torn = False

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """What is interrupted in here (Ctrl-C, no memory) is not saved."""
        self.torn = True
        yield
        self.torn = False

    def _exchange(self, decided: br.Outcome | None = None) -> Report | None:
        """Commit to what was trained, wait for the decision, apply it.

        decided: the others went on without me; what I trained stays in the error feedback.
        """
        assert self._task is not None
        ended_s, trained = time.monotonic(), self._sum_up()
        if self._flying is not None:
            return self._land(self._flying, trained, ended_s)
        try:
            with self._changing():
                self._learner.encode(self._steps, self._manifest.policy.h_steps)
        except NotFiniteError as error:  # the learner is as it was
            self.torn = False
            self._skip(self._task.round_id, error)
        else:
            self._missed = trained.samples if decided else 0
            if decided is None:
                self._submit(trained)
                self._pace.encoded(time.monotonic() - ended_s)
                if self._manifest.policy.overlap:
                    self._fly(trained)
                    return None
                if self._file.is_due(self.decided):
                    self._file.save(self.decided, trained.samples, self._line)  # while the others are waited for
        item, line = decided or self._wait_for_outcome(), self._line
        if item is not None:
            self._apply(item, trained.loss)
        self._begin_next()
        return self._report(item, trained, ended_s, line) if item is not None else None

    def _fly(self, trained: Trained) -> None:
        """Go on with the next round from the same theta, while what was trained is exchanged."""
        assert self._task is not None
        self._flying = trained
        self._learner.rewind()
        # The round's own beacon is not known yet; the one before it is, and has drawn the samples of one round already.
        self._beacon, self._assigned = hashlib.sha256(OVERLAP_TAG + self._task.beacon).digest(), True
        self._clear()
        self._pace.begin(self._began_s, self._began_s + self._manifest.policy.window_ms / 1000)
        if self._file.is_due(self.decided):
            self._file.save(self.decided, trained.samples, self._line)

    def _land(self, flown: Trained, trained: Trained, ended_s: float) -> Report | None:
        """Take over the round that was exchanged, commit to the one that was trained meanwhile.

        flown, trained: the two of them.
        """
        outcome, line = self._landed or self._wait_for_outcome(), self._line
        if outcome is None:
            self._begin_next()
            return None
        self._flying = self._landed = None
        self._check_next(outcome)
        result, h_steps = None if outcome.void else outcome.result, self._manifest.policy.h_steps
        try:
            with self._changing():
                self._learner.encode_next(result, outcome.named, self._steps, h_steps)
                self.decided += 1
        except NotFiniteError as error:  # the learner is as it was
            self.torn = False
            self._apply(outcome, flown.loss)
            self._begin_next()
            if self.round == outcome.round_id + 1:  # the others may wait for what was trained
                self._skip(self.round, error)
        else:
            self._pending = trained
            self._relay.tell(br.Applied(outcome.round_id, flown.loss))
            self._begin_next()
        return self._report(outcome, flown, ended_s, line)

    def _wait_for_outcome(self) -> br.Outcome | None:
        """What was decided about the round in exchange; None when the branch that it was part of is left."""
        while True:
            item = self._relay.wait()
            if isinstance(item, br.Fork):
                self._keep_fork(item)
            elif isinstance(item, br.Return):
                if self._go_back(item):
                    return None
            elif isinstance(item, br.Outcome):
                return item
            else:
                raise P2pnetError(f"the node said {type(item).__name__} where a round's outcome was due")

    def _keep_fork(self, item: br.Fork) -> None:
        """Write theta down, from which a branch goes on."""
        if item.round_id != self.decided:
            raise P2pnetError(f"a branch goes on from round {item.round_id}, the learner is in round {self.decided}")
        if self._ranks.first:
            self._learner.write_state(item.path)
        self._line = item.line

    def _go_back(self, item: br.Return) -> bool:
        """Take theta back to where a branch went on from, with the work since; tells whether it was elsewhere."""
        if item.round_id == self.decided:
            self._line = item.line
            return False  # nothing was decided meanwhile: theta, e and what is pending are right
        with self._changing():
            if self._steps and self._landed is None:
                with contextlib.suppress(NotFiniteError):  # what was trained is lost with it, as in any round
                    if self._flying is not None:
                        self._learner.keep(self._steps, self._manifest.policy.h_steps)
                    elif not self._ranks.agree(int(self._learner.pending)):
                        self._learner.encode(self._steps, self._manifest.policy.h_steps)
            self._learner.go_back(item.path, item.checksum, item.payload)
            self.decided, self._line = item.round_id, item.line
        if self._landed is not None:  # of the branch: each outcome is answered
            self._relay.tell(br.Applied(self._landed.round_id, math.nan))
        self._flying = self._landed = None
        self._pending = Trained(math.nan, item.samples, 0, 0.0, assigned=False)
        self._missed = 0
        self._clear()
        self._file.save(self.decided, item.samples, self._line)
        return True

    def _submit(self, trained: Trained) -> None:
        """Hand the pending update to the node."""
        assert self._task is not None
        if self._ranks.first:
            payload = self._learner.pending_update()
            tree, number = payload_tree(payload, self._format), self._task.round_id
            self._relay.tell(br.Submitted(number, payload, tree, trained.samples, trained.assigned, trained.loss))

    def _skip(self, round_id: int, error: NotFiniteError) -> None:
        """Send nothing this round, and let the next one begin well: one NaN in a moment would spoil every step."""
        healed = self._moments.forget_not_finite()
        detail = f"{error}; the optimizer's state of {healed} parameters is forgotten" if healed else str(error)
        self._relay.tell(br.Skipped(round_id, detail))

    def _report(self, outcome: br.Outcome, trained: Trained, ended_s: float, line: str) -> Report:
        report = Report(
            outcome.round_id, outcome.void, outcome.named is not None, trained.loss, trained.steps, trained.train_s,
            time.monotonic() - ended_s, outcome.lineage.hex(), line,
        )  # fmt: skip
        self.reports.append(report)
        return report

    def _check_next(self, outcome: br.Outcome) -> None:
        if outcome.round_id != self.decided:
            raise P2pnetError(f"round {outcome.round_id} was decided where round {self.decided} is next")

    def _apply(self, outcome: br.Outcome, loss: float) -> None:
        self._check_next(outcome)
        with self._changing():
            if outcome.void:
                self._learner.void()
            else:
                self._learner.apply(outcome.result, outcome.named)
            self.decided += 1
        self._relay.tell(br.Applied(outcome.round_id, loss))
        if self._file.is_overdue(self.decided):
            self._file.save(self.decided, 0, self._line)

    def _begin_next(self) -> None:
        """Apply what is decided already, until there is a round to train."""
        while True:
            item = self._relay.wait()
            if isinstance(item, br.Outcome):
                if self._ranks.agree(int(self._learner.pending)) and self._pending.steps and item.named is None:
                    self._missed = self._pending.samples  # it was trained beside an exchange, and came too late
                self._apply(item, math.nan)
                continue
            if isinstance(item, br.Snapshot):
                self._take_snapshot(item)
                continue
            if isinstance(item, br.Fork):
                self._keep_fork(item)
                continue
            if isinstance(item, br.Return):
                self._go_back(item)
                continue
            if not isinstance(item, br.RoundTask):
                raise P2pnetError(f"the node said {type(item).__name__} where a round was due")
            self._clear()
            self._task, self._beacon = item, item.beacon
            # With overlap only the first round is trained from where all others stand, too, without one in exchange.
            self._assigned = not self._manifest.policy.overlap or item.round_id == 0
            self._pace.begin(self._began_s, item.end_s)
            state = self._keep_state() if item.state_wanted else b""
            self._relay.tell(br.Began(item.round_id, self._learner.checksum(), state))
            if not self._has_update():
                return
            self._submit(self._pending)
            if self._manifest.policy.overlap:
                self._fly(self._pending)
                return
            self._samples = self._pending.samples

    def _has_update(self) -> bool:
        """Tell whether this round has its update before it is trained.

        It was trained beside the last exchange; or this process was stopped in mid-exchange and is committed to what it
        had. Or it was training when a round went on, and would be late again and never be heard: only with room for a
        step in the window what it owes goes with what it trains now.
        """
        has_time = self._manifest.policy.by_window and self._pace.fits(time.monotonic())
        if self._ranks.agree(int(self._learner.pending)):
            return True
        if not self._missed or not self._ranks.agree(int(self._ranks.first and not has_time)):
            return False
        with self._changing():
            self._learner.encode(1, 1)  # nothing is new: a = beta * e
        self._pending, self._missed = Trained(math.nan, self._missed, 0, 0.0, assigned=False), 0
        return True

    def _take_snapshot(self, item: br.Snapshot) -> None:
        """Go on from a state of the swarm that a member gave, or say why not."""
        refused = ""
        try:
            with self._changing():
                self._learner.load_state(item.path, item.sha256)
                self.decided = item.round_id
        except ConfigError as error:  # the learner is as it was
            refused, self.torn = str(error), False
        else:
            self._file.save(self.decided, 0, self._line)
        self._relay.tell(br.Attached(self._learner.chunks, self.decided, refused))

    def _clear(self) -> None:
        self._steps = self._samples = 0
        self._losses: list[Tensor | float] = []
        self._began_s: float = time.monotonic()

    def _sum_up(self) -> Trained:
        """What was trained since the round began, of all ranks: the mean loss, nan when there was no step."""
        total = sum(float(loss) for loss in self._losses)
        total, steps, samples = self._ranks.total(total, len(self._losses), self._samples)
        assigned = self._assigned and self._is_assigned(self.round)
        train_s = time.monotonic() - self._began_s
        return Trained(total / steps if steps else math.nan, int(samples), self._steps, train_s, assigned)

    def _keep_state(self) -> bytes:
        """Write the parameters for who joins late, return their hash; the node drops those that nobody needs."""
        state = self._learner.state_sha256()
        if self._folder is not None and self.decided:  # before round 0 they are the initial ones, a file already
            path = state_path(self._folder, state)
            path.parent.mkdir(exist_ok=True)
            self._learner.write_state(path)
        return state
