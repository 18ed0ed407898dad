"""The formulas for sizes say what the encoder says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.core.parts import Part
from p2pnet.identity import PeerId
from p2pnet.net.framing import encode_length
from p2pnet.node import bulk, views
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.sim import scenario, streams
from p2pnet.sim.sizes import Sizes, framed, gossip_bytes, proof_hashes
from p2pnet.wire import merkle
from p2pnet.wire.codec import Message, encode
from p2pnet.wire.exchange import NORM_BYTES, LeafProof, Leaves, Slice
from p2pnet.wire.gossip import Data, Graft, Have, Prune, Want

IDS = st.integers(1, 128).map(lambda count: (bytes(20),) * count)
PEER = PeerId(bytes(32))


@given(
    st.one_of(
        st.builds(
            Data,
            st.integers(0, 255),
            st.integers(0, 255),
            st.integers(1, 64).map(lambda length: "t" * length),
            st.sampled_from([0, 1, 255, 256, 65_535, 65_536, 100_000]).map(bytes),
        ),
        st.builds(Have, st.integers(0, 1), IDS),
        st.builds(Want, st.integers(0, 1), IDS),
        st.builds(Graft, st.lists(st.integers(0, 255), min_size=1, max_size=256).map(tuple)),
        st.builds(Prune, st.integers(0, 255)),
    )
)
def test_a_message_of_gossip_has_the_size_that_it_would_have(message: Message) -> None:
    raw = encode(message)
    assert gossip_bytes(message) == len(encode_length(len(raw))) + len(raw)


@given(st.data())
def test_a_proof_has_as_many_hashes_as_the_tree_gives(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    assert proof_hashes(size, start, stop) == len(merkle.Tree.of([bytes(32)] * size).range_proof(start, stop))


@pytest.mark.parametrize("params", [1, 4096, 65_537, 819_200, 10_000_000])
def test_slices_and_results_add_up_to_payload_and_result(params: int) -> None:
    sizes = Sizes(params, ChunkFormat(64, 1), ChunkFormat(192, 1))
    middle = sizes.leaves // 2
    spans = [(0, middle), (middle, sizes.leaves)] if middle else [(0, sizes.leaves)]
    parts = [Part(index, start, stop, PEER, PEER) for index, (start, stop) in enumerate(spans)]
    assert sizes.payload_bytes == ChunkFormat(64, 1).payload_bytes(sizes.chunks)
    assert sum(sizes.values(part) for part in parts) == sizes.chunks * 4096
    prefixes = sum(sizes.slice_bytes(part) for part in parts) - sizes.payload_bytes
    assert len(parts) <= prefixes <= 4 * len(parts)
    prefixes = sum(sizes.output_bytes(part) for part in parts) - sizes.result_bytes
    assert len(parts) <= prefixes <= 4 * len(parts)


def test_heads_and_audits_have_the_size_of_their_messages() -> None:
    sizes = Sizes(10_000_000, ChunkFormat(64, 1), ChunkFormat(192, 1))
    part, digest = Part(3, 10, 50, PEER, PEER), bytes(32)
    proof = (digest,) * proof_hashes(sizes.leaves, 10, 50)
    assert sizes.slice_head_bytes(part) == framed(len(encode(Slice(digest, 4096, 0, digest, 3, proof))))
    path = (digest,) * proof_hashes(sizes.leaves, 10, 11)
    leaves = Leaves(tuple(LeafProof(place, path) for place in range(5)), path, 1)
    shown = 5 * framed(ChunkFormat(64, 1).payload_bytes(16)) + framed(5 * 40 * NORM_BYTES)
    assert sizes.leaves_bytes(part, 10, 5) == framed(len(encode(leaves))) + shown


def test_deadlines_are_the_nodes() -> None:
    assert scenario.SLOW_BYTES_PER_S == bulk.SLOW_BYTES_PER_S
    assert streams.ANSWER_S == bulk.ANSWER_S
    assert streams.ROSTER_WAIT_S == views.ROSTER_WAIT_S
