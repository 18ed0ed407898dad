from __future__ import annotations

import torch
from torch import nn

from p2pnet.config import AdamW
from p2pnet.train.optimizer import InnerOptimizer


def test_the_rate_rises_over_the_first_steps_of_the_swarm_and_then_stays() -> None:
    optimizer = InnerOptimizer(nn.Linear(2, 2), AdamW(lr=0.5, warmup_steps=4))
    assert [optimizer.rate(step) for step in (0, 1, 3, 4, 1000)] == [0.125, 0.25, 0.5, 0.5, 0.5]
    assert InnerOptimizer(nn.Linear(2, 2), AdamW(lr=0.5, warmup_steps=0)).rate(0) == 0.5


def test_a_step_moves_the_parameters_at_the_rate_and_clears_the_gradients() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = InnerOptimizer(model, AdamW(lr=0.5, weight_decay=0.0, warmup_steps=5))
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step(0)
    torch.testing.assert_close(model.weight.detach(), before - 0.1)  # Adam's first step is the rate itself
    assert model.weight.grad is None


def test_gains_and_biases_do_not_decay_and_frozen_parameters_do_not_move() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    optimizer = InnerOptimizer(model, AdamW())
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.torch.param_groups] == [(0, 0.1), (1, 0.0)]
