"""Devices on which the same bytes have to come out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from p2pnet.numerics import native


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device there is; tests compare with what the CPU or the reference says."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU library, and the torch code that stands in for it: the same bytes out of both."""
    if request.param == "native" and (why := native.missing()) is not None:
        pytest.skip(f"no CPU library: {why}")
    native.switch(request.param == "native")
    yield str(request.param)
    native.switch(True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread where a test asks for no other number: its tensors are small and the machine may be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, one_thread: None) -> int:
    """One torch thread and two."""
    torch.set_num_threads(request.param)
    return int(request.param)
