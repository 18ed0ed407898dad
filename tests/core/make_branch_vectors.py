"""Write protocols/vectors/branch-1, from an encoder and signatures that are not p2pnet's.

Run `python -m tests.core.make_branch_vectors` from the repository's root.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests import independent
from tests.core.make_vectors import LINEAGE, PEERS, ROUND, SWARM
from tests.vectors import VECTORS

SOURCE = "tests/core/make_branch_vectors.py: msgpack and Ed25519 written from their pages, not p2pnet's own"
TAG = b"p2pnet/branch/1\n"
KEYS = [key for key, _ in PEERS]
HEARS = [b"\xc0", b"\xe0"]  # of an electorate of three: the first hears two, itself among them, the second all
NONCES = [bytes(range(8)), bytes(range(8, 16))]
BEACON = hashlib.sha256(b"beacon").digest()


def body(who: int, voters: int = 2, nonce: bytes | None = None) -> list[Any]:
    return [20, SWARM, ROUND, LINEAGE, KEYS[:voters], HEARS[who], NONCES[who] if nonce is None else nonce]


def sign(message: list[Any], who: int, tag: bytes = TAG) -> bytes:
    return independent.sign(PEERS[who][1], tag + independent.msgpack(message))


def signed(message: list[Any], who: int, tag: bytes = TAG) -> bytes:
    return independent.msgpack([independent.msgpack(message), KEYS[who], sign(message, who, tag)])


def certificate(hears: list[bytes] | None = None) -> list[Any]:
    signatures = [sign(body(who), who) for who in (0, 1)]
    return [21, SWARM, ROUND, LINEAGE, KEYS[:2], HEARS if hears is None else hears, NONCES, signatures]


def branch_id(bodies: list[bytes]) -> bytes:
    return hashlib.sha256(TAG + b"".join(len(each).to_bytes(4, "big") + each for each in bodies)).digest()


def shown(message: list[Any]) -> dict[str, Any]:
    names = ["swarm", "round", "lineage", "voters", "hears", "nonce"]
    name = "Branch"
    if message[0] == 21:
        name, names = "BranchCertificate", [*names[:4], "hears", "nonces", "signatures"]

    def plain(value: Any) -> Any:
        return [plain(one) for one in value] if isinstance(value, list) else getattr(value, "hex", lambda: value)()

    return {"message": name} | {key: plain(value) for key, value in zip(names, message[1:], strict=True)}


def main() -> None:
    folder = VECTORS / "branch-1"
    folder.mkdir(exist_ok=True)

    def write(name: str, kind: str, description: str, **rest: Any) -> None:
        case = {"page": "branch-1", "kind": kind, "description": description, "source": SOURCE, **rest}
        (folder / f"{name}.json").write_text(json.dumps(case, indent=2) + "\n")

    def message(name: str, kind: str, description: str, data: bytes, decoded: list[Any] | str) -> None:
        about: dict[str, Any] = {"protocol": "branch/1", "valid": isinstance(decoded, list)}
        about |= {"rule": decoded} if isinstance(decoded, str) else {}
        about["hex"] = data.hex()
        about |= {"decoded": shown(decoded)} if isinstance(decoded, list) else {}
        write(name, kind, description, **about)

    first, whole = body(0), certificate()
    message("branch", "signed", "The first of three voters would go on with the second.", signed(first, 0), first)
    message("branch-signed-by-another", "signed", "The second signed it.", _by_another(first), "wire-1/R6")
    message(
        "branch-signed-for-another-protocol", "signed", "Signed with the tag of round-1.",
        signed(first, 0, b"p2pnet/round/1\n"), "wire-1/R6",
    )  # fmt: skip
    message("branch-without-voters", "signed", "Nobody goes on.", signed(body(0, 0), 0), "wire-1/R3")
    message("branch-of-a-short-nonce", "signed", "Seven bytes.", signed(body(0, 2, bytes(7)), 0), "wire-1/R3")
    message("certificate", "message", "Both signed.", independent.msgpack(whole), whole)
    message(
        "certificate-that-hears-too-much", "message", "More bits than there can be voters.",
        independent.msgpack(certificate([b"\xff" * 14, b"\xe0"])), "wire-1/R3",
    )  # fmt: skip
    bodies = [independent.msgpack(body(who)) for who in (0, 1)]
    branch = branch_id(bodies)
    write("id", "branch-id", "Of the certificate.", certificate=independent.msgpack(whole).hex(), id=branch.hex())
    write(
        "state", "branch-state", "In which the branch begins, after a stalled round with this beacon.",
        branch=branch.hex(), beacon=BEACON.hex(),
        lineage=hashlib.sha256(b"p2pnet/genesis/1\n" + branch).hexdigest(),
        branch_beacon=hashlib.sha256(b"p2pnet/beacon/1\n" + BEACON + branch).hexdigest(),
    )  # fmt: skip


def _by_another(message: list[Any]) -> bytes:
    return independent.msgpack([independent.msgpack(message), KEYS[0], sign(message, 1)])


if __name__ == "__main__":
    main()
