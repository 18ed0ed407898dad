from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.numerics.layout import Layout
from p2pnet.numerics.state import checksum, state_sha256
from tests.numerics import reference
from tests.numerics.samples import chunks_of, made_up, patterns
from tests.vectors import vectors


@pytest.mark.parametrize("vector", vectors("reduce-1", "state"))
def test_the_vectors_hold(vector: dict[str, Any], device: torch.device) -> None:
    chunks = chunks_of(vector["chunks"]).to(device)
    assert checksum(chunks) == int(vector["checksum"])
    assert state_sha256({"a": chunks}).hex() == vector["state_sha256"]


@given(seed=st.integers(0, 2**32), chunks=st.integers(0, 4))
def test_the_checksum_is_that_of_python_integers(seed: int, chunks: int) -> None:
    state = made_up("wide", seed, chunks)
    assert checksum(state) == reference.checksum(patterns(state))


@given(bit=st.integers(0, 31), place=st.integers(0, 3 * 4096 - 1))
def test_one_flipped_bit_changes_the_checksum(bit: int, place: int) -> None:
    state = made_up("normal", 1, 3)
    before = checksum(state)
    state.view(-1).view(torch.int32)[place] ^= torch.tensor(1 << bit).to(torch.int32)
    assert checksum(state) != before


def test_exchanged_chunks_change_the_checksum() -> None:
    state = made_up("normal", 1, 3)
    assert checksum(state) != checksum(state[[1, 0, 2]])


def test_threads_do_not_change_the_checksum(threads: int) -> None:
    state = made_up("normal", 1, 100)
    assert checksum(state) == reference.checksum(patterns(state))


def test_the_hash_is_over_values_in_name_order_without_padding() -> None:
    tensors = {"b": torch.arange(5.0), "a": torch.ones(3, 2), "c": torch.tensor(7.0)}
    expected = reference.state_sha256({name: patterns(tensor) for name, tensor in tensors.items()})
    assert state_sha256(tensors) == expected
    layout = Layout([(name, tuple(tensor.shape)) for name, tensor in tensors.items()])
    assert state_sha256(layout.views(layout.gather(tensors))) == expected


def test_only_float32_masters_have_a_hash() -> None:
    with pytest.raises(ValueError, match=r"a is torch\.float16"):
        state_sha256({"a": torch.zeros(3).half()})
