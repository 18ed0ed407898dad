"""Go from round to round: who is there, who is ahead, who is stalled, what a stopped process left. Pure.

`Rounds.handle(event, now_s)` is the whole peer as far as deciding goes; the node performs the effects it returns.
Contract: protocols/round-1.md.
"""

from __future__ import annotations

from collections import deque

from p2pnet.core.events import (
    Applied, Audited, Broadcast, Decide, Effect, Encoded, Event, Gathered, GatherFailed, Heard, Note, PeerDown, PeerUp,
    ReduceDone, ScatterFailed, Send, Serve, SliceArrived, Started, Tick, Train,
)  # fmt: skip
from p2pnet.core.round import Context, Restored, Round
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Ask, Commit, Decision, Proposal, Quorum, Reduced, Roster, Vote
from p2pnet.wire.signing import Signed

AHEAD_MAX = 512  # messages of the next round kept until this one is applied
ASK_EVERY_S = 0.5  # to one peer, and answers to one peer
RESEND_MAX_S = 5.0
AWAIT_NEWCOMER_ROUNDS = 2  # rounds that wait for a peer that is there and was in no roster yet
TICK_MIN_S = 0.01  # ticks come no faster than this, whatever a deadline says
PEERS_MAX = 4096  # rows of what is remembered about peers


class Rounds:
    """One peer's state machine over all rounds of one swarm."""

    def __init__(self, context: Context, state: SwarmState, now_s: float, restored: Restored | None = None) -> None:
        self.context = context
        self.state = state
        self.round = Round(context, state, now_s, restored)
        self.up: set[PeerId] = set()
        self.stalled_s: float | None = None
        self.missing: tuple[PeerId, ...] = ()
        self._down: set[PeerId] = set()
        self._newcomers: dict[PeerId, int] = {}  # peers that are up and in no roster: rounds they were waited for
        self._heard_s: dict[PeerId, float] = {}
        self._highest = state.round
        self._asked_s: dict[PeerId, float] = {}
        self._answered_s: dict[PeerId, float] = {}
        self._ahead: deque[Heard] = deque(maxlen=AHEAD_MAX)
        self._now_s = now_s
        self._trains = False
        self._train_s: float | None = now_s
        self._resend_s = now_s + self.round.grace_s
        self._resend_after_s = self.round.grace_s

    @property
    def deadline_s(self) -> float | None:
        """When a `Tick` is wanted, at the latest."""
        if self.round.decided is not None:
            return None
        times = [self.round.deadline_s(), self._resend_s, None if self._trains else self._train_s]
        return max(min(time for time in times if time is not None), self._now_s + TICK_MIN_S)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event and say what is to be done."""
        self._now_s = now_s
        effects = self._handle(event, now_s)
        effects += self._train(now_s)
        effects += self._watch(now_s)
        if any(isinstance(effect, Decide) for effect in effects):
            effects += self._unstall(now_s)
        return effects

    def behind(self) -> bool:
        """Tell whether somebody was heard in a later round."""
        return self._highest > self.state.round

    def _handle(self, event: Event, now_s: float) -> list[Effect]:
        self.round.awaited, self.round.down = self._awaited(), frozenset(self._down)
        match event:
            case Tick():
                return self.round.advance(now_s)
            case Heard():
                return self._hear(event, now_s)
            case PeerUp(peer):
                self.up.add(peer)
                self._down.discard(peer)
                return [*self._ask(peer, now_s), *self.round.advance(now_s)]
            case PeerDown(peer):
                self.up.discard(peer)
                if len(self._down) < PEERS_MAX:
                    self._down.add(peer)
                self.round.awaited, self.round.down = self._awaited(), frozenset(self._down)
                return self.round.advance(now_s)
            case Applied():
                return self._next(now_s) if event.round == self.state.round else []
            case _:
                return self._report(event, now_s) if event.round == self.state.round else []

    def _report(
        self,
        event: Started | Encoded | SliceArrived | ReduceDone | ScatterFailed | Gathered | GatherFailed | Audited,
        now_s: float,
    ) -> list[Effect]:
        """What the shell reports about the current round."""
        match event:
            case Started():
                return self.round.started(event, now_s)
            case Encoded():
                return self.round.encoded(event, now_s) if self.round.decided is None else []
            case SliceArrived():
                return self.round.slice_arrived(event, now_s)
            case ReduceDone():
                return self.round.reduce_done(event, now_s)
            case ScatterFailed():
                return self.round.scatter_failed(event, now_s)
            case Gathered():
                return self.round.gathered(event, now_s)
            case GatherFailed():
                return self.round.gather_failed(event, now_s)
            case Audited():
                return self.round.audited(event, now_s)

    def _hear(self, heard: Heard, now_s: float) -> list[Effect]:
        message = heard.message.message if isinstance(heard.message, Signed) else heard.message
        number = message.certificate.round if isinstance(message, Decision) else message.round
        author = heard.message.peer if isinstance(heard.message, Signed) else heard.sender
        if len(self._heard_s) < PEERS_MAX or author in self._heard_s:
            self._heard_s[author] = now_s
        if isinstance(message, Ask):
            return self._answer(heard.sender, message, now_s)
        if number > self.state.round:
            if number == self.state.round + 1:
                self._ahead.append(heard)
            if isinstance(heard.message, Signed):
                self._highest = max(self._highest, number)
            return self._ask(heard.sender, now_s) if self.round.decided is None else []
        if number < self.state.round or self.round.decided is not None:
            return []
        return self._dispatch(heard, now_s)

    def _dispatch(self, heard: Heard, now_s: float) -> list[Effect]:
        """Hand a message of the current round to it."""
        round_, message = self.round, heard.message
        if isinstance(message, Decision):
            return round_.decision(message, now_s)
        if isinstance(message, Quorum):
            effects = round_.quorum(message, now_s)
            wants = round_.undecided_certificate is not None
            return [*effects, *(self._ask(heard.sender, now_s) if wants else [])]
        match message:
            case Signed(message=Commit()):
                return round_.commit(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Roster()):
                return round_.roster(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Reduced()):
                return round_.reduced(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Proposal()):
                return round_.proposal(message, now_s)  # type: ignore[arg-type]
            case Signed(message=Vote()):
                return round_.vote(message, now_s)  # type: ignore[arg-type]
        return []

    def _awaited(self) -> frozenset[PeerId]:
        """Whose commits are waited for: the last roster's, and for a few rounds those that have just come."""
        newcomers = {peer for peer, waited in self._newcomers.items() if waited < AWAIT_NEWCOMER_ROUNDS and peer in self.up}
        return frozenset((self.state.expected() | newcomers | {self.context.me}) - self._down)

    def _next(self, now_s: float) -> list[Effect]:
        """The decided round is applied: on to the next one."""
        decided = self.round.decided
        if decided is None:
            return []
        before, self.state = self.state, decided.after
        present = {peer for peer, member in self.state.members.items() if member.last == before.round}
        self._newcomers = {p: self._newcomers.get(p, 0) + 1 for p in list(self.up)[:PEERS_MAX] if p not in present}
        self.round = Round(self.context, self.state, now_s)
        self.round.awaited, self.round.down = self._awaited(), frozenset(self._down)
        self._trains = False
        self._train_s = now_s + (self.round.grace_s if self.behind() else 0.0)
        self._resend_after_s = self.round.grace_s
        self._resend_s = now_s + self._resend_after_s
        ahead, self._ahead = list(self._ahead), deque(maxlen=AHEAD_MAX)
        effects = self._train(now_s)
        for heard in ahead:
            effects += self._hear(heard, now_s)
        return effects

    def _train(self, now_s: float) -> list[Effect]:
        """Start training, unless the round is already decided elsewhere: then its decision is on the way."""
        if self._trains or self._train_s is None or now_s < self._train_s or self.round.decided is not None:
            return []
        self._trains = True
        wanted = self.state.round % self.state.policy.snapshot_rounds == 0
        return [Train(self.state.round, self.state.beacon, wanted)]

    def _ask(self, peer: PeerId, now_s: float) -> list[Effect]:
        if peer == self.context.me or now_s - self._asked_s.get(peer, -ASK_EVERY_S) < ASK_EVERY_S:
            return []
        if len(self._asked_s) >= PEERS_MAX:
            self._asked_s.clear()
        self._asked_s[peer] = now_s
        return [Send(peer, encode(Ask(self.state.swarm, self.state.round, self.round.deciding.view)), False)]

    def _answer(self, peer: PeerId, ask: Ask, now_s: float) -> list[Effect]:
        """Tell a peer that asks what it lacks, and ask back when it is ahead."""
        if ask.round > self.state.round:
            return self._ask(peer, now_s)
        if now_s - self._answered_s.get(peer, -ASK_EVERY_S) < ASK_EVERY_S / 2:
            return []
        if len(self._answered_s) >= PEERS_MAX:
            self._answered_s.clear()
        self._answered_s[peer] = now_s
        if ask.round < self.state.round or self.round.decided is not None:
            return [Serve(peer, ask.round)]
        effects: list[Effect] = [Send(peer, raw, True) for raw in self.round.answer_ask()]
        proof = self.round.prepared_quorum()
        return [*effects, *([Send(peer, encode(proof), False)] if proof else [])]

    def _watch(self, now_s: float) -> list[Effect]:
        """When nothing moves: send my votes again, ask around, and say who is missing."""
        if self.round.decided is not None or now_s < self._resend_s:
            return []
        quiet_s = now_s - self.round.progress_s
        training = self.round.phase() == "train" and not self.behind()
        if training or quiet_s < self.round.grace_s:
            self._resend_after_s = self.round.grace_s
            self._resend_s = now_s + self._resend_after_s
            return self._unstall(now_s)
        self._resend_after_s = min(2 * self._resend_after_s, max(RESEND_MAX_S, self.round.grace_s))
        self._resend_s = now_s + self._resend_after_s
        effects: list[Effect] = [Broadcast(raw, True) for raw in self.round.answer_ask()]
        for peer in sorted(self.up):
            effects += self._ask(peer, now_s)
        return [*effects, *self._stall(quiet_s, now_s)]

    def _stall(self, quiet_s: float, now_s: float) -> list[Effect]:
        stall_s = self.state.policy.stall_ms / 1000
        if quiet_s < stall_s:
            return []
        silent = tuple(
            peer
            for peer in self.state.electorate
            if peer != self.context.me and (peer in self._down or now_s - self._heard_s.get(peer, -stall_s) >= stall_s)
        )
        if self.stalled_s is not None and silent == self.missing:
            return []
        self.stalled_s = self.stalled_s if self.stalled_s is not None else now_s - quiet_s
        self.missing = silent
        voters = len(self.state.electorate)
        detail = f"{voters - len(silent)} of {voters} voters are here, {self.round.deciding.needed} are needed"
        return [Note(self.state.round, "stalled", detail, silent)]

    def _unstall(self, now_s: float) -> list[Effect]:
        if self.stalled_s is None:
            return []
        detail = f"after {now_s - self.stalled_s:.1f} s"
        self.stalled_s, self.missing = None, ()
        return [Note(self.state.round, "resumed", detail)]
