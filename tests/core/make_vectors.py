"""Write protocols/vectors/evidence-1, from encoders, signatures, trees and arithmetic that are not p2pnet's.

Run `python -m tests.core.make_vectors` from the repository's root. Shared with the tests that try to frame somebody.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tests import independent
from tests.numerics import reference as ref
from tests.vectors import VECTORS

Case = dict[str, Any]
SOURCE = (
    "tests/core/make_vectors.py: msgpack, Ed25519, RFC 6962 and reduce-1 written from their pages, not p2pnet's own"
)

SWARM, LINEAGE, PREIMAGE = (hashlib.sha256(word).digest() for word in (b"swarm", b"lineage", b"preimage"))
CHUNKS, LEAF_CHUNKS, K, K_RESULT, LEVEL_BIAS, ROUND_SAMPLES = 36, 16, 8, 16, 32, 8
ROUND, VIEW = 7, 1
SEEDS = [bytes([number]) * 32 for number in (1, 2, 4)]
PEERS = sorted((independent.public_key(seed), seed) for seed in SEEDS)  # three members: key, secret
SAMPLES = (8, 3, 100)  # weights 8, 3, 8
LEAVES, START, STOP = 3, 1, 3  # the part that is reduced: leaves 1 and 2, the latter of 4 chunks


# --- what is said and signed


def sign(body: list[Any], who: int, tag: bytes = b"p2pnet/round/1\n") -> bytes:
    key, seed = PEERS[who]
    data = independent.msgpack(body)
    return independent.msgpack([data, key, independent.sign(seed, tag + data)])


def commit(who: int, root: bytes, swarm: bytes = SWARM, lineage: bytes = LINEAGE, number: int = ROUND) -> bytes:
    return sign([1, swarm, number, lineage, root, SAMPLES[who], PREIMAGE, 5, 1, 1, 0, 0], who)


def vote(who: int, value: bytes, phase: int = 1, number: int = ROUND, swarm: bytes = SWARM) -> bytes:
    return sign([6, swarm, number, VIEW, phase, value], who)


def proposal(who: int, outcome: bytes) -> bytes:
    return sign([5, SWARM, ROUND, VIEW, 0, outcome], who)


def void(lineage: bytes = LINEAGE, beacon: bytes = PREIMAGE) -> bytes:
    return independent.msgpack([4, SWARM, ROUND, lineage, b"", 0, [], [key for key, _ in PEERS], beacon, b"", []])


def reduced(
    who: int,
    inputs: Sequence[int],
    root: bytes,
    roster: bytes,
    swarm: bytes = SWARM,
    part: int = 0,
    norms: bytes = hashlib.sha256(b"norms").digest(),
) -> bytes:
    return sign([3, swarm, ROUND, VIEW, part, START, STOP, roster, list(inputs), root, norms], who)


def roster_digest(commits: Sequence[bytes]) -> bytes:
    listed = b"".join(len(raw).to_bytes(4, "big") + raw for raw in commits)
    return hashlib.sha256(b"p2pnet/roster/1\n" + listed).digest()


# --- trees, of RFC 6962, section 2.1


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(hashes[:split]) + root(hashes[split:])).digest()


def path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    if len(hashes) == 1:
        return []
    split = 1 << (len(hashes) - 1).bit_length() - 1
    if index < split:
        return [*path(hashes[:split], index), root(hashes[split:])]
    return [*path(hashes[split:], index - split), root(hashes[:split])]


# --- payloads and what is reduced of them


@functools.cache
def payload(who: int) -> tuple[bytes, ...]:
    """The leaves of a member's update."""
    chunks = [ref.encode_chunk(ref.noise(100 * who + chunk), K, LEVEL_BIAS) for chunk in range(CHUNKS)]
    return tuple(b"".join(chunks[at : at + LEAF_CHUNKS]) for at in range(0, CHUNKS, LEAF_CHUNKS))


def spoil(leaves: Sequence[bytes], leaf: int, data: bytes | None = None) -> tuple[bytes, ...]:
    """An update one leaf of which is no leaf of chunks: an upper word without a one, or whatever is given."""
    spoilt = list(leaves)
    size = len(spoilt[leaf]) // (LEAF_CHUNKS if leaf < LEAVES - 1 else CHUNKS % LEAF_CHUNKS)
    spoilt[leaf] = bytes(size) + spoilt[leaf][size:] if data is None else data
    return tuple(spoilt)


def hashes_of(leaves: Sequence[bytes]) -> list[bytes]:
    return [leaf_hash(leaf) for leaf in leaves]


def shown(leaves: Sequence[bytes], index: int, data: bytes | None = None) -> list[Any]:
    return [2, leaves[index] if data is None else data, path(hashes_of(leaves), index)]


@functools.cache
def reduction(taken: tuple[int, ...] = (0, 1, 2)) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """The leaves of the part that an honest reducer gives, and the inputs that it signs."""
    weights = [min(8, -(-8 * samples // ROUND_SAMPLES)) for samples in SAMPLES]
    slices = [b"".join(payload(who)[START:STOP]) for who in taken]
    output, clips = ref.reduce(slices, [weights[who] for who in taken], sum(weights), K, K_RESULT)
    size = len(output) // (CHUNKS - START * LEAF_CHUNKS) * LEAF_CHUNKS
    factors = dict(zip(taken, clips, strict=True))
    inputs = tuple(factors[who] + 1 if who in factors else 0 for who in range(3))
    return (output[:size], output[size:]), inputs


def lie(output: Sequence[bytes], leaf: int) -> tuple[bytes, ...]:
    """The same part with the chunks of one leaf in another order: well-formed, and not what follows."""
    size = len(output[0]) // LEAF_CHUNKS
    changed = list(output)
    changed[leaf] = changed[leaf][size:] + changed[leaf][:size]
    return tuple(changed)


def wrong_leaf(
    part: Sequence[bytes], leaf: int = 2, payloads: Sequence[Sequence[bytes]] | None = None, **changed: Any
) -> bytes:
    """The evidence about one leaf of what member 0 reduced; changed: fields of it that are something else."""
    payloads = payloads or [payload(who) for who in range(3)]
    commits = [commit(who, root(hashes_of(leaves))) for who, leaves in enumerate(payloads)]
    inputs = changed.pop("codes", reduction()[1])
    signed = reduced(0, inputs, root(hashes_of(part)), roster_digest(commits), changed.pop("swarm", SWARM))
    fields: Case = {
        "reduced": signed,
        "commits": commits,
        "leaf": leaf,
        "output": shown(part, max(leaf - START, 0)),
        "inputs": [shown(leaves, leaf) for leaves, code in zip(payloads, inputs, strict=True) if code],
    }
    return independent.msgpack([4, *(fields | changed).values()])


@functools.cache
def norms(taken: tuple[int, ...] = (0, 1, 2), louder: int = 1) -> tuple[bytes, ...]:
    """The rows of norms of the part, a leaf each; that of member 1 in the last leaf is said to be `louder` times it."""
    rows = []
    for leaf in range(START, STOP):
        row = [ref.norm2(payload(who)[leaf], K) * (louder if (leaf, who) == (STOP - 1, 1) else 1) for who in taken]
        rows.append(b"".join(norm.to_bytes(12, "big") for norm in row))
    return tuple(rows)


def codes_of(rows: Sequence[bytes]) -> tuple[int, ...]:
    """The inputs that follow from rows of norms, when none is missing."""
    columns = [sum(int.from_bytes(row[at : at + 12], "big") for row in rows) for at in range(0, len(rows[0]), 12)]
    return tuple(factor + 1 for factor in ref.clip_factors(columns))


def wrong_norm(rows: Sequence[bytes], place: int = 1, swarm: bytes = SWARM, **changed: Any) -> bytes:
    """The evidence about one norm, in the last leaf, that member 0 signed; changed: fields that are something else."""
    commits = [commit(who, root(hashes_of(payload(who)))) for who in range(3)]
    codes = changed.pop("codes", reduction()[1])
    over = root(hashes_of(rows))
    fields: Case = {
        "reduced": reduced(0, codes, LINEAGE, roster_digest(commits), swarm, norms=over),
        "commits": commits,
        "leaf": STOP - 1,
        "row": shown(rows, STOP - 1 - START),
        "place": place,
        "shown": shown(payload(place), STOP - 1),
    }
    return independent.msgpack([6, *(fields | changed).values()])


def wrong_clips(codes: Sequence[int], rows: Sequence[bytes], swarm: bytes = SWARM, said: bytes | None = None) -> bytes:
    signed = reduced(0, codes, LINEAGE, LINEAGE, swarm, norms=root(hashes_of(rows)))
    return independent.msgpack([7, signed, b"".join(rows) if said is None else said])


def malformed_leaf(leaves: Sequence[bytes], leaf: int, swarm: bytes = SWARM, **changed: Any) -> bytes:
    fields: Case = {
        "commit": commit(1, root(hashes_of(leaves)), swarm),
        "leaf": leaf,
        "shown": shown(leaves, min(leaf, LEAVES - 1)),
    }
    return independent.msgpack([3, *(fields | changed).values()])


def double_signed(one: bytes, other: bytes, in_order: bool = True) -> bytes:
    """Two signed messages, the one with the lower body first."""
    bodies = {raw: _body(raw) for raw in (one, other)}
    first, second = sorted((one, other), key=lambda raw: bodies[raw], reverse=not in_order)
    return independent.msgpack([1, first, second])


def _body(raw: bytes) -> bytes:
    import msgpack

    body: bytes = msgpack.unpackb(raw)[0]
    return body


# --- the cases


def cases() -> Iterator[tuple[str, Case]]:
    a, b = hashlib.sha256(b"a").digest(), hashlib.sha256(b"b").digest()
    yield from _doubles(a, b)
    yield from _no_doubles(a, b)
    yield from _malformed()
    yield from _reduced()
    yield from _norms()
    yield (
        "get-evidence",
        message([5, SWARM, hashlib.sha256(b"p2pnet/evidence/1\n" + double_signed(vote(0, a), vote(0, b))).digest()]),
    )
    yield "get-evidence-of-a-short-digest", message([5, SWARM, b"\1" * 31], "wire-1/R3")


def _doubles(a: bytes, b: bytes) -> Iterator[tuple[str, Case]]:
    yield "two-votes", proven(double_signed(vote(0, a), vote(0, b)), 0, "Two prepares in one view.")
    yield "two-seals", proven(double_signed(vote(1, a, 2), vote(1, b"", 2)), 1, "A value and nil.")
    yield "two-commits", proven(double_signed(commit(2, a), commit(2, b)), 2, "Two updates in one round.")
    digest = roster_digest([commit(0, a)])
    one, other = (reduced(1, (257,), each, digest) for each in (a, b))
    yield "two-reduced", proven(double_signed(one, other), 1, "Two results of one part.")
    one, other = (sign([2, SWARM, ROUND, VIEW, LINEAGE, [commit(0, each)]], 2) for each in (a, b))
    yield "two-rosters", proven(double_signed(one, other), 2, "Two rosters in one view.")
    pair = proposal(0, void()), proposal(0, void(beacon=a))
    yield "two-proposals", proven(double_signed(*pair), 0, "Two outcomes in one view, of one lineage.")
    pair = proposal(0, void()), proposal(0, b"no outcome at all")
    yield "a-proposal-and-noise", proven(double_signed(*pair), 0, "What is no outcome is of no lineage.")


def _no_doubles(a: bytes, b: bytes) -> Iterator[tuple[str, Case]]:
    def refused(one: bytes, other: bytes, rule: str, why: str) -> Case:
        return worthless(double_signed(one, other), rule, why)

    yield "same-vote-twice", refused(vote(0, a), vote(0, a), "evidence-1/R3", "Equal bytes are no offence.")
    yield "two-phases", refused(vote(0, a), vote(0, b, 2), "evidence-1/R3", "A prepare and a seal.")
    yield "two-rounds", refused(vote(0, a), vote(0, b, number=8), "evidence-1/R3", "Each round has its slots.")
    yield "two-authors", refused(vote(0, a), vote(1, b), "evidence-1/R3", "Each peer has its own slots.")
    digest = roster_digest([commit(0, a)])
    one, other = reduced(1, (257, 0), a, digest), reduced(2, (257, 257), b, digest)
    yield "two-reducers", refused(one, other, "evidence-1/R3", "Honest reducers may differ in their inputs.")
    pair = commit(2, a), commit(2, b, lineage=a)
    yield "two-lineages", refused(*pair, "evidence-1/R3", "Who follows another branch signs for it what it must.")
    pair = proposal(0, void()), proposal(0, void(lineage=a))
    yield "two-proposals-of-two-lineages", refused(*pair, "evidence-1/R3", "The outcomes name their lineages.")
    skip = sign([11, SWARM, ROUND, LINEAGE], 2)
    yield "commit-and-skip", refused(commit(2, a), skip, "evidence-1/R3", "Two kinds are two slots.")
    in_the_wrong_order = double_signed(vote(0, a), vote(0, b), in_order=False)
    yield "votes-in-the-wrong-order", worthless(in_the_wrong_order, "evidence-1/R3", "One form of one proof.")
    pair = vote(0, a, swarm=a), vote(0, b, swarm=a)
    yield "votes-of-another-swarm", refused(*pair, "evidence-1/R2", "Replayed from another swarm.")
    pair = vote(0, a), vote(0, b, swarm=a)
    yield "votes-of-two-swarms", refused(*pair, "evidence-1/R2", "One of them replayed from another swarm.")
    forged = vote(0, b)[:-1] + bytes([vote(0, b)[-1] ^ 1])
    yield "vote-with-a-wrong-signature", refused(vote(0, a), forged, "wire-1/R6", "The second one is made up.")
    other_tag = sign([6, SWARM, ROUND, VIEW, 1, b], 0, b"p2pnet/membership/1\n")
    yield "vote-signed-for-another-protocol", refused(vote(0, a), other_tag, "wire-1/R6", "Another domain tag.")


def _malformed() -> Iterator[tuple[str, Case]]:
    for name, leaf in (("malformed-leaf", 0), ("malformed-last-leaf", 2)):
        yield name, proven(malformed_leaf(spoil(payload(1), leaf), leaf), 1, "An upper word without ones.")
    short = spoil(payload(1), 0, payload(1)[0][:-1])
    yield "leaf-cut", proven(malformed_leaf(short, 0), 1, "A byte is missing.")
    yield "leaf-of-nothing", proven(malformed_leaf(spoil(payload(1), 1, b""), 1), 1, "No bytes at all.")
    spoilt = spoil(payload(1), 0)
    yield "well-formed-leaf", worthless(malformed_leaf(payload(1), 0), "evidence-1/R5", "Nothing is wrong with it.")
    other = malformed_leaf(spoilt, 1, shown=shown(spoilt, 0))
    yield "malformed-leaf-of-another-place", worthless(other, "evidence-1/R4", "It is leaf 0, not 1.")
    forged = malformed_leaf(payload(1), 0, shown=shown(payload(1), 0, spoilt[0]))
    yield "malformed-leaf-made-up", worthless(forged, "evidence-1/R4", "Not under the commit.")
    beyond = malformed_leaf(spoilt, 3, shown=shown(spoilt, 2))
    yield "malformed-leaf-beyond-the-last", worthless(beyond, "evidence-1/R4", "A payload has three leaves.")
    inner = hashes_of(spoilt)
    node = malformed_leaf(spoilt, 0, shown=[2, b"\1" + inner[0] + inner[1], [inner[2]]])
    yield "node-for-a-leaf", worthless(node, "evidence-1/R4", "Leaves and nodes are hashed under different prefixes.")
    replayed = malformed_leaf(spoilt, 0, swarm=b"\2" * 32)
    yield "malformed-leaf-of-another-swarm", worthless(replayed, "evidence-1/R2", "There the format may be another.")
    signed_by = malformed_leaf(spoilt, 0, commit=vote(1, b""))
    yield "malformed-leaf-under-a-vote", worthless(signed_by, "wire-1/R3", "A vote commits to no payload.")


def _reduced() -> Iterator[tuple[str, Case]]:
    honest, _ = reduction()
    liar = lie(honest, 1)
    yield "wrong-leaf", proven(wrong_leaf(liar), 0, "The chunks of the last leaf are in another order.")
    yield "wrong-first-leaf", proven(wrong_leaf(lie(honest, 0), 1), 0, "The first leaf of the part.")
    short = (honest[0], honest[1][:-1])
    yield "wrong-leaf-cut", proven(wrong_leaf(short), 0, "The output lacks a byte.")
    some, codes = reduction((0, 2))
    yield "wrong-leaf-of-two-inputs", proven(wrong_leaf(lie(some, 1), codes=codes), 0, "The second is missing.")
    codes = (reduction()[1][0] // 2, *reduction()[1][1:])
    yield "wrong-clip-applied", proven(wrong_leaf(honest, codes=codes), 0, "Not what these clip factors give.")
    spoilt = [payload(0), spoil(payload(1), 2), payload(2)]
    taken = wrong_leaf(honest, payloads=spoilt)
    yield "malformed-input-taken", proven(taken, 0, "A malformed slice counts as missing, and it was taken.")
    yield "honest-leaf", worthless(wrong_leaf(honest), "evidence-1/R8", "It follows from its inputs.")
    yield "honest-leaf-of-a-liar", worthless(wrong_leaf(liar, 1), "evidence-1/R8", "The lie is in another leaf.")
    some, codes = reduction((0, 2))
    yield "honest-leaf-of-two-inputs", worthless(wrong_leaf(some, codes=codes), "evidence-1/R8", "Missing is allowed.")
    forged = [shown(payload(who), 2) for who in range(3)]
    forged[1] = shown(payload(1), 2, payload(0)[2])
    yield "wrong-leaf-with-a-made-up-input", worthless(wrong_leaf(honest, inputs=forged), "evidence-1/R7", "Not its.")
    forged = [shown(payload(who), 1) for who in range(3)]
    yield "wrong-leaf-with-other-inputs", worthless(wrong_leaf(honest, inputs=forged), "evidence-1/R7", "Of leaf 1.")
    made_up = wrong_leaf(honest, output=shown(honest, 1, liar[1]))
    yield "wrong-leaf-made-up", worthless(made_up, "evidence-1/R7", "Not under the root that was signed.")
    commits = [commit(who, root(hashes_of(payload(who)))) for who in (0, 1)]
    yield "wrong-leaf-of-another-roster", worthless(wrong_leaf(liar, commits=commits), "evidence-1/R6", "Two of three.")
    fewer = [shown(payload(who), 2) for who in (0, 1)]
    yield "wrong-leaf-with-an-input-less", worthless(wrong_leaf(liar, inputs=fewer), "evidence-1/R6", "One withheld.")
    outside = wrong_leaf(liar, 0)
    yield "wrong-leaf-of-another-part", worthless(outside, "evidence-1/R6", "The part starts at leaf 1.")
    yield "wrong-leaf-of-another-swarm", worthless(wrong_leaf(liar, swarm=b"\2" * 32), "evidence-1/R2", "Replayed.")


def _norms() -> Iterator[tuple[str, Case]]:
    honest, lie, codes = norms(), norms(louder=4), reduction()[1]
    yield "wrong-norm", proven(wrong_norm(lie), 0, "Four times the norm^2 of a leaf, to quieten its sender.")
    cut = (honest[0], honest[1][:-1])
    yield "wrong-norm-cut", proven(wrong_norm(cut), 0, "A row that is no row.")
    lower = wrong_norm(norms((0, 2)), place=2, codes=reduction((0, 2))[1])
    yield "honest-norm-beside-a-missing-one", worthless(lower, "evidence-1/R9", "Rows have the inputs that are there.")
    yield "honest-norm", worthless(wrong_norm(honest), "evidence-1/R9", "It is the norm of that leaf.")
    yield "honest-norm-of-a-liar", worthless(wrong_norm(lie, 2), "evidence-1/R9", "The lie is about another input.")
    missing = wrong_norm(norms((0, 2)), codes=reduction((0, 2))[1])
    yield "norm-of-a-missing-input", worthless(missing, "evidence-1/R6", "Of what it does not list it says nothing.")
    forged = wrong_norm(honest, row=shown(honest, 1, lie[1]))
    yield "wrong-norm-made-up", worthless(forged, "evidence-1/R7", "Not under the root that was signed.")
    forged = wrong_norm(honest, shown=shown(payload(2), 2))
    yield "norm-beside-another-leaf", worthless(forged, "evidence-1/R7", "The leaf is another member's.")
    yield "norm-of-another-place", worthless(wrong_norm(honest, leaf=1), "evidence-1/R7", "Row and leaf are of leaf 2.")
    yield "wrong-norm-of-another-swarm", worthless(wrong_norm(lie, swarm=b"\2" * 32), "evidence-1/R2", "Replayed.")
    quiet = (codes[0], codes[1] // 2, codes[2])
    yield "wrong-clips", proven(wrong_clips(quiet, honest), 0, "Half the factor that follows from the norms.")
    yield "clips-of-nobody", proven(wrong_clips((1, 1, 1), honest), 0, "All clipped to nothing.")
    yield "honest-clips", worthless(wrong_clips(codes_of(honest), honest), "evidence-1/R10", "They follow.")
    yield "honest-clips-of-wrong-norms", worthless(wrong_clips(codes_of(lie), lie), "evidence-1/R10", "They follow.")
    forged = wrong_clips(codes, honest, said=b"".join(lie))
    yield "wrong-clips-made-up", worthless(forged, "evidence-1/R7", "Other norms than those that were signed.")
    forged = wrong_clips(codes, honest, said=honest[0])
    yield "wrong-clips-with-a-row-less", worthless(forged, "evidence-1/R6", "The part has two leaves.")
    forged = wrong_clips((0, 0, 0), honest)
    yield "clips-without-inputs", worthless(forged, "evidence-1/R6", "No input, no factor.")
    forged = wrong_clips(quiet, honest, swarm=b"\2" * 32)
    yield "wrong-clips-of-another-swarm", worthless(forged, "evidence-1/R2", "Replayed.")


def exclusions() -> Iterator[tuple[str, Case]]:
    """For round-1: what an outcome says of liars."""
    first, second = ([12, PEERS[who][0], hashlib.sha256(b"evidence %d" % who).digest()] for who in (0, 1))
    names = ("peer", "evidence")
    decoded = [{"message": "Exclusion"} | dict(zip(names, (each[1].hex(), each[2].hex()), strict=True))
               for each in (first, second)]  # fmt: skip
    yield "exclusion", _round(first, "A member that was proved to lie.", decoded[0])
    yield "exclusion-of-a-short-digest", _round([*first[:2], b"\1" * 31], "A digest of 31 bytes.")
    outcome = [4, SWARM, ROUND, LINEAGE, b"", 0, [], [PEERS[2][0]], PREIMAGE, b""]
    fields = ("swarm", "round", "lineage", "roster", "view", "reduced", "electorate", "beacon", "state")
    plain: Case = {"message": "Outcome"}
    for name, value in zip(fields, outcome[1:], strict=True):
        plain[name] = value.hex() if isinstance(value, bytes) else value
    plain |= {"electorate": [PEERS[2][0].hex()], "excluded": decoded}
    yield "outcome-excluding-two", _round([*outcome, [first, second]], "VOID; two of three voters are excluded.", plain)
    yield "outcome-excluding-nine", _round([*outcome, [first] * 9], "Eight are allowed.")


def _round(items: list[Any], description: str, decoded: Case | None = None) -> Case:
    case: Case = {"kind": "message", "description": description, "protocol": "round/1", "valid": decoded is not None}
    case |= {"rule": "wire-1/R3"} if decoded is None else {}
    case["hex"] = independent.msgpack(items).hex()
    return case if decoded is None else case | {"decoded": decoded}


def proven(raw: bytes, who: int, description: str) -> Case:
    digest = hashlib.sha256(b"p2pnet/evidence/1\n" + raw).hexdigest()
    proof = {"peer": PEERS[who][0].hex(), "round": ROUND, "digest": digest}
    return {"kind": "evidence", "description": description, "valid": True, **proof, "hex": raw.hex()}


def worthless(raw: bytes, rule: str, description: str) -> Case:
    return {"kind": "evidence", "description": description, "valid": False, "rule": rule, "hex": raw.hex()}


def message(items: list[Any], rule: str = "") -> Case:
    case: Case = {"kind": "message", "description": "A GetEvidence.", "protocol": "evidence/1", "valid": not rule}
    case |= {"rule": rule} if rule else {}
    case["hex"] = independent.msgpack(items).hex()
    if not rule:
        names = ("swarm", "digest")
        case["decoded"] = {"message": "GetEvidence"} | {n: v.hex() for n, v in zip(names, items[1:], strict=True)}
    return case


def main() -> None:
    folder = VECTORS / "evidence-1"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.json"):
        stale.unlink()
    ground = {
        "swarm": SWARM.hex(), "chunks": CHUNKS, "k": K, "k_result": K_RESULT, "value_bits": 2,
        "round_samples": ROUND_SAMPLES,
    }  # fmt: skip
    for name, case in cases():
        rest = ground if case["kind"] == "evidence" else {}
        whole = {"page": "evidence-1", "source": SOURCE, **rest, **case}
        (folder / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")

    for name, case in exclusions():
        whole = {"page": "round-1", "source": SOURCE, **case}
        (VECTORS / "round-1" / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
