"""Bring a learner that starts, or was away, to where the swarm stands. Contract: protocols/history-1.md."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import ConfigError, NetworkError, PeerError, WireError
from p2pnet.identity import PeerId, peer_id_text
from p2pnet.net.host import Host
from p2pnet.node import bridge as br
from p2pnet.node.download import Download
from p2pnet.node.history import History
from p2pnet.node.snapshots import Snapshot, Snapshots, state_path
from p2pnet.numerics.dense import restore
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle
from p2pnet.wire.codec import encode
from p2pnet.wire.exchange import GetOutput

log = logging.getLogger(__name__)

EXCHANGE = "/p2pnet/exchange/1"
SLOW_BYTES_PER_S = 1_250_000  # 10 Mbit/s: what a deadline expects of a link
ANSWER_S = 10.0  # what a deadline allows besides
RETRY_S = 2.0
PASSES_MAX = 20  # then the rest comes in the rounds themselves, as for anybody who is a little late


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the last decided round: from what the learner has or from a state, over the results since."""

    start: int  # the first result that is needed
    snapshot: Snapshot | None
    fetch_bytes: int  # from others, at most


class CatchUp:
    """Fetches what a learner lacks, one member at a time, and hands it over in order."""

    def __init__(
        self,
        me: PeerId,
        host: Host,
        history: History,
        snapshots: Snapshots,
        bridge: br.Bridge,
        told: trio.MemoryReceiveChannel[br.Attached | br.Applied],
        sources: Callable[[], Awaitable[Sequence[PeerId]]],
        blame: Callable[[PeerId, str], None],
        progress: Callable[[str], None],
    ) -> None:
        """told: what the user's thread answers.   sources: the members that are connected now, asked again each time.

        blame: told who broke which rule.   progress: told what a person wants to know.
        """
        self._me, self._host, self._history, self._snapshots = me, host, history, snapshots
        self._bridge, self._told, self._sources, self._blame, self._progress = bridge, told, sources, blame, progress
        codec = history.manifest.codec
        self._format, self._is_dense = ChunkFormat(codec.k_result, codec.value_bits), bool(codec.coding)
        self._downloads: dict[bytes, Download] = {}  # by digest: who lied is remembered

    async def run(self, stands: int) -> None:
        """Bring the learner from the round at which it stands to the last decided one, however long that takes.

        Raises ConfigError when the learner has rounds that nobody has.
        """
        ledger, passes = self._history.ledger, 0
        while passes < PASSES_MAX:
            await self._history.fetch(self._host, await self._sources(), self._progress, self._blame)
            rounds = len(ledger)
            if stands > rounds:
                raise ConfigError(
                    f"{ledger.path}: has {rounds} rounds and the learner beside it {stands}, and no member that is "
                    "connected has more; join again when others are there, or move the learner's file away"
                )
            if stands == rounds:
                return
            reached = await self._advance(stands, rounds)
            if reached == stands:
                await trio.sleep(RETRY_S)
            else:
                stands, passes = reached, passes + 1

    async def _advance(self, stands: int, rounds: int) -> int:
        """Go the cheapest way that members make possible; returns where the learner then stands."""
        lost = -1  # the latest round whose result nobody gives
        for way in self._ways(stands, rounds):
            if way.start <= lost:
                continue
            lost = max(lost, await self._fetch_results(way.start, rounds))
            if way.start > lost and (way.snapshot is None or await self._take(way.snapshot)):
                await self._replay(way.start, rounds)
                return rounds
        lacking = "nobody that is connected has a state or the results that lead on; asking again"
        self._progress(f"round {stands} of {rounds}: {lacking}")
        return stands

    def _ways(self, stands: int, rounds: int) -> list[Way]:
        """What leads to the last round, the least to fetch first."""
        ledger, result_bytes = self._history.ledger, self._format.payload_bytes(self._history.manifest.chunks)
        states: list[Snapshot | None] = [one for one in self._snapshots.certified() if one.round > stands]
        ways = []
        for one in (None, *states):
            start = one.round if one else stands
            lacking = sum(1 for number in range(start, rounds) if not ledger.roots_held(number)) * result_bytes
            state_bytes = self._history.manifest.state_bytes if one and not self._snapshots.find(one.sha256) else 0
            ways.append(Way(start, one, lacking + state_bytes))
        return sorted(ways, key=lambda way: (way.fetch_bytes, -way.start))

    # Results --------------------------------------------------------------------------------------------------------

    async def _fetch_results(self, start: int, rounds: int) -> int:
        """Have the results from `start` on, the latest first; returns the round whose result nobody gives, else -1."""
        results = await trio.to_thread.run_sync(self._results, start, rounds)
        for number, parts in reversed(results):
            for part, root in parts:
                if await trio.to_thread.run_sync(self._holds, number, root):
                    continue
                data = await self._fetch_part(number, root, part)
                if data is None:
                    return number
                await trio.to_thread.run_sync(self._history.ledger.fill, number, {root: data})
            self._progress(f"results: {rounds - number} of {rounds - start} rounds")
        return -1

    def _results(self, start: int, rounds: int) -> list[tuple[int, list[tuple[Part, bytes]]]]:
        """By round, those of VOID left out: its parts and their roots."""
        found = self._history.rounds(start, rounds)
        return [(entry.round, [(span.part, span.root) for span in one.spans]) for entry, one in found if one.spans]

    async def _fetch_part(self, number: int, root: bytes, part: Part) -> bytes | None:
        """One reduced part from the first member that has it."""
        leaves = min(part.stop * CHUNKS_PER_LEAF, self._history.manifest.chunks) - part.start * CHUNKS_PER_LEAF
        size = self._format.payload_bytes(leaves)
        request = encode(GetOutput(self._history.swarm, number, root))
        for peer in await self._sources():
            try:
                timeout_s = ANSWER_S + 2 * size / SLOW_BYTES_PER_S
                data = await self._host.request(peer, EXCHANGE, request, timeout_s, size)
                if data and self._is_dense:
                    data = await trio.to_thread.run_sync(restore, data, self._format, size // self._format.chunk_bytes)
                if data and await trio.to_thread.run_sync(self._root, data) != root:
                    raise PeerError(peer, "exchange-1/R6", "reduced bytes with another root")
                if data:
                    return data
            except PeerError as error:
                log.warning("result of round %d: %s", number, error)
                self._blame(error.peer, error.rule)
            except WireError as error:
                log.warning("result of round %d from %s: %s", number, peer_id_text(peer), error)
                self._blame(peer, error.rule)
            except NetworkError as error:
                log.info("result of round %d from %s: %s", number, peer_id_text(peer), error)
        return None

    def _holds(self, number: int, root: bytes) -> bool:
        """Tell whether the ledger has the bytes of a part, and not what a disk has made of them since."""
        data = self._history.ledger.part(number, root)
        if data is not None and self._root(data) != root:
            log.warning("the result of round %d is damaged on the disk; fetching it again", number)
            return False
        return data is not None

    def _root(self, data: bytes) -> bytes:
        return merkle.root(merkle.payload_leaves(data, self._format.payload_bytes(CHUNKS_PER_LEAF)))

    # States ---------------------------------------------------------------------------------------------------------

    async def _take(self, snapshot: Snapshot) -> bool:
        """Let the learner have a certified state, from disk or from a member; tells whether it took it."""

        async def is_right(path: Path) -> bool:
            return await self._offer(snapshot, path)

        path = state_path(self._snapshots.folder, snapshot.sha256)
        if path.exists():
            if await is_right(path):
                return True
            path.unlink()
        what = f"state before round {snapshot.round}"
        download = self._downloads.get(snapshot.sha256)
        if download is None:
            size, swarm = self._history.manifest.state_bytes, self._history.swarm
            download = Download(swarm, snapshot.sha256, size, path, what, self._progress, is_right)
            self._downloads[snapshot.sha256] = download
        for peer in await self._sources():
            if await download.fetch(self._host, peer):
                return True
        self._progress(f"{what}: no member that is connected gives it")
        return False

    async def _offer(self, snapshot: Snapshot, path: Path) -> bool:
        """Hand a file to the learner, which checks it: frozen parameters, which only it has, are part of the hash."""
        self._bridge.give(br.Snapshot(snapshot.round, snapshot.sha256, path))
        answer = await self._told.receive()
        if isinstance(answer, br.Attached) and answer.refused:
            self._progress(f"state before round {snapshot.round} refused: {answer.refused}")
        return isinstance(answer, br.Attached) and not answer.refused

    async def _replay(self, start: int, rounds: int) -> None:
        """Hand the outcomes over, one at a time: together they may be more than the memory holds."""
        for outcome in self._history.outcomes(self._me, start, rounds):
            self._bridge.give(outcome)
            await self._told.receive()
            self._progress(f"catching up: round {outcome.round_id + 1} of {rounds}")
