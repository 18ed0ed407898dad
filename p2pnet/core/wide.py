"""Follow the exchange of many groups: slices to one's group, bundles to the parts' reducers, columns back. Pure.

Contract: protocols/groups-1.md, R10 to R18.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pnet.core.columns import Column, Plan, judge_column, judge_reduced, taken_masks, void_columns
from p2pnet.core.events import Effect, Exchange, Scatter
from p2pnet.core.group_events import Forward, Give, PartReturned, Root
from p2pnet.core.part_reducing import PartReducing
from p2pnet.core.parts import Part, Piece
from p2pnet.core.stages import (
    ALL,
    BACKUP_AT,
    ELSEWHERE_AT,
    FORWARD_AT,
    GIVE_AT,
    LATE_COLUMN,
    PROPOSE_AT,
    REDUCE_AT,
    TURN_AT,
    WIDE_LATE_PROPOSAL,
    WIDE_VOID_AT,
    Stages,
)  # fmt: skip
from p2pnet.identity import PeerId
from p2pnet.wire.round import WideReduced, WideRoster
from p2pnet.wire.signing import Signed, Verify

BESIDE = 3  # tries for a column in my own group, two with who collects it and one with its backup; then in others
ASKED_MAX = 5


class WideExchange:
    """The exchange of one roster of many groups, as one peer sees it.

    A peer has up to three roles: it contributes slices; it collects the slices of its group for one column (and backs
    another up); it reduces one part of that column over all groups (and backs another up).
    """

    def __init__(
        self,
        me: PeerId,
        roster: Signed[WideRoster],
        plan: Plan,
        timeout_s: float,
        now_s: float,
        verify: Verify,
        grace_s: float,
        resting: frozenset[PeerId] = frozenset(),
    ) -> None:
        """resting: whose slices count when they are here, and are not waited for."""
        self.me = me
        self.roster = roster
        self.digest = plan.roster
        self.plan = plan
        self.round, self.view = plan.round, plan.view
        self.commits = plan.commits
        self.weights = plan.weights
        self.group = plan.group_of(me)
        self.parts = plan.columns[self.group]  # the columns, as the peers of my group see them
        self.members = plan.groups[self.group]
        self.start_s = now_s
        self.timeout_s = timeout_s
        self.stages = Stages(now_s, timeout_s, grace_s)
        self.reducing = PartReducing(me, plan, self.stages)
        self.complete_s: float | None = None  # since when all columns are here
        self.columns: dict[int, Column] = {}
        self._verify = verify
        self._resting = resting
        self._open: dict[int, set[PeerId]] = {}  # by column, the streams on which it will come
        self._asked: dict[int, int] = {}  # by column, how many were asked for it
        self._slices: dict[int, set[PeerId]] = {}  # by column that I collect
        self._forwarded: set[int] = set()
        self._returned: dict[int, dict[int, Signed[WideReduced]]] = {}  # by column and group
        self._out: dict[int, dict[int, Part]] = {}  # and the parts that did not come back yet
        self._retried: set[int] = set()  # parts whose bundle was sent again
        self._turned: set[int] = set()  # and those whose bundle went to the backup
        self._lost: set[int] = set()  # parts that neither of the two gave
        self._given: set[int] = set()
        self._contribute = False

    # What the round asks of an exchange, as of RosterExchange --------------------------------------------------------

    @property
    def is_late(self) -> bool:
        """Whether the reducers have stopped waiting."""
        return self.stages.is_over(REDUCE_AT)

    @property
    def void_s(self) -> float:
        """When VOID may be proposed, and prepared."""
        return self.stages.at_s(WIDE_VOID_AT)

    @property
    def give_up_s(self) -> float:
        """When the view is given up."""
        return self.stages.at_s(WIDE_LATE_PROPOSAL)

    @property
    def streams_s(self) -> float:
        """Until when results are left to come on the streams that took slices."""
        return self.stages.at_s(ELSEWHERE_AT)

    @property
    def late_s(self) -> float:
        """From when on it is worth asking what others have."""
        return self.stages.at_s(REDUCE_AT)

    def reduces(self, part: int) -> bool:
        """Tell whether this peer collects a column, not as a backup."""
        return 0 <= part < len(self.parts) and self.parts[part].reducer == self.me

    def lacking(self, down: frozenset[PeerId]) -> tuple[int, int]:
        """How much of what should be here by the deadline is not, and of how much.

        Who collects a column counts slices, who does not columns.
        """
        mine = [part.index for part in self.parts if part.reducer == self.me]
        if mine:
            here = self._slices.get(mine[0], set())
            wanted = [peer for peer in self.members if peer not in down and peer not in self._resting]
            return sum(peer not in here for peer in wanted), len(wanted)
        return len(self.parts) - len(self.columns), len(self.parts)

    def deadline_s(self) -> float | None:
        """When the next thing is late."""
        return self.stages.deadline_s

    def begin(self, contribute: bool) -> list[Effect]:
        """Open the exchange, send every slice to who collects its column, and wait there for the result.

        contribute: my commit is in the roster, and I hold its payload; else I only listen.
        """
        self._contribute = contribute
        effects: list[Effect] = [Exchange(self.round, self.view, self.commits, self.weights, self.parts, self.plan)]
        first = self.plan.places.get(self.me, (0, 0))[1] % len(self.parts)
        for part in (*self.parts[first:], *self.parts[:first]):  # from my own on, or all would begin with the same one
            effects += self._ask(part.index)
        return effects

    def tick(self, now_s: float, down: frozenset[PeerId]) -> list[Effect]:
        """Act on what is late: go on without the missing, turn to the backups."""
        if self.complete_s is None and len(self.columns) == len(self.parts):
            self.complete_s = now_s
        effects: list[Effect] = []
        for at, number in self.stages.tick(now_s):
            collected = sorted(self._slices.keys() | {part.index for part in self.parts if part.reducer == self.me})
            columns = collected if number == ALL else [number]
            if at == FORWARD_AT:
                for column in columns:
                    effects += self._forward(column, down, now_s)
            elif at in (REDUCE_AT, BACKUP_AT):
                effects += self.reducing.be_late()
            elif at == TURN_AT:
                for column in columns:
                    self.stages.soon(GIVE_AT, column, now_s)
                    effects += [effect for late in self._unreturned(column).values() for effect in self._turn(late)]
            elif at == GIVE_AT:
                for column in columns:
                    effects += self._give(column, now_s)
            elif at in (LATE_COLUMN, ELSEWHERE_AT):
                self.stages.soon(ELSEWHERE_AT, 0, now_s)
                effects += self._ask_elsewhere(at)
        return effects

    def expected(self, pieces: Sequence[Piece]) -> set[Root]:
        """Which of these columns will come on streams that took a slice of mine."""
        waiting = {column for column, streams in self._open.items() if streams and column not in self.columns}
        return {piece.root for piece in pieces if piece.part.index in waiting}

    def result(self) -> tuple[Column, ...] | None:
        """The columns, by number; None while one is missing, before PROPOSE_AT. Parts that nobody gave are void."""
        late = self.stages.is_over(PROPOSE_AT)
        found: list[Column] = []
        for part in self.parts:
            column = self.columns.get(part.index)
            if column is None and late:
                column = void_columns(self.plan, self._verify)[part.index]
            if column is None:
                return None
            found.append(column)
        return tuple(found) if any(column.digests for column in found) else None

    # Contributing ----------------------------------------------------------------------------------------------------

    def scatter_failed(self, column: int, to: PeerId) -> list[Effect]:
        """The stream to who collects a column broke: try once more, turn to its backup, then to another group."""
        if to not in self._open.get(column, ()):
            return []
        self._open[column].discard(to)
        return self._ask(column) if column not in self.columns else []

    def show(self, column: Column, now_s: float) -> None:
        """A column of this exchange is here."""
        self._open.pop(column.index, None)
        known = self.columns.get(column.index)
        if known is None or column.digests > known.digests:
            self.columns[column.index] = column
        self.stages.hurry(LATE_COLUMN, 0, len(self.columns), len(self.parts), now_s)

    def mask(self, column: Column) -> int:
        """By bits, which parts of this column have my slice among their inputs."""
        place = self.plan.places.get(self.me)
        return taken_masks(self.plan, column, self.group)[place[1]] if place is not None else 0

    def _ask(self, index: int) -> list[Effect]:
        """Send my slice of a column to the next of those that may give the column, and wait there for it."""
        part, asked = self.parts[index], self._asked.get(index, 0)
        self._asked[index] = asked + 1
        if asked >= ASKED_MAX:
            return []
        group = (self.group + 1 + asked - BESIDE) % len(self.plan.groups)
        beside = self.plan.columns[group][index].reducer
        to = (part.reducer, part.reducer, part.backup)[asked] if asked < BESIDE else beside
        if to in self._open.get(index, ()):
            return []
        self._open.setdefault(index, set()).add(to)
        listens = not self._contribute or asked >= BESIDE
        return [Scatter(self.round, self.view, part, to, listens)]

    def _ask_elsewhere(self, at: float) -> list[Effect]:
        """Ask other groups for the columns that are late: they have what mine has not."""
        effects: list[Effect] = []
        least = BESIDE if at == LATE_COLUMN else BESIDE + 1
        for part in self.parts:
            if part.index not in self.columns and self._asked[part.index] <= least:
                self._asked[part.index] = least
                effects += self._ask(part.index)
        return effects

    # Collecting ------------------------------------------------------------------------------------------------------

    def arrived(self, column: int, peer: PeerId, down: frozenset[PeerId], now_s: float) -> list[Effect]:
        """Somebody sent its slice of a column."""
        if not 0 <= column < len(self.parts) or self.me not in (self.parts[column].reducer, self.parts[column].backup):
            return []
        slices = self._slices.setdefault(column, set())
        if peer in self.plan.members[self.group]:
            slices.add(peer)
        self.stages.hurry(FORWARD_AT, column, len(slices), len(self.members), now_s)
        return self._forward(column, down, now_s)

    def returned_before(self, part: int) -> Signed[WideReduced] | None:
        """What came back of a part for my bundle."""
        column, group = divmod(part, len(self.plan.groups))
        return self._returned.get(column, {}).get(group)

    def returned(self, event: PartReturned, now_s: float) -> list[Effect]:
        """A reduced part came back for my bundle."""
        signed = event.signed
        if judge_reduced(self.plan, signed) is not None:
            return []
        column, group = divmod(signed.message.part, len(self.plan.groups))
        if column not in self._forwarded:
            return []
        found, out = self._returned.setdefault(column, {}), self._unreturned(column)
        part = self.plan.parts[signed.message.part]
        if group not in found or (part is not None and signed.peer == part.reducer):
            found[group] = signed
        out.pop(group, None)
        self.stages.hurry(TURN_AT, column, len(found), len(found) + len(out), now_s)
        return self._give(column, now_s)

    def forward_failed(self, part: int, to: PeerId, now_s: float) -> list[Effect]:
        """A part's reducer cannot be reached, or its stream broke: try once more, then turn to its backup."""
        spec = self.plan.parts[part] if 0 <= part < len(self.plan.parts) else None
        if spec is not None and to == spec.backup:  # then that part is void, and nobody waits for it
            self._lost.add(part)
            return self._give(part // len(self.plan.groups), now_s)
        if spec is None or to != spec.reducer:
            return []
        column, group = divmod(part, len(self.plan.groups))
        if part in self._retried or column not in self._forwarded or group in self._returned.get(column, ()):
            return self._turn(spec)
        self._retried.add(part)
        return [Forward(self.round, self.view, spec, to, self.group, frozenset(self._slices[column]))]

    def _forward(self, column: int, down: frozenset[PeerId], now_s: float) -> list[Effect]:
        """Send bundles when all slices of my group are in, or when it is late.

        A backup waits for the same, but not for who it stands in for. Who only listens is answered, and not waited for.
        """
        part, slices = self.parts[column], self._slices.setdefault(column, set())
        expected = self.members if self.me == part.reducer else [peer for peer in self.members if peer != part.reducer]
        complete = len(slices) + len(down) + len(self._resting) >= len(expected) and all(
            peer in slices or peer in down or peer in self._resting for peer in expected
        )
        if column in self._forwarded or not (complete or self.stages.is_over(FORWARD_AT, column)):
            return []
        self._forwarded.add(column)
        senders = frozenset(slices)
        around = self.plan.parts_of(column)
        parts = [each for each in (*around[self.group :], *around[: self.group]) if each is not None]
        effects = [Forward(self.round, self.view, each, each.reducer, self.group, senders) for each in parts]
        return [*effects, *self._give(column, now_s)]

    def _turn(self, part: Part) -> list[Effect]:
        """Send a bundle to the backup of a part that did not come back."""
        column, group = divmod(part.index, len(self.plan.groups))
        if part.index in self._turned or part.backup == part.reducer or group in self._returned.get(column, ()):
            return []
        if column not in self._forwarded:
            return []
        self._turned.add(part.index)
        return [Forward(self.round, self.view, part, part.backup, self.group, frozenset(self._slices[column]))]

    def _unreturned(self, column: int) -> dict[int, Part]:
        """The parts of a column that did not come back, by group."""
        if column not in self._out:
            parts = enumerate(self.plan.parts_of(column))
            self._out[column] = {group: part for group, part in parts if part is not None}
        return self._out[column]

    def _give(self, column: int, now_s: float) -> list[Effect]:
        """Give my group a column when all its parts are back, or when it is late."""
        late = self.stages.is_over(GIVE_AT, column)
        found = self._returned.get(column, {})
        waiting = any(part.index not in self._lost for part in self._unreturned(column).values())
        if column in self._given or not found or (waiting and not late):
            return []
        self._given.add(column)
        listing = tuple(found[group].raw if group in found else b"" for group in range(len(self.plan.groups)))
        judged = judge_column(self.plan, column, listing, self._verify)
        self.show(judged, now_s)
        return [Give(self.round, self.view, column, judged.digest, judged.listing)]
