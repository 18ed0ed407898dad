"""Collect the commits of a round, and make or judge its roster. Contract: protocols/round-1.md, R10 to R16."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Container

from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.round import COMMIT_RAW_MAX, Commit, Roster
from p2pnet.wire.signing import Signed, Verify, open_signed

PATIENCE = 1.5  # when half have committed, the others get this many times as long as they took
OMITTED_SHARE_MAX = 10  # a roster may omit one in ten of the commits a voter held
STRANGERS_MAX = 128  # commits held of peers that no decided roster has shown: identities are free, memory is not


class Commits:
    """The commits of one round that this peer holds."""

    def __init__(self, state: SwarmState, verify: Verify, start_s: float) -> None:
        self.state = state
        self.grace_s = state.policy.grace_ms / 1000
        self._here_s = start_s  # when this peer came to the round
        self.begin(start_s)
        self.held: dict[PeerId, tuple[Signed[Commit], float]] = {}  # when each arrived
        self._verify = verify
        self._strangers = 0
        self._opened: dict[bytes, Signed[Commit]] = {}  # rosters repeat what flooding brought

    def begin(self, start_s: float) -> None:
        """Count the window from here: the round began for everybody when the one before was certified."""
        self.start_s = start_s
        self.end_s = start_s + self.state.policy.window_ms / 1000  # of the window

    def add(self, commit: Signed[Commit], now_s: float) -> str | None:
        """Keep a commit whose signature is right; returns the rule that keeps it out, or None."""
        broken = self.judge(commit)
        if broken is not None or commit.peer in self.held:
            return broken
        if not self.state.knows(commit.peer):
            if self._strangers >= STRANGERS_MAX:
                return "round-1/R14"
            self._strangers += 1
        self.held[commit.peer] = (commit, now_s)
        self._opened[commit.raw] = commit
        return None

    def judge(self, commit: Signed[Commit]) -> str | None:
        """Name the rule that a commit breaks, if any."""
        return judge_commit(self.state, commit)

    def deadline_s(self, awaited: Collection[PeerId], newcomers: Collection[PeerId] = ()) -> float:
        """When the commit phase ends: at once if all that are awaited have committed, else after a fair wait.

        newcomers: peers that are there and were in no roster yet; they get PATIENCE after the others, never the window.
        Where rounds go by window, everybody has until its end: who commits early says nothing about the others.
        """
        times = sorted(self.held[peer][1] for peer in awaited if peer in self.held)
        # Who comes to a round when its window is over still waits a little, for the others' commits and for its own.
        latest_s, by_window = max(self.end_s, self._here_s) + self.grace_s, self.state.policy.by_window
        if len(times) < len(awaited) or not self.held:
            half = len(awaited) // 2
            return latest_s if by_window or len(times) <= half else min(latest_s, self._patience_s(times[half]))
        last_s = times[-1] if times else self.start_s
        late = [self.held[peer][1] for peer in newcomers if peer in self.held]
        if len(late) < len(newcomers):
            return latest_s if by_window else min(latest_s, self._patience_s(last_s))
        return max([last_s, *late])

    def everybody_s(self, awaited: Collection[PeerId]) -> float:
        """When other groups, whose commits are not seen here, should be done too: half of this one shows the pace."""
        times = sorted(self.held[peer][1] for peer in awaited if peer in self.held)
        latest_s, half = max(self.end_s, self._here_s) + self.grace_s, len(awaited) // 2
        if self.state.policy.by_window or len(times) <= half:
            return latest_s
        return min(latest_s, self._patience_s(times[half]))

    def roster(self, room: int | None = None) -> tuple[bytes, ...]:
        """The signed commits that a proposer puts into its roster, by peer, at most `room` (`group_size_max`) of them.

        Who started from other parameters than most voters is left out. When there are too many: the voters, then who
        was in a decided roster before, then strangers, a draw within each: a flood of new names keeps nobody out.
        """
        checksum = self._usual_checksum()
        commits = [commit for commit, _ in self.held.values() if commit.message.checksum == checksum]
        room = room or self.state.policy.group_size_max
        if len(commits) > room:
            commits.sort(key=self._precedence)
        return tuple(commit.raw for commit in sorted(commits[:room], key=lambda c: c.peer))

    def open_roster(self, raws: tuple[bytes, ...]) -> tuple[Signed[Commit], ...]:
        """Open and check every commit of a roster; raises WireError with the rule broken."""
        if len(raws) > self.state.policy.group_size_max:
            raise WireError("round-1/R13", f"{len(raws)} commits")
        commits = tuple(
            self._opened.get(raw) or open_signed((Commit,), raw, self._verify, COMMIT_RAW_MAX) for raw in raws
        )
        peers = [commit.peer for commit in commits]
        if peers != sorted(set(peers)):
            raise WireError("round-1/R13", "peers are not rising")
        for commit in commits:
            if rule := self.judge(commit):
                raise WireError(rule, "in a roster")
        return commits

    def omitted_too_many(
        self, roster: Roster, commits: tuple[Signed[Commit], ...], checksum: int | None, now_s: float
    ) -> bool:
        """Tell whether a roster leaves out more than one in ten of the commits that had time to reach its proposer.

        Only peers that decided rosters have shown count, and only those that started where I did (checksum: mine): a
        stranger cannot have a roster refused by telling some and not others. Of a full roster only the voters count.
        """
        room = self.state.policy.group_size_max
        return self.omits({commit.peer for commit in commits}, len(roster.commits), room, checksum, now_s)

    def omits(self, listed: Container[PeerId], count: int, room: int, checksum: int | None, now_s: float) -> bool:
        """See `omitted_too_many`.   listed: who is in the roster.   count: how many, of at most `room`."""
        known = [
            peer
            for peer, (commit, at_s) in self.held.items()
            if now_s - at_s > self.grace_s
            and self.state.knows(peer)
            and (checksum is None or commit.message.checksum == checksum)
        ]
        voters = self.state.electorate
        if count >= room:
            known = [peer for peer in known if peer in voters] if len(voters) < room else []
        return sum(peer not in listed for peer in known) * OMITTED_SHARE_MAX > len(known)

    def _patience_s(self, at_s: float) -> float:
        return self.start_s + PATIENCE * (at_s - self.start_s) + self.grace_s

    def _usual_checksum(self) -> int | None:
        """The parameters that most voters started from; of all that committed when no voter did."""
        sums = {peer: commit.message.checksum for peer, (commit, _) in self.held.items()}
        counts = Counter(sums[peer] for peer in self.state.electorate if peer in sums) or Counter(sums.values())
        return max(counts, key=lambda checksum: (counts[checksum], checksum), default=None)

    def _precedence(self, commit: Signed[Commit]) -> tuple[bool, bool, bytes]:
        draw = hashlib.sha256(b"p2pnet/group/1\n" + self.state.beacon + commit.peer).digest()
        return (commit.peer not in self.state.electorate, not self.state.knows(commit.peer), draw)


def judge_commit(state: SwarmState, commit: Signed[Commit]) -> str | None:
    """Name the rule that a commit breaks, if any."""
    message = commit.message
    if message.swarm != state.swarm or message.round != state.round:
        return "round-1/R10"
    if message.lineage != state.lineage:
        return "round-1/R11"
    if not state.admits_preimage(commit.peer, message.preimage):
        return "round-1/R12"
    if state.bars(commit.peer):
        return "round-1/R19"
    return None
