"""One peer of p2pnet's side of `faults.py`: the real node around matrices, on which a fault falls at a chosen moment.

Its one argument is JSON: sides (of square matrices), seed, link, folder, listen, clock_s. It trains for ever and tells,
a JSON line each, what the node says and every round it ends. A line on its standard input arms it: in that round, if
the role is its own, at that phase, it strikes itself. The signal is the kernel's own; nothing in the node knows of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

SPEC: dict[str, Any] = json.loads(sys.argv[1])
if SPEC.get("clock_s"):  # a wrong clock on the wall, for all that is imported from here on
    _true = time.time
    time.time = lambda: _true() + SPEC["clock_s"]

import torch  # noqa: E402
from allreduce_peer import Matrices, create  # noqa: E402

import p2pnet  # noqa: E402
from p2pnet.config import NodeConfig  # noqa: E402
from p2pnet.core import events as ev  # noqa: E402
from p2pnet.core.rounds import Rounds  # noqa: E402
from p2pnet.errors import P2pnetError  # noqa: E402
from p2pnet.wire.branch import open_spoken  # noqa: E402
from p2pnet.wire.round import Phase, Proposal, Roster, Vote  # noqa: E402

TRAIN_S = 0.3  # a round's training
COMMITTED_S = 0.02  # a commit has left by then
GO_S = 10.0
KEEP_RESULTS = 256  # rounds of 0.4 s go on while one side of a cut finds out, half a minute later, that it is one
JOIN_S = 120.0


class Trap:
    """Strikes this process when its round machine reaches the phase that it was armed for."""

    def __init__(self) -> None:
        self.armed: dict[str, Any] | None = None
        self.go = threading.Event()
        self.spoil = threading.Event()
        self.free = threading.Event()  # not held: it may train
        self.free.set()
        self.daemon_pid: int | None = None
        self._encoded_s: float | None = None
        self._scattered = False
        self._final = b""  # the id of the final chain: nobody is struck in a branch
        handle = Rounds.handle

        def watched(rounds: Rounds, event: ev.Event, now_s: float) -> list[ev.Effect]:
            scattered = self._scattered
            effects = handle(rounds, event, now_s)
            armed, self._final = self.armed, self._final or rounds.state.swarm
            if armed and rounds.state.round == armed["round"] and rounds.state.swarm == self._final:
                self._note(event, effects, now_s)
                if is_me(rounds, armed["role"]) and self._is_at(armed["phase"], event, effects, now_s, scattered):
                    self.armed = None
                    self._strike(armed, rounds)
            return effects

        Rounds.handle = watched  # type: ignore[method-assign, assignment]

    def arm(self, command: dict[str, Any]) -> None:
        """From now on."""
        self._encoded_s, self._scattered = None, False
        self.go.clear()
        self.armed = command

    def _note(self, event: ev.Event, effects: list[ev.Effect], now_s: float) -> None:
        if isinstance(event, ev.Encoded):
            self._encoded_s = now_s
        self._scattered |= any(isinstance(effect, ev.Scatter) for effect in effects)

    def _is_at(self, phase: str, event: ev.Event, effects: list[ev.Effect], now_s: float, scattered: bool) -> bool:
        signed = [open_spoken(effect.raw, lambda *_: True) for effect in effects if isinstance(effect, ev.Persist)]
        messages = [each.message for each in signed]  # type: ignore[union-attr]
        match phase:
            case "commit":  # it has gone out
                began = any(isinstance(effect, ev.Exchange) for effect in effects)
                return self._encoded_s is not None and (began or now_s - self._encoded_s > COMMITTED_S)
            case "roster":
                return any(isinstance(message, Roster) for message in messages)
            case "scatter":  # the first slices are on their way
                return scattered
            case "reduce":
                return any(isinstance(effect, ev.Reduce) for effect in effects)
            case "gather":  # the first part is here
                return isinstance(event, ev.Gathered)
            case "answer":  # reduced and signed, and given to nobody
                return any(isinstance(effect, ev.Answer) for effect in effects)
            case "proposal":
                return any(isinstance(message, Proposal) for message in messages)
            case "seal":
                return any(isinstance(message, Vote) and message.phase == Phase.SEAL for message in messages)
            case "apply":
                return any(isinstance(effect, ev.Decide) for effect in effects)
        raise ValueError(f"no phase {phase}")

    def _strike(self, armed: dict[str, Any], rounds: Rounds) -> None:
        assert self.daemon_pid is not None
        say("struck", {"round": rounds.state.round, "daemon": self.daemon_pid})
        match armed["fault"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":  # the machine stops: the daemon too
                os.kill(self.daemon_pid, signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
            case "daemon":
                os.kill(self.daemon_pid, signal.SIGKILL)
            case "wait":  # whoever started us does something to the network or the disk
                self.go.wait(GO_S)


def is_me(rounds: Rounds, role: str) -> bool:
    """Tell whether this peer has a role in the round that all know.

    The proposer, the first of the others, or the first of them that has a part to reduce: who was killed in mid-part
    often enough has none any more.
    """
    proposer = rounds.state.proposer(0)
    if role == "reducer":
        exchange = rounds.round.exchanges.get(rounds.round.deciding.view)
        reducers = {part.reducer for part in exchange.parts} - {proposer} if exchange is not None else set()
        return rounds.context.me == min(reducers, default=None)
    others = [peer for peer in rounds.state.electorate if peer != proposer]
    wanted = {"proposer": [proposer], "other": others[:1], "two others": others[:2], "anybody": [rounds.context.me]}
    return rounds.context.me in wanted[role]


def main() -> None:
    torch.set_num_threads(1)  # all peers share a few cores
    torch.manual_seed(0)
    model = Matrices(SPEC["sides"])
    if "founders" in SPEC:
        create(SPEC, model)
        return
    torch.manual_seed(SPEC["seed"])
    updates = [torch.randn_like(matrix) for matrix in model.matrices]
    trap = Trap()
    config = NodeConfig(listen=(SPEC["listen"],), keep_results=KEEP_RESULTS)
    try:
        with p2pnet.join(
            SPEC["link"], model, state_dir=SPEC["folder"], config=config, on_event=say, timeout_s=JOIN_S
        ) as swarm:
            threading.Thread(target=listen, args=(trap,), daemon=True).start()
            for number in range(1_000_000):
                trap.daemon_pid = swarm._node.daemon_pid  # type: ignore[attr-defined]
                trap.free.wait()
                time.sleep(TRAIN_S)
                with torch.no_grad():
                    for place, matrix in enumerate(model.matrices):
                        matrix.add_(updates[(place + number) % len(updates)], alpha=1e-3)
                    if trap.spoil.is_set():
                        model.matrices[0][0, 0] = float("nan")
                        trap.spoil.clear()
                report = swarm.step(0.0, samples=1)
                if report is not None:
                    ended_s = time.monotonic()
                    fine = all(bool(matrix.isfinite().all()) for matrix in model.matrices)
                    facts = {"round": report.round, "void": report.void, "credited": report.credited, "finite": fine}
                    after = swarm.round - 1  # what was decided meanwhile is applied already
                    facts["branch"] = report.branch or swarm.branch
                    say("report", facts | {"at_s": ended_s, "after": after, "state": swarm.state_sha256()})
    except P2pnetError as error:
        say("ended", {"error": str(error)})
        os._exit(1)  # without a save: its disk may be full


def listen(trap: Trap) -> None:
    """Take commands; the end of them is the end of this peer."""
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "arm":
                trap.arm(command)
            case "go":
                trap.go.set()
            case "nan":
                trap.spoil.set()
            case "hold":
                trap.free.clear()
            case "free":
                trap.free.set()
    os._exit(0)


def say(kind: str, fields: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"event": kind, **fields}, default=str) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
