"""`p2pnet log`: the decided rounds that this machine keeps, while the node runs or after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnet.cli.folders import Json, Prefix, StateDir, choose_swarm, state_dir_or_default
from p2pnet.cli.show import read_manifest
from p2pnet.cli.terminal import in_bytes, in_time, note, say, show_fields, show_table, write_json
from p2pnet.errors import ConfigError, P2pnetError, WireError
from p2pnet.identity import PeerId, peer_id_text, verify

if TYPE_CHECKING:
    from p2pnet.ledger.log import Entry
    from p2pnet.ledger.reader import LedgerReader
    from p2pnet.wire.round import Commit, Reduced, WideReduced
    from p2pnet.wire.signing import Signed

LINEAGE_CHARS: Final = 12
ROOT_CHARS: Final = 16


def log(
    round: Annotated[
        int | None, typer.Argument(metavar="ROUND", help="Show this round in full.", min=0, max=2**62)
    ] = None,
    state_dir: StateDir = None,
    swarm: Prefix = "",
    last: Annotated[
        int, typer.Option("--last", metavar="N", help="Show the latest N rounds; 0 for all.", min=0, max=2**62)
    ] = 20,
    json: Json = False,
) -> None:
    """Show the decided rounds, or one in full with its signatures checked; also while the node runs.

    record: bytes of the round in the transcript: outcome, certificate, commits.

    p2pnet log --last 100
    p2pnet log 17 --json
    """
    from p2pnet.ledger.log import FILE_NAME
    from p2pnet.ledger.reader import LedgerReader

    place = state_dir_or_default(state_dir)
    folder = choose_swarm(place, FILE_NAME, swarm, f"{place}: no ledger there; `p2pnet join LINK` starts one")
    with LedgerReader(folder / FILE_NAME) as ledger:
        try:
            if round is None:
                _show_rounds(ledger, last, json)
            else:
                _show_round(ledger, round, _electorate(ledger, round, folder), json)
        except WireError as error:
            raise P2pnetError(f"{ledger.path}: a round in it is not what was signed: {error}") from error


def summarize(entry: Entry) -> dict[str, Any]:
    """Return one decided round in short, as JSON's types."""
    from p2pnet.wire.round import Quorum, decode_value

    outcome, certificate = decode_value(entry.outcome), _decode(Quorum, entry.certificate)
    return {
        "round": entry.round,
        "decided": "void" if outcome.void else "sealed",
        "view": certificate.view,
        "members": len(_contents(entry)[0]),
        "voters": len(certificate.endorsements),
        "record_bytes": len(entry.outcome) + len(entry.certificate) + sum(map(len, entry.commits)),
        "lineage": entry.lineage.hex(),
        "decided_unix_s": entry.decided_unix_s,
        "excluded": [{"peer": peer_id_text(one.peer), "evidence": one.evidence.hex()} for one in outcome.excluded],
    }


def describe_round(entry: Entry, electorate: tuple[PeerId, ...] | None) -> dict[str, Any]:
    """Return one decided round in full, as JSON's types; every signature in it is checked here.

    electorate: who might vote in it, as the round before decided; None: not known, and not checked.
    Raises WireError for a signature that is wrong.
    """
    from p2pnet.wire.round import Commit, Quorum, Reduced, WideReduced, decode_value, outcome_digest
    from p2pnet.wire.signing import open_signed

    outcome, certificate = decode_value(entry.outcome), _decode(Quorum, entry.certificate)
    if certificate.value != outcome_digest(entry.outcome):
        raise WireError("round-1", "the certificate is not of this outcome")
    for one in certificate.endorsements:
        if not verify(one.peer, certificate.vote_bytes(), one.signature):
            raise WireError("wire-1/R6", f"wrong signature of {peer_id_text(one.peer)} under the certificate")
        if electorate is not None and one.peer not in electorate:
            raise WireError("round-1", f"{peer_id_text(one.peer)} sealed and was no voter")
    raws, digests = _contents(entry)
    commits = [open_signed((Commit,), raw, verify) for raw in raws]
    reduced: list[Signed[Reduced | WideReduced]]
    reduced = [open_signed((Reduced, WideReduced), raw, verify) for raw in digests]
    return {
        **summarize(entry),
        "value": certificate.value.hex(),
        "lineage_before": outcome.lineage.hex(),
        "leaf_sha256": _leaf(entry),
        "electorate": None if electorate is None else [peer_id_text(peer) for peer in electorate],
        "sealed_by": [peer_id_text(one.peer) for one in certificate.endorsements],
        "roster_view": None if outcome.void else outcome.view,
        "groups": _groups_of(entry),
        "commits": [_commit(one) for one in commits],
        "parts": [_part(one, commits) for one in reduced],
        "electorate_next": [peer_id_text(peer) for peer in outcome.electorate],
        "beacon_next": outcome.beacon.hex(),
        "state_sha256": outcome.state.hex() or None,
    }


def _show_rounds(ledger: LedgerReader, last: int, as_json: bool) -> None:
    size = len(ledger)
    first = max(0, size - last) if last else 0
    rows = [summarize(entry) for entry in ledger.entries(first, size)]
    if as_json:
        write_json({"swarm": ledger.swarm().hex(), "decided": size, "rounds": rows})
        return
    if not rows:
        say(f"no round is decided yet in swarm {ledger.swarm().hex()}")
        return
    note(f"swarm {ledger.swarm().hex()}, {size} rounds decided")
    for row in rows:
        for one in row["excluded"]:
            note(f"round {row['round']} excludes {one['peer']}, who was proved to lie")
    show_table(
        ["round", "decided", "view", "members", "voters", "record", "lineage", "at"],
        [
            (
                row["round"],
                row["decided"],
                row["view"],
                row["members"],
                row["voters"],
                in_bytes(row["record_bytes"]),
                row["lineage"][:LINEAGE_CHARS],
                in_time(row["decided_unix_s"]),
            )
            for row in rows
        ],
    )


def _electorate(ledger: LedgerReader, number: int, folder: Path) -> tuple[PeerId, ...] | None:
    """Return who might vote in a round, as the one before decided, at first the founders; None when it is not here."""
    from p2pnet.node.content import MANIFEST_NAME
    from p2pnet.wire.round import decode_value

    if number == 0:
        path = folder / MANIFEST_NAME
        return read_manifest(path, ledger.swarm()).message.founders if path.exists() else None
    before = ledger.entry(number - 1)
    return None if before is None else decode_value(before.outcome).electorate


def _show_round(ledger: LedgerReader, number: int, electorate: tuple[PeerId, ...] | None, as_json: bool) -> None:
    entry = ledger.entry(number)
    if entry is None:
        raise ConfigError(f"round {number}: not decided here; decided are {len(ledger)} rounds, from 0 on")
    try:
        facts = describe_round(entry, electorate)
    except WireError as error:
        raise P2pnetError(f"{ledger.path}: round {number} is not what was signed: {error}") from error
    if as_json:
        write_json(facts)
    else:
        _print_round(facts)


def _print_round(facts: Mapping[str, Any]) -> None:
    voters = len(facts["electorate"]) if facts["electorate"] else "voters that are not known here"
    show_fields(
        [
            ("round", f"{facts['round']}, {facts['decided']} in view {facts['view']}"),
            ("at", in_time(facts["decided_unix_s"])),
            ("value", facts["value"]),
            ("lineage", f"{facts['lineage_before']}\n{facts['lineage']} after it"),
            ("state", facts["state_sha256"]),
            ("next beacon", facts["beacon_next"]),
            ("record", f"{in_bytes(facts['record_bytes'])}, leaf {facts['leaf_sha256']}"),
            ("sealed by", "\n".join([f"{len(facts['sealed_by'])} of {voters}", *facts["sealed_by"]])),
            ("next voters", "\n".join(facts["electorate_next"])),
            ("excluded", "\n".join(f"{one['peer']}, evidence {one['evidence']}" for one in facts["excluded"]) or None),
        ]
    )
    if facts["commits"]:
        say("\ncommits")
        columns = ["place", "member", "samples", "assigned", "reach", "payload root"]
        show_table(columns, [_commit_row(place, one) for place, one in enumerate(facts["commits"])])
    if facts["parts"] and facts["groups"]:
        say(f"parts, reduced over {facts['groups']} groups (inputs: the root over the clip factors of all members)")
        show_table(["part", "reducer", "inputs", "root"], [_part_row(one) for one in facts["parts"]])
    elif facts["parts"]:
        say("parts (inputs: clip factor of 256 by place, - is missing)")
        show_table(["part", "reducer", "inputs", "root"], [_part_row(one) for one in facts["parts"]])
    say("every signature above is right")


def _commit_row(place: int, one: Mapping[str, Any]) -> tuple[object, ...]:
    assigned = "yes" if one["assigned"] else "no"
    return place, one["peer"], one["samples"], assigned, one["reach"], one["payload_root"][:ROOT_CHARS]


def _part_row(one: Mapping[str, Any]) -> tuple[object, ...]:
    if "inputs_root" in one:
        return one["part"], one["reducer"], one["inputs_root"][:ROOT_CHARS], one["root"][:ROOT_CHARS]
    inputs = " ".join("-" if factor is None else str(factor) for factor in one["inputs"].values())
    return one["part"], one["reducer"], inputs, one["root"][:ROOT_CHARS]


def _commit(signed: Signed[Commit]) -> dict[str, Any]:
    from p2pnet.wire.membership import Reach

    commit = signed.message
    return {
        "peer": peer_id_text(signed.peer),
        "samples": commit.samples,
        "assigned": bool(commit.assigned),
        "reach": Reach(commit.reach).name.lower(),
        "up_kbps": commit.up_kbps,
        "down_kbps": commit.down_kbps,
        "payload_root": commit.payload_root.hex(),
        "checksum": commit.checksum,
    }


def _part(signed: Signed[Reduced | WideReduced], commits: list[Signed[Commit]]) -> dict[str, Any]:
    """inputs: by member, the clip factor of 256, null for who is missing; of many groups the root over them."""
    from p2pnet.wire.round import WideReduced

    reduced = signed.message
    if isinstance(reduced, WideReduced):
        return {
            "part": reduced.part,
            "reducer": peer_id_text(signed.peer),
            "inputs_root": reduced.inputs.hex(),
            "root": reduced.root.hex(),
        }
    factors = (None if code == 0 else code - 1 for code in reduced.inputs)
    return {
        "part": reduced.part,
        "reducer": peer_id_text(signed.peer),
        "inputs": {peer_id_text(one.peer): factor for one, factor in zip(commits, factors, strict=False)},
        "root": reduced.root.hex(),
    }


def _contents(entry: Entry) -> tuple[list[bytes], list[bytes]]:
    """The signed commits of a decided round, and the signed digests of its parts; void ones are left out.

    Of many groups they are checked against what the outcome names.
    """
    from p2pnet.core.decided import split_listings
    from p2pnet.wire.round import WideOutcome, decode_value, listing_digest, roster_digest

    outcome = decode_value(entry.outcome)
    if not isinstance(outcome, WideOutcome):
        return list(entry.commits), list(outcome.reduced)
    groups, columns = split_listings(outcome, entry.commits)
    if listing_digest(tuple(roster_digest(each.items) if each.items else b"" for each in groups)) != outcome.roster:
        raise WireError("groups-1/R5", "commits that are not those of its roster")
    if tuple(listing_digest(each.items) for each in columns) != outcome.columns:
        raise WireError("groups-1/R30", "columns that are not those of its outcome")
    return [raw for each in groups for raw in each.items], [raw for each in columns for raw in each.items if raw]


def _groups_of(entry: Entry) -> int:
    """Over how many groups a round was reduced; 0: it had one roster, or none."""
    from p2pnet.core.decided import split_listings
    from p2pnet.wire.round import WideOutcome, decode_value

    outcome = decode_value(entry.outcome)
    if not isinstance(outcome, WideOutcome):
        return 0
    return len(split_listings(outcome, entry.commits)[1][0].items)


def _leaf(entry: Entry) -> str:
    from p2pnet.wire.merkle import leaf_hash

    return leaf_hash(entry.leaf()).hex()


def _decode(cls: Any, data: bytes) -> Any:
    from p2pnet.wire.codec import decode

    return decode((cls,), data)
