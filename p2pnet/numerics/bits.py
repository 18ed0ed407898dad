"""Bits and small integers to bytes and back, least significant bit first (protocols/codec-1.md, "Bit order")."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from p2pnet.numerics.formats import bit_bytes


def pack_bits(bits: Tensor) -> Tensor:
    """Return bit i in byte i // 8 at position i % 8, the last byte filled up with zeros.

    bits: (rows, n) uint8 of 0 and 1, or bool.   returns: (rows, bit_bytes(n)) uint8.
    """
    rows, count = bits.shape
    padded = bit_bytes(count) * 8
    if padded != count or not bits.is_contiguous() or bits.storage_offset() % 8:
        whole = torch.zeros((rows, padded), dtype=torch.uint8, device=bits.device)
        whole[:, :count] = bits
        bits = whole
    words = bits.view(torch.uint8).view(torch.int64)  # eight bits, one in each byte of a word (hosts are little-endian)
    words = words | (words >> 7)
    words = words | (words >> 14)
    words = words | (words >> 28)
    return words.to(torch.uint8)  # its lowest byte


def unpack_bits(data: Tensor) -> Tensor:
    """Undo `pack_bits`, padding included. data: (rows, n) uint8.   returns: (rows, 8 n) uint8 of 0 and 1."""
    rows, count = data.shape
    words = _spread(data.device).index_select(0, data.reshape(-1).to(torch.int32))
    return words.view(torch.uint8).view(rows, 8 * count)


def count_bits(data: Tensor) -> Tensor:
    """Return how many bits are set in each row. data: (rows, n) uint8.   returns: (rows,) int64."""
    ones = _ones(data.device).index_select(0, data.reshape(-1).to(torch.int32))
    return ones.view(data.shape).sum(1, dtype=torch.int64)


def pack_fields(fields: Tensor, width: int) -> Tensor:
    """Return fields of `width` bits back to back, each with its least significant bit first.

    fields: (rows, n) int64, each under 2^width, width 0..12.   returns: (rows, bit_bytes(n * width)) uint8.
    """
    rows, count = fields.shape
    if width == 0:
        return torch.empty((rows, 0), dtype=torch.uint8, device=fields.device)
    if _fills_words(count, width):
        words = fields.reshape(rows, count // 8, 8) << _shifts(width, fields.device)
        words = words[:, :, :4] | words[:, :, 4:]
        words = words[:, :, :2] | words[:, :, 2:]
        words = words[:, :, 0] | words[:, :, 1]
        return words.view(torch.uint8).view(rows, count // 8, 8)[:, :, :width].reshape(rows, count // 8 * width)
    bits = _field_bits(width, fields.device).index_select(0, fields.reshape(-1))
    return pack_bits(bits.view(rows, count * width))


def unpack_fields(data: Tensor, count: int, width: int) -> Tensor:
    """Undo `pack_fields`. data: (rows, bit_bytes(count * width)) uint8, width 0..9.   returns: (rows, count) int32."""
    rows, device = data.shape[0], data.device
    if width == 0:
        return torch.zeros((rows, count), dtype=torch.int32, device=device)
    if _fills_words(count, width):
        words = torch.zeros((rows, count // 8, 8), dtype=torch.uint8, device=device)
        words[:, :, :width] = data.reshape(rows, count // 8, width)
        halves = words.view(torch.int64) >> _shifts(width, device)
        return halves.to(torch.int32).bitwise_and_((1 << width) - 1).view(rows, count)
    start = torch.arange(count, device=device) * width
    first, shift = start >> 3, (start & 7).to(torch.int32)
    second = (first + 1).clamp(max=data.shape[1] - 1)  # a field in the last byte has no bits beyond it
    columns = data.to(torch.int32)
    pair = columns.index_select(1, first) | (columns.index_select(1, second) << 8)
    return (pair >> shift) & ((1 << width) - 1)


def _fills_words(count: int, width: int) -> bool:
    """Tell whether the fields come in eights that each fit a word of 64 bits: several times faster."""
    return count % 8 == 0 and width <= 7


@cache
def _spread(device: torch.device) -> Tensor:
    """Return (256,) int64: for each byte its eight bits, one in each byte of a word."""
    table = [sum(((byte >> bit) & 1) << (8 * bit) for bit in range(8)) for byte in range(256)]
    return torch.tensor(table, dtype=torch.int64, device=device)


@cache
def _ones(device: torch.device) -> Tensor:
    return torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.uint8, device=device)


@cache
def _shifts(width: int, device: torch.device) -> Tensor:
    """Return (8,) int64: where each of eight fields begins in a word."""
    return torch.arange(8, device=device) * width


@cache
def _field_bits(width: int, device: torch.device) -> Tensor:
    """Return (2^width, width) uint8: the bits of each field, lowest first."""
    values = torch.arange(1 << width, device=device).unsqueeze(1)
    return ((values >> torch.arange(width, device=device)) & 1).to(torch.uint8).contiguous()
