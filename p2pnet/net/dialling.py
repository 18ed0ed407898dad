"""Decide whom to dial next, and when again; pure: time and chance are arguments."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import Final

from p2pnet.identity import PeerId
from p2pnet.net.host import PeerAddrs

TARGETS_MAX: Final = 1024  # whoever can write to the DHT can name as many as it likes
ADDRS_MAX: Final = 16
REASON_CHARS_MAX: Final = 300


class Source(IntEnum):
    """Who named a peer, the most believable first."""

    OPERATOR = 0  # a bootstrap peer from the link
    GOSSIP = 1  # a member that others have seen lately
    DHT = 2  # a record, which outlives its peer by up to two days


@dataclass(frozen=True, slots=True)
class DialPolicy:
    """How eagerly to dial."""

    wanted: int = 64  # connections to have: a group has at most 64 members
    at_once: int = 8  # guess: dials in flight; a dead peer costs each of them a deadline
    timeout_s: float = 5.0  # measured 9 ms on loopback; a relayed dial over the world takes about a second
    retry_first_s: float = 5.5  # libp2p itself refuses an address that failed less than 5 s ago
    retry_max_s: float = 300.0
    jitter: float = 0.25  # retries come up to this share later, so that a crowd does not come back at once


@dataclass(slots=True)
class Target:
    """A peer that may be dialled, and how that went."""

    where: PeerAddrs
    source: Source
    seen_s: float
    tries: int = 0
    failures: int = 0  # since it was last connected
    failed_s: float = -math.inf
    not_before_s: float = -math.inf
    dialling: bool = False
    reason: str = ""  # why the last try failed; empty when it did not


class Dials:
    """The targets and what is known about them; at most TARGETS_MAX."""

    def __init__(self, me: PeerId, policy: DialPolicy, rng: Random) -> None:
        """me: never dialled.   rng: decides the jitter."""
        self.targets: dict[PeerId, Target] = {}
        self._policy, self._rng = policy, rng
        self._never: set[PeerId] = {me}

    def hear(self, where: PeerAddrs, source: Source, now_s: float) -> None:
        """Learn that a peer exists. A better source replaces addresses; only gossip makes a retry come sooner."""
        if where.peer in self._never:
            return
        where = PeerAddrs(where.peer, where.addrs[:ADDRS_MAX])
        target = self.targets.get(where.peer)
        if target is None:
            self.targets[where.peer] = Target(where, source, now_s)
            self._make_room()
            return
        target.seen_s = now_s
        if where.addrs and source <= target.source:
            target.where = where
        target.source = min(target.source, source)
        if source is Source.GOSSIP:  # somebody has seen it after we had not
            target.not_before_s = min(target.not_before_s, target.failed_s + self._policy.retry_first_s)

    def ignore(self, peer: PeerId) -> None:
        """Never dial this peer again."""
        self._never.add(peer)
        self.targets.pop(peer, None)

    def take_due(self, now_s: float, connected: Collection[PeerId]) -> list[PeerAddrs]:
        """Return whom to dial now, the most promising first; each is in flight until `succeed` or `fail`."""
        in_flight = [peer for peer, target in self.targets.items() if target.dialling]
        room = min(
            self._policy.at_once - len(in_flight), self._policy.wanted - len({*connected, *in_flight} - self._never)
        )
        ready = [
            target
            for peer, target in self.targets.items()
            if not target.dialling and peer not in connected and target.not_before_s <= now_s
        ]
        ready.sort(key=lambda target: (target.failures > 0, target.source, target.failures, -target.seen_s))
        chosen = ready[: max(0, room)]
        for target in chosen:
            target.dialling = True
            target.tries += 1
        return [target.where for target in chosen]

    def succeed(self, peer: PeerId) -> None:
        """Note that a dial has worked."""
        if target := self.targets.get(peer):
            target.dialling, target.failures, target.reason = False, 0, ""
            target.not_before_s = -math.inf

    def fail(self, peer: PeerId, reason: str, now_s: float) -> None:
        """Note that a dial has failed; the next one waits twice as long, up to the policy's maximum."""
        if target := self.targets.get(peer):
            policy = self._policy
            wait_s = min(policy.retry_max_s, policy.retry_first_s * 2.0 ** min(target.failures, 30))
            target.dialling, target.failed_s = False, now_s
            target.failures += 1
            target.not_before_s = now_s + wait_s * (1 + self._rng.random() * policy.jitter)
            target.reason = shorten_reason(reason) or target.reason or "no reason given"

    def next_s(self, connected: Collection[PeerId]) -> float:
        """Return when the next target is due, infinity when none will be."""
        waiting = (
            target.not_before_s
            for peer, target in self.targets.items()
            if not target.dialling and peer not in connected
        )
        return min(waiting, default=math.inf)

    def _make_room(self) -> None:
        if len(self.targets) <= TARGETS_MAX:
            return
        idle = (peer for peer, target in self.targets.items() if not target.dialling)
        worst = max(
            idle,
            key=lambda peer: (
                self.targets[peer].source,
                self.targets[peer].failures,
                -self.targets[peer].seen_s,
            ),
            default=None,
        )
        if worst is not None:
            del self.targets[worst]


def shorten_reason(reason: str) -> str:
    """Return what a person needs of libp2p's reason for a failed dial; empty when it only says that it did not try."""
    text = " ".join(reason.split())
    text = text.rpartition("all dials failed")[2].lstrip(" *") or text
    tried = [part.strip() for part in text.split("* [") if "dial backoff" not in part]
    return "; ".join(tried).replace("[", "").replace("]", ":")[:REASON_CHARS_MAX]
