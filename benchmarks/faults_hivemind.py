"""What hivemind does under the faults of `faults.py`: what it reports, how long it takes, if replicas are equal."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.allreduce import Process, sides_of

HERE = Path(__file__).resolve().parent
HANG_S = 60.0  # it is waited for so long
ROWS = ("killed in mid all-reduce", "frozen in mid all-reduce", "one NaN among its values")


def measure_rival(python: Path, name: str, runs: int, megabytes: float, peers: int, victim: int) -> dict[str, Any]:
    """Run hivemind's averager under the same fault; each run has peers of its own."""
    return {
        "row": f"hivemind: {name}",
        "runs": [run_rival(python, name, megabytes, peers, victim) for _ in range(runs)],
    }


def run_rival(python: Path, name: str, megabytes: float, peers: int, victim: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        group: list[Process] = []
        for number in range(peers):
            initial = group[0].greeting["addrs"] if group else []
            spec = {"seed": number + 1, "peers": peers, "sides": sides_of(megabytes), "initial": initial}
            group.append(
                Process([str(python), str(HERE / "faults_rival.py"), json.dumps(spec)], folder / f"{number}.log")
            )
            stack.callback(end_group, group[-1])
            if number == 0:
                group[0].greeting = group[0].hear()
        for peer in group[1:]:
            peer.greeting = peer.hear()
        normal = all_step(group, HANG_S)
        if "NaN" in name:
            group[victim].ask({"do": "nan"})
            others, hurt = group, all_step(group, HANG_S)
        else:
            group[victim].ask({"do": "arm", "fault": "kill" if "killed" in name else "freeze"})
            group[victim].tell({"do": "step"})
            others = [peer for peer in group if peer is not group[victim]]
            hurt = all_step(others, HANG_S)
        said = sum(bool(answer and answer["success"]) for answer in hurt)
        states = {answer["state"] for answer in hurt if answer}
        hung = sum(answer is None for answer in hurt)
        return {
            "outcome": f"{said} of {len(hurt)} report success"
            + (f", {hung} still wait after {HANG_S:.0f} s" if hung else ""),
            "normal_s": max(answer["took_s"] for answer in normal if answer),
            "took_s": None if hung else max(answer["took_s"] for answer in hurt if answer),
            "equal": len(states) == 1 and not hung,
            "finite": all(answer["finite"] for answer in hurt if answer),
        }


def all_step(group: list[Process], timeout_s: float) -> list[Any]:
    """Let all average at once; None for those that do not answer in time."""
    answers: list[Any] = [None] * len(group)

    def one(place: int) -> None:
        with suppress(SystemExit, OSError):  # it has ended, or was ended and its log with it
            answers[place] = group[place].ask({"do": "step"})

    threads = [threading.Thread(target=one, args=(place,), daemon=True) for place in range(len(group))]
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return answers


def end_group(peer: Process) -> None:
    """End a rival and its children, also frozen ones."""
    with suppress(ProcessLookupError):
        os.killpg(peer.process.pid, signal.SIGKILL)
    peer.process.wait()
    for pipe in (peer.process.stdin, peer.process.stdout):
        with suppress(BrokenPipeError, ValueError):
            assert pipe is not None
            pipe.close()
