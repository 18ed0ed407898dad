"""One rank of a replica of two processes: what `torchrun` would start, with a node that the test plays on rank 0.

python -m tests.train.replica_job <rank> <folder> <bare|ddp|fsdp>:<scenario> ...
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.founding import create
from p2pnet.node import bridge as br
from p2pnet.swarm import Swarm
from p2pnet.train.assignment import Assignment
from p2pnet.train.learner import Learner
from p2pnet.train.ranks import Ranks
from p2pnet.train.storage import read_tensors
from tests.test_swarm import CONFIG, FakeOpening, result, task, void

RANKS, BATCH_SIZE, SAMPLES = 2, 4, 1000


class Net(nn.Module):
    """Shards of unequal size, a frozen parameter, a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(16, 33), nn.Linear(33, 3)
        self.norm = nn.BatchNorm1d(33)
        self.last.bias.requires_grad_(False)
        with torch.no_grad():
            self.last.bias.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(self.norm(self.first(x)).relu())
        return scores


def wrap(model: nn.Module, kind: str) -> nn.Module:
    if kind == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model.first)
        return fully_shard(model)
    return nn.parallel.DistributedDataParallel(model) if kind == "ddp" else model


class Rank:
    """This rank's side of a swarm."""

    def __init__(self, rank: int, folder: Path, kind: str, seed: int, says: tuple[br.ToUser, ...]) -> None:
        self.opening = FakeOpening(folder, model=Net(0)) if rank == 0 else None
        self.bridge = self.opening.node.bridge if self.opening else None
        for item in says if self.bridge else ():
            self.bridge.says.put(item)
        self.model = wrap(Net(seed + rank), kind)  # the ranks differ, and p2pnet sets them
        self.optimizer = torch.optim.AdamW((p for p in self.model.parameters() if p.requires_grad), lr=0.01)
        self.swarm = Swarm(self.opening, self.model, self.optimizer, Ranks.of_this_job())  # type: ignore[arg-type]

    def answer(self, *items: br.ToUser) -> None:
        if self.bridge:
            self.bridge.answers = list(items)

    def step(self, x: torch.Tensor, spoil: bool = False) -> Any:
        loss = self.model(x.float()).square().mean()
        loss.backward()
        if spoil:
            p = next(p for p in self.model.parameters() if p.requires_grad)
            local = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad  # type: ignore[union-attr]
            local.fill_(torch.nan)  # type: ignore[union-attr]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.swarm.step(loss, samples=len(x))

    def round(self, *items: br.ToUser, spoil: bool = False) -> Any:
        self.answer(*items)
        assert self.step(torch.randn(BATCH_SIZE, 16), spoil) is None
        return self.step(torch.randn(BATCH_SIZE, 16), spoil)

    def moments(self) -> str:
        digest = hashlib.sha256()
        for state in self.optimizer.state.values():
            for value in state.values():
                local = value.to_local() if hasattr(value, "to_local") else value
                digest.update(local.detach().numpy().tobytes())
        return digest.hexdigest()


def other(payload_of: int = 9) -> bytes:
    """What another peer sent: an update of the same table."""
    learner = Learner(
        Net(0), k=8, k_result=16, value_bits=CONFIG.codec.value_bits, level_bias=32, alpha_ppm=1, beta_ppm=1
    )
    generator = torch.Generator().manual_seed(payload_of)
    with torch.no_grad():
        for p in learner.replica.trained.values():
            p.add_(torch.randn(p.shape, generator=generator))
    return learner.encode(1, 1)


def alone(*results: br.Outcome) -> str:
    """The state of one process that applied the same results."""
    manifest = CONFIG
    learner = Learner(
        Net(0), k=8, k_result=16, value_bits=manifest.codec.value_bits, level_bias=manifest.codec.level_bias,
        alpha_ppm=round(manifest.outer.alpha * 1e6), beta_ppm=round(manifest.outer.beta * 1e6),
    )  # fmt: skip
    for one in results:
        learner.apply(one.result, None)
    return learner.state_sha256().hex()


def same(value: str) -> bool:
    """Tell whether all ranks have the same value."""
    values: list[Any] = [None] * RANKS
    dist.all_gather_object(values, value)
    return len(set(values)) == 1


def rounds(rank: int, folder: Path, kind: str) -> None:
    """Rounds with others' results, a decision that comes early, NaN on one rank, a restart, a state from a member."""
    first, second, third = result(0, other(1)), result(1, other(2)), result(2, other(3), (True,))
    here = Rank(rank, folder, kind, 5, (task(0),))
    assert here.swarm.state_sha256() == alone()
    report = here.round(first, task(1))
    assert here.swarm.state_sha256() == alone(first)
    assert (report.round, report.steps) == (0, 2)
    assert same(f"{report.loss} {report.lineage}")
    if here.bridge:
        sent = here.bridge.last(br.Submitted)
        assert sent.samples == 2 * 2 * BATCH_SIZE, "those of both ranks"
        here.bridge.says.put(second)  # the others are through before us
        here.bridge.says.put(task(2))
    here.answer(third, task(3))
    dist.barrier()
    report = here.step(torch.randn(BATCH_SIZE, 16))
    assert report is not None, "the round ends on all ranks in the same step"
    assert (report.round, report.steps) == (1, 1)
    assert here.swarm.state_sha256() == alone(first, second, third)
    if here.bridge:
        late = here.bridge.last(br.Submitted)
        assert (late.round_id, late.samples) == (2, 2 * BATCH_SIZE), "what both ranks trained, in the round after"
    report = here.round(void(3), task(4), spoil=rank == 1 or kind != "fsdp")
    assert report.void
    if here.bridge:
        assert "NaN" in here.bridge.last(br.Skipped).reason
    here.round(void(4), task(5))
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in here.model.named_parameters()}
    assert same(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in whole.values())).hexdigest())
    moments = here.moments()
    here.swarm.export(folder / "model.safetensors")
    if rank == 0:
        fresh = Net(7)
        fresh.load_state_dict(read_tensors(folder / "model.safetensors")[0])
        assert torch.equal(fresh.first.weight, whole["module.first.weight" if kind == "ddp" else "first.weight"])
        here.swarm.learner.write_state(folder / "state")
    state = here.swarm.state_sha256()
    here.swarm.close()
    assert (folder / "learner.rank1.safetensors").exists() == (kind == "fsdp")
    snapshot = br.Snapshot(7, bytes.fromhex(state), folder / "state")
    refused = br.Snapshot(6, bytes(32), folder / "state")
    again = Rank(rank, folder, kind, 6, (void(5), refused, snapshot, task(7)))
    assert again.swarm.round == 7
    assert again.swarm.state_sha256() == state
    assert again.moments() == moments, "each rank's optimizer goes on where it was"
    again.round(void(7), task(8))
    again.swarm.close()


def data(rank: int, folder: Path, kind: str) -> None:
    """Each rank has its share of what the beacon assigns, and the round counts as assigned."""
    here = Rank(rank, folder, kind, 5, (task(0),))
    dataset = TensorDataset(torch.arange(SAMPLES))
    here.answer(void(0), task(1))
    seen: list[int] = []
    for (indices,) in here.swarm.batches(dataset, batch_size=BATCH_SIZE):
        seen += indices.tolist()
        if here.step(indices[:, None].expand(-1, 16)):
            break
    everybody: list[Any] = [None] * RANKS
    dist.all_gather_object(everybody, seen)
    whole = Assignment(0, task(0).beacon, b"\1" * 32)
    expected = [index for step in range(2 * RANKS) for index in whole.batch(step, BATCH_SIZE, SAMPLES)]
    assert sorted(everybody[0] + everybody[1]) == sorted(expected)
    assert everybody[0] != everybody[1]
    if here.bridge:
        assert here.bridge.last(br.Submitted).assigned
    here.swarm.close()


def failing(rank: int, folder: Path, kind: str) -> None:
    """An exception on one rank reaches the other at its next step; both leave."""

    class OwnError(Exception):
        """Of the user's code."""

    for culprit in range(RANKS):
        here = Rank(rank, folder, kind, 5, (task(0),))
        expected = pytest.raises(OwnError) if rank == culprit else pytest.raises(P2pnetError, match="another rank")
        with expected, here.swarm:
            here.step(torch.randn(BATCH_SIZE, 16))
            if rank == culprit:
                raise OwnError
            here.swarm.step(0.0, samples=1)
        assert here.opening is None or here.opening.node.stopped
        dist.barrier()
    here = Rank(rank, folder, kind, 5, (task(0),))
    if rank == 0:  # leaves the loop earlier than the other
        here.swarm.close()
    else:
        with pytest.raises(P2pnetError, match="closed the swarm"), here.swarm:
            here.swarm.step(0.0, samples=1)
    dist.barrier()


def founding(rank: int, folder: Path, kind: str) -> None:
    """create is collective, too; and models that differ are noticed."""
    link = create(CONFIG, wrap(Net(3), kind), state_dir=folder)
    assert same(str(link))
    with pytest.raises(ConfigError, match="holds a swarm already"):
        create(CONFIG, wrap(Net(3), kind), state_dir=folder)
    with pytest.raises(ConfigError, match="ranks of this replica hold different"):
        create(CONFIG, Net(3) if rank == 0 else nn.Linear(2, 2), state_dir=folder)


SCENARIOS: dict[str, Callable[[int, Path, str], None]] = {
    "rounds": rounds, "data": data, "failing": failing, "founding": founding,
}  # fmt: skip


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    for name in sys.argv[3:]:
        kind, _, scenario = name.partition(":")
        torch.manual_seed(100 + rank)
        SCENARIOS[scenario](rank, folder / kind / scenario, kind)
        print(f"{name} done", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
