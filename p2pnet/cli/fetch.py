"""Fetch a manifest from a swarm's members, as somebody who only looks: a key for the occasion, nothing announced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.identity import Identity, PeerId, peer_id_text
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.discovery import merge_bootstrap
from p2pnet.net.host import Host, PeerAddrs, bare_errors
from p2pnet.net.libp2p import open_libp2p_host
from p2pnet.node.content import Content
from p2pnet.wire.manifest import Link, Manifest
from p2pnet.wire.signing import Signed

DIAL_S: Final = 10.0
LOOKUP_S: Final = 5.0
RETRY_S: Final = 0.5
BACKOFF: Final = "dial backoff"  # the daemon's word for "failed a moment ago"; the first reason says why
MEMBERS_MAX: Final = 16  # any one of them has the manifest
LOOKER: Final = DaemonOptions(listen=(), dht="client", autonat=False, connections_low=16, connections_high=32)


async def fetch_manifest(
    link: Link, timeout_s: float, tell: Callable[[str], None], daemon_path: Path | None = None
) -> tuple[Signed[Manifest], str]:
    """Return a swarm's manifest, verified against the link, and where it came from.

    tell: told in a sentence what is being done.   Raises ConfigError for a link without bootstrap peers, NetworkError
    after `timeout_s`, which says which peers were tried and why each failed.
    """
    if not link.bootstrap:
        raise ConfigError("link: names no bootstrap peer to start from; give one with --bootstrap ADDR")
    with tempfile.TemporaryDirectory(prefix="p2pnet-look-") as folder, bare_errors():
        key_file = Path(folder) / "key"
        Identity.generate().save(key_file)
        async with open_libp2p_host(LOOKER, key_file, daemon_path=daemon_path) as host:
            look = _Look(host, link, Path(folder))
            tell(f"asking {len(look.starts)} bootstrap peers for members of the swarm")
            with trio.move_on_after(timeout_s):
                return await look.run()
    raise NetworkError(look.describe_failure(timeout_s))


class _Look:
    def __init__(self, host: Host, link: Link, folder: Path) -> None:
        self.starts = merge_bootstrap(link.bootstrap)
        self._host, self._link = host, link
        self._content = Content(folder / "swarm", link.swarm)
        self._reasons: dict[PeerId, str] = {start.peer: "no answer yet" for start in self.starts}
        self._members: set[PeerId] = set()

    async def run(self) -> tuple[Signed[Manifest], str]:
        """Dial, search and ask until the manifest is here."""
        async with trio.open_nursery() as nursery:
            for start in self.starts:
                nursery.start_soon(self._keep_dialling, start)
            nursery.start_soon(self._keep_searching, nursery)
            await self._ask(nursery.cancel_scope)
        assert self._content.manifest is not None
        return self._content.manifest, "a member of the swarm"

    def describe_failure(self, timeout_s: float) -> str:
        """Say how far it got."""
        failed = [f"{peer_id_text(peer)} ({reason})" for peer, reason in self._reasons.items() if reason]
        if len(failed) == len(self.starts):
            return f"no bootstrap peer answers; tried {'; '.join(failed)}"
        if not self._members:
            return f"no member of the swarm was found in {timeout_s:g} s: does anybody run it? Its creator is first"
        return f"members found in {timeout_s:g} s: {len(self._members)}; none of them gave the manifest, or they left"

    async def _keep_dialling(self, start: PeerAddrs) -> None:
        while True:
            reason = await self._dial(start)
            if not (reason.endswith(BACKOFF) and self._reasons[start.peer]):
                self._reasons[start.peer] = reason
            await trio.sleep(RETRY_S)

    async def _keep_searching(self, nursery: trio.Nursery) -> None:
        """Dial whom the DHT names, all at once."""
        while True:
            with suppress(NetworkError):
                for found in await self._host.find_providers(self._link.swarm, MEMBERS_MAX, LOOKUP_S):
                    if found.peer not in self._members and len(self._members) < MEMBERS_MAX:
                        self._members.add(found.peer)
                        nursery.start_soon(self._keep_dialling_member, found)
            await trio.sleep(RETRY_S)

    async def _keep_dialling_member(self, member: PeerAddrs) -> None:
        while await self._dial(member):  # noqa: ASYNC110 - nothing tells that it is there now but trying
            await trio.sleep(RETRY_S)

    async def _dial(self, where: PeerAddrs) -> str:
        """Connect; returns why it did not work, nothing when it did."""
        try:
            await self._host.connect(where.peer, where.addrs, DIAL_S)
        except (NetworkError, ValueError) as error:  # ValueError: an address that a stranger made up
            return str(error)
        return ""

    async def _ask(self, scope: trio.CancelScope) -> None:
        """Ask whoever is connected for the manifest; the parameters, which would come next, are not wanted."""

        async def sources() -> Sequence[PeerId]:
            with suppress(NetworkError):
                return [found.peer for found in await self._host.connected()]
            return []

        await self._content.fetch(self._host, sources, lambda _text: scope.cancel())
