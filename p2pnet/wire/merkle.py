"""RFC 6962 hash trees: roots, and proofs for a leaf, a range of leaves, a prefix. Contract: protocols/merkle-1.md.

Everything here is over leaf hashes (32 bytes each). Provers raise `ValueError` on what their caller got wrong;
verifiers are given hostile bytes, never raise, and answer yes or no.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

HASH_BYTES: Final = 32
SIZE_MAX: Final = 2**40  # leaves of one tree; bounds the length of every proof
PROOF_HASHES_MAX: Final = 80  # a range has up to two edges, each of up to 40 levels

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


def leaf_hash(data: bytes | memoryview) -> bytes:
    """Return the 32-byte hash of one leaf's bytes (RFC 6962, section 2.1)."""
    digest = sha256(_LEAF)
    digest.update(data)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the 32-byte hash of an inner node (RFC 6962, section 2.1)."""
    return sha256(_NODE + left + right).digest()


def payload_leaves(data: bytes | memoryview, leaf_bytes: int) -> list[bytes]:
    """Return the leaf hash of each slice of `leaf_bytes` bytes, the last one shorter where it does not divide."""
    if leaf_bytes < 1:
        raise ValueError(f"leaf_bytes is {leaf_bytes}, not positive")
    view = memoryview(data).cast("B")
    return [leaf_hash(view[start : start + leaf_bytes]) for start in range(0, len(view), leaf_bytes)]


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of `size` leaves whose perfect subtrees are looked up, so that each proof costs log(size) look-ups.

    `node(level, position)` is the hash over the leaves [position << level, (position + 1) << level), all below `size`.
    """

    size: int
    node: Callable[[int, int], bytes]

    @classmethod
    def of(cls, leaf_hashes: Sequence[bytes]) -> Tree:
        """Hash a tree in memory, once: size - 1 hashes, 64 bytes kept per leaf."""
        levels = [list(leaf_hashes)]
        if any(len(leaf) != HASH_BYTES for leaf in levels[0]):
            raise ValueError(f"a leaf hash is {HASH_BYTES} bytes")
        while len(below := levels[-1]) > 1:
            levels.append([node_hash(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)])
        return cls(len(levels[0]), lambda level, position: levels[level][position])

    def root(self) -> bytes:
        """Return the tree's root; SHA-256 of nothing for the empty tree."""
        return self._subtree(0, self.size) if self.size else sha256().digest()

    def inclusion_proof(self, index: int) -> tuple[bytes, ...]:
        """Return the siblings from the leaf up to the root (RFC 6962, section 2.1.1)."""
        if not 0 <= index < self.size:
            raise ValueError(f"no leaf {index} in a tree of {self.size}")
        start, stop, proof = 0, self.size, []
        while stop - start > 1:
            middle = start + _split(stop - start)
            if index < middle:
                proof.append(self._subtree(middle, stop))
                stop = middle
            else:
                proof.append(self._subtree(start, middle))
                start = middle
        return tuple(reversed(proof))

    def range_proof(self, start: int, stop: int) -> tuple[bytes, ...]:
        """Return the roots of the largest subtrees outside leaves [start, stop), from left to right."""
        if not 0 <= start < stop <= self.size:
            raise ValueError(f"no leaves {start}..{stop} in a tree of {self.size}")
        return tuple(self._outside(0, self.size, start, stop))

    def consistency_proof(self, old_size: int) -> tuple[bytes, ...]:
        """Return the proof that the first `old_size` leaves are this tree's prefix (RFC 6962, section 2.1.2)."""
        if not 0 < old_size <= self.size:
            raise ValueError(f"no prefix of {old_size} in a tree of {self.size}")
        start, stop, proof = 0, self.size, []
        while old_size != stop:
            middle = start + _split(stop - start)
            if old_size <= middle:
                proof.append(self._subtree(middle, stop))
                stop = middle
            else:
                proof.append(self._subtree(start, middle))
                start = middle
        if start:  # else the old tree is a subtree of its own, and its root is known
            proof.append(self._subtree(start, stop))
        return tuple(reversed(proof))

    def _subtree(self, start: int, stop: int) -> bytes:
        size = stop - start
        if size & (size - 1) == 0:
            level = size.bit_length() - 1
            return self.node(level, start >> level)
        middle = start + _split(size)
        return node_hash(self._subtree(start, middle), self._subtree(middle, stop))

    def _outside(self, low: int, high: int, start: int, stop: int) -> Iterator[bytes]:
        if high <= start or stop <= low:
            yield self._subtree(low, high)
        elif low < start or stop < high:
            middle = low + _split(high - low)
            yield from self._outside(low, middle, start, stop)
            yield from self._outside(middle, high, start, stop)


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the RFC 6962 root over the leaf hashes."""
    return Tree.of(leaf_hashes).root()


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the proof for one leaf; for many proofs of one tree keep a `Tree`."""
    return Tree.of(leaf_hashes).inclusion_proof(index)


def range_proof(leaf_hashes: Sequence[bytes], start: int, stop: int) -> tuple[bytes, ...]:
    """Return the proof for leaves [start, stop); for many proofs of one tree keep a `Tree`."""
    return Tree.of(leaf_hashes).range_proof(start, stop)


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Return the proof that the first `old_size` leaves are a prefix of them all."""
    return Tree.of(leaf_hashes).consistency_proof(old_size)


def narrow_proof(
    size: int, start: int, stop: int, leaf_hashes: Sequence[bytes], proof: Sequence[bytes], index: int
) -> tuple[bytes, ...]:
    """Return the proof for one leaf of a range, from the whole range's hashes and its verified proof.

    Who was given leaves [start, stop) of a tree of `size` leaves can show one of them to others without the rest.
    """
    subtree = _subtrees(size, start, stop, leaf_hashes, proof)
    if not start <= index < stop:
        raise ValueError(f"no leaf {index} among those from {start} to {stop}")
    low, high, path = 0, size, []
    while high - low > 1:
        middle = low + _split(high - low)
        low, high, sibling = (low, middle, (middle, high)) if index < middle else (middle, high, (low, middle))
        path.append(subtree(*sibling))
    return tuple(reversed(path))


def narrow_ranges(
    size: int, start: int, stop: int, leaf_hashes: Sequence[bytes], proof: Sequence[bytes]
) -> Callable[[int, int], tuple[bytes, ...]]:
    """Return what gives the range proofs of leaves [low, high) of a range, from its hashes and its verified proof.

    Each subtree is hashed once, for all of them.
    """
    subtree = _subtrees(size, start, stop, leaf_hashes, proof)

    def outside(low: int, high: int, first: int, last: int) -> Iterator[bytes]:
        if high <= first or last <= low:
            yield subtree(low, high)
        elif low < first or last < high:
            middle = low + _split(high - low)
            yield from outside(low, middle, first, last)
            yield from outside(middle, high, first, last)

    def narrow(first: int, last: int) -> tuple[bytes, ...]:
        if not start <= first < last <= stop:
            raise ValueError(f"no leaves {first}..{last} among those from {start} to {stop}")
        return tuple(outside(0, size, first, last))

    return narrow


def _subtrees(
    size: int, start: int, stop: int, leaf_hashes: Sequence[bytes], proof: Sequence[bytes]
) -> Callable[[int, int], bytes]:
    """Return what gives the subtrees that a range and its verified proof determine, each hashed once."""
    outside = iter(proof)
    known: dict[tuple[int, int], bytes] = {}

    def subtree(low: int, high: int) -> bytes:
        if (low, high) not in known:
            if high <= start or stop <= low:
                known[low, high] = next(outside)
            elif high - low == 1:
                known[low, high] = leaf_hashes[low - start]
            else:
                middle = low + _split(high - low)
                known[low, high] = node_hash(subtree(low, middle), subtree(middle, high))
        return known[low, high]

    if len(leaf_hashes) != stop - start:
        raise ValueError(f"{len(leaf_hashes)} hashes of the leaves from {start} to {stop}")
    subtree(0, size)  # takes the proof's hashes in their order
    return subtree


def verify_inclusion(root: bytes, size: int, index: int, leaf_hash: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether `leaf_hash` is leaf `index` of the tree (RFC 9162, section 2.1.3.2)."""
    if not (0 <= index < size <= SIZE_MAX and _are_hashes((root, leaf_hash)) and _are_hashes(proof)):
        return False
    position, last, found = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(sibling, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and found == root


def verify_range(
    root: bytes, size: int, start: int, stop: int, leaf_hashes: Sequence[bytes], proof: Sequence[bytes]
) -> bool:
    """Say whether `leaf_hashes` are the leaves [start, stop) of the tree; the proof must have exactly the right length.

    Costs len(leaf_hashes) + len(proof) hashes, whatever `size` claims to be.
    """
    if not (0 <= start < stop <= size <= SIZE_MAX and len(leaf_hashes) == stop - start):
        return False
    if not (_are_hashes((root,)) and _are_hashes(proof) and all(len(leaf) == HASH_BYTES for leaf in leaf_hashes)):
        return False
    siblings = iter(proof)

    def rebuild(low: int, high: int) -> bytes | None:
        """Return the root over [low, high), None when the proof is too short."""
        if high <= start or stop <= low:
            return next(siblings, None)
        if high - low == 1:
            return leaf_hashes[low - start]
        middle = low + _split(high - low)
        left, right = rebuild(low, middle), rebuild(middle, high)
        return None if left is None or right is None else node_hash(left, right)

    return rebuild(0, size) == root and next(siblings, None) is None


def verify_consistency(old_root: bytes, old_size: int, new_root: bytes, new_size: int, proof: Sequence[bytes]) -> bool:
    """Say whether the old tree is a prefix of the new one (RFC 9162, section 2.1.4.2); never for an empty old tree."""
    if not (0 < old_size <= new_size <= SIZE_MAX and _are_hashes((old_root, new_root)) and _are_hashes(proof)):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_found = new_found = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_found, new_found = node_hash(sibling, old_found), node_hash(sibling, new_found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new_found = node_hash(new_found, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old_found == old_root and new_found == new_root


def _split(size: int) -> int:
    """Return the largest power of two below `size` (>= 2): where RFC 6962 cuts a tree in two."""
    return 1 << ((size - 1).bit_length() - 1)


def _are_hashes(hashes: Sequence[bytes]) -> bool:
    return len(hashes) <= PROOF_HASHES_MAX and all(len(one) == HASH_BYTES for one in hashes)
