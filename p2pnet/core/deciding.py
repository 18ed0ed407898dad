"""Decide one value per round: Tendermint (arXiv 1807.04938, algorithm 1), its lock rules unchanged.

Pure bookkeeping over views, proposals and votes. What a value means, whether it is valid, who proposes and how votes
travel is the round's business. A peer outside the electorate runs the same machine and casts nothing. Line numbers in
the comments are those of algorithm 1. Contract: protocols/round-1.md, section Deciding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pnet.core.state import quorum
from p2pnet.identity import PeerId
from p2pnet.wire.round import VIEW_MAX, Phase

NIL = b""
VIEWS_AHEAD = 64  # votes for views further on than this are not kept
VIEW_GROWTH = 1.5
VIEW_GROWTH_MAX = 8.0


@dataclass(frozen=True, slots=True)
class Cast:
    """Sign and send this vote."""

    view: int
    phase: Phase
    value: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """More than 2/3 prepared this value in this view."""

    view: int
    value: bytes
    endorsements: Mapping[PeerId, bytes]  # voter -> signature


@dataclass(frozen=True, slots=True)
class Sealed:
    """More than 2/3 sealed this value: it is decided."""

    view: int
    value: bytes
    endorsements: Mapping[PeerId, bytes]


@dataclass(frozen=True, slots=True)
class Entered:
    """A new view began."""

    view: int


Action = Cast | Prepared | Sealed | Entered


class Deciding:
    """The votes of one round as one peer sees them."""

    def __init__(self, electorate: Iterable[PeerId], me: PeerId, timeout_s: float) -> None:
        self.electorate = frozenset(electorate)
        self.needed = quorum(len(self.electorate))
        self.me = me
        self.timeout_s = timeout_s  # of the prepare and the seal step in view 0
        self.view = 0
        self.step = 0  # 0 propose, 1 prepared, 2 sealed
        self.locked: tuple[int, bytes] | None = None
        self.valid: tuple[int, bytes] | None = None
        self.sealed: Sealed | None = None
        self.deadline_s: float | None = None
        self.cast: dict[tuple[int, Phase], bytes] = {}
        self._proposed: dict[int, tuple[bytes, int | None]] = {}  # view -> value, valid view
        self._checked: set[bytes] = set()
        self._refused: set[bytes] = set()
        self._votes: dict[tuple[int, Phase], dict[PeerId, tuple[bytes, bytes]]] = {}
        self._announced: set[tuple[int, bytes]] = set()  # Prepared quorums already reported

    def restore(self, votes: Mapping[tuple[int, Phase], bytes]) -> None:
        """Take up where a stopped process left off: its own signed votes; the last value it sealed is its lock."""
        self.cast = dict(votes)
        seals = [(view, value) for (view, phase), value in votes.items() if phase is Phase.SEAL and value]
        self.locked = self.valid = max(seals) if seals else None
        self.view = max((view for view, _ in votes), default=0)
        phases = [phase for view, phase in votes if view == self.view]
        self.step = 2 if Phase.SEAL in phases else 1 if phases else 0

    def growth(self) -> float:
        """How much longer this view waits than the first."""
        return float(min(VIEW_GROWTH ** min(self.view, 64), VIEW_GROWTH_MAX))

    def propose(self, view: int, value: bytes, valid_view: int | None, now_s: float) -> list[Action]:
        """Take the proposal of a view; the first one of its proposer counts."""
        if self.view <= view <= self.view + VIEWS_AHEAD:
            self._proposed.setdefault(view, (value, valid_view))
        return self._run(now_s)

    def check(self, value: bytes, is_valid: bool, now_s: float) -> list[Action]:
        """Hear whether a value is held and right."""
        (self._checked if is_valid else self._refused).add(value)
        return self._run(now_s)

    def vote(self, peer: PeerId, view: int, phase: Phase, value: bytes, signature: bytes, now_s: float) -> list[Action]:
        """Count a vote whose signature is right; a second vote of the same peer in the same slot is not counted."""
        if peer in self.electorate and 0 <= view <= min(self.view + VIEWS_AHEAD, VIEW_MAX):
            self._votes.setdefault((view, phase), {}).setdefault(peer, (value, signature))
        return self._run(now_s)

    def expire(self, now_s: float) -> list[Action]:
        """The propose step took too long (line 57)."""
        return self._run(now_s, self._cast(Phase.PREPARE, NIL)) if self.step == 0 else []

    def tick(self, now_s: float) -> list[Action]:
        """The prepare or seal step took too long with more than 2/3 heard (lines 61 and 65)."""
        if self.deadline_s is None or now_s < self.deadline_s:
            return []
        self.deadline_s = None
        if self.step == 1 and self._count(self.view, Phase.PREPARE) >= self.needed:
            return self._run(now_s, self._cast(Phase.SEAL, NIL))
        if self._count(self.view, Phase.SEAL) >= self.needed:
            return self._run(now_s, self._enter(self.view + 1))
        return []

    def own_votes(self) -> list[tuple[int, Phase, bytes]]:
        """The votes of the current view and of the lock, to be sent again."""
        views = {self.view} | ({self.locked[0]} if self.locked else set())
        return [(view, phase, value) for (view, phase), value in self.cast.items() if view in views]

    def heard(self, view: int) -> frozenset[PeerId]:
        """Who voted in this view or a later one."""
        return frozenset(peer for (at, _), votes in self._votes.items() if at >= view for peer in votes)

    def endorsements(self, view: int, phase: Phase, value: bytes) -> dict[PeerId, bytes]:
        """The signatures under this vote, by peer."""
        votes = self._votes.get((view, phase), {})
        return {peer: signature for peer, (voted, signature) in votes.items() if voted == value}

    def _run(self, now_s: float, first: list[Action] | None = None) -> list[Action]:
        """Apply every rule until none has anything more to do."""
        actions = first or []
        while self.sealed is None:
            new = self._seals() or self._skip() or self._prepare() or self._seal(now_s) or self._advance(now_s)
            if not new:
                break
            actions += new
        return [action for action in actions if action is not _MOVED]

    def _prepare(self) -> list[Action]:
        """Lines 22 to 33: prepare the proposal of this view if the lock allows it."""
        if self.step != 0 or self.view not in self._proposed:
            return []
        value, valid_view = self._proposed[self.view]
        if value in self._refused:
            return self._cast(Phase.PREPARE, NIL)
        if value not in self._checked:
            return []
        if valid_view is None:
            free = self.locked is None or self.locked[1] == value
        elif valid_view < self.view and self._has_quorum(valid_view, Phase.PREPARE, value):
            free = self.locked is None or self.locked[0] <= valid_view or self.locked[1] == value
        else:
            return []  # line 28: not before more than 2/3 of the prepares it names are here
        return self._cast(Phase.PREPARE, value if free else NIL)

    def _seal(self, now_s: float) -> list[Action]:
        """Lines 34 to 46: lock and seal what more than 2/3 prepared; seal nil when they prepared nil."""
        value = self._quorum_value(self.view, Phase.PREPARE)
        if value and value in self._checked and (self.view, value) not in self._announced:
            self._announced.add((self.view, value))
            self.valid = (self.view, value)
            actions: list[Action] = [Prepared(self.view, value, self.endorsements(self.view, Phase.PREPARE, value))]
            if self.step <= 1:
                self.locked = (self.view, value)
                actions += self._cast(Phase.SEAL, value)
            return actions
        if self.step == 1 and value == NIL:
            return self._cast(Phase.SEAL, NIL)
        if self.step == 1 and self.deadline_s is None and self._count(self.view, Phase.PREPARE) >= self.needed:
            self.deadline_s = now_s + self.timeout_s * self.growth()  # line 34
        return []

    def _seals(self) -> list[Action]:
        """Line 49: more than 2/3 sealed one value, in any view."""
        for view, phase in self._votes:
            if phase is Phase.SEAL and (value := self._quorum_value(view, phase)):
                self.sealed = Sealed(view, value, self.endorsements(view, phase, value))
                return [self.sealed]
        return []

    def _advance(self, now_s: float) -> list[Action]:
        """Lines 47 and 65: to the next view when this one decided nothing."""
        if self._quorum_value(self.view, Phase.SEAL) == NIL:
            return self._enter(self.view + 1)
        if self.step == 2 and self.deadline_s is None and self._count(self.view, Phase.SEAL) >= self.needed:
            self.deadline_s = now_s + self.timeout_s * self.growth()
        return []

    def _skip(self) -> list[Action]:
        """Line 55: more than 1/3 are in a later view, so at least one honest voter is."""
        weak = len(self.electorate) - self.needed + 1
        views = sorted({view for view, _ in self._votes if view > self.view}, reverse=True)
        for view in views:
            if len(self.heard(view)) >= weak:
                return self._enter(view)
        return []

    def _enter(self, view: int) -> list[Action]:
        if view > VIEW_MAX:
            return []
        self.view, self.step, self.deadline_s = view, 0, None
        self._proposed = {at: proposed for at, proposed in self._proposed.items() if at >= view}
        return [Entered(view)]

    def _cast(self, phase: Phase, value: bytes) -> list[Action]:
        """Vote once in a slot; what a stopped process of ours signed there before stays our vote."""
        self.step, self.deadline_s = int(phase), None
        if self.me not in self.electorate:
            return [_MOVED]
        value = self.cast.setdefault((self.view, phase), value)
        return [Cast(self.view, phase, value)]

    def _count(self, view: int, phase: Phase) -> int:
        return len(self._votes.get((view, phase), {}))

    def _has_quorum(self, view: int, phase: Phase, value: bytes) -> bool:
        return len(self.endorsements(view, phase, value)) >= self.needed

    def _quorum_value(self, view: int, phase: Phase) -> bytes | None:
        counts: dict[bytes, int] = {}
        for value, _ in self._votes.get((view, phase), {}).values():
            counts[value] = counts.get(value, 0) + 1
        return next((value for value, count in counts.items() if count >= self.needed), None)


_MOVED = Entered(-1)  # an observer's step: something changed, nothing is to be done
