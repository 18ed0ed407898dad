"""Error feedback: what was not sent, or not decided, is sent later. Contract: protocols/reduce-1.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from p2pnet.numerics import native
from p2pnet.numerics.codec import Sparse, chunk_blocks, dequantise
from p2pnet.numerics.formats import CHUNK_VALUES

PPM: Final = 1_000_000
_AT_A_TIME: Final = 1 << 19  # values


def accumulate(e: Tensor, delta: Tensor, beta_ppm: int, out: Tensor | None = None) -> Tensor:
    """Return a = beta * e + delta, the product rounded to float32 and the sum again.

    e, delta: float32 of one shape; beta is the float32 nearest to beta_ppm / 10^6, 0..10^6.   out: may be `e`.
    Two kernels, since one might round only once (a fused multiply-add) and not everywhere.
    """
    if e.dtype != torch.float32 or delta.dtype != torch.float32:
        raise ValueError(f"expected float32, got {e.dtype} and {delta.dtype}")
    return torch.mul(e, _beta(beta_ppm), out=out).add_(delta)


def add_change(e: Tensor, start: Tensor, local: Tensor, scale: float, beta_ppm: int) -> None:
    """Make e in place into a = beta * e + (start - local) * scale, each operation rounded to float32.

    e, start: float32, contiguous, of one size, on one device.   local: the parameter, of any float dtype and device; it
    began at `start` rounded to its dtype, and its change is measured from there.   scale: a float32 number.
    Needs no more than a few MB beside its arguments.
    """
    local = local.detach()
    if local.dtype == torch.float32 and native.usable(e, start, local):
        native.accumulate(e, start, local, _beta(beta_ppm), scale)
        return
    flat, begin, end = e.view(-1), start.view(-1), local.reshape(-1)
    wide = torch.promote_types(local.dtype, torch.float32)
    for at in range(0, flat.numel(), _AT_A_TIME):
        piece = slice(at, at + _AT_A_TIME)
        moved = begin[piece].to(local.dtype).to(wide) - end[piece].to(e.device, wide)
        delta = moved.to(torch.float32)
        accumulate(flat[piece], delta.mul_(scale) if scale != 1.0 else delta, beta_ppm, out=flat[piece])


def accepted(sent: Sparse, result: Sparse, named: Tensor) -> Tensor:
    """Return which of my values the decided result took in.

    named: (chunks,) bool, whether the inputs of that chunk's part name me (`named_chunks`).
    returns: (chunks, k) bool: named there, and the result holds the coordinate at a level other than zero. A coordinate
    at level zero moved nothing, so what was sent for it is not lost but sent again.
    """
    chunks, device = sent.indices.shape[0], sent.indices.device
    taken = torch.empty(sent.indices.shape, dtype=torch.bool, device=device)
    for block in chunk_blocks(chunks, device):
        decided = torch.zeros((block.stop - block.start, CHUNK_VALUES), dtype=torch.bool, device=device)
        decided.scatter_(1, result.indices[block].to(torch.int64), result.codes[block] > 0)
        taken[block] = decided.gather(1, sent.indices[block].to(torch.int64))
    return taken.logical_and_(named.unsqueeze(1))


def named_chunks(ranges: Iterable[tuple[int, int]], chunks: int, device: torch.device | str = "cpu") -> Tensor:
    """Return (chunks,) bool, True in the given ranges of chunks (first, behind the last): the parts that name me."""
    named = torch.zeros(chunks, dtype=torch.bool, device=device)
    for start, stop in ranges:
        if not 0 <= start <= stop <= chunks:
            raise ValueError(f"chunks {start}..{stop} of {chunks}")
        named[start:stop] = True
    return named


def residual(a: Tensor, sent: Sparse, taken: Tensor, level_bias: int, out: Tensor | None = None) -> Tensor:
    """Return e = a, less what I sent where it was taken. For a void round, or without me in it, e is simply a.

    a: (chunks, 4096) float32, what `sent` was encoded from.   taken: (chunks, k) bool, from `accepted`.
    out: may be `a` itself.   returns: (chunks, 4096) float32. What the clip factor took away is dropped with the rest.
    """
    e = a.clone() if out is None else out if out is a else out.copy_(a)
    indices = sent.indices.to(torch.int64)
    # The subtraction is rounded once; where nothing was taken, 0 is subtracted, which changes no bit.
    values = torch.where(taken, dequantise(sent, level_bias), 0.0)
    return e.scatter_(1, indices, a.gather(1, indices) - values)


def _beta(beta_ppm: int) -> float:
    """Return the float32 number nearest to beta_ppm / 10^6."""
    if not 0 <= beta_ppm <= PPM:
        raise ValueError(f"beta_ppm is {beta_ppm}, allowed are 0..{PPM}")
    return torch.tensor(beta_ppm / PPM, dtype=torch.float32).item()
