"""Which samples a peer trains on in a round: a pure function of beacon and peer. Contract: protocols/assignment-1.md.

Position n of a round is item i of local batch s, n = s * batch_size + i. Each position costs one SHA-256 and needs no
other, so that an auditor recomputes the batch it replays and nothing more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

TAG = b"p2pnet/assignment/1\n"
BEACON_BYTES = 32
PEER_BYTES = 32
POSITIONS_MAX = 2**63
POPULATION_MAX = 2**63


def sample_index(beacon: bytes, peer: bytes, position: int, population: int) -> int:
    """Return the sample that position `position` of the round draws from `population` samples (with replacement).

    beacon, peer: 32 bytes each.   returns: 0..population-1, biased by less than 2**-193 (R2).
    Raises ValueError when an argument is out of its range.
    """
    return sample_indices(beacon, peer, 1, population, first=position)[0]


def sample_indices(beacon: bytes, peer: bytes, count: int, population: int, *, first: int = 0) -> list[int]:
    """Return the samples of positions first..first+count-1, drawn with replacement from `population` samples.

    beacon: the round's, 32 bytes; peer: the 32-byte Ed25519 key.   returns: count integers, 0..population-1.
    Raises ValueError when an argument is out of its range.
    """
    if len(beacon) != BEACON_BYTES or len(peer) != PEER_BYTES:
        raise ValueError(f"beacon and peer are 32 bytes each, not {len(beacon)} and {len(peer)}")
    if not 1 <= population <= POPULATION_MAX:
        raise ValueError(f"the population is {population}, allowed are 1 to 2**63")
    if first < 0 or count < 0 or first + count > POSITIONS_MAX:
        raise ValueError(f"positions {first} to {first + count} are not within 0 to 2**63")
    prefix = hashlib.sha256(TAG + beacon + peer)
    indices = []
    for position in range(first, first + count):
        block = prefix.copy()
        block.update(position.to_bytes(8, "big"))
        indices.append(int.from_bytes(block.digest(), "big") % population)
    return indices


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one peer trains on in one round."""

    round_id: int
    beacon: bytes  # 32 bytes
    peer: bytes  # 32 bytes
    batches: int | None = None  # how many the round is expected to take; more can be drawn. None: not known

    def batch(self, step: int, batch_size: int, population: int) -> list[int]:
        """Return the samples of local batch `step`: positions step * batch_size and on."""
        return sample_indices(self.beacon, self.peer, batch_size, population, first=step * batch_size)
