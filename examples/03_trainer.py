"""A causal language model of Hugging Face's, trained by its own Trainer: p2pnet comes in as a callback.

    pip install 'p2pnet[train,examples]'
    python examples/03_trainer.py                       # three replicas on this machine, each a process of its own

The model is built from a configuration and learns the bytes of Python's own sources: nothing is downloaded. A replica
that is stopped goes on where it was when it is started again with the same `state_dir`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from launch import NODE, part, run
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import p2pnet
from p2pnet.config import Codec, CustomTask, Swarm, SwarmConfig, Training

BATCH_SIZE, ACCUMULATED = 8, 2  # sequences of a backward pass, and backward passes of a step
CONTEXT = 64  # bytes of a sequence
SETTINGS = SwarmConfig(
    Swarm("trainer"), CustomTask("custom", batch_size=BATCH_SIZE * ACCUMULATED), Training(h_steps=5), Codec(k=512)
)


def make_model() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
        )
    )


class Bytes(Dataset[dict[str, Tensor]]):
    """Pieces of some of Python's sources, CONTEXT bytes each."""

    def __init__(self) -> None:
        text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("a*.py")))
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.text) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        piece = self.text[index * CONTEXT : (index + 1) * CONTEXT].long()  # (CONTEXT,)
        return {"input_ids": piece, "labels": piece}


def train(link: str, state_dir: str, rounds: int) -> None:
    """One replica."""
    with (
        tempfile.TemporaryDirectory() as output,
        p2pnet.SwarmCallback(link, state_dir=state_dir, config=NODE, until_round=rounds, on_report=show) as callback,
    ):
        arguments = TrainingArguments(
            output,
            per_device_train_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=ACCUMULATED,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            max_steps=1_000_000,  # until_round ends it
            seed=int.from_bytes(os.urandom(4), "big") % 2**31,  # each replica draws its own samples
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
        )
        Trainer(make_model(), arguments, train_dataset=Bytes(), callbacks=[callback]).train()
        part(callback.swarm)


def show(report: p2pnet.Report) -> None:
    print(f"round {report.round:>3}  loss {report.loss:.3f}  steps {report.steps}", flush=True)


if __name__ == "__main__":
    run(__doc__, SETTINGS, make_model, train, rounds=20)
