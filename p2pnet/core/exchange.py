"""Follow one roster's exchange: slices out, reductions in, backups after the deadline. Pure.

Contract: protocols/round-1.md, R30 to R36.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnet.core.events import Answer, Effect, Exchange, Gather, Reduce, ReduceDone, Scatter
from p2pnet.core.group_events import Root
from p2pnet.core.parts import Part, Piece
from p2pnet.identity import PeerId
from p2pnet.wire.round import Commit, Reduced, Roster
from p2pnet.wire.signing import Signed

LATE_REDUCE = 1.0  # in units of the exchange's time-out: reducers stop waiting, contributors turn to the backups
LATE_BACKUP = 1.6  # backups stop waiting
VOID_AT = 2.0  # a proposer without a result proposes VOID, before the view is given up
LATE_PROPOSAL = 2.5  # the view is given up


class RosterExchange:
    """The exchange of one roster in one view, as one member sees it."""

    def __init__(
        self,
        me: PeerId,
        roster: Signed[Roster],
        commits: tuple[Signed[Commit], ...],
        parts: tuple[Part, ...],
        weights: tuple[int, ...],
        timeout_s: float,
        now_s: float,
        resting: frozenset[PeerId] = frozenset(),
    ) -> None:
        """resting: whose slices count when they are here, and are not waited for."""
        self.me = me
        self._resting = resting
        self.roster = roster
        self.digest = roster.message.digest()
        self.view = roster.message.view
        self.round = roster.message.round
        self.commits = commits
        self.parts = parts
        self.weights = weights
        self.start_s = now_s
        self.timeout_s = timeout_s
        self.peers = tuple(commit.peer for commit in commits)
        self.reduced: dict[int, dict[PeerId, Signed[Reduced]]] = {part.index: {} for part in parts}
        self._arrived: dict[int, set[PeerId]] = {part.index: set() for part in parts}
        self._reducing: set[int] = set()
        self._outstanding: set[tuple[int, PeerId]] = set()  # slices sent whose result will come on the same stream
        self._contribute = False
        self._stage = 0  # deadlines passed
        self.complete_s: float | None = None  # since when a digest of each part is here

    def begin(self, contribute: bool) -> list[Effect]:
        """Open the exchange and send every slice to its reducer.

        contribute: my commit is in the roster, and I hold its payload.
        """
        effects: list[Effect] = [Exchange(self.round, self.view, self.commits, self.weights, self.parts)]
        self._contribute = contribute
        for part in self.parts if contribute else ():
            effects += self._scatter(part, part.reducer)
        return effects

    @property
    def is_late(self) -> bool:
        """Whether the reducers have stopped waiting."""
        return self._stage > 0

    @property
    def void_s(self) -> float:
        """When VOID may be proposed, and prepared."""
        return self.start_s + VOID_AT * self.timeout_s

    @property
    def give_up_s(self) -> float:
        """When the view is given up."""
        return self.start_s + LATE_PROPOSAL * self.timeout_s

    @property
    def streams_s(self) -> float:
        """Until when results are left to come on the streams that took slices."""
        return self.start_s + LATE_BACKUP * self.timeout_s

    @property
    def late_s(self) -> float:
        """From when on it is worth asking what others have."""
        return self.start_s + LATE_REDUCE * self.timeout_s

    def reduces(self, part: int) -> bool:
        """Tell whether this peer is the reducer of a part, not its backup."""
        return 0 <= part < len(self.parts) and self.parts[part].reducer == self.me

    def lacking(self, down: frozenset[PeerId]) -> tuple[int, int]:
        """How much of what should be here by the deadline is not, and of how much.

        A reducer counts the slices of those that are not gone, who does not reduce the digests of the parts.
        """
        mine = [part.index for part in self.parts if part.reducer == self.me]
        if mine:
            wanted = [peer for peer in self.peers if peer not in down | self._resting]
            return sum(peer not in self._arrived[mine[0]] for peer in wanted), len(wanted)
        return sum(not self.reduced[part.index] for part in self.parts), len(self.parts)

    def deadline_s(self) -> float | None:
        """When the next thing is late."""
        late = (LATE_REDUCE, LATE_BACKUP)
        return self.start_s + late[self._stage] * self.timeout_s if self._stage < len(late) else None

    def tick(self, now_s: float, down: frozenset[PeerId]) -> list[Effect]:
        """Act on what is late: reduce without the missing, turn to the backups."""
        effects: list[Effect] = []
        if self.complete_s is None and all(self.reduced.values()):
            self.complete_s = now_s
        while (deadline_s := self.deadline_s()) is not None and now_s >= deadline_s:
            self._stage += 1
            if self._stage == 1:
                for part in self.parts:
                    if (
                        part.backup != part.reducer
                        and part.reducer not in self.reduced[part.index]
                        and self._contribute
                    ):
                        effects += self._scatter(part, part.backup)
        for part in self.parts:
            effects += self._reduce(part, down)
        return effects

    def arrived(self, part: int, peer: PeerId, down: frozenset[PeerId]) -> list[Effect]:
        """A slice came in."""
        if not 0 <= part < len(self.parts) or peer not in self.peers:
            return []
        self._arrived[part].add(peer)
        return self._reduce(self.parts[part], down)

    def message(self, swarm: bytes, done: ReduceDone) -> Reduced:
        """What I sign of my own reduction."""
        part = self.parts[done.part]
        return Reduced(
            swarm,
            self.round,
            self.view,
            part.index,
            part.start,
            part.stop,
            self.digest,
            done.inputs,
            done.root,
            done.norms,
        )

    def answer(self, done: ReduceDone, signed: Signed[Reduced]) -> list[Effect]:
        """My own reduction is done and signed: all who wait for it get it."""
        self.reduced[done.part].setdefault(self.me, signed)
        return [Answer(self.round, self.view, done.part, done.root, signed.raw)]

    def judge(self, signed: Signed[Reduced]) -> str | None:
        """Name the rule that a reduced digest breaks, if any."""
        message = signed.message
        if message.roster != self.digest or message.view != self.view or message.part >= len(self.parts):
            return "round-1/R30"
        part = self.parts[message.part]
        if (message.start, message.stop) != (part.start, part.stop):
            return "round-1/R30"
        if signed.peer not in (part.reducer, part.backup):
            return "round-1/R31"
        if len(message.inputs) != len(self.commits) or not any(message.inputs):
            return "round-1/R32"
        return None

    def add(self, signed: Signed[Reduced], held: bool) -> list[Effect]:
        """Take a reduced digest that passed `judge`; fetch its bytes unless they are held or on their way."""
        part = signed.message.part
        self.reduced[part].setdefault(signed.peer, signed)
        if held or (part, signed.peer) in self._outstanding or signed.peer == self.me:
            return []
        return [self.gather(signed)]

    def gather(self, signed: Signed[Reduced]) -> Gather:
        """Ask for the bytes of a reduced part: its author first, then the others, from my place in the roster on."""
        part = self.parts[signed.message.part]
        place = self.peers.index(self.me) if self.me in self.peers else 0
        others = self.peers[place:] + self.peers[:place]
        sources = (signed.peer, *(peer for peer in others if peer not in (signed.peer, self.me)))
        return Gather(self.round, signed.message.root, part, sources)

    def scatter_failed(self, part: int, to: PeerId) -> list[Effect]:
        """A reducer's stream broke: fetch what it says it reduced, or turn to the backup at once."""
        self._outstanding.discard((part, to))
        if not 0 <= part < len(self.parts):
            return []
        known = self.reduced[part].get(to)
        if known is not None:
            return [self.gather(known)]
        spec = self.parts[part]
        if to == spec.reducer != spec.backup and (part, spec.backup) not in self._outstanding:
            return self._scatter(spec, spec.backup)
        return []

    def expected(self, pieces: Sequence[Piece]) -> set[Root]:
        """Which of these parts will come on streams that took a slice of mine."""
        return {piece.root for piece in pieces if (piece.part.index, piece.author) in self._outstanding}

    def result(self) -> tuple[Signed[Reduced], ...] | None:
        """One reduced digest for each part, the reducer's before its backup's; None while one is missing."""
        chosen = []
        for part in self.parts:
            found = self.reduced[part.index]
            signed = found.get(part.reducer) or found.get(part.backup)
            if signed is None:
                return None
            chosen.append(signed)
        return tuple(chosen)

    def _scatter(self, part: Part, to: PeerId) -> list[Effect]:
        self._outstanding.add((part.index, to))
        return [Scatter(self.round, self.view, part, to)]

    def _reduce(self, part: Part, down: frozenset[PeerId]) -> list[Effect]:
        """Reduce when every slice is in, or when it is late; a backup only starts when its reducer is late or gone.

        A backup does not wait for the slice of a late reducer: what keeps it from reducing keeps it from sending.
        """
        arrived = self._arrived[part.index]
        expected = self.peers
        if self.me == part.reducer:
            due = self._stage >= 1
        elif self.me == part.backup:
            due = self._stage >= 2
            expected = tuple(peer for peer in self.peers if peer != part.reducer or not self.is_late)
        else:
            return []
        gone = down | self._resting
        complete = all(peer in arrived or peer in gone for peer in expected)
        if part.index in self._reducing or not arrived or not (complete or due):
            return []
        self._reducing.add(part.index)
        return [Reduce(self.round, self.view, part, frozenset(arrived))]
