"""The CPU path: `native.cpp`, compiled when the package was built. Same bytes as the torch code, many times faster.

Where it is missing (no compiler at installation, a big-endian machine) the torch code does the same work. Calls let go
of the interpreter and use as many threads as torch does.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from typing import Final

import torch
from torch import Tensor

from p2pnet.numerics.formats import ChunkFormat

ABI: Final = 1  # raised with every change of an argument
LIBRARY: Final = __file__.removesuffix("native.py") + "_native.base.so"
LIBRARY_V3: Final = LIBRARY.replace(".base.", ".v3.")  # the same for x86-64 machines with AVX2: a third faster

_switched_off = False


class _Format(ctypes.Structure):
    _fields_ = [
        ("k", c_int32),
        ("value_bits", c_int32),
        ("low_bits", c_int32),
        ("low_bytes", c_int32),
        ("upper_bytes", c_int32),
        ("sign_bytes", c_int32),
        ("selector_bytes", c_int32),
        ("chunk_bytes", c_int32),
    ]


def missing() -> str | None:
    """Return why the library is not used, None when it is."""
    return "switched off" if _switched_off else _load()[1]


def switch(on: bool) -> None:
    """Use the library or not, in the whole process: for tests and benchmarks that compare it with the torch code."""
    global _switched_off  # noqa: PLW0603
    _switched_off = not on


def usable(*tensors: Tensor) -> bool:
    """Tell whether the library can work on these: all are on the CPU and contiguous, and it is there."""
    return missing() is None and all(one.device.type == "cpu" and one.is_contiguous() for one in tensors)


def accumulate(e: Tensor, start: Tensor, local: Tensor, beta: float, scale: float) -> None:
    """E = beta * e + (start - local) * scale, in place. All float32 of one size; beta and scale are float32 numbers."""
    _library().p2pnet_accumulate(
        e.data_ptr(), start.data_ptr(), local.data_ptr(), e.numel(), beta, scale, torch.get_num_threads()
    )


def encode(a: Tensor, fmt: ChunkFormat, level_bias: int, payload: Tensor) -> int:
    """Write the payload of (chunks, 4096) float32. returns: a chunk that holds a NaN or infinity, or -1."""
    return int(
        _library().p2pnet_encode(
            a.data_ptr(), a.shape[0], _format(fmt), level_bias, payload.data_ptr(), torch.get_num_threads()
        )
    )


def is_valid(payload: Tensor, fmt: ChunkFormat) -> bool:
    """Tell whether (chunks, fmt.chunk_bytes) uint8 break none of codec-1's rules."""
    return bool(
        _library().p2pnet_check(payload.data_ptr(), payload.shape[0], _format(fmt), torch.get_num_threads()) < 0
    )


def reduce(
    slices: Sequence[Tensor],
    factors: Sequence[int],
    divisor: int,
    fmt: ChunkFormat,
    fmt_out: ChunkFormat,
    output: Tensor,
) -> bool:
    """Write what `reduce_leaf` returns. factors: weight * clip.   returns: False where a slice is malformed."""
    return bool(
        _library().p2pnet_reduce(
            (c_void_p * len(slices))(*(one.data_ptr() for one in slices)),
            (c_int64 * len(slices))(*factors),
            len(slices),
            divisor,
            output.shape[0],
            _format(fmt),
            _format(fmt_out),
            output.data_ptr(),
            torch.get_num_threads(),
        )
        < 0
    )


def apply(
    theta: Tensor | None,
    a: Tensor,
    result: Tensor,
    fmt_result: ChunkFormat,
    steps: Tensor,
    sent: Tensor | None,
    fmt: ChunkFormat,
    values: Tensor,
    named: Tensor,
) -> None:
    """Move theta, unless None, by a valid result, and take from `a` what the result holds of a valid payload of mine.

    theta, a: (chunks, 4096) float32.   steps: (512,) float64, values: (512,) float32, by code, then by code negated.
    sent: my payload, None without one.   named: (chunks,) bool.
    """
    _library().p2pnet_apply(
        None if theta is None else theta.data_ptr(),
        a.data_ptr(),
        a.shape[0],
        result.data_ptr(),
        _format(fmt_result),
        steps.data_ptr(),
        None if sent is None else sent.data_ptr(),
        _format(fmt),
        values.data_ptr(),
        named.data_ptr(),
        torch.get_num_threads(),
    )


def dense_encode(payload: Tensor, fmt: ChunkFormat, coded: Tensor) -> int:
    """Write well-formed chunks as dense-1. returns: bytes written; negative: malformed, or they do not fit `coded`."""
    return int(
        _library().p2pnet_dense_encode(
            payload.data_ptr(), payload.shape[0], _format(fmt), coded.data_ptr(), coded.numel()
        )
    )


def dense_decode(coded: Tensor, fmt: ChunkFormat, payload: Tensor) -> int:
    """Undo it, into (chunks, fmt.chunk_bytes) uint8. returns: a chunk at which no encoder says this, or -1."""
    return int(
        _library().p2pnet_dense_decode(
            coded.data_ptr(), coded.numel(), payload.shape[0], _format(fmt), payload.data_ptr()
        )
    )


def source_sha256() -> str:
    """Return the hash of the source that the library was built from, in hex."""
    return str(_library().p2pnet_source().decode())


@cache
def _format(fmt: ChunkFormat) -> _Format:
    return _Format(*(getattr(fmt, field[0]) for field in _Format._fields_))


def _library() -> ctypes.CDLL:
    library, why = _load()
    if library is None:
        raise RuntimeError(why)
    return library


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if sys.byteorder != "little":
        return None, "the machine is big-endian"
    try:
        library = ctypes.CDLL(LIBRARY)
        if library.p2pnet_has_v3():
            library = ctypes.CDLL(LIBRARY_V3)
    except OSError as error:
        return None, f"it was not built: {error}"
    if (found := library.p2pnet_abi()) != ABI:
        return None, f"it is version {found}, not {ABI}: install the package again"
    pointer, form = c_void_p, POINTER(_Format)
    library.p2pnet_source.restype = ctypes.c_char_p
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "accumulate": (None, [pointer, pointer, pointer, c_int64, c_float, c_float, c_int]),
        "encode": (c_int64, [pointer, c_int64, form, c_int, pointer, c_int]),
        "check": (c_int64, [pointer, c_int64, form, c_int]),
        "reduce": (
            c_int64,
            [POINTER(c_void_p), POINTER(c_int64), c_int64, c_int64, c_int64, form, form, pointer, c_int],
        ),
        "dense_encode": (c_int64, [pointer, c_int64, form, pointer, c_int64]),
        "dense_decode": (c_int64, [pointer, c_int64, c_int64, form, pointer]),
        "apply": (
            None,
            [pointer, pointer, c_int64, pointer, form, pointer, pointer, form, pointer, pointer, c_int],
        ),
    }
    for name, (returns, takes) in signatures.items():
        function = getattr(library, f"p2pnet_{name}")
        function.restype, function.argtypes = returns, takes
    return library, None
