"""Collect the commits of a round, and make or judge its roster. Contract: protocols/round-1.md, R10 to R15."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.round import COMMIT_RAW_MAX, Commit, Roster
from p2pnet.wire.signing import Signed, Verify, open_signed

PATIENCE = 1.5  # when half have committed, the others get this many times as long as they took
OMITTED_SHARE_MAX = 10  # a roster may omit one in ten of the commits a voter held


class Commits:
    """The commits of one round that this peer holds."""

    def __init__(self, state: SwarmState, verify: Verify, start_s: float) -> None:
        self.state = state
        self.start_s = start_s
        self.grace_s = state.policy.grace_ms / 1000
        self.window_s = state.policy.window_ms / 1000
        self.held: dict[PeerId, tuple[Signed[Commit], float]] = {}  # when each arrived
        self._verify = verify
        self._opened: dict[bytes, Signed[Commit]] = {}  # rosters repeat what flooding brought

    def add(self, commit: Signed[Commit], now_s: float) -> str | None:
        """Keep a commit whose signature is right; returns the rule it breaks, or None."""
        broken = self.judge(commit)
        if broken is None and commit.peer not in self.held:
            self.held[commit.peer] = (commit, now_s)
            self._opened[commit.raw] = commit
        return broken

    def judge(self, commit: Signed[Commit]) -> str | None:
        """Name the rule that a commit breaks, if any."""
        message = commit.message
        if message.swarm != self.state.swarm or message.round != self.state.round:
            return "round-1/R10"
        if message.lineage != self.state.lineage:
            return "round-1/R11"
        if not self.state.admits_preimage(commit.peer, message.preimage):
            return "round-1/R12"
        return None

    def deadline_s(self, awaited: Collection[PeerId]) -> float:
        """When the commit phase ends: at once if all that are awaited have committed, else after a fair wait."""
        times = sorted(self.held[peer][1] for peer in awaited if peer in self.held)
        if times and len(times) == len(awaited):
            return times[-1]
        if self.held and not awaited:
            return self.start_s
        latest = self.start_s + self.window_s + self.grace_s
        half = len(awaited) // 2
        if len(times) > half:
            return min(latest, self.start_s + PATIENCE * (times[half] - self.start_s) + self.grace_s)
        return latest

    def roster(self) -> tuple[bytes, ...]:
        """The signed commits that a proposer puts into its roster, by peer; a draw when there are too many."""
        commits = [commit for commit, _ in self.held.values()]
        room = self.state.policy.group_size_max
        if len(commits) > room:
            commits.sort(key=lambda c: hashlib.sha256(b"p2pnet/group/1\n" + self.state.beacon + c.peer).digest())
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

    def omitted_too_many(self, roster: Roster, commits: tuple[Signed[Commit], ...], now_s: float) -> bool:
        """Tell whether the roster leaves out more than one in ten of the commits that had time to reach its proposer."""
        if len(roster.commits) >= self.state.policy.group_size_max:
            return False
        listed = {commit.peer for commit in commits}
        known = [peer for peer, (_, at_s) in self.held.items() if now_s - at_s > self.grace_s]
        omitted = sum(peer not in listed for peer in known)
        return omitted * OMITTED_SHARE_MAX > len(known)
