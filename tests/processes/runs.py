"""Start real processes, wait for what they say, and see whether anything is left of them. Nothing here sleeps."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

COMMAND = (sys.executable, "-m", "p2pnet.cli")
PATIENCE_S = 150.0  # for what takes seconds; four processes that load torch on a core of a busy machine take 40
MARK = "P2PNET_TEST_PROCESS"

SMALL = """
[swarm]
name = "small"
[task]
kind = "bytes-lm"
layers = 2
width = 128
heads = 4
context = 32
batch_size = 4
[training]
h_steps = 2
[training.inner]
kind = "adamw"
warmup_steps = 4
[policy]
grace_s = 1.0
stall_s = 2.0
snapshot_rounds = 5
"""

Event = dict[str, Any]


class Run:
    """A process, those it starts, and the events it writes, one JSON object per line."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """log: gets its standard error.   Its standard input stays open until `end`."""
        self.mark = uuid.uuid4().hex
        self.log = log
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._over = False
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {MARK: self.mark, "PYTHONUNBUFFERED": "1"},
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return [json.loads(line) for line in list(self.lines)]

    def wait_line(self, matches: Callable[[str], bool], start: int = 0) -> str:
        """Return the first line from `start` on that matches; AssertionError when it does not come."""
        deadline_s, position = time.monotonic() + PATIENCE_S, start
        with self._news:
            while True:
                while position < len(self.lines):
                    if matches(self.lines[position]):
                        return self.lines[position]
                    position += 1
                left_s = deadline_s - time.monotonic()
                why = "it ended" if self._over else "it took too long" if left_s <= 0 else ""
                assert not why, f"{why}; it said {self.lines[-5:]} and {self.log.read_text()[-3000:]}"
                self._news.wait(left_s)

    def wait_for(self, matches: Callable[[Event], bool], start: int = 0) -> Event:
        """Return the first event from the `start`-th on that matches; AssertionError when it does not come."""
        event: Event = json.loads(self.wait_line(lambda line: matches(json.loads(line)), start))
        return event

    def wait_round(self, number: int) -> Event:
        """Return the event of this round of the final chain."""
        return self.wait_for(lambda event: is_final_round(event) and event["round"] == number)

    @property
    def last_round(self) -> int:
        """The last round of the final chain told, -1 when there was none."""
        return max((event["round"] for event in self.events if is_final_round(event)), default=-1)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit status."""
        status = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)  # everybody that holds its standard output has ended
        self.close()
        return status

    def close(self) -> None:
        """Close the lifeline, and whatever is left of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE_S)
        self.process.stdout.close()

    def left_after(self, timeout_s: float) -> list[str]:
        """Return the command lines of what still runs of this process and all it started, as `left_after` does."""
        return left_after(self.mark, timeout_s)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_final_round(event: Event) -> bool:
    """Tell whether an event is a decided round, not one of a branch."""
    return bool(event["event"] == "round" and not event["branch"])


def crowding() -> float:
    """Tell how much longer than its own work anything takes here now, since others want the cores: 1 when none do."""
    began_s, work_s = time.perf_counter(), time.thread_time()
    while time.thread_time() - work_s < 0.1:
        pass
    return max(1.0, (time.perf_counter() - began_s) / 0.1)


def marked(mark: str) -> dict[int, str]:
    """Return the running processes that inherited this mark, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended
    return found


def left_after(mark: str, timeout_s: float) -> list[str]:
    """Wait until all processes with this mark have ended, at most so long, on a quiet machine; returns who has not."""
    deadline_s = time.monotonic() + (timeout_s and timeout_s * crowding())
    for pid in marked(mark):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
        finally:
            os.close(descriptor)
    return list(marked(mark).values())
