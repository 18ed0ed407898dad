"""The libp2p host: a `Host` over the daemon. Starts it, starts it again when it dies, brings it our handlers."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.identity import Identity, PeerId, from_libp2p, peer_id_text
from p2pnet.net import p2pd
from p2pnet.net.control import Control, ControlError, receive_message
from p2pnet.net.daemon import DaemonOptions, find_daemon
from p2pnet.net.framing import FramedStream, Traffic
from p2pnet.net.host import (
    Handler,
    Host,
    Limits,
    Misbehaviour,
    PeerAddrs,
    bare_errors,
    check_key,
    check_protocol,
    deadline,
    exchange,
)
from p2pnet.net.process import NODE_SOCKET, Daemon, pin_ports, run_daemon, runtime_folder
from p2pnet.net.reception import Reception
from p2pnet.net.shaping import Shaper
from p2pnet.net.sockets import UnixSocket

STREAM_INFO_BYTES_MAX: Final = 4096
GREETING_S: Final = 5.0  # the daemon writes the stream's info at once
GREETINGS_MAX: Final = 256  # inbound streams whose info has not come yet
REFRESH_S: Final = 15.0  # guess: AutoNAT and the router take minutes to change our addresses
RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 30.0
STEADY_S: Final = 60.0  # a daemon that ran for so long starts again without delay
_NO_DESCRIPTORS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_libp2p_host(
    options: DaemonOptions,
    key_file: Path,
    *,
    daemon_path: Path | None = None,
    limits: Limits | None = None,
    shaper: Shaper | None = None,
    on_misbehaviour: Misbehaviour = lambda _peer, _rule: None,
    on_restart: Callable[[], None] = lambda: None,
) -> AsyncIterator[Libp2pHost]:
    """Open a host under the identity in `key_file`; daemon, streams and handlers end with the block.

    shaper: the caps on what its streams carry; none when it is left out.
    on_misbehaviour: told (peer, rule) for what a peer did on an inbound stream.   on_restart: told when the daemon has
    died and runs again: handlers are back, connections and streams are gone, and provider records must be renewed.
    Raises `ConfigError`: no daemon, a wrong key file, a listen address that cannot be had.
    """
    binary, identity = find_daemon(daemon_path), Identity.load(key_file)
    reception = Reception(limits or Limits(), on_misbehaviour)
    with runtime_folder() as folder, UnixSocket.listen(folder / NODE_SOCKET) as listener, bare_errors():
        async with trio.open_nursery() as nursery:
            host = Libp2pHost(identity.peer, options, folder, reception, on_restart, shaper or Shaper())
            nursery.start_soon(host.accept_streams, listener)
            await nursery.start(host.keep_daemon, binary, key_file, nursery)
            yield host
            nursery.cancel_scope.cancel()


class Libp2pHost:
    """A host over the daemon; see `p2pnet.net.host.Host`. Made by `open_libp2p_host`."""

    def __init__(
        self,
        peer: PeerId,
        options: DaemonOptions,
        folder: Path,
        reception: Reception,
        on_restart: Callable[[], None],
        shaper: Shaper,
    ) -> None:
        """folder: with the daemon's control socket, and ours, to which it brings inbound streams."""
        self.peer: Final = peer
        self.traffic: Final = Traffic()
        self.reception: Final = reception
        self.restarts = 0
        self._options, self._folder, self._on_restart = options, folder, on_restart
        self._shaper: Final = shaper
        self._control: Final = Control(folder / "c")
        self._daemon: Daemon | None = None
        self._registrations: dict[str, UnixSocket] = {}  # protocol: the connection that keeps it registered
        self._registering = trio.Lock()
        self._addrs: tuple[str, ...] = ()
        self._greetings = 0

    @property
    def daemon_pid(self) -> int | None:
        """The daemon's process, None while there is none."""
        return self._daemon.pid if self._daemon else None

    def addrs(self) -> tuple[str, ...]:
        """See `Host`. Addresses through our relays are added: the daemon uses them and does not list them."""
        return self._addrs

    async def connect(self, peer: PeerId, addrs: Sequence[str], timeout_s: float) -> None:
        """See `Host`."""
        self._check_other(peer)
        with self._attempt(timeout_s, f"connecting to {peer_id_text(peer)}"):
            await self._control.connect(peer, addrs, timeout_s)

    async def disconnect(self, peer: PeerId) -> None:
        """See `Host`."""
        await self._control.disconnect(peer)

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> FramedStream:
        """See `Host`."""
        self._check_other(peer)
        check_protocol(protocol)
        with self._attempt(timeout_s, f"opening {protocol} to {peer_id_text(peer)}"):
            sock = await self._control.open_stream(peer, protocol, timeout_s)
        return FramedStream(self._shaper.shape(sock), peer, protocol, self.traffic)

    async def handle(self, protocol: str, handler: Handler, concurrency_per_peer: int = 8) -> None:
        """See `Host`. While the daemon is away the handler waits for it."""
        self.reception.add(protocol, handler, concurrency_per_peer)
        if self._daemon:
            try:
                await self._register()
            except ControlError:
                log.info("%s waits for the daemon", protocol)  # every handler is registered when it is back

    async def request(self, peer: PeerId, protocol: str, body: bytes, timeout_s: float, answer_bytes_max: int) -> bytes:
        """See `Host`. What our own caps take of the time is added to it."""
        timeout_s += self._shaper.own_s(len(body), answer_bytes_max)
        return await exchange(self, peer, protocol, body, timeout_s, answer_bytes_max)

    async def provide(self, key: bytes, timeout_s: float = 30.0) -> None:
        """See `Host`."""
        check_key(key)
        with self._attempt(timeout_s, "providing in the DHT"):
            await self._control.provide(key, timeout_s)

    async def find_providers(self, key: bytes, count: int, timeout_s: float) -> list[PeerAddrs]:
        """See `Host`."""
        check_key(key)
        found: dict[PeerId, PeerAddrs] = {}
        with trio.move_on_after(timeout_s):
            # One more than asked for: we may be among them.
            await self._control.find_providers(key, count + 1, timeout_s, lambda one: found.update({one.peer: one}))
        found.pop(self.peer, None)
        return list(found.values())[:count]

    async def find_peer(self, peer: PeerId, timeout_s: float) -> PeerAddrs | None:
        """See `Host`."""
        with trio.move_on_after(timeout_s) as scope:
            found = await self._control.find_peer(peer, timeout_s)
        return None if scope.cancelled_caught else found

    async def connected(self) -> list[PeerAddrs]:
        """See `Host`."""
        return await self._control.list_peers()

    async def tag(self, peer: PeerId, weight: int) -> None:
        """See `Host`."""
        await self._control.tag(peer, weight)

    async def keep_daemon(
        self,
        binary: Path,
        key_file: Path,
        nursery: trio.Nursery,
        task_status: Any,  # trio.TaskStatus[None], which the stubs that py-multiaddr brings do not know
    ) -> None:
        """Run the daemon; when it dies start it again, later each time."""
        wait_s, options = RESTART_FIRST_S, self._options
        while True:
            began_s = trio.current_time()
            try:
                async with run_daemon(binary, options, key_file, self._folder, nursery) as daemon:
                    await self._begin(daemon)
                    options = replace(options, listen=pin_ports(options.listen, daemon.me.addrs))
                    if self.restarts:
                        self._on_restart()
                    else:
                        task_status.started()
                    await self._follow(daemon)
                    log.warning("the daemon ended: %s", " ".join(daemon.last_words) or "without a word")
            except (ConfigError, NetworkError) as error:
                if not self.restarts:
                    raise  # at the first start that is for who opens the host
                log.warning("the daemon does not start again: %s", error)
                options = self._options  # somebody may have taken our old port
            finally:
                self._end()
            self.restarts += 1
            wait_s = RESTART_FIRST_S if trio.current_time() - began_s > STEADY_S else min(RESTART_MAX_S, 2 * wait_s)
            await trio.sleep(wait_s)

    async def accept_streams(self, listener: UnixSocket) -> None:
        """Take in the streams that the daemon brings."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    sock = await listener.accept()
                except OSError as error:
                    if error.errno not in _NO_DESCRIPTORS:
                        raise
                    log.warning("no more descriptors: inbound streams wait")
                    await trio.sleep(1)
                    continue
                if self._greetings < GREETINGS_MAX:
                    nursery.start_soon(self._serve, sock)
                else:
                    sock.close()

    async def _serve(self, sock: UnixSocket) -> None:
        """Learn who opened the stream and for what, then let the handler have it."""
        with sock:
            self._greetings += 1
            try:
                with deadline(GREETING_S, "waiting for a stream's info"):
                    info = p2pd.parse_stream_info(await receive_message(sock, STREAM_INFO_BYTES_MAX))
                peer = from_libp2p(info.peer)
            except (NetworkError, ValueError) as error:  # also a peer whose key is not Ed25519
                log.info("dropped an inbound stream: %s", error)
                return
            finally:
                self._greetings -= 1
            if self.reception.admits(peer, info.protocol):
                first_frame_s, shaped = self.reception.limits.first_frame_s, self._shaper.shape(sock)
                await self.reception.serve(FramedStream(shaped, peer, info.protocol, self.traffic, first_frame_s))

    async def _begin(self, daemon: Daemon) -> None:
        if daemon.me.peer != self.peer:
            raise ConfigError(f"key: the daemon read another identity, {peer_id_text(daemon.me.peer)}")
        self._daemon = daemon
        self._note_addrs(daemon.me.addrs)
        await self._register()

    async def _register(self) -> None:
        """Tell the daemon about the handlers that it does not know; one at a time, or it would hear of some twice."""
        async with self._registering:
            if missing := [protocol for protocol in self.reception.protocols if protocol not in self._registrations]:
                held = await self._control.hold(self._folder / NODE_SOCKET, missing)
                self._registrations.update(dict.fromkeys(missing, held))

    async def _follow(self, daemon: Daemon) -> None:
        """Keep our addresses fresh until the daemon ends."""
        while not daemon.gone.is_set():
            with trio.move_on_after(REFRESH_S) as scope:
                await daemon.gone.wait()
            if scope.cancelled_caught:
                try:
                    self._note_addrs((await self._control.identify()).addrs)
                except NetworkError as error:
                    log.warning("the daemon does not say where it listens: %s", error)

    def _end(self) -> None:
        self._daemon = None
        for held in self._registrations.values():
            held.close()
        self._registrations.clear()

    def _note_addrs(self, addrs: tuple[str, ...]) -> None:
        circuits = [] if self._options.reachability == "public" else self._options.relays
        self._addrs = tuple(dict.fromkeys([*addrs, *(f"{relay}/p2p-circuit" for relay in circuits)]))

    def _check_other(self, peer: PeerId) -> None:
        if peer == self.peer:
            raise ValueError("a host does not talk to itself")

    @contextmanager
    def _attempt(self, timeout_s: float, what: str) -> Iterator[None]:
        """Put what was tried before the daemon's reason, which it prints over several lines."""
        try:
            with deadline(timeout_s, what):
                yield
        except ControlError as error:
            raise ControlError(f"{what}: {error}") from error
        except NetworkError as error:
            reason = " ".join(str(error).split())
            raise error if reason.startswith(what) else NetworkError(f"{what}: {reason}") from error


if TYPE_CHECKING:
    _is_a_host: type[Host] = Libp2pHost
