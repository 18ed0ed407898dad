"""Inner optimizers of the built-in task; their state is a peer's own and lives on across rounds."""

from __future__ import annotations

import torch
from torch import nn

from p2pnet.config import AdamW


class InnerOptimizer:
    """AdamW with a warm-up counted in steps of the swarm, so that a late joiner takes no steps at other rates."""

    def __init__(self, model: nn.Module, settings: AdamW) -> None:
        """Decay applies to matrices, not to gains and biases, as in GPT-3."""
        trained = [p for p in model.parameters() if p.requires_grad]
        self.settings = settings
        self.torch = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
                {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
        )

    def step(self, swarm_step: int) -> None:
        """Take one step and clear the gradients.   swarm_step: round * H + step of the round, from 0."""
        for group in self.torch.param_groups:
            group["lr"] = self.rate(swarm_step)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)

    def rate(self, swarm_step: int) -> float:
        """Learning rate of a step; only + - * /, for cosines differ between libraries."""
        warmup = self.settings.warmup_steps
        return self.settings.lr * min(1.0, (swarm_step + 1) / warmup) if warmup else self.settings.lr
