"""Tell members of a large swarm what concerns them alone, whether they are neighbours or not.

Contract: protocols/bundles-1.md, R8.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

import trio

from p2pnet.core import events as ev
from p2pnet.errors import NetworkError, PeerError
from p2pnet.identity import PeerId, peer_id_text, verify
from p2pnet.net.host import Host, Stream
from p2pnet.node.groups import ROSTER_RAW_MAX
from p2pnet.node.inbox import Inbox
from p2pnet.node.links import Links
from p2pnet.wire.round import Commit, GroupRoster, Skip
from p2pnet.wire.signing import open_signed

log = logging.getLogger(__name__)

PROTOCOL = "/p2pnet/groups/1"
TELL_S = 10.0  # for one message, the dialling included
WAITING_PER_PEER_MAX = 8  # messages on their way to one that is no neighbour; what is lost is told again (round-1, R60)


class Telling:
    """Messages to and from members that need not be neighbours: each on a stream of its own."""

    def __init__(self, host: Host, links: Links, inbox: Inbox) -> None:
        self._host, self._links, self._inbox = host, links, inbox
        self._waiting: Counter[PeerId] = Counter()

    def tell(self, to: Iterable[PeerId], raw: bytes, nursery: trio.Nursery) -> None:
        """Give this message to these members."""
        up = set(self._links.membership.up)
        for peer in to:
            if peer in up:
                self._links.send(peer, raw)
            elif self._waiting[peer] < WAITING_PER_PEER_MAX:
                self._waiting[peer] += 1
                nursery.start_soon(self._tell, peer, raw)

    async def _tell(self, peer: PeerId, raw: bytes) -> None:
        try:
            with trio.fail_after(TELL_S):
                async with await self._host.open_stream(peer, PROTOCOL, TELL_S) as stream:
                    await stream.send_frame(raw)
                    await stream.finish()
        except (NetworkError, PeerError, trio.TooSlowError) as error:
            log.info("telling %s: %s", peer_id_text(peer), str(error) or "too slow")
        finally:
            self._waiting -= Counter([peer])

    async def serve(self, stream: Stream) -> None:
        """Take one message; what it says is judged as if a neighbour had handed it over."""
        if self._links.membership.standing.banned_until_s(stream.peer, trio.current_time()) is not None:
            await stream.aclose()
            return
        raw = await stream.receive_frame(ROSTER_RAW_MAX)
        self._inbox.put(ev.Heard(stream.peer, open_signed((Commit, Skip, GroupRoster), raw, verify)))  # type: ignore[arg-type]
        await stream.aclose()
