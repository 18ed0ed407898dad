"""Keep what came for the parts that this peer reduces, by roster, and let streams wait for it. Memory is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from p2pnet.core import events as ev
from p2pnet.core.parts import Part
from p2pnet.identity import PeerId
from p2pnet.wire.round import roster_digest

ROUNDS_KEPT = 2  # a round's slices and outputs are served for two rounds
ROUNDS_AHEAD = 2  # slices of later rounds are not waited for: their roster cannot be accepted here soon
VIEWS_KEPT = 4  # of one round: a round that stalls goes through views without end
ROSTER_WAIT_S = 30.0  # a slice may come before the roster it belongs to
WAITING_MAX = 1024  # streams that wait for a roster
WAITING_PER_PEER_MAX = 16  # a peer sends at most one slice to a reducer, one to a backup, in each of a few views

Key = tuple[int, int]  # round, view
Narrow = Callable[[int, int], tuple[bytes, ...]]  # the proof of leaves from .. to, without the second


@dataclass(frozen=True, slots=True)
class Piece:
    """One contributor's slice of a part; it follows from the contributor's commit."""

    data: bytes
    hashes: list[bytes]  # of its leaves, 32 bytes each
    proof: tuple[bytes, ...]


@dataclass(slots=True)
class View:
    """One roster's exchange: what came for the parts that this peer reduces, and what it made of it."""

    exchange: ev.Exchange
    roster: bytes  # 32 bytes, the digest of the commits
    pieces: dict[int, dict[PeerId, Piece]] = field(default_factory=dict)
    norms: dict[int, bytes] = field(default_factory=dict)  # of the parts that this peer reduced: the rows of exchange-1
    rows: dict[int, tuple[bytes, ...]] = field(default_factory=dict)  # of many groups: what each gave to these parts
    narrow: dict[tuple[int, PeerId], Narrow] = field(default_factory=dict)  # by column and contributor: proofs of parts
    beside: View | None = None  # of many groups: the same for parts, where `parts` of the exchange are columns
    _answers: dict[int, tuple[bytes, ...]] = field(default_factory=dict)  # part -> signed digest, reduced bytes
    _news: trio.Event = field(default_factory=trio.Event)
    _over: bool = False

    def part(self, index: int) -> Part | None:
        """The part of this number, if there is one."""
        return self.exchange.parts[index] if index < len(self.exchange.parts) else None

    def keep(self, part: int, peer: PeerId, piece: Piece) -> bool:
        """Take a slice; tells whether it is the first of this peer."""
        if self._over or peer in self.pieces.setdefault(part, {}):
            return False
        self.pieces[part][peer] = piece
        return True

    def answer(self, part: int, *frames: bytes) -> None:
        """Let everybody who waits for this part have it: the signed digest and the reduced bytes; or a column."""
        self._answers[part] = frames
        self._wake()

    def answered(self, part: int) -> tuple[bytes, ...] | None:
        """The signed digest and the reduced bytes of a part that this peer has reduced; or a column."""
        return self._answers.get(part)

    async def wait_answer(self, part: int) -> tuple[bytes, ...] | None:
        """Wait for the answer of a part; None when it will not come any more."""
        while part not in self._answers and not self._over:
            await self._news.wait()
        return self._answers.get(part)

    def close(self) -> None:
        """Forget the slices, and let nobody wait any longer."""
        self._over = True
        self.pieces = {}
        if self.beside is not None:
            self.beside.close()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()


class Views:
    """The exchanges of the latest rounds, and the streams that wait for one."""

    def __init__(self, round_id: int) -> None:
        """round_id: the round that is not decided yet."""
        self._round = round_id
        self._views: dict[Key, View] = {}
        self._waiting: Counter[PeerId] = Counter()
        self._news = trio.Event()

    @property
    def decided(self) -> int:
        """The last round that is over, -1 before the first."""
        return self._round - 1

    @property
    def oldest(self) -> int:
        """The first round of which anything is kept."""
        return self._round - ROUNDS_KEPT

    def open(self, exchange: ev.Exchange) -> None:
        """A roster was accepted: slices that wait for it may be checked."""
        key = (exchange.round, exchange.view)
        if key not in self._views:
            self._views[key] = open_view(exchange)
            self._close([old for old in self._views if old[0] == key[0] and old[1] <= key[1] - VIEWS_KEPT])
            self._wake()

    def find(self, round_id: int, view: int) -> View | None:
        """The exchange of this round and view, if its roster was accepted here."""
        return self._views.get((round_id, view))

    async def wait(self, round_id: int, view: int, peer: PeerId) -> View | None:
        """Wait for the roster of a view, for a stream of `peer`; None when it does not come, or too many wait."""
        key, deadline_s = (round_id, view), trio.current_time() + ROSTER_WAIT_S
        if key not in self._views and (
            self._waiting[peer] >= WAITING_PER_PEER_MAX or self._waiting.total() >= WAITING_MAX
        ):
            return None
        self._waiting[peer] += 1
        try:
            with trio.move_on_at(deadline_s):
                while self.oldest <= round_id <= self._round + ROUNDS_AHEAD and key not in self._views:
                    await self._news.wait()
        finally:
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]
        return self._views.get(key)

    def forget(self, decided: int) -> None:
        """A round is decided: drop what is older than `ROUNDS_KEPT` rounds."""
        self._round = decided + 1
        self._close([key for key in self._views if key[0] < self.oldest])
        self._wake()

    def _close(self, keys: list[Key]) -> None:
        for key in keys:
            self._views.pop(key).close()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()


def open_view(exchange: ev.Exchange) -> View:
    """Where the slices of an exchange are kept, and of many groups its bundles too."""
    if exchange.plan is not None:
        return View(exchange, exchange.plan.roster, beside=View(exchange, exchange.plan.roster))
    return View(exchange, roster_digest(tuple(commit.raw for commit in exchange.commits)))
