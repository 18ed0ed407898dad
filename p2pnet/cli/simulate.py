"""`p2pnet simulate`: play a swarm of many members on slow or lossy links, with faults and liars, on one machine."""

from __future__ import annotations

import dataclasses
import json as json_
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnet.cli.folders import Json
from p2pnet.cli.terminal import in_bytes, in_span, note, say, show_fields, show_table, write_json
from p2pnet.errors import ConfigError

if TYPE_CHECKING:
    from p2pnet.sim.scenario import Scenario

TOLD_EVERY_S: Final = 2.0
BASE_BYTES_MAX: Final = 64 << 20
SHOWN: Final = (  # what --compare sets side by side: path in the JSON, name, unit
    ("rounds.sealed", "rounds sealed", "count"),
    ("rounds.void", "rounds void", "count"),
    ("rounds.stalled", "rounds stalled", "count"),
    ("rounds.later_views", "rounds decided in a later view", "count"),
    ("members_in_roster", "members in a roster", "count"),
    ("round_s.median", "a round", "span"),
    ("exchange_s.median", "of it roster to decided", "span"),
    ("bytes_per_peer_and_round.sent", "sent by a peer in a round", "bytes"),
    ("bytes_per_peer_and_round.payload", "of it payload", "bytes"),
    ("bytes_per_peer_and_round.result", "of it result", "bytes"),
    ("bytes_per_peer_and_round.catch_up", "of it to who was away", "bytes"),
    ("bytes_per_peer_and_round.control", "of it control", "bytes"),
    ("control_share", "control to payload", "share"),
    ("traffic_ratio", "sent to 2 payloads and a result", "ratio"),
    ("gossip.redundancy", "copies of a message in gossip", "ratio"),
)


Config = Annotated[Path | None, typer.Option(metavar="FILE.toml", help="What to play; options below take precedence.")]
Members = Annotated[int | None, typer.Option("-n", "--members", metavar="N", help="Members. 16 by default.")]
RoundCount = Annotated[int | None, typer.Option(metavar="N", help="Rounds to decide. 5 by default.")]
Params = Annotated[str | None, typer.Option(metavar="COUNT", help="Parameters, such as 100M, 1B.")]
Values = Annotated[int | None, typer.Option(metavar="K", help="Values of 4096 in a payload. 64 by default.")]
Up = Annotated[str | None, typer.Option(metavar="RATE", help="Each member's uplink, such as 20M. 100M.")]
Down = Annotated[str | None, typer.Option(metavar="RATE", help="Each member's downlink. 100M.")]
Latency = Annotated[float | None, typer.Option(metavar="MS", help="From member to member, one way. 50.")]
Loss = Annotated[float | None, typer.Option(metavar="SHARE", help="Lost on the way, and sent again. 0.")]
Nat = Annotated[float | None, typer.Option(metavar="SHARE", help="Members that cannot be dialled. 0.")]
TrainTime = Annotated[float | None, typer.Option(metavar="S", help="What a round's training takes. 30.")]
Crash = Annotated[float | None, typer.Option(metavar="SHARE", help="Killed per round, back after 10 s.")]
Freeze = Annotated[float | None, typer.Option(metavar="SHARE", help="Stopped per round, for 30 s.")]
Churn = Annotated[float | None, typer.Option(metavar="SHARE", help="Leaving per round, back a round later.")]
Night = Annotated[float | None, typer.Option(metavar="SHARE", help="Voters leaving within an hour.")]
Partition = Annotated[float | None, typer.Option(metavar="SHARE", help="Cut off once, for a minute.")]
Liars = Annotated[int | None, typer.Option(metavar="N", help="Voters that say what they like.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of all that is drawn; the same seed, the same run.")]
Compare = Annotated[
    Path | None, typer.Option(metavar="BASE.json", help="Show what differs from an earlier run's --json.")
]


def simulate(
    config: Config = None,
    members: Members = None,
    rounds: RoundCount = None,
    params: Params = None,
    k: Values = None,
    up: Up = None,
    down: Down = None,
    latency: Latency = None,
    loss: Loss = None,
    nat: Nat = None,
    train: TrainTime = None,
    crash: Crash = None,
    freeze: Freeze = None,
    churn: Churn = None,
    night: Night = None,
    partition: Partition = None,
    liars: Liars = None,
    seed: Seed = None,
    compare: Compare = None,
    json: Json = False,
) -> None:
    """Play a swarm on one machine: members, links, faults, liars; see what rounds and bytes come to.

    Rounds, gossip and membership are the node's own state machines; links, disks, training and time are played.
    Bytes take time on each member's line up and down; sizes are those that would travel.

    p2pnet simulate -n 64 --params 1B --latency 50
    p2pnet simulate -n 32 --rounds 20 --churn 0.1 --json > base.json
    p2pnet simulate -n 32 --rounds 20 --churn 0.1 --up 20M --compare base.json
    p2pnet simulate -n 10 --rounds 80 --train 60 --night 0.4
    p2pnet simulate --config world.toml

    A world.toml has the same keys as `--json` shows under "scenario", and links of several kinds:

    churn = 0.1
    links = [{share = 0.7, up = "20M", nat = 0.5}, {share = 0.3, up = "1G", down = "1G"}]

    From group_size_max members on they exchange in groups. From 512 on more is played, for speed: broadcasts go down
    drawn trees, bulk passes a line whole, rosters come at once; records and audits are left out of the bytes.

    sealed: decided with a result. void: decided without one. stalled: a member said that nothing moved.
    control: all bytes but payloads, results and what is sent to who was away.
    """
    given = {
        "members": members, "rounds": rounds, "params": params, "k": k, "up": up, "down": down, "latency_ms": latency,
        "loss": loss, "nat": nat, "train_s": train, "crash": crash, "freeze": freeze, "churn": churn, "night": night,
        "partition": partition, "liars": liars, "seed": seed,
    }  # fmt: skip
    scenario = merge_scenario(config, {key: value for key, value in given.items() if value is not None})
    base = None if compare is None else read_base(compare)
    found = {"scenario": describe_scenario(scenario), **_play(scenario)}
    if base is not None:
        found["compared"] = {path: [_at(base, path), _at(found, path)] for path, _, _ in SHOWN}
    if json:
        write_json(found)
        return
    _show(found)
    if base is not None:
        _show_differences(base, found)


def merge_scenario(file: Path | None, given: Mapping[str, Any]) -> Scenario:
    """What a file says, with the command line's words in their place. Raises ConfigError with every mistake."""
    from p2pnet.schema import load, load_file
    from p2pnet.sim.scenario import Scenario

    if file is None:
        return load(Scenario, given, "command line")
    written = load_file(Scenario, file)
    checked = load(Scenario, given, "command line")
    try:
        return dataclasses.replace(written, **{key: getattr(checked, key) for key in given})
    except ValueError as error:  # each is right, both together are not
        raise ConfigError(f"{file}, with the command line: {error}") from error


def describe_scenario(scenario: Scenario) -> dict[str, Any]:
    """Every key of a scenario, as JSON's types."""
    listed: dict[str, Any] = json_.loads(json_.dumps(dataclasses.asdict(scenario)))  # tuples are lists there
    return listed


def read_base(path: Path) -> dict[str, Any]:
    """What an earlier run wrote with --json. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            text = file.read(BASE_BYTES_MAX + 1)
        base = json_.loads(text) if len(text) <= BASE_BYTES_MAX else None
    except OSError as error:
        raise ConfigError(f"--compare: {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--compare: {path}: not JSON: {error}") from error
    if not isinstance(base, dict) or not isinstance(base.get("scenario"), dict):
        raise ConfigError(f"--compare: {path}: not what `p2pnet simulate --json` writes")
    return base


def _play(scenario: Scenario) -> dict[str, Any]:
    """Play it, and tell on stderr how far it is when that takes long."""
    from p2pnet.sim.internet import Internet

    started_s = told_s = time.monotonic()

    def tell(number: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s >= told_s + TOLD_EVERY_S:
            told_s = now_s
            note(
                f"round {number + 1} of {scenario.rounds} decided, {in_span(net.now_s)} played in "
                f"{in_span(now_s - started_s)}, {net.happened:,} events"
            )

    net = Internet(scenario, tell)
    found = net.play()
    took_s = time.monotonic() - started_s
    note(f"{in_span(net.now_s)} played in {in_span(took_s)}, {net.happened:,} events")
    return found


def _show(found: Mapping[str, Any]) -> None:
    """The figures, for people."""
    rounds, bytes_, scenario = found["rounds"], found["bytes_per_peer_and_round"], found["scenario"]
    say(
        f"{found['members']} members, {rounds['asked']} rounds asked for: {rounds['sealed']} sealed, "
        f"{rounds['void']} void, {rounds['stalled']} stalled"
        + (f"; {rounds['later_views']} decided in a later view" if rounds["later_views"] else "")
    )
    if rounds["decided"] < rounds["asked"]:
        say(f"{rounds['asked'] - rounds['decided']} rounds were not decided within {in_span(found['simulated_s'])}")
    if found["behind"]:
        say(f"{found['behind']} members were still behind when it ended: they had just come back, or were cut off")
    rows = [
        ("a round", _span(found["round_s"])),
        ("of it roster to decided", _span(found["exchange_s"])),
        ("of it training", f"about {in_span(scenario['train_s'])}"),
        ("members in a roster", _plain(found["members_in_roster"])),
        ("sent by a peer in a round", in_bytes(bytes_["sent"])),
        ("of it payload", f"{in_bytes(bytes_['payload'])} of {in_bytes(found['payload_bytes'])}"),
        ("of it result", f"{in_bytes(bytes_['result'])} of {in_bytes(found['result_bytes'])}"),
        ("of it to who was away", in_bytes(bytes_["catch_up"])),
        ("of it control", f"{in_bytes(bytes_['control'])}, {_percent(found['control_share'])} of the payload"),
        ("sent to 2 payloads and a result", f"{found['traffic_ratio']:.2f}"),
        (
            "copies of a message in gossip",
            f"{found['gossip']['redundancy']:.2f}, {found['gossip']['steady']:.2f} later",
        ),
        ("what went wrong", ", ".join(f"{count} {name}" for name, count in found["faults"].items()) or "nothing"),
        ("what members said", ", ".join(f"{count} {name}" for name, count in found["notes"].items()) or "nothing"),
    ]
    show_fields(rows)
    if found["is_played"]:
        say("\nso many members: gossip is played, bulk passes a line whole, records and audits are not in the bytes")
    control = {
        kind: count for kind, count in bytes_["by_kind"].items() if kind not in ("payload", "result", "catch-up")
    }
    listed = sorted(control.items(), key=lambda item: -item[1])
    say("\ncontrol bytes of a peer in a round, by kind")
    share = max(1.0, bytes_["payload"])
    show_table(
        ["kind", "bytes", "of the payload"],
        [(kind, in_bytes(count), _percent(count / share)) for kind, count in listed if count >= 1],
    )


def _show_differences(base: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    was, now = base["scenario"], found["scenario"]
    changed = [f"{key} {was.get(key)} -> {now.get(key)}" for key in now if was.get(key) != now.get(key)]
    say("\ncompared: " + (", ".join(changed) if changed else "the same scenario"))
    rows = []
    for path, name, unit in SHOWN:
        before, after = _at(base, path), _at(found, path)
        rows.append((name, _in_unit(before, unit), _in_unit(after, unit), _change(before, after)))
    show_table(["", "base", "now", "change"], rows)


def _at(tree: Mapping[str, Any], path: str) -> float | None:
    """The number at a.b.c, None where there is none."""
    found: Any = tree
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _in_unit(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    match unit:
        case "bytes":
            return in_bytes(value)
        case "span":
            return in_span(value)
        case "share":
            return _percent(value)
        case "ratio":
            return f"{value:.2f}"
    return f"{value:g}"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None or before == after:
        return "" if before == after else "-"
    return f"{100 * (after / before - 1):+.1f} %" if before else "new"


def _span(spread: Mapping[str, float | None]) -> str:
    median, least, most = (spread[name] for name in ("median", "least", "most"))
    if median is None or least is None or most is None:
        return "-"
    return f"{in_span(median)} ({in_span(least)} .. {in_span(most)})"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
