"""One simulated member on links with a rate: the node's own machines for rounds, gossip and membership.

`SimPeer` plays learner and disk; here its messages travel by gossip and over streams, its training takes a machine's
time, and who comes back fetches what was decided before it takes part (after `p2pnet.node.runner`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.remember import remember
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim.bundle_streams import BundleStreams
from p2pnet.sim.contacts import Contacts
from p2pnet.sim.flood import Flood
from p2pnet.sim.liar import Liar
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.scenario import ROUND_SAMPLES
from p2pnet.sim.sizes import framed, get_output_bytes
from p2pnet.sim.streams import ROUNDS_KEPT, Streams
from p2pnet.wire.codec import encode
from p2pnet.wire.membership import Reach
from p2pnet.wire.round import Decision, WideDecision

if TYPE_CHECKING:
    from p2pnet.sim.internet import Internet

LOOK_EVERY_S = 0.1  # for members, before anything else (p2pnet.node.runner)
LOOK_S = 10.0  # after so long without any a peer goes on alone (p2pnet.node.history)
FETCHES_MAX = 8  # in a row, while the swarm goes on
SERVE_MAX = 32  # decisions sent in answer to one ask (p2pnet.node.peer)


class Member(SimPeer):
    """One member: a process that comes and goes, on a machine that stays."""

    simulation: Internet

    def __init__(self, simulation: Internet, peer: PeerId, state: SwarmState) -> None:
        super().__init__(simulation, peer, state)
        self.simulation, self.depth_max = simulation, 0  # how a stalled round goes on in branches is not played here
        self.station, self.is_private = simulation.stations[peer]
        rng = random.Random(f"{simulation.seed} {peer.hex()}")
        self.pace = math.exp(simulation.scenario.speed_spread * rng.gauss(0, 1))
        self._rng = rng
        self._fetches = 0  # that are left, of what was decided
        self.takes_part = False  # it knows what was decided: its round machine runs
        self.held: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None  # what waits for a frozen process

    def start(self) -> None:
        """Start or restart the process: meet the others, learn what was decided, then take part."""
        self.alive, self.takes_part, self.held = True, False, None
        self.epoch += 1
        self.station.turn_on()
        self.streams = Streams(self)
        self.groups = BundleStreams(self)
        self.contacts = (Flood if self.simulation.plays_gossip else Contacts)(self, self._rng)
        self.simulation.started(self)
        self.contacts.start()
        if self.simulation.begins:  # nobody knows of anything that was decided
            self._begin()
        else:
            self._learn(self.simulation.now_s + LOOK_S, FETCHES_MAX)

    def stop(self) -> None:
        """End the process at once."""
        self.alive, self.takes_part, self.held = False, False, None
        self.epoch += 1
        self.station.turn_off()

    # Time -----------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something later, if this process still runs then."""
        self.simulation.at(delay_s, self._fire, self.epoch, action, arguments)

    def _fire(self, epoch: int, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if epoch == self.epoch:
            self.do(action, arguments)

    def do(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Do something now; when frozen, as soon as the process runs again."""
        if self.held is not None:
            self.held.append((action, arguments))
        else:
            action(*arguments)

    def _later(self, delay_s: float, event: ev.Event) -> None:
        self.after(delay_s, self.take, event)

    # Talking --------------------------------------------------------------------------------------------------------

    def reach(self, peer: PeerId) -> Member | None:
        """Whoever can be sent something now; None for who is gone or beyond a cut."""
        return self.simulation.reach(self, peer)

    def send(
        self, kind: str, target: Member, size_bytes: int, action: Callable[..., None], *arguments: Any,
        head: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Send so many bytes; when all are there the target does the action.   head: a message before them."""
        self.simulation.send(kind, self, target, size_bytes, action, arguments, head)

    def take(self, event: ev.Event, swarm: bytes | None = None) -> None:
        """Hand an event to the round machine, once there is one."""
        if not self.takes_part:
            return
        if type(event) in ev.FREIGHT and swarm is None and self.watch is None and not self.pending:
            looks = self.course.final.looks
            found = self.course.handle(event, self.simulation.now_s, self.swarm)
            if not found and looks == self.course.final.looks:
                return  # no deadline has changed
            self.pending.extend(found)
            self.go_on()
            return
        super().take(event, swarm)

    def answers(self) -> bool:
        """Tell whether it would answer now what it is asked."""
        return self.takes_part and self.held is None

    def holds(self, root: bytes) -> bool:
        """Tell whether the bytes of a part are here."""
        return root in self.memory or root in self.disk.parts

    def perform(self, effect: ev.Effect) -> None:
        """See `SimPeer`; what a person would be told is written down too."""
        if isinstance(effect, ev.Note) and self.honest:
            self.simulation.chronicle.noted(effect)
        super().perform(effect)

    def _talk(self, effect: ev.Effect) -> None:
        if self.groups.perform(effect):
            return
        match effect:
            case ev.Broadcast(raw=raw):
                self.contacts.broadcast(raw)
            case ev.Send(to=to, raw=raw):
                self.contacts.send(to, raw)
            case ev.Exchange():
                self.simulation.chronicle.exchanging(effect.round, len(effect.commits), self.simulation.now_s)
                self.exchanges[effect.round, effect.view] = effect
                self.groups.exchange(effect)
                self.streams.exchange(effect)
            case ev.Scatter():
                self.streams.scatter(effect)
            case ev.Reduce():
                self._reduce(effect)
            case ev.Answer():
                self.streams.answer(effect)
            case ev.Gather():
                over = self.rounds.round.undecided_certificate is not None  # perhaps long ago: anybody may have it
                self.streams.gather(effect, tuple(self.contacts.up) if over else ())
            case ev.Audit():
                self.streams.audit(effect)
            case ev.Serve(to=to, round=start):
                for decision in self.disk.log[start : start + SERVE_MAX]:
                    self._serve(to, decision)

    def _serve(self, to: PeerId, decision: Decision | WideDecision) -> None:
        """Show a whole decision; one of many groups is too large for a message, and goes as a file would."""
        if not isinstance(decision, WideDecision):
            self.contacts.send(to, encode(decision))
        elif (target := self.reach(to)) is not None:
            size = framed(encoded_bytes(decision))
            self.send("decisions", target, size, target.take, ev.Heard(self.peer, decision))

    # Working --------------------------------------------------------------------------------------------------------

    def _train(self, effect: ev.Train) -> None:
        scenario, number = self.simulation.scenario, effect.round
        self.simulation.training(number)
        checksum = int.from_bytes(self.disk.theta[:8], "big")
        self._later(0.0, ev.Started(number, checksum, self.disk.theta if effect.state_wanted else b""))
        train_s = scenario.train_s * self.pace * math.exp(scenario.train_spread * self._rng.gauss(0, 1))
        encode_s = 4e-9 * scenario.params / scenario.encode_gb_s
        up, down = (round(8 * line.bytes_per_s / 1000) for line in (self.station.up, self.station.down))
        reach = Reach.PRIVATE if self.is_private else Reach.PUBLIC
        root = self._rng.randbytes(32)
        done = ev.Encoded(
            number, root, ROUND_SAMPLES, True, int(reach), min(up, 2**32 - 1), min(down, 2**32 - 1)
        )  # fmt: skip
        self._later(min(train_s, scenario.window_s) + encode_s, done)

    def reduce_part_s(self, effect: gev.ReducePart) -> float:
        """See `SimPeer`; by its bytes."""
        values = self.simulation.sizes.values(effect.part) * sum(map(len, effect.senders))
        return 4e-9 * values / self.simulation.scenario.reduce_gb_s

    def _reduce_s(self, effect: ev.Reduce) -> float:
        values = self.simulation.sizes.values(effect.part) * len(effect.senders)
        return 4e-9 * values / self.simulation.scenario.reduce_gb_s

    def _apply_s(self, effect: ev.Decide) -> float:
        return 0.0 if effect.void else 4e-9 * self.simulation.scenario.params / self.simulation.scenario.apply_gb_s

    def _decide(self, effect: ev.Decide) -> None:
        super()._decide(effect)
        self.disk.log[-1] = self.simulation.settled(self, effect)  # one object for all: memory
        self.streams.forget(effect.round)
        self.groups.forget(effect.round, ROUNDS_KEPT)
        old = [key for key in self.exchanges if key[0] < effect.round]
        for key in old:
            del self.exchanges[key]

    def _submit(self, event: ev.Encoded) -> None:
        """Whose updates are where is not followed here."""

    def _account(self, effect: ev.Decide) -> None:
        """See `_submit`."""

    # Coming back ----------------------------------------------------------------------------------------------------

    def _learn(self, alone_s: float, fetches: int) -> None:
        """Ask a member what was decided, as long as there is more; then take part."""
        self._fetches = fetches
        others = [member for peer in self.contacts.up if (member := self.reach(peer)) and member.takes_part]
        if not self.contacts.up and self.simulation.now_s < alone_s and self.simulation.is_running:
            self.after(LOOK_EVERY_S, self._learn, alone_s, fetches)
            return
        if not others or fetches == 0:
            self._begin()
            return
        source = self._rng.choice(others)
        self.after(LOOK_S + self.simulation.scenario.exchange_s, self._ask_another, alone_s, fetches)
        self.send("requests", source, get_output_bytes(), source.give_history, self, fetches)

    def _ask_another(self, alone_s: float, fetches: int) -> None:
        if not self.takes_part and self._fetches == fetches:
            self._learn(alone_s, fetches - 1)

    def give_history(self, asker: Member, fetches: int) -> None:
        """Give a peer that was away the decisions since, and their results."""
        start = len(asker.disk.log)
        decisions = self.disk.log[start:] if self.takes_part else []
        size = framed(0) + sum(framed(encoded_bytes(decision)) for decision in decisions)
        results = sum(self.simulation.sizes.result_bytes for decision in decisions if has_result(decision))
        state = self.disk.state, self.disk.theta, self.disk.parts
        self.send("catch-up", asker, size + results, asker.catch_up, start, decisions, state, fetches)

    def catch_up(
        self,
        start: int,
        decisions: list[Decision | WideDecision],
        state: tuple[SwarmState, bytes, set[bytes]],
        fetches: int,
    ) -> None:
        """What was decided while this peer was away is here."""
        if self.takes_part or len(self.disk.log) != start:
            return
        if not decisions:
            self._begin()
            return
        self.disk.log += decisions
        self.disk.state, self.disk.theta = state[:2]
        self.disk.parts |= state[2]
        self._learn(self.simulation.now_s, fetches - 1)

    def _begin(self) -> None:
        """Take part from here on."""
        self.course = self._restore()
        self.takes_part = True
        self.simulation.began(self)
        for peer in self.contacts.up:
            self.take(ev.PeerUp(peer))
        self.take(ev.Tick())


@remember(64)
def encoded_bytes(decision: Decision | WideDecision) -> int:
    """How many bytes a decision takes; it is encoded once for all that are sent the same object."""
    return len(encode(decision))


def has_result(decision: Decision | WideDecision) -> bool:
    """Tell whether a round was not decided VOID."""
    return isinstance(decision, WideDecision) or bool(decision.commits)


class LyingMember(Liar, Member):
    """A member that lies: directly to whoever listens, beside what it gossips."""

    def take(self, event: ev.Event, swarm: bytes | None = None) -> None:
        """See `Liar`; who does not know yet what was decided has nothing to lie about."""
        if self.takes_part:
            super().take(event, swarm)
