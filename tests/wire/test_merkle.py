from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.wire import merkle
from tests.vectors import vectors


def mth(leaves: Sequence[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, as it stands there; over the leaves' bytes."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = max(2**i for i in range(64) if 2**i < len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH(m, D[n]) of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = max(2**i for i in range(64) if 2**i < len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], complete: bool) -> list[bytes]:
    """SUBPROOF(m, D[n], b) of section 2.1.2; PROOF(m, D[n]) = SUBPROOF(m, D[n], true)."""
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = max(2**i for i in range(64) if 2**i < len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def make_leaves(size: int) -> list[bytes]:
    return [b"leaf %d" % i for i in range(size)]


def hashes(leaves: Sequence[bytes]) -> list[bytes]:
    return [merkle.leaf_hash(leaf) for leaf in leaves]


def unhex(texts: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def check_vector(vector: dict[str, Any]) -> bool:
    proof = unhex(vector["proof"])
    match vector["kind"]:
        case "inclusion":
            leaf = bytes.fromhex(vector["leaf_hash"])
            root = bytes.fromhex(vector["root"])
            return merkle.verify_inclusion(root, vector["size"], vector["index"], leaf, proof)
        case "range":
            leaf_hashes, root = unhex(vector["leaf_hashes"]), bytes.fromhex(vector["root"])
            return merkle.verify_range(root, vector["size"], vector["start"], vector["stop"], leaf_hashes, proof)
        case "consistency":
            old, new = bytes.fromhex(vector["old_root"]), bytes.fromhex(vector["new_root"])
            return merkle.verify_consistency(old, vector["old_size"], new, vector["new_size"], proof)
    raise AssertionError(vector["kind"])


@pytest.mark.parametrize("vector", vectors("merkle-1", "roots"))
def test_published_roots_come_out(vector: dict[str, Any]) -> None:
    leaves = unhex(vector["leaves"])
    for size, root in enumerate(vector["roots"]):
        assert merkle.root(hashes(leaves[:size])).hex() == root
        assert mth(leaves[:size]).hex() == root


@pytest.mark.parametrize("vector", vectors("merkle-1", "inclusion", "range", "consistency"))
def test_each_proof_is_accepted_or_refused_as_its_vector_says(vector: dict[str, Any]) -> None:
    assert check_vector(vector) is vector["valid"]


@pytest.mark.parametrize("size", [*range(34), 64, 65, 100])
def test_roots_and_proofs_are_those_of_the_rfcs_definition(size: int) -> None:
    leaves = make_leaves(size)
    tree = merkle.Tree.of(hashes(leaves))
    assert tree.root() == mth(leaves)
    for index in range(size):
        assert list(tree.inclusion_proof(index)) == path(index, leaves)
    for old_size in range(1, size + 1):
        assert list(tree.consistency_proof(old_size)) == subproof(old_size, leaves, True)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 11, 16, 21])
def test_every_range_is_proved_and_by_no_other_proof(size: int) -> None:
    leaf_hashes = hashes(make_leaves(size))
    tree = merkle.Tree.of(leaf_hashes)
    root = tree.root()
    for start, stop in itertools.combinations(range(size + 1), 2):
        inside, proof = leaf_hashes[start:stop], tree.range_proof(start, stop)
        assert merkle.verify_range(root, size, start, stop, inside, proof)
        assert not merkle.verify_range(root, size, start, stop, inside, [*proof, root])
        assert not proof or not merkle.verify_range(root, size, start, stop, inside, proof[:-1])
        assert stop - start > 1 or sorted(proof) == sorted(tree.inclusion_proof(start))
        for other in {(start + 1, stop + 1), (start - 1, stop - 1)}:
            assert not merkle.verify_range(root, size, *other, inside, proof)


def test_a_range_proof_is_the_subtrees_outside_from_left_to_right() -> None:
    leaves = make_leaves(7)
    outside = (mth(leaves[0:2]), mth(leaves[5:6]), mth(leaves[6:7]))
    assert merkle.range_proof(hashes(leaves), 2, 5) == outside


@given(size=st.integers(1, 300), data=st.data())
def test_one_changed_bit_anywhere_breaks_a_range_proof(size: int, data: st.DataObject) -> None:
    leaf_hashes = hashes(make_leaves(size))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    tree = merkle.Tree.of(leaf_hashes)
    given_hashes = [*leaf_hashes[start:stop], *tree.range_proof(start, stop)]
    assert merkle.verify_range(
        tree.root(), size, start, stop, given_hashes[: stop - start], given_hashes[stop - start :]
    )
    at = data.draw(st.integers(0, len(given_hashes) - 1))
    bit = data.draw(st.integers(0, 255))
    given_hashes[at] = bytes(b ^ ((1 << bit % 8) if i == bit // 8 else 0) for i, b in enumerate(given_hashes[at]))
    inside, proof = given_hashes[: stop - start], given_hashes[stop - start :]
    assert not merkle.verify_range(tree.root(), size, start, stop, inside, proof)


@given(old=st.integers(1, 200), grown=st.integers(0, 200), index=st.integers(0, 199))
def test_inclusion_and_consistency_hold_for_what_is_there_and_nothing_else(old: int, grown: int, index: int) -> None:
    leaf_hashes = hashes(make_leaves(old + grown))
    old_root, tree = merkle.root(leaf_hashes[:old]), merkle.Tree.of(leaf_hashes)
    proof = tree.consistency_proof(old)
    assert merkle.verify_consistency(old_root, old, tree.root(), tree.size, proof)
    assert not merkle.verify_consistency(old_root, old, tree.root(), tree.size, [*proof, old_root])
    forged = merkle.root([merkle.leaf_hash(b"other"), *leaf_hashes[1:old]])
    assert not merkle.verify_consistency(forged, old, tree.root(), tree.size, proof)
    index %= tree.size
    path_up = tree.inclusion_proof(index)
    assert merkle.verify_inclusion(tree.root(), tree.size, index, leaf_hashes[index], path_up)
    assert not merkle.verify_inclusion(tree.root(), tree.size, index, merkle.leaf_hash(b"other"), path_up)
    assert not merkle.verify_inclusion(tree.root(), tree.size, index, leaf_hashes[index], [*path_up, old_root])


@given(
    numbers=st.lists(st.integers(-(2**70), 2**70), min_size=3, max_size=3),
    blobs=st.lists(st.binary(max_size=40), max_size=100),
    one=st.binary(max_size=40),
)
def test_verifiers_answer_no_to_garbage_and_never_raise(numbers: list[int], blobs: list[bytes], one: bytes) -> None:
    a, b, c = numbers
    assert not merkle.verify_inclusion(one, a, b, one, blobs)
    assert not merkle.verify_range(one, a, b, c, blobs, blobs)
    assert not merkle.verify_consistency(one, a, b"", b, blobs)


def test_a_giant_claimed_size_costs_no_more_than_the_proof() -> None:
    random_hashes = [random.Random(1).randbytes(32) for _ in range(merkle.PROOF_HASHES_MAX)]
    size = merkle.SIZE_MAX
    assert not merkle.verify_range(bytes(32), size, size // 2 - 1, size // 2 + 1, random_hashes[:2], random_hashes)
    assert not merkle.verify_range(bytes(32), size, 0, 1, random_hashes[:1], [])


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 3), (2, 1), (-1, 2), (0, 4)])
def test_a_prover_refuses_ranges_that_are_empty_or_outside(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="no leaves"):
        merkle.range_proof(hashes(make_leaves(3)), start, stop)


def test_a_prover_refuses_leaves_and_prefixes_that_are_not_there() -> None:
    leaf_hashes = hashes(make_leaves(3))
    for index in (-1, 3):
        with pytest.raises(ValueError, match="no leaf"):
            merkle.inclusion_proof(leaf_hashes, index)
    for old_size in (0, 4):
        with pytest.raises(ValueError, match="no prefix"):
            merkle.consistency_proof(leaf_hashes, old_size)
    with pytest.raises(ValueError, match="32 bytes"):
        merkle.Tree.of([b"short"])


@given(data=st.binary(max_size=200), leaf_bytes=st.integers(1, 50))
def test_payload_leaves_are_the_slices_in_order(data: bytes, leaf_bytes: int) -> None:
    slices = [data[i : i + leaf_bytes] for i in range(0, len(data), leaf_bytes)]
    assert merkle.payload_leaves(memoryview(data), leaf_bytes) == [merkle.leaf_hash(one) for one in slices]


def test_payload_leaves_refuse_a_leaf_of_no_bytes() -> None:
    with pytest.raises(ValueError, match="leaf_bytes"):
        merkle.payload_leaves(b"abc", 0)


@given(st.integers(1, 40), st.data())
def test_a_leaf_of_a_range_is_proved_from_the_ranges_proof_alone(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    index = data.draw(st.integers(start, stop - 1))
    leaves = [merkle.leaf_hash(bytes([i])) for i in range(size)]
    proof = merkle.range_proof(leaves, start, stop)
    narrow = merkle.narrow_proof(size, start, stop, leaves[start:stop], proof, index)
    assert narrow == merkle.inclusion_proof(leaves, index)


@given(st.integers(1, 40), st.data())
def test_each_part_of_a_range_is_proved_from_the_ranges_proof_alone(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    leaves = [merkle.leaf_hash(bytes([i])) for i in range(size)]
    narrow = merkle.narrow_ranges(size, start, stop, leaves[start:stop], merkle.range_proof(leaves, start, stop))
    for _ in range(3):
        low = data.draw(st.integers(start, stop - 1))
        high = data.draw(st.integers(low + 1, stop))
        assert narrow(low, high) == merkle.range_proof(leaves, low, high)
    with pytest.raises(ValueError, match="no leaves"):
        narrow(start, stop + 1)
