"""What `convergence.py` compares: one run of each way to train a model together, in one process.

Every arm trains the same model from the same initial parameters, and step s of peer p has the same samples in all of
them. One model stands for all peers of a round: each trains it in turn from the same parameters, with an inner
optimizer of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from p2pnet.config import AdamW, BytesLmTask, Codec, Muon
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import LEAF_CHUNKS, reduce_part
from p2pnet.train.learner import Learner
from p2pnet.train.optimizer import InnerOptimizer
from p2pnet.train.tasks import Task, Windows, make_task

CONTROL_BYTES: Final = (
    5_000  # a peer's commits, votes, gossip, proofs and headers of a round; measured: real() and the demo
)
GRID_SAMPLES: Final = 256  # held-out passages along the way
END_SAMPLES: Final = 1024  # and at the end
SMOOTHED: Final = 20  # steps whose training losses are one number


@dataclass(frozen=True)
class Arm:
    """One run: how the peers agree, and all that was chosen. Its text is `p2pnet muon h=5 k=512`."""

    method: str = "p2pnet"  # "data-parallel", "diloco"
    inner: str = "muon"  # "adamw"
    steps: int = 600  # of the swarm: a batch on every peer
    seed: int = 0  # of initial parameters and samples
    peers: int = 4
    batch: int = 8  # sequences of a peer and step
    lr: float = 0.02  # of the inner optimizer
    adamw_lr: float = 0.003  # with Muon, of what is no hidden matrix
    momentum: float = 0.95  # Muon's
    decay: float = 0.4  # share of the run in which the rates fall
    floor: float = 0.1  # to this share of themselves
    h: int = 10
    k: int = 512
    k_result: int = 0  # 0: as the configuration has it
    value_bits: int = 1  # 2: two levels in a chunk
    alpha: float = 1.2
    beta: float = 0.95
    outer_lr: float = 0.7  # DiLoCo's
    outer_momentum: float = 0.9
    fp32: int = 0  # 1: no bfloat16 in the matrix products
    overlap: int = 0  # 1: a round is trained while the one before it is exchanged

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Read what `str` wrote. Raises ValueError for an unknown word."""
        method, inner, *words = text.split()
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {"method": method, "inner": inner}
        for word in words:
            name, _, value = word.partition("=")
            if name not in kinds:
                raise ValueError(f"{word!r} in {text!r}; known are {', '.join(kinds)}")
            values[name] = kinds[name](value)
        if method not in METHODS or inner not in {"adamw", "muon"}:
            raise ValueError(f"{text!r} starts with none of {', '.join(METHODS)}, then adamw or muon")
        return cls(**values)

    def __str__(self) -> str:
        fields = dataclasses.fields(self)[2:]
        words = [f"{f.name}={getattr(self, f.name)}" for f in fields if getattr(self, f.name) != f.default]
        return " ".join((self.method, self.inner, *words))

    def codec(self) -> Codec:
        """How many values of a chunk travel."""
        return Codec(self.k, self.k_result, self.value_bits)

    def inner_settings(self) -> AdamW | Muon:
        """The inner optimizer; its schedule is that of the run, the same in every arm."""
        falling = round(self.decay * self.steps)
        start = self.steps - falling
        if self.inner == "adamw":
            return AdamW(lr=self.lr, decay_start=start, decay_steps=falling, decay_floor=self.floor)
        return Muon(
            lr=self.lr,
            momentum=self.momentum,
            adamw_lr=self.adamw_lr,
            decay_start=start,
            decay_steps=falling,
            decay_floor=self.floor,
        )

    def bytes_per_step(self, params: int, chunks: int) -> float:
        """What a peer sends per step of the swarm, a round's share of it where there are rounds.

        Gradients and dense updates travel as fp32 around a ring, which is the least that an all-reduce can send.
        """
        others = (self.peers - 1) / self.peers
        if self.method == "p2pnet":
            payload = ChunkFormat(self.k, self.value_bits).chunk_bytes
            both = chunks * (payload + ChunkFormat(self.codec().k_result, self.value_bits).chunk_bytes)
            audit = (self.peers - 1) * min(LEAF_CHUNKS, chunks) * payload  # a leaf of everybody else's, recomputed
            return (others * both + audit + CONTROL_BYTES) / self.h
        ring = 2 * others * 4 * params
        return ring if self.method == "data-parallel" else ring / self.h


class Bench:
    """The model, its text, and a loss as fast as this machine has it; shared by the runs of a process."""

    def __init__(
        self, settings: BytesLmTask, *, is_compiled: bool = True, grid: int = GRID_SAMPLES, end: int = END_SAMPLES
    ) -> None:
        """is_compiled: worth its half minute from about a thousand batches on.   grid, end: held-out samples."""
        self.task: Task = make_task(settings)
        self.model = self.task.model
        self._loss = torch.compile(self.task.loss) if is_compiled else self.task.loss
        self.grid, self.end = grid, end
        self._held_out = Windows(self.task.corpus.split()[1], settings.context)

    def start(self, seed: int) -> None:
        """Set the model to the initial parameters of a seed."""
        self.model.load_state_dict(make_task(self.task.settings, seed=seed).model.state_dict())

    def samples(self, arm: Arm) -> Tensor:
        """returns: (steps, peers, batch) int64; the same text in the same order for any split of the same tokens."""
        generator = torch.Generator().manual_seed(1000 + arm.seed)  # other numbers than the initial parameters
        return torch.randint(len(self.task.dataset), (arm.steps, arm.peers, arm.batch), generator=generator)

    def backward(self, indices: Tensor, arm: Arm, scale: float = 1.0) -> float:
        """Add the gradients of scale * loss; returns the loss. indices: (batch,) int64.

        bfloat16 in the matrix products (half the time of fp32 here), attention spelled out, since torch's flash
        attention is slow backwards in bfloat16 on a CPU.
        """
        batch = self.task.dataset.data[indices[:, None] + torch.arange(self.task.settings.context + 1)]
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=not arm.fp32):
            loss = self._loss(batch)
        (loss * scale).backward()
        return loss.item()

    @torch.no_grad()
    def held_out_loss(self, count: int) -> float:
        """Nats per byte on so many evenly spread passages that nobody trains on, in fp32."""
        batches = self._held_out.evenly(count).split(16)
        return sum(float(self.task.loss(batch)) * len(batch) for batch in batches) / sum(map(len, batches))


Losses = Iterator[float]  # one for each step of the swarm, after it; those of a round come at its end


def data_parallel(bench: Bench, arm: Arm, samples: Tensor) -> Losses:
    """The mean of all peers' gradients at every step."""
    optimizer = InnerOptimizer(bench.model, arm.inner_settings())
    for step, each in enumerate(samples):
        loss = sum(bench.backward(indices, arm, 1 / arm.peers) for indices in each) / arm.peers
        optimizer.step(step)
        yield loss


def _train(bench: Bench, arm: Arm, samples: Tensor, optimizer: InnerOptimizer, peer: int, first: int) -> list[float]:
    """Take one peer's steps of the round that begins with step `first`."""
    losses = []
    for step in range(first, min(first + arm.h, arm.steps)):
        losses.append(bench.backward(samples[step, peer], arm))
        optimizer.step(step)
    return losses


def _mean(losses: list[list[float]]) -> Losses:
    return (sum(each) / len(each) for each in zip(*losses, strict=True))


def diloco(bench: Bench, arm: Arm, samples: Tensor) -> Losses:
    """DiLoCo (arXiv:2311.08105): the mean of all peers' whole changes is a gradient for Nesterov's momentum."""
    params = list(bench.model.parameters())
    inner = [InnerOptimizer(bench.model, arm.inner_settings()) for _ in range(arm.peers)]
    theta = [p.detach().clone().requires_grad_() for p in params]
    outer = torch.optim.SGD(theta, arm.outer_lr, arm.outer_momentum, nesterov=arm.outer_momentum > 0)
    for first in range(0, arm.steps, arm.h):
        losses = []
        outer.zero_grad(set_to_none=False)
        for peer, optimizer in enumerate(inner):
            losses.append(_train(bench, arm, samples, optimizer, peer, first))
            with torch.no_grad():
                for start, local in zip(theta, params, strict=True):
                    change = (start - local) / arm.peers
                    start.grad = change if start.grad is None else start.grad + change
                    local.copy_(start)
        outer.step()
        with torch.no_grad():
            for start, local in zip(theta, params, strict=True):
                local.copy_(start)
        yield from _mean(losses)


def p2pnet(bench: Bench, arm: Arm, samples: Tensor) -> Losses:
    """The node's numerics, each leaf a part and every peer named. Raises RuntimeError when replicas differ."""
    codec = arm.codec()
    learners = [
        Learner(
            bench.model,
            k=codec.k,
            k_result=codec.k_result,
            value_bits=codec.value_bits,
            level_bias=codec.level_bias,
            alpha_ppm=round(arm.alpha * 1e6),
            beta_ppm=round(arm.beta * 1e6),
        )
        for _ in range(arm.peers)
    ]
    inner = [InnerOptimizer(bench.model, arm.inner_settings()) for _ in range(arm.peers)]
    formats = ChunkFormat(codec.k, codec.value_bits), ChunkFormat(codec.k_result, codec.value_bits)
    named, result = [True] * learners[0].leaves, b""
    for first in range(0, arm.steps, arm.h):
        theta = [p.detach().clone() for p in bench.model.parameters()]
        losses, payloads = [], []
        for peer, (learner, optimizer) in enumerate(zip(learners, inner, strict=True)):
            losses.append(_train(bench, arm, samples, optimizer, peer, first))
            if learner.pending:
                learner.encode_next(result, named, len(losses[-1]), arm.h)
            else:
                learner.encode(len(losses[-1]), arm.h)
            payloads.append(learner.pending_update())
            with torch.no_grad():
                for local, start in zip(bench.model.parameters(), theta, strict=True):
                    local.copy_(start)
        result = reduce_leaves(payloads, *formats)
        for learner in learners:
            if arm.overlap and first + arm.h < arm.steps:
                learner.rewind()
            else:
                learner.apply(result, named)
        if len({learner.checksum() for learner in learners}) != 1:
            raise RuntimeError(f"{arm}: the replicas differ after step {first + arm.h}")
        yield from _mean(losses)


def reduce_leaves(payloads: list[bytes], fmt: ChunkFormat, fmt_result: ChunkFormat) -> bytes:
    """Reduce whole payloads of equal weight, every leaf as a part of its own."""
    leaf, peers = LEAF_CHUNKS * fmt.chunk_bytes, len(payloads)
    parts = ([payload[at : at + leaf] for payload in payloads] for at in range(0, len(payloads[0]), leaf))
    return b"".join(reduce_part(part, [1] * peers, peers, fmt, fmt_result).output for part in parts)


METHODS: Final[dict[str, Callable[[Bench, Arm, Tensor], Losses]]] = {
    "data-parallel": data_parallel, "diloco": diloco, "p2pnet": p2pnet,
}  # fmt: skip


def run(bench: Bench, arm: Arm, say: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """Run one arm; returns its losses and what it sent, ready for JSON."""
    bench.start(arm.seed)
    every = max(1, arm.steps // 12)
    losses: list[float] = []
    held_out = [(0, bench.held_out_loss(bench.grid))]
    for loss in METHODS[arm.method](bench, arm, bench.samples(arm)):
        losses.append(loss)
        done = len(losses)
        is_theta = arm.method == "data-parallel" or done % arm.h == 0  # else the model is already at the round's end
        if is_theta and done // every > held_out[-1][0] // every and done < arm.steps:
            held_out.append((done, bench.held_out_loss(bench.grid)))
            say(f"{arm}: step {done} of {arm.steps}, held-out loss {held_out[-1][1]:.3f}")
    held_out.append((arm.steps, bench.held_out_loss(bench.end)))
    means = [losses[at : at + SMOOTHED] for at in range(0, len(losses), SMOOTHED)]
    end = losses[-max(1, arm.steps // 20) :]
    chunks = learner_chunks(bench.model)
    params = sum(p.numel() for p in bench.model.parameters())
    return {
        "arm": str(arm),
        "held_out_loss": held_out[-1][1],
        "train_loss": sum(end) / len(end),
        "bytes_per_step": arm.bytes_per_step(params, chunks),
        "held_out": [(step, round(loss, 5)) for step, loss in held_out],
        "train": [round(sum(some) / len(some), 5) for some in means],
    }


def learner_chunks(model: nn.Module) -> int:
    """Chunks of 4096 values that a model's parameters are cut into."""
    return Learner(model, k=64, k_result=64, value_bits=1, level_bias=0, alpha_ppm=0, beta_ppm=0).chunks
