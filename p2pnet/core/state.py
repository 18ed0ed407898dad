"""What a swarm has decided about itself: members, electorate, beacon, lineage. Contract: protocols/round-1.md, State.

`SwarmState` is what every peer holds after the same decided rounds; `advance` is the only way forward, a pure function
of the decided outcome and the roster, so that anyone can recompute it from the log.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from p2pnet.core.parts import HALVINGS_MAX, Part, assign_parts
from p2pnet.core.remember import remember
from p2pnet.core.shares import Volume
from p2pnet.identity import PeerId
from p2pnet.wire.manifest import Manifest, Policy
from p2pnet.wire.round import (
    REDUCED_RAW_MAX,
    WEIGHT_MAX,
    Commit,
    Exclusion,
    Outcome,
    Reduced,
    WideOutcome,
    next_lineage,
    outcome_digest,
)
from p2pnet.wire.signing import Signed, open_signed

CHAIN_LENGTH = 1 << 16  # reveals before a peer has to register a new chain: 30 ms to build
_STRETCH = 256  # values between two that are kept
FORGET_ROUNDS = 10_000  # a member unseen for this long loses its row, and with it its seniority
FORGET_FACTOR = 64  # and so does one unseen for so many times the rounds it served: names that came once cost 4096 rows
FORGIVE_ROUNDS = 16  # decided rosters in which a slow reducer had no part, until it is tried again
EVIDENCE_ROUNDS = 256  # a lie of a round longer ago excludes nobody


@dataclass(frozen=True, slots=True)
class Member:
    """What the decided rounds say about one peer."""

    tip: bytes  # 32 bytes, the last value of its hash chain that a decided roster showed; empty in a branch: none yet
    accepted: int  # decided rosters it was in: its length of service
    joined: int  # the round of its first one
    last: int  # the round of its latest one
    halvings: int = 0  # of its rates: deadlines that it missed as a reducer and has not made good


@dataclass(frozen=True, slots=True)
class SwarmState:
    """The state before round `round`; equal on all peers with the same lineage."""

    swarm: bytes
    policy: Policy
    round: int
    lineage: bytes
    beacon: bytes
    electorate: tuple[PeerId, ...]  # sorted
    members: Mapping[PeerId, Member]
    founders: frozenset[PeerId]
    volume: Volume  # of a payload and a result; the manifest's parameters and codec decide it
    excluded: Mapping[PeerId, int] = field(default_factory=dict)  # who was proved to lie -> the round it may be back in

    @classmethod
    def genesis(cls, swarm: bytes, manifest: Manifest, volume: Volume) -> SwarmState:
        """The state before round 0."""
        return cls(
            swarm,
            manifest.policy,
            0,
            _hash(b"p2pnet/genesis/1\n", swarm),
            _hash(b"p2pnet/beacon/1\n", swarm),
            manifest.founders,
            {},
            frozenset(manifest.founders),
            volume,
        )

    def expected(self) -> frozenset[PeerId]:
        """Who should commit this round: who was in the last roster, the founders at first."""
        return _expected(self)

    def present(self, number: int) -> frozenset[PeerId]:
        """Who was in the roster of a round, as far as it was not in a later one."""
        return _present(self, number)

    def knows(self, peer: PeerId) -> bool:
        """Tell whether a peer is more than a name: a founder, or in a decided roster not long ago."""
        return peer in self.members or peer in self.founders

    def bars(self, peer: PeerId) -> bool:
        """Tell whether a peer is excluded in this round: it commits nothing, reduces nothing and does not vote."""
        return self.round < self.excluded.get(peer, 0)

    def may_exclude(self, peer: PeerId) -> bool:
        """Tell whether an outcome may exclude a peer: one that is known, and not excluded already."""
        return self.knows(peer) and not self.bars(peer)

    def admits_preimage(self, peer: PeerId, preimage: bytes) -> bool:
        """Tell whether this is the next value of the peer's hash chain; the first one it shows is its tip."""
        member = self.members.get(peer)
        return member is None or not member.tip or hashlib.sha256(preimage).digest() == member.tip

    def proposer(self, view: int) -> PeerId:
        """The voter that proposes in this view, drawn from the beacon; n views in a row go round all n voters."""
        order = _proposer_order(self.beacon, self.electorate)
        return order[view % len(order)]

    def outcome(
        self,
        roster: bytes,
        view: int,
        reduced: tuple[bytes, ...],
        commits: Sequence[Signed[Commit]],
        state: bytes,
        excluded: tuple[Exclusion, ...] = (),
    ) -> Outcome:
        """Build the outcome that a proposer of this round proposes; VOID when `roster` is empty."""
        peers = [commit.peer for commit in commits] if roster else self.electorate
        return Outcome(
            self.swarm,
            self.round,
            self.lineage,
            roster,
            view,
            reduced,
            self.next_electorate(peers, {each.peer for each in excluded}),
            self.next_beacon(commits),
            state,
            excluded,
        )

    def next_beacon(self, commits: Sequence[Signed[Commit]]) -> bytes:
        """H(beacon, round, preimages revealed): a peer's first preimage is its tip and does not count."""
        rows = ((commit, self.members.get(commit.peer)) for commit in sorted(commits, key=lambda c: c.peer))
        revealed = b"".join(commit.message.preimage for commit, row in rows if row is not None and row.tip)
        return _hash(b"p2pnet/beacon/1\n", self.beacon, self.round.to_bytes(4, "big"), revealed)

    def next_electorate(self, roster: Sequence[PeerId], excluded: Set[PeerId] = frozenset()) -> tuple[PeerId, ...]:
        """Voters of the next round: those that did not miss this one, then by seniority up to 1/8 new ones, or one.

        excluded: in this round; of the voters at least one is not.
        """
        present = set(roster) - excluded
        stay = [peer for peer in self.electorate if peer in present]
        if not stay:  # nobody that may vote trained: the voters stay, or nobody could ever decide again
            return tuple(peer for peer in self.electorate if peer not in excluded)
        room = min(max(1, len(self.electorate) // 8), self.policy.voters_max - len(stay))
        candidates = sorted((p for p in present.difference(stay) if self._may_vote(p)), key=self._seniority)
        return tuple(sorted(stay + candidates[:room]))

    def advance(
        self,
        outcome: bytes,
        decided: Outcome | WideOutcome,
        commits: Sequence[Signed[Commit]],
        authors: Sequence[tuple[Part, PeerId | None]] | None = None,
    ) -> SwarmState:
        """The state after this decided outcome; `commits` is its roster, empty for VOID.

        authors: of many groups, whose digest was decided for each part; None: that part is void.
        """
        members = {
            peer: member
            for peer, member in self.members.items()
            if self.round - member.last < min(FORGET_ROUNDS, FORGET_FACTOR * member.accepted)
        }
        for commit in commits:
            peer, tip = commit.peer, commit.message.preimage
            old = members.get(peer)
            members[peer] = (
                replace(old, tip=tip, accepted=old.accepted + 1, last=self.round)
                if old
                else Member(tip, 1, self.round, self.round)
            )
        if isinstance(decided, Outcome):
            parts = self.parts(commits, decided.view) if commits else ()
            raws = zip(parts, decided.reduced, strict=False)  # as many of both, or it was not decided
            authors = [(part, open_signed((Reduced,), raw, _trust, REDUCED_RAW_MAX).peer) for part, raw in raws]
        self._note_deadlines(members, authors or (), commits)
        number = self.round + 1
        excluded = {peer: until for peer, until in self.excluded.items() if number - until < EVIDENCE_ROUNDS}
        excluded |= {each.peer: number + self.policy.exclude_rounds for each in decided.excluded}
        return replace(
            self,
            round=number,
            lineage=next_lineage(self.lineage, outcome_digest(outcome)),
            beacon=decided.beacon,
            electorate=decided.electorate,
            members=members,
            excluded=excluded,
        )

    def fork(self, branch: bytes, voters: tuple[PeerId, ...]) -> SwarmState:
        """The state in which a branch begins: of the same round, with these voters, and hash chains of its own.

        branch: its id.   voters: rising. The other voters are not waited for, as if they had missed the last roster.
        """
        gone = set(self.electorate).difference(voters)
        before = max((member.last for member in self.members.values()), default=0) - 1
        return replace(
            self,
            swarm=branch,
            lineage=_hash(b"p2pnet/genesis/1\n", branch),
            beacon=_hash(b"p2pnet/beacon/1\n", self.beacon, branch),
            electorate=voters,
            members={
                peer: replace(member, tip=b"", last=min(member.last, before) if peer in gone else member.last)
                for peer, member in self.members.items()
            },
        )

    def parts(self, commits: Sequence[Signed[Commit]], view: int) -> tuple[Part, ...]:
        """Who reduces what, of this roster in this view; `commits`: at least one."""
        rows = {commit.peer: self.members.get(commit.peer) for commit in commits}
        halvings = {peer: row.halvings for peer, row in rows.items() if row}
        least = self.policy.reducers_min
        return assign_parts(self.volume, commits, self.beacon, view, least, halvings, self.resting(view))

    def resting(self, view: int) -> frozenset[PeerId]:
        """The proposers of the views before, whose views came to nothing: nothing waits for them; at most a third."""
        return frozenset(self.proposer(view - back) for back in range(1, min(view, len(self.electorate) // 3) + 1))

    def weight(self, commit: Commit) -> int:
        """The weight 1..8 of a commit in the reduction, by its samples against a full round's."""
        return weight_of(commit, self.policy.round_samples)

    def _note_deadlines(
        self,
        members: dict[PeerId, Member],
        authors: Sequence[tuple[Part, PeerId | None]],
        commits: Sequence[Signed[Commit]],
    ) -> None:
        """Halve the rate of who reduced too late, so that its backup's part was decided; take it back from who did not.

        Who is halved so far that it has no part any more is tried again now and then.
        """
        idle = {commit.peer for commit in commits}
        for part, author in authors:
            change = -1 if author == part.reducer else 1
            members[part.reducer] = _halve(members[part.reducer], change)
            idle.discard(part.reducer)
        for peer in idle:
            if members[peer].halvings and members[peer].accepted % FORGIVE_ROUNDS == 0:
                members[peer] = _halve(members[peer], -1)

    def _may_vote(self, peer: PeerId) -> bool:
        member = self.members.get(peer)
        accepted = 1 + (member.accepted if member else 0)  # this round's roster included
        return peer in self.founders or accepted >= self.policy.service_rounds

    def _seniority(self, peer: PeerId) -> tuple[bool, int, bytes]:
        member = self.members.get(peer)
        return (peer not in self.founders, -(member.accepted if member else 0), peer)


def weight_of(commit: Commit, round_samples: int) -> int:
    """The weight 1..8 of a commit, by its samples against those that give the full weight."""
    return max(1, min(WEIGHT_MAX, -(-WEIGHT_MAX * commit.samples // round_samples)))


def quorum(voters: int) -> int:
    """How many voters decide: more than 2/3; of three two (crash-only), of two both, of one itself."""
    return {1: 1, 2: 2, 3: 2}.get(voters, 2 * voters // 3 + 1)


class HashChain:
    """A peer's own chain: `reveal(tip)` gives the preimage of the tip that the swarm knows.

    The seed comes from the peer's key and the swarm, so that a restarted peer needs no state for it. Every 256th value
    is kept, 10 kB instead of 7 MB, and the stretch that is being revealed.
    """

    def __init__(self, seed: bytes, length: int = CHAIN_LENGTH) -> None:
        self._length = length
        self._marks = [seed]
        value = seed
        for position in range(1, length + 1):
            value = hashlib.sha256(value).digest()
            if position % _STRETCH == 0:
                self._marks.append(value)
        self._end = value
        self._mark = len(self._marks) - 1
        self._stretch = self._hash_from(self._mark)

    @property
    def end(self) -> bytes:
        """The last value, 32 bytes: the first that is shown."""
        return self._end

    def reveal(self, tip: bytes | None) -> bytes | None:
        """The preimage of `tip`, of no tip the end of the chain; None when it is not ours or the chain is used up."""
        if tip is None:
            return self._end
        marks = range(len(self._marks) - 1, -1, -1)
        for mark in (self._mark, self._mark - 1, *marks):  # nearly always the first
            if mark < 0:
                continue
            stretch = self._stretch if mark == self._mark else self._hash_from(mark)
            if tip in stretch[1:]:
                self._mark, self._stretch = mark, stretch
                return stretch[stretch.index(tip) - 1]
        return None

    def _hash_from(self, mark: int) -> list[bytes]:
        """The values from a mark to the next one, both included; fewer at the end of the chain."""
        values = [self._marks[mark]]
        for _ in range(min(_STRETCH, self._length - mark * _STRETCH)):
            values.append(hashlib.sha256(values[-1]).digest())
        return values


def _halve(member: Member, change: int) -> Member:
    """The row with so many more halvings, within bounds."""
    halvings = min(HALVINGS_MAX, max(0, member.halvings + change))
    return member if halvings == member.halvings else replace(member, halvings=halvings)


def _trust(_peer: PeerId, _data: bytes, _signature: bytes) -> bool:
    return True  # it was checked before it was decided


@remember(64)
def _expected(state: SwarmState) -> frozenset[PeerId]:
    if not state.members:
        return frozenset(peer for peer in state.founders if not state.bars(peer))
    last = max(member.last for member in state.members.values())
    return frozenset(peer for peer in _present(state, last) if not state.bars(peer))


@remember(64)
def _present(state: SwarmState, number: int) -> frozenset[PeerId]:
    return frozenset(peer for peer, member in state.members.items() if member.last == number)


@functools.lru_cache(maxsize=256)
def _proposer_order(beacon: bytes, electorate: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
    return tuple(sorted(electorate, key=lambda peer: _hash(b"p2pnet/proposer/1\n", beacon, peer)))


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
