"""How much a peer may still get wrong: points for broken rules, forgiven with time, and bans. Bounded tables."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnet.identity import PeerId


@dataclass(frozen=True, slots=True)
class StandingLimits:
    """Parameters of standing (protocols/membership-1.md). Guesses: a flood is out in a second, a hiccup is forgiven."""

    points_max: int = 100
    points_default: int = 10
    forgive_s: float = 10.0  # a point is forgiven every so often
    ban_s: float = 600.0  # doubles with each ban
    ban_s_max: float = 86400.0
    peers_max: int = 4096
    bans_max: int = 4096


@dataclass(slots=True)
class _Account:
    points: float
    at_s: float


@dataclass(slots=True)
class _Ban:
    until_s: float
    times: int


class Standing:
    """Points against peers, and who is banned until when."""

    def __init__(self, limits: StandingLimits) -> None:
        self.limits = limits
        self._accounts: dict[PeerId, _Account] = {}  # touched longest ago first
        self._bans: dict[PeerId, _Ban] = {}  # kept after their end while there is room: a second one is longer

    def score(self, peer: PeerId, now_s: float) -> int:
        """Return 100 for a clean record, down to 0 for a banned peer."""
        if self.banned_until_s(peer, now_s) is not None:
            return 0
        return max(0, round(100 * (1 - self._points(peer, now_s) / self.limits.points_max)))

    def banned_until_s(self, peer: PeerId, now_s: float) -> float | None:
        """Return when its ban ends, or None when it is not banned."""
        ban = self._bans.get(peer)
        return ban.until_s if ban is not None and now_s < ban.until_s else None

    def misbehaved(self, peer: PeerId, now_s: float, points: int | None = None) -> float | None:
        """Add points; returns the end of the ban when that was too much, else None."""
        total = self._points(peer, now_s) + (self.limits.points_default if points is None else points)
        self._accounts.pop(peer, None)
        if total < self.limits.points_max:
            self._accounts[peer] = _Account(total, now_s)
            if len(self._accounts) > self.limits.peers_max:
                del self._accounts[next(iter(self._accounts))]
            return None
        return self._ban(peer, now_s)

    def bans(self, now_s: float) -> dict[PeerId, float]:
        """Return who is banned, and how many seconds more."""
        return {peer: ban.until_s - now_s for peer, ban in self._bans.items() if now_s < ban.until_s}

    def _points(self, peer: PeerId, now_s: float) -> float:
        account = self._accounts.get(peer)
        return 0.0 if account is None else max(0.0, account.points - (now_s - account.at_s) / self.limits.forgive_s)

    def _ban(self, peer: PeerId, now_s: float) -> float:
        last = self._bans.pop(peer, None)
        times = 1 if last is None else last.times + 1
        wait_s = min(self.limits.ban_s_max, self.limits.ban_s * 2.0 ** min(times - 1, 30))
        if len(self._bans) >= self.limits.bans_max:
            del self._bans[min(self._bans, key=lambda banned: self._bans[banned].until_s)]
        self._bans[peer] = _Ban(now_s + wait_s, times)
        return now_s + wait_s
