"""Do what a round of many groups wants of a node: bundles, columns, rosters. Contract: protocols/bundles-1.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import Plan
from p2pnet.errors import NetworkError, PeerError, WireError
from p2pnet.identity import PeerId
from p2pnet.net.host import Host, Stream
from p2pnet.node.bulk import PROTOCOL, Bulk
from p2pnet.node.bundles import Bundles
from p2pnet.node.column_streams import ColumnStreams
from p2pnet.node.lines import ANSWER_S
from p2pnet.node.wide_audits import WideAudits
from p2pnet.wire import bundles, exchange
from p2pnet.wire.bundles import AwaitColumn, Bundle, GetColumn, GetGroupRoster, GetWideLeaf
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, Message, decode, encode
from p2pnet.wire.exchange import GetLeaf, GetOutput, Slice
from p2pnet.wire.round import COMMIT_RAW_MAX, GROUP_COMMITS_MAX, GroupRoster
from p2pnet.wire.signing import Signed, Verify, open_signed

ROSTER_RAW_MAX = GROUP_COMMITS_MAX * (COMMIT_RAW_MAX + 3) + 512  # a signed group roster
REQUESTS: tuple[type[Message], ...] = (*exchange.REQUESTS, *bundles.REQUESTS)
NEXT_SOURCE_S = 1.0  # a source that has not answered by then may be frozen: the next one is asked too

BulkRequest = Slice | GetOutput | GetLeaf
GroupRequest = Bundle | AwaitColumn | GetColumn | GetGroupRoster | GetWideLeaf
Request = BulkRequest | GroupRequest


class Groups:
    """One line's exchanges of many groups at one node."""

    def __init__(
        self,
        host: Host,
        swarm: bytes,
        bulk: Bulk,
        verify: Verify,
        report: Callable[[ev.Event], None],
        rosters: Callable[[bytes], Signed[GroupRoster] | None],
        stored: Callable[[int, bytes], tuple[bytes, ...] | None],
    ) -> None:
        """rosters: those of groups that are here, by digest.   stored: the listings of columns that the ledger has."""
        self._host, self._swarm, self._bulk, self._verify = host, swarm, bulk, verify
        self._report, self._rosters = report, rosters
        self.bundles = Bundles(host, swarm, bulk, verify, report)
        self.columns = ColumnStreams(host, swarm, bulk, verify, report, stored)
        self.audits = WideAudits(host, swarm, bulk, verify, report)

    def forget(self) -> None:
        """A round is decided: drop what nobody asks for any more."""
        self.columns.forget()

    def perform(self, effect: ev.Effect, nursery: trio.Nursery, others: tuple[PeerId, ...]) -> bool:
        """Do what the machine wants of a round of many groups; tells whether it was of this.

        others: who may have a column, too.
        """
        match effect:
            case gev.Fetch():
                nursery.start_soon(self._fetch, effect)
            case gev.Forward():
                nursery.start_soon(self.bundles.forward, effect)
            case gev.ReducePart():
                nursery.start_soon(self.bundles.reduce, effect)
            case gev.Give():
                nursery.start_soon(self.columns.give, effect)
            case ev.Gather(plan=Plan()):
                sources = tuple(dict.fromkeys((*effect.sources, *others)))
                nursery.start_soon(self.columns.gather, replace(effect, sources=sources))
            case ev.Scatter() if self._is_wide(effect.round, effect.view):
                nursery.start_soon(self.columns.scatter, effect)
            case ev.Answer() if self._is_wide(effect.round, effect.view):
                nursery.start_soon(self.bundles.answer, effect)
            case ev.Audit() if self._is_wide(effect.round, effect.view):
                nursery.start_soon(self.audits.audit, effect)
            case _:
                return False
        return True

    async def serve(self, stream: Stream, request: GroupRequest) -> None:
        """Answer one stream, whose request was read."""
        match request:
            case Bundle():
                await self.bundles.receive(stream, request)
            case AwaitColumn():
                await self.columns.serve_wait(stream, request)
            case GetColumn():
                await self.columns.show_column(stream, request)
            case GetWideLeaf():
                await self.audits.show(stream, request)
            case GetGroupRoster():
                roster = self._rosters(request.digest)
                with trio.fail_after(ANSWER_S):
                    await stream.send_frame(roster.raw if roster is not None else b"")

    def _is_wide(self, round_id: int, view_id: int) -> bool:
        view = self._bulk.views.find(round_id, view_id)
        return view is not None and view.exchange.plan is not None

    async def _fetch(self, effect: gev.Fetch) -> None:
        """Fetch a group roster by its digest: the next source is asked when one does not answer at once."""
        found: list[Signed[GroupRoster]] = []
        sources = [source for source in effect.sources if source != self._host.peer]

        async def ask(source: PeerId, over: trio.Event) -> None:
            roster = await self._ask_roster(effect, source)
            if roster is not None:
                found.append(roster)
                nursery.cancel_scope.cancel()
            over.set()

        async with trio.open_nursery() as nursery:
            for source in sources:
                over = trio.Event()
                nursery.start_soon(ask, source, over)
                with trio.move_on_after(NEXT_SOURCE_S):
                    await over.wait()
        self._report(gev.Fetched(effect.round, effect.digest, found[0] if found else None))

    async def _ask_roster(self, effect: gev.Fetch, source: PeerId) -> Signed[GroupRoster] | None:
        request = encode(GetGroupRoster(self._swarm, effect.round, effect.digest))
        try:
            raw = await self._host.request(source, PROTOCOL, request, ANSWER_S, ROSTER_RAW_MAX)
            if not raw:
                return None
            roster = open_signed((GroupRoster,), raw, self._verify, ROSTER_RAW_MAX)
            if roster.message.digest() != effect.digest:
                raise PeerError(source, "groups-1/R7", "a roster with another digest")
        except (NetworkError, PeerError) as error:
            self._bulk.note("roster of a group", source, error)
            return None
        except WireError as error:
            self._bulk.note("roster of a group", source, PeerError(source, error.rule, error.detail))
            return None
        return roster


async def read_request(stream: Stream) -> Request:
    """Read what a stream of exchange-1 is about; it names the line that answers it."""
    return decode(REQUESTS, await stream.receive_frame(MESSAGE_BYTES_MAX))  # type: ignore[return-value]
