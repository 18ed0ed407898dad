"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter where Triton is installed.

python -m pip install triton && TRITON_INTERPRET=1 python -m pytest tests/numerics/test_kernels.py
"""

from __future__ import annotations

import os

import pytest
import torch

from p2pnet.numerics.codec import encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.outer import apply_result, step_table
from tests.numerics.samples import KINDS, made_up, patterns

kernels = pytest.importorskip("p2pnet.numerics.kernels", reason="Triton is not installed: there is no GPU path here")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not IS_INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device here, and TRITON_INTERPRET=1 is not set", allow_module_level=True)
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
FORMATS = [(8, 1), (13, 2), (64, 1), (64, 2), (64, 3), (100, 3), (512, 1), (1024, 2), (1100, 1), (1500, 2), (2048, 3)]


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [0, 32, 129])
@pytest.mark.parametrize(("k", "bits"), FORMATS)
def test_the_bytes_are_those_of_the_cpu(k: int, bits: int, bias: int) -> None:
    fmt = ChunkFormat(k, bits)
    a = torch.cat([made_up(kind, k, 1 if IS_INTERPRETED else 40) for kind in KINDS])
    payload = torch.empty((a.shape[0], fmt.chunk_bytes), dtype=torch.uint8, device=DEVICE)
    assert kernels.encode(a.to(DEVICE), fmt, bias, payload) == -1
    assert payload.cpu().equal(encode(a, fmt, bias))


@pytest.mark.gpu
@pytest.mark.parametrize(("k", "bits"), FORMATS)
def test_a_result_moves_the_same_parameters_to_the_same_bits(k: int, bits: int) -> None:
    fmt, chunks = ChunkFormat(k, bits), 2 if IS_INTERPRETED else 300
    theta, result = made_up("wide", 1, chunks), encode(made_up("few" if k > 64 else "heavy", 2, chunks), fmt, 32)
    moved = theta.clone().to(DEVICE)
    kernels.move(moved, result.to(DEVICE), fmt, step_table(32, 1_300_000, DEVICE))
    apply_result(theta, result, fmt, 32, 1_300_000)
    assert patterns(moved) == patterns(theta)


@pytest.mark.gpu
def test_what_is_not_finite_is_named() -> None:
    a, fmt = made_up("normal", 1, 5), ChunkFormat(64)
    a[3, 7], a[4, 9] = float("inf"), float("nan")
    payload = torch.empty((5, fmt.chunk_bytes), dtype=torch.uint8, device=DEVICE)
    assert kernels.encode(a.to(DEVICE), fmt, 32, payload) == 3
