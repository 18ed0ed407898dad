"""The bulk streams of one simulated member: slices out, results back, parts asked for, leaves for audits.

Played after `p2pnet.node.bulk`, with its deadlines, but with sizes in place of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pnet.core import events as ev
from p2pnet.core.parts import Part
from p2pnet.identity import PeerId
from p2pnet.sim.peer import AUDIT_CATCHES
from p2pnet.sim.scenario import SLOW_BYTES_PER_S
from p2pnet.sim.signatures import open_message
from p2pnet.sim.sizes import framed, get_leaf_bytes, get_output_bytes

if TYPE_CHECKING:
    from p2pnet.sim.member import Member

ANSWER_S = 10.0  # what a deadline allows beside the bytes (p2pnet.node.bulk)
ROSTER_WAIT_S = 30.0  # a slice may come before the roster it belongs to (p2pnet.node.views)
ROUNDS_KEPT = 2
TIMER_S = 1.0

Key = tuple[int, int, int]  # round, view, part


@dataclass(slots=True, eq=False)
class _Gathering:
    """One part that is asked for, source after source."""

    effect: ev.Gather
    sources: Iterator[PeerId]
    asked: PeerId | None = None
    tries: int = 0


class Timeouts:
    """One timer for many streams: each is failed when its time is over, or up to TIMER_S later."""

    def __init__(
        self, member: Member, open_: dict[tuple[Key, PeerId], float], fail: Callable[[Key, PeerId], None]
    ) -> None:
        """open_: until when each stream that is open may take; who closes one takes it out."""
        self._member, self._open, self._fail = member, open_, fail
        self._is_set = False

    def begin(self, stream: tuple[Key, PeerId], timeout_s: float) -> None:
        """A stream is open from now on."""
        self._open[stream] = self._member.simulation.now_s + timeout_s
        if not self._is_set:
            self._is_set = True
            self._member.after(timeout_s, self._see)

    def _see(self) -> None:
        now_s = self._member.simulation.now_s
        for key, to in [stream for stream, until_s in self._open.items() if until_s <= now_s]:
            self._fail(key, to)
        self._is_set = bool(self._open)
        if self._is_set:
            self._member.after(TIMER_S, self._see)


class Streams:
    """What one process knows of its streams."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._net = member.simulation
        self._exchanges: dict[tuple[int, int], ev.Exchange] = {}
        self._slices: dict[Key, dict[PeerId, None]] = {}
        self._waiting: dict[Key, dict[PeerId, None]] = {}
        self._answers: dict[Key, ev.Answer] = {}
        self._open: dict[tuple[Key, PeerId], float] = {}  # streams on which a result will come, and until when
        self._timeouts = Timeouts(member, self._open, self._fail)
        self._gathering: dict[bytes, _Gathering] = {}
        self._auditing: dict[bytes, ev.Audit] = {}

    def exchange(self, effect: ev.Exchange) -> None:
        """A roster is accepted: slices that came before it count."""
        self._exchanges[effect.round, effect.view] = effect
        for part in effect.parts:
            for sender in self._slices.get((effect.round, effect.view, part.index), ()):
                self._member.after(0.0, self._count, (effect.round, effect.view, part.index), sender)

    def forget(self, decided: int) -> None:
        """A round is decided: drop what nobody asks for any more."""
        oldest = decided + 1 - ROUNDS_KEPT
        self._exchanges = {key: kept for key, kept in self._exchanges.items() if key[0] >= oldest}
        for table in (self._slices, self._waiting, self._answers):
            for key in [key for key in table if key[0] < oldest]:
                del table[key]

    def scatter(self, effect: ev.Scatter) -> None:
        """Send my slice of a part to its reducer, and take the result back on the same stream."""
        part, to, member = effect.part, effect.to, self._member
        key = (effect.round, effect.view, part.index)
        if to == member.peer:
            self._keep(key, to)
            member.groups.listen(key, to)
            return
        if self._exchanges[key[:2]].plan is not None:
            self._net.attach(member.peer, to)
        sizes = self._net.sizes
        slice_bytes = sizes.slice_bytes(part)
        target = member.reach(to)
        if target is None:
            self._open[key, to] = math.inf
            member.after(self._net.refused_s(member.peer, to), self._fail, key, to)
            return
        timeout_s = ROSTER_WAIT_S + 4 * (slice_bytes + sizes.output_bytes(part)) / SLOW_BYTES_PER_S
        self._timeouts.begin((key, to), timeout_s)
        if effect.listens:
            head_bytes = sizes.slice_head_bytes(part)
            member.send("requests", target, head_bytes, target.groups.listen, key, member.peer)
            return
        member.send("payload", target, slice_bytes, target.streams.receive, key, member.peer,
                    head=("proofs", sizes.slice_head_bytes(part)))  # fmt: skip

    def receive(self, key: Key, sender: PeerId) -> None:
        """A slice is here; its sender waits for the result."""
        exchange = self._exchanges.get(key[:2])
        if exchange is None or exchange.plan is not None:
            self._member.groups.listen(key, sender)
        if exchange is not None and exchange.plan is not None:
            self._keep(key, sender)
            return
        answer = self._answers.get(key)
        if answer is None:
            self._waiting.setdefault(key, {})[sender] = None
        else:
            self._hand_over(key, sender, answer)
        self._keep(key, sender)

    def _keep(self, key: Key, sender: PeerId) -> None:
        self._slices.setdefault(key, {})[sender] = None
        if key[:2] in self._exchanges:
            self._count(key, sender)

    def _count(self, key: Key, sender: PeerId) -> None:
        self._member.take(ev.SliceArrived(*key, sender))

    def answer(self, effect: ev.Answer) -> None:
        """A part is reduced: all who wait for it get it."""
        key = (effect.round, effect.view, effect.part)
        self._answers[key] = effect
        for waiter in self._waiting.pop(key, {}):
            self._hand_over(key, waiter, effect)

    def _hand_over(self, key: Key, to: PeerId, answer: ev.Answer) -> None:
        exchange, target = self._exchanges.get(key[:2]), self._member.reach(to)
        if exchange is not None and target is not None:
            size = self._net.sizes.output_bytes(exchange.parts[key[2]])
            self._member.send("result", target, size, target.streams.take_result, key, self._member.peer, answer,
                              head=("reduced beside results", framed(len(answer.raw))))  # fmt: skip

    def take_result(self, key: Key, sender: PeerId, answer: ev.Answer) -> None:
        """A reduced part came back on the stream of my slice."""
        if self._open.pop((key, sender), None) is None:
            return  # given up already
        self._member.memory.add(answer.root)
        self._member.take(ev.Heard(sender, open_message(answer.raw, True)))
        self._member.take(ev.Gathered(key[0], answer.root))

    def closed(self, key: Key, to: PeerId) -> None:
        """A column came on the stream of my slice."""
        self._open.pop((key, to), None)

    def _fail(self, key: Key, to: PeerId) -> None:
        if self._open.pop((key, to), None) is not None:
            self._member.take(ev.ScatterFailed(*key, to))

    def lost(self, peer: PeerId) -> None:
        """The connection to a peer is gone, and every stream on it."""
        for key, to in [pair for pair in self._open if pair[1] == peer]:
            self._fail(key, to)
        for waiters in self._waiting.values():
            waiters.pop(peer, None)
        for gathering in [one for one in self._gathering.values() if one.asked == peer]:
            self._ask_next(gathering, gathering.tries)
        for audit in [one for one in self._auditing.values() if one.reducer == peer]:
            self.audited(audit, True)

    def gather(self, effect: ev.Gather, others: tuple[PeerId, ...]) -> None:
        """Fetch a part from the first source that has it."""
        if self._member.holds(effect.root):
            self._member.after(0.0, self._member.take, ev.Gathered(effect.round, effect.root))
            return
        sources = [peer for peer in dict.fromkeys((*effect.sources, *others)) if peer != self._member.peer]
        gathering = self._gathering[effect.root] = _Gathering(effect, iter(sources))
        self._ask_next(gathering, 0)

    def _ask_next(self, gathering: _Gathering, tries: int) -> None:
        """Ask the next source, unless this one has answered meanwhile."""
        effect, member = gathering.effect, self._member
        if self._gathering.get(effect.root) is not gathering or gathering.tries != tries:
            return
        gathering.tries += 1
        gathering.asked = source = next(gathering.sources, None)
        if source is None:
            del self._gathering[effect.root]
            member.take(ev.GatherFailed(effect.round, effect.root))
            return
        target = member.reach(source)
        if target is None:
            member.after(self._net.refused_s(member.peer, source), self._ask_next, gathering, gathering.tries)
            return
        timeout_s = ANSWER_S + 2 * self._net.sizes.output_bytes(effect.part) / SLOW_BYTES_PER_S
        member.after(timeout_s, self._ask_next, gathering, gathering.tries)
        member.send("requests", target, get_output_bytes(), target.streams.give, member, effect.root, effect.part)

    def give(self, asker: Member, root: bytes, part: Part) -> None:
        """Somebody asks for a reduced part."""
        if self._member.holds(root):
            size = self._net.sizes.output_bytes(part)
            self._member.send("result", asker, size, asker.streams.take_part, root)
        else:
            self._member.send("requests", asker, framed(0), asker.streams.refused, root, self._member.peer)

    def take_part(self, root: bytes) -> None:
        """A reduced part that was asked for is here."""
        gathering = self._gathering.pop(root, None)
        if gathering is not None:
            self._member.memory.add(root)
            self._member.take(ev.Gathered(gathering.effect.round, root))

    def refused(self, root: bytes, sender: PeerId) -> None:
        """Somebody does not have it."""
        gathering = self._gathering.get(root)
        if gathering is not None and gathering.asked == sender:
            self._ask_next(gathering, gathering.tries)

    def audit(self, effect: ev.Audit) -> None:
        """Recompute one leaf of a part from its inputs. A reducer that cannot be asked is not called a liar."""
        member = self._member
        target = None if effect.reducer == member.peer else member.reach(effect.reducer)
        if target is None or (effect.round, effect.view) not in self._exchanges or not member.holds(effect.root):
            member.after(0.0, member.take, ev.Audited(effect.round, effect.root, True))
            return
        self._auditing[effect.root] = effect
        inputs = sum(1 for q in effect.inputs if q)
        size = self._net.sizes.leaves_bytes(effect.part, effect.part.start + effect.leaf, inputs)
        member.after(effect.patience_s + size / SLOW_BYTES_PER_S, self.audited, effect, True)
        request = get_leaf_bytes(effect.part.index, effect.leaf)
        member.send("requests", target, request, target.streams.show_leaf, member, effect, size)

    def show_leaf(self, asker: Member, effect: ev.Audit, size_bytes: int) -> None:
        """Somebody audits a part that I reduced."""
        known = (effect.round, effect.view, effect.part.index) in self._answers
        caught = effect.root in self._net.lies and self._net.rng.random() < AUDIT_CATCHES
        size = size_bytes if known else framed(4)
        self._member.send("audits", asker, size, asker.streams.audited, effect, not caught)

    def audited(self, effect: ev.Audit, honest: bool) -> None:
        """What an audit found, or that nobody could be asked."""
        if self._auditing.pop(effect.root, None) is not None:
            self._member.take(ev.Audited(effect.round, effect.root, honest))
