"""Run one node from start to end: lock, key, daemon, discovery, content, ledger, rounds; the supervisor of it all."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import p2pnet
from p2pnet.config import NodeConfig
from p2pnet.core import events as ev
from p2pnet.core.gossip import Verdict
from p2pnet.core.state import SwarmState
from p2pnet.errors import NetworkError, P2pnetError, as_config_error
from p2pnet.identity import Identity, PeerId, peer_id_text
from p2pnet.ledger.lock import StateLock, lock_key
from p2pnet.ledger.log import Ledger
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.discovery import Discovery
from p2pnet.net.host import split_addr
from p2pnet.net.libp2p import Libp2pHost, open_libp2p_host
from p2pnet.net.metrics import HostMetrics, serve_metrics
from p2pnet.net.process import port_addrs
from p2pnet.net.shaping import Meter, Shaper
from p2pnet.node import bridge as br
from p2pnet.node.commands import CommandSocket
from p2pnet.node.content import Content
from p2pnet.node.diary import Diary
from p2pnet.node.download import PROTOCOL as CONTENT_PROTOCOL
from p2pnet.node.history import LOOK_S, History, volume_of
from p2pnet.node.history import PROTOCOL as HISTORY_PROTOCOL
from p2pnet.node.inbox import Inbox
from p2pnet.node.links import Links
from p2pnet.node.snapshots import Snapshots, used_bytes
from p2pnet.wire.manifest import Link, Manifest
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.node.peer import Peer, Swarm

log = logging.getLogger(__name__)

KEY_NAME = "peer.key"
LEDGER_NAME = "ledger.db"
STOP_S = 5.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node is started with."""

    link: Link
    folder: Path  # of this swarm on this machine: key, manifest, ledger, learner
    config: NodeConfig
    on_event: Callable[[str, dict[str, Any]], None] = field(default=lambda _kind, _fields: None)
    diary: Diary | None = None  # of a host that opens the swarm again and again: it has locked the folder, and answers


class Node:
    """A node in a thread of its own; the user's thread talks to it over the bridge."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.bridge = br.Bridge()
        self.diary = settings.diary or Diary(settings.on_event)
        self.meter = Meter()
        self._thread = threading.Thread(target=self._main, name="p2pnet-node", daemon=True)
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._leaving = False
        self._say, self._told = trio.open_memory_channel[br.Attached | br.Applied](1)  # before there are rounds
        self._doing, self._told_last = "opening", ""
        self._peer: Peer | None = None
        self._identity: Identity | None = None
        self._links: Links | None = None
        self._discovery: Discovery | None = None
        self._host: Libp2pHost | None = None
        self._trouble = ""
        self.started_s = time.monotonic()

    def start(self) -> None:
        """Start the thread; what happens then comes over the bridge."""
        self._thread.start()

    def leave(self) -> None:
        """Ask the node to end, and return at once; also from a signal handler."""
        self._leaving = True  # also for a thread that has not begun yet
        if self._token is not None:
            with suppress(trio.RunFinishedError):  # it has ended already
                self._token.run_sync_soon(self._scope.cancel)

    def stop(self) -> None:
        """End the node, its daemon and its thread; harmless when it has ended."""
        self.leave()
        self._thread.join(STOP_S)

    @property
    def peer(self) -> PeerId:
        """Who this node is; known once the swarm is open."""
        if self._identity is None:
            raise ValueError("the node has no identity yet")
        return self._identity.peer

    @property
    def daemon_pid(self) -> int | None:
        """The libp2p daemon's process, None while there is none."""
        return self._host.daemon_pid if self._host is not None else None

    def is_running(self) -> bool:
        """Tell whether the node's thread is alive."""
        return self._thread.is_alive()

    def status(self) -> dict[str, Any]:
        """What `p2pnet status` shows, for another thread: asked in the node's, where nothing changes meanwhile."""
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                return trio.from_thread.run_sync(self.snapshot, trio_token=self._token)
        return self.snapshot()

    def snapshot(self) -> dict[str, Any]:
        """What `p2pnet status` shows; called in the node's thread."""
        config, rates_bps = self.settings.config, self.meter.rates_bps()
        facts: dict[str, Any] = {
            "version": p2pnet.__version__,
            "swarm": self.settings.link.swarm.hex(),
            "phase": self._doing,
            "progress": self._told_last,
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "trouble": "" if self._links is not None and self._links.membership.up else self._trouble,
            "rate_bps": {"up": rates_bps[0], "down": rates_bps[1]},
            "cap_bps": {"up": config.max_up_bps or None, "down": config.max_down_bps or None},
            "disk_bytes": {"used": used_bytes(self.settings.folder), "allowed": config.disk_bytes or None},
        }
        if self._identity is not None:
            facts["peer"] = peer_id_text(self._identity.peer)
        if self._peer is None and self._links is not None and self._host is not None:
            facts |= self.diary.network(self._links, self._host)
        if self._peer is not None:
            facts |= {"name": self._peer.swarm.manifest.name} | self._peer.snapshot()
        return facts

    def _main(self) -> None:
        """The thread: everything that goes wrong in the node ends here, is logged, and reaches the user's loop."""
        error: BaseException | None = None
        try:
            trio.run(self._run)
        except BaseExceptionGroup as group:
            error = _first(group)
        except Exception as single:  # noqa: BLE001 - the supervisor: logged, and raised in the user's loop
            error = single
        finally:  # whatever happens: somebody may be waiting, without a deadline
            if error is not None and not isinstance(error, P2pnetError):
                log.error("the node failed", exc_info=error)
                error = as_config_error(error) or error
            self.bridge.give(br.Closed(error))

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        settings = self.settings
        if self._leaving:
            self._scope.cancel()
        with self._scope, ExitStack() as stack:
            await trio.lowlevel.checkpoint()
            if settings.diary is None:
                stack.enter_context(StateLock(settings.folder))
                stack.enter_context(CommandSocket(settings.folder, {"status": self.status}))
            key_file = settings.folder / KEY_NAME
            self._identity = identity = Identity.load_or_create(key_file)
            stack.enter_context(lock_key(identity.peer))
            config = settings.config
            options = DaemonOptions(
                listen=port_addrs(config.port) if config.port else config.listen, relays=_relays(settings)
            )
            async with open_libp2p_host(
                options,
                key_file,
                daemon_path=config.daemon,
                shaper=Shaper(config.max_up_bps, config.max_down_bps),
                on_misbehaviour=self._on_misbehaviour,
                on_restart=self._on_restart,
            ) as host:
                await self._live(host, identity, stack)

    async def _live(self, host: Libp2pHost, identity: Identity, stack: ExitStack) -> None:
        self._host = host
        self.diary.traffic.append(host.traffic)
        settings, swarm = self.settings, self.settings.link.swarm
        settings.on_event("listening", {"peer": peer_id_text(identity.peer), "addrs": list(host.addrs())})
        inbox, content = Inbox(), Content(settings.folder, swarm)
        rng = random.Random()
        clock_s = time.time() - trio.current_time()
        agent = f"p2pnet/{p2pnet.__version__}"
        self._links = links = Links(host, swarm, identity, inbox.put, self._judge, agent, clock_s, rng)
        bootstrap = (*settings.link.bootstrap, *settings.config.bootstrap)
        self._discovery = Discovery(host, swarm, bootstrap, on_connected=links.connected, on_trouble=self._on_trouble)
        if settings.config.metrics_port:
            metrics = HostMetrics(host)
            stack.enter_context(serve_metrics(metrics, settings.config.metrics_host, settings.config.metrics_port))
        async with trio.open_nursery() as nursery:
            self.bridge.bind()
            nursery.start_soon(self._listen)
            nursery.start_soon(self.meter.watch, host.traffic)
            await host.handle(CONTENT_PROTOCOL, content.serve)
            await nursery.start(links.run)
            nursery.start_soon(self._discovery.run)
            manifest = await self._open(host, links, content)
            ledger = self._open_ledger(manifest.message, stack)
            history = await trio.to_thread.run_sync(History, swarm, manifest.message, ledger)
            every = manifest.message.policy.snapshot_rounds
            content.snapshots = Snapshots(settings.folder, every, ledger, settings.config.disk_bytes)
            await host.handle(HISTORY_PROTOCOL, history.serve, concurrency_per_peer=2)
            self.bridge.give(br.Opened(manifest, content.initial_path))  # the user's thread builds its learner
            known = await self._catch_up(host, links, history, content.snapshots, stack)
            from p2pnet.node.peer import Peer

            caps_bps = settings.config.max_up_bps, settings.config.max_down_bps
            self._peer = peer = Peer(known, identity, host, inbox, links, self.bridge, self.diary, caps_bps=caps_bps)
            settings.on_event("ready", {"peer": peer_id_text(identity.peer), "round": peer.rounds.state.round})
            await peer.run()

    async def _open(self, host: Libp2pHost, links: Links, content: Content) -> Signed[Manifest]:
        """Have the manifest and the initial parameters, from disk or from a member."""
        manifest = await trio.to_thread.run_sync(content.load)
        if manifest is not None and await trio.to_thread.run_sync(content.has_initial):
            return manifest
        last = {split_addr(addr).peer for addr in (*self.settings.link.bootstrap, *self.settings.config.bootstrap)}

        async def sources() -> Sequence[PeerId]:
            """Members first; a bootstrap peer is seldom one."""
            members = links.membership.up
            try:
                others = {found.peer for found in await host.connected()}.difference(members)
            except NetworkError:
                return members
            return [*members, *sorted(others, key=lambda peer: peer in last)]

        what = "the swarm's manifest" if manifest is None else f"the initial parameters: {content.describe_initial()}"
        self._progress(f"looking for a member that has {what}")
        return await content.fetch(host, sources, self._progress)

    def _open_ledger(self, manifest: Manifest, stack: ExitStack) -> Ledger:
        genesis = SwarmState.genesis(self.settings.link.swarm, manifest, volume_of(manifest)).lineage
        path = self.settings.folder / LEDGER_NAME
        return stack.enter_context(
            Ledger(path, self.settings.link.swarm, genesis, keep_results=self.settings.config.keep_results)
        )

    async def _catch_up(
        self, host: Libp2pHost, links: Links, history: History, snapshots: Snapshots, stack: ExitStack
    ) -> Swarm:
        """Learn from the members what was decided, and bring the learner there, before this peer signs anything.

        So a directory that is older than what its peer has signed, a copy or a backup, does no harm: the rounds that it
        does not remember are over.
        """
        self._doing = "catching up"
        me = links.membership.me
        others = {*history.state.members, *history.state.founders} - {me}
        alone_s = trio.current_time() + (LOOK_S if others else 0.0)
        while not await history.fetch(host, links.membership.up, self._progress, links.misbehaved):
            if trio.current_time() >= alone_s:
                break
            await trio.sleep(LOOK_EVERY_S)
        attached = await self._told.receive()
        assert isinstance(attached, br.Attached)
        from p2pnet.node.branches import Branches  # here: these need torch, which the user's thread has loaded by now
        from p2pnet.node.catchup import CatchUp
        from p2pnet.node.peer import Swarm
        from p2pnet.node.resuming import Resuming

        async def sources() -> Sequence[PeerId]:
            return links.membership.up

        catch_up = CatchUp(
            me, host, history, snapshots, self.bridge, self._told, sources, links.misbehaved, self._progress
        )
        branches = Branches(self.settings.folder)
        resuming = Resuming(me, history, branches, self.bridge, self._told, catch_up.run)
        stack.callback(resuming.close)
        await resuming.run(attached.round_id, attached.line)
        lines, over = tuple(resuming.lines), tuple(resuming.over)
        return Swarm(history.swarm, history.manifest, history.ledger, attached.chunks, snapshots, branches, lines, over)

    def _progress(self, text: str) -> None:
        self._told_last = text
        self.settings.on_event("progress", {"text": text})

    async def _listen(self) -> None:
        while True:
            self._take(await self.bridge.take())

    def _take(self, item: br.ToNode) -> None:
        if isinstance(item, br.Leave):
            self._scope.cancel()
        elif self._peer is not None:
            self._peer.take(item)
        elif isinstance(item, br.Attached | br.Applied):
            self._say.send_nowait(item)

    def _judge(self, heard: ev.Heard) -> Verdict:
        if self._peer is not None:
            return self._peer.judge(heard)
        # While this one catches up, which may take long: what it ignored it would be offered again and again, until it
        # held its neighbours for liars that announce what they do not send. Signatures are checked already.
        return Verdict.ACCEPT if isinstance(heard.message, Signed) else Verdict.IGNORE

    def _on_misbehaviour(self, peer: PeerId, rule: str) -> None:
        if self._links is not None:
            self._links.misbehaved(peer, rule)

    def _on_restart(self) -> None:
        log.warning("the libp2p daemon died and was started again")
        if self._discovery is not None:
            self._discovery.renew()

    def _on_trouble(self, message: str) -> None:
        """No bootstrap peer answers."""
        self._trouble = message
        if self._links is not None and self._links.membership.up:
            return  # members are connected: nothing to worry about
        self.settings.on_event("trouble", {"text": message})
        if self.settings.config.exit_when_unreachable:
            raise NetworkError(message)


def _relays(settings: NodeSettings) -> tuple[str, ...]:
    """The bootstrap peers relay for us, unless all of this is on one machine."""
    return tuple(addr for addr in settings.link.bootstrap if not addr.startswith(("/ip4/127.", "/ip6/::1/")))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person is told: the first that is ours by design, else the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, P2pnetError)), leaves[0])
