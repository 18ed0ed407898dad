"""A whole swarm on one machine: a bootstrap peer and N peers, each a process of its own, found through the DHT alone.

The peers are plain `p2pnet join` processes. This one makes their keys and the swarm, starts them, listens to what they
say, and holds their lifelines: standard input of each, so that they end with it, whatever ends it.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import trio

from p2pnet.config import BytesLmTask, Swarm, SwarmConfig, Training
from p2pnet.errors import P2pnetError
from p2pnet.identity import Identity
from p2pnet.manifests import KEY_NAME, codec_sizes, swarm_folder
from p2pnet.net.host import bare_errors
from p2pnet.wire.manifest import Link, Manifest

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
STOP_S: Final = 2.5  # from the end of the lifelines to SIGKILL
LINE_BYTES_MAX: Final = 1 << 20
LOG_CHARS: Final = 2000  # of a process that failed, shown

COMMAND: Final = (sys.executable, "-m", "p2pnet.cli")


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What to show."""

    peers: int
    rounds: int
    folder: Path  # empty; everything is kept there
    text: Path | None = None
    config: SwarmConfig | None = None  # None: the defaults, their rates falling towards the last round


@dataclass(slots=True)
class PeerView:
    """One peer process as its events show it."""

    index: int
    folder: Path
    pid: int = 0
    peer: str = ""
    phase: str = "starting"
    rounds: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    ready_s: float = math.nan  # unix time, as the next one
    first_round_s: float = math.nan
    end: dict[str, Any] | None = None
    status: int | None = None  # exit status

    @property
    def last(self) -> Mapping[str, Any]:
        """The latest round."""
        return self.rounds[-1] if self.rounds else {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one line of what the process says."""
        match event["event"]:
            case "listening":
                self.peer = event["peer"]
            case "progress":
                self.phase = event["text"]
            case "ready":
                self.ready_s, self.phase = event["unix_s"], "training"
            case "round":
                if not self.rounds:
                    self.first_round_s = event["unix_s"]
                self.rounds.append(dict(event))
                self.phase = "training"
            case "held_out":
                self.held_out.append(dict(event))
            case "note" if event["kind"] == "stalled":
                self.phase = f"stalled: {event['detail']}"
            case "note" if event["kind"] == "resumed":
                self.phase = "training"
            case "trouble":
                self.phase = event["text"]
            case "end":
                self.end, self.phase = dict(event), "done"


@dataclass(slots=True)
class DemoView:
    """All of it, for whoever shows it."""

    settings: DemoSettings
    link: Link
    manifest: Manifest
    peers: list[PeerView]
    started_s: float  # unix time

    def rounds_everywhere(self) -> int:
        """Rounds that every peer that is left has told."""
        return min((len(peer.rounds) for peer in self.peers if peer.status is None), default=0)

    def losses(self, position: int) -> list[float]:
        """The peers' training losses of one round, by its position among those told; without those that had none."""
        told = [peer.rounds[position] for peer in self.peers if len(peer.rounds) > position]
        return [one["loss"] for one in told if one["loss"] is not None]


def default_config(rounds: int) -> SwarmConfig:
    """Return the defaults for a run whose end is known: as measured, rates fall over the last two fifths of it."""
    training = Training()
    steps = rounds * training.h_steps
    inner = replace(training.inner, decay_start=steps - 2 * steps // 5, decay_steps=2 * steps // 5)
    return SwarmConfig(Swarm("demo"), BytesLmTask("bytes-lm"), replace(training, inner=inner))


def prepare(settings: DemoSettings) -> tuple[Link, Manifest]:
    """Make the peers' keys and a swarm that they found; only the first one's folder gets manifest and parameters.

    The settings' folder gets `peer-0` to `peer-<n-1>`, a state directory each. Imports torch. The link names no
    bootstrap peer yet. Raises ConfigError for settings that make no swarm.
    """
    from p2pnet.founding import create
    from p2pnet.node.content import Content
    from p2pnet.train.tasks import make_task

    config, text = settings.config or default_config(settings.rounds), settings.text
    places = [settings.folder / f"peer-{index}" for index in range(settings.peers)]
    identities = [Identity.load_or_create(place / KEY_NAME) for place in places]
    founders = tuple(sorted(identity.peer for identity in identities))
    task = replace(config.task, text=text) if isinstance(config.task, BytesLmTask) else config.task
    made, config = places[0] / "new", replace(config, task=task, swarm=replace(config.swarm, founders=founders))
    link = create(config, make_task(task).model, state_dir=made, key_file=places[0] / KEY_NAME)
    made.rename(swarm_folder(places[0], link.swarm))
    manifest = Content(swarm_folder(places[0], link.swarm), link.swarm).load()
    assert manifest is not None  # it was just written
    return link, manifest.message


def peer_command(link: Link, place: Path, rounds: int, text: Path | None, *more: str) -> list[str]:
    """Return how one peer is started; `place` is its state directory."""
    command = [*COMMAND, "join", str(link), "--state-dir", str(place), "--listen", LOOPBACK, "--device", "cpu"]
    command += ["--threads", "1", "--until-round", str(rounds), "--json", "--lifeline", *more]
    return [*command, "--text", str(text)] if text else command


def bootstrap_command(folder: Path) -> list[str]:
    """Return how the bootstrap peer is started."""
    key = str(folder / "bootstrap.key")
    return [*COMMAND, "bootstrap", "--listen", LOOPBACK, "--key", key, "--json", "--lifeline"]


class Demo:
    """Runs the processes of one demo."""

    def __init__(self, settings: DemoSettings, on_change: Callable[[PeerView], None]) -> None:
        """on_change: told of which peer there is news.   Makes the swarm, which takes seconds (`prepare`)."""
        started_s = time.time()
        peers = [PeerView(index, settings.folder / f"peer-{index}") for index in range(settings.peers)]
        self.view = DemoView(settings, *prepare(settings), peers, started_s)
        self._on_change = on_change
        self._over = trio.Event()  # all peers have decided the last round, or too few are left

    async def run(self) -> None:
        """Run until every peer has decided the last round; `view` holds what there was to see. Cancel it to give up.

        Raises P2pnetError when too few peers are left to decide anything, or none could be started.
        """
        with bare_errors():
            async with trio.open_nursery() as nursery:
                addrs = await nursery.start(self._run_bootstrap)
                self.view.link = replace(self.view.link, bootstrap=tuple(addrs))
                for peer in self.view.peers:
                    nursery.start_soon(self._run_peer, peer)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        if any(peer.end is None for peer in self.view.peers) and not self._quorum():
            raise P2pnetError(self._explain())

    async def _run_bootstrap(self, task_status: Any) -> None:  # trio.TaskStatus, as in net.libp2p
        log = self.view.settings.folder / "bootstrap.log"
        async with _Child(bootstrap_command(self.view.settings.folder), log) as child:
            async for line in child.lines():
                task_status.started(json.loads(line)["addrs"])
                break
            status = await child.process.wait()
        raise P2pnetError(f"the bootstrap peer ended with status {status}: {_tail(log)}")

    async def _run_peer(self, peer: PeerView) -> None:
        settings, link = self.view.settings, self.view.link
        every = "10" if peer.index == 0 else "0"  # one is enough: after a round all have the same parameters
        command = peer_command(link, peer.folder, settings.rounds, settings.text, "--held-out-rounds", every)
        async with _Child(command, peer.folder / "log") as child:
            peer.pid = child.process.pid
            async for line in child.lines():
                peer.take(json.loads(line))
                self._on_change(peer)
                if peer.end is not None:
                    self._see_whether_over()
            peer.status = await child.process.wait()
        peer.phase = f"ended with status {peer.status}"
        self._on_change(peer)
        self._see_whether_over()

    def _see_whether_over(self) -> None:
        running = [peer for peer in self.view.peers if peer.status is None]
        if all(peer.end is not None for peer in running) or not self._quorum():
            self._over.set()

    def _quorum(self) -> bool:
        """Tell whether those that run, or have decided the last round, can decide."""
        there = sum(peer.status is None for peer in self.view.peers)
        return 3 * there > 2 * len(self.view.peers)

    def _explain(self) -> str:
        lost = [peer for peer in self.view.peers if peer.status is not None]
        words = [f"peer {peer.index} ended with status {peer.status}: {_tail(peer.folder / 'log')}" for peer in lost]
        left = len(self.view.peers) - len(lost)
        return "\n".join([f"{left} of {len(self.view.peers)} peers are left, and the demo ends here", *words])


class _Child:
    """A process that ends with us: its standard input is its lifeline."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command, self._log = command, log

    async def __aenter__(self) -> _Child:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as errors:  # noqa: ASYNC230 - opened once, and written by another process
            self.process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with trio.CancelScope(shield=True):
            await self.process.stdin.aclose()
            with trio.move_on_after(STOP_S):
                await self.process.wait()
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            await self.process.stdout.aclose()

    async def lines(self) -> AsyncIterator[bytes]:
        """What it writes, line by line, to the end."""
        assert self.process.stdout is not None
        buffer = bytearray()
        async for chunk in self.process.stdout:
            buffer += chunk
            *lines, rest = buffer.split(b"\n")
            buffer = bytearray(rest)
            if len(buffer) > LINE_BYTES_MAX:
                raise P2pnetError("a peer process wrote a line without end")
            for line in lines:
                yield bytes(line)


def summarise(view: DemoView) -> dict[str, Any]:
    """What the run came to, as the JSON file has it. Call it when all processes have ended."""
    sizes = codec_sizes(view.manifest)
    names = (
        "peer", "rounds_sealed", "rounds_void", "lineage", "state_sha256", "wire_bytes_up", "wire_bytes_down",
        "loss_first", "loss_last", "train_s", "exchange_s", "straggler_wait_s", "rounds_credited", "cpu_s",
    )  # fmt: skip
    there = [peer for peer in view.peers if peer.end is not None]
    ends = [peer.end for peer in there if peer.end is not None]
    busy_s = sum(end["train_s"] + end["exchange_s"] + end["straggler_wait_s"] for end in ends)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    ready_s = max(peer.ready_s for peer in there)
    held_out = [(one["round"] + 1, one["loss"]) for peer in view.peers for one in peer.held_out]
    held_out += [(end["rounds"], end["held_out_loss"]) for end in ends if end["held_out_loss"] is not None]
    return {
        "peers": [{name: end[name] for name in names} for end in ends],
        "params": view.manifest.params,
        "payload_bytes_per_round": sizes.payload_bytes,
        "compression_vs_fp32": 4 * view.manifest.params / sizes.payload_bytes,
        "wall_s": time.time() - view.started_s,
        "rounds": view.settings.rounds,
        "lost_peers": [peer.index for peer in view.peers if peer.end is None],
        "is_identical": is_identical(ends),
        "ready_s": ready_s - view.started_s,
        "first_round_s": max(peer.first_round_s for peer in there) - ready_s,
        "exchange_share": sum(end["exchange_s"] for end in ends) / busy_s if busy_s else None,
        "children_cpu_s": usage.ru_utime + usage.ru_stime,
        "h_steps": view.manifest.policy.h_steps,
        "held_out": sorted(set(held_out)),
        "curve": _curve(view),
    }


def is_identical(ends: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether all peers ended with the same parameters after the same decided rounds."""
    return len({(end["lineage"], end["state_sha256"]) for end in ends}) == 1


def _curve(view: DemoView) -> list[dict[str, Any]]:
    """One row per round: mean and spread of the peers' losses, and what was spent until then."""
    rows, tokens = [], 0
    for position in range(max(len(peer.rounds) for peer in view.peers)):
        told = [peer.rounds[position] for peer in view.peers if len(peer.rounds) > position]
        losses = view.losses(position)
        tokens += sum(one["tokens"] for one in told)
        rows.append({
            "round": told[0]["round"],
            "tokens": tokens,
            "loss": sum(losses) / len(losses) if losses else None,
            "losses": losses,
            "wire_bytes_up_per_peer": sum(one["wire_bytes_up"] - one["content_bytes_up"] for one in told) / len(told),
            "unix_s": max(one["unix_s"] for one in told),
        })  # fmt: skip
    return rows


def _tail(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(errors="replace")[-LOG_CHARS:].strip() or "without a word"
    return "without a word"
