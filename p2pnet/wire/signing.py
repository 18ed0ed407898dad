"""Sign messages and open signed ones: `[body, peer, signature]`, over the bytes sent. Contract: protocols/wire-1.md."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import MESSAGE_BYTES_MAX, Message, decode, encode, pack, unpack

M = TypeVar("M", bound=Message)
Sign = Callable[[bytes], bytes]  # data -> 64 bytes
Verify = Callable[[PeerId, bytes, bytes], bool]  # peer, data, signature


@dataclass(frozen=True, slots=True)
class Signed(Generic[M]):
    """A message with the exact bytes its author signed."""

    message: M
    peer: PeerId
    body: bytes = field(repr=False)
    signature: bytes = field(repr=False)  # 64 bytes, Ed25519

    @property
    def raw(self) -> bytes:
        """The bytes that travel: a msgpack array of body, peer and signature."""
        return pack([self.body, self.peer, self.signature])

    @property
    def digest(self) -> bytes:
        """SHA-256 of the body: what was said, whoever signed it and how."""
        return hashlib.sha256(self.body).digest()


def domain_tag(protocol: str) -> bytes:
    """The bytes signed before the body, so that no signature is good for another protocol."""
    return f"p2pnet/{protocol}\n".encode()


def sign_message(message: M, peer: PeerId, sign: Sign) -> Signed[M]:
    """Encode a message and sign it as `peer`."""
    body = encode(message)
    return Signed(message, peer, body, sign(domain_tag(message.protocol) + body))


def open_signed(
    classes: tuple[type[M], ...], raw: bytes, verify: Verify, bytes_max: int = MESSAGE_BYTES_MAX
) -> Signed[M]:
    """Decode a signed message of one of the classes and check its signature.

    Raises WireError: wire-1/R5 for a wrong shape, wire-1/R6 for a wrong signature, the codec's rules for the body.
    """
    items = unpack(raw, bytes_max)
    if type(items) is not list or [type(item) for item in items] != [bytes, bytes, bytes]:
        raise WireError("wire-1/R5", "a signed message is [body, peer, signature]")
    body, peer, signature = items
    if len(peer) != 32 or len(signature) != 64:
        raise WireError("wire-1/R5", "a peer has 32 bytes and a signature 64")
    message = decode(classes, body, bytes_max)
    if not verify(PeerId(peer), domain_tag(message.protocol) + body, signature):
        raise WireError("wire-1/R6", "wrong signature")
    return Signed(message, PeerId(peer), body, signature)
