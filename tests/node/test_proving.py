"""Evidence from its bytes: what proves, what proves nothing, and that nobody who keeps to the protocol is framed."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnet.core.evidence import Ground, Offence, examine
from p2pnet.errors import WireError
from p2pnet.identity import verify
from p2pnet.node.proving import RULES, is_lie
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire.evidence import PROOFS, decode_evidence, evidence_digest
from tests.core import make_vectors as made
from tests.vectors import vectors

GROUND = Ground(made.SWARM, made.CHUNKS, made.ROUND_SAMPLES)
FORMATS = ChunkFormat(made.K), ChunkFormat(made.K_RESULT)
HONEST = {key for key, _ in made.PEERS}


def judge(raw: bytes, ground: Ground = GROUND) -> Offence:
    """As a node does; raises WireError where the evidence proves nothing."""
    offence, claim = examine(raw, ground, verify)
    if claim is not None and not is_lie(claim, FORMATS):
        raise WireError(RULES[type(claim)], "not a lie")
    return offence


@pytest.mark.parametrize("vector", vectors("evidence-1", "evidence"))
def test_evidence_proves_what_its_vector_says(vector: dict[str, Any]) -> None:
    ground = Ground(bytes.fromhex(vector["swarm"]), vector["chunks"], vector["round_samples"])
    raw = bytes.fromhex(vector["hex"])
    if not vector["valid"]:
        with pytest.raises(WireError) as caught:
            judge(raw, ground)
        assert caught.value.rule == vector["rule"]
        return
    offence = judge(raw, ground)
    assert (offence.peer.hex(), offence.round, offence.digest.hex()) == (
        vector["peer"], vector["round"], vector["digest"],
    )  # fmt: skip


def test_the_vectors_are_what_their_script_writes() -> None:
    written = {name: case["hex"] for name, case in made.cases()}
    kept = {case.id: case.values[0]["hex"] for case in vectors("evidence-1")}  # type: ignore[index,call-overload]
    assert written == kept


# --- framing. Below everything that three honest members sign in a round is known to a liar that has a key of its own;
# it may send any bytes that it can make of it. None of them ever proves anything against one of the three.


@cache
def said() -> tuple[bytes, ...]:
    """All that honest members sign: a commit each, a reduction each of two parts in two views, votes, proposals."""
    commits = [made.commit(who, made.root(made.hashes_of(made.payload(who)))) for who in range(3)]
    digest = made.roster_digest(commits)
    output, inputs = made.reduction()
    some, codes = made.reduction((0, 2))
    root, other = made.root(made.hashes_of(output)), made.root(made.hashes_of(some))
    signed = [*commits, made.reduced(0, inputs, root, digest), made.reduced(1, codes, other, digest)]
    signed += [made.reduced(2, inputs, root, digest, part=1), made.sign([11, made.SWARM, 8, made.LINEAGE], 1)]
    for who in range(3):
        signed += [made.vote(who, bytes([phase]) * 32, phase) for phase in (1, 2)]
        signed += [made.vote(who, b"", 1, number=8), made.commit(who, b"\7" * 32, number=8)]
        signed += [made.vote(who, b"\3" * 32, swarm=b"\2" * 32)]  # it is in another swarm too
    signed += [made.proposal(0, made.void()), made.sign([2, made.SWARM, made.ROUND, 1, made.LINEAGE, commits], 0)]
    return tuple(signed)


def frames(raw: bytes) -> None:
    """Whatever these bytes are, they prove nothing against the honest."""
    try:
        offence = judge(raw)
    except WireError:
        return
    assert offence.peer not in HONEST, f"framed {offence}"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_two_of_all_that_honest_members_sign_prove_anything(data: st.DataObject) -> None:
    one, other = data.draw(st.sampled_from(said())), data.draw(st.sampled_from(said()))
    frames(made.double_signed(one, other))
    frames(made.double_signed(one, other, in_order=False))


def test_every_pair_of_all_that_honest_members_sign_proves_nothing() -> None:
    for one in said():
        for other in said():
            frames(made.double_signed(one, other))


@cache
def honest_evidence() -> list[bytes]:
    """Evidence in shape, made of nothing but what honest members sent: each would be proof if there were a lie."""
    output, _ = made.reduction()
    some, codes = made.reduction((0, 2))
    leaves = [made.malformed_leaf(made.payload(1), leaf) for leaf in range(made.LEAVES)]
    wrong = [made.wrong_leaf(output, leaf) for leaf in (1, 2)]
    rows = [made.wrong_norm(made.norms(), place) for place in range(3)]
    clips = made.wrong_clips(made.codes_of(made.norms()), made.norms())
    wrong += [*rows, clips, made.wrong_norm(made.norms((0, 2)), 2, codes=codes)]
    return [*leaves, *wrong, made.wrong_leaf(some, 2, codes=codes), made.double_signed(said()[0], said()[0])]


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_change_of_honest_bytes_frames_anybody(data: st.DataObject) -> None:
    """Every part of evidence-shaped honest data is changed: a byte, a field, a field of another one."""
    base = data.draw(st.sampled_from(honest_evidence()))
    items = msgpack.unpackb(base)
    kind = data.draw(st.integers(0, 3))
    if kind == 0:  # any byte of any part
        place, value = data.draw(st.integers(0, len(base) - 1)), data.draw(st.integers(0, 255))
        frames(base[:place] + bytes([value]) + base[place + 1 :])
        return
    if kind == 1:  # a field of another piece of evidence
        other = msgpack.unpackb(data.draw(st.sampled_from(honest_evidence())))
        field = data.draw(st.integers(1, len(items) - 1))
        items[field] = other[data.draw(st.integers(1, len(other) - 1))]
    elif kind == 2:  # other numbers
        numbers = [place for place, item in enumerate(items) if isinstance(item, int)]
        items[data.draw(st.sampled_from(numbers))] = data.draw(st.integers(0, 2**32 - 1))
    else:  # deeper: leaves, proofs, commits, in another order, doubled, left out, changed
        _shuffle(items, data)
    frames(msgpack.packb(items, use_bin_type=True))


def _shuffle(items: list[Any], data: st.DataObject) -> None:
    lists = [item for item in items if isinstance(item, list)]
    lists += [inner for item in lists for inner in item if isinstance(inner, list)]
    lists += [inner for item in lists for inner in item if isinstance(inner, list)]
    if not lists:
        return
    chosen = data.draw(st.sampled_from(range(len(lists))))
    picked = lists[chosen]
    if not picked:
        picked.append(b"\0" * 32)
        return
    at, to = (data.draw(st.integers(0, len(picked) - 1)) for _ in range(2))
    match data.draw(st.integers(0, 3)):
        case 0:
            picked[at], picked[to] = picked[to], picked[at]
        case 1:
            picked.append(picked[at])
        case 2:
            del picked[at]
        case _ if isinstance(picked[at], bytes):
            place = data.draw(st.integers(0, max(0, len(picked[at]) - 1)))
            picked[at] = picked[at][:place] + data.draw(st.binary(max_size=3)) + picked[at][place + 1 :]


VALID = [case.values[0] for case in vectors("evidence-1", "evidence") if case.values[0]["valid"]]  # type: ignore[index,call-overload]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_evidence_that_is_changed_proves_nothing_or_the_same_lie_of_the_same_peer(data: st.DataObject) -> None:
    vector = data.draw(st.sampled_from(VALID))
    raw = bytearray.fromhex(vector["hex"])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        offence = judge(bytes(raw))
    except WireError:
        return
    assert (offence.peer.hex(), offence.round) == (vector["peer"], vector["round"])


@given(st.binary(max_size=300))
def test_noise_is_refused_with_a_rule(noise: bytes) -> None:
    with pytest.raises(WireError):
        judge(noise)


def test_another_signature_under_the_same_words_is_no_second_message() -> None:
    """Ed25519 lets some signatures be written twice, and a signer may draw its nonce anew: bodies are compared."""
    raw = made.vote(0, b"\1" * 32)
    body, key, signature = msgpack.unpackb(raw)
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    twin = msgpack.packb([body, key, signature[:32] + scalar.to_bytes(32, "little")], use_bin_type=True)
    assert twin != raw
    with pytest.raises(WireError):
        judge(msgpack.packb([1, *sorted((raw, twin))], use_bin_type=True))
    with pytest.raises(WireError, match="R3"):  # even with a verifier that takes both
        examine(msgpack.packb([1, raw, twin], use_bin_type=True), GROUND, lambda *_: True)


def test_the_name_of_evidence_is_the_hash_of_its_bytes_and_tells_equal_proofs_apart() -> None:
    raws = [bytes.fromhex(vector["hex"]) for vector in VALID]
    assert len({evidence_digest(raw) for raw in raws}) == len(raws)
    assert all(type(decode_evidence(raw)).__name__ in {each.__name__ for each in PROOFS} for raw in raws)
