"""A page of decided rounds fits into one message, and the largest decision into a page."""

from __future__ import annotations

from p2pnet.identity import PeerId
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, encode
from p2pnet.wire.history import DECISION_BYTES_MAX, DECISIONS_MAX, PAGE_BYTES_MAX, Decisions
from p2pnet.wire.round import (
    COMMIT_RAW_MAX,
    GROUP_SIZE_MAX,
    OUTCOME_BYTES_MAX,
    VOTERS_MAX,
    Decision,
    Endorsement,
    Quorum,
)


def test_the_largest_decision_fits_its_limit_and_one_of_that_size_a_page() -> None:
    last = 2**32 - 1
    seals = tuple(Endorsement(PeerId(bytes([voter]) * 32), b"s" * 64) for voter in range(VOTERS_MAX))
    certificate = Quorum(b"s" * 32, last, last, 2, b"v" * 32, seals)
    commits = tuple(b"c" * COMMIT_RAW_MAX for _ in range(GROUP_SIZE_MAX))
    largest = encode(Decision(certificate, b"o" * OUTCOME_BYTES_MAX, commits))
    assert len(largest) <= DECISION_BYTES_MAX
    page = encode(Decisions(last, (b"d" * DECISION_BYTES_MAX,)))
    assert len(page) <= PAGE_BYTES_MAX == MESSAGE_BYTES_MAX
    assert len(encode(Decisions(last, (b"d",) * DECISIONS_MAX))) < PAGE_BYTES_MAX
