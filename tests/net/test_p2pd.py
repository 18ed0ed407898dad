from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pnet.identity import Identity, to_libp2p
from p2pnet.net import p2pd
from p2pnet.net.control import addr_to_bytes, addr_to_text
from p2pnet.net.p2pd import MalformedError

PEER = Identity.from_seed(bytes(32)).peer
ID = to_libp2p(PEER).hex()


def test_the_requests_are_these_bytes() -> None:
    """Made once with the protobuf package from p2pd.proto, peer and key being constants."""
    addr = addr_to_bytes("/ip4/127.0.0.1/tcp/4001")
    expected = {
        p2pd.identify(): "0800",
        p2pd.list_peers(): "0805",
        p2pd.upgrade(): "0809",
        p2pd.connect(PEER, [addr], 7): f"0801 1234 0a26{ID} 1208047f000001060fa1 1807",
        p2pd.disconnect(PEER): f"0807 3a28 0a26{ID}",
        p2pd.stream_open(PEER, "/p2pnet/x/1", 300): f"0802 1a38 0a26{ID} 120b{b'/p2pnet/x/1'.hex()} 18ac02",
        p2pd.stream_handler("/r/h", ["/a", "/b"]): "0803 2213 0a079003042f722f68 12022f61 12022f62 1800",
        p2pd.provide(bytes(32), 7): f"0804 2a2a 0808 1a24 01551220{'00' * 32} 3807",
        p2pd.find_providers(bytes(32), 20, 7): f"0804 2a2c 0802 1a24 01551220{'00' * 32} 3014 3807",
        p2pd.find_peer(PEER, 7): f"0804 2a2c 0800 1226{ID} 3807",
        p2pd.closest_peers(b"k", 7): "0804 2a07 0803 22016b 3807",
        p2pd.tag_peer(PEER, "t", 5): f"0806 322f 0800 1226{ID} 1a0174 2005",
        p2pd.untag_peer(PEER, "t"): f"0806 322d 0801 1226{ID} 1a0174",
    }
    for message, text in expected.items():
        assert message.hex() == text.replace(" ", "")


def test_a_sockets_multiaddr_keeps_its_leading_slash() -> None:
    assert p2pd.unix_multiaddr("/tmp/x") == b"\x90\x03\x06/tmp/x"
    with pytest.raises(ValueError, match="absolute"):
        p2pd.unix_multiaddr("tmp/x")


def test_responses_are_read() -> None:
    peer = bytes.fromhex(f"0a26{ID}1208047f000001060fa1")
    assert p2pd.parse_response(b"\x08\x00") == p2pd.Response(None)
    assert p2pd.parse_response(b"\x08\x01\x12\x04\x0a\x02no") == p2pd.Response("no")
    assert p2pd.parse_response(b"\x08\x01").error == "no reason given"
    info = p2pd.PeerInfo(to_libp2p(PEER), (addr_to_bytes("/ip4/127.0.0.1/tcp/4001"),))
    listed = p2pd.parse_response(b"\x08\x00" + 2 * (b"\x32" + bytes([len(peer)]) + peer))
    assert listed.peers == (info, info)
    assert p2pd.parse_response(b"\x08\x00\x22" + bytes([len(peer)]) + peer).identity == info
    stream = p2pd.parse_stream_info(b"\x0a\x01p\x12\x01a\x1a\x02/x")
    assert stream == p2pd.StreamInfo(b"p", b"a", "/x")
    assert p2pd.parse_dht(b"\x08\x02").kind == p2pd.DHT_END


def test_fields_that_we_do_not_know_are_passed_over() -> None:
    assert p2pd.parse_response(b"\x08\x00\x50\x07\x5a\x02hi\x61" + bytes(8) + b"\x6d" + bytes(4)).error is None


@given(st.binary(max_size=200))
@example(b"\x08")
@example(b"\x08\x00\x12\xff\xff\xff\xff\x0f")
@example(b"\x0b")
def test_garbage_is_malformed_and_nothing_else(data: bytes) -> None:
    for parser in (p2pd.parse_response, p2pd.parse_stream_info, p2pd.parse_dht):
        with suppress(MalformedError):
            parser(data)


@given(st.integers(0, 2**63 - 1))
def test_a_varint_comes_back(value: int) -> None:
    assert p2pd._varint_at(p2pd.encode_varint(value) + b"rest", 0) == (value, len(p2pd.encode_varint(value)))


@given(st.binary(max_size=60))
@example(b"\x91\x03")
@example(b"\xd2\x03\x02\x12\x20")
def test_an_address_from_a_stranger_is_text_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        addr_to_text(data)


@given(
    st.text(max_size=60) | st.lists(st.sampled_from(["ip4", "1.2.3.4", "tcp", "x", "unix", "", "p2p"])).map("/".join)
)
def test_an_address_from_a_config_is_bytes_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        addr_to_bytes(text)
