"""A simulated peer that lies: says different things to different peers, votes for everything, makes up parts.

It signs only as itself, or under names that it makes up; it cannot forge another's signature.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from p2pnet.core import events as ev
from p2pnet.core.group_events import Tell
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.signatures import fake_sign, open_message
from p2pnet.wire.branch import Branch
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.evidence import DoubleSigned
from p2pnet.wire.round import (
    Ask,
    Commit,
    Decision,
    Endorsement,
    Exclusion,
    GroupRoster,
    Outcome,
    Phase,
    Proposal,
    Quorum,
    Reduced,
    Roster,
    Vote,
    WideOutcome,
    WideReduced,
    WideRoster,
    decode_value,
    listing_digest,
    outcome_digest,
)  # fmt: skip
from p2pnet.wire.signing import Signed, sign_message

if TYPE_CHECKING:
    from p2pnet.sim.network import Simulation

M = TypeVar("M", bound=Message)
NAMES = 3  # made-up names at a time
HEARD_MAX = 200  # messages of others that it remembers, to make evidence of


class Liar(SimPeer):
    """A peer whose machine is honest and whose mouth is not, until it repents."""

    def __init__(self, simulation: Simulation, peer: PeerId, state: SwarmState) -> None:
        super().__init__(simulation, peer, state)
        self.honest = False
        self.lies = True
        self.rng = random.Random(simulation.seed * 1000 + peer[0])
        self.heard: deque[Signed[Message]] = deque(maxlen=HEARD_MAX)

    def take(self, event: ev.Event, swarm: bytes | None = None) -> None:
        """Vote for everything that anybody proposes, in both phases, and go on as if nothing were."""
        if self.lies and self.alive and isinstance(event, ev.Heard) and isinstance(event.message, Signed):
            message = event.message.message
            self.heard.append(event.message)  # type: ignore[arg-type]
            if isinstance(message, Proposal):
                value = outcome_digest(message.outcome)
                for phase in Phase:
                    self._tell_some(Vote(message.swarm, message.round, message.view, int(phase), value))
        super().take(event, swarm)
        if self.lies and self.alive and self.rng.random() < 0.02:
            self._babble()

    def perform(self, effect: ev.Effect) -> None:
        """Twist what is sent."""
        if not self.lies:
            if not isinstance(effect, ev.Persist):  # its slots are spoilt; that it may sign twice is what liars do
                super().perform(effect)
            return
        match effect:
            case ev.Persist():
                pass
            case ev.Broadcast(raw=raw, signed=signed):
                for peer in self.simulation.peers:
                    self._say(peer, raw, signed)
            case ev.Send(to=to, raw=raw, signed=signed):
                self._say(to, raw, signed)
            case Tell(to=several, raw=raw):
                for to in several:
                    self._say(to, raw, True)
            case _:
                super().perform(effect)

    def _say(self, to: PeerId, raw: bytes, signed: bool) -> None:
        message = open_message(raw, signed)
        draw = self.rng.random()
        if draw < 0.1:
            return
        if draw < 0.6:
            self.simulation.carry(self.peer, to, raw, signed)
        elif isinstance(message, Signed):
            if message.peer != self.peer:
                return
            twisted = self._twist(message.message)
            self.simulation.carry(self.peer, to, self._sign(twisted), True)
        elif isinstance(message, Quorum):
            value = self.rng.choice([message.value, self.rng.randbytes(32)])
            listed = tuple(replace(each, signature=self.rng.randbytes(64)) for each in message.endorsements)
            self.simulation.carry(self.peer, to, encode(replace(message, value=value, endorsements=listed)), False)

    def _twist(self, message: Message) -> Message:
        """Another message for the same slot."""
        rng, value = self.rng, self.rng.randbytes(32)
        match message:
            case Commit():
                return replace(message, payload_root=rng.randbytes(32), samples=rng.randrange(2**32))
            case Roster(commits=commits):
                return replace(message, commits=tuple(sorted(rng.sample(commits, rng.randint(1, len(commits))))))
            case Reduced(root=root):
                lie = rng.choice([root, rng.randbytes(32)])
                self.memory.add(lie)
                self.simulation.lies.add(lie)
                return replace(message, root=lie, inputs=message.inputs[: rng.randint(1, len(message.inputs))])
            case Proposal():
                return replace(message, outcome=self._twist_outcome(message.outcome), valid_view=rng.choice([0, 0, 1]))
            case GroupRoster(commits=commits):
                return replace(message, commits=tuple(sorted(rng.sample(commits, rng.randint(1, len(commits))))))
            case WideRoster(groups=groups):
                left_out = rng.randrange(len(groups))
                return replace(message, groups=(*groups[:left_out], rng.choice([b"", value]), *groups[left_out + 1 :]))
            case Branch():
                some = [peer for peer in self.rounds.state.electorate if peer == self.peer or rng.random() < 0.5]
                return replace(message, voters=tuple(some), hears=rng.randbytes(len(message.hears)))
            case Vote():
                return replace(message, value=rng.choice([b"", message.value, rng.randbytes(32), rng.randbytes(5)]))
        return message

    def _twist_outcome(self, raw: bytes) -> bytes:
        rng = self.rng
        try:
            outcome = decode_value(raw)
        except WireError:  # another liar's
            return rng.randbytes(rng.randint(1, 99))
        match rng.randrange(5):
            case 0:
                return rng.randbytes(rng.randint(1, 99))
            case 1:
                return encode(self.rounds.state.outcome(b"", 0, (), (), outcome.state))
            case 2:
                return encode(replace(outcome, electorate=(self.peer,)))
            case 3:
                return encode(self._accuse(outcome))
        if isinstance(outcome, WideOutcome):
            return encode(self._twist_columns(outcome))
        lied = []
        for each in outcome.reduced:
            reduced: Reduced = open_message(each, True).message  # type: ignore[union-attr,assignment]
            lie = rng.randbytes(32)
            self.memory.add(lie)
            self.simulation.lies.add(lie)
            lied.append(self._sign(replace(reduced, root=lie)))
        return encode(replace(outcome, reduced=tuple(lied)))

    def tell_digest(self, signed: Signed[WideReduced]) -> Signed[WideReduced]:
        """Tell some that the part is what it is not."""
        if not self.lies or self.rng.random() < 0.7:
            return signed
        lie = self.rng.randbytes(32)
        self.simulation.lies.add(lie)
        message = replace(signed.message, root=lie)
        return sign_message(message, self.peer, lambda data: fake_sign(self.peer, data))

    def _twist_columns(self, outcome: WideOutcome) -> WideOutcome:
        """Columns that are void, or that nobody has, or one with a part that is not what it is said to be."""
        rng, columns = self.rng, list(outcome.columns)
        number = rng.randrange(len(columns))
        plan = next((one.plan for one in self.rounds.round.candidates.found.values() if one.plan), None)
        listing = list(self.simulation.listings.get(columns[number], ()))
        mine = [at for at, raw in enumerate(listing) if raw and open_message(raw, True).peer == self.peer]  # type: ignore[union-attr]
        if plan is None or not listing or rng.random() < 0.3:
            columns[number] = rng.randbytes(32)
            return replace(outcome, columns=tuple(columns))
        for at in range(len(listing)):
            if at in mine and rng.random() < 0.5:
                told: WideReduced = open_message(listing[at], True).message  # type: ignore[union-attr,assignment]
                lie = rng.randbytes(32)
                self.simulation.lies.add(lie)
                listing[at] = self._sign(replace(told, root=lie))
            elif rng.random() < 0.5:
                listing[at] = b""
        columns[number] = listing_digest(tuple(listing))
        self.simulation.listings[columns[number]] = tuple(listing)
        self.memory.add(columns[number])
        return replace(outcome, columns=tuple(columns))

    def _accuse(self, outcome: Outcome | WideOutcome) -> Outcome | WideOutcome:
        """An outcome that excludes an honest member, for evidence that is none or another's."""
        held = list(self.rounds.context.docket.held)
        victim = self.rng.choice([peer.peer for peer in self.simulation.peers.values() if peer.honest])
        lie = Exclusion(victim, self.rng.choice([self.rng.randbytes(32), *held]))
        if isinstance(outcome, WideOutcome):
            return replace(outcome, excluded=(lie,))
        commits: list[Signed[Commit]] = []
        if not outcome.void and (listed := self.rounds.round.rosters.find(outcome.roster)) is not None:
            commits = list(listed.commits)
        return self.rounds.state.outcome(outcome.roster, outcome.view, outcome.reduced, commits, outcome.state, (lie,))

    def _forge(self) -> None:
        """Accuse honest members of what they did not do: two slots, one message twice, a signature made up."""
        rng, heard = self.rng, [m for m in self.heard if m.peer != self.peer]
        if len(heard) < 2:
            return
        one, other = rng.sample(heard, 2)
        twisted = sign_message(self._twist(one.message), one.peer, lambda _data: rng.randbytes(64))
        pair = rng.choice([(one, other), (one, one), (one, twisted)])
        first, second = sorted(pair, key=lambda signed: signed.body)
        raw = encode(DoubleSigned(first.raw, second.raw))
        for peer in self.simulation.peers:
            self.simulation.carry_evidence(self.peer, peer, raw)

    def _babble(self) -> None:
        """Say things nobody asked for."""
        self._forge()
        rng, state = self.rng, self.rounds.state
        number = rng.choice([state.round, state.round + 1, 2**32 - 1])
        view = rng.choice([0, 1, self.rounds.round.deciding.view + 1, 60_000, 2**32 - 1])
        value = rng.randbytes(32)
        forged = Quorum(
            state.swarm, number, view, rng.choice([1, 2]), value,
            tuple(Endorsement(peer, rng.randbytes(64)) for peer in state.electorate),
        )  # fmt: skip
        void = encode(state.outcome(b"", 0, (), (), b""))
        for peer in self.simulation.peers:
            self.simulation.carry(self.peer, peer, encode(forged), False)
            self.simulation.carry(self.peer, peer, encode(Decision(forged, void, ())), False)
            self.simulation.carry(self.peer, peer, encode(Ask(state.swarm, number, view)), False)
        self._tell_some(Vote(state.swarm, number, view, rng.choice([1, 2]), rng.choice([b"", value])))
        self._tell_some(Reduced(state.swarm, number, view, rng.randrange(64), 0, 1, value, (257,), value, value))
        for _ in range(NAMES):
            name = PeerId(rng.randbytes(32))
            commit = Commit(state.swarm, number, state.lineage, value, 1, value, 1, 0, 1, 2**32 - 1, 2**32 - 1)
            signed = sign_message(commit, name, lambda data, name=name: fake_sign(name, data))  # type: ignore[misc]
            for peer in rng.sample(sorted(self.simulation.peers), max(1, len(self.simulation.peers) // 2)):
                self.simulation.carry(self.peer, peer, signed.raw, True)

    def _tell_some(self, message: Message) -> None:
        raw = self._sign(message)
        for peer in self.simulation.peers:
            if self.rng.random() < 0.7:
                self.simulation.carry(self.peer, peer, raw, True)

    def _sign(self, message: Message) -> bytes:
        return sign_message(message, self.peer, lambda data: fake_sign(self.peer, data)).raw
