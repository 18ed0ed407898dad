"""How what a simulated peer has of an exchange of many groups gets to the others, where messages have no size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import Plan, column_digest
from p2pnet.identity import PeerId
from p2pnet.sim.cargo import Cargo, Key

if TYPE_CHECKING:
    from p2pnet.sim.network import Simulation


class Bundles(Cargo):
    """The part of one process in exchanges of many groups."""

    _net: Simulation

    def listen(self, key: Key, peer: PeerId) -> None:
        """Somebody waits for a column; it may be here."""
        given = self._given.get(key)
        if given is not None:
            self._hand_column(key, given, peer)

    def broken(self, peer: PeerId) -> None:
        """The streams to or from a peer are gone: who sent a bundle on one sees it."""
        for key, waiting in self._waiting.items():
            for sender in sorted(waiting) if peer == self._me.peer else [peer] if peer in waiting else []:
                del waiting[sender]
                if sender != self._me.peer:
                    failed = gev.ForwardFailed(*key, self._me.peer)
                    self._net.at(self._net.setting.detect_s, self._net.peers[sender].take, failed)

    def _tell(self, effect: gev.Tell) -> None:
        for peer in effect.to:
            self._net.carry(self._me.peer, peer, effect.raw, True)

    def _fetch(self, effect: gev.Fetch) -> None:
        """Fetch a group roster from the first source that has it."""

        def answer() -> None:
            for source in effect.sources:
                holder = self._net.peers.get(source)
                if holder is None or not holder.is_running() or not self._net.talks(self._me.peer, source):
                    continue
                if (roster := holder.bundles.roster(effect.digest)) is not None:
                    self._me.take(gev.Fetched(effect.round, effect.digest, roster))
                    return
            self._me.take(gev.Fetched(effect.round, effect.digest, None))

        self._me.after(self._net.trip_s(self._me.peer, effect.sources), answer)

    def _forward(self, effect: gev.Forward) -> None:
        """Carry a bundle; the stream waits for the part."""
        target, me = self._net.peers[effect.to], self._me

        def arrive() -> None:
            if not target.alive or not self._net.passes(me.peer, effect.to):
                me.take(gev.ForwardFailed(effect.round, effect.view, effect.part.index, effect.to))
                return
            target.bundles.receive(effect, me.peer, self._plans[effect.round, effect.view].roster)

        self._net.at(self._net.delay_s(me.peer, effect.to, is_bulk=True), arrive)

    def receive(self, effect: gev.Forward, sender: PeerId, roster: bytes) -> None:
        """A bundle is here; one of another roster is no use."""
        plan = self._plans.get((effect.round, effect.view))
        if plan is not None and plan.roster != roster:
            failed = gev.ForwardFailed(effect.round, effect.view, effect.part.index, self._me.peer)
            self._net.peers[sender].take(failed)
            return
        self.keep_bundle(effect, sender)

    def _hand_part(self, key: Key, answer: gev.PartReturned, to: PeerId) -> None:
        """Carry a reduced part back on the stream of a bundle."""
        event = gev.PartReturned(*key[:2], self._me.tell_digest(answer.signed))
        if not self._net.passes(self._me.peer, to):
            failed = gev.ForwardFailed(*key, self._me.peer)
            self._net.at(self._net.setting.detect_s, self._net.peers[to].take, failed)
            return
        self._net.at(self._net.delay_s(self._me.peer, to, is_bulk=True), self._net.peers[to].take, event)

    def _waiters(self, key: Key) -> Iterable[PeerId]:
        return sorted(self._me.waiting.pop(key, ()))

    def _hand_column(self, key: Key, event: gev.ColumnArrived, to: PeerId) -> None:
        if self._net.passes(self._me.peer, to):
            delay_s = self._net.delay_s(self._me.peer, to, is_bulk=True)
            self._net.at(delay_s, self._net.peers[to].bundles.take_column, event)
        else:
            failed = ev.ScatterFailed(*key, self._me.peer)
            self._net.at(self._net.setting.detect_s, self._net.peers[to].take, failed)

    def take_column(self, event: gev.ColumnArrived) -> None:
        """A column came on a stream."""
        if self._me.alive:
            self._me.memory.add(column_digest(event.listing))
            self._me.take(event)

    def _gather(self, effect: ev.Gather, plan: Plan) -> None:
        """Fetch a column by its digest from the first source that has it."""
        me = self._me

        def answer() -> None:
            for source in effect.sources:
                holder = self._net.peers[source]
                reachable = holder.is_running() and self._net.talks(me.peer, source)
                if reachable and effect.root in holder.memory | holder.disk.parts:
                    listing = self._net.listings[effect.root]
                    me.memory.add(effect.root)
                    me.take(gev.ColumnArrived(effect.round, plan.view, plan.roster, effect.part.index, listing))
                    return
            me.take(ev.GatherFailed(effect.round, effect.root))

        me.after(2 * self._net.trip_s(me.peer, effect.sources), answer)
