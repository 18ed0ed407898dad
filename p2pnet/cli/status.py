"""`p2pnet status`: what the node on this machine is doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from p2pnet.cli.ask import Facts, find_running
from p2pnet.cli.folders import Json, Prefix, StateDir
from p2pnet.cli.terminal import in_bytes, in_rate, in_span, show_fields, write_json

NOTES_SHOWN: Final = 5
CREDITS_SHOWN: Final = 8
PEERS_SHOWN: Final = 8


def status(state_dir: StateDir = None, swarm: Prefix = "", json: Json = False) -> None:
    """Ask the running node how it goes: connected how, doing what, credited for which rounds, and why not.

    Exit status 1 when no node runs there.

    p2pnet status
    p2pnet status --json
    """
    _, facts = find_running(state_dir, swarm)
    if json:
        write_json(facts)
    else:
        show_fields(_rows(facts))


def describe_contribution(facts: Facts) -> str:
    """Say in a line what a node gave since it was started."""
    given = [f"{facts.get('rounds_credited') or 0} of {facts.get('rounds_contributed') or 0} updates in the result"]
    given += [f"{facts[key]:,} {word}" for key, word in _GIVEN if facts.get(key)]
    given += [f"{in_bytes(facts['payload_bytes'])} of updates"] if facts.get("payload_bytes") else []
    return ", ".join(given)


def _rows(facts: Facts) -> list[tuple[str, object]]:
    """Return what a volunteer wants to know; what the node does not say is left out."""
    get: Callable[[str], Any] = facts.get
    rounds = [f"{get(f'rounds_{what}')} {word}" for what, word in _ROUNDS if get(f"rounds_{what}") is not None]
    spans = [f"{in_span(get(key))} {word}" for key, word in _SPANS if get(key) is not None]
    rows: list[tuple[str, object]] = [
        ("swarm", _joined("  ", get("name"), get("swarm"))),
        ("peer", get("peer")),
        ("doing", _doing(facts)),
        ("next", _advice(facts)),
        ("connected", _connections(facts)),
        ("reachable at", "\n".join(get("addrs") or []) or None),
        ("given", describe_contribution(facts) if get("rounds_contributed") is not None else None),
        ("credit", "\n".join(_credit(one) for one in (get("credits") or [])[-CREDITS_SHOWN:]) or None),
        ("speed", f"{get('tokens_per_s'):,.0f} tokens/s" if get("tokens_per_s") else None),
        ("loss", _loss(get("loss_first"), get("loss"))),
        ("rounds here", ", ".join(rounds) or None),
        ("time", _joined(", ", None if get("uptime_s") is None else f"up for {in_span(get('uptime_s'))}", *spans)),
        ("traffic", _traffic(facts)),
        ("disk", _disk(get("disk_bytes"))),
        ("voters", _peers(get("electorate"))),
        ("excluded", "\n".join(f"{peer} until round {end}" for peer, end in (get("excluded") or {}).items()) or None),
        ("lineage", get("lineage")),
        ("branch", _branch(get("branch"))),
        ("stalled", _stalled(get("stalled_s"), get("missing"))),
        ("refused", "\n".join(f"{peer}: {why}" for peer, why in (get("refused") or {}).items()) or None),
        ("notes", "\n".join(_note(one) for one in (get("notes") or [])[-NOTES_SHOWN:]) or None),
    ]
    return rows


_ROUNDS: Final = (("sealed", "with a result"), ("void", "void"))
_GIVEN: Final = (("steps", "steps"), ("tokens", "tokens"), ("samples", "samples"))
_SPANS: Final = (("train_s", "training"), ("exchange_s", "exchanging"), ("straggler_wait_s", "waiting for others"))
_PHASES: Final = {
    "opening": "looking for the swarm",
    "catching up": "taking over what was decided",
    "train": "training",
    "wait": "waiting for the others' updates",
    "roster": "agreeing on who takes part",
    "exchange": "exchanging updates",
    "decide": "deciding",
    "apply": "taking over the result",
}


def _doing(facts: Facts) -> str | None:
    """What goes on, in words; rounds as the swarm counts them."""
    if facts.get("phase") == "paused":
        if facts.get("paused_until") and not facts.get("paused"):
            return f"paused until {facts['paused_until']} (its hours are {facts.get('hours')})"
        return "paused by you" + (f"; its hours are {facts['hours']}" if facts.get("hours") else "")
    phase = facts.get("phase")
    behind = "behind the others" if facts.get("behind") else None
    number = None if facts.get("round") is None else f"round {facts['round']}"
    early = facts.get("progress") if phase in {"opening", "catching up"} else None
    return _joined(", ", number, _PHASES.get(str(phase), phase), early or None, behind)


def _advice(facts: Facts) -> str | None:
    """What to do about it, when there is something to do."""
    if facts.get("paused"):
        return "`p2pnet resume` goes on, `p2pnet leave` ends it"
    if facts.get("trouble"):
        return (
            f"{facts['trouble']}\ncheck that this machine is online, that nothing blocks the port in those addresses,\n"
            "and that the link is the one the swarm gives out now; it tries again by itself"
        )
    if facts.get("connected") == [] and facts.get("phase") == "opening":
        return "nobody who has the swarm is found yet; it goes on looking. Does somebody else run it?"
    if facts.get("branch"):
        return "too few voters are here, so these go on by themselves; their work is kept when the others are back"
    if facts.get("stalled_s") is not None:
        return "too few voters are here to decide; it goes on by itself when they are back"
    used, allowed = (facts.get("disk_bytes") or {}).get("used"), (facts.get("disk_bytes") or {}).get("allowed")
    if used and allowed and used > 0.9 * allowed:
        return "the disk allowed is nearly used up: start it again with a larger --disk"
    return None


def _connections(facts: Facts) -> str | None:
    """How many members, how, and who they are as long as there are few."""
    connected, relayed = facts.get("connected"), facts.get("relayed") or []
    if connected is None:
        return None
    if not isinstance(connected, list):
        return str(connected)
    ways = [f"{len(connected) - len(relayed)} directly"] if connected else []
    ways += [f"{len(relayed)} through a relay"] if relayed else []
    known = [f"{facts['known_members']} known"] if facts.get("known_members") is not None else []
    others = max(0, facts.get("connections", 0) - len(connected))
    more = [f"{others} other peers"] if others else []
    head = f"to {len(connected)} members" + (f" ({', '.join([*ways, *known, *more])})" if ways or known or more else "")
    return "\n".join([head, *_some(connected)])


def _credit(one: Any) -> str:
    if not isinstance(one, dict):
        return str(one)
    return f"round {one.get('round', '-')}  {one.get('credit', '')}"


def _traffic(facts: Facts) -> str | None:
    """Both ways: in all, now, and what is allowed."""
    lines = []
    for way in ("up", "down"):
        if (count := facts.get(f"wire_bytes_{way}")) is None:
            continue
        rate, cap = (facts.get("rate_bps") or {}).get(way), (facts.get("cap_bps") or {}).get(way)
        now = f", now {in_rate(rate)}" if rate is not None else ""
        lines.append(f"{in_bytes(count)} {way}{now}" + (f" of {in_rate(cap)} allowed" if cap else ""))
    return "\n".join(lines) or None


def _disk(disk: Any) -> str | None:
    if not isinstance(disk, dict) or disk.get("used") is None:
        return None
    return in_bytes(disk["used"]) + (f" of {in_bytes(disk['allowed'])} allowed" if disk.get("allowed") else "")


def _joined(between: str, *values: object) -> str | None:
    return between.join(str(value) for value in values if value is not None) or None


def _loss(first: float | None, last: float | None) -> str | None:
    if last is None:
        return None
    return f"{last:.4f}" if first is None else f"{last:.4f}, at first {first:.4f}"


def _peers(peers: object) -> str | None:
    """Show how many peers, and their ids as long as there are few. peers: a list of ids, or just their number."""
    if not isinstance(peers, list):
        return None if peers is None else str(peers)
    return "\n".join([str(len(peers)), *_some(peers)])


def _some(peers: list[Any]) -> list[str]:
    more = [f"and {len(peers) - PEERS_SHOWN} more"] if len(peers) > PEERS_SHOWN else []
    return [*map(str, peers[:PEERS_SHOWN]), *more]


def _branch(branch: Facts | None) -> str | None:
    """Where the final chain stands, and who goes on without it."""
    if not branch:
        return None
    voters = "\n".join(str(peer) for peer in branch.get("voters") or [])
    return f"since round {branch.get('final_round')} of the final chain; its voters are\n{voters}"


def _stalled(span_s: float | None, missing: object) -> str | None:
    if span_s is None:
        return None
    names = [str(peer) for peer in missing] if isinstance(missing, list) else []
    return f"for {in_span(span_s)}" + (f"; missing are\n{chr(10).join(names)}" if names else "")


def _note(one: object) -> str:
    if not isinstance(one, dict):
        return str(one)
    about = f": {', '.join(map(str, one['peers']))}" if one.get("peers") else ""
    return f"round {one.get('round', '-')}, {one.get('kind', 'note')}: {one.get('detail', '')}{about}"
