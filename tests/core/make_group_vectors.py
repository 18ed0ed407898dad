"""Write protocols/vectors/groups-1 from the page alone: encoder, signatures, trees and hashes that are not p2pnet's.

Run `python -m tests.core.make_group_vectors` from the repository's root.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests import independent
from tests.vectors import VECTORS

SOURCE = "tests/core/make_group_vectors.py: msgpack, Ed25519 and hashes written from the pages, not p2pnet's own"
TAG = b"p2pnet/groups/1\n"
SEED = bytes([7]) * 32
SWARM, LINEAGE, BEACON, ROSTER = (
    hashlib.sha256(word).digest() for word in (b"swarm", b"lineage", b"beacon", b"roster")
)
INPUTS, ROOT, NORMS = (hashlib.sha256(word).digest() for word in (b"inputs", b"root", b"norms"))
PEERS = sorted(hashlib.sha256(b"member %d" % number).digest() for number in range(11))


def sign(body: list[Any]) -> bytes:
    data = independent.msgpack(body)
    return independent.msgpack([data, independent.public_key(SEED), independent.sign(SEED, TAG + data)])


def listing_digest(items: list[bytes]) -> bytes:
    state = hashlib.sha256(b"p2pnet/listing/1\n")
    for item in items:
        state.update(len(item).to_bytes(4, "big") + item)
    return state.digest()


def deal(voters: list[bytes], others: list[bytes], size: int) -> list[list[bytes]]:
    """The groups of a round, from the page."""
    count = len(voters) + len(others)
    groups = 1 if count < size else min(count // size + 1, count, 1024)
    drawn = {peer: hashlib.sha256(b"p2pnet/deal/1\n" + BEACON + peer).digest() for peer in voters + others}
    order = sorted(voters, key=drawn.__getitem__) + sorted(others, key=drawn.__getitem__)
    return [order[number::groups] for number in range(groups)]


def messages() -> dict[str, tuple[str, list[Any], dict[str, Any], str]]:
    """By file: kind of vector, body, what it decodes to, what it is."""
    reduced = [15, SWARM, 7, 1, 29, 40, 44, ROSTER, INPUTS, b"\x00\x08", ROOT, NORMS]
    raw = sign(reduced)
    columns = [listing_digest([raw, b"", raw, raw]), listing_digest([b""] * 4)]
    return {
        "group-roster": ("signed", [13, SWARM, 7, 1, LINEAGE, 2, [b"commit", b"another"]], {
            "message": "GroupRoster", "swarm": SWARM, "round": 7, "view": 1, "lineage": LINEAGE, "group": 2,
            "commits": [b"commit", b"another"],
        }, "The third group has two commits."),
        "wide-roster": ("signed", [14, SWARM, 7, 1, LINEAGE, [ROOT, b"", NORMS]], {
            "message": "WideRoster", "swarm": SWARM, "round": 7, "view": 1, "lineage": LINEAGE,
            "groups": [ROOT, b"", NORMS],
        }, "Of three groups the second gave none."),
        "wide-reduced": ("signed", reduced, {
            "message": "WideReduced", "swarm": SWARM, "round": 7, "view": 1, "part": 29, "start": 40, "stop": 44,
            "roster": ROSTER, "inputs": INPUTS, "missing": b"\x00\x08", "root": ROOT, "norms": NORMS,
        }, "Part 29 of four groups: column 7, group 1. Member 12 of the roster, group by group, is missing."),
        "wide-outcome": ("message", [16, SWARM, 7, LINEAGE, ROSTER, 1, columns, PEERS[:2], BEACON, b"", []], {
            "message": "WideOutcome", "swarm": SWARM, "round": 7, "lineage": LINEAGE, "roster": ROSTER, "view": 1,
            "columns": columns, "electorate": PEERS[:2], "beacon": BEACON, "state": b"", "excluded": [],
        }, "Two columns of four parts; one part of the first is void, the second altogether."),
        "listing": ("message", [17, [raw, b"", raw, raw]], {"message": "Listing", "items": [raw, b"", raw, raw]},
                    "The first column of wide-outcome."),
    }  # fmt: skip


INVALID: dict[str, tuple[list[Any], str]] = {
    "group-roster-of-nobody": ([13, SWARM, 7, 1, LINEAGE, 2, []], "A group that gives no commit gives no roster."),
    "group-roster-of-group-1024": ([13, SWARM, 7, 1, LINEAGE, 1024, [b"commit"]], "There are 1024 groups at most."),
    "wide-roster-of-one-group": ([14, SWARM, 7, 1, LINEAGE, [ROOT]], "One group has a roster of round-1."),
    "wide-reduced-of-a-part-beyond-the-limit": (
        [15, SWARM, 7, 1, 65536, 40, 44, ROSTER, INPUTS, b"", ROOT, NORMS], "64 columns of 1024 groups."
    ),
    "wide-outcome-of-65-columns": (
        [16, SWARM, 7, LINEAGE, ROSTER, 1, [ROOT] * 65, PEERS[:2], BEACON, b"", []], "At most 64 columns."
    ),
    "listing-of-a-long-digest": ([17, [b"r" * 8833]], "A signed digest has 8832 bytes at most."),
}  # fmt: skip


def plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def write(name: str, case: dict[str, Any]) -> None:
    folder = VECTORS / "groups-1"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"page": "groups-1", **plain(case)}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n")


def main() -> None:
    for name, (kind, body, decoded, what) in messages().items():
        data = sign(body) if kind == "signed" else independent.msgpack(body)
        write(name, {"kind": kind, "description": what, "source": SOURCE, "protocol": "groups/1", "valid": True,
                     "hex": data, "decoded": decoded})  # fmt: skip
    for name, (body, what) in INVALID.items():
        write(name, {"kind": "message", "description": what, "source": SOURCE, "protocol": "groups/1", "valid": False,
                     "rule": "wire-1/R3", "hex": independent.msgpack(body)})  # fmt: skip
    for name, voters, size in (("deal", 3, 4), ("deal-of-a-full-roster", 11, 11), ("deal-of-few", 3, 12)):
        groups = deal(PEERS[:voters], PEERS[voters:], size)
        write(name, {"kind": "deal", "description": f"{len(PEERS)} members, {voters} of them voters.", "source": SOURCE,
                     "beacon": BEACON, "voters": PEERS[:voters], "others": PEERS[voters:], "group_size_max": size,
                     "groups": groups})  # fmt: skip


if __name__ == "__main__":
    main()
