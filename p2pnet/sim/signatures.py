"""Played signatures, so that thousands of runs are cheap."""

from __future__ import annotations

import functools
import hashlib

from p2pnet.identity import PeerId
from p2pnet.wire.branch import Branch, BranchCertificate, Spoken, open_spoken
from p2pnet.wire.codec import decode
from p2pnet.wire.round import SIGNED, UNSIGNED
from p2pnet.wire.signing import open_signed


def fake_sign(peer: PeerId, data: bytes) -> bytes:
    """Stand in for Ed25519 where thousands of runs are wanted: anyone could forge it, and no simulated peer does."""
    return hashlib.sha512(peer + data).digest()


def fake_verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Check a played signature."""
    return fake_sign(peer, data) == signature


@functools.lru_cache(maxsize=4096)
def open_message(raw: bytes, signed: bool) -> Spoken:
    """Decode a message once for all that receive the same bytes; raises WireError."""
    if signed:
        return open_signed((*SIGNED, Branch), raw, fake_verify)
    return decode((*UNSIGNED, BranchCertificate), raw)


@functools.lru_cache(maxsize=1 << 14)
def open_raw(raw: bytes) -> Spoken:
    """Decode a message as it travels, once for all that receive the same bytes; raises WireError."""
    return open_spoken(raw, fake_verify)
