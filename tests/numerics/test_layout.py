from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnet.numerics.formats import CHUNK_VALUES
from p2pnet.numerics.layout import Layout
from tests.vectors import vectors

shapes = st.lists(st.integers(1, 90), max_size=3)
tables = st.dictionaries(st.text(max_size=5), shapes, max_size=8)


def tensors_of(layout: Layout) -> dict[str, torch.Tensor]:
    start = 1.0
    tensors = {}
    for slot in reversed(layout.slots):
        tensors[slot.name] = torch.arange(start, start + slot.size).view(slot.shape)
        start += slot.size
    return tensors


@pytest.mark.parametrize("vector", vectors("codec-1", "layout"))
def test_the_vectors_hold(vector: dict[str, Any]) -> None:
    layout = Layout(vector["table"].items())
    assert [[slot.name, *divmod(slot.start, CHUNK_VALUES), slot.size] for slot in layout.slots] == vector["slots"]
    assert layout.chunks == vector["chunks"]


@settings(max_examples=40)
@given(table=tables)
def test_what_is_gathered_comes_back_and_the_rest_is_zero(table: dict[str, list[int]]) -> None:
    layout = Layout(table.items())
    tensors = tensors_of(layout)
    chunks = layout.gather(tensors)
    assert chunks.shape == (layout.chunks, CHUNK_VALUES)
    assert int((chunks != 0).sum()) == layout.params == sum(tensor.numel() for tensor in tensors.values())
    back = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    layout.scatter_into(chunks, back)
    assert all(back[name].equal(tensor) for name, tensor in tensors.items())


@settings(max_examples=40)
@given(table=tables)
def test_the_order_of_the_table_changes_nothing(table: dict[str, list[int]]) -> None:
    assert Layout(table.items()).slots == Layout(reversed(table.items())).slots


@settings(max_examples=40)
@given(table=tables)
def test_tensors_of_a_chunk_or_more_share_no_chunk(table: dict[str, list[int]]) -> None:
    owners: dict[int, set[str]] = {}
    for slot in Layout(table.items()).slots:
        group = slot.name if slot.size >= CHUNK_VALUES else "all small ones together"
        for chunk in range(slot.start // CHUNK_VALUES, (slot.start + slot.size - 1) // CHUNK_VALUES + 1):
            owners.setdefault(chunk, set()).add(group)
    assert all(len(groups) == 1 for groups in owners.values())
    assert sorted(owners) == list(range(len(owners)))


def test_gathering_again_overwrites_the_values_and_not_the_padding() -> None:
    layout = Layout([("w", (50, 100)), ("b", (3,))])
    out = layout.gather({"w": torch.ones(50, 100), "b": torch.ones(3)})
    assert layout.gather({"w": torch.full((50, 100), 2.0), "b": torch.full((3,), 3.0)}, out) is out
    assert out.sum() == 2 * 5000 + 3 * 3


def test_views_write_through() -> None:
    layout = Layout([("w", (64, 65)), ("b", ())])
    chunks = layout.empty()
    views = layout.views(chunks)
    views["w"].fill_(1)
    views["b"].fill_(5)
    assert list(views) == ["b", "w"]
    assert chunks[2, 0] == 5
    assert int(chunks.sum()) == 64 * 65 + 5


def test_parameters_that_need_gradients_are_read_and_written() -> None:
    layout = Layout([("w", (4,))])
    w = torch.nn.Parameter(torch.ones(4))
    chunks = layout.gather({"w": w})
    assert not chunks.requires_grad
    layout.scatter_into(chunks * 2, {"w": w})
    assert w.tolist() == [2.0] * 4
    assert w.requires_grad


def test_other_dtypes_are_converted_and_rounded_back() -> None:
    layout = Layout([("w", (2,))])
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    chunks = layout.gather({"w": half})
    chunks[0, 0] = 1.0 + 2**-20
    layout.scatter_into(chunks, {"w": half})
    assert half.tolist() == [1.0, -2.0]


def test_the_error_names_what_differs_from_the_table() -> None:
    layout = Layout([("w", (4,)), ("b", (1,))])
    with pytest.raises(ValueError, match=r"2 parameters differ.*b: None, expected \(1,\).*w: \(5,\), expected \(4,\)"):
        layout.gather({"w": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"expected contiguous float32 of shape \(1, 4096\)"):
        layout.scatter_into(torch.zeros(2, 4096), {"w": torch.zeros(4), "b": torch.zeros(1)})


@pytest.mark.parametrize("table", [[("w", (2,)), ("w", (3,))], [("w", (2, 0))]])
def test_tables_that_mean_nothing_are_refused(table: list[tuple[str, tuple[int, ...]]]) -> None:
    with pytest.raises(ValueError, match=r"one name|without values"):
        Layout(table)
