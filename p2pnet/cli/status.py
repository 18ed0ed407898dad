"""`p2pnet status`: what the node on this machine is doing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from p2pnet.cli.folders import Json, Prefix, StateDir, state_dir_or_default, swarm_folders
from p2pnet.cli.terminal import in_bytes, in_span, show_fields, write_json
from p2pnet.errors import ConfigError, P2pnetError

NOTES_SHOWN: Final = 5
PEERS_SHOWN: Final = 8


def status(state_dir: StateDir = None, swarm: Prefix = "", json: Json = False) -> None:
    """Ask the running node how it goes: round, loss, members, traffic, what it waits for.

    Exit status 1 when no node runs there.

    p2pnet status
    p2pnet status --json
    """
    facts = _ask(state_dir_or_default(state_dir), swarm)
    if json:
        write_json(facts)
    else:
        show_fields(_rows(facts))


def _ask(place: Path, prefix: str) -> dict[str, Any]:
    """Return what the node says; a node that was killed has left a trace behind, and does not count."""
    from p2pnet.node.status import POINTER_NAME, read_status

    answers: dict[str, dict[str, Any]] = {}
    reason = f"no node runs in {place}; `p2pnet join LINK` starts one"
    for folder in swarm_folders(place, POINTER_NAME, prefix):
        try:
            answers[folder.name] = read_status(folder)
        except P2pnetError as error:
            reason = str(error)
    if len(answers) > 1:
        raise ConfigError(f"--swarm: {len(answers)} nodes run in {place}, name one of {', '.join(answers)}")
    if not answers:
        raise P2pnetError(reason)
    return answers.popitem()[1]


def _rows(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """Return what a volunteer wants to know; what the node does not say is left out."""
    get: Callable[[str], Any] = facts.get
    members = [f"{get(key)} {word}" for key, word in _MEMBERS if get(key) is not None]
    rounds = [f"{get(f'rounds_{what}')} {word}" for what, word in _ROUNDS if get(f"rounds_{what}") is not None]
    traffic = [f"{in_bytes(get(key))} {word}" for key, word in _TRAFFIC if get(key) is not None]
    spans = [f"{in_span(get(key))} {word}" for key, word in _SPANS if get(key) is not None]
    rows: list[tuple[str, object]] = [
        ("swarm", _joined("  ", get("name"), get("swarm"))),
        ("peer", get("peer")),
        ("up for", None if get("uptime_s") is None else in_span(get("uptime_s"))),
        ("round", _joined(", ", get("round"), get("phase"), _behind(get("behind")))),
        ("rounds here", ", ".join(rounds) or None),
        ("loss", _loss(get("loss_first"), get("loss"))),
        ("steps", get("steps")),
        ("time", ", ".join(spans) or None),
        ("traffic", ", ".join(traffic) or None),
        ("members", ", ".join(members) or None),
        ("connected", _peers(get("connected"))),
        ("electorate", _peers(get("electorate"))),
        ("reach", get("reach")),
        ("lineage", get("lineage")),
        ("state", get("state_sha256")),
        ("stalled", _stalled(get("stalled_s"), get("missing"))),
        ("trouble", get("trouble") or None),
        ("refused", "\n".join(f"{peer}: {why}" for peer, why in (get("refused") or {}).items()) or None),
        ("notes", "\n".join(_note(one) for one in (get("notes") or [])[-NOTES_SHOWN:]) or None),
    ]
    return rows


_ROUNDS: Final = (("sealed", "sealed"), ("void", "void"), ("credited", "with my update"))
_MEMBERS: Final = (("known_members", "known"), ("members", "have committed to this round"))
_TRAFFIC: Final = (("wire_bytes_up", "up"), ("wire_bytes_down", "down"))
_SPANS: Final = (("train_s", "training"), ("exchange_s", "exchanging"), ("straggler_wait_s", "waiting for others"))


def _joined(between: str, *values: object) -> str | None:
    return between.join(str(value) for value in values if value is not None) or None


def _behind(rounds: object) -> str | None:
    return f"{rounds} behind the others" if rounds else None


def _loss(first: float | None, last: float | None) -> str | None:
    if last is None:
        return None
    return f"{last:.4f}" if first is None else f"{last:.4f}, at first {first:.4f}"


def _peers(peers: object) -> str | None:
    """Show how many peers, and their ids as long as there are few. peers: a list of ids, or just their number."""
    if not isinstance(peers, list):
        return None if peers is None else str(peers)
    shown = [str(peer) for peer in peers[:PEERS_SHOWN]]
    more = [f"and {len(peers) - PEERS_SHOWN} more"] if len(peers) > PEERS_SHOWN else []
    return "\n".join([str(len(peers)), *shown, *more])


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
