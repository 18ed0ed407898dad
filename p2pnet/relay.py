"""Tell all ranks of a replica what its one node says: rank 0 hears it, the others hear it from rank 0.

So that every rank runs the same loop. Each word costs the ranks one small exchange; alone there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from p2pnet.errors import NetworkError, P2pnetError
from p2pnet.identity import verify
from p2pnet.node import bridge as br
from p2pnet.opening import Opening
from p2pnet.train.ranks import Ranks
from p2pnet.wire.manifest import Manifest, open_manifest
from p2pnet.wire.signing import Signed

BEAT_S: Final = 10.0  # rank 0 says at least so often that it still waits
GO, OVER, NEWS = range(3)  # codes of a step


class Relay:
    """What `Bridge` is to one process, for all ranks."""

    def __init__(self, opening: Opening | None, ranks: Ranks) -> None:
        """opening: an open one on rank 0, None on the others. Collective."""
        self.ranks = ranks
        self._bridge = opening.node.bridge if opening is not None else None
        raw = ranks.share(opening.opened.manifest.raw if opening is not None else b"")
        self.manifest: Final[Signed[Manifest]] = (
            opening.opened.manifest if opening is not None else open_manifest(raw, None, verify)
        )
        self.peer: Final = ranks.share(bytes(opening.node.peer) if opening is not None else b"")  # 32 bytes

    def tell(self, item: br.ToNode) -> None:
        """Tell the node something; only rank 0 does."""
        if self._bridge is not None:
            self._bridge.tell(item)

    def wait(self) -> br.ToUser:
        """Return what the node says next, for the other ranks as much as they need; raises as `Bridge.wait` does."""
        if self._alone:
            return self._alone.wait()
        heard: br.ToUser | None = None
        while heard is None:
            heard = self._pass_on(self._listen)
        return heard

    def poll(self, over: bool) -> tuple[br.ToUser | None, bool]:
        """Return what the node has said meanwhile, and whether the round is over by rank 0's clock."""
        if self._alone:
            return self._alone.poll(), over
        item, code = None, GO
        if self._bridge is not None:
            try:
                item = self._bridge.poll()
                code = NEWS if item is not None else OVER if over else GO
            except P2pnetError:
                code = NEWS  # it says so again below
        code = self.ranks.agree(code)
        if code == NEWS:
            item = self._pass_on(lambda bridge: item or bridge.poll())
        return item, code == OVER

    @property
    def _alone(self) -> br.Bridge | None:
        return self._bridge if self.ranks.size == 1 else None

    def _pass_on(self, hear: Callable[[br.Bridge], br.ToUser | None]) -> br.ToUser | None:
        """Return on all ranks what rank 0 hears; its errors are raised on all."""
        heard: list[br.ToUser | None] = []

        def work() -> bytes:
            assert self._bridge is not None
            heard.append(hear(self._bridge))
            return write_item(heard[0])

        said = self.ranks.from_first(work)
        return heard[0] if heard else read_item(said)

    def _listen(self, bridge: br.Bridge) -> br.ToUser | None:
        try:
            return bridge.wait(BEAT_S)
        except NetworkError:
            return bridge.poll()  # None: nothing yet; or the node has failed, and says so again


def write_item(item: br.ToUser | None) -> bytes:
    """Return what the other ranks need of a word of the node."""
    match item:
        case None:
            said: list[Any] = []
        case br.RoundTask(round_id, beacon, state_wanted):
            said = ["RoundTask", round_id, beacon.hex(), state_wanted]
        case br.Outcome(round_id, lineage, void, _, named):
            said = ["Outcome", round_id, lineage.hex(), void, named]
        case br.Snapshot(round_id, sha256, path):
            said = ["Snapshot", round_id, sha256.hex(), str(path)]
        case br.Fork(round_id, path, line):
            said = ["Fork", round_id, str(path), line]
        case br.Return(round_id, path, checksum, _, samples, line):
            said = ["Return", round_id, str(path), checksum, samples, line]
        case _:
            raise P2pnetError(f"the node said {type(item).__name__} after the swarm was open")
    return json.dumps(said).encode()


def read_item(data: bytes) -> br.ToUser | None:
    """Undo `write_item`; bytes of results and payloads stay on rank 0."""
    match json.loads(data):
        case ["RoundTask", round_id, beacon, state_wanted]:
            return br.RoundTask(round_id, bytes.fromhex(beacon), state_wanted)
        case ["Outcome", round_id, lineage, void, named]:
            return br.Outcome(round_id, bytes.fromhex(lineage), void, b"", None if named is None else tuple(named))
        case ["Snapshot", round_id, sha256, path]:
            return br.Snapshot(round_id, bytes.fromhex(sha256), Path(path))
        case ["Fork", round_id, path, line]:
            return br.Fork(round_id, Path(path), line)
        case ["Return", round_id, path, checksum, samples, line]:
            return br.Return(round_id, Path(path), checksum, b"", samples, line)
        case _:
            return None
