from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.numerics.bits import bit_bytes, count_bits, pack_bits, pack_fields, unpack_bits, unpack_fields


@given(rows=st.integers(1, 3), count=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_bits_lie_lowest_first_and_come_back(rows: int, count: int, seed: int) -> None:
    bits = torch.randint(0, 2, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_bits(bits)
    assert packed.shape == (rows, bit_bytes(count))
    words = [sum(bit << i for i, bit in enumerate(row)) for row in bits.tolist()]
    assert [bytes(row) for row in packed.tolist()] == [word.to_bytes(bit_bytes(count), "little") for word in words]
    assert unpack_bits(packed)[:, :count].equal(bits)
    assert count_bits(packed).tolist() == [word.bit_count() for word in words]


@given(count=st.integers(1, 1024), width=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_fields_lie_back_to_back_and_come_back(count: int, width: int, seed: int) -> None:
    fields = torch.randint(0, 1 << width, (2, count), generator=torch.Generator().manual_seed(seed))
    packed = pack_fields(fields, width)
    words = [sum(field << (width * i) for i, field in enumerate(row)) for row in fields.tolist()]
    assert [bytes(row) for row in packed.tolist()] == [
        word.to_bytes(bit_bytes(count * width), "little") for word in words
    ]
    assert unpack_fields(packed, count, width).equal(fields)


def test_a_slice_of_a_larger_tensor_packs_as_its_copy() -> None:
    bits = torch.ones((3, 40), dtype=torch.bool)
    assert pack_bits(bits[:, 3:35]).equal(pack_bits(bits[:, 3:35].contiguous()))
    assert pack_bits(bits.view(-1)[1:33].view(1, 32)).tolist() == [[255] * 4]
