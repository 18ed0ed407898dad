"""What an optimizer has gathered survives a restart; what the user's code says does not come back with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from p2pnet.train.moments import TEXT, Moments
from p2pnet.train.storage import read_tensors, write_tensors

Make = Callable[[Any], Optimizer]

MAKERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


class ScheduleFree(Optimizer):
    """Keeps state in its groups, as schedule-free optimizers do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "weight_sum": 0.0, "train_mode": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["weight_sum"] += group["lr"]
            for p in group["params"]:
                state = self.state[p]
                z = state.setdefault("z", p.detach().clone(memory_format=torch.preserve_format))
                z.sub_(p.grad, alpha=group["lr"])
                p.lerp_(z, 1 / group["k"])


MAKERS["schedule-free"] = lambda p: ScheduleFree(p, lr=0.1)


class MasterSGD(Optimizer):
    """Keeps an fp32 master copy of half-precision parameters, nested in a dict."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                inner = self.state[p].setdefault("copies", {"master": p.detach().float(), 3: (1, None, "x")})
                p.copy_(inner["master"].sub_(p.grad.float(), alpha=group["lr"]))


MAKERS["fp32 master of bf16"] = lambda p: MasterSGD(p, lr=0.1)


def make_model(
    dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.channels_last
) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).to(dtype)
    return model.to(memory_format=memory_format)


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(2, 3, 4, 4, generator=generator).to(next(model.parameters()).dtype)

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(x).square().mean()
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()


def through_a_file(path: Path, moments: Moments) -> dict[str, torch.Tensor]:
    write_tensors(path, moments.dump(), {})
    return read_tensors(path)[0]


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    make, dtype = MAKERS[name], torch.bfloat16 if "bf16" in name else torch.float32
    flat = name == "LBFGS"  # cannot take gradients of another memory format
    model = make_model(dtype, torch.contiguous_format if flat else torch.channels_last)
    optimizer = make(model.parameters())
    moments = Moments(optimizer)
    train(model, optimizer, 3, seed=1)
    again = copy.deepcopy(model)
    restarted = make(again.parameters())
    assert Moments(restarted).restore(through_a_file(tmp_path / "file", moments)) == []
    for each, each_optimizer in ((model, optimizer), (again, restarted)):
        train(each, each_optimizer, 3, seed=2)
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    before, after = (
        [s for p in o.param_groups[0]["params"] for s in o.state[p].values()] for o in (optimizer, restarted)
    )
    kinds = [
        [(s.dtype, s.stride()) if isinstance(s, torch.Tensor) else type(s) for s in each] for each in (before, after)
    ]
    assert kinds[0] == kinds[1]


def test_several_optimizers_share_a_file(tmp_path: Path) -> None:
    model = make_model()
    matrices, rest = ([p for p in model.parameters() if (p.dim() >= 2) == large] for large in (True, False))
    pair = torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(rest)
    for optimizer in pair:
        train(model, optimizer, 2, seed=1)
    fresh = torch.optim.SGD(matrices, lr=0.1, momentum=0.9), torch.optim.AdamW(rest)
    file = through_a_file(tmp_path / "file", Moments(pair))
    assert Moments(fresh).restore(file) == []
    for old, new in zip(pair, fresh, strict=True):
        for parameter, state in old.state.items():
            for key, value in state.items():
                assert torch.equal(new.state[parameter][key], value)
    assert Moments(fresh[0]).restore(file) == ["optimizers: saved were 2, there are 1: all begin anew"]


def test_hyperparameters_stay_what_the_code_says(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    moments = Moments(optimizer)
    train(model, optimizer, 2, seed=1)
    optimizer.param_groups[0].update(lr=0.01, betas=(0.5, 0.5), weight_decay=0.1)  # as schedulers do
    fresh = torch.optim.AdamW(model.parameters(), lr=0.3, betas=(0.8, 0.9), weight_decay=0.2, fused=True)
    assert Moments(fresh).restore(through_a_file(tmp_path / "file", moments)) == []
    group = fresh.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["fused"]) == (0.3, (0.8, 0.9), 0.2, True)
    assert {float(state["step"]) for state in fresh.state.values()} == {2.0}


def test_a_state_that_does_not_fit_is_dropped_and_said(tmp_path: Path) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1, seed=1)
    tensors = through_a_file(tmp_path / "file", Moments(optimizer))
    small = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    other = torch.optim.Adam(model.parameters())
    for fresh in (small, other):
        (note,) = Moments(fresh).restore(tensors)
        assert "it begins anew" in note
        assert not fresh.state
    same = torch.optim.AdamW(model.parameters())
    text = tensors[TEXT].numpy().tobytes()
    for damage in (b"", b"{", b"7", b"[7]", text.replace(b"[0, 0]", b"[0, 99]"), text.replace(b"dict", b"dirt")):
        damaged = tensors | {TEXT: torch.tensor(list(damage), dtype=torch.uint8)}
        assert len(Moments(same).restore(damaged)) == 1
        assert not same.state
    for missing in ({}, {TEXT: tensors[TEXT]}, tensors | {TEXT: torch.ones(2)}):
        assert len(Moments(same).restore(missing)) == 1
        assert not same.state


def test_what_cannot_be_kept_is_said_once_and_the_rest_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.SGD([first, second], lr=0.1, momentum=0.9)
    optimizer.state[first]["momentum_buffer"] = torch.ones(3)
    optimizer.state[second]["momentum_buffer"] = object()
    moments = Moments(optimizer)
    for _ in range(2):
        assert len(moments.dump()) == 2  # one momentum, and what belongs where
    assert caplog.messages == ["SGD: a part of its state cannot be kept over a restart: a object"]


def test_views_into_one_flat_buffer_are_kept_apart(tmp_path: Path) -> None:
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    flat = torch.arange(6.0)
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for parameter, part in zip(parameters, flat.split(3), strict=True):
        optimizer.state[parameter]["momentum_buffer"] = part
    fresh = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    assert Moments(fresh).restore(through_a_file(tmp_path / "file", Moments(optimizer))) == []
    assert torch.equal(fresh.state[parameters[1]]["momentum_buffer"], torch.tensor([3.0, 4.0, 5.0]))


def test_only_the_spoilt_state_of_an_optimizer_is_forgotten() -> None:
    good, bad = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.AdamW([good, bad])
    for parameter in (good, bad):
        parameter.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[bad]["exp_avg"][0] = math.inf
    assert Moments(optimizer).forget_not_finite() == 1
    assert good in optimizer.state
    assert bad not in optimizer.state
    assert Moments(torch.optim.SGD([good])).forget_not_finite() == 0
    assert Moments(None).forget_not_finite() == 0


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="found Linear, expected a torch.optim.Optimizer or a sequence"):
        Moments([nn.Linear(2, 2)])  # type: ignore[list-item]
