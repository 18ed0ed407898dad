"""What updates of real runs look like to the codec: energy at equal bytes, and what dense-1 and contexts make of them.

python benchmarks/updates.py [--rounds 40]

Three tasks, 4 peers each, in one process with the node's numerics: text (the demo's language model, Muon), images
(scikit-learn's digits, an MLP, AdamW) and a series (Mackey-Glass, an MLP on 64 lags, AdamW). Accumulators, payloads and
results are taken from the second half of the rounds.

Energy is the share of an accumulator's squared length that a payload of so many bytes takes along. The field's layout,
as of SparseLoCo (arXiv:2508.15706), has indices of 12 bits, and for each value a sign and one of two levels of a whole
tensor. Contexts are where the last eight results had their values: the bits of a choice that knows them are those of
an ideal coder that learns each context's share as it goes (Krichevsky, Trofimov 1981), and of a sign likewise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, from anywhere

from benchmarks.arms import reduce_leaves
from p2pnet.config import AdamW, BytesLmTask, Muon
from p2pnet.numerics.codec import Sparse, decode, dequantise, encode
from p2pnet.numerics.dense import shorten
from p2pnet.numerics.formats import CHUNK_VALUES, ChunkFormat
from p2pnet.numerics.levels import LEVEL_BIAS_DEFAULT
from p2pnet.train.learner import Learner
from p2pnet.train.optimizer import InnerOptimizer
from p2pnet.train.tasks import make_task

RESULTS: Final = Path(__file__).resolve().parent / "results" / "updates.json"
PEERS: Final = 4
H: Final = 8
FORMATS: Final = ((ChunkFormat(64, 2), ChunkFormat(192, 2)), (ChunkFormat(512, 1), ChunkFormat(1536, 1)))
FIELD_K: Final = (64, 256)  # of the field's layout; at 64 it takes 112 bytes a chunk
REACH: Final = 8  # results that a context looks back on
NEAR: Final = 65  # coordinates around one that count as its neighbours

Batch = Callable[[torch.Generator], Tensor]  # to a loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"date": datetime.now(tz=UTC).date().isoformat(), "rounds": options.rounds, "h": H}
    for name, make in {"text": text, "images": images, "series": series}.items():
        record[name] = {}
        for formats in FORMATS:
            torch.manual_seed(0)
            model, loss, inner = make()
            seen = list(rounds_of(model, loss, inner, formats, options.rounds))
            its = record[name][f"k={formats[0].k} value_bits={formats[0].value_bits}"] = measure(name, seen, formats)
            its["loss"] = [seen[0][3], seen[-1][3]]
    options.out.write_text(json.dumps(record, indent=1) + "\n")


# Tasks --------------------------------------------------------------------------------------------------------------


def text() -> tuple[nn.Module, Batch, AdamW | Muon]:
    task = make_task(BytesLmTask("bytes-lm"))

    def loss(rng: torch.Generator) -> Tensor:
        starts = torch.randint(len(task.dataset), (8, 1), generator=rng)
        return task.loss(task.dataset.data[starts + torch.arange(task.settings.context + 1)])

    return task.model, loss, Muon(momentum=0.9, adamw_lr=0.01)


def images() -> tuple[nn.Module, Batch, AdamW | Muon]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))

    def loss(rng: torch.Generator) -> Tensor:
        chosen = torch.randint(len(y), (32,), generator=rng)
        return functional.cross_entropy(model(x[chosen]), y[chosen])

    return model, loss, AdamW(lr=1e-3)


def series() -> tuple[nn.Module, Batch, AdamW | Muon]:
    lags, ahead = 64, 16
    values = mackey_glass(20_000)
    model = nn.Sequential(nn.Linear(lags, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, ahead))

    def loss(rng: torch.Generator) -> Tensor:
        starts = torch.randint(len(values) - lags - ahead, (32, 1), generator=rng)
        window = values[starts + torch.arange(lags + ahead)]
        return functional.mse_loss(model(window[:, :lags]), window[:, lags:])

    return model, loss, AdamW(lr=1e-3)


def mackey_glass(count: int, delay: int = 17) -> Tensor:
    """The chaotic series of Mackey and Glass (1977), steps of 1, mean taken away. (count,) float32."""
    found = [1.2] * (delay + 1)
    while len(found) < count:
        late = found[-delay - 1]
        found.append(found[-1] + 0.2 * late / (1 + late**10) - 0.1 * found[-1])
    values = torch.tensor(found)
    return values - values.mean()


# Rounds -------------------------------------------------------------------------------------------------------------

Seen = tuple[list[Tensor], list[bytes], bytes, float]  # accumulators and payloads of all peers, the result, the loss


def rounds_of(
    model: nn.Module, loss: Batch, inner: AdamW | Muon, formats: tuple[ChunkFormat, ChunkFormat], count: int
) -> Iterator[Seen]:
    """Train together, and yield what each round sent."""
    learners = [
        Learner(
            model, k=formats[0].k, k_result=formats[1].k, value_bits=formats[0].value_bits,
            level_bias=LEVEL_BIAS_DEFAULT, alpha_ppm=1_100_000, beta_ppm=1_000_000,
        )
        for _ in range(PEERS)
    ]  # fmt: skip
    optimizers = [InnerOptimizer(model, inner) for _ in learners]
    streams = [torch.Generator().manual_seed(peer) for peer in range(PEERS)]
    for number in range(count):
        theta = [p.detach().clone() for p in model.parameters()]
        sums, accumulators, payloads = 0.0, [], []
        for learner, optimizer, rng in zip(learners, optimizers, streams, strict=True):
            for step in range(H):
                value = loss(rng)
                value.backward()
                optimizer.step(number * H + step)
                sums += value.item()
            payloads.append(learner.encode(H, H))
            accumulators.append(learner._e.clone())
            with torch.no_grad():
                for local, start in zip(model.parameters(), theta, strict=True):
                    local.copy_(start)
        result = reduce_leaves(payloads, *formats)
        for learner in learners:
            learner.apply(result, [True] * learner.leaves)
        yield accumulators, payloads, result, sums / PEERS / H


def measure(name: str, seen: list[Seen], formats: tuple[ChunkFormat, ChunkFormat]) -> dict[str, Any]:
    """Say and return what the second half of the rounds came to."""
    half = len(seen) // 2
    print(f"\n{name}, k = {formats[0].k}, {formats[0].value_bits} bits, {seen[0][0][0].shape[0]} chunks")
    found: dict[str, Any] = {"energy": energies([a for one in seen[half::4] for a in one[0]])}
    for field_bytes, its in found["energy"].items():
        print(
            f"  energy at {field_bytes} bytes a chunk: " + "  ".join(f"{how} {share:.3f}" for how, share in its.items())
        )
    for what, fmt, sent in (
        ("payload", formats[0], [payload for one in seen[half:] for payload in one[1]]),
        ("result", formats[1], [one[2] for one in seen[half:]]),
    ):
        chunks = sum(map(len, sent)) / fmt.chunk_bytes
        dense = sum(len(shorten(data, fmt)) for data in sent) / chunks
        bound = sum(entropy_of(data, fmt) for data in sent) / chunks / 8
        found[what] = {"fixed": fmt.chunk_bytes, "dense": dense, "bound": bound, "ratio": 4 * CHUNK_VALUES / dense}
        found[what] |= contexts(seen, half, formats, is_result=what == "result")
        print(f"  {what}: " + "  ".join(f"{key} {value:.2f}" for key, value in found[what].items()))
    return found


# Energy -------------------------------------------------------------------------------------------------------------


def energies(accumulators: list[Tensor]) -> dict[str, dict[str, float]]:
    """By bytes of a chunk and layout: the share of the squared length that is taken along."""
    found: dict[str, dict[str, float]] = {}
    for k in FIELD_K:
        size = k * (12 + 2) // 8
        layouts: dict[str, Callable[[Tensor], Tensor]] = {f"12-bit indices k={k}": lambda a, k=k: field(a, k)}
        for bits in (1, 2, 3):
            fmt = max((ChunkFormat(j, bits) for j in range(8, 2049)), key=lambda its: (its.chunk_bytes <= size, its.k))
            if fmt.chunk_bytes > size:
                fmt = next(ChunkFormat(j, bits) for j in range(2048, 7, -1) if ChunkFormat(j, bits).chunk_bytes <= size)
            layouts[f"{bits} bits k={fmt.k}"] = lambda a, fmt=fmt: ours(a, fmt)
        whole = sum(float(a.square().sum()) for a in accumulators)
        found[str(size)] = {
            how: 1 - sum(float((a - layout(a)).square().sum()) for a in accumulators) / whole
            for how, layout in layouts.items()
        }
    return found


def ours(a: Tensor, fmt: ChunkFormat) -> Tensor:
    sparse = decode(encode(a, fmt, LEVEL_BIAS_DEFAULT), fmt)
    return torch.zeros_like(a).scatter_(1, sparse.indices.long(), dequantise(sparse, LEVEL_BIAS_DEFAULT))


def field(a: Tensor, k: int) -> Tensor:
    """The k largest of each chunk, at two levels for all of them, the best that Lloyd's algorithm finds."""
    indices = a.abs().topk(k, dim=1).indices
    values = a.gather(1, indices)
    sizes = values.abs()
    low, high = sizes.quantile(0.25), sizes.quantile(0.9)
    for _ in range(20):
        is_high = sizes * 2 > low + high
        low, high = sizes[~is_high].mean(), sizes[is_high].mean()
    return torch.zeros_like(a).scatter_(1, indices, torch.where(sizes * 2 > low + high, high, low) * values.sign())


# Entropy ------------------------------------------------------------------------------------------------------------


def entropy_of(data: bytes, fmt: ChunkFormat) -> float:
    """Bits of what a payload says: choices of k equally likely, fair signs, selectors by their shares in each chunk.

    Of the levels' codes their change from chunk to chunk, by the shares of the changes.
    """
    sparse = decode(data, fmt)
    sent = (sparse.codes > 0).sum(1) if fmt.value_bits == 1 else torch.full((len(sparse.codes),), fmt.k)
    choices = {n: math.log2(math.comb(CHUNK_VALUES, n)) for n in set(sent.tolist())}
    bits = sum(choices[n] + n for n in sent.tolist())
    if fmt.value_bits > 1:
        for row in sparse.codes:
            shares = torch.bincount(row.long()).double() / fmt.k
            bits -= fmt.k * float((shares[shares > 0] * shares[shares > 0].log2()).sum())
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, fmt.chunk_bytes)[:, -fmt.levels :].int()
    for column in (codes.diff(dim=0) + 256).unbind(1):
        shares = torch.bincount(column).double() / len(column)
        bits -= len(column) * float((shares[shares > 0] * shares[shares > 0].log2()).sum())
    return bits


def contexts(
    seen: list[Seen], half: int, formats: tuple[ChunkFormat, ChunkFormat], *, is_result: bool
) -> dict[str, float]:
    """Bits of a value's place and sign, for one that knows no results and one that knows the last ones."""
    results = [signs_of(decode(one[2], formats[1])) for one in seen]
    places, signs = [Counts(), Counts()], [Counts(), Counts()]
    values = 0
    for number in range(half, len(seen)):
        before = results[max(0, number - REACH) : number]
        often = sum((one != 0).int() for one in before)
        around = sum((one != 0).float() for one in before)
        near = functional.avg_pool1d(around.unsqueeze(1), NEAR, 1, NEAR // 2).squeeze(1)
        steps = (near / near.mean() * 4).long().clamp(max=15)
        context = steps * (REACH + 1) + often
        lean = sum(one.int() for one in before[-3:]) + 3
        sent = [results[number]] if is_result else [signs_of(decode(data, formats[0])) for data in seen[number][1]]
        for one in sent:
            hit = one != 0
            values += int(hit.sum())
            for counts, about in zip(places, (torch.zeros_like(context), context), strict=True):
                counts.add(about, hit)
            for counts, about in zip(signs, (torch.zeros_like(lean), lean), strict=True):
                counts.add(about[hit], (one > 0)[hit])
    names = ("place", "place, with contexts", "sign", "sign, with contexts")
    return {name: counts.bits() / values for name, counts in zip(names, (*places, *signs), strict=True)}


class Counts:
    """How often a bit was one, by context."""

    def __init__(self) -> None:
        self.all = torch.zeros(256, dtype=torch.float64)
        self.ones = torch.zeros(256, dtype=torch.float64)

    def add(self, context: Tensor, bit: Tensor) -> None:
        """Count bits, of 0..255 as context each."""
        flat = context.reshape(-1).long()
        self.all += torch.bincount(flat, minlength=256)
        self.ones += torch.bincount(flat, weights=bit.reshape(-1).double(), minlength=256)

    def bits(self) -> float:
        """The length of an ideal code that learns the shares as it goes."""
        ones, zeros, half = self.ones, self.all - self.ones, torch.tensor(0.5, dtype=torch.float64)
        nats = (
            torch.lgamma(self.all + 1) + 2 * torch.lgamma(half) - torch.lgamma(ones + half) - torch.lgamma(zeros + half)
        )
        return float(nats.sum()) / math.log(2)


def signs_of(sparse: Sparse) -> Tensor:
    """(chunks, 4096) int8: 1, -1, or 0 where nothing was sent."""
    signs = torch.where(sparse.codes > 0, 1 - 2 * sparse.negative.to(torch.int8), 0).to(torch.int8)
    return torch.zeros((len(signs), CHUNK_VALUES), dtype=torch.int8).scatter_(1, sparse.indices.long(), signs)


if __name__ == "__main__":
    main()
