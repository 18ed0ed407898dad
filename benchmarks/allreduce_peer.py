"""One peer of p2pnet's side of `allreduce.py`: the real node around matrices that noise moves instead of training.

Its one argument is JSON: seed, sides (of square matrices), link, folder. It takes a JSON command per line, answers each
with one, and notes when the round machine reached what.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import p2pnet
from p2pnet.config import NodeConfig
from p2pnet.core import events as ev
from p2pnet.core.rounds import Rounds
from p2pnet.identity import PeerId
from p2pnet.wire.round import Phase, Proposal, Quorum
from p2pnet.wire.signing import Signed

NOISE = 1e-3
SAMPLE_S = 0.002
JOIN_S = 240.0
MILESTONES = ("encoded", "roster", "reduced", "gathered", "proposed", "checked", "prepared", "decided")


class Matrices(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, sides: list[int]) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(nn.Parameter(torch.randn(side, side)) for side in sides)


class Trace:
    """When this peer's round machine reached each milestone of a round, on the machine-wide monotonic clock."""

    def __init__(self) -> None:
        self.reached: dict[str, float] = {}
        handle = Rounds.handle

        def traced(rounds: Rounds, event: ev.Event, now_s: float) -> list[ev.Effect]:
            effects = handle(rounds, event, now_s)
            self._note(event, effects)
            return effects

        Rounds.handle = traced  # type: ignore[method-assign, assignment]

    def _note(self, event: ev.Event, effects: list[ev.Effect]) -> None:
        now_s = time.monotonic()
        match event:
            case ev.Encoded():
                self.reached["encoded"] = now_s
            case ev.ReduceDone():
                self.reached["reduced"] = self.reached["gathered"] = now_s
            case ev.Gathered() if "decided" not in self.reached:
                self.reached["gathered"] = now_s
            case ev.Heard(message=Signed(message=Proposal())):
                self.reached.setdefault("proposed", now_s)
            case ev.Heard(message=Quorum(phase=phase)) if phase == Phase.PREPARE:
                self.reached.setdefault("prepared", now_s)
        for effect in effects:
            match effect:
                case ev.Exchange():
                    self.reached["roster"] = now_s
                case ev.Hold():
                    self.reached.setdefault("proposed", now_s)
                    self.reached.setdefault("checked", now_s)
                case ev.Decide():
                    self.reached.setdefault("prepared", now_s)
                    self.reached["decided"] = now_s


class Sampler:
    """Where this process spends CPU time: every 2 ms each thread's CPU clock is read, and charged to where it is."""

    def __init__(self) -> None:
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        before: dict[int, float] = {}
        while not self._over.wait(SAMPLE_S):
            for number, frame in sys._current_frames().items():
                if number == threading.get_ident():
                    continue
                try:
                    cpu_s = time.clock_gettime(time.pthread_getcpuclockid(number))
                except OSError:
                    continue  # it has just ended
                if (spent_s := cpu_s - before.get(number, cpu_s)) > 0:
                    self.spent_s[place(frame)] += spent_s
                before[number] = cpu_s


def place(frame: FrameType | None) -> str:
    """The innermost function of ours, and what it calls when that is not ours."""
    inner = "" if frame is None else f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "p2pnet" in path.parts[:-1]:
            own = f"{path.parent.name}/{path.stem}.{frame.f_code.co_name}"
            return own if own.endswith(inner) else f"{own} > {inner}"
        frame = frame.f_back
    return inner


def main() -> None:
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(1)  # all peers share a few cores
    torch.manual_seed(0)
    model = Matrices(spec["sides"])
    if "founders" in spec:
        create(spec, model)
        return
    torch.manual_seed(spec["seed"])
    trace = Trace()
    config = NodeConfig(listen=(spec["listen"],))
    with p2pnet.join(spec["link"], model, state_dir=spec["folder"], config=config, timeout_s=JOIN_S) as swarm:
        say({})
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "update":
                change(model)
                say({})
            elif command["do"] == "train":
                say(train(swarm, model, command["rounds"], command["seconds"]))
            elif command["do"] == "round":
                trace.reached.clear()
                say(take_round(swarm, trace, command["profile"]))
            elif command["do"] == "memory":
                say(memory(swarm))
            else:
                break


def take_round(swarm: Any, trace: Trace, profile: bool) -> dict[str, Any]:
    """One exchange, from the call of `step` to its return; with `profile` CPU seconds by function besides."""
    sampler = Sampler()
    if profile:
        with sampler:
            began_s, report, ended_s = timed_step(swarm)
    else:
        began_s, report, ended_s = timed_step(swarm)
    reached = {name: trace.reached.get(name) for name in MILESTONES}
    fine = report is not None and report.credited and not report.void
    state = report.lineage if report is not None else ""
    return {
        "began_s": began_s,
        "ended_s": ended_s,
        "fine": fine,
        "state": state,
        "reached": reached,
        "cpu": dict(sampler.spent_s),
    }


def change(model: Matrices) -> None:
    """What stands for training."""
    with torch.no_grad():
        for matrix in model.matrices:
            matrix.add_(torch.randn_like(matrix), alpha=NOISE)


def train(swarm: Any, model: Matrices, rounds: int, seconds: float) -> dict[str, Any]:
    """Train rounds of so many seconds, on what leaves the CPU free; says how long the loop stood still after each."""
    still_s, credited = [], 0
    for _ in range(rounds):
        ends_s = time.monotonic() + seconds
        change(model)
        time.sleep(max(0.0, ends_s - time.monotonic()))
        began_s, report, ended_s = timed_step(swarm)
        still_s.append(ended_s - began_s)
        credited += report is not None and report.credited
    return {"still_s": still_s, "credited": credited}


def timed_step(swarm: Any) -> tuple[float, Any, float]:
    began_s = time.monotonic()
    report = swarm.step(0.0, samples=1)
    return began_s, report, time.monotonic()


def memory(swarm: Any) -> dict[str, Any]:
    """What training state this peer keeps outside the inner optimizer, and the peak of one more encode and void.

    In MB of 10^6 bytes. state_mb: theta, e and the local model.   grown_mb: how far the process grew at its highest.
    """
    learner = swarm.learner
    params_mb = 4e-6 * learner.params
    state_mb = sum(4e-6 * kept.numel() for kept in (learner._theta, learner._e)) + params_mb
    before_mb = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    learner.encode(1, 1)
    learner.void()
    grown_mb = resident_mb("VmHWM") - before_mb
    return {"params_mb": params_mb, "state_mb": state_mb, "resident_mb": before_mb, "grown_mb": grown_mb}


def resident_mb(field: str) -> float:
    """Resident memory of this process, as the kernel counts it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith(field))


def create(spec: dict[str, Any], model: nn.Module) -> None:
    """Make the swarm that all peers found; says its link."""
    from p2pnet.config import Codec, CustomTask, Policy, Swarm, SwarmConfig, Training

    config = SwarmConfig(
        Swarm("allreduce", founders=tuple(PeerId(bytes.fromhex(peer)) for peer in spec["founders"])),
        CustomTask("custom"),
        Training(h_steps=1, overlap=spec.get("overlap", False)),
        Codec(k=spec["k"]),
        policy=Policy(service_rounds=1),
    )
    link = p2pnet.create(config, model, state_dir=spec["folder"], bootstrap=spec["bootstrap"])
    say({"link": str(link)})


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
