"""What a swarm trains: a task is data, a model and a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from p2pnet.config import BytesLmTask, CustomTask
from p2pnet.errors import ConfigError
from p2pnet.train.models import ByteTransformer
from p2pnet.train.text import Corpus, read_corpus, standard_library

HELD_OUT_SAMPLES = 64  # measured once per round: a standard error of about .02 nats, 0.3 s at the demo's size


class Windows(Dataset[Tensor]):
    """Every passage of context + 1 bytes in a text: sample i is (context + 1,) uint8 from byte i on."""

    def __init__(self, data: Tensor, context: int) -> None:
        """data: (bytes,) uint8. Raises ConfigError when it is shorter than one sample."""
        if len(data) <= context:
            raise ConfigError(f"text: {len(data)} bytes are shorter than one sample of {context + 1}")
        self.data = data
        self.context = context

    def __len__(self) -> int:
        return len(self.data) - self.context

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index : index + self.context + 1]

    def evenly(self, count: int) -> Tensor:
        """returns: (at most count, context + 1) uint8, samples at equal distances, the same on each call."""
        count = min(count, len(self))
        return torch.stack([self[i * len(self) // count] for i in range(count)])


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Data, a model and a loss, ready to train on one peer."""

    settings: BytesLmTask
    model: nn.Module
    dataset: Windows
    held_out: Tensor  # (samples, context + 1) uint8, never trained on
    corpus: Corpus

    def loss(self, batch: Tensor) -> Tensor:
        """batch: (B, T + 1) uint8, on any device.   returns: () float32, nats per byte, on the model's device."""
        text = batch.to(next(self.model.parameters()).device, torch.int64, non_blocking=True)
        scores = self.model(text[:, :-1])  # (B, T, 256)
        return functional.cross_entropy(scores.flatten(0, 1).float(), text[:, 1:].flatten())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Nats per byte on text that no peer trains on."""
        batches = torch.split(self.held_out, self.settings.batch_size)
        return sum(float(self.loss(batch)) * len(batch) for batch in batches) / len(self.held_out)


def make_task(settings: BytesLmTask | CustomTask, *, seed: int = 0) -> Task:
    """Build a task from its settings, on the CPU.

    seed: of the initial parameters, which a swarm's file replaces. The caller's random numbers are left alone.
    Raises ConfigError for sizes that make no model, and for a folder without (enough) text.
    """
    if isinstance(settings, CustomTask):
        raise ConfigError("task: 'custom' brings a model and a loop of its own, from Python; built in is 'bytes-lm'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = ByteTransformer(settings.width, settings.layers, settings.heads, settings.context)
        except ValueError as error:
            raise ConfigError(f"task: {error}") from None
    corpus = read_corpus(settings.text or standard_library())
    train, held_out = corpus.split()
    return Task(
        settings,
        model,
        Windows(train, settings.context),
        Windows(held_out, settings.context).evenly(HELD_OUT_SAMPLES),
        corpus,
    )
