"""What a simulation writes down while it runs, and the figures that it makes of it."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p2pnet.core.events import Note
from p2pnet.sim.lines import Tally

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
    finished: int = 0  # members that decided it, liars too
    tally: Tally = field(default_factory=Tally)  # of all bytes until the first member had decided
    gossip: dict[str, int] = field(default_factory=dict)  # and what gossip had done


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
    """The figures of a run that has ended, as JSON's types; the same for the same seed.

    Bytes and times are those after the first round, in which everybody meets everybody; of a single round its own.
    """
    records = {number: record for number, record in sorted(net.chronicle.rounds.items()) if record.decided_s}
    rows = [_row(number, record, records.get(number - 1)) for number, record in records.items()]
    steady = [row for row in rows if row["round"] > 0] or rows
    peers = max(1, len(net.members))
    first = records[0] if len(rows) > 1 and 0 in records else RoundRecord()
    before = first.tally
    counts = net.gossip_counts()
    tally = net.air.tally
    return {
        "members": peers,
        "is_played": net.plays_gossip,  # gossip and lines, for speed
        "rounds": _count_rounds(net, rows),
        "behind": net.behind,
        "members_in_roster": _mean([row["members"] for row in steady if not row["void"]]),
        "round_s": _spread([row["round_s"] for row in steady]),
        "exchange_s": _spread([row["exchange_s"] for row in steady if row["exchange_s"] is not None]),
        **_count_bytes(
            net, before, sum(record.finished for number, record in records.items() if number or not before.sent)
        ),
        "start": {kind: count / peers for kind, count in sorted(before.by_kind.items())},
        "gossip": counts | {"redundancy": _copies(counts, {}), "steady": _copies(counts, first.gossip)},
        "bytes": {"sent": tally.sent, "received": tally.received, "lost": tally.lost, "undelivered": tally.undelivered},
        "dropped_messages": net.dropped,
        "banned": net.banned_count(),
        "notes": dict(sorted(net.chronicle.notes.items())),
        "faults": dict(sorted(net.faults.happened.items())),
        "simulated_s": net.now_s,
        "events": net.happened,
        "per_round": rows,
    }


def _count_rounds(net: Internet, rows: list[dict[str, Any]]) -> dict[str, int]:
    records = net.chronicle.rounds.values()
    return {
        "asked": net.scenario.rounds,
        "decided": len(rows),
        "sealed": sum(not row["void"] for row in rows),
        "void": sum(row["void"] for row in rows),
        "stalled": sum(record.stalled > 0 for record in records),
        "later_views": sum(row["view"] > 0 for row in rows),
    }


def _count_bytes(net: Internet, before: Tally, peer_rounds: int) -> dict[str, Any]:
    """Bytes of one peer in one round: those since a tally, by all peers that decided rounds since."""
    tally, sizes, share = net.air.tally, net.sizes, 1 / max(1, peer_rounds)
    kinds = {kind: share * (count - before.by_kind[kind]) for kind, count in sorted(tally.by_kind.items())}
    payload, result, catch_up = (kinds.get(kind, 0.0) for kind in BULK)
    control = sum(kinds.values()) - payload - result - catch_up
    sent = share * (tally.sent - before.sent)
    return {
        "bytes_per_peer_and_round": {
            "payload": payload,
            "result": result,
            "catch_up": catch_up,
            "control": control,
            "sent": sent,
            "received": share * (tally.received - before.received),
            "by_kind": kinds,
        },
        "payload_bytes": sizes.payload_bytes,
        "result_bytes": sizes.result_bytes,
        "control_share": control / payload if payload else None,
        "traffic_ratio": sent / (2 * sizes.payload_bytes + sizes.result_bytes),
    }


def _row(number: int, record: RoundRecord, before: RoundRecord | None) -> dict[str, Any]:
    """One round; its length is from the median member's last decision, or start, to its decision."""
    decided_s = statistics.median(record.decided_s)
    began_s = statistics.median(before.decided_s if before is not None else record.began_s or [0.0])
    roster_s = min(record.exchange_s, default=None)
    return {
        "round": number,
        "void": record.void,
        "view": record.view,
        "members": record.in_roster,
        "stalled_members": record.stalled,
        "round_s": decided_s - began_s,
        "exchange_s": None if roster_s is None else decided_s - roster_s,
        "last_s": max(record.decided_s) - decided_s,
        "decided_by": record.finished,
    }


def _copies(counts: dict[str, int], before: dict[str, int]) -> float:
    """Copies of each message that reach a member, since a count."""
    delivered, duplicates = (counts[name] - before.get(name, 0) for name in ("delivered", "duplicates"))
    return 1 + duplicates / max(1, delivered)


def _spread(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "least": None, "most": None}
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _mean(values: list[int]) -> float | None:
    return statistics.fmean(values) if values else None
