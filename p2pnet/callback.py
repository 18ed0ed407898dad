"""Take part in a swarm from Hugging Face's Trainer, as one of its callbacks; the only module with transformers."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from p2pnet.config import NodeConfig
from p2pnet.errors import ConfigError
from p2pnet.opening import OnEvent
from p2pnet.swarm import Report, Swarm, join
from p2pnet.wire.manifest import Link

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ConfigError("SwarmCallback: needs Hugging Face's transformers; pip install 'p2pnet[hf]'") from error


class SwarmCallback(TrainerCallback):  # type: ignore[misc]  # it brings no types
    """Trains whatever the Trainer trains together with others.

        with p2pnet.SwarmCallback(link, state_dir="run1") as callback:
            Trainer(model, arguments, train_dataset=..., callbacks=[callback]).train()

    An optimizer step of the Trainer is an inner step, however many batches are accumulated for it. Samples are counted
    as the model sees them, and are marked unassigned: the Trainer draws them, so give each peer another `seed`. Model,
    optimizer state and round are resumed from `state_dir`; the Trainer's own checkpoints are not needed for that. Its
    learning rate starts anew with each `train()`, unless it is told `resume_from_checkpoint`.
    """

    def __init__(
        self,
        link: str | Link,
        *,
        state_dir: str | Path | None = None,
        config: NodeConfig | None = None,
        on_event: OnEvent = lambda _kind, _fields: None,
        on_report: Callable[[Report], None] = lambda _report: None,
        until_round: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        """link, state_dir, config, on_event, timeout_s: as for `join`, which is called when training begins.

        on_report: told of each decided round.   until_round: end the training when the swarm has decided so many; 0:
        when the Trainer does.
        """
        self._link = link
        self._options: dict[str, Any] = {
            "state_dir": state_dir, "config": config, "on_event": on_event, "timeout_s": timeout_s
        }  # fmt: skip
        self._on_report, self._until_round = on_report, until_round
        self._swarm: Swarm | None = None
        self._hook: Any = None
        self._losses: list[Tensor] = []
        self._samples = 0
        self._is_part = False  # whether a loss is a share of the step's, as newer models give it

    @property
    def swarm(self) -> Swarm:
        """The swarm, from the beginning of the training until `close`."""
        if self._swarm is None:
            raise ConfigError("SwarmCallback: the training has not begun: hand it to a Trainer and call train() first")
        return self._swarm

    def on_train_begin(self, _arguments: Any, _state: Any, control: Any, **given: Any) -> Any:
        """Join, once model and optimizer are ready."""
        if self._swarm is None:
            self._swarm = join(self._link, given["model"], given["optimizer"], **self._options)
            self._hook = given["model"].register_forward_hook(self._count, with_kwargs=True)
            atexit.register(self.close)  # when the training ends with an error, the Trainer does not say so
        control.should_training_stop = control.should_training_stop or self._is_over()
        return control

    def on_step_end(self, _arguments: Any, _state: Any, control: Any, **_: Any) -> Any:
        """The optimizer has stepped."""
        loss = torch.stack(self._losses).sum() if self._losses else torch.tensor(torch.nan)
        if self._losses and not self._is_part:
            loss = loss / len(self._losses)
        report = self.swarm.step(loss, self._samples)
        self._losses, self._samples = [], 0
        if report is not None:
            self._on_report(report)
            control.should_training_stop = control.should_training_stop or self._is_over()
        return control

    def close(self) -> None:
        """Save, and leave the swarm; harmless when called again."""
        atexit.unregister(self.close)
        if self._hook is not None:
            self._hook.remove()
        if self._swarm is not None:
            self._swarm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._swarm is not None:
            self._swarm.__exit__(kind, error, trace)
        self.close()

    def _is_over(self) -> bool:
        return 0 < self._until_round <= self.swarm.decided

    def _count(self, model: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """See a batch go through the model."""
        if not model.training:
            return
        first = next((each for each in (*positional, *named.values()) if isinstance(each, Tensor) and each.dim()), None)
        self._samples += len(first) if first is not None else 0
        self._is_part = named.get("num_items_in_batch") is not None
        loss = output.get("loss") if hasattr(output, "get") else None
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
