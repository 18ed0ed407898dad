"""The Trainer's callback: optimizer steps are counted, not backward passes; a stopped run goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from p2pnet.errors import ConfigError
from p2pnet.node import bridge as br
from p2pnet.swarm import Report, Swarm
from tests.test_swarm import FakeOpening, task, void

transformers = pytest.importorskip("transformers", reason="the extra `examples` is not installed")
pytestmark = pytest.mark.slow  # importing transformers takes that long


class Numbers(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        piece = torch.full((8,), index % 16)
        return {"input_ids": piece, "labels": piece}


def make_model() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )


class Run:
    """A Trainer whose swarm's node the test plays."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, says: list[br.ToUser]) -> None:
        from p2pnet import callback as module

        self.opening = FakeOpening(folder, model=make_model())
        for item in says:
            self.opening.node.bridge.says.put(item)
        monkeypatch.setattr(
            module,
            "join",
            lambda _link, model, optimizer, **_: Swarm(self.opening, model, optimizer),  # type: ignore[arg-type]
        )
        self.reports: list[Report] = []
        self.folder = folder

    def train(self, **settings: Any) -> Any:
        from p2pnet.callback import SwarmCallback

        arguments = transformers.TrainingArguments(
            str(self.folder / "output"), per_device_train_batch_size=4, gradient_accumulation_steps=3, max_steps=99,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no", use_cpu=True,
        )  # fmt: skip
        with SwarmCallback("p2pnet://", on_report=self.reports.append, **settings) as callback:
            trainer = transformers.Trainer(make_model(), arguments, train_dataset=Numbers(), callbacks=[callback])
            trainer.train()
        return trainer


def test_steps_samples_and_loss_are_counted_under_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, [task(0), void(0), task(1), void(1), task(2)])
    run.opening.node.bridge.poll = lambda: None  # type: ignore[method-assign]
    trainer = run.train(until_round=2)
    assert trainer.state.global_step == 4, "two rounds of two optimizer steps"
    assert [(report.round, report.steps) for report in run.reports] == [(0, 2), (1, 2)]
    submitted = [item for item in run.opening.node.bridge.told if isinstance(item, br.Submitted)]
    assert [item.samples for item in submitted] == [2 * 3 * 4, 2 * 3 * 4]
    assert not any(item.assigned for item in submitted)
    assert all(1 < item.loss < 5 for item in submitted), "the mean of a step: log 16 is 2.8"
    assert run.opening.node.stopped

    again = Run(tmp_path, monkeypatch, [task(2), void(2), task(3)])
    again.opening.node.bridge.poll = lambda: None  # type: ignore[method-assign]
    again.train(until_round=3)
    assert [report.round for report in again.reports] == [2]


def test_an_error_in_the_training_leaves_the_swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, [task(0)])
    monkeypatch.setattr(Numbers, "__getitem__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert run.opening.node.stopped


def test_a_callback_that_no_trainer_has_called_says_so() -> None:
    from p2pnet.callback import SwarmCallback

    with pytest.raises(ConfigError, match="the training has not begun"):
        SwarmCallback("p2pnet://").swarm.round  # noqa: B018
