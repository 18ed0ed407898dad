"""Kill one peer of four with kill -9 at random moments and start it again, fifty times; then let a newcomer join.

python benchmarks/resume.py [--kills 50] [--seed 1]

Each peer is a process of its own with its own libp2p daemon, all on loopback. One more member lives in this process: it
sees what the killed peer signs, in its messages, in the bundles of others and in the decided rounds, and looks for two
different things in one slot. A round trains for 0.4 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.children import Child, say
from p2pnet.config import Codec, CustomTask, NodeConfig, Policy, Swarm, SwarmConfig, Training
from p2pnet.errors import P2pnetError
from p2pnet.identity import Identity, PeerId
from p2pnet.ledger.reader import LedgerReader
from p2pnet.node import links
from p2pnet.node.runner import KEY_NAME, LEDGER_NAME
from p2pnet.opening import Opening
from p2pnet.wire.branch import Branch, open_spoken
from p2pnet.wire.codec import encode
from p2pnet.wire.manifest import Link
from p2pnet.wire.round import SIGNED, Decision, Quorum, Vote, slot_of
from p2pnet.wire.signing import Signed, Verify, open_signed

RESULTS = Path(__file__).resolve().parent / "results"
LISTEN = "/ip4/127.0.0.1/tcp/0"
PEERS, WIDTH, STEPS, STEP_S = 4, 512, 2, 0.2
EARLY_SHARE = 0.2  # of the kills that hit while it starts
PATIENCE_S = 120.0
LIMIT_S = 10.0
FIGURES = {
    "import_s": "import of torch and its first step, beside the start of the node, s",
    "ready_s": "from the start of the process to ready, s",
    "beyond_s": "the same beyond the import of torch, s",
    "credited_s": "from the start of the process to the first credited round, s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        train(options.peer, options.folder, say)
        return
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options.kills, options.seed)
    for row in found["table"]:
        print(f"{row['what']:64} median {row['median']:7.2f}   max {row['max']:7.2f}")
    print(
        f"{found['kills']} kills, {found['kills_early']} of them while it started; "
        f"{found['messages']} signed messages seen in {found['slots']} slots, {found['conflicts']} conflicts; "
        f"parameters {'the same everywhere' if found['is_identical'] else 'DIFFER'}"
    )
    join = found["join"]
    print(f"a newcomer was ready in round {join['ready_round']} and first credited in round {join['credited_round']}")
    record = {
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": options.seed,
        "limit_s": LIMIT_S,
        **found,
    }
    (RESULTS / "resume.json").write_text(json.dumps(record, indent=1) + "\n")
    if found["conflicts"] or not found["is_identical"]:
        raise SystemExit("a conflict")


def make_model() -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, WIDTH)


class Stop:
    """Ends the member in this process, also one that waits for others who have gone."""

    def __init__(self) -> None:
        self.is_set = False
        self.opening: Opening | None = None

    def set(self) -> None:
        """From now on."""
        self.is_set = True
        if self.opening is not None:
            self.opening.leave()


def train(link: str, folder: Path, tell: Callable[[str, dict[str, Any]], None], stop: Stop | None = None) -> None:
    """Take part until told to stop: what a volunteer's process does, with a model that costs nothing."""
    opening = Opening(link, folder, NodeConfig(listen=(LISTEN,)), tell)
    if stop is not None:
        stop.opening = opening
    try:
        began_s = time.monotonic()
        import torch  # while the node looks for the swarm

        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model(torch.ones(4, WIDTH)).sum().backward()
        optimizer.step()  # torch loads more of itself at the first step
        optimizer.zero_grad()
        tell("warm", {"import_s": time.monotonic() - began_s})
        opening.wait()
        from p2pnet.swarm import Swarm as Membership

        with Membership(opening, model, optimizer) as swarm:
            while stop is None or not stop.is_set:
                time.sleep(STEP_S)  # stands for training
                loss = model(torch.ones(4, WIDTH)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if report := swarm.step(loss, samples=4):
                    state = swarm.state_sha256()
                    tell("report", {"round": swarm.round - 1, "credited": report.credited, "state": state})
    except P2pnetError:
        if stop is None or not stop.is_set:
            raise
    finally:
        opening.close()


@dataclass
class Recorder:
    """What one peer was seen to sign, by line and slot."""

    peer: PeerId
    bodies: dict[bytes, set[bytes]] = field(default_factory=dict)
    messages: int = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Look at every message that the member in this process hears."""

        def listen(raw: bytes, verify: Verify) -> Any:
            opened = open_spoken(raw, verify)
            self.see(opened)
            return opened

        links.open_spoken = listen
        try:
            yield
        finally:
            links.open_spoken = open_spoken

    def see(self, opened: Any) -> None:
        """Note what this message shows of the peer's signatures: its own, and its votes in the bundles of others."""
        if isinstance(opened, Decision):
            opened = opened.certificate
        if isinstance(opened, Quorum):
            if any(each.peer == self.peer for each in opened.endorsements):
                vote = Vote(opened.swarm, opened.round, opened.view, opened.phase, opened.value)
                self._note(opened.swarm + slot_of(vote), encode(vote))
        elif isinstance(opened, Signed) and opened.peer == self.peer and not isinstance(opened.message, Branch):
            self._note(opened.message.swarm + slot_of(opened.message), opened.body)

    def see_ledger(self, path: Path) -> None:
        """Note the commits in the decided rounds."""
        with LedgerReader(path) as reader:
            for entry in reader.entries(0, len(reader)):
                for raw in entry.commits:
                    self.see(open_signed(SIGNED, raw, lambda *_: True))

    def _note(self, slot: bytes, body: bytes) -> None:
        self.messages += 1
        self.bodies.setdefault(slot, set()).add(body)

    @property
    def conflicts(self) -> int:
        """Slots in which two different things were signed."""
        return sum(len(bodies) > 1 for bodies in self.bodies.values())


def prepare(folder: Path) -> Link:
    """Found a swarm of four: three processes and the member in here."""
    from p2pnet.founding import create

    keys = [folder / str(index) / KEY_NAME for index in range(PEERS)]
    founders = tuple(sorted(Identity.load_or_create(key).peer for key in keys))
    config = SwarmConfig(
        swarm=Swarm("resume", founders=founders),
        task=CustomTask("custom", batch_size=4),
        training=Training(h_steps=STEPS),
        codec=Codec(k=64),
        policy=Policy(grace_s=0.5, stall_s=5.0),
    )
    return create(config, make_model(), state_dir=folder / "0", key_file=None)


def measure(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run the swarm, kill and start again; returns the figures."""
    rng = random.Random(seed)
    link = prepare(folder)
    recorder = Recorder(Identity.load_or_create(folder / "2" / KEY_NAME).peer)
    states: dict[int, set[str]] = {}
    stop = Stop()

    def note(kind: str, fields: dict[str, Any]) -> None:
        if kind == "report":
            states.setdefault(fields["round"], set()).add(fields["state"])

    with ExitStack() as stack:
        stack.enter_context(recorder.listening())
        command = [sys.executable, "-m", "p2pnet.cli", "bootstrap", "--listen", LISTEN, "--json"]
        bootstrap = subprocess.Popen([*command, "--key", str(folder / "key")], stdout=subprocess.PIPE, text=True)
        stack.callback(bootstrap.wait)
        stack.callback(bootstrap.terminate)
        assert bootstrap.stdout is not None
        stack.callback(bootstrap.stdout.close)
        link = Link(link.swarm, tuple(json.loads(bootstrap.stdout.readline())["addrs"]))
        observer = threading.Thread(target=train, args=(str(link), folder / "3", note, stop))
        observer.start()
        stack.callback(observer.join)
        stack.callback(stop.set)
        children = [Child(__file__, link, folder / str(index), PATIENCE_S) for index in (0, 1)]
        for child in children:
            stack.callback(child.kill)
        rows, early, told = kill_again_and_again(link, folder / "2", kills, rng)
        newcomer = Child(__file__, link, folder / "new", PATIENCE_S)
        stack.callback(newcomer.kill)
        ready, credited = newcomer.wait_for("ready"), newcomer.wait_for("report", credited=True)
    recorder.see_ledger(folder / "3" / LEDGER_NAME)
    for event in (*told, *(event for child in (*children, newcomer) for event in child.events)):
        note(event["event"], event)
    values = {name: [row[name] for row in rows] for name in FIGURES}
    return {
        "table": [
            {"what": what, "median": statistics.median(values[name]), "max": max(values[name])}
            for name, what in FIGURES.items()
        ],
        "kills": kills,
        "kills_early": early,
        "messages": recorder.messages,
        "slots": len(recorder.bodies),
        "conflicts": recorder.conflicts,
        "rounds": len(states),
        "is_identical": all(len(found) == 1 for found in states.values()),
        "join": {
            "ready_s": ready["unix_s"] - newcomer.started_s,
            "ready_round": ready["round"],
            "credited_round": credited["round"],
        },
        "runs": rows,
    }


def kill_again_and_again(
    link: Link, folder: Path, kills: int, rng: random.Random
) -> tuple[list[dict[str, float]], int, list[dict[str, Any]]]:
    """Returns a row for each start that came to take part, how many did not, and everything the processes said."""
    rows: list[dict[str, float]] = []
    early, told = 0, []
    child = Child(__file__, link, folder, PATIENCE_S)
    child.wait_for("report", credited=True)
    for _ in range(kills):
        time.sleep(rng.uniform(0.0, 1.5))
        child.kill()
        told += child.events
        child = Child(__file__, link, folder, PATIENCE_S)
        if rng.random() < EARLY_SHARE:
            early += 1
            time.sleep(rng.uniform(0.0, 3.0))
            continue
        ready, credited = child.wait_for("ready"), child.wait_for("report", credited=True)
        import_s = child.wait_for("warm")["import_s"]
        ready_s = ready["unix_s"] - child.started_s
        credited_s = credited["unix_s"] - child.started_s
        rows.append(
            {"import_s": import_s, "ready_s": ready_s, "beyond_s": ready_s - import_s, "credited_s": credited_s}
        )
    child.wait_for("report", credited=True)
    child.kill()
    return rows, early, told + child.events


if __name__ == "__main__":
    main()
