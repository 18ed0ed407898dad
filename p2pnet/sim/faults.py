"""What goes wrong in a simulation: who is killed, stopped, leaves, is cut off, in which round and when."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from p2pnet.identity import PeerId

if TYPE_CHECKING:
    from p2pnet.sim.internet import Internet
    from p2pnet.sim.member import Member


class Faults:
    """Draws a round's faults when its first member begins it, from a generator of its own."""

    def __init__(self, net: Internet) -> None:
        self._net, self._scenario = net, net.scenario
        self._rng = random.Random(f"faults {net.seed}")
        self._owed: Counter[str] = Counter()  # parts of a fault that a round was too small for, in millionths
        self._gone: set[PeerId] = set()  # left for the night
        self.happened: Counter[str] = Counter()

    def plan(self, number: int, round_s: float) -> None:
        """Plan what goes wrong in a round that takes about so long."""
        scenario = self._scenario
        if number < scenario.fault_round:
            return
        for member in self._draw("crash", scenario.crash):
            self._soon(round_s, "crashes", self._kill, member, scenario.restart_s)
        for member in self._draw("churn", scenario.churn):
            away_s = scenario.away_s or round_s * self._rng.uniform(0.5, 1.5)
            self._soon(round_s, "leaves", self._kill, member, away_s)
        for member in self._draw("freeze", scenario.freeze):
            self._soon(round_s, "freezes", self._freeze, member)
        if number == scenario.fault_round:
            self._begin_night()
            self._begin_partition(round_s)

    def _draw(self, kind: str, share: float) -> list[Member]:
        """So large a share of the members that are there; what a round is too small for is made up in later ones."""
        there = [member for member in self._net.members.values() if member.alive and member.held is None]
        self._owed[kind] += round(1e6 * share * len(self._net.members))
        count, self._owed[kind] = divmod(self._owed[kind], 1_000_000)
        return self._rng.sample(there, min(count, len(there)))

    def _soon(self, round_s: float, name: str, action: object, *arguments: object) -> None:
        self._net.at(self._rng.uniform(0, round_s), self._happen, name, action, arguments)

    def _happen(self, name: str, action: object, arguments: tuple[object, ...]) -> None:
        if self._net.is_running:
            self.happened[name] += 1
            action(*arguments)  # type: ignore[operator]

    def _kill(self, member: Member, back_s: float | None) -> None:
        if member.alive:
            self._net.crash(member.peer)
            if back_s is not None:
                self._net.at(back_s, self._start, member)

    def _start(self, member: Member) -> None:
        if not member.alive and member.peer not in self._gone:
            member.start()

    def _freeze(self, member: Member) -> None:
        if member.alive and member.held is None:
            self._net.freeze(member.peer)
            self._net.at(self._scenario.freeze_s, self._net.thaw, member.peer)

    def _begin_night(self) -> None:
        voters = sorted(self._net.electorate())
        leaving = self._rng.sample(voters, round(self._scenario.night * len(voters)))
        for peer in leaving:
            delay_s = self._rng.uniform(0, self._scenario.night_s)
            self._net.at(delay_s, self._happen, "left for the night", self._leave, (peer,))

    def _leave(self, peer: PeerId) -> None:
        self._gone.add(peer)
        self._kill(self._net.members[peer], None)

    def _begin_partition(self, round_s: float) -> None:
        count = round(self._scenario.partition * len(self._net.members))
        if count:
            side = self._rng.sample(sorted(self._net.members), count)
            self._soon(round_s, "partitions", self._cut, side)

    def _cut(self, side: list[PeerId]) -> None:
        self._net.cut(side)
        self._net.at(self._scenario.partition_s, self._net.heal)
