"""Write protocols/vectors/bundles-1 from the page alone: encoder and hashes that are not p2pnet's.

Run `python -m tests.wire.make_bundle_vectors` from the repository's root.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests import independent
from tests.core.make_group_vectors import plain
from tests.vectors import VECTORS

SOURCE = "tests/wire/make_bundle_vectors.py: msgpack and hashes written from the pages, not p2pnet's own"
SWARM, ROSTER, DIGEST, ONE, OTHER = (
    hashlib.sha256(word).digest() for word in (b"swarm", b"roster", b"digest", b"one", b"other")
)
ABOUT = {"swarm": SWARM, "round": 7, "view": 1}
ROW = bytes.fromhex("010100000081")
SLICES = [[19, 0, [ONE]], [19, 3, [OTHER, ONE]]]
SLICES_DECODED = [
    {"message": "BundledSlice", "place": 0, "proof": [ONE]},
    {"message": "BundledSlice", "place": 3, "proof": [OTHER, ONE]},
]

VALID: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "bundle": (
        [20, SWARM, 7, 1, ROSTER, 29, 2, SLICES],
        {"message": "Bundle", **ABOUT, "roster": ROSTER, "part": 29, "group": 2, "slices": SLICES_DECODED},
        "Of the third group numbers 0 and 3 gave a slice of part 29.",
    ),
    "bundle-of-nothing": (
        [20, SWARM, 7, 1, ROSTER, 29, 2, []],
        {"message": "Bundle", **ABOUT, "roster": ROSTER, "part": 29, "group": 2, "slices": []},
        "None of the group gave one: its reducer need not wait for them.",
    ),
    "await-column": (
        [21, SWARM, 7, 1, ROSTER, 63],
        {"message": "AwaitColumn", **ABOUT, "roster": ROSTER, "column": 63},
        "For the last column that there may be.",
    ),
    "get-column": ([22, SWARM, 7, DIGEST], {"message": "GetColumn", "swarm": SWARM, "round": 7, "digest": DIGEST},
                   "By the digest of its listing."),
    "lacked-parts": ([23, [0, 2]], {"message": "LackedParts", "groups": [0, 2]}, "Two of its parts are not there."),
    "get-group-roster": (
        [24, SWARM, 7, DIGEST], {"message": "GetGroupRoster", "swarm": SWARM, "round": 7, "digest": DIGEST},
        "By the digest of its commits.",
    ),
    "get-wide-leaf": ([25, SWARM, 7, 1, 29, 3], {"message": "GetWideLeaf", **ABOUT, "part": 29, "leaf": 3},
                      "The fourth leaf of part 29."),
    "group-leaves": (
        [26, ROW, SLICES[:1]],
        {"message": "GroupLeaves", "factors": ROW, "leaves": SLICES_DECODED[:1]},
        "Shape only: a row that takes two has two leaves.",
    ),
}  # fmt: skip

INVALID: dict[str, tuple[list[Any], str]] = {
    "bundle-of-group-1024": ([20, SWARM, 7, 1, ROSTER, 29, 1024, []], "There are 1024 groups at most."),
    "bundle-of-a-part-beyond-the-limit": ([20, SWARM, 7, 1, ROSTER, 65536, 2, []], "64 columns of 1024 groups."),
    "bundle-of-129-slices": ([20, SWARM, 7, 1, ROSTER, 29, 2, [[19, 0, []]] * 129], "A group has 128 members at most."),
    "bundled-slice-of-place-128": ([19, 128, []], "A group has 128 members at most."),
    "group-leaves-with-a-row-of-257-bytes": ([26, bytes(257), []], "Two bytes for each of 128 members."),
    "bundled-slice-with-a-short-hash": ([19, 0, [ONE[:31]]], "A hash has 32 bytes."),
    "get-wide-leaf-of-a-negative-view": ([25, SWARM, 7, -1, 29, 2], "Views count from 0."),
    "await-column-64": ([21, SWARM, 7, 1, ROSTER, 64], "At most 64 columns."),
    "lacked-parts-of-group-1024": ([23, [1024]], "There are 1024 groups at most."),
}


def write(name: str, case: dict[str, Any]) -> None:
    folder = VECTORS / "bundles-1"
    folder.mkdir(exist_ok=True)
    text = json.dumps({"page": "bundles-1", "kind": "message", **plain(case)}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n")


def main() -> None:
    for name, (body, decoded, what) in VALID.items():
        write(name, {"description": what, "source": SOURCE, "protocol": "bundles/1", "valid": True,
                     "hex": independent.msgpack(body), "decoded": decoded})  # fmt: skip
    for name, (body, what) in INVALID.items():
        write(name, {"description": what, "source": SOURCE, "protocol": "bundles/1", "valid": False,
                     "rule": "wire-1/R3", "hex": independent.msgpack(body)})  # fmt: skip


if __name__ == "__main__":
    main()
