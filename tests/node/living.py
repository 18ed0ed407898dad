"""Whole members in one process: the node as it is, over a network in memory, and a training loop in a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import trio
from torch import nn

from p2pnet.config import Codec, CustomTask, NodeConfig, Policy, SwarmConfig, Training
from p2pnet.config import Swarm as SwarmSection
from p2pnet.errors import P2pnetError
from p2pnet.founding import create
from p2pnet.identity import Identity, PeerId
from p2pnet.ledger.lock import StateLock
from p2pnet.net.host import join_addr
from p2pnet.net.memory import MemoryHost, MemoryNetwork
from p2pnet.node import bridge as br
from p2pnet.node.content import INITIAL_NAME, MANIFEST_NAME
from p2pnet.node.runner import KEY_NAME, Node, NodeSettings
from p2pnet.swarm import Report, Swarm
from p2pnet.wire.manifest import Link
from tests.node.members import identity, until

EVERY = 4  # rounds between two states
TRAINING = Training(h_steps=2, window_s=10.0)
WAIT_S = 60.0


class MemoryNode(Node):
    """A node whose network is in memory and whose loop is the test's."""

    ended = False

    async def live(self, network: MemoryNetwork, opened: Callable[[MemoryHost], None]) -> None:
        """Run until told to leave; what goes wrong reaches the user's thread, as in a node of its own thread."""
        self._token = trio.lowlevel.current_trio_token()
        error: BaseException | None = None
        try:
            with self._scope, ExitStack() as stack:
                folder = self.settings.folder
                stack.enter_context(StateLock(folder))
                self._identity = who = Identity.load_or_create(folder / KEY_NAME)
                async with network.host(who.peer, on_misbehaviour=self._on_misbehaviour) as host:
                    opened(host)
                    await self._live(host, who, stack)  # type: ignore[arg-type]  # as much of a host as it needs
        except BaseExceptionGroup as group:
            from p2pnet.node.runner import _first

            error = _first(group)
        except P2pnetError as single:
            error = single
        finally:
            self.ended = True
            self.bridge.give(br.Closed(error))
        if error is not None and not isinstance(error, P2pnetError):
            raise error

    def stop(self) -> None:
        self.leave()


class Living:
    """One member: a folder that stays, and one process after the other."""

    def __init__(self, place: Place, number: int, seed: int = 0, **settings: Any) -> None:
        self.place, self.number, self.folder = place, number, place.folder / str(number)
        self.who = identity(number)
        self.who.save(self.folder / KEY_NAME) if not (self.folder / KEY_NAME).exists() else None
        self.config = NodeConfig(**({"keep_results": 2} | settings))
        self.seed = seed
        self.reports: list[Report] = []  # of the final chain, as the states
        self.states: dict[int, str] = {}
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.host: MemoryHost | None = None
        self.swarm: Swarm | None = None
        self.error: BaseException | None = None
        self.running = False
        self.trains = threading.Event()  # cleared: the loop stands still between two steps
        self.trains.set()
        self.step_s = 0.0  # what a step takes besides, as on a slower machine
        self._saves = True

    @property
    def peer(self) -> PeerId:
        return self.who.peer

    def texts(self, start: int = 0) -> list[str]:
        """What a person was told."""
        return [fields["text"] for kind, fields in self.said[start:] if kind == "progress"]

    def note(self, kind: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.said if event == "note" and fields["kind"] == kind]

    def ready(self) -> int:
        """The round at which this process was ready, the latest one's."""
        return next(fields["round"] for kind, fields in reversed(self.said) if kind == "ready")

    async def start(self) -> None:
        self.node = MemoryNode(NodeSettings(self.place.link, self.folder, self.config, self._hear))
        self.opened: br.Opened | None = None
        self.running, self._saves, self.error = True, True, None
        self.place.nursery.start_soon(self._run)
        await until(lambda: self.host is not None or not self.running, WAIT_S)

    async def stop(self) -> None:
        """Leave, saved."""
        self.trains.set()
        self.node.leave()
        await until(lambda: not self.running, WAIT_S)

    async def kill(self) -> None:
        """End at once; nothing is saved that was not."""
        self._saves = False
        await self.stop()

    async def reach(self, rounds: int) -> None:
        """Wait until so many rounds are decided here."""
        await until(lambda: not self.running or (bool(self.reports) and self.reports[-1].round >= rounds - 1), WAIT_S)
        if self.error is not None:
            raise self.error

    def credited(self, start: int = 0) -> list[int]:
        return [report.round for report in self.reports if report.credited and report.round >= start]

    async def wait_credited(self, start: int = 0) -> int:
        """Return the first round from `start` on that this member is credited for; AssertionError when none comes."""
        with trio.move_on_after(WAIT_S):
            await until(lambda: not self.running or bool(self.credited(start)), math.inf)
        found = self.credited(start)
        assert found, f"no round from {start} on, error {self.error!r}, it said {self.said[-20:]}"
        return found[0]

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.node.live, self.place.network, self._set_host)
                await trio.to_thread.run_sync(self._learn)
        finally:
            self.host, self.running = None, False

    def _set_host(self, host: MemoryHost) -> None:
        self.host = host

    def _learn(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(self.seed)
        model = self.place.make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        try:
            opened = self.node.bridge.wait(WAIT_S)
            assert isinstance(opened, br.Opened)
            self.opened = opened
            self.swarm = Swarm(self, model, optimizer)  # type: ignore[arg-type]  # as much of an Opening as it needs
            while True:
                self.trains.wait()
                loss = model(torch.full((4, 16), float(self.number))).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                time.sleep(self.step_s)
                if (report := self.swarm.step(loss, samples=4)) and not (report.branch or self.swarm.branch):
                    self.states[self.swarm.round - 1] = self.swarm.state_sha256()  # it may have caught up
                    self.reports.append(report)
        except P2pnetError as error:
            if "as it was told to" not in str(error):
                self.error = error
            if self._saves and self.swarm is not None:
                with suppress(P2pnetError):
                    self.swarm.close()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.node.leave()

    def _hear(self, kind: str, fields: dict[str, Any]) -> None:
        self.said.append((kind, fields))


async def agree(*members: Living, at_least: int = 1) -> set[int]:
    """All have the same parameters after each round that they all saw, so many at least; returns those rounds."""
    common: set[int] = set()

    def is_there() -> bool:  # a thread reports a round a little before or after the others'
        common.update(set.intersection(*(set(member.states) for member in members)))
        return len(common) >= at_least

    await until(is_there, WAIT_S)
    assert all(len({member.states[number] for member in members}) == 1 for number in common)
    return common


class Place:
    """A network in memory with a bootstrap peer, and a swarm that is founded on it."""

    def __init__(self, nursery: trio.Nursery, folder: Path, link: Link, make_model: Callable[[], nn.Module]) -> None:
        self.nursery, self.folder, self.link, self.make_model = nursery, folder, link, make_model
        self.network = MemoryNetwork()
        self.members: list[Living] = []

    def member(self, number: int, **settings: Any) -> Living:
        made = Living(self, number, **settings)
        self.members.append(made)
        return made

    async def started(self, *numbers: int, **settings: Any) -> list[Living]:
        made = [self.member(number, **settings) for number in numbers]
        for one in made:
            await one.start()
        return made


def linear() -> nn.Module:
    return nn.Linear(16, 16)


def half_frozen() -> nn.Module:
    """The frozen half is the same everywhere: a joiner brings it along."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].load_state_dict({"weight": torch.eye(16), "bias": torch.zeros(16)})
    model[0].requires_grad_(False)
    return model


@asynccontextmanager
async def open_place(
    folder: Path,
    founders: int = 2,
    make_model: Callable[[], nn.Module] = linear,
    dense: bool = False,
    training: Training = TRAINING,
    **policy: Any,
) -> AsyncIterator[Place]:
    """A swarm founded by members 1 to `founders`; all ends with the block."""
    settings = {"grace_s": 0.4, "stall_s": 5.0, "service_rounds": 1, "snapshot_rounds": EVERY} | policy
    config = SwarmConfig(
        swarm=SwarmSection("tests", founders=tuple(identity(number).peer for number in range(1, founders + 1))),
        task=CustomTask("custom", batch_size=4),
        training=training,
        codec=Codec(k=8, k_result=16, dense=dense),
        policy=Policy(**settings),
    )
    key = folder / "creator.key"
    identity(1).save(key)
    link = create(config, make_model(), state_dir=folder / "1", key_file=key)
    for number in range(2, founders + 1):
        (folder / str(number)).mkdir()
        for name in (MANIFEST_NAME, INITIAL_NAME):
            (folder / str(number) / name).write_bytes((folder / "1" / name).read_bytes())
    async with trio.open_nursery() as nursery:
        place = Place(nursery, folder, link, make_model)
        async with place.network.host(identity(250).peer) as bootstrap:
            place.link = Link(link.swarm, (join_addr(bootstrap.addrs()[0], bootstrap.peer),))
            try:
                yield place
            finally:
                with trio.CancelScope(shield=True):
                    for member in place.members:
                        if member.running:
                            await member.stop()
        nursery.cancel_scope.cancel()
