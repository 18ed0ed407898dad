"""What a simulation writes down while it runs, and the figures that it makes of it."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pnet.core.events import Note

if TYPE_CHECKING:
    from p2pnet.sim.internet import Internet

BULK = ("payload", "result", "catch-up")  # all else is control


@dataclass(slots=True)
class RoundRecord:
    """One round as all honest members saw it; times in simulated seconds."""

    began_s: list[float] = field(default_factory=list)  # when each began to train
    exchange_s: list[float] = field(default_factory=list)  # when each accepted a roster
    decided_s: list[float] = field(default_factory=list)
    members: int = 0  # in the largest roster called
    in_roster: int = 0  # in the one decided
    view: int = 0  # of the certificate
    void: bool = False
    stalled: int = 0  # members that said so
    sent_bytes: int = 0  # by everybody until the median member had decided


class Chronicle:
    """The rounds of a simulation."""

    def __init__(self) -> None:
        self.rounds: dict[int, RoundRecord] = {}
        self.notes: Counter[str] = Counter()

    def of(self, number: int) -> RoundRecord:
        """The record of a round."""
        return self.rounds.setdefault(number, RoundRecord())

    def noted(self, note: Note) -> None:
        """A member told its user something."""
        self.notes[note.kind] += 1
        self.of(note.round).stalled += note.kind == "stalled"

    def exchanging(self, number: int, members: int, now_s: float) -> None:
        """A member accepted a roster."""
        record = self.of(number)
        record.exchange_s.append(now_s)
        record.members = max(record.members, members)


def summarise(net: Internet) -> dict[str, Any]:
    """The figures of a run that has ended, as JSON's types; the same for the same seed."""
    scenario, tally = net.scenario, net.air.tally
    records = {number: record for number, record in sorted(net.chronicle.rounds.items()) if record.decided_s}
    rows = [_row(number, record, records.get(number - 1)) for number, record in records.items()]
    sizes = net.sizes
    peer_rounds = max(1, net.peer_rounds)
    kinds = {kind: count / peer_rounds for kind, count in sorted(tally.by_kind.items())}
    payload, result, catch_up = (kinds.get(kind, 0.0) for kind in BULK)
    control = sum(kinds.values()) - payload - result - catch_up
    steady = [row for row in rows if row["round"] > 0] or rows
    undecided = sum(not record.decided_s for record in net.chronicle.rounds.values())
    counts = net.gossip_counts()
    return {
        "members": scenario.members,
        "rounds": {
            "asked": scenario.rounds,
            "decided": len(rows),
            "sealed": sum(not row["void"] for row in rows),
            "void": sum(row["void"] for row in rows),
            "stalled": sum(record.stalled > 0 for record in net.chronicle.rounds.values()),
            "undecided": undecided,
            "later_views": sum(row["view"] > 0 for row in rows),
        },
        "members_in_roster": _mean([row["members"] for row in steady if not row["void"]]),
        "round_s": _spread([row["round_s"] for row in steady]),
        "exchange_s": _spread([row["exchange_s"] for row in steady if row["exchange_s"] is not None]),
        "bytes_per_peer_and_round": {
            "payload": payload,
            "result": result,
            "catch_up": catch_up,
            "control": control,
            "sent": tally.sent / peer_rounds,
            "received": tally.received / peer_rounds,
            "by_kind": kinds,
        },
        "payload_bytes": sizes.payload_bytes,
        "result_bytes": sizes.result_bytes,
        "control_share": control / payload if payload else None,
        "traffic_ratio": tally.sent / peer_rounds / (2 * sizes.payload_bytes + sizes.result_bytes),
        "gossip": counts | {"redundancy": 1 + counts["duplicates"] / max(1, counts["delivered"])},
        "bytes": {"sent": tally.sent, "received": tally.received, "lost": tally.lost, "undelivered": tally.undelivered},
        "dropped_messages": net.dropped,
        "banned": net.banned_count(),
        "notes": dict(sorted(net.chronicle.notes.items())),
        "faults": dict(sorted(net.faults.happened.items())),
        "simulated_s": net.now_s,
        "events": net.happened,
        "per_round": rows,
    }


def _row(number: int, record: RoundRecord, before: RoundRecord | None) -> dict[str, Any]:
    """One round; its length is from the median member's start of training to its decision."""
    decided_s = statistics.median(record.decided_s)
    began_s = statistics.median(record.began_s) if record.began_s else None
    if before is not None:
        began_s = statistics.median(before.decided_s)
    roster_s = min(record.exchange_s, default=None)
    return {
        "round": number,
        "void": record.void,
        "view": record.view,
        "members": record.in_roster,
        "stalled_members": record.stalled,
        "round_s": decided_s - (began_s or 0.0),
        "exchange_s": None if roster_s is None else decided_s - roster_s,
        "last_s": max(record.decided_s) - decided_s,
        "sent_bytes": record.sent_bytes,
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "least": None, "most": None}
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _mean(values: list[int]) -> float | None:
    return statistics.fmean(values) if values else None
