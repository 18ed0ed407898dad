"""The streams of one simulated member in an exchange of many groups: bundles out, parts back, columns to the group.

Played like `p2pnet.sim.streams`, with sizes in place of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import Plan, column_digest
from p2pnet.core.remember import remember
from p2pnet.core.wide_rosters import digest_of
from p2pnet.identity import PeerId
from p2pnet.sim.cargo import Cargo, Key
from p2pnet.sim.scenario import SLOW_BYTES_PER_S
from p2pnet.sim.sizes import Sizes, framed, get_output_bytes
from p2pnet.sim.streams import ANSWER_S, ROSTER_WAIT_S, Timeouts
from p2pnet.wire.round import GroupRoster
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.sim.internet import Internet
    from p2pnet.sim.member import Member


class BundleStreams(Cargo):
    """What one process knows of its streams in exchanges of many groups."""

    _me: Member
    _net: Internet

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        self._listening: dict[Key, dict[PeerId, None]] = {}  # who waits for a column
        self._tried: dict[bytes, int] = {}  # sources asked for a column, or for the roster of a group
        self._open: dict[tuple[Key, PeerId], float] = {}  # bundles whose part will come back, and until when
        self._wanted: list[gev.Fetch] = []  # group rosters that are asked for next
        self._timeouts = Timeouts(member, self._open, self._fail)

    def forget(self, decided: int, kept: int) -> None:
        """See `Cargo`."""
        super().forget(decided, kept)
        for key in [key for key in self._listening if key[0] < decided + 1 - kept]:
            del self._listening[key]

    def lost(self, peer: PeerId) -> None:
        """The connection to a peer is gone, and every stream on it."""
        for key, to in [pair for pair in self._open if pair[1] == peer]:
            self._fail(key, to)
        for waiting in self._waiting.values():
            waiting.pop(peer, None)

    # Rosters of groups -----------------------------------------------------------------------------------------------

    def _tell(self, effect: gev.Tell) -> None:
        for peer in effect.to:
            self._me.contacts.tell_directly(peer, effect.raw)

    def _fetch(self, effect: gev.Fetch) -> None:
        if not self._net.plays_gossip:
            self._fetch_next(effect, iter(effect.sources), 0)
            return
        if not self._wanted:
            self._me.after(2 * self._me.station.latency_s, self._fetch_at_once)
        self._wanted.append(effect)

    def _fetch_at_once(self) -> None:
        """In a very large swarm: the first source of each roster is asked, and all answers are taken with the last one.

        What is at its source has its bytes counted and takes its time on all lines; what is not is fetched one by one.
        """
        member, wanted = self._me, self._wanted
        self._wanted = []
        found: list[tuple[Member, int, Signed[GroupRoster]]] = []
        for effect in wanted:
            source = member.reach(effect.sources[0]) if effect.sources else None
            roster = source.groups.roster(effect.digest) if source is not None and source.answers() else None
            if source is None or roster is None:
                self._fetch_next(effect, iter(effect.sources), 0)
            else:
                found.append((source, roster_bytes(roster), roster))
        if found:
            self._net.collect("group rosters", member, [(source, size) for source, size, _ in found],
                              self.take_rosters, [roster for _, _, roster in found])  # fmt: skip

    def take_rosters(self, rosters: list[Signed[GroupRoster]]) -> None:
        """Group rosters that were asked for are here."""
        for roster in rosters:
            digest = digest_of(roster.message)
            self._tried.pop(digest, None)
            self._me.take(gev.Fetched(roster.message.round, digest, roster))

    def _fetch_next(self, effect: gev.Fetch, sources: Iterator[PeerId], tried: int) -> None:
        """Fetch a group roster from the first source that has it.   tried: sources, until this one is asked."""
        member, assembly = self._me, self._me.rounds.round.assembly
        if assembly is None or effect.digest in assembly.found or member.rounds.state.round != effect.round:
            return
        if self._tried.get(effect.digest, 0) != tried:
            return
        source = next(sources, None)
        if source is None:
            self._tried.pop(effect.digest, None)
            member.take(gev.Fetched(effect.round, effect.digest, None))
            return
        tried = self._tried[effect.digest] = tried + 1
        target = member.reach(source)
        again = (effect, sources, tried)
        if target is None:
            member.after(self._net.refused_s(member.peer, source), self._fetch_next, *again)
            return
        member.after(ANSWER_S, self._fetch_next, *again)
        member.send("requests", target, get_output_bytes(), target.groups.give_roster, member, again)

    def give_roster(self, asker: Member, asked: tuple[gev.Fetch, Iterator[PeerId], int]) -> None:
        """Somebody asks for a group roster."""
        found = self.roster(asked[0].digest) if self._me.answers() else None
        if found is not None:
            self._me.send("group rosters", asker, roster_bytes(found), asker.groups.take_rosters, [found])
        else:
            self._me.send("requests", asker, framed(0), asker.groups.not_there, asked)

    def not_there(self, asked: tuple[gev.Fetch, Iterator[PeerId], int]) -> None:
        """Somebody does not have a group roster."""
        self._fetch_next(*asked)

    # Bundles ---------------------------------------------------------------------------------------------------------

    def _forward(self, effect: gev.Forward) -> None:
        """Send a bundle, and take the part back on the same stream."""
        member, key = self._me, (effect.round, effect.view, effect.part.index)
        if effect.to == member.peer:
            self.keep_bundle(effect, member.peer)
            return
        target = member.reach(effect.to)
        self._net.attach(member.peer, effect.to)
        if target is None:
            self._open[key, effect.to] = math.inf
            member.after(self._net.refused_s(member.peer, effect.to), self._fail, key, effect.to)
            return
        bundle, proofs = self._net.sizes.bundle_bytes(effect.part, len(effect.members))
        timeout_s = ROSTER_WAIT_S + 4 * (bundle + self._net.sizes.output_bytes(effect.part)) / SLOW_BYTES_PER_S
        self._timeouts.begin((key, effect.to), timeout_s)
        member.send("payload", target, bundle, target.groups.keep_bundle, effect, member.peer, head=("proofs", proofs))

    def _fail(self, key: Key, to: PeerId) -> None:
        if (key, to) in self._open:
            del self._open[key, to]
            self._me.take(gev.ForwardFailed(*key, to))

    def _hand_part(self, key: Key, answer: gev.PartReturned, to: PeerId) -> None:
        """Give a reduced part back on the stream of a bundle."""
        if to == self._me.peer:
            self._me.take(answer)
            return
        target, part = self._me.reach(to), self._plans[key[:2]].parts[key[2]]
        if target is not None and part is not None:
            self._me.send("result", target, self._net.sizes.output_bytes(part), target.groups.take_part, key,
                          self._me.peer, answer,
                          head=("reduced beside results", framed(self._head_bytes[key])))  # fmt: skip

    def take_part(self, key: Key, sender: PeerId, answer: gev.PartReturned) -> None:
        """A part came back on the stream of my bundle."""
        if (key, sender) in self._open:
            del self._open[key, sender]
            self._me.take(answer)

    # Columns ---------------------------------------------------------------------------------------------------------

    def listen(self, key: Key, peer: PeerId) -> None:
        """Somebody waits for a column."""
        if key in self._given:
            self._hand_column(key, self._given[key], peer)
        else:
            self._listening.setdefault(key, {})[peer] = None

    def _waiters(self, key: Key) -> Iterable[PeerId]:
        return self._listening.pop(key, {})

    def _hand_column(self, key: Key, event: gev.ColumnArrived, to: PeerId) -> None:
        target, plan = self._me.reach(to), self._plans.get(key[:2])
        if target is not None and plan is not None:
            size, head = column_bytes(plan, event.column, event.listing, self._net.sizes)
            self._me.send("result", target, size, target.groups.take_column, key, event, self._me.peer,
                          head=("reduced beside results", head))  # fmt: skip

    def take_column(self, key: Key, event: gev.ColumnArrived, sender: PeerId) -> None:
        """A column came on a stream."""
        self._me.streams.closed(key, sender)
        self._me.memory.add(column_digest(event.listing))
        self._me.take(event)

    def _gather(self, effect: ev.Gather, plan: Plan) -> None:
        self._gather_next(effect, plan, iter(effect.sources), 0)

    def _gather_next(self, effect: ev.Gather, plan: Plan, sources: Iterator[PeerId], tried: int) -> None:
        """Fetch a column by its digest from the first source that has it.   tried: sources, until this one is asked."""
        member = self._me
        if effect.root in member.memory or self._tried.get(effect.root, 0) != tried:
            return
        source = next(sources, None)
        if source is None:
            self._tried.pop(effect.root, None)
            member.take(ev.GatherFailed(effect.round, effect.root))
            return
        tried = self._tried[effect.root] = tried + 1
        target = member.reach(source)
        again = (effect, plan, sources, tried)
        if target is None:
            member.after(self._net.refused_s(member.peer, source), self._gather_next, *again)
            return
        timeout_s = ANSWER_S + 2 * self._net.sizes.output_bytes(effect.part) / SLOW_BYTES_PER_S
        member.after(timeout_s, self._gather_next, *again)
        have = self._have(effect, plan)
        member.send("requests", target, get_output_bytes(), target.groups.show_column, member, again, have)

    def _have(self, effect: ev.Gather, plan: Plan) -> tuple[bytes, ...]:
        """The digests that I hold of this column already: only what differs from them is to be sent."""
        exchange = self._me.rounds.round.exchanges.get(plan.view)
        column = getattr(exchange, "columns", {}).get(effect.part.index)
        return column.listing if column is not None else ()

    def show_column(
        self, asker: Member, asked: tuple[ev.Gather, Plan, Iterator[PeerId], int], have: tuple[bytes, ...]
    ) -> None:
        """Somebody asks for a column by its digest.   have: the signed digests of it that it holds."""
        effect, plan = asked[:2]
        if not self._me.holds(effect.root):
            self._me.send("requests", asker, framed(0), asker.groups.refused, asked)
            return
        listing, known = self._net.listings.get(effect.root, ()), frozenset(have)
        differing = tuple(raw if raw not in known else b"" for raw in listing)
        size, head = column_bytes(plan, effect.part.index, differing, self._net.sizes)
        event = gev.ColumnArrived(effect.round, plan.view, plan.roster, effect.part.index, listing)
        self._me.send("result", asker, size, asker.groups.take_gathered, effect.root, event,
                      head=("reduced beside results", head))  # fmt: skip

    def take_gathered(self, root: bytes, event: gev.ColumnArrived) -> None:
        """A column that was asked for is here."""
        if root not in self._me.memory:
            self._tried.pop(root, None)
            self._me.memory.add(root)
            self._me.take(event)

    def refused(self, asked: tuple[ev.Gather, Plan, Iterator[PeerId], int]) -> None:
        """Somebody does not have it."""
        self._gather_next(*asked)


@remember(4096)
def roster_bytes(roster: Signed[GroupRoster]) -> int:
    """What the roster of a group takes."""
    return framed(len(roster.raw))


@remember(1 << 14)
def column_bytes(plan: Plan, column: int, listing: tuple[bytes, ...], sizes: Sizes) -> tuple[int, int]:
    """What a column takes: its parts, and the signed digests beside them."""
    parts = plan.parts_of(column)
    size = sum(sizes.output_bytes(part) for part, raw in zip(parts, listing, strict=True) if part is not None and raw)
    return size, sum(framed(len(raw)) for raw in listing)
