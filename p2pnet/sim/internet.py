"""A whole swarm on links with a rate: members that gossip, links, faults, and what came of it.

`Simulation` carries a broadcast to everybody at once, for thousands of short schedules; here it goes the way it goes
between nodes, and bytes take time.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable
from typing import Any

from p2pnet.core import events as ev
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim.chronicle import BULK, Chronicle, summarise
from p2pnet.sim.contacts import DIAL_ROUND_TRIPS
from p2pnet.sim.faults import Faults
from p2pnet.sim.flood import PLAYED_FROM
from p2pnet.sim.flow import Flow
from p2pnet.sim.lines import Air, Station
from p2pnet.sim.member import LyingMember, Member
from p2pnet.sim.network import Setting, Simulation
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.scenario import LinkClass, Scenario
from p2pnet.sim.sizes import get_output_bytes
from p2pnet.wire.round import Decision, WideDecision

FOUND_MAX = 32  # members that the DHT names to one that starts; it asks for 128, and need not get them
START_S = 1.0  # all start within
OVER_ROUNDS = 2  # more than asked for: who is behind by then came back late, or is cut off, and is not waited for
UNREACHABLE_S = 30.0  # until a connection that a cut has silenced counts as gone (yamux's keep-alive; guess)
ON_TURN = frozenset((*BULK, "audits"))  # kinds that let small messages pass
NO_ROUTE_S = 10.0  # until a stream to somebody beyond a cut fails to open
UNLIMITED_BYTES_PER_S = 1.25e11  # 1 Tbit/s


class Internet(Simulation):
    """All members, their links, one clock."""

    def __init__(self, scenario: Scenario, on_round: Callable[[int], None] = lambda _number: None) -> None:
        """on_round: called when the first member has decided a round."""
        self.scenario, self.sizes = scenario, scenario.sizes
        self.stations: dict[PeerId, tuple[Station, bool]] = {}
        self.members: dict[PeerId, Member] = {}
        self.chronicle = Chronicle()
        self.plays_gossip = scenario.members >= PLAYED_FROM
        self.dropped = 0  # messages to one member that is no neighbour
        self.is_running = False
        self._links = random.Random(f"links {scenario.seed}")
        self._on_round = on_round
        self._counts = {"delivered": 0, "duplicates": 0, "pushed": 0, "answered": 0, "announced": 0}
        self._first: dict[int, Decision | WideDecision] = {}
        self._waited: set[PeerId] = set()  # honest members that run and have not decided every round yet
        self._round_s = scenario.round_s
        setting = Setting(
            peers=scenario.members, founders=scenario.founders, leaves=self.sizes.leaves, policy=scenario.policy,
            leaf_bytes=self.sizes.leaf_bytes,
            detect_s=scenario.detect_s, grown=scenario.members >= scenario.group_size_max,
        )  # fmt: skip
        self.air: Air
        self._classes = self._deal_links()
        super().__init__(setting, scenario.seed, scenario.liars)
        self.attached: dict[PeerId, list[PeerId]] = {}  # who has, or had, a stream to or from whom in this exchange
        self._attached_before: dict[PeerId, list[PeerId]] = {}  # and in the last one
        self._everybody = list(self.members.values())
        self.swarm = self._everybody[0].disk.state.swarm  # type: ignore[union-attr]
        self.faults = Faults(self)

    def play(self) -> dict[str, Any]:
        """Run the rounds that are asked for, or until the limit; returns the figures."""
        scenario = self.scenario
        for member in self.members.values():
            self.at(self.rng.uniform(0, START_S), member.start)
        self.is_running = True
        limit_s = scenario.limit_s or START_S + 10 * scenario.round_s * (scenario.rounds + 1)
        self._waited = {peer for peer, member in self.members.items() if member.honest}
        collects = gc.isenabled()
        if self.plays_gossip:
            gc.disable()  # it would look through millions of objects again and again, and hardly any form cycles
        try:
            self.run(lambda: not self._waited or len(self._first) > scenario.rounds + OVER_ROUNDS, limit_s)
        finally:
            if collects:
                gc.enable()
        self.is_running = False
        return summarise(self)

    @property
    def behind(self) -> int:
        """Honest members that run and have not decided all that was asked for."""
        return len(self._waited)

    # Members --------------------------------------------------------------------------------------------------------

    def _deal_links(self) -> list[LinkClass]:
        """A kind of link for each member, as near to the shares as whole members allow, in any order."""
        dealt: list[LinkClass] = []
        members, share = self.scenario.members, 0.0
        for link in self.scenario.link_classes:
            share += link.share
            dealt += [link] * (round(share * members) - len(dealt))
        self._links.shuffle(dealt)
        return dealt

    def _make_peer(self, peer: PeerId, state: SwarmState, lies: bool) -> SimPeer:
        if not self.stations:
            kind = Flow if self.plays_gossip else Air
            self.air = kind(self, random.Random(f"loss {self.scenario.seed}").random)
        link = self._classes[len(self.stations)]
        up, down = (rate / 8 or UNLIMITED_BYTES_PER_S for rate in (link.up, link.down))
        station = Station(self.air, up, down, link.latency_ms / 2000, link.loss)
        self.stations[peer] = station, self._links.random() < link.nat
        member = self.members[peer] = (LyingMember if lies else Member)(self, peer, state)
        return member

    def found(self, asker: Member) -> list[Member]:
        """Whom the DHT would name."""
        drawn = self.rng.sample(self._everybody, min(2 * FOUND_MAX, len(self._everybody)))
        return [member for member in drawn if member.alive and member is not asker][:FOUND_MAX]

    @property
    def begins(self) -> bool:
        """Whether all are still starting for the first time."""
        return self.plays_gossip and self.now_s <= START_S

    def attach(self, peer: PeerId, other: PeerId) -> None:
        """A stream is opened between two members, neighbours or not: each sees the other's end."""
        self.attached.setdefault(peer, []).append(other)
        self.attached.setdefault(other, []).append(peer)

    def electorate(self) -> tuple[PeerId, ...]:
        """Who votes now, as the member says that is furthest."""
        states = [member.disk.state for member in self.members.values() if member.disk.state]
        return max(states, key=lambda state: state.round).electorate

    def started(self, member: Member) -> None:
        """A process runs: it is waited for, until it has decided all rounds or falls out."""
        if member.honest and not self._is_done(member):
            self._waited.add(member.peer)

    def began(self, member: Member) -> None:
        """A member takes part; it may have fetched all that was asked for."""
        if self._is_done(member):
            self._waited.discard(member.peer)

    def _is_done(self, member: Member) -> bool:
        return member.disk.state is not None and member.disk.state.round >= self.scenario.rounds

    def training(self, number: int) -> None:
        """A member begins a round."""
        record = self.chronicle.of(number)
        if not record.began_s:
            self.faults.plan(number, self._round_s)
        record.began_s.append(self.now_s)

    def settled(self, member: Member, effect: ev.Decide) -> Decision | WideDecision:
        """A member has decided a round; returns the decision, the same object for all."""
        number = effect.round
        self._attached_before[member.peer] = self.attached.pop(member.peer, [])
        first = number not in self._first
        decision = self._first.setdefault(number, effect.decision)
        record = self.chronicle.of(number)
        record.finished += 1
        if member.honest:
            record.decided_s.append(self.now_s)
            record.void, record.view = effect.void, effect.decision.certificate.view
            record.in_roster = count_members(effect.decision)
            if self._is_done(member):
                self._waited.discard(member.peer)
        if first:
            self._round_s = self.now_s - record.began_s[0] if record.began_s else self._round_s
            record.tally, record.gossip = self.air.tally.copy(), self.gossip_counts()
            self._on_round(number)
        return decision

    def gossip_counts(self) -> dict[str, int]:
        """What gossip did, all processes together."""
        total = dict(self._counts)
        for member in self.members.values():
            if member.alive:
                self._add_counts(total, member)
        return total

    def banned_count(self) -> int:
        """How often a member banned another."""
        return sum(member.contacts.banned for member in self.members.values() if member.epoch)

    @staticmethod
    def _add_counts(total: dict[str, int], member: Member) -> None:
        for name in total:
            total[name] += getattr(member.contacts.gossip.counts, name)

    # The network ----------------------------------------------------------------------------------------------------

    def reach(self, source: Member, peer: PeerId) -> Member | None:
        """Whoever can be sent something now; None for who is gone or beyond a cut."""
        target = self.members.get(peer)
        return target if target is not None and source.station.reaches(target.station) else None

    def send(
        self, kind: str, source: Member, target: Member, size_bytes: int, action: Callable[..., None],
        arguments: tuple[Any, ...], head: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Send bytes; the target does the action when all are there. Between two NATs they pass a relay."""
        air, by_kind = self.air, self.air.tally.by_kind
        by_kind[kind] += size_bytes
        if head is not None:
            by_kind[head[0]] += head[1]
            size_bytes += head[1]
        extra_s = 0.0
        if source.is_private and target.is_private:
            extra_s = air.latency_s(source.station, target.station)
        air.send(source.station, target.station, size_bytes, kind in ON_TURN, extra_s, target.do, action, arguments)

    def collect(
        self, kind: str, target: Member, pieces: list[tuple[Member, int]], action: Callable[..., None], *arguments: Any
    ) -> None:
        """Have many send something to one; it does the action when all is there. For very large swarms."""
        assert isinstance(self.air, Flow)
        size_bytes, request_bytes = sum(size for _, size in pieces), get_output_bytes()
        self.air.tally.by_kind[kind] += size_bytes
        self.air.tally.by_kind["requests"] += request_bytes * len(pieces)
        self.air.collect(target.station, [(source.station, size) for source, size in pieces], request_bytes, target.do,
                         action, arguments)  # fmt: skip

    def carry(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:  # noqa: ARG002 - seen from the bytes
        """Give one message to one member directly: what a liar does."""
        if sender != to and to in self.members:
            self.members[sender].contacts.send(to, raw)

    def dial(self, source: Member, peer: PeerId) -> None:
        """Connect; both sides are told, or the one that dialled that it failed."""
        target = self.reach(source, peer)
        if target is None:
            source.after(self.refused_s(source.peer, peer), self._dial_failed, source, peer)
            return
        wait_s = 2 * DIAL_ROUND_TRIPS * self.air.latency_s(source.station, target.station)
        source.after(wait_s, self._dialled, source, peer)

    def _dialled(self, source: Member, peer: PeerId) -> None:
        target = self.reach(source, peer)
        if target is None:
            self._dial_failed(source, peer)
        else:
            source.contacts.connected_to(peer)

    def _dial_failed(self, source: Member, peer: PeerId) -> None:
        source.contacts.dial_failed(peer)

    def refused_s(self, source: PeerId, peer: PeerId) -> float:
        """How long it takes to see that somebody cannot be reached: a machine says so at once, a cut never does."""
        one, other = self.members[source].station, self.members[peer].station
        return NO_ROUTE_S if one.side != other.side else 2 * self.air.latency_s(one, other)

    def disconnect(self, peer: PeerId, other: PeerId) -> None:
        """A member ends a connection; the other one sees it end."""
        self._lose(peer, other, 0.0)
        self._lose(other, peer, self.setting.detect_s)

    def _lose(self, peer: PeerId, other: PeerId, after_s: float) -> None:
        member = self.members[peer]
        if member.alive:
            member.after(after_s, member.contacts.lost, other)

    # Faults ---------------------------------------------------------------------------------------------------------

    def crash(self, peer: PeerId) -> None:
        """End a process at once; whoever is connected sees it a moment later."""
        member = self.members[peer]
        if not member.alive:
            return
        self._waited.discard(peer)
        self._add_counts(self._counts, member)
        connected = member.contacts.connected
        member.stop()
        attached = *self.attached.pop(peer, ()), *self._attached_before.pop(peer, ())
        for other in sorted({*connected, *attached}):
            self._lose(other, peer, self.setting.detect_s)

    def freeze(self, peer: PeerId) -> None:
        """Stop a process that others still hold for alive."""
        member = self.members[peer]
        member.held = member.held or []
        self._waited.discard(peer)

    def thaw(self, peer: PeerId) -> None:
        """Let a frozen process go on: all that came meanwhile comes at once."""
        member = self.members[peer]
        held, member.held = member.held or [], None
        if member.alive:
            self.started(member)
        for action, arguments in held:
            member.do(action, arguments)

    def cut(self, side: Iterable[PeerId], is_noticed: bool = True) -> None:  # noqa: ARG002 - after a while it always is
        """Partition the network: nothing passes between these members and the others."""
        for peer in side:
            self.members[peer].station.side = 1
        self.at(UNREACHABLE_S, self._see_cut)

    def _see_cut(self) -> None:
        for member in self.members.values():
            if member.alive:
                for other in member.contacts.connected:
                    if not member.station.reaches(self.members[other].station):
                        self._lose(member.peer, other, 0.0)

    def heal(self) -> None:
        """End the partition; members find each other by dialling again."""
        for member in self.members.values():
            member.station.side = 0

    def carries(self, sender: PeerId, to: PeerId) -> bool:
        """Tell whether anything gets from one member to the other."""
        return self.members[sender].station.side == self.members[to].station.side


def count_members(decision: Decision | WideDecision) -> int:
    """How many members are in the roster of a decided round."""
    if isinstance(decision, WideDecision):
        return sum(len(listing.items) for listing in decision.groups)
    return len(decision.commits)
