"""Spread small messages to every member: a tree per publisher, repaired by announcements.

Contract: protocols/gossip-1.md. After Plumtree (Leitao, Pereira, Rodrigues 2007, "Epidemic Broadcast Trees"): push to a
few, prune a link that brought a duplicate, announce to others, graft a link that brought what was missing. Trees are
kept per lane, 256 of them, and a publisher always uses the same one; one shared tree would suit only one publisher.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from p2pnet.core.neighbour import Neighbour
from p2pnet.core.news import (
    Deliver,
    Effect,
    Event,
    GossipCounts,
    GossipLimits,
    PeerDown,
    PeerUp,
    Penalise,
    Publish,
    Received,
    Send,
    Tick,
    Validate,
    Verdict,
)
from p2pnet.core.recent import Entry, Recent
from p2pnet.core.wanted import Wanted
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message
from p2pnet.wire.gossip import (
    DATA_BYTES_MAX,
    HAVE_IDS_MAX,
    HOPS_MAX,
    TOPIC_BYTES_MAX,
    WANT_IDS_MAX,
    Data,
    Graft,
    Have,
    Prune,
    Want,
    message_id,
)

if TYPE_CHECKING:
    import random

__all__ = [
    "Deliver",
    "Effect",
    "Event",
    "Gossip",
    "GossipCounts",
    "GossipLimits",
    "PeerDown",
    "PeerUp",
    "Penalise",
    "Publish",
    "Received",
    "Send",
    "Tick",
    "Validate",
    "Verdict",
]

_NEVER = (0, float("-inf"))


class Gossip:
    """One member's part in spreading messages. `handle` an event, perform the effects, `Tick` at `deadline_s`."""

    def __init__(self, me: PeerId, validate: Validate, rng: random.Random, limits: GossipLimits | None = None) -> None:
        self.me, self.limits, self.counts = me, limits or GossipLimits(), GossipCounts()
        self._validate, self._rng = validate, rng
        self._neighbours: dict[PeerId, Neighbour] = {}
        self._recent = Recent(self.limits.memory)
        self._wanted = Wanted(self.limits.asking)
        self._parents: dict[int, PeerId] = {}  # lane -> who brings its messages
        self._unannounced: deque[bytes] = deque(maxlen=self.limits.memory.messages_max)
        self._flush_s: float | None = None
        self._audit_s: float | None = None
        self._audits: deque[PeerId] = deque()  # whose turn it is
        self._accepted_s = float("-inf")

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """The peers that are up, in the order in which they came."""
        return tuple(self._neighbours)

    @property
    def deadline_s(self) -> float | None:
        """When a Tick is wanted next, or None."""
        times = (self._flush_s, self._audit_s if self._neighbours else None, self._wanted.deadline_s)
        return min((time for time in times if time is not None), default=None)

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event at a monotonic time in seconds; returns what to do, in order.

        Raises ValueError for a Publish outside the limits of the page.
        """
        self._recent.expire(now_s)
        match event:
            case Received(peer, message):
                return self._receive(peer, message, now_s)
            case Publish(topic, data):
                return self._publish(topic, data, now_s)
            case Tick():
                return [*self._ask(now_s), *self._flush(now_s), *self._audit(now_s)]
            case PeerUp(peer):
                return self._peer_up(peer, now_s)
            case PeerDown(peer):
                return self._peer_down(peer)

    # --- neighbours

    def _peer_up(self, peer: PeerId, now_s: float) -> list[Effect]:
        effects = self._peer_down(peer) if peer in self._neighbours else []  # it restarted: it knows nothing
        eager = sum(neighbour.eager for neighbour in self._neighbours.values()) < self.limits.eager_degree
        self._neighbours[peer] = Neighbour(eager, now_s)
        self._audits.append(peer)
        entries = list(self._recent.newest(HAVE_IDS_MAX))
        return effects + self._tell(peer, entries, now_s, now=True)

    def _peer_down(self, peer: PeerId) -> list[Effect]:
        gone = self._neighbours.pop(peer, None)
        if gone is None:
            return []
        self._audits.remove(peer)
        self._recent.forget_peer(peer)
        self._wanted.forget(peer)
        others = list(self._neighbours.items())
        waiting = [other for other, neighbour in others if not neighbour.eager]
        if gone.eager and waiting:
            chosen = self._neighbours[self._rng.choice(waiting)]
            chosen.become_eager()
        orphaned = sorted(lane for lane, parent in self._parents.items() if parent == peer)
        for lane in orphaned:
            del self._parents[lane]
        if not orphaned or not others:
            return []
        # What it used to bring, somebody else should push; announcements would bring it too, a little later.
        heir, neighbour = self._rng.choice([pair for pair in others if pair[1].eager] or others)
        neighbour.graft(orphaned)
        return [Send(heir, Graft(tuple(orphaned)))]

    # --- messages

    def _publish(self, topic: str, data: bytes, now_s: float) -> list[Effect]:
        if not 0 < len(topic.encode()) <= TOPIC_BYTES_MAX or len(data) > DATA_BYTES_MAX:
            raise ValueError(f"a topic has 1 to {TOPIC_BYTES_MAX} bytes and a message at most {DATA_BYTES_MAX}")
        name = message_id(topic, data)
        if self._recent.get(name) is not None:
            return []  # it is on its way
        self._wanted.arrived(name)
        return self._spread(Entry(name, topic, data, self.me[0], -1, now_s, None), now_s)

    def _receive(self, peer: PeerId, message: Message, now_s: float) -> list[Effect]:
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            return []  # said before it went down
        neighbour.enter_window(now_s, self.limits.window_s)
        match message:
            case Data():
                return self._take(peer, neighbour, message, now_s)
            case Have(now, ids):
                return self._note(peer, neighbour, now, ids, now_s)
            case Want(graft, ids):
                return self._answer(peer, neighbour, graft, ids)
            case Graft(lanes):
                neighbour.graft(lanes)
            case Prune(lane):
                neighbour.prune(lane)
            case _:
                return [Penalise(peer, "gossip-1/R1")]
        return neighbour.count(peer, "gossip-1/R7", 1, self.limits.control_max)

    def _take(self, peer: PeerId, neighbour: Neighbour, message: Data, now_s: float) -> list[Effect]:
        name = message_id(message.topic, message.data)
        announcers = self._wanted.announcers(name)
        asked = self._wanted.arrived(name, peer, now_s)
        if peer in asked:
            neighbour.broken = 0
        if self._recent.seen(name):
            return self._duplicate(peer, neighbour, message, self._recent.get(name), now_s)
        if self._recent.refused(name):
            self.counts.rejected += 1
            return [Penalise(peer, "gossip-1/R2")]
        if not self._recent.ignored(name, now_s):
            if neighbour.over("gossip-1/R8", self.limits.ignored_max):
                return []  # it has had its share of our time
            verdict = self._validate(peer, message.topic, message.data)
            if verdict is Verdict.ACCEPT:
                hops = min(message.hops, HOPS_MAX - 1)
                entry = Entry(name, message.topic, message.data, message.lane, hops, now_s, peer)
                entry.senders[peer] = None
                entry.coming |= {other: times - (other == peer) for other, times in asked.items()}
                entry.holders.update(dict.fromkeys(announcers))  # or a joiner would push the last minutes to all
                neighbour.link(message.lane)  # the first to bring it is our link in this tree
                self._parents[message.lane] = peer
                self.counts.delivered += 1
                return [Deliver(message.topic, message.data, peer), *self._spread(entry, now_s)]
            if verdict is Verdict.REJECT:
                self._recent.refuse(name)
                self.counts.rejected += 1
                return [Penalise(peer, "gossip-1/R2")]
            self._recent.ignore(name, now_s)
        self.counts.ignored += 1
        return neighbour.count(peer, "gossip-1/R8", 1, self.limits.ignored_max)

    def _duplicate(
        self, peer: PeerId, neighbour: Neighbour, message: Data, entry: Entry | None, now_s: float
    ) -> list[Effect]:
        self.counts.duplicates += 1
        if entry is not None and entry.coming.get(peer, 0) > 0:
            entry.coming[peer] -= 1  # it was asked again, since its answer was late
            if peer in entry.senders:
                return []
        if entry is None or peer in entry.senders:
            return neighbour.count(peer, "gossip-1/R4", 1, self.limits.repeats_max)
        entry.senders[peer] = None
        parent = entry.parent
        if (
            message.hops == 0 < entry.hops
            and now_s <= entry.at_s + self.limits.direct_grace_s
            and parent in self._neighbours
            and parent is not None
        ):  # the publisher itself, hardly later: a link that no other peer can break is the better one
            entry.parent, entry.hops = peer, 0
            self._parents[message.lane] = peer
            neighbour.link(message.lane)
            return self._prune(parent, self._neighbours[parent], message.lane, now_s)
        return self._prune(peer, neighbour, message.lane, now_s)

    def _prune(self, peer: PeerId, neighbour: Neighbour, lane: int, now_s: float) -> list[Effect]:
        neighbour.prune(lane)
        if now_s < neighbour.pruned_s.get(lane, float("-inf")) + self.limits.graft_s:
            return []  # it cannot have heard yet
        neighbour.pruned_s[lane] = now_s
        return [Send(peer, Prune(lane))]

    def _spread(self, entry: Entry, now_s: float) -> list[Effect]:
        """Push a message along its tree, and plan to announce it elsewhere."""
        self._recent.add(entry)
        self._accepted_s = now_s
        push = len(entry.data) <= self.limits.push_bytes_max
        news: Message = Have(1, (entry.id,))  # what is large is fetched, so that nobody gets it twice
        if push:
            news = Data(entry.lane, entry.hops + 1, entry.topic, entry.data)
        effects: list[Effect] = []
        for peer, neighbour in self._neighbours.items():
            if neighbour.pushed(entry.lane) and not entry.holds(peer):
                effects.append(Send(peer, news))
                self.counts.pushed += push
        self._unannounced.append(entry.id)
        if self._flush_s is None:
            self._flush_s = now_s + self.limits.lazy_delay_s
        if self._audit_s is None:
            self._audit_s = now_s + self.limits.audit_s
        return effects

    # --- announcements

    def _flush(self, now_s: float) -> list[Effect]:
        """Announce what is new to a few of those to whom it was not pushed."""
        if self._flush_s is None or now_s < self._flush_s:
            return []
        self._flush_s = None
        entries = [entry for name in self._unannounced if (entry := self._recent.get(name)) is not None]
        self._unannounced.clear()
        batches: dict[PeerId, list[Entry]] = {}
        for entry in entries:
            lazy = [
                (peer, neighbour.served(entry.lane))
                for peer, neighbour in self._neighbours.items()
                if not neighbour.pushed(entry.lane) and not entry.holds(peer)
            ]
            served = [peer for peer, elsewhere in lazy if elsewhere]
            unserved = [peer for peer, elsewhere in lazy if not elsewhere]  # they may have nobody but us
            for peer in unserved + self._rng.sample(served, min(self.limits.lazy_degree, len(served))):
                batches.setdefault(peer, []).append(entry)
        return [effect for peer, batch in batches.items() for effect in self._tell(peer, batch, now_s, now=False)]

    def _audit(self, now_s: float) -> list[Effect]:
        """Announce to one neighbour after the other what it may have missed: pushes get lost, trees break."""
        if self._audit_s is None or now_s < self._audit_s:
            return []
        oldest_s = now_s - self.limits.audit_age_s
        if not self._audits or self._accepted_s < oldest_s:
            self._audit_s = None if self._accepted_s < oldest_s else now_s + self.limits.audit_s
            return []
        self._audit_s = now_s + self.limits.audit_s
        peer = self._audits[0]
        self._audits.rotate(-1)
        neighbour = self._neighbours[peer]
        missed: list[Entry] = []
        for entry in self._recent.newest(self.limits.memory.messages_max):
            if entry.at_s < oldest_s or len(missed) == HAVE_IDS_MAX:
                break
            if (
                entry.at_s + self.limits.graft_s <= now_s
                and (neighbour.depends(entry.lane) or entry.announced < self.limits.announces_max)
                and entry.told.get(peer, _NEVER)[1] <= now_s
                and not entry.holds(peer)
            ):
                missed.append(entry)
        return self._tell(peer, missed, now_s, now=True)

    def _tell(self, peer: PeerId, entries: Iterable[Entry], now_s: float, *, now: bool) -> list[Effect]:
        ids: list[bytes] = []
        for entry in entries:
            times = entry.told.get(peer, _NEVER)[0] + 1
            entry.told[peer] = times, now_s + 2**times  # not again soon, in case it was only the answer that got lost
            entry.announced += 1
            ids.append(entry.id)
        self.counts.announced += len(ids)
        chunks = [tuple(ids[i : i + HAVE_IDS_MAX]) for i in range(0, len(ids), HAVE_IDS_MAX)]
        return [Send(peer, Have(int(now), chunk)) for chunk in chunks]

    def _note(self, peer: PeerId, neighbour: Neighbour, now: int, ids: tuple[bytes, ...], now_s: float) -> list[Effect]:
        over = neighbour.count(peer, "gossip-1/R5", len(ids), self.limits.have_ids_max)
        if neighbour.over("gossip-1/R5", self.limits.have_ids_max):
            return over
        held: list[bytes] = []
        for name in ids:
            entry = self._recent.get(name)
            if entry is not None:
                entry.holders[peer] = None
                neighbour.serve(entry.lane)
                held.append(name)
            elif not self._recent.uninteresting(name, now_s):
                due_s = now_s if now else now_s + self.limits.graft_s
                self._wanted.announce(name, peer, due_s, graft=not now)
        # An audit is answered with what we hold, or it would be repeated.
        answer: list[Effect] = [Send(peer, Have(0, tuple(held)))] if now and held else []
        return over + answer + self._ask(now_s)

    def _ask(self, now_s: float) -> list[Effect]:
        """Ask for what is due, and count the requests that nothing came of."""
        requests, silent = self._wanted.due(now_s, self._neighbours)
        effects: list[Effect] = []
        for peer in silent:
            neighbour = self._neighbours[peer]
            neighbour.broken += 1
            if neighbour.broken > self.limits.broken_max:
                neighbour.broken = 0
                effects.append(Penalise(peer, "gossip-1/R9"))
        batches: dict[tuple[PeerId, bool], list[bytes]] = {}
        for request in requests:
            batches.setdefault((request.peer, request.graft), []).append(request.message_id)
        for (peer, graft), ids in batches.items():
            chunks = [tuple(ids[i : i + WANT_IDS_MAX]) for i in range(0, len(ids), WANT_IDS_MAX)]
            effects += [Send(peer, Want(int(graft), chunk)) for chunk in chunks]
        return effects

    def _answer(self, peer: PeerId, neighbour: Neighbour, graft: int, ids: tuple[bytes, ...]) -> list[Effect]:
        effects: list[Effect] = [*neighbour.count(peer, "gossip-1/R6", len(ids), self.limits.want_ids_max)]
        if neighbour.over("gossip-1/R6", self.limits.want_ids_max):
            return effects
        for name in ids:
            entry = self._recent.get(name)
            if entry is None:
                continue
            if graft:
                neighbour.graft((entry.lane,))
            neighbour.answers[name] = neighbour.answers.get(name, 0) + 1
            if neighbour.answers[name] > self.limits.answers_max:
                effects += neighbour.count(peer, "gossip-1/R4", 1, self.limits.repeats_max)
                continue
            if neighbour.answer_bytes + len(entry.data) > self.limits.answer_bytes_max:
                continue  # it may ask somebody else, or later
            neighbour.answer_bytes += len(entry.data)
            self.counts.answered += 1
            effects.append(Send(peer, Data(entry.lane, entry.hops + 1, entry.topic, entry.data)))
        return effects
