"""Where each parameter lies in the chunks: the order of every payload and result. Contract: protocols/codec-1.md.

Every tensor of 4096 values or more gets chunks of its own, in the order of the names, the last one padded
with zeros. Then come all smaller ones, one after the other in the order of their names, padded at their end only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from p2pnet.numerics.formats import CHUNK_VALUES

_DIFFERENCES_NAMED: Final = 5  # in one error message


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter's place: `size` values from value `start` of the flattened chunks."""

    name: str
    shape: tuple[int, ...]
    start: int
    size: int


class Layout:
    """The places of all parameters of a table; equal tables give equal layouts on every machine."""

    def __init__(self, table: Iterable[tuple[str, Sequence[int]]]) -> None:
        """table: a name and a shape for each parameter, in any order; names differ, no shape holds a 0."""
        rows = sorted((name, tuple(int(size) for size in shape)) for name, shape in table)
        names = [name for name, _ in rows]
        if len(set(names)) != len(names):
            raise ValueError("two parameters of one name")
        if empty := [name for name, shape in rows if min(shape, default=1) < 1]:
            raise ValueError(f"parameters without values: {empty[:_DIFFERENCES_NAMED]}")
        large = [row for row in rows if prod(row[1]) >= CHUNK_VALUES]
        small = [row for row in rows if prod(row[1]) < CHUNK_VALUES]
        start, slots = 0, []
        for name, shape in large:
            slots.append(Slot(name, shape, start, prod(shape)))
            start += -(-prod(shape) // CHUNK_VALUES) * CHUNK_VALUES
        for name, shape in small:
            slots.append(Slot(name, shape, start, prod(shape)))
            start += prod(shape)
        self.slots: Final = tuple(slots)  # in the order of the chunks
        self.names: Final = tuple(names)  # sorted
        self.shapes: Final = dict(rows)  # by name, in the same order
        self.params: Final = sum(slot.size for slot in slots)  # values, without padding
        self.chunks: Final = -(-start // CHUNK_VALUES)

    def empty(self, device: torch.device | str = "cpu") -> Tensor:
        """Return zeros of shape (chunks, 4096), float32: what `gather` fills and what padding starts from."""
        return torch.zeros((self.chunks, CHUNK_VALUES), dtype=torch.float32, device=device)

    def views(self, chunks: Tensor) -> dict[str, Tensor]:
        """Return each parameter, in its shape, as a view into the chunks: writing to one writes to the other.

        chunks: (chunks, 4096) float32, contiguous.   returns: by name, in the order of the names.
        """
        self._check_chunks(chunks)
        flat = chunks.view(-1)
        views = {slot.name: flat[slot.start : slot.start + slot.size].view(slot.shape) for slot in self.slots}
        return {name: views[name] for name in self.names}

    def gather(self, tensors: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """Copy parameters into chunks. Padding is and stays zero.

        tensors: by name, of the table's shapes, of any dtype and device.   out: what an earlier `gather` or `empty`
        returned, to be overwritten.   returns: (chunks, 4096) float32.
        Raises `ValueError` that names what differs from the table.
        """
        self._check_tensors(tensors)
        if out is None:
            out = self.empty(next(iter(tensors.values())).device if tensors else "cpu")
        for name, view in self.views(out).items():
            view.copy_(tensors[name].detach())
        return out

    def scatter_into(self, chunks: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Write chunks back into the parameters, in place, rounding to their dtype; padding goes nowhere.

        chunks: (chunks, 4096) float32.   tensors: as for `gather`.
        """
        self._check_tensors(tensors)
        with torch.no_grad():
            for name, view in self.views(chunks).items():
                tensors[name].copy_(view)

    def _check_chunks(self, chunks: Tensor) -> None:
        shape = (self.chunks, CHUNK_VALUES)
        if chunks.shape != shape or chunks.dtype != torch.float32 or not chunks.is_contiguous():
            raise ValueError(f"expected contiguous float32 of shape {shape}, got {chunks.dtype} {tuple(chunks.shape)}")

    def _check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        ours = {slot.name: slot.shape for slot in self.slots}
        theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if ours != theirs:
            differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            shown = [f"{name}: {theirs.get(name)}, expected {ours.get(name)}" for name in differ[:_DIFFERENCES_NAMED]]
            raise ValueError(f"{len(differ)} parameters differ from the table: {'; '.join(shown)}")
