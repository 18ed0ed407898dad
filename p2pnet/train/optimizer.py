"""Inner optimizers of the built-in task; their state is a peer's own and lives on across rounds."""

from __future__ import annotations

import torch
from torch import nn

from p2pnet.config import AdamW, Muon
from p2pnet.errors import ConfigError


class InnerOptimizer:
    """AdamW or Muon, at rates that follow the steps of the swarm: a late joiner is at the same one as the others.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of each hidden matrix;
    embeddings and whatever is no matrix get AdamW. Both are torch's own: two optimizers, stepped together.
    """

    def __init__(self, model: nn.Module, settings: AdamW | Muon) -> None:
        """Decay applies to matrices, not to gains and biases, as in GPT-3.

        Raises ConfigError for Muon when the installed torch has none.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        self.settings = settings
        if isinstance(settings, AdamW):
            self.optimizers: tuple[torch.optim.Optimizer, ...] = (_adamw(trained, settings),)
        else:
            hidden = _hidden_matrices(model, trained)
            others = [p for p in trained if not any(p is one for one in hidden)]
            rest = AdamW(lr=settings.adamw_lr, weight_decay=0.0)
            self.optimizers = (_muon(hidden, settings), _adamw(others, rest)) if hidden else (_adamw(others, rest),)
        self._groups = [(group, group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, swarm_step: int) -> None:
        """Take one step and clear the gradients.   swarm_step: round * H + step of the round, from 0."""
        factor = self.rate_factor(swarm_step)
        for group, rate in self._groups:
            group["lr"] = rate * factor
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def rate_factor(self, swarm_step: int) -> float:
        """Share of the learning rates at a step: a ramp up, then level, then a ramp down to the floor.

        Only + - * /, for cosines differ between libraries.
        """
        its = self.settings
        factor = min(1.0, (swarm_step + 1) / its.warmup_steps) if its.warmup_steps else 1.0
        if its.decay_steps:
            done = min(1.0, max(0, swarm_step - its.decay_start) / its.decay_steps)
            factor *= 1.0 - (1.0 - its.decay_floor) * done
        return factor


def _adamw(parameters: list[nn.Parameter], settings: AdamW) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
    )


def _hidden_matrices(model: nn.Module, trained: list[nn.Parameter]) -> list[nn.Parameter]:
    """Return the trained matrices that are no embedding, nor a head tied to one."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [p for p in trained if p.dim() == 2 and id(p) not in tables]


def _muon(hidden: list[nn.Parameter], settings: Muon) -> torch.optim.Optimizer:
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise ConfigError(
            f"inner optimizer: the swarm uses 'muon', torch {torch.__version__} has none: upgrade it to 2.9 or newer"
        )
    made: torch.optim.Optimizer = muon(
        hidden, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return made
