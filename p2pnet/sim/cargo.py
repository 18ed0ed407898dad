"""What a simulated peer holds of an exchange of many groups, however it travels: bundles, parts, columns."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import Plan, row_of
from p2pnet.core.remember import remember
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import open_raw
from p2pnet.wire.round import GroupRoster, WideReduced
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.sim.peer import SimPeer

Key = tuple[int, int, int]  # round, view, part or column

WHOLE = 257  # q + 1 of a slice that is not clipped


class Cargo:
    """The part of one process in exchanges of many groups; how things get from one to another is the subclass's."""

    def __init__(self, peer: SimPeer) -> None:
        self._me = peer
        self._net: Any = peer.simulation  # each subclass has its own
        self._plans: dict[tuple[int, int], Plan] = {}
        self._bundles: dict[Key, dict[int, gev.BundleArrived]] = {}  # by group
        self._waiting: dict[Key, dict[PeerId, int]] = {}  # who sent a bundle, and of which group it is
        self._answers: dict[Key, gev.PartReturned] = {}
        self._head_bytes: dict[Key, int] = {}  # of the signed digest of a part
        self._given: dict[Key, gev.ColumnArrived] = {}
        self._how: dict[type, Callable[[Any], None]] = {
            gev.Tell: self._tell, gev.Fetch: self._fetch, gev.Forward: self._forward, gev.ReducePart: self._reduce,
            gev.Give: self._give,
        }  # fmt: skip

    def perform(self, effect: ev.Effect) -> bool:
        """Do what the machine wants done of this; whether it was of this."""
        how = self._how.get(type(effect))
        if how is not None:
            how(effect)
        elif isinstance(effect, ev.Answer) and (effect.round, effect.view) in self._plans:
            self._answer(effect)
        elif isinstance(effect, ev.Gather) and effect.plan is not None:
            self._gather(effect, effect.plan)
        else:
            return False
        return True

    def exchange(self, effect: ev.Exchange) -> None:
        """A roster of many groups is accepted: bundles that came before it count."""
        if effect.plan is None:
            return
        self._plans[effect.round, effect.view] = effect.plan
        for key, bundles in self._bundles.items():
            if key[:2] == (effect.round, effect.view):
                for _, event in sorted(bundles.items()):
                    self._me.later(0.0, event)
        self._bundles = {key: kept for key, kept in self._bundles.items() if key[:2] != (effect.round, effect.view)}

    def forget(self, decided: int, kept: int) -> None:
        """A round is decided: drop what nobody asks for any more.   kept: rounds."""
        oldest = decided + 1 - kept
        self._plans = {key: plan for key, plan in self._plans.items() if key[0] >= oldest}
        tables: list[dict[Key, Any]] = [self._bundles, self._waiting, self._answers, self._head_bytes, self._given]
        for table in tables:
            for key in [key for key in table if key[0] < oldest]:
                del table[key]

    def roster(self, digest: bytes) -> Signed[GroupRoster] | None:
        """A group roster that is here."""
        assembly = self._me.rounds.round.assembly
        return assembly.found.get(digest) if assembly is not None else None

    def keep_bundle(self, effect: gev.Forward, sender: PeerId) -> None:
        """A bundle is here; its sender waits for the part."""
        key = effect.round, effect.view, effect.part.index
        event = gev.BundleArrived(*key, effect.group, sender, effect.members)
        if key[:2] not in self._plans:
            self._bundles.setdefault(key, {})[effect.group] = event
        answer = self._answers.get(key)
        if answer is not None:
            self._hand_part(key, answer, sender)
            return
        self._waiting.setdefault(key, {})[sender] = effect.group
        if key[:2] in self._plans:
            self._me.take(event)

    def _reduce(self, effect: gev.ReducePart) -> None:
        plan, me = self._plans[effect.round, effect.view], self._me
        rows = rows_of(plan, effect.senders)
        root = hashlib.sha256(b"wide" + effect.part.start.to_bytes(4, "big") + _inputs(plan, rows)).digest()
        if effect.round != me.stuck_round:
            done = gev.PartReduced(effect.round, effect.view, effect.part.index, rows, root, root)
            me.later(me.reduce_part_s(effect), done)

    def _answer(self, effect: ev.Answer) -> None:
        key, signed = (effect.round, effect.view, effect.part), open_raw(effect.raw)
        assert isinstance(signed, Signed)
        assert isinstance(signed.message, WideReduced)
        answer = self._answers[key] = gev.PartReturned(effect.round, effect.view, signed)
        self._head_bytes[key] = len(effect.raw)
        for sender in sorted(self._waiting.pop(key, {})):
            self._hand_part(key, answer, sender)

    def _give(self, effect: gev.Give) -> None:
        key, plan = (effect.round, effect.view, effect.column), self._plans[effect.round, effect.view]
        event = gev.ColumnArrived(*key[:2], plan.roster, effect.column, effect.listing)
        self._given[key] = event
        self._net.listings[effect.digest] = effect.listing
        self._me.memory.add(effect.digest)
        for waiter in self._waiters(key):
            if waiter != self._me.peer:
                self._hand_column(key, event, waiter)

    # How things travel -----------------------------------------------------------------------------------------------

    def _tell(self, effect: gev.Tell) -> None:
        raise NotImplementedError

    def _fetch(self, effect: gev.Fetch) -> None:
        raise NotImplementedError

    def _forward(self, effect: gev.Forward) -> None:
        raise NotImplementedError

    def _hand_part(self, key: Key, answer: gev.PartReturned, to: PeerId) -> None:
        raise NotImplementedError

    def _waiters(self, key: Key) -> Iterable[PeerId]:
        """Who waits for a column; they are forgotten."""
        raise NotImplementedError

    def _hand_column(self, key: Key, event: gev.ColumnArrived, to: PeerId) -> None:
        raise NotImplementedError

    def _gather(self, effect: ev.Gather, plan: Plan) -> None:
        raise NotImplementedError


@remember(1 << 14)
def _row(plan: Plan, group: int, senders: frozenset[PeerId]) -> bytes:
    return row_of(plan.groups[group], dict.fromkeys(senders, WHOLE))


@functools.lru_cache(maxsize=1 << 12)
def rows_of(plan: Plan, senders: tuple[frozenset[PeerId], ...]) -> tuple[bytes, ...]:
    """The rows of all groups; one object for equal ones."""
    return _same(tuple(_row(plan, group, each) for group, each in enumerate(senders)))


@functools.lru_cache(maxsize=1 << 12)
def _same(rows: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return rows


@remember(1 << 12)
def _inputs(plan: Plan, rows: tuple[bytes, ...]) -> bytes:
    """What an output follows from: whose slices, of which roster."""
    return hashlib.sha256(plan.roster + b"".join(rows)).digest()
