"""Find the members of a swarm: the swarm is a key in the DHT; provide it, look for who else does, dial them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import trio

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.identity import PeerId
from p2pnet.net.dialling import DialPolicy, Dials, Source
from p2pnet.net.host import Host, PeerAddrs, check_key, join_addr, split_addr

BOOTSTRAP_PEERS_MAX: Final = 32
BOOTSTRAP_RETRY_MAX_S: Final = 60.0  # sooner than members: without one there is nobody
PROVIDERS_MAX: Final = 128  # asked for at once; twice a group

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiscoveryPolicy:
    """How often to do what. Guesses, but for the first waits, which decide how long a swarm takes to start."""

    dial: DialPolicy = field(default_factory=DialPolicy)
    provide_s: float = 600.0  # records live for 48 h, but those that hold them come and go
    search_first_s: float = 0.25
    search_max_s: float = 60.0
    lookup_timeout_s: float = 10.0
    retry_first_s: float = 0.05  # the daemon has neighbours in the DHT a moment after it has connected
    retry_max_s: float = 30.0
    look_s: float = 1.0  # how often to see which connections there are


@dataclass(frozen=True, slots=True)
class BootstrapReport:
    """How it stands with one bootstrap peer of the link."""

    addr: str  # with /p2p/<peer id>
    connected: bool
    tries: int
    reason: str  # why the last try failed


class Discovery:
    """Keeps a host connected to the members of one swarm; `run` works until it is cancelled."""

    def __init__(
        self,
        host: Host,
        key: bytes,
        bootstrap: Sequence[str],
        *,
        policy: DiscoveryPolicy | None = None,
        rng: Random | None = None,
        on_connected: Callable[[PeerAddrs], None] = lambda _found: None,
        on_trouble: Callable[[str], None] = lambda _message: None,
    ) -> None:
        """key: 32 bytes, the swarm's id.   bootstrap: full addresses, .../p2p/<peer id>; none for a first peer.

        on_connected: told who is connected and a member, or claims to be one; more than once.   on_trouble: told, in a
        sentence for people, when no bootstrap peer answers; again after every further try.
        Raises `ConfigError` for a bootstrap address without peer id.
        """
        check_key(key)
        self._host, self._key, self._policy = host, key, policy or DiscoveryPolicy()
        self._on_connected, self._on_trouble = on_connected, on_trouble
        rng = rng or Random()
        patient = replace(self._policy.dial, wanted=BOOTSTRAP_PEERS_MAX, retry_max_s=BOOTSTRAP_RETRY_MAX_S)
        self._bootstraps = Dials(host.peer, patient, rng)
        self._members = Dials(host.peer, self._policy.dial, rng)
        self._connected: frozenset[PeerId] = frozenset()
        self._news = trio.Event()  # there are new targets, or connections have changed
        self._in_touch = trio.Event()  # somebody is connected, so the DHT can be asked
        self._afresh = trio.Event()  # nobody was connected and somebody is now, or the daemon has forgotten everything
        for where in merge_bootstrap(bootstrap):
            self._bootstraps.hear(where, Source.OPERATOR, 0.0)

    def see(self, where: PeerAddrs) -> None:
        """Say that gossip has seen this member lately; it is preferred to what the DHT remembers."""
        self._members.hear(where, Source.GOSSIP, trio.current_time())
        self._tell()

    def ignore(self, peer: PeerId) -> None:
        """Never dial this peer again."""
        self._members.ignore(peer)

    def renew(self) -> None:
        """Begin anew: the daemon was started again, its connections and its part of the DHT are gone."""
        self._note(frozenset())

    def report(self) -> tuple[BootstrapReport, ...]:
        """Return how it stands with each bootstrap peer."""
        return tuple(
            BootstrapReport(_full(target.where), peer in self._connected, target.tries, target.reason)
            for peer, target in self._bootstraps.targets.items()
        )

    def describe_trouble(self) -> str:
        """Return a sentence that says which bootstrap peers were tried and why each failed."""
        tried = [f"{one.addr} ({one.reason or 'no answer yet'})" for one in self.report() if not one.connected]
        if not tried:
            return "no bootstrap peer is known; a link names them after ?bootstrap=, or give one with --bootstrap ADDR"
        return f"no bootstrap peer answers; tried {'; '.join(tried)}"

    async def wait_in_touch(self) -> None:
        """Wait until the host is connected to anybody."""
        await self._in_touch.wait()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._dial, self._bootstraps, nursery)
            nursery.start_soon(self._dial, self._members, nursery)
            nursery.start_soon(self._provide)
            nursery.start_soon(self._search)

    async def _watch(self) -> None:
        """Keep an eye on the connections; the daemon does not tell when they come and go."""
        while True:
            try:
                await self._look()
            except NetworkError as error:
                log.info("cannot list connections: %s", error)
            await trio.sleep(self._policy.look_s)

    async def _look(self) -> None:
        self._note(frozenset(found.peer for found in await self._host.connected()))

    async def _dial(self, dials: Dials, nursery: trio.Nursery) -> None:
        """Dial who is due, as many at once as the policy allows."""
        while True:
            news = self._news
            for where in dials.take_due(trio.current_time(), self._connected):
                nursery.start_soon(self._dial_one, dials, where)
            with trio.move_on_at(max(dials.next_s(self._connected), trio.current_time() + self._policy.retry_first_s)):
                await news.wait()

    async def _dial_one(self, dials: Dials, where: PeerAddrs) -> None:
        try:
            await self._host.connect(where.peer, where.addrs, self._policy.dial.timeout_s)
        except (NetworkError, ValueError) as error:  # ValueError: an address that a stranger made up
            dials.fail(where.peer, str(error), trio.current_time())
            log.info("cannot dial: %s", error)
            if dials is self._bootstraps and not self._connected & dials.targets.keys() and not self._any_in_flight():
                self._on_trouble(self.describe_trouble())
        else:
            dials.succeed(where.peer)
            self._note(self._connected | {where.peer})
            if dials is self._members:
                self._on_connected(where)
        self._tell()

    async def _provide(self) -> None:
        """Announce ourselves now and then; soon again when it did not work, or when all is lost."""
        retry_s = self._policy.retry_first_s
        while True:
            await self._in_touch.wait()
            afresh = self._afresh
            try:
                await self._host.provide(self._key, self._policy.lookup_timeout_s)
            except NetworkError as error:
                log.info("%s", error)
                wait_s, retry_s = retry_s, min(self._policy.retry_max_s, 2 * retry_s)
            else:
                wait_s, retry_s = self._policy.provide_s, self._policy.retry_first_s
            with trio.move_on_after(wait_s):
                await afresh.wait()

    async def _search(self) -> None:
        """Ask the DHT who else is there, often at first."""
        wait_s = self._policy.search_first_s
        while True:
            await self._in_touch.wait()
            afresh = self._afresh
            try:
                found = await self._host.find_providers(self._key, PROVIDERS_MAX, self._policy.lookup_timeout_s)
            except NetworkError as error:
                log.info("cannot search the DHT: %s", error)
            else:
                for where in found:
                    self._members.hear(where, Source.DHT, trio.current_time())
                    if where.peer in self._connected:  # by the DHT's own dials, or it is a bootstrap peer of the link
                        self._on_connected(where)
                self._tell()
            with trio.move_on_after(wait_s) as scope:
                await afresh.wait()
            wait_s = (
                min(self._policy.search_max_s, 2 * wait_s) if scope.cancelled_caught else self._policy.search_first_s
            )

    def _note(self, connected: frozenset[PeerId]) -> None:
        """Take in which peers are connected."""
        if connected == self._connected:
            return
        before, self._connected = self._connected, connected
        if not connected:
            self._in_touch = trio.Event()
        elif not before:
            self._in_touch.set()
            self._afresh.set()
            self._afresh = trio.Event()
        self._tell()

    def _any_in_flight(self) -> bool:
        return any(target.dialling for target in self._bootstraps.targets.values())

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


def merge_bootstrap(addrs: Sequence[str]) -> list[PeerAddrs]:
    """Return the bootstrap peers of a link, each once with all its addresses.

    Raises `ConfigError` for an address without peer id, and for more than BOOTSTRAP_PEERS_MAX addresses.
    """
    if len(addrs) > BOOTSTRAP_PEERS_MAX:
        raise ConfigError(f"bootstrap: found {len(addrs)} addresses, allowed are {BOOTSTRAP_PEERS_MAX}; few are enough")
    merged: dict[PeerId, tuple[str, ...]] = {}
    for addr in addrs:
        try:
            one = split_addr(addr)
        except ValueError as error:
            allowed = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."
            raise ConfigError(f"bootstrap: found {addr!r}, allowed is an address such as {allowed}") from error
        merged[one.peer] = (*merged.get(one.peer, ()), *one.addrs)
    return [PeerAddrs(peer, tuple(dict.fromkeys(known))) for peer, known in merged.items()]


def _full(where: PeerAddrs) -> str:
    return ", ".join(join_addr(addr, where.peer) for addr in where.addrs)
