"""Write down how the rounds go: what a person, a summary and the metrics want to know."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from p2pnet.core import events as ev
from p2pnet.core.state import SwarmState
from p2pnet.identity import peer_id_text

if TYPE_CHECKING:
    from p2pnet.core.exchange import RosterExchange
    from p2pnet.core.rounds import Rounds
    from p2pnet.core.wide import WideExchange
    from p2pnet.net.framing import Traffic
    from p2pnet.net.host import Host
    from p2pnet.node.bridge import Submitted
    from p2pnet.node.links import Links

CREDITS_MAX = 20
NOTES_MAX = 100
ROUNDS_MAX = 1000  # rounds whose times are kept


@dataclass(slots=True)
class RoundTimes:
    """One round on one peer; times in seconds, nan where it did not get so far."""

    round: int
    void: bool
    mine: bool  # my update is in the result, at least in part
    credit: str  # "credited", or why not, for people
    members: int
    loss: float  # mean of the local steps
    train_s: float
    straggler_wait_s: float  # from my commit to the last one
    exchange_s: float  # from the last commit to applied; with overlap to decided, it is applied when the loop comes by
    branch: str = ""  # decided in this degraded branch, by its id; empty: in the final chain


class Diary:
    """The record of one peer since its process started, over pauses too."""

    def __init__(self, on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _fields: None) -> None:
        """on_event: told (kind, fields) as it happens: "round", "note"."""
        self._on_event = on_event
        self.notes: deque[dict[str, Any]] = deque(maxlen=NOTES_MAX)
        self.rounds: deque[RoundTimes] = deque(maxlen=ROUNDS_MAX)
        self.credits: deque[dict[str, Any]] = deque(maxlen=CREDITS_MAX)  # the latest rounds: round, credit
        self.traffic: list[Traffic] = []  # of each host that this peer has had
        self.sealed = self.void = self.credited = self.contributed = 0
        self.samples = self.payload_bytes = 0
        self.train_s = self.exchange_s = self.straggler_wait_s = 0.0
        self.loss_first = self.loss_last = math.nan
        self.lineage = b""
        self._began_s = self._trained_s = self._decided_s = math.nan
        self._overlap = False
        self._deciding: tuple[ev.Decide, float, bool, str] | None = None
        self._skipped: tuple[int, str] = (-1, "")  # round, reason
        self._next = -1  # the round that follows the last one applied here

    def state(self, state: SwarmState) -> None:
        """The node starts at this state."""
        if self._deciding is not None:  # it ended before its learner was done with this round; now it is
            self.applied(self._deciding[0].round, math.nan, self._decided_s)
        self.lineage, self._overlap = state.lineage, bool(state.policy.overlap)
        away = state.round - max(0, self._next)
        if away > 0:
            when = "before this peer came" if self._next < 0 else "while this peer was away"
            self.credits.append({"round": state.round - 1, "credit": f"{away} rounds were decided {when}"})
        self._next = state.round

    def training(self, now_s: float) -> None:
        """A round begins; with overlap its training did when the update before it was there."""
        beside = self._overlap and not math.isnan(self._trained_s)
        self._began_s, self._trained_s = self._trained_s if beside else now_s, math.nan

    def trained(self, update: Submitted, now_s: float) -> None:
        """The update is encoded."""
        self._trained_s, loss = now_s, update.loss
        self.contributed += 1
        self.samples += update.samples
        self.payload_bytes += len(update.payload)
        if math.isnan(loss):
            return  # an update that a stopped process had trained: its loss is not known any more
        if math.isnan(self.loss_first):
            self.loss_first = loss
        self.loss_last = loss

    def decided(
        self, decide: ev.Decide, last_commit_s: float | None, listed: bool, now_s: float, branch: str = ""
    ) -> None:
        """The round is decided.   listed: my commit is in its roster.   branch: its id, empty for the final chain."""
        self._deciding = decide, last_commit_s if last_commit_s is not None else math.nan, listed, branch
        self._decided_s = now_s

    def applied(self, round_id: int, loss: float, now_s: float) -> None:
        """The learner is done with the round."""
        if self._deciding is None or self._deciding[0].round != round_id:
            return
        (decide, last_s, listed, branch), self._deciding = self._deciding, None
        self.lineage, self._next = decide.after.lineage, round_id + 1
        mine_s = self._trained_s
        if self._overlap:  # what follows is the next one's training
            now_s = self._decided_s
        times = RoundTimes(
            round_id,
            decide.void,
            any(decide.accepted),
            self._explain(decide, listed),
            len(decide.decision.commits),
            loss,
            mine_s - self._began_s,
            max(0.0, last_s - mine_s),
            now_s - max(last_s, mine_s) if not math.isnan(mine_s) else now_s - last_s,
            branch,
        )
        self.rounds.append(times)
        self.credits.append({"round": round_id, "credit": times.credit})
        self.sealed += not decide.void
        self.void += decide.void
        self.credited += times.mine
        self.train_s += _number(times.train_s)
        self.exchange_s += _number(times.exchange_s)
        self.straggler_wait_s += _number(times.straggler_wait_s)
        self._on_event("round", asdict(times) | {"lineage": self.lineage.hex()})

    def note(self, note: ev.Note) -> None:
        """Something a person wants to know."""
        peers = [peer_id_text(peer) for peer in note.peers]
        fields = {"round": note.round, "kind": note.kind, "detail": note.detail, "peers": peers}
        self.notes.append(fields)
        if note.kind == "skipped":
            self._skipped = note.round, note.detail
        self._on_event("note", fields)

    def _phase(self, phase: str) -> str:
        """One word for a person: what the machine says, unless the loop is elsewhere."""
        if phase == "train" and not math.isnan(self._trained_s):
            return "wait"
        return "train" if phase == "apply" and self._overlap else phase

    def _explain(self, decide: ev.Decide, listed: bool) -> str:
        """Say whether a decided round has my update in it, and why not."""
        mine, parts = decide.shares
        if decide.void:
            return "void: the voters found no result that enough of them held"
        if mine:
            late = f" for {mine} of {parts} parts: my slice came late for the others" if mine < parts else ""
            return f"credited{late}"
        if listed:
            return "not credited: my slices reached no reducer in time"
        if self._skipped[0] == decide.round:
            return f"not credited: skipped, {self._skipped[1]}"
        if math.isnan(self._trained_s):
            return "not credited: the others were done before my training was"
        return "not credited: my commit came after the roster was made"

    def network(self, links: Links, host: Host) -> dict[str, Any]:
        """What `p2pnet status` shows of the connections, as JSON's types."""
        flows: dict[str, list[int]] = {}
        for traffic in self.traffic:
            for name, flow in traffic.by_protocol.items():
                before = flows.get(name, [0, 0])
                flows[name] = [before[0] + flow.bytes_up, before[1] + flow.bytes_down]
        connected = links.membership.up
        relayed = [peer for peer in connected if all("/p2p-circuit" in addr for addr in links.routes.get(peer) or "-")]
        return {
            "known_members": links.membership.size,
            "connected": [peer_id_text(peer) for peer in connected],
            "relayed": [peer_id_text(peer) for peer in relayed],
            "connections": len(links.routes),
            "wire_bytes_up": sum(traffic.bytes_up for traffic in self.traffic),
            "wire_bytes_down": sum(traffic.bytes_down for traffic in self.traffic),
            "wire_bytes": flows,
            "addrs": list(host.addrs()),
            "refused": {peer_id_text(peer): why for peer, why in links.refused.items()},
        }

    def snapshot(self, rounds: Rounds, now_s: float) -> dict[str, Any]:
        """What `p2pnet status` shows of the rounds, as JSON's types."""
        state = rounds.state
        return {
            "round": state.round,
            "phase": self._phase(rounds.round.phase()),
            "view": rounds.round.deciding.view,
            "lineage": state.lineage.hex(),
            "rounds_sealed": self.sealed,
            "rounds_void": self.void,
            "rounds_credited": self.credited,
            "members": max([len(rounds.round.commits.held), *map(_listed, rounds.round.exchanges.values())]),
            "rounds_contributed": self.contributed,
            "samples": self.samples,
            "payload_bytes": self.payload_bytes,
            "credits": list(self.credits),
            "electorate": [peer_id_text(peer) for peer in state.electorate],
            "excluded": {peer_id_text(peer): end for peer, end in state.excluded.items() if state.bars(peer)},
            "behind": rounds.behind(),
            "stalled_s": None if rounds.stall.since_s is None else round(now_s - rounds.stall.since_s, 1),
            "missing": [peer_id_text(peer) for peer in rounds.stall.missing],
            "loss_first": _json_number(self.loss_first),
            "loss": _json_number(self.loss_last),
            "train_s": round(self.train_s, 3),
            "exchange_s": round(self.exchange_s, 3),
            "straggler_wait_s": round(self.straggler_wait_s, 3),
            "notes": list(self.notes),
        }


def _listed(exchange: RosterExchange | WideExchange) -> int:
    """How many are in the roster of an exchange: of many groups each peer sees only the commits of its own."""
    return len(exchange.commits)


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
