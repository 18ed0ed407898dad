from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from p2pnet.config import AdamW, Muon
from p2pnet.errors import ConfigError
from p2pnet.train.models import ByteTransformer
from p2pnet.train.optimizer import InnerOptimizer

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
STILL = Muon(warmup_steps=0, adamw_lr=0.0)


def of_adamw(**settings: float) -> InnerOptimizer:
    return InnerOptimizer(nn.Linear(2, 2), AdamW(**settings))  # type: ignore[arg-type]


def test_the_rate_rises_over_the_first_steps_of_the_swarm_and_then_stays() -> None:
    optimizer = of_adamw(warmup_steps=4)
    assert [optimizer.rate_factor(step) for step in (0, 1, 3, 4, 1000)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert of_adamw(warmup_steps=0).rate_factor(0) == 1.0


def test_the_rate_falls_in_a_line_from_where_the_decay_starts_down_to_its_floor() -> None:
    optimizer = of_adamw(warmup_steps=0, decay_start=100, decay_steps=40, decay_floor=0.25)
    assert [optimizer.rate_factor(step) for step in (0, 100, 110, 120, 140, 10**9)] == [
        1.0, 1.0, 0.8125, 0.625, 0.25, 0.25,
    ]  # fmt: skip


def test_a_warm_up_that_overlaps_the_decay_multiplies_with_it() -> None:
    optimizer = of_adamw(warmup_steps=4, decay_start=0, decay_steps=4, decay_floor=0.0)
    assert [optimizer.rate_factor(step) for step in range(5)] == [0.25, 0.375, 0.375, 0.25, 0.0]


def test_a_step_moves_the_parameters_at_the_rate_and_clears_the_gradients() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = InnerOptimizer(model, AdamW(lr=0.5, weight_decay=0.0, warmup_steps=5))
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step(0)
    torch.testing.assert_close(model.weight.detach(), before - 0.1)  # Adam's first step is the rate itself
    assert model.weight.grad is None


def test_the_factor_of_one_step_is_not_carried_into_the_next() -> None:
    optimizer = of_adamw(lr=0.5, warmup_steps=4)
    for step, rate in ((0, 0.125), (0, 0.125), (3, 0.5), (1, 0.25)):
        optimizer.step(step)
        assert [group["lr"] for group in optimizer.optimizers[0].param_groups] == [rate, rate]


def test_gains_and_biases_do_not_decay_and_frozen_parameters_do_not_move() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    (adamw,) = InnerOptimizer(model, AdamW()).optimizers
    assert [(len(g["params"]), g["weight_decay"]) for g in adamw.param_groups] == [(0, 0.1), (1, 0.0)]


@needs_muon
def test_muon_gets_the_hidden_matrices_and_adamw_the_embedding_that_is_the_head_too() -> None:
    model = ByteTransformer(width=8, layers=2, heads=1, context=8)
    muon, adamw = InnerOptimizer(model, Muon()).optimizers
    names = {id(p): name for name, p in model.named_parameters()}
    held = [{names[id(p)] for group in one.param_groups for p in group["params"]} for one in (muon, adamw)]
    assert held[1] == {"embedding.weight"}
    assert held[0] == set(names.values()) - {"embedding.weight"}


@needs_muon
def test_muon_takes_a_step_of_one_length_in_every_direction_however_uneven_the_gradient() -> None:
    model = nn.Linear(4, 4, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.diag(torch.tensor([100.0, 10.0, 1.0, 1.0]))
    InnerOptimizer(model, dataclasses.replace(STILL, lr=0.1)).step(0)
    moved = torch.linalg.svdvals(before - model.weight.detach())
    assert (moved > 0.05).all()  # 0.7 to 1.2 times the rate, as five Newton-Schulz steps in bfloat16 leave it,
    assert (moved < 0.13).all()  # where the gradient's own lengths are 100 to 1


@needs_muon
def test_both_rates_of_muon_follow_the_schedule() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    optimizer = InnerOptimizer(model, Muon(lr=0.5, adamw_lr=0.25, warmup_steps=2))
    optimizer.step(0)
    assert [group["lr"] for one in optimizer.optimizers for group in one.param_groups] == [0.25, 0.125, 0.125]


def test_a_model_without_hidden_matrices_needs_no_muon() -> None:
    (adamw,) = InnerOptimizer(nn.Embedding(4, 4), Muon()).optimizers
    assert isinstance(adamw, torch.optim.AdamW)


def test_a_torch_without_muon_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=r"uses 'muon', torch .* has none: upgrade it to 2\.9"):
        InnerOptimizer(nn.Linear(2, 2), Muon())
