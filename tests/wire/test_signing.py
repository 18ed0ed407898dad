from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnet.errors import WireError
from p2pnet.identity import Identity, PeerId, verify
from p2pnet.wire.codec import encode, pack
from p2pnet.wire.signing import Signed, domain_tag, open_signed, sign_message
from tests import independent
from tests.wire.example import MESSAGES, Ping

SEED = bytes(range(32))
IDENTITY = Identity.from_seed(SEED)
PING = Ping(b"01234567", 1000)
SIGNED = sign_message(PING, IDENTITY.peer, IDENTITY.sign)

# RFC 8032, section 7.1: secret key, public key, message, signature
RFC8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
]


@pytest.mark.parametrize("case", RFC8032)
def test_keys_and_signatures_are_those_of_rfc_8032(case: tuple[str, str, str, str]) -> None:
    seed, key, data, signature = map(bytes.fromhex, case)
    identity = Identity.from_seed(seed)
    assert (identity.peer, identity.sign(data)) == (key, signature)
    assert (independent.public_key(seed), independent.sign(seed, data)) == (key, signature)
    assert verify(PeerId(key), data, signature)
    assert independent.verify(key, data, signature)


def test_a_signed_message_opens_to_what_was_signed_by_whom() -> None:
    opened = open_signed(MESSAGES, SIGNED.raw, verify)
    assert opened == SIGNED
    assert (opened.message, opened.peer, opened.raw, opened.digest) == (PING, IDENTITY.peer, SIGNED.raw, SIGNED.digest)


def test_what_is_signed_is_the_tag_and_the_exact_bytes() -> None:
    assert SIGNED.signature == independent.sign(SEED, b"p2pnet/example/1\n" + encode(PING))
    assert domain_tag("example/1") == b"p2pnet/example/1\n"


@given(st.data())
def test_no_changed_byte_goes_unnoticed(draw: st.DataObject) -> None:
    data = bytearray(SIGNED.raw)
    where = draw.draw(st.integers(0, len(data) - 1))
    data[where] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        open_signed(MESSAGES, bytes(data), verify)


@given(
    st.binary(max_size=150)
    | st.tuples(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=70)).map(pack)
)
def test_garbage_is_refused_whatever_it_is(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        open_signed(MESSAGES, data, verify)
    assert caught.value.rule.startswith("wire-1/")


def test_the_signature_is_looked_at_last() -> None:
    def never(*_: object) -> bool:
        raise AssertionError("verified what is malformed")

    for raw in (b"", pack([b"", b"", b""]), pack([b"\x01", IDENTITY.peer, bytes(64)])):
        with pytest.raises(WireError):
            open_signed(MESSAGES, raw, never)


def test_size_is_checked_first() -> None:
    with pytest.raises(WireError, match="at most 50"):
        open_signed(MESSAGES, SIGNED.raw, verify, bytes_max=50)


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100))
def test_our_signatures_and_those_of_an_independent_signer_are_the_same(seed: bytes, data: bytes) -> None:
    identity = Identity.from_seed(seed)
    signature = independent.sign(seed, data)
    assert identity.sign(data) == signature
    assert verify(identity.peer, data, signature)
    assert not verify(identity.peer, data + b"\x00", signature)


def test_what_was_said_has_the_same_digest_whoever_signs() -> None:
    other = Identity.from_seed(bytes(32))
    assert sign_message(PING, other.peer, other.sign).digest == SIGNED.digest
    assert isinstance(SIGNED, Signed)
