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
    from p2pnet.core.rounds import Rounds
    from p2pnet.net.host import Host
    from p2pnet.node.links import Links

NOTES_MAX = 100
ROUNDS_MAX = 1000  # rounds whose times are kept


@dataclass(slots=True)
class RoundTimes:
    """One round on one peer; times in seconds, nan where it did not get so far."""

    round: int
    void: bool
    mine: bool  # my update is in the result, at least in part
    members: int
    loss: float  # mean of the local steps
    train_s: float
    straggler_wait_s: float  # from my commit to the last one
    exchange_s: float  # from the last commit to applied


class Diary:
    """The record of one node since it started."""

    def __init__(self, on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _fields: None) -> None:
        """on_event: told (kind, fields) as it happens: "round", "note"."""
        self._on_event = on_event
        self.notes: deque[dict[str, Any]] = deque(maxlen=NOTES_MAX)
        self.rounds: deque[RoundTimes] = deque(maxlen=ROUNDS_MAX)
        self.sealed = self.void = self.credited = 0
        self.train_s = self.exchange_s = self.straggler_wait_s = 0.0
        self.loss_first = self.loss_last = math.nan
        self.lineage = b""
        self._began_s = self._trained_s = self._last_commit_s = math.nan
        self._deciding: tuple[ev.Decide, float] | None = None

    def state(self, state: SwarmState) -> None:
        """The node starts at this state."""
        self.lineage = state.lineage

    def training(self, now_s: float) -> None:
        """A round begins."""
        self._began_s, self._trained_s = now_s, math.nan

    def trained(self, loss: float, now_s: float) -> None:
        """The update is encoded."""
        self._trained_s = now_s
        if math.isnan(loss):
            return  # an update that a stopped process had trained: its loss is not known any more
        if math.isnan(self.loss_first):
            self.loss_first = loss
        self.loss_last = loss

    def decided(self, decide: ev.Decide, last_commit_s: float | None) -> None:
        """The round is decided."""
        self._deciding = (decide, last_commit_s if last_commit_s is not None else math.nan)

    def applied(self, round_id: int, loss: float, now_s: float) -> None:
        """The learner is done with the round."""
        if self._deciding is None or self._deciding[0].round != round_id:
            return
        (decide, last_s), self._deciding = self._deciding, None
        self.lineage = decide.after.lineage
        mine_s = self._trained_s
        times = RoundTimes(
            round_id,
            decide.void,
            any(decide.accepted),
            len(decide.decision.commits),
            loss,
            mine_s - self._began_s,
            max(0.0, last_s - mine_s),
            now_s - max(last_s, mine_s) if not math.isnan(mine_s) else now_s - last_s,
        )
        self.rounds.append(times)
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
        self._on_event("note", fields)

    def snapshot(self, rounds: Rounds, links: Links, host: Host, now_s: float) -> dict[str, Any]:
        """Everything `p2pnet status` shows, as JSON's types."""
        state = rounds.state
        connected = links.membership.up
        return {
            "round": state.round,
            "phase": rounds.round.phase(),
            "view": rounds.round.deciding.view,
            "lineage": state.lineage.hex(),
            "rounds_sealed": self.sealed,
            "rounds_void": self.void,
            "rounds_credited": self.credited,
            "members": len(rounds.round.commits.held),
            "known_members": links.membership.size,
            "connected": [peer_id_text(peer) for peer in connected],
            "electorate": [peer_id_text(peer) for peer in state.electorate],
            "behind": rounds.behind(),
            "stalled_s": None if rounds.stalled_s is None else round(now_s - rounds.stalled_s, 1),
            "missing": [peer_id_text(peer) for peer in rounds.missing],
            "loss_first": _json_number(self.loss_first),
            "loss": _json_number(self.loss_last),
            "train_s": round(self.train_s, 3),
            "exchange_s": round(self.exchange_s, 3),
            "straggler_wait_s": round(self.straggler_wait_s, 3),
            "wire_bytes_up": host.traffic.bytes_up,
            "wire_bytes_down": host.traffic.bytes_down,
            "wire_bytes": {name: [flow.bytes_up, flow.bytes_down] for name, flow in host.traffic.by_protocol.items()},
            "addrs": list(host.addrs()),
            "refused": {peer_id_text(peer): why for peer, why in links.refused.items()},
            "notes": list(self.notes),
        }


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
