"""Peers as processes of a benchmark's own script, which say what happens as JSON, a line each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from p2pnet.wire.manifest import Link


def say(kind: str, fields: dict[str, Any]) -> None:
    """One event of a peer's process, on standard output."""
    times = {"unix_s": time.time(), "monotonic_s": time.monotonic()}
    print(json.dumps({"event": kind, **times, **fields}), flush=True)


class Child:
    """A peer's process, from one start to its end."""

    def __init__(self, script: str, link: Link, folder: Path, patience_s: float, *options: str) -> None:
        """script: started with `--peer LINK --folder FOLDER` and the options.   patience_s: of `wait_for`."""
        self._patience_s = patience_s
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        folder.mkdir(exist_ok=True)
        self.started_s = time.time()
        with open(folder / "log", "ab") as log:
            command = [sys.executable, script, "--peer", str(link), "--folder", str(folder), *options]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                if line.startswith("{") and line.endswith("}\n"):  # the last one may be cut
                    self.events.append(json.loads(line))
                self._news.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What it has said of a kind."""
        return [event for event in self.events if event["event"] == kind]

    def wait_for(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """Return the first event of a kind, with these fields. Raises SystemExit when none comes."""

        def found() -> dict[str, Any] | None:
            return next((each for each in self.of(kind) if wanted.items() <= each.items()), None)

        with self._news:
            self._news.wait_for(lambda: found() or self.process.poll() is not None, self._patience_s)
            if (event := found()) is None:
                raise SystemExit(f"no {kind} of a peer; it said {self.events[-3:]}")
        return event

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
