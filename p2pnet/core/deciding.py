"""Decide one value per round: Tendermint (arXiv 1807.04938, algorithm 1), its lock rules unchanged.

Pure bookkeeping over views, proposals and votes. What a value means, whether it is valid, who proposes and how votes
travel is the round's business. A peer outside the electorate runs the same machine and casts nothing. Line numbers in
the comments are those of algorithm 1. Contract: protocols/round-1.md, section Deciding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2pnet.core.state import quorum
from p2pnet.identity import PeerId
from p2pnet.wire.round import VIEW_MAX, Phase

NIL = b""
VIEWS_AHEAD = 64  # votes for views further on than this are not kept, only that their author is there
VIEWS_BACK = 64  # votes of views further back than this are dropped, but for the one of the lock
PROOFS_KEPT = 32  # of my prepares of a value, the latest so many are sent again
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
        self._doubted: set[bytes] = set()
        self._votes: dict[tuple[int, Phase], dict[bytes, dict[PeerId, bytes]]] = {}  # value -> voter -> signature
        self._voted: dict[tuple[int, Phase], set[PeerId]] = {}
        self._latest: dict[PeerId, int] = {}  # the latest view each voter was heard in, however far ahead
        self._leap_s = -math.inf  # no far leap before
        self._decided: tuple[int, bytes] | None = None  # more than 2/3 sealed it
        self._announced: set[tuple[int, bytes]] = set()  # Prepared quorums already reported

    def restore(self, votes: Mapping[tuple[int, Phase], tuple[bytes, bytes]], held: Iterable[bytes]) -> None:
        """Take up where a stopped process left off.

        votes: its own, with their signatures; what it sealed last is its lock.   held: values that it checked.
        """
        self._checked.update(held)
        self.cast = {slot: value for slot, (value, _) in votes.items()}
        seals = [(view, value) for (view, phase), value in self.cast.items() if phase is Phase.SEAL and value]
        self.locked = self.valid = max(seals) if seals else None
        self.view = max((view for view, _ in votes), default=0)
        phases = [phase for view, phase in votes if view == self.view]
        self.step = 2 if Phase.SEAL in phases else 1 if phases else 0
        for (view, phase), (value, signature) in votes.items():
            self._count_in(view, phase, value, {self.me: signature})

    def growth(self) -> float:
        """How much longer this view waits than the first."""
        return float(min(VIEW_GROWTH ** min(self.view, 64), VIEW_GROWTH_MAX))

    def propose(self, view: int, value: bytes, valid_view: int | None, now_s: float) -> list[Action]:
        """Take the proposal of a view; the first one of its proposer counts."""
        if self.view <= view <= self.view + VIEWS_AHEAD:
            self._proposed.setdefault(view, (value, valid_view))
        return self._run(now_s)

    def check(self, value: bytes, is_valid: bool, now_s: float) -> list[Action]:
        """Hear whether a value is held and right; what is malformed stays so."""
        (self._checked if is_valid else self._refused).add(value)
        return self._run(now_s)

    def doubt(self, value: bytes, now_s: float) -> list[Action]:
        """Hear that a value is held and well formed, and that my audit found a lie in it.

        I do not prepare it of my own accord. But audits draw different leaves, so voters may differ about it, and
        Tendermint asks that they agree on what is valid: once more than 2/3 have prepared it I follow the lock rules,
        or those that locked it and those that caught the lie would wait for each other for ever. Its author can be
        proved to have lied afterwards.
        """
        self._doubted.add(value)
        return self._run(now_s)

    def vote(self, peer: PeerId, view: int, phase: Phase, value: bytes, signature: bytes, now_s: float) -> list[Action]:
        """Count a vote whose signature is right; a second vote of the same peer in the same slot is not counted."""
        if peer not in self.electorate or not 0 <= view <= VIEW_MAX:
            return []
        news = view > self._latest.get(peer, -1)
        self._latest[peer] = max(view, self._latest.get(peer, -1))
        near = self.view - VIEWS_BACK <= view <= self.view + VIEWS_AHEAD
        if near and peer not in self._voted.get((view, phase), ()):
            self._count_in(view, phase, value, {peer: signature})
            news = True
        return self._run(now_s) if news else []

    def bundle(
        self, view: int, phase: Phase, value: bytes, endorsements: Mapping[PeerId, bytes], now_s: float
    ) -> list[Action]:
        """Count votes that came together, signatures checked.

        A whole quorum counts as it is, in any view, whatever its members told us one by one: who votes twice must not
        hide from us what the others have seen.
        """
        if len(self.electorate.intersection(endorsements)) < self.needed:
            actions = []
            for peer, signature in endorsements.items():
                actions += self.vote(peer, view, phase, value, signature, now_s)
            return actions
        voters = {peer: signature for peer, signature in endorsements.items() if peer in self.electorate}
        for peer in voters:
            self._latest[peer] = max(view, self._latest.get(peer, -1))
        self._count_in(view, phase, value, voters)
        return self._run(now_s)

    def expire(self, now_s: float) -> list[Action]:
        """The propose step took too long (line 57)."""
        return self._run(now_s, self._cast(Phase.PREPARE, NIL)) if self.step == 0 and self.sealed is None else []

    def tick(self, now_s: float) -> list[Action]:
        """The prepare or seal step took too long with more than 2/3 heard (lines 61 and 65)."""
        first: list[Action] = []
        if self.deadline_s is not None and now_s >= self.deadline_s and self.sealed is None:
            self.deadline_s = None
            if self.step == 1 and self._count(self.view, Phase.PREPARE) >= self.needed:
                first = self._cast(Phase.SEAL, NIL)
            elif self._count(self.view, Phase.SEAL) >= self.needed:
                first = self._enter(self.view + 1)
        return self._run(now_s, first)

    def own_votes(self, asked: int | None = None) -> list[tuple[int, Phase, bytes]]:
        """My votes that somebody may lack: of this view, the last, the one asked for, and what can prove a value.

        A voter that fell behind needs the votes of its own view to leave it; a locked one can only be heard with the
        prepares of the view it locked in (line 28), which nobody else keeps when all restart.
        """
        views = {self.view, self.view - 1, asked}
        proofs = sorted((view for (view, phase), value in self.cast.items() if value and phase is Phase.PREPARE))
        views.update(proofs[-PROOFS_KEPT:])
        if self.locked:
            views.add(self.locked[0])
        return [(view, phase, value) for (view, phase), value in self.cast.items() if view in views]

    def ahead(self) -> bool:
        """Tell whether a voter was heard in a later view than this one."""
        return any(view > self.view for view in self._latest.values())

    def begun(self) -> bool:
        """Tell whether voting has begun: over 1/3 voted in this view or later, so at least one honest voter did."""
        weak = len(self.electorate) - self.needed + 1
        return sum(view >= self.view for view in self._latest.values()) >= weak

    def voters(self) -> set[PeerId]:
        """Who has cast the vote of this view that I wait for, or is in a later view."""
        phase = Phase.SEAL if self.step == int(Phase.SEAL) else Phase.PREPARE
        later = {peer for peer, view in self._latest.items() if view > self.view}
        return later | self._voted.get((self.view, phase), set())

    def present(self) -> set[PeerId]:
        """Who has cast any vote of this view, or is in a later view."""
        cast = (self._voted.get((self.view, phase), set()) for phase in Phase)
        return {peer for peer, view in self._latest.items() if view > self.view}.union(*cast)

    def endorsements(self, view: int, phase: Phase, value: bytes) -> dict[PeerId, bytes]:
        """The signatures under this vote, by peer."""
        return dict(self._votes.get((view, phase), {}).get(value, {}))

    def has_quorum(self, view: int, phase: Phase, value: bytes) -> bool:
        """Tell whether more than 2/3 voted for this value."""
        return len(self._votes.get((view, phase), {}).get(value, ())) >= self.needed

    def _run(self, now_s: float, first: list[Action] | None = None) -> list[Action]:
        """Apply every rule until none has anything more to do."""
        actions = first or []
        while self.sealed is None:
            new = self._seals() or self._skip(now_s) or self._prepare() or self._seal(now_s) or self._advance(now_s)
            if not new:
                break
            actions += new
        return [action for action in actions if action is not _MOVED]

    def _prepare(self) -> list[Action]:
        """Lines 22 to 33: prepare the proposal of this view if the lock allows it."""
        if self.step != 0 or self.view not in self._proposed:
            return []
        value, valid_view = self._proposed[self.view]
        if value in self._refused or (value in self._doubted and valid_view is None):
            return self._cast(Phase.PREPARE, NIL)
        if value not in self._checked and value not in self._doubted:
            return []
        if valid_view is None:
            free = self.locked is None or self.locked[1] == value
        elif valid_view < self.view and self.has_quorum(valid_view, Phase.PREPARE, value):
            free = self.locked is None or self.locked[0] <= valid_view or self.locked[1] == value
        else:
            return []  # line 28: not before more than 2/3 of the prepares it names are here
        return self._cast(Phase.PREPARE, value if free else NIL)

    def _seal(self, now_s: float) -> list[Action]:
        """Lines 34 to 46: lock and seal what more than 2/3 prepared; seal nil when they prepared nil."""
        value = self._quorum_value(self.view, Phase.PREPARE)
        held = value in self._checked or value in self._doubted
        if value and held and (self.view, value) not in self._announced:
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
        if self._decided is None:
            return []
        view, value = self._decided
        self.sealed = Sealed(view, value, self.endorsements(view, Phase.SEAL, value))
        return [self.sealed]

    def _advance(self, now_s: float) -> list[Action]:
        """Lines 47 and 65: to the next view when this one decided nothing."""
        if self._quorum_value(self.view, Phase.SEAL) == NIL:
            return self._enter(self.view + 1)
        if self.step == 2 and self.deadline_s is None and self._count(self.view, Phase.SEAL) >= self.needed:
            self.deadline_s = now_s + self.timeout_s * self.growth()
        return []

    def _skip(self, now_s: float) -> list[Action]:
        """Line 55: more than 1/3 are in a later view, so at least one honest voter is.

        Far leaps go by VIEWS_AHEAD at a time, and each wants to be heard of anew: even too many liars cannot use up the
        views, and when they stop the others come to rest.
        """
        weak = len(self.electorate) - self.needed + 1
        later = [view for view in self._latest.values() if view > self.view]
        if len(later) < weak:
            return []
        target = sorted(later, reverse=True)[weak - 1]
        if target > self.view + VIEWS_AHEAD:
            if now_s < self._leap_s:
                return []
            self._leap_s = now_s + self.timeout_s
            target = self.view + VIEWS_AHEAD
            self._latest = {peer: view for peer, view in self._latest.items() if view <= target}
        return self._enter(target)

    def _enter(self, view: int) -> list[Action]:
        if view > VIEW_MAX:
            return []
        self.view, self.step, self.deadline_s = view, 0, None
        self._proposed = {at: proposed for at, proposed in self._proposed.items() if at >= view}
        kept = {mine[0] for mine in (self.locked, self.valid) if mine}
        for slot in [slot for slot in self._votes if slot[0] < view - VIEWS_BACK and slot[0] not in kept]:
            del self._votes[slot], self._voted[slot]
        return [Entered(view)]

    def _cast(self, phase: Phase, value: bytes) -> list[Action]:
        """Vote once in a slot; what a stopped process of ours signed there before stays our vote."""
        self.step, self.deadline_s = int(phase), None
        if self.me not in self.electorate:
            return [_MOVED]
        value = self.cast.setdefault((self.view, phase), value)
        return [Cast(self.view, phase, value)]

    def _count_in(self, view: int, phase: Phase, value: bytes, endorsements: Mapping[PeerId, bytes]) -> None:
        found = self._votes.setdefault((view, phase), {}).setdefault(value, {})
        found.update(endorsements)
        self._voted.setdefault((view, phase), set()).update(endorsements)
        if phase is Phase.SEAL and value and len(found) >= self.needed:
            self._decided = self._decided or (view, value)

    def _count(self, view: int, phase: Phase) -> int:
        return len(self._voted.get((view, phase), ()))

    def _quorum_value(self, view: int, phase: Phase) -> bytes | None:
        votes = self._votes.get((view, phase), {})
        return next((value for value, found in votes.items() if len(found) >= self.needed), None)


_MOVED = Entered(-1)  # an observer's step: something changed, nothing is to be done
