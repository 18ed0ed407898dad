"""The three tutorials in docs/, run as they stand: every command of them, in order, and what they say that it prints.

A block `console` is run to its end; `console background` goes on until the tutorials end, as in another terminal.
`toml` and `python` blocks with `file=` are written. What a reader copies from an earlier output (a link, an address) is
copied here too, and addresses are this machine's.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.processes.runs import PATIENCE_S, Run
from tests.processes.test_join import free_port

BLOCK = re.compile(r"^```(?P<kind>\w+)(?: (?P<about>[^\n]+))?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
COPIED = {  # what a reader copies: as the page writes it, as the output does
    "p2pnet://...": re.compile(r"p2pnet://[^\s']+"),
    "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW...": re.compile(r"/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+"),
}


@dataclass
class Terminal:
    """A reader's machine: a home of its own, and what was printed so far, by whomever."""

    home: Path
    printed: list[str]
    stack: ExitStack
    ports: dict[str, str] = field(default_factory=dict)

    def follow(self, page: Path) -> int:
        """Do what a page says; returns how many commands it had."""
        count = 0
        for block in BLOCK.finditer(page.read_text()):
            kind, about, text = block["kind"], block["about"] or "", block["text"]
            if about.startswith("file="):
                (self.home / about.removeprefix("file=")).write_text(self.here(text))
            elif kind == "console":
                for command, expected in dialogue(text):
                    self.run(command, expected, background=about == "background")
                    count += 1
        return count

    def run(self, command: str, expected: list[str], *, background: bool) -> None:
        """Run a command, and see that it prints what the page shows."""
        # What goes on in the background trains as fast as it can: it gives way to the command that is waited for.
        prefix = "exec nice " if background else ""
        shell = ["bash", "-c", f"exec 2>&1; cd {self.home}; {prefix}{self.here(command)}"]
        # One thread each: several processes whose torch takes all cores keep each other waiting.
        environment = (
            f"HOME={self.home}",
            f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS=1",
        )
        if background:
            run = self.stack.enter_context(Run(["env", *environment, *shell], self.home / "log"))
            self.stack.callback(run.kill, signal.SIGTERM)
            for line in expected:
                run.wait_line(pattern(line).search)
            self.printed += run.lines
            return
        command_line = ["env", *environment, *shell]
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, f"{command}: {done.stdout}"
        for line in expected:
            assert pattern(line).search(done.stdout), f"{command}: {line!r} is not in\n{done.stdout}"
        self.printed.append(done.stdout)

    def here(self, text: str) -> str:
        """Put in what the reader would: copied things, and addresses of this machine."""
        for written, found in COPIED.items():
            if written in text:
                copied = found.findall("\n".join(self.printed))
                assert copied, f"nothing printed so far looks like {written}"
                text = text.replace(written, copied[-1])
        for port in ("4001", "9100"):
            text = re.sub(
                rf"(?<=[/:\s]){port}\b", lambda found: self.ports.setdefault(found[0], str(free_port())), text
            )
        text = text.replace("p2pnet join ", "p2pnet join --listen /ip4/127.0.0.1/tcp/0 ")
        return text.replace("0.0.0.0", "127.0.0.1").replace("203.0.113.7", "127.0.0.1")


def dialogue(text: str) -> list[tuple[str, list[str]]]:
    """Return each command with the lines that are shown after it."""
    spoken: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            spoken.append((line[2:], []))
        elif line:
            spoken[-1][1].append(line)
    return spoken


def pattern(line: str) -> re.Pattern[str]:
    """Return what matches a shown line: `...` is anything, spaces are any spaces."""
    parts = [r"\s+".join(re.escape(word) for word in part.split(" ")) for part in line.split("...")]
    return re.compile(".*".join(parts))


@pytest.mark.slow
def test_every_command_of_the_three_tutorials_does_what_they_say(repository: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the operator's tutorial uses curl, which is not installed")
    printed: list[str] = []
    with ExitStack() as stack:
        for who in ("operator", "researcher", "volunteer"):
            home = tmp_path / who
            home.mkdir()
            if who == "volunteer":  # has the link of the swarm that still runs, the researcher's first
                printed[:] = COPIED["p2pnet://..."].findall("\n".join(printed))[:1]
            assert Terminal(home, printed, stack).follow(repository / "docs" / f"{who}.md") >= 2
