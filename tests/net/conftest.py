"""One world of hosts per test: in memory, or a real daemon each; the same tests run on both."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from p2pnet.identity import Identity, PeerId
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.host import Host, Limits
from p2pnet.net.libp2p import open_libp2p_host
from p2pnet.net.memory import MemoryNetwork

LOOPBACK = DaemonOptions(listen=("/ip4/127.0.0.1/tcp/0",))


class World:
    """Opens hosts that live until the test ends, and keeps what they report."""

    def __init__(self, kind: str, nursery: trio.Nursery, folder: Path) -> None:
        self.kind = kind
        self.misbehaviour: list[tuple[PeerId, str]] = []
        self._nursery, self._folder = nursery, folder
        self._memory = MemoryNetwork()
        self._opened = 0

    async def host(self, limits: Limits | None = None) -> Host:
        self._opened += 1
        identity = Identity.from_seed(bytes([self._opened]) * 32)
        opening: AbstractAsyncContextManager[Host] = self._memory.host(identity.peer, limits, self.report)
        if self.kind == "libp2p":
            key_file = self._folder / f"{self._opened}.key"
            identity.save(key_file)
            opening = open_libp2p_host(LOOPBACK, key_file, limits=limits, on_misbehaviour=self.report)
        host: Host = await self._nursery.start(_keep, opening)
        return host

    async def hosts(self, count: int) -> list[Host]:
        opened: list[Host] = []
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self._open_into, opened)
        return opened

    async def _open_into(self, opened: list[Host]) -> None:
        opened.append(await self.host())

    async def pair(self, limits: Limits | None = None) -> tuple[Host, Host]:
        """Two hosts, the first connected to the second; the limits are the second's."""
        here, there = await self.host(), await self.host(limits)
        await here.connect(there.peer, there.addrs(), 10)
        return here, there

    def report(self, peer: PeerId, rule: str) -> None:
        self.misbehaviour.append((peer, rule))


async def _keep(host: AbstractAsyncContextManager[Host], task_status: trio.TaskStatus[Host]) -> None:
    async with host as opened:
        task_status.started(opened)
        await trio.sleep_forever()


@pytest.fixture(params=["memory", pytest.param("libp2p", marks=pytest.mark.processes)])
def world(request: pytest.FixtureRequest, nursery: trio.Nursery, tmp_path: Path) -> World:
    return World(request.param, nursery, tmp_path)
