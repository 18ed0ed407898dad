"""The tensor work of an exchange, without an exchange."""

from __future__ import annotations

import torch

from p2pnet.errors import WireError
from p2pnet.node.reducing import find_flaw, open_output
from p2pnet.numerics.codec import as_bytes, encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.wire import merkle

FORMAT = ChunkFormat(64)


def payload(chunks: int) -> bytes:
    values = torch.randn((chunks, 4096), generator=torch.Generator().manual_seed(1))
    return as_bytes(encode(values, FORMAT, 32))


def test_a_part_is_opened_with_its_root() -> None:
    data = payload(17)
    root, flaw = open_output(data, FORMAT)
    leaves = [merkle.leaf_hash(data[:1312]), merkle.leaf_hash(data[1312:])]  # 16 chunks of 82 bytes, and one
    assert root == merkle.root(leaves)
    assert flaw is None


def test_a_malformed_part_has_a_root_and_an_error() -> None:
    data = payload(65)[:-1]
    root, flaw = open_output(data, FORMAT)
    assert len(root) == 32
    assert isinstance(flaw, WireError)


def test_a_flaw_is_found_in_whichever_leaf_it_is() -> None:
    data = bytearray(payload(130))
    assert find_flaw(bytes(data), FORMAT) is None
    data[129 * 82 + 48] ^= 1  # a bit of the last chunk's upper word
    flaw = find_flaw(bytes(data), FORMAT)
    assert flaw is not None
    assert str(flaw).startswith("codec-1/R2: chunk 129:")
