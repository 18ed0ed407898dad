"""The outer step: a decided result moves the parameters, the same bits everywhere. Contract: protocols/reduce-1.md."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

from p2pnet.numerics import native
from p2pnet.numerics.codec import Payload, Sparse, as_chunks, check, chunk_blocks, decode, gpu_kernels, value_table
from p2pnet.numerics.feedback import PPM, accepted, residual
from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat
from p2pnet.numerics.levels import LEVELS, check_bias

ALPHA_PPM_MAX: Final = 1 << 32  # as wide as the manifest's field


def take_over(
    theta: Tensor,
    a: Tensor,
    result: Payload,
    sent: Tensor | None,
    named: Tensor,
    formats: tuple[ChunkFormat, ChunkFormat],
    level_bias: int,
    alpha_ppm: int,
) -> None:
    """End a round in place: `apply_result` to theta, and `residual` to `a`, of what the result holds of my payload.

    theta, a: (chunks, 4096) float32.   sent: (chunks, chunk_bytes) uint8, what was encoded from `a`; None: nothing, and
    then `a` stays.   named: (chunks,) bool, as for `accepted`.   formats: of the result, of my payload.
    Raises `WireError` for a malformed result; then nothing has changed.
    """
    fmt_result, fmt = formats
    for chunks in (theta, a):
        _check_chunks(chunks, theta.shape[0])
    if sent is not None:
        _check_sent(sent, named, fmt, theta.shape[0])
    data = as_chunks(result, fmt_result, theta.shape[0]).to(theta.device).contiguous()
    steps = step_table(level_bias, alpha_ppm, theta.device)
    if native.usable(theta, a, data, named) and (sent is None or native.usable(sent)):
        check(data, fmt_result)
        values = value_table(level_bias, theta.device)
        native.apply(theta, a, data, fmt_result, steps, sent, fmt, values, named)
        return
    decided = decode(data, fmt_result)
    if sent is not None:
        mine = decode(sent, fmt)
        residual(a, mine, accepted(mine, decided, named.to(theta.device)), level_bias, out=a)
    if (kernels := gpu_kernels(theta)) is not None:
        kernels.move(theta, data, fmt_result, steps)
    else:
        apply_result(theta, decided, fmt_result, level_bias, alpha_ppm)


def settle(
    a: Tensor,
    result: Payload,
    sent: Tensor,
    named: Tensor,
    formats: tuple[ChunkFormat, ChunkFormat],
    level_bias: int,
) -> None:
    """Do to `a` what `take_over` does to it, and let theta be: for a round that ends while the next one is trained.

    Raises `WireError` for a malformed result; then nothing has changed.
    """
    fmt_result, fmt = formats
    _check_chunks(a, a.shape[0])
    _check_sent(sent, named, fmt, a.shape[0])
    data = as_chunks(result, fmt_result, a.shape[0]).to(a.device).contiguous()
    if native.usable(a, data, named, sent):
        check(data, fmt_result)
        steps, values = step_table(level_bias, PPM, a.device), value_table(level_bias, a.device)
        native.apply(None, a, data, fmt_result, steps, sent, fmt, values, named)
        return
    mine = decode(sent, fmt)
    residual(a, mine, accepted(mine, decode(data, fmt_result), named.to(a.device)), level_bias, out=a)


def apply_result(
    theta: Tensor,
    result: Sparse | Payload,
    fmt: ChunkFormat,
    level_bias: int,
    alpha_ppm: int,
) -> None:
    """Move theta in place by a decided result: theta' = float32(float64(theta) - alpha * float64(u)).

    theta: (chunks, 4096) float32, contiguous (`Layout.gather`).   result: the decided chunks of format `fmt` for all of
    theta, decoded or not.   alpha = alpha_ppm / 10^6 in float64. Only the selected coordinates are touched.
    Raises `WireError` for a malformed result; theta is then unchanged.
    """
    _check_chunks(theta, theta.shape[0])
    sparse = result if isinstance(result, Sparse) else decode(result, fmt, theta.shape[0])
    if sparse.codes.shape != (theta.shape[0], fmt.k):
        raise ValueError(f"a result of shape {tuple(sparse.codes.shape)} for {theta.shape[0]} chunks")
    steps = step_table(level_bias, alpha_ppm, theta.device)
    for block in chunk_blocks(theta.shape[0], theta.device, values=8 * fmt.k):
        part = Sparse(sparse.indices[block], sparse.codes[block], sparse.negative[block]).to(theta.device)
        indices = part.indices.to(torch.int64)
        before = theta[block].gather(1, indices)
        after = (before.to(torch.float64) - part.look_up(steps)).to(torch.float32)
        theta[block].scatter_(1, indices, after)


def _check_chunks(values: Tensor, chunks: int) -> None:
    if values.shape != (chunks, CHUNK_VALUES) or values.dtype != torch.float32 or not values.is_contiguous():
        raise ValueError(f"expected contiguous float32 of shape ({chunks}, {CHUNK_VALUES}), got {tuple(values.shape)}")


def _check_sent(sent: Tensor, named: Tensor, fmt: ChunkFormat, chunks: int) -> None:
    if (sent.shape, named.shape) != ((chunks, fmt.chunk_bytes), (chunks,)):
        raise ValueError(f"a payload of shape {tuple(sent.shape)}, {tuple(named.shape)} named, {chunks} chunks")


@cache
def step_table(level_bias: int, alpha_ppm: int, device: torch.device) -> Tensor:
    """Return (512,) float64: alpha * u for the level of each code, then for its negative, rounded once."""
    check_bias(level_bias)
    if not 0 <= alpha_ppm <= ALPHA_PPM_MAX:
        raise ValueError(f"alpha_ppm is {alpha_ppm}, allowed are 0..{ALPHA_PPM_MAX}")
    steps = [alpha_ppm / PPM * (level * 2.0**-level_bias) for level in LEVELS]
    return torch.tensor(steps + [-step for step in steps], dtype=torch.float64, device=device)
